"""How often what is generated fits what was asked for, where the corpus itself can tell."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any, TypedDict

import torch
from rich.table import Table
from torch import Tensor

from djepa_mm.core.sampler import Sampler
from djepa_mm.evaluate.visual import read_items
from djepa_mm.generation.pipeline import Pipeline
from djepa_mm.generation.request import Request
from djepa_mm.types import Item, Judge, Judgement, Progress, Source, UserError


class Scores(TypedDict):
    """Shares of items."""

    items: int
    overall: float
    """Mean of the categories, as in GenEval (Ghosh et al. 2023)."""
    categories: dict[str, float]
    """Of those of each, the share that fits."""
    attributes: dict[str, float]
    """Of the items whose texts name one, the share that has it, whatever becomes of the rest."""


class SideFigures(TypedDict):
    """Of held-out items: what was generated for their texts, what the tokenizer keeps of them, and themselves."""

    generated: Scores
    reconstructed: Scores
    real: Scores


class JudgedFigures(TypedDict):
    """Figures over all items, ready for JSON."""

    items: int
    """Generated, of both sides."""
    seconds_per_item: float
    """That sampling and decoding take."""
    seen: SideFigures
    """Of combinations that training has."""
    unseen: SideFigures | None
    """Of combinations that it never has; None where there are none such."""


def evaluate_judged(
    pipeline: Pipeline,
    judge: Judge,
    held_out: Source,
    sampler: Sampler | None = None,
    seed: int = 0,
    count: int = 300,
    progress: Progress | None = None,
) -> JudgedFigures:
    """Generate for the texts of the first `count` held-out items, and for as many of combinations that training never
    has, at the sizes of the real ones. Raises UserError where a side has no item that can be used."""
    unseen = judge.build_unseen()
    sides = [held_out] if unseen is None else [held_out, unseen]
    items = [list(read_items(pipeline, side, range(min(count, len(side))))) for side in sides]
    wanted = [item for side in items for item in side]

    began = time.perf_counter()
    requests = [_request(pipeline, item, seed, n) for n, item in enumerate(wanted)]
    generated = pipeline(requests, sampler=sampler, progress=progress)
    elapsed_s = time.perf_counter() - began

    figures = [_side(pipeline, judge, items[0], generated[: len(items[0])])]
    if unseen is not None:
        figures.append(_side(pipeline, judge, items[1], generated[len(items[0]) :]))
    return {
        "items": len(wanted),
        "seconds_per_item": elapsed_s / len(wanted),
        "seen": figures[0],
        "unseen": figures[1] if unseen is not None else None,
    }


def _request(pipeline: Pipeline, item: Item, seed: int, number: int) -> Request:
    """For an item like a real one, as large where sizes vary."""
    height, width = item.media.shape[-2:]
    size = (height, width) if pipeline.tokenizer.fixed is None else None
    return Request(condition=pipeline.condition.request(item.entry), size=size, seed=(seed, number))


def _side(pipeline: Pipeline, judge: Judge, items: Sequence[Item], generated: Sequence[Tensor]) -> SideFigures:
    texts = [item.entry.text for item in items]
    if None in texts:
        raise UserError("items without texts cannot be judged; train on a corpus that has them")

    def score(media: Sequence[Tensor]) -> Scores:
        return scores(judge.judge(media, [text for text in texts if text is not None]))

    real = [item.media for item in items]
    return {
        "generated": score(generated),
        "reconstructed": score([_reconstructed(pipeline, media) for media in real]),
        "real": score(real),
    }


@torch.no_grad()
def _reconstructed(pipeline: Pipeline, media: Tensor) -> Tensor:
    tokenizer = pipeline.tokenizer
    tokens = tokenizer.encode(media[None].to(pipeline.device))
    return tokenizer.decode(tokens, tokenizer.spec_of(tuple(media.shape)))[0].float().cpu()


def scores(judgements: Sequence[Judgement]) -> Scores:
    """Means of judgements, of which there is one or more."""
    categories = _means((judgement.kind, judgement.fits) for judgement in judgements)
    attributes = _means(fact for judgement in judgements for fact in judgement.facts.items())
    return {
        "items": len(judgements),
        "overall": fmean(categories.values()),
        "categories": categories,
        "attributes": attributes,
    }


def _means(named: Iterable[tuple[str, bool]]) -> dict[str, float]:
    """Share that is true, by name; the names as they first come."""
    values: dict[str, list[bool]] = defaultdict(list)
    for name, value in named:
        values[name].append(value)
    return {name: fmean(found) for name, found in values.items()}


def judged_table(figures: JudgedFigures, title: str) -> Table:
    """A row for every category and attribute, a column for every kind of item on both sides."""
    sides = {"": figures["seen"], ", unseen": figures["unseen"]}
    columns: dict[str, Any] = {
        f"{kind}{name}": found for name, side in sides.items() if side is not None for kind, found in side.items()
    }
    shown = Table("of 100 items, fit", *columns, title=title)
    shown.add_row("overall", *(_percent(found["overall"]) for found in columns.values()), end_section=True)
    for part in ("categories", "attributes"):
        for name in dict.fromkeys(name for found in columns.values() for name in found[part]):
            shown.add_row(name, *(_percent(found[part].get(name)) for found in columns.values()))
        shown.add_section()
    shown.add_row("items", *(str(found["items"]) for found in columns.values()))
    return shown


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"
