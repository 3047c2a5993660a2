"""How long training stands still for a checkpoint, written beside it and at once.

    python benchmarks/save_pause.py [--repeats 7]

The recipe imagenet256-b's model at half its width, a fourth of its weights, with AdamW's moments. Plain products of
matrices, as training would do, go on beside the writing to its end; what they take longer than without it is lost too.
In turn, medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from djepa_mm.ranks import ALONE
from djepa_mm.recipe.build import build_model
from djepa_mm.recipe.load import load_recipe
from djepa_mm.runs.checkpoint import save_checkpoint, snapshot

STEPS = 20


def step(matrix: Tensor) -> None:
    """What training would do."""
    torch.nn.functional.normalize(matrix @ matrix)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    changes = {"model.width": 384, "head.width": 512, "tokenizer": {"kind": "patches", "patch": 16, "size": [256, 256]}}
    recipe = load_recipe("imagenet256-b", {**changes, "condition": {"kind": "none"}, "sample.guidance": 1})
    model = build_model(recipe, recipe.tokenizer.build(), recipe.condition.build())
    online, averaged = model.online.state_dict(), model.averaged.state_dict()
    moments = {f"{name}.{key}": torch.rand_like(t) for name, t in online.items() for key in ("exp_avg", "exp_avg_sq")}
    tensors = {"averaged": averaged, "online": online, "training": moments}
    size = sum(t.numel() * t.element_size() for some in tensors.values() for t in some.values())
    matrix = torch.randn(1024, 1024)
    still: dict[str, list[float]] = {"at once": [], "beside": []}
    lost: dict[str, list[float]] = {name: [] for name in still}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as writer:
        for n in range(repeats):
            write = partial(save_checkpoint, Path(folder), "", {"step": n})
            for name in still:
                began = time.monotonic()
                for _ in range(STEPS):
                    step(matrix)
                alone, done, began = (time.monotonic() - began) / STEPS, 0, time.monotonic()
                if name == "at once":
                    write(tensors, 1)
                    still[name].append(time.monotonic() - began)
                else:
                    written = writer.submit(write, snapshot(tensors, ALONE), 1)
                    still[name].append(time.monotonic() - began)
                    while not written.done():
                        step(matrix)
                        done += 1
                lost[name].append(time.monotonic() - began - done * alone)
    table = Table("checkpoint", "training stands still", "loses in all", title=f"{size / 1e6:,.0f} MB")
    for name in still:
        table.add_row(
            name, *(f"{statistics.median(f):.2f} s ({min(f):.2f} to {max(f):.2f})" for f in (still[name], lost[name]))
        )
    ratios = [statistics.median(b / a for a, b in zip(*found.values(), strict=True)) for found in (still, lost)]
    Console().print(table, "beside / at once: {:.2f}, {:.2f}".format(*ratios))


if __name__ == "__main__":
    main()
