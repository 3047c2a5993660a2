"""How well the rules of the corpus `shapes` tell pictures that fit their captions from others.

    python benchmarks/shapes_scorer.py --count 600 [--overlap 0.5] [--run RUN]

Real pictures of seen and of unseen combinations, captions with one word changed, pictures that are a little worse,
those that a run makes in part or whole, and rubbish; then how many scenes are drawn and judged in a second.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor
from torch.nn import functional

from djepa_mm.data import scene_scorer
from djepa_mm.data.scene_scorer import find, fits
from djepa_mm.data.scenes import CATEGORIES, parse
from djepa_mm.data.sources.shapes import ShapesConfig
from djepa_mm.generation.edit import in_paint, run_edits
from djepa_mm.generation.pipeline import Pipeline
from djepa_mm.types import Item

SIZES = ((32, 32), (48, 48), (64, 64), (64, 32), (32, 64))


def blurred(picture: Tensor, deviation: float) -> Tensor:
    weights = torch.exp(-(torch.arange(-4, 5.0) ** 2) / (2 * deviation**2))
    kernel = (weights[:, None] * weights / weights.sum() ** 2).expand(3, 1, 9, 9)
    return functional.conv2d(functional.pad(picture[None], (4,) * 4, mode="replicate"), kernel, groups=3)[0]


def noise(side: int) -> Tensor:
    return functional.interpolate(torch.randn(1, 3, side, side), size=(32, 32))[0]


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "blurred, 0.8 pixels": lambda picture: blurred(picture, 0.8),
    "blurred, 1.2 pixels": lambda picture: blurred(picture, 1.2),
    "noise of 0.05": lambda picture: picture + 0.1 * torch.randn_like(picture),  # white is 1 and black 0
    "contrast 0.7": lambda picture: 0.7 * picture,
    "twice as large": lambda picture: functional.interpolate(picture[None], scale_factor=2, mode="bicubic")[0],
}
RUBBISH: dict[str, Callable[[], Tensor]] = {
    "noise": lambda: torch.rand(3, 32, 32) * 2 - 1,
    "noise in blocks of 4": lambda: noise(8),
    "noise in blocks of 8": lambda: noise(4),
    "smooth noise": lambda: blurred(6 * torch.randn(3, 32, 32), 2),
    "one colour": lambda: (torch.rand(3, 1, 1) * 2 - 1).expand(3, 32, 32),
}


def row(name: str, items: list[Item], change: Callable[[Tensor], Tensor] = torch.clone) -> str:
    right, wrong = defaultdict[str, list[bool]](list), defaultdict[str, list[bool]](list)
    for item in items:
        caption, found = parse(item.entry.text or ""), find(change(item.media))
        right[caption.category].append(fits(found, caption))
        wrong[caption.category] += [fits(found, other) for other in caption.neighbours()]
    cells = (f"{100 * fmean(right[name]):.1f} / {100 * fmean(wrong[name]):.1f}" for name in CATEGORIES)
    return f"| {name} | {' | '.join(cells)} |"


def anew(pipeline: Pipeline, items: list[Item], tokens: int) -> list[Item]:
    """The pictures, with so many tokens of each, at random places, as the model makes them by caption and rest."""
    _, rows, columns = pipeline.tokenizer.spec_for().grid
    edits = []
    for n, item in enumerate(items):
        chosen = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(n))[:tokens]
        mask = torch.zeros(rows * columns, dtype=torch.bool).index_fill(0, chosen, True).view(rows, columns)
        mask = mask.repeat_interleave(32 // rows, 0).repeat_interleave(32 // columns, 1)
        edits.append(in_paint(pipeline, item.media, pipeline.requests([{"text": item.entry.text}])[0], mask))
    return [replace(item, media=one) for item, one in zip(items, run_edits(pipeline, edits), strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=600, help="scenes of a row, half of them unseen combinations")
    parser.add_argument("--overlap", type=float, default=scene_scorer.LEAST_OVERLAP, help="of an object with its shape")
    parser.add_argument("--run", type=Path, help="of shapes at 32×32")
    args = parser.parse_args()
    count, scene_scorer.LEAST_OVERLAP = args.count // 2, args.overlap
    torch.manual_seed(0)
    print(f"| % that fit their captions / with one word changed | {' | '.join(CATEGORIES)} |")
    print("|---" * (1 + len(CATEGORIES)) + "|")
    for size in SIZES:
        config = ShapesConfig(source="shapes", size=size)
        sides = config.build_held_out(), config.build_unseen()
        items = [side.read(index) for side in sides if side is not None for index in range(count)]
        print(row(f"{size[0]}×{size[1]}", items))
        if size == SIZES[0]:
            small = items
    for name, change in CHANGES.items():
        print(row(name, small, change))
    if args.run is not None:
        pipeline = Pipeline.load(args.run)
        for tokens in (1, 4, pipeline.tokenizer.spec_for().num_tokens):
            print(row(f"{args.run}, {tokens} tokens drawn anew", anew(pipeline, small, tokens)))
    captions = [parse(item.entry.text or "") for item in small]
    for name, make in RUBBISH.items():
        print(f"{name}: {100 * fmean(fits(find(make()), caption) for caption in captions):.2f} % fit")
    source, began = ShapesConfig(source="shapes").build(), time.process_time()
    drawn = [source.read(index).media for index in range(2000)]
    drawing, began = time.process_time() - began, time.process_time()
    for picture in drawn[:500]:
        find(picture)
    judging = time.process_time() - began
    print(f"{len(drawn) / drawing:,.0f} scenes drawn a second, {500 / judging:,.0f} judged")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
