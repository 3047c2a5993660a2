"""Sizes of pictures that are drawn anew at each reading (D-JEPA-T2I, §2.3): their aspect stays, their area varies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Annotated, Protocol, Self, runtime_checkable

import torch
from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, model_validator

from djepa_mm.types import BrokenItem, Config

Size = tuple[int, int]  # height and width

FLAT = 1e-9  # probability of a whole range below which all of it is as likely


class SizesConfig(Config):
    """Of the side of a square of as many pixels, √(width · height): normal, cut off at both ends."""

    mean: PositiveFloat
    std: PositiveFloat
    low: PositiveFloat
    high: PositiveFloat
    steps: PositiveInt | None = None
    """Batches of the run until the next of the list follows, for all but the last. Of a corpus by index, an epoch is
    all of one kind: that of its first batch."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}")
        return self

    def side(self, chance: float, most: float) -> float:
        """In pixels, by a number in [0, 1] that is drawn: of the distribution up to `most`, or that where even `low` is
        more."""
        high = min(self.high, most)
        if high <= self.low:
            return high
        normal = NormalDist(self.mean, self.std)
        begin, end = normal.cdf(self.low), normal.cdf(high)
        if end - begin < FLAT:
            return self.low + chance * (high - self.low)
        place = min(max(begin + chance * (end - begin), FLAT / 2), 1 - FLAT / 2)
        return min(max(normal.inv_cdf(place), self.low), high)


def _phases(sizes: Sequence[SizesConfig] | None) -> Sequence[SizesConfig] | None:
    if sizes and (sizes[-1].steps is not None or any(one.steps is None for one in sizes[:-1])):
        raise ValueError("all but the last need steps, and the last has none")
    return sizes


SizesKey = Annotated[tuple[SizesConfig, ...] | None, Field(min_length=1, strict=False), AfterValidator(_phases)]


def phase(sizes: Sequence[SizesConfig], batch: int) -> SizesConfig:
    """The one that holds for a batch of the run."""
    for one in sizes:
        if one.steps is None or batch < one.steps:
            return one
        batch -= one.steps
    raise AssertionError("the last has no end")


def chance(generator: torch.Generator = torch.default_generator) -> float:
    """In [0, 1)."""
    return float(torch.rand((), generator=generator))


def drawn_size(sizes: SizesConfig, own: Size, multiple_of: Size, enlarge: float, chance: float) -> Size:
    """Height and width of a picture whose own are given: multiples, of about its aspect and of about the area that is
    drawn, of which they are never more.

    enlarge: most that a side grows. Raises BrokenItem where it is too small for one multiple."""
    rows, columns = (int(one * enlarge // multiple) for one, multiple in zip(own, multiple_of, strict=True))
    if not rows or not columns:
        raise BrokenItem(f"{own[1]}×{own[0]} pixels, less than data.multiple_of")
    whole = math.sqrt(own[0] * own[1])
    side = sizes.side(chance, whole * enlarge)
    h, w = (one * side / whole / multiple for one, multiple in zip(own, multiple_of, strict=True))
    if h <= w:
        rows = _count(h, rows)
        columns = min(_count(w, columns), max(1, int(h * w / rows)))
    else:
        columns = _count(w, columns)
        rows = min(_count(h, rows), max(1, int(h * w / columns)))
    return rows * multiple_of[0], columns * multiple_of[1]


def _count(wanted: float, most: int) -> int:
    return max(1, min(round(wanted), most))


def largest_size(sizes: Sequence[SizesConfig], own: Size, multiple_of: Size, enlarge: float) -> Size:
    """The largest that may be drawn of it. Raises BrokenItem."""
    return max(drawn_size(one, own, multiple_of, enlarge, 1.0) for one in sizes)


@runtime_checkable
class DrawsSizes(Protocol):
    """A source by index whose items have another size at each reading."""

    def at(self, batch: int) -> Self:
        """As it is from that batch of the run on."""
        ...

    def drawn_shape(self, index: int, generator: torch.Generator) -> tuple[int, ...]:
        """Shape of the item's media as `read` gives it where torch's random state is the generator's.

        Raises BrokenItem."""
        ...
