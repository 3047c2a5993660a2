"""Checkpoints: safetensors and JSON, written under a temporary name and renamed, the last k kept.

A checkpoint is a folder `step-00001000` with
    recipe.yaml             the resolved recipe
    state.json              step, place in the data, class names, the pace and the words of texts
    averaged.safetensors    averaged weights and the tokenizer's statistics: all that generation reads
    online.safetensors      online weights
    training.safetensors    optimiser state and random states
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from djepa_mm.types import UserError

FORMAT = 2
FILES = ("averaged", "online", "training")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a checkpoint holds, as plain data. Tensors are on the CPU."""

    recipe: str  # YAML
    state: dict[str, Any]
    averaged: Mapping[str, Tensor]
    online: Mapping[str, Tensor]
    training: Mapping[str, Tensor]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write `folder`/step-…, whole or not at all, then delete all but the last `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{checkpoint.state['step']:08d}"
    temporary = folder / f".{target.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    (temporary / "recipe.yaml").write_text(checkpoint.recipe, encoding="utf-8")
    state = {"format": FORMAT, **checkpoint.state}
    (temporary / "state.json").write_text(json.dumps(state, indent=2, ensure_ascii=False), encoding="utf-8")
    for name in FILES:
        tensors = {key: t.detach().cpu().contiguous() for key, t in getattr(checkpoint, name).items()}
        save_file(tensors, temporary / f"{name}.safetensors")
    for path in (*temporary.iterdir(), temporary):
        _sync(path)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    _sync(folder)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def _sync(path: Path) -> None:
    """Have the file or folder on the disk before the rename that makes it count."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints in a folder, oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.is_dir())


def find_checkpoint(path: Path) -> Path:
    """The newest checkpoint of a run folder, or the checkpoint that `path` itself is."""
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder; a run is made by: djepa-mm train RECIPE")
    if (path / "state.json").is_file():
        return path
    found = checkpoints(path / "checkpoints")
    if not found:
        raise UserError(f"{path}: this folder has no checkpoint yet; train first: djepa-mm train RECIPE --out {path}")
    return found[-1]


def read_state(checkpoint: Path) -> dict[str, Any]:
    """state.json. Raises UserError where it is damaged or of a later format."""
    path = checkpoint / "state.json"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None
    if (found := state.get("format")) != FORMAT:
        advice = "upgrade djepa-mm" if isinstance(found, int) and found > FORMAT else "train again"
        raise UserError(f"{path}: format {found!r}, and this version of djepa-mm reads {FORMAT}: {advice}")
    return state


def read_tensors(checkpoint: Path, name: str) -> dict[str, Tensor]:
    """Tensors of one of the checkpoint's files. Raises UserError where it is damaged."""
    path = checkpoint / f"{name}.safetensors"
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    older = [c.name for c in checkpoints(path.parent.parent) if c.name < path.parent.name]
    advice = f"delete {path.parent.name} to go on from {older[-1]}" if older else "there is no older one: train again"
    return UserError(f"{path}: damaged checkpoint ({' '.join(str(error).split())}); {advice}")
