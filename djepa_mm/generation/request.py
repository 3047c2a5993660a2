"""What is asked for, and what the sampler makes of it at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from djepa_mm.types import MediaSpec, UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One item to generate. The same request gives the same item, whatever else is generated beside it.

    Raises UserError for a seed below 0."""

    condition: Mapping[str, Any] = field(default_factory=dict)  # by the keys of the model's kind of condition
    duration_s: float | None = None
    size: tuple[int, int] | None = None  # height and width in pixels
    offset: float | tuple[float, float] | None = None
    """How far the picture is moved in the model's field of view, in sides of the field: along its shorter side, or down
    and to the right. It shows what lies there, so what is in the middle of the field moves the other way."""
    seed: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        if min(self.seed) < 0:
            raise UserError(f"--seed {min(self.seed)}: expected 0 or more")
        if self.size is not None:
            check_numbers("size", self.size, "height and width in pixels", 2)
        pair = isinstance(self.offset, tuple | list)
        moved: Any = self.offset if pair else (self.offset or 0.0,)
        if len(moved) != 1 + pair or not all(isinstance(one, int | float) and -1 <= one <= 1 for one in moved):
            raise UserError(f"--offset {self.offset}: expected one number, or two, from -1 to 1")

    def moved(self, grid: tuple[int, int, int]) -> tuple[float, float]:
        """The offset down and to the right, of an item of so many tokens on (t, h, w)."""
        if isinstance(self.offset, tuple | list):
            down, right = self.offset
            return down, right
        _, height, width = grid
        offset = self.offset or 0.0
        return (0.0, offset) if width <= height else (offset, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the sampler does at once: a condition's value, the size of its item, and the tokens that are given."""

    value: Any  # as the kind of condition keeps it
    spec: MediaSpec
    seed: tuple[int, ...]
    negative: Any = None  # likewise, of what guidance leads away from; None is the null condition
    offset: tuple[float, float] = (0.0, 0.0)  # down and to the right, in sides of the field of view
    tokens: Tensor | None = None  # (N, C)
    known: Tensor | None = None  # (N,) bool, which of them are given

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(int(np.random.SeedSequence(self.seed).generate_state(1)[0]))


def check_numbers(name: str, values: object, what: str, count: int) -> None:
    """Raises UserError for what is not so many whole numbers."""
    fits = (
        isinstance(values, tuple | list) and len(values) == count and all(isinstance(one, Integral) for one in values)
    )
    if not fits:
        raise UserError(f"--{name} {values!r}: expected {what}, {count} whole numbers")
