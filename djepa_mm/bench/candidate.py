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
from djepa_mm.media.sounds import Sounds
from djepa_mm.recipe.load import load_recipe, parse_override, parse_recipe, recipe_data, wants_text
from djepa_mm.recipe.packaged import find_recipe
from djepa_mm.types import Config, Pinned, Tokenizer, UserError
from djepa_mm.weights import VAEConfig

Found = TypeVar("Found")


# --- which tokenizer --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A tokenizer to try, and what built it."""

    name: str  # as it was asked for
    config: Config
    tokenizer: Tokenizer


def parse_tokenizer(text: str, files: Sequence[Path] = (), like: Candidate | None = None) -> Candidate:
    """`clip-patches,patch=[2,8,8]`: a tokenizer's kind, or a recipe's name or file, and keys with values in YAML.

    Required keys that say what the media are (frames, size, frame_rate) come from the files where they are not given:
    the least of them all, so that every file can be cut to it. like: of the same media, so that keys that say what
    they are come from it. Raises UserError, one line.
    """
    name, *pairs = (part.strip() for part in re.split(r",(?=\s*\w[\w.]*=)", text))
    kinds = _kinds()
    if name not in kinds:
        try:
            find_recipe(name)
        except UserError as error:
            if Path(name).is_dir():
                raise UserError(
                    f"--tokenizer {name}: a folder; of a run that trained one: trained,path={name}"
                ) from None
            raise UserError(f"--tokenizer {name}: no kind of tokenizer ({', '.join(kinds)}), and {error}") from None
        return candidate_of(text, load_recipe(name, [f"tokenizer.{pair}" for pair in pairs]).tokenizer)
    fields = kinds[name].model_fields
    raw: dict[str, Any] = {"kind": name}
    if like is not None:
        raw |= {key: value for key, value in _facts(like, kinds[name]).items() if key in fields}
    for pair in pairs:
        key, _, value = (part.strip() for part in pair.partition("="))
        try:
            raw[key] = parse_override(value)
        except yaml.YAMLError:
            raise UserError(f"--tokenizer {text}: {value!r} is not plain YAML") from None
        if wants_text(_section(), {"tokenizer": raw}, f"tokenizer.{key}"):
            raw[key] = value  # as it was typed: 2024 is a folder here
    required = {key for key, field in fields.items() if field.is_required()}
    if files and (missing := required & {"frames", "size", "frame_rate"} - raw.keys()):
        found = _format(files, clips="frames" in required)
        raw |= {key: found[key] for key in missing}
    return build_candidate(text, raw, f"--tokenizer {text}")


def build_candidate(name: str, raw: Mapping[str, Any], origin: str) -> Candidate:
    """Of a recipe's tokenizer section. origin: what an error names. Raises UserError, one line."""
    section: Any = parse_recipe(_section(), {"tokenizer": dict(raw)}, origin)
    return candidate_of(name, section.tokenizer)


def candidate_of(name: str, config: Any) -> Candidate:
    """config: of a tokenizer. Where others' weights are possible, it notes the hash of those that are there."""
    config = config.pinned() if isinstance(config, Pinned) else config
    return Candidate(name=name, config=config, tokenizer=config.build())


def _section() -> type[Config]:
    """A recipe's tokenizer section, alone."""
    return create_model("Section", __base__=Config, tokenizer=(sections("kind", "djepa_mm.tokenizers"), ...))


def _kinds() -> dict[str, type[Config]]:
    union = _section().model_fields["tokenizer"].annotation
    return {get_args(config.model_fields["kind"].annotation)[0]: config for config in get_args(union)}


def _facts(like: Candidate, kind: type[Config]) -> dict[str, Any]:
    """What a tokenizer's media are, by keys that another kind for such media may have."""
    media, spec = like.tokenizer.media, like.tokenizer.fixed
    if isinstance(media, Sounds):
        kept = {key: value for key, value in recipe_data(like.config).items() if key in ("max_duration_s", "vocoder")}
        return {"sample_rate_hz": media.sample_rate_hz, **kept}
    if spec is None:
        return {}
    channels, *frames, height, width = spec.shape
    of_clips = {"frames": frames[0], "frame_rate": media.per_second} if frames else {}
    of_media = {} if issubclass(kind, VAEConfig) else {"channels": channels}  # where they are those of latents
    return {"size": [height, width], **of_clips, **of_media}


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
