"""How much of a seam in-painting leaves: the lower half of held-out pictures painted anew, by runs of pictures.

    python benchmarks/seam.py RUN…

Step: the mean absolute difference of the two rows of pixels on both sides of the border, in the edited pictures over
that in the real ones at the same place; 1 is no seam. Kept: the greatest difference of what had to stay.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from djepa_mm.evaluate.visual import read_items, spread
from djepa_mm.generation.edit import in_paint, run_edits
from djepa_mm.generation.pipeline import Pipeline
from djepa_mm.generation.request import Request


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--count", type=int, default=100)
    args = parser.parse_args()
    table = Table("run", "pictures", "step at the border", "three rows below it", "kept within")
    for run in args.runs:
        pipeline = Pipeline.load(run)
        held_out = pipeline.recipe.data.build_held_out()
        items = list(read_items(pipeline, held_out, spread(args.count, len(held_out))))
        real = torch.stack([item.media for item in items])
        border = real.shape[2] // 2 // pipeline.tokenizer.span[1] * pipeline.tokenizer.span[1]
        mask = torch.zeros(real.shape[2:], dtype=torch.bool)
        mask[border:] = True
        requests = [
            Request(condition=pipeline.condition.request(item.entry), seed=(1, n)) for n, item in enumerate(items)
        ]
        edits = [in_paint(pipeline, item.media, one, mask) for item, one in zip(items, requests, strict=True)]
        made = torch.stack(run_edits(pipeline, edits)).clamp(-1, 1)
        steps = [float(step(made, row) / step(real, row)) for row in (border, border + 3)]
        kept = float((made - real)[:, :, :border].abs().max())
        table.add_row(str(run), str(len(items)), *(f"{one:.2f}" for one in steps), f"{kept:g}")
    Console(width=120).print(table)


def step(pictures: Tensor, row: int) -> Tensor:
    """Between a row of pixels and the one above it; pictures (B, C, H, W)."""
    return (pictures[:, :, row] - pictures[:, :, row - 1]).abs().mean()


if __name__ == "__main__":
    main()
