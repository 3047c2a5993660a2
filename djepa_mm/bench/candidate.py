"""What the token bench tries: a tokenizer, by a few words of the command line, and the files as it takes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import create_model
from torch import Tensor

from djepa_mm.kinds import sections
from djepa_mm.media.clips import Clips, probe_clip, read_clip
from djepa_mm.media.pictures import read_picture
from djepa_mm.recipe.load import load_recipe, parse_recipe, parse_value
from djepa_mm.recipe.packaged import find_recipe
from djepa_mm.types import Config, Tokenizer, UserError

Found = TypeVar("Found")


# --- which tokenizer --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A tokenizer to try, and what built it."""

    name: str  # as it was asked for
    config: Config
    tokenizer: Tokenizer


def parse_tokenizer(text: str, files: Sequence[Path]) -> Candidate:
    """`clip-patches,patch=[2,8,8]`: a tokenizer's kind, or a recipe's name or file, and keys with values in YAML.

    Required keys that say what the media are (frames, size, frame_rate) come from the files where they are not given:
    the least of them all, so that every file can be cut to it. Raises UserError, one line.
    """
    name, *pairs = (part.strip() for part in re.split(r",(?=\s*\w[\w.]*=)", text))
    kinds = _kinds()
    if name not in kinds:
        try:
            find_recipe(name)
        except UserError as error:
            raise UserError(f"--tokenizer {name}: no kind of tokenizer ({', '.join(kinds)}), and {error}") from None
        config = load_recipe(name, [f"tokenizer.{pair}" for pair in pairs]).tokenizer
        return Candidate(name=text, config=config, tokenizer=config.build())
    raw: dict[str, Any] = {"kind": name}
    for pair in pairs:
        key, _, value = pair.partition("=")
        try:
            raw[key.strip()] = parse_value(value)
        except yaml.YAMLError:
            raise UserError(f"--tokenizer {text}: {value!r} is not plain YAML") from None
    required = {key for key, field in kinds[name].model_fields.items() if field.is_required()}
    if missing := required & {"frames", "size", "frame_rate"} - raw.keys():
        found = _format(files, clips="frames" in required)
        raw |= {key: found[key] for key in missing}
    return build_candidate(text, raw, f"--tokenizer {text}")


def build_candidate(name: str, raw: Mapping[str, Any], origin: str) -> Candidate:
    """Of a recipe's tokenizer section. origin: what an error names. Raises UserError, one line."""
    config = parse_recipe(_section(), {"tokenizer": dict(raw)}, origin).tokenizer  # type: ignore[attr-defined]
    return Candidate(name=name, config=config, tokenizer=config.build())


def _section() -> type[Config]:
    """A recipe's tokenizer section, alone."""
    return create_model("Section", __base__=Config, tokenizer=(sections("kind", "djepa_mm.tokenizers"), ...))


def _kinds() -> dict[str, type[Config]]:
    union = _section().model_fields["tokenizer"].annotation
    return {get_args(config.model_fields["kind"].annotation)[0]: config for config in get_args(union)}


def _format(files: Sequence[Path], *, clips: bool) -> dict[str, Any]:
    """The least frames, height and width of the files that can be read, and the first one's frame rate."""

    def probe(path: Path) -> tuple[int, tuple[int, int], float]:
        if clips:
            clip = probe_clip(path)
            return clip.frames, clip.size, clip.frame_rate
        _, height, width = read_picture(path).shape
        return 1, (height, width), 0.0

    found, skipped = read_each(files, probe)
    if not found:
        raise none_readable(skipped)
    frames, sizes, rates = zip(*(value for _, value in found), strict=True)
    size = [min(height for height, _ in sizes), min(width for _, width in sizes)]
    return {"frames": min(frames), "size": size, "frame_rate": rates[0]}


# --- reading ----------------------------------------------------------------------------------------------------------

Skipped = tuple[tuple[Path, str], ...]  # files that cannot be read, and why


def read_media(path: Path, tokenizer: Tokenizer) -> Tensor:
    """A file as this tokenizer takes it (no batch axis): where its media have one size, cut to that.

    The first frames are taken, and their middle. Raises UserError for a file that cannot be read or is too small."""
    if tokenizer.fixed is None:
        media = tokenizer.media.load(path)
    else:
        _, *axes = tokenizer.fixed.shape
        if isinstance(tokenizer.media, Clips):
            media = read_clip(path, channels=tokenizer.media.channels, most=axes[0])
        else:
            media = tokenizer.media.load(path)
        there = media.shape[1:]
        if any(has < wants for has, wants in zip(there, axes, strict=True)):
            found, wanted = ("×".join(map(str, sizes)) for sizes in (there, axes))
            raise UserError(f"{path}: too small, {found} where the tokenizer takes {wanted} (frames, height, width)")
        top, left = (there[-2] - axes[-2]) // 2, (there[-1] - axes[-1]) // 2
        media = media[..., top : top + axes[-2], left : left + axes[-1]]
    tokenizer.spec_of(tuple(media.shape))
    return media


def read_each(files: Iterable[Path], read: Callable[[Path], Found]) -> tuple[list[tuple[Path, Found]], Skipped]:
    """What was read of every file that can be, and the others with their reasons."""
    found, skipped = [], []
    for path in files:
        try:
            found.append((path, read(path)))
        except UserError as error:
            skipped.append((path, str(error).removeprefix(f"{path}: ")))
    return found, tuple(skipped)


def none_readable(skipped: Skipped) -> UserError:
    path, reason = skipped[0]
    return UserError(f"none of {len(skipped)} files can be read; {path}: {reason}")
