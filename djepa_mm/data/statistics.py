"""What a run has really sampled, beside what was wanted and what its corpus offered."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

from rich.table import Table

from djepa_mm.data.feedback import SIZES_AN_OCTAVE, Feedback, kind_of, merged, side_of
from djepa_mm.data.sizes import SizesConfig
from djepa_mm.recipe.load import load_recipe
from djepa_mm.types import UserError
from djepa_mm.weights import find_checkpoint, read_state


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An attribute. Shares are of all attributes of its class."""

    kind: str
    name: str
    wanted: float | None  # None where it is counted alone
    sampled: float
    offered: float | None  # of all items that there were, left out or not; None of what is drawn
    items: int  # sampled
    factor: float  # by which scores have moved its frequency


def statistics(run: Path) -> list[Row]:
    """Of the newest checkpoint of a run, or of a checkpoint. Raises UserError where it has none."""
    checkpoint = find_checkpoint(run)
    recipe, state = load_recipe(checkpoint / "recipe.yaml"), read_state(checkpoint)
    states = [one for one in state["cursor"].get("feedback", ()) if one]
    if recipe.feedback is None or not states:
        raise UserError(
            f"{run}: no statistics in it; they are kept where a recipe has them: --set feedback.wanted.colours=uniform"
        )
    feedback = Feedback(recipe.feedback, merged(states))
    wanted: dict[str, float] = {}
    for kind, shares in recipe.feedback.wanted.items():
        given = {} if shares == "uniform" else {f"{kind}/{name}": share for name, share in shares.items()}
        wanted |= given | feedback.shares(kind)  # those that have never come too
    wanted |= size_shares(getattr(recipe.data, "sizes", None) or (), state["step"])
    offered, sampled = _by_class(feedback.offered), _by_class(feedback.sampled)
    rows = []
    for kind in sorted(offered.keys() | {kind_of(name) for name in wanted}):
        names = offered[kind].keys() | {name for name in wanted if kind_of(name) == kind}
        drawn = kind in ("size", "aspect")
        every, taken = sum(offered[kind].values()), sum(sampled[kind].values())
        rows += [
            Row(
                kind=kind,
                name=name.partition("/")[2],
                wanted=wanted.get(name),
                sampled=sampled[kind].get(name, 0) / taken if taken else 0.0,
                offered=None if drawn else offered[kind].get(name, 0) / every if every else 0.0,
                items=sampled[kind].get(name, 0),
                factor=feedback.factors.get(name, 1.0),
            )
            for name in sorted(names, key=lambda name: (_number(name) if drawn else -offered[kind].get(name, 0), name))
        ]
    return rows


def size_shares(phases: Sequence[Any], steps: int) -> dict[str, float]:
    """How often each class of sizes is wanted, by the distributions that were drawn from in so many steps."""
    shares: dict[str, float] = defaultdict(float)
    for one, part in _parts([one for one in phases if isinstance(one, SizesConfig)], steps):
        normal = NormalDist(one.mean, one.std)
        begin, whole = normal.cdf(one.low), normal.cdf(one.high) - normal.cdf(one.low)
        first, last = (round(math.log2(side) * SIZES_AN_OCTAVE) for side in (one.low, one.high))
        for n in range(first, last + 1):
            edges = [2 ** ((n + half) / SIZES_AN_OCTAVE) for half in (-0.5, 0.5)]
            below, above = ((normal.cdf(min(max(edge, one.low), one.high)) - begin) / whole for edge in edges)
            shares[f"size/{side_of(2 ** (n / SIZES_AN_OCTAVE))}"] += part * (above - below)
    return dict(shares)


def _parts(phases: Sequence[SizesConfig], steps: int) -> Iterator[tuple[SizesConfig, float]]:
    """Each distribution, with its share of the steps."""
    left = steps
    for one in phases:
        own = left if one.steps is None else min(left, one.steps)
        left -= own
        if own:
            yield one, own / steps


def table(rows: Sequence[Row], title: str) -> Table:
    found = Table("class", "attribute", title=title)
    for name in ("wanted", "sampled", "offered", "items", "factor"):
        found.add_column(name, justify="right")
    before = None
    for row in rows:
        if row.kind != before and before is not None:
            found.add_section()
        shares = ("" if share is None else f"{share:.3f}" for share in (row.wanted, row.sampled, row.offered))
        factor = "" if row.factor == 1 else f"{row.factor:.2f}"
        found.add_row("" if row.kind == before else row.kind, row.name, *shares, f"{row.items:,}", factor)
        before = row.kind
    return found


def most_frequent(rows: Sequence[Row], count: int = 12) -> list[tuple[str, float, float | None]]:
    """Of each class, those that are sampled or wanted most, to be drawn: name, sampled, wanted; gaps between."""
    found: list[tuple[str, float, float | None]] = []
    for kind in dict.fromkeys(row.kind for row in rows):
        own = [row for row in rows if row.kind == kind]
        most = sorted(own, key=lambda row: -max(row.sampled, row.wanted or 0.0))[:count]
        found += [("", 0.0, None)] if found else []
        found += [(f"{row.kind}: {row.name}", row.sampled, row.wanted) for row in own if row in most]
    return found


def _by_class(counts: Mapping[str, int]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for name, count in counts.items():
        found[kind_of(name)][name] = count
    return found


def _number(name: str) -> float:
    """Of a size or an aspect, to sort by."""
    width, _, height = name.partition("/")[2].partition(":")
    return float(width) / float(height or 1)
