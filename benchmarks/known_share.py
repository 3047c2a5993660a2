"""Does a run use what it knows? Its generation loss on held-out items over the share of tokens that is known.

    python benchmarks/known_share.py runs/moving-digits

A model that only learned what single tokens look like has the same loss whatever is known; one that uses its context
does better the more it knows. Only what the recipe's order would reveal next counts (a sixteenth of the tokens). The
times of the flow head are drawn near the noise (logit-normal, --time-mean), where the context matters most, the same
for every run, so that runs which were trained with other times can be compared.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from djepa_mm.core.djepa import within_horizon
from djepa_mm.core.heads.flow import FlowHead
from djepa_mm.core.masking import draw_mask
from djepa_mm.data.corpus import Corpus, Cursor
from djepa_mm.generation.pipeline import Pipeline
from djepa_mm.recipe.schema import BatchConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--shares", nargs="*", type=float, default=[0, 0.06, 0.125, 0.25, 0.5, 0.75])
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--time-mean", type=float, default=-2.0)
    args = parser.parse_args()
    table = Table("run", *(f"{share:.0%}" for share in args.shares), title="generation loss, by what is known")
    for run in args.runs:
        losses = measure(Pipeline.load(run), args.shares, args.items, args.time_mean)
        table.add_row(run.name, *(f"{loss:.3f}" for loss in losses))
    Console().print(table)


@torch.no_grad()
def measure(pipeline: Pipeline, shares: list[float], items: int, time_mean: float) -> list[float]:
    source = pipeline.recipe.data.build_held_out()
    assert source is not None, "the run's corpus holds nothing out"
    corpus = Corpus(source, pipeline.tokenizer, pipeline.condition, BatchConfig(size=items))
    ((portion,), _) = next(corpus.batches(Cursor()))
    assert portion is not None
    batch = portion.batch
    model = pipeline.model
    head = model.averaged.head
    if isinstance(head, FlowHead):
        head.time_sampling, head.time_mean = "logit-normal", time_mean
    horizon = model.mask_horizon or max(1, batch.tokens.shape[1] // 16)
    losses = []
    for share in shares:
        generator = torch.Generator().manual_seed(0)
        order = model.mask_orders[0]
        mask = draw_mask(batch.valid, 1 - share, generator, batch.positions, order, horizon)
        seen, given = (batch, mask) if model.mask_horizon is None else within_horizon(batch, mask)
        z = model.features(seen.tokens, seen.positions, given.visible, seen.valid, seen.condition)
        drawn = model.head.draw(int(given.masked.sum()), generator)
        losses.append(model.head.loss(z[given.masked], seen.tokens[given.masked], drawn).mean().item())
    return losses


if __name__ == "__main__":
    main()
