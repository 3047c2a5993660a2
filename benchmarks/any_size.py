"""Shapes at sizes that a run was not trained on, and moved in the field of view, as the corpus itself judges them.

    python benchmarks/any_size.py RUN…

Score: share of held-out captions of which all is right, mean of the categories. Facts: share of words that are right.
Centre: mean place of the objects, in widths of the picture from its left edge, by the offset to the right.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table

from djepa_mm.evaluate.judged import scores
from djepa_mm.generation.pipeline import Pipeline
from djepa_mm.generation.request import Request
from djepa_mm.types import Entry, Judgement

SIZES = ((32, 32), (48, 48), (64, 64), (32, 64), (64, 32))  # height, width
OFFSETS = (-0.4, -0.2, 0.0, 0.2, 0.4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--set", action="append", default=[], help="override of the recipes, for sampling")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--offsets", action="store_true", help="Offsets too, at 32×32.")
    args = parser.parse_args()
    sized = Table("run", *(f"{height}×{width}" for height, width in SIZES), title="score (facts)")
    moved = Table("run", *(f"{offset:+g}" for offset in OFFSETS), title="centre by the offset to the right")
    for run in args.runs:
        pipeline = Pipeline.load(run, args.set, args.device)
        held_out = pipeline.recipe.data.build_held_out()
        entries = [held_out.entry(n) for n in range(args.count)]
        sized.add_row(str(run), *(_score(_judged(pipeline, entries, size)) for size in SIZES))
        if args.offsets:
            moved.add_row(str(run), *(_centre(_judged(pipeline, entries, (32, 32), offset)) for offset in OFFSETS))
    console = Console(width=120)
    console.print(sized)
    if args.offsets:
        console.print(moved)


def _judged(
    pipeline: Pipeline, entries: Sequence[Entry], size: tuple[int, int], offset: float = 0.0
) -> list[Judgement]:
    requests = [
        Request(
            condition=pipeline.condition.request(entry),
            size=size,
            offset=(0.0, offset) if offset else None,
            seed=(0, n),
        )
        for n, entry in enumerate(entries)
    ]
    return pipeline.recipe.data.judge(pipeline(requests), [entry.text or "" for entry in entries])


def _score(judged: Sequence[Judgement]) -> str:
    facts = fmean(holds for one in judged for holds in one.facts.values())
    return f"{scores(judged)['overall']:.2f} ({facts:.2f})"


def _centre(judged: Sequence[Judgement]) -> str:
    places = [one.centre[1] for one in judged if one.centre is not None]
    return f"{fmean(places):.3f} ({len(places)})" if places else "none"


if __name__ == "__main__":
    main()
