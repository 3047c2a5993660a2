"""What is asked for, and what the sampler makes of it at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
    seed: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        if min(self.seed) < 0:
            raise UserError(f"--seed {min(self.seed)}: expected 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the sampler does at once: a condition's value, the size of its item, and the tokens that are given."""

    value: Any  # as the kind of condition keeps it
    spec: MediaSpec
    seed: tuple[int, ...]
    tokens: Tensor | None = None  # (N, C)
    known: Tensor | None = None  # (N,) bool, which of them are given

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(int(np.random.SeedSequence(self.seed).generate_state(1)[0]))
