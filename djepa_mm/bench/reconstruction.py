"""What a trained tokenizer makes of its own corpus: of items that it has not learned from, beside those that it has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from djepa_mm.bench.measure import NOISES, Measures, add_measures, blank_table, measure, measured
from djepa_mm.conditions.none import NoConditionConfig
from djepa_mm.data.drawing import drawing
from djepa_mm.data.streams import open_corpus
from djepa_mm.evaluate.visual import spread, usable_items
from djepa_mm.recipe.load import Overrides, trained_on
from djepa_mm.recipe.tokenizer import TokenizerRecipe, load_tokenizer_recipe
from djepa_mm.tokenizers.trained import Trained, TrainedConfig
from djepa_mm.types import Progress, Source, Stream, UserError

COUNT = 100  # items of each side, where nothing else is asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstruction:
    """held_out: None where the corpus keeps nothing back."""

    recipe: TokenizerRecipe
    tokenizer: Trained
    held_out: Measures | None
    training: Measures


def reconstruct(
    run: Path,
    overrides: Overrides = (),
    *,
    count: int = COUNT,
    noises: Sequence[float] = NOISES,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Reconstruction:
    """Of the newest checkpoint of a tokenizer's run, or of that checkpoint; of up to `count` items of each side.

    overrides: of its recipe's corpus, which may lie elsewhere now. Tokens have unit variance over those of training.
    Raises UserError where there is no tokenizer or no corpus."""
    for override in overrides:
        if override.partition("=")[0].partition(".")[0].strip() != "data":
            raise UserError(f"--set {override}: the tokenizer is as it was trained; set keys of data alone")
    tokenizer = TrainedConfig(kind="trained", path=str(run)).build()
    recipe = load_tokenizer_recipe(tokenizer.checkpoint / "recipe.yaml", overrides)
    data = trained_on(recipe.data, tokenizer.checkpoint, overrides)
    training, held_out = data.build(), data.build_held_out()
    sides: list[Source | Stream] = [side for side in (training, held_out) if side is not None]
    total = (1 + len(sides)) * count  # training items are read twice

    def items(side: Source | Stream, before: int) -> Iterator[Tensor]:
        for done, media in enumerate(_media(side, recipe, tokenizer, count), start=before + 1):
            yield media
            if progress is not None:
                progress(done, total)

    with drawing(recipe.run.seed):
        tokenizer.fit(items(training, 0))
    found = []
    for n, side in enumerate(sides, start=1):
        with drawing(recipe.run.seed):  # so that what the corpus draws of an item is what the tokenizer was fitted to
            found.append(measure(tokenizer, items(side, n * count), noises=noises, device=device))
    return Reconstruction(
        recipe=recipe, tokenizer=tokenizer, held_out=found[1] if held_out is not None else None, training=found[0]
    )


def _media(side: Source | Stream, recipe: TokenizerRecipe, tokenizer: Trained, count: int) -> Iterator[Tensor]:
    """Of items evenly spread over a corpus, or of the first ones of a stream."""
    if isinstance(side, Stream):
        corpus = open_corpus(side, tokenizer, NoConditionConfig(kind="none").build(), recipe.batch)
        seen = (one.media for one in corpus.each(lambda done, total: None))
        yield from islice((media for media in seen if media is not None), count)
        return
    for item in usable_items(side, spread(count, len(side)), lambda item: tokenizer.spec_of(tuple(item.media.shape))):
        yield item.media


def table(found: Reconstruction) -> Table:
    """A column for each side."""
    sides = {"held-out": found.held_out, "training": found.training}
    shown = {name: measures for name, measures in sides.items() if measures is not None}
    grid = blank_table(f"{found.recipe.name}, {found.tokenizer.checkpoint.name}", list(shown))
    grid.add_row("items", *(f"{measures.items}" for measures in shown.values()), end_section=True)
    add_measures(grid, list(shown.values()))
    return grid


def report(found: Reconstruction) -> dict[str, Any]:
    """Everything as plain data."""
    return {
        "recipe": found.recipe.name,
        "checkpoint": found.tokenizer.checkpoint.name,
        "sha256": found.tokenizer.weights_hash,
        "held_out": None if found.held_out is None else measured(found.held_out),
        "training": measured(found.training),
    }


def summary(found: Reconstruction) -> str:
    """In a line: `PSNR: held-out 31.2 dB, training 31.5 dB`."""
    what = "mel distance" if found.training.psnr_db is None else "PSNR"
    sides = {"held-out": found.held_out, "training": found.training}
    shown = [f"{name} {measures.likeness_db:.1f} dB" for name, measures in sides.items() if measures is not None]
    nothing = "" if found.held_out is not None else " (the corpus keeps nothing back)"
    return f"{what}: {', '.join(shown)}{nothing}"
