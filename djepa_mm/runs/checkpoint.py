"""Checkpoints: safetensors and JSON, written under a temporary name and renamed, the last k kept.

A checkpoint is a folder `step-00001000` with
    recipe.yaml             the resolved recipe
    state.json              step, time, place in the data, what was learned besides weights, way to where it was trained
    averaged.safetensors    averaged weights and the tokenizer's statistics: all that generation reads
    online.safetensors      online weights
    training.safetensors    optimiser state and random states
Of a model that is sharded over processes, each of the three is a folder of that name instead, with a file from each.

`djepa_mm.weights` reads them; `djepa_mm.training.state` says what of a run goes where.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from djepa_mm.ranks import Ranks, current, is_split
from djepa_mm.runs.files import written_to
from djepa_mm.weights import FORMAT, checkpoints, read_state, read_tensors, sha256

FILES = ("averaged", "online", "training")
UNFINISHED = ".*.tmp"  # the name of a checkpoint's folder until it is whole


def save_checkpoint(
    folder: Path,
    recipe: str,
    state: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]],
    keep: int,
    ranks: Ranks | None = None,
) -> Path:
    """Write `folder`/step-…, whole or not at all, then delete all but the last `keep`. Every process takes part.

    recipe: YAML. state: ready for JSON, with `step`. tensors: by file, one of FILES, and name. ranks: `apart` in
    another thread than the main one, else None. Raises UserError, in every process, where one of them cannot write."""
    ranks = ranks or current()
    target = folder / f"step-{state['step']:08d}"
    temporary = folder / UNFINISHED.replace("*", target.name)

    def begin() -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        (temporary / "recipe.yaml").write_text(recipe, encoding="utf-8")

    def write(name: str) -> None:
        whole = {key: t.detach().cpu().contiguous() for key, t in tensors[name].items()}
        save_file(whole, temporary / f"{name}.safetensors")

    def end() -> None:
        hashes = {path.relative_to(temporary).as_posix(): sha256(path) for path in _files(temporary)}
        kept = {"format": FORMAT, "folder": _way_back(temporary), **state, "sha256": hashes}
        (temporary / "state.json").write_text(json.dumps(kept, indent=2, ensure_ascii=False), encoding="utf-8")
        for path in (*_files(temporary), *(path for path in temporary.iterdir() if path.is_dir()), temporary):
            _sync(path)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        _sync(folder)
        for old in checkpoints(folder)[:-keep]:
            shutil.rmtree(old)

    def once(work: Callable[[], None]) -> None:
        """By the first process; the others hear of it where it cannot."""
        ranks.agree(written_to(folder)(work), first_only=True)

    try:
        once(begin)
        for name in FILES:
            if sharded(tensors[name]):
                with written_to(folder):
                    write_sharded(temporary / name, tensors[name], ranks)
            else:
                once(partial(write, name))
        once(end)
    except BaseException:  # a full disk is not filled further
        if ranks.first:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def remove_unfinished(folder: Path) -> None:
    """What runs that were killed have left of their checkpoints in `folder`."""
    for path in folder.glob(UNFINISHED):
        shutil.rmtree(path, ignore_errors=True)


def snapshot(tensors: Mapping[str, Mapping[str, Tensor]], ranks: Ranks) -> dict[str, dict[str, Tensor]]:
    """Copies, on the CPU, of what this process has to write of a checkpoint's files."""
    return {
        file: {name: tensor.detach().to("cpu", copy=True) for name, tensor in own.items()}
        if ranks.first or sharded(own)
        else {}
        for file, own in tensors.items()
    }


def sharded(tensors: Mapping[str, Tensor]) -> bool:
    return any(is_split(tensor) for tensor in tensors.values())


def write_sharded(folder: Path, tensors: Mapping[str, Tensor], ranks: Ranks) -> None:
    """Of every process what it has, as safetensors. Raises OSError."""
    from torch.distributed import checkpoint  # a second to import

    writer = checkpoint.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        checkpoint.save(dict(tensors), storage_writer=writer, process_group=ranks.group)
    except checkpoint.CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _way_back(checkpoint: Path) -> str:
    """From a checkpoint to the folder that it was trained in, where a corpus of a relative name lies. Relative too, so
    that it stays right when both move together; but for Windows, where there may be no way."""
    here, there = Path.cwd(), checkpoint.resolve()
    return os.path.relpath(here, there) if here.anchor == there.anchor else str(here)


def differences(one: Path, other: Path) -> list[str]:
    """What two checkpoints do not hold alike, to the bit: `averaged.encoder.input.weight`, `state.step`, …

    Their times and places are not compared."""
    found = []
    for name in FILES:
        ours, theirs = read_tensors(one, name), read_tensors(other, name)
        found += [
            f"{name}.{key}"
            for key in sorted(ours.keys() | theirs.keys())
            if key not in ours or key not in theirs or not torch.equal(ours[key], theirs[key])
        ]
    ours_, theirs_ = read_state(one), read_state(other)
    keys = sorted((ours_.keys() | theirs_.keys()) - {"seconds", "folder", "sha256"})
    return found + [f"state.{key}" for key in keys if ours_.get(key) != theirs_.get(key)]


def _sync(path: Path) -> None:
    """Have the file or folder on the disk before the rename that makes it count. Windows cannot open folders."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
