"""What goes into the core: tokens, conditions, and the head that samples a token.

B batch, N tokens, C token channels, D model width, K buffer tokens, L condition items, E their features, M tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Protocol, Self

import torch
from torch import Tensor


class _OnDevice:
    """`.to(device)` for a dataclass whose fields are tensors or other such dataclasses."""

    def to(self, device: torch.device | str) -> Self:
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self)}  # type: ignore[arg-type]
        return replace(self, **moved)  # type: ignore[type-var]


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition(_OnDevice):
    """What to generate, as numbers. What they stand for is the matter of the `ConditionEmbedder`."""

    values: Tensor  # (B, L) int64 ids from 0, or (B, L, E) float features
    valid: Tensor  # (B, L) bool, False on padding
    positions: Tensor  # (B, L, 3) float coordinates on (t, h, w), in units of media tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionTokens:
    """Condition tokens as the transformers take them, learned buffer tokens first."""

    tokens: Tensor  # (B, K + L, D)
    valid: Tensor  # (B, K + L) bool
    positions: Tensor  # (B, K + L, 3)


class ConditionEmbedder(Protocol):
    """A network that turns conditions into condition tokens."""

    def __call__(self, condition: Condition, dropped: Tensor) -> ConditionTokens:
        """dropped (B,) bool: True where the null condition stands in."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch(_OnDevice):
    """Media of one batch as continuous tokens, padded to the longest item."""

    tokens: Tensor  # (B, N, C) float, unit variance
    positions: Tensor  # (B, N, 3) float coordinates on (t, h, w); unused axes 0
    valid: Tensor  # (B, N) bool, False on padding
    condition: Condition


@dataclass(frozen=True, slots=True, kw_only=True)
class Noising:
    """What chance decides for M tokens in a step of training, each of which is used R times."""

    noise: Tensor  # (R, M, C) unit normal
    time: Tensor  # (R, M): how much of it, as the head counts

    def of(self, tokens: Tensor) -> Noising:
        """For those tokens alone, by their numbers among the M."""
        return Noising(noise=self.noise[:, tokens], time=self.time[:, tokens])


class Head(Protocol):
    """Distribution of one token given its feature, p(x_i | z_i). M tokens at a time."""

    def draw(self, count: int, generator: torch.Generator) -> Noising:
        """For so many tokens, on the generator's device."""
        ...

    def loss(self, z: Tensor, target: Tensor, drawn: Noising) -> Tensor:
        """z (M, D), target (M, C) -> (M,) fp32."""
        ...

    def sample(
        self,
        z: Tensor,
        *,
        noise: Callable[[], Tensor],
        z_null: Tensor | None = None,
        guidance: Tensor | float = 1.0,
        temperature: float = 1.0,
    ) -> Tensor:
        """z (M, D) -> (M, C). `noise()` draws the next unit normal noise (M, C); `guidance` is a number or (M, 1)."""
        ...
