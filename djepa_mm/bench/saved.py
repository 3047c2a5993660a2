"""Files of tokens: what a tokenizer made of an item, and all that turns it back into media.

B batch, N tokens, C token channels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from djepa_mm.bench.candidate import Candidate, build_candidate, read_media
from djepa_mm.bench.measure import Row, file_name, slug
from djepa_mm.recipe.load import recipe_data
from djepa_mm.types import MediaSpec, UserError

FORMAT = "djepa-mm tokens 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedTokens:
    """The tokens of one item with the tokenizer that made them, fitted as it was."""

    candidate: Candidate
    tokens: Tensor  # (N, C)
    spec: MediaSpec

    @torch.no_grad()
    def media(self, device: torch.device | str = "cpu") -> Tensor:
        """What the tokens stand for (no batch axis), on the CPU."""
        return self.candidate.tokenizer.decode(self.tokens[None].to(device), self.spec)[0].float().cpu()


def save_tokens(path: Path, tokens: Tensor, spec: MediaSpec, candidate: Candidate) -> None:
    """(N, C) -> a safetensors file that can be decoded alone: the tokenizer's config and statistics lie beside.

    The weights of a pretrained VAE do not; the config names them."""
    fitted = {f"statistics.{name}": value for name, value in candidate.tokenizer.state().items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in {"tokens": tokens, **fitted}.items()}
    config = {"name": candidate.name, "tokenizer": recipe_data(candidate.config)}
    metadata = {"format": FORMAT, **{key: json.dumps(value) for key, value in config.items()}}
    save_file(tensors, path, {**metadata, "grid": json.dumps(spec.grid), "shape": json.dumps(spec.shape)})


def load_tokens(path: Path) -> SavedTokens:
    """Raises UserError for a file that `save_tokens` did not write, or that is damaged."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not readable as tokens ({' '.join(str(error).split())})") from None
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path}: not a file of tokens that djepa-mm tokens --save wrote")
    try:
        tokens = tensors.pop("tokens")
        name, raw, grid, shape = (json.loads(metadata[key]) for key in ("name", "tokenizer", "grid", "shape"))
        candidate = build_candidate(name, raw, str(path))
        candidate.tokenizer.load_state({key.removeprefix("statistics."): value for key, value in tensors.items()})
    except (KeyError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: damaged file of tokens ({error})") from None
    spec = candidate.tokenizer.spec_of(tuple(shape))
    if tuple(grid) != spec.grid or tuple(tokens.shape) != (spec.num_tokens, candidate.tokenizer.token_dim):
        raise UserError(f"{path}: {tuple(tokens.shape)} tokens on the grid {grid} do not fit their tokenizer's {spec}")
    return SavedTokens(candidate=candidate, tokens=tokens, spec=spec)


@torch.no_grad()
def save_all(row: Row, folder: Path, device: torch.device | str = "cpu") -> Iterator[Path]:
    """A file of tokens for every file that the bench could read. Yields their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = row.candidate.tokenizer
    for n, path in enumerate(row.read):
        media = read_media(path, tokenizer)
        target = folder / f"{file_name(row.candidate)}-{n:04d}-{slug(path.stem)}.safetensors"
        tokens = tokenizer.encode(media[None].to(device))[0]
        save_tokens(target, tokens, tokenizer.spec_of(tuple(media.shape)), row.candidate)
        yield target


def decode_files(files: Sequence[Path], folder: Path, device: torch.device | str = "cpu") -> Iterator[Path]:
    """The way back: a media file for every file of tokens. Yields their paths. Raises UserError where two would have
    one name, before anything is written."""
    stems = [path.stem for path in files]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise UserError(
            f"several files are named {twice[0]}, and the media of one would replace the other's: "
            "take them to a folder each, with --out"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for path in files:
        saved = load_tokens(path)
        media = saved.candidate.tokenizer.media
        target = folder / f"{path.stem}{media.suffixes[0]}"
        media.save(saved.media(device), target)
        yield target
