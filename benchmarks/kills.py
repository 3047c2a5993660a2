"""What is lost when a run is killed, or asked to end, at any moment.

    python benchmarks/kills.py
    python benchmarks/kills.py --kills 5 --only "pictures, flips"

For each way of reading a corpus, a run goes from its start to its end; then the same run is ended at random moments of
its life, from its first line of code on, and gone on with each time, --kills times by SIGKILL and as often by SIGTERM.
At its end, weights, averages, the optimiser's and random states, the place in the data and the losses of all steps have
to be those of the run that was never ended, to the bit. Processes are forked, so that they live to train.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

import djepa_mm
from djepa_mm.data.encoding import Keeping, encode_corpus
from djepa_mm.data.pack import pack
from djepa_mm.media.clips import write_clip
from djepa_mm.recipe.load import load_recipe
from djepa_mm.runs.checkpoint import UNFINISHED, differences
from djepa_mm.weights import checkpoints, find_checkpoint

SMALL = {
    "model.width": 32, "model.depth": 1, "model.heads": 2, "model.dropout": 0.1, "head.width": 16, "head.blocks": 1,
    "head.steps": 2, "batch.size": 8, "batch.cache": False, "batch.workers": 0, "sample.steps": 2, "run.samples": 2,
    "optim.minutes": None, "optim.steps": 60, "run.save_every": 4, "run.log_every": 1, "run.sample_every": 7,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=3, help="of each kind, for each way")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    chance = random.Random(args.seed)
    table = Table("corpus", "SIGKILL", "SIGTERM", "steps done again", "differs in", "losses")
    with tempfile.TemporaryDirectory() as folder:
        ways = corpora(Path(folder))
        for name in args.only or ways:
            table.add_row(name, *trial(Path(folder) / "runs" / name, *ways[name], args.kills, chance))
    Console().print(table)


def corpora(folder: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Recipe and overrides, by what is read."""
    rng = np.random.default_rng(0)
    for n in range(50):
        place = folder / "pictures" / f"class{n % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(place / f"{n}.png")
    for n in range(10):
        place = folder / "clips" / f"class{n % 2}"
        place.mkdir(parents=True, exist_ok=True)
        write_clip(torch.rand(3, 24, 16, 16) * 2 - 1, place / f"{n}.mp4", 10)
    pictures = {**SMALL, "data": {"source": "image-folder", "root": str(folder / "pictures"), "size": [8, 8]}}
    pictures |= {"tokenizer.channels": 3}
    flips = {**pictures, "data": {**pictures["data"], "flip": True}}
    clips = {
        **SMALL, "model.width": 48, "data.root": str(folder / "clips"), "data.frames": 4, "data.size": [16, 16],
        "data.window": "random", "tokenizer.size": [16, 16], "tokenizer.frames": 4, "batch.size": 4,
    }  # fmt: skip
    shards, latents = folder / "shards", folder / "latents"
    pack(load_recipe("digits", pictures), shards, 3000, lambda done, total: None)
    encode_corpus(load_recipe("digits", flips), latents, Keeping(shard_items=7))
    data = {"source": "shards", "media": "picture", "urls": str(shards), "readers": 4, "shuffle": 6}
    stream = {**flips, "data": {**data, "size": [8, 8], "flip": True}}
    kept = {**flips, "data": {"source": "latents", "root": str(latents)}}
    return {
        "pictures, flips": ("digits", flips),
        "pictures, flips, 2 readers": ("digits", {**flips, "batch.workers": 2}),
        "pictures, kept in memory": ("digits", {**pictures, "batch.cache": True}),
        "clips, random windows": ("clips", clips),
        "clips, random windows, 2 readers": ("clips", {**clips, "batch.workers": 2}),
        "shards, flips": ("digits", stream),
        "shards, flips, 2 readers": ("digits", {**stream, "batch.workers": 2}),
        "latents, flips": ("digits", kept),
        "latents, flips, 2 readers": ("digits", {**kept, "batch.workers": 2}),
    }


def trial(out: Path, recipe: str, overrides: dict[str, Any], kills: int, chance: random.Random) -> list[str]:
    """A row of the table."""
    out.mkdir(parents=True)
    began = time.monotonic()
    life(out / "whole", recipe, overrides).join()
    whole_s = time.monotonic() - began
    left = [signal.SIGKILL, signal.SIGTERM] * kills
    chance.shuffle(left)
    done = {signal.SIGKILL: 0, signal.SIGTERM: 0}
    again = 0
    cut = out / "cut"
    while left:
        if cut.exists() and (found := checkpoints(cut / "checkpoints")) and found[-1].name == "step-00000060":
            shutil.rmtree(cut)  # it came to its end in between: begin anew
        left_over = unfinished(cut)
        process = life(cut, recipe, overrides)
        process.join(chance.uniform(0, whole_s / 2))
        if not process.is_alive():
            continue
        how = left.pop()
        os.kill(process.pid or 0, how)
        process.join(60)
        assert not process.is_alive(), "it does not end"
        done[how] += 1
        saved = found[-1].name if (found := checkpoints(cut / "checkpoints")) else "step-0"
        logged = cut / "log.jsonl"
        steps = [json.loads(line)["step"] for line in logged.read_text().splitlines()] if logged.exists() else []
        again += max(steps, default=0) - int(saved.removeprefix("step-")) if steps else 0
        if how == signal.SIGTERM:  # one that has come before the run began takes nothing away
            assert unfinished(cut) <= left_over, "a temporary file is left over"
    process = life(cut, recipe, overrides)
    process.join()
    assert not unfinished(cut), "a temporary file is left over"
    losses = [(out / run / "log.jsonl").read_text().splitlines() for run in ("whole", "cut")]
    terms = [[{k: json.loads(line)[k] for k in ("step", "generation", "prediction")} for line in run] for run in losses]
    differ = differences(find_checkpoint(out / "whole"), find_checkpoint(cut))
    same = "the same" if terms[0] == terms[1] else "OTHERS"
    return [str(done[signal.SIGKILL]), str(done[signal.SIGTERM]), str(again), ", ".join(differ) or "nothing", same]


def unfinished(run: Path) -> set[Path]:
    """What is there of checkpoints that are not whole."""
    return set((run / "checkpoints").glob(UNFINISHED))


def life(out: Path, recipe: str, overrides: dict[str, Any]) -> multiprocessing.Process:
    """A process that trains, from its start or from where the one before was ended."""
    process = multiprocessing.get_context("fork").Process(target=train, args=(out, recipe, overrides))
    process.start()
    return process


def train(out: Path, recipe: str, overrides: dict[str, Any]) -> None:
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    warnings.simplefilter("ignore")
    resume = bool(checkpoints(out / "checkpoints"))
    djepa_mm.train(load_recipe(recipe, overrides), out, resume=resume, device="cpu", progress=False)


if __name__ == "__main__":
    main()
