"""What is hidden in training, and what is revealed when in sampling.

B batch, N tokens, T steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Order = Literal["random", "frames", "tubes", "raster"]
Schedule = Literal["cosine", "linear"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskRatio:
    """Truncated normal distribution of the share of tokens that is masked, drawn once a batch.

    start: with this probability the ratio comes from the start of sampling instead, see `draw`.
    """

    mean: float = 1.0
    std: float = 0.25
    low: float = 0.7
    high: float = 1.0
    start: float = 0.0

    def draw(self, generator: torch.Generator, start_share: float = 1.0) -> float:
        """start_share: share of the tokens that belongs to the start; ratios of it are uniform in (1 − it, 1]."""
        if self.start and torch.rand((), generator=generator, device=generator.device).item() < self.start:
            return 1 - start_share * torch.rand((), generator=generator, device=generator.device).item()
        ratio = torch.empty(1, device=generator.device)
        torch.nn.init.trunc_normal_(ratio, self.mean, self.std, self.low, self.high, generator=generator)
        return ratio.item()


def reveal_keys(positions: Tensor, order: Order, generator: torch.Generator) -> Tensor:
    """positions (B, N, 3) on (t, h, w) -> (B, N): the place with the lowest key is revealed first.

    random: any place, independently. frames: one t after the other, at random within it. tubes: all t of a place
    (h, w) together, the places at random. raster: as the tokens are numbered.
    """
    shape, device = positions.shape[:2], positions.device
    if order == "raster":
        return torch.arange(shape[1], device=device, dtype=torch.float32).expand(shape)
    keys = torch.rand(shape, generator=generator, device=generator.device).to(device)
    if order == "frames":
        return positions[..., 0] + keys
    if order == "tubes" and shape[1]:
        _, h, w = positions.long().unbind(-1)
        place = h * (int(w.max()) + 1) + w  # (B, N)
        tubes = torch.rand(len(positions), int(place.max()) + 1, generator=generator, device=generator.device)
        return tubes.to(device).gather(1, place)
    return keys


def never_last(order: Order, horizon: int | None) -> str | None:
    """Why places that are drawn early cannot be drawn anew by those that are drawn late; None where they can."""
    if horizon is not None:
        return f"with mask.horizon {horizon} the model predicts what comes next alone"
    if order not in ("random", "tubes"):
        return f"with sample.order {order} what comes first never comes last"
    return None


@dataclass(frozen=True, slots=True)
class Mask:
    """What a step of training sees and what it has to predict, each (B, N) bool; padding is in neither.

    With a horizon, places further on in the order are in neither too."""

    visible: Tensor
    masked: Tensor


def draw_mask(
    valid: Tensor,
    ratio: float,
    generator: torch.Generator,
    positions: Tensor | None = None,
    order: Order = "random",
    horizon: int | None = None,
) -> Mask:
    """Mask ceil(n · ratio) of each sample's n valid tokens: those that `order` would reveal last, or of them only the
    `horizon` that it would reveal next.

    valid (B, N) bool, positions (B, N, 3), which `random` can do without.
    """
    if positions is None:
        positions = torch.zeros(*valid.shape, 3, device=valid.device)
    keys = reveal_keys(positions, order, generator)
    rank = keys.masked_fill(~valid, torch.inf).argsort(dim=1).argsort(dim=1)  # (B, N), padding last
    count = valid.sum(1, keepdim=True)
    known = count - (count * ratio).ceil()
    last = count if horizon is None else (known + horizon).minimum(count)
    return Mask(visible=rank < known, masked=(rank >= known) & (rank < last))


def reveal_schedule(num_tokens: int, steps: int, schedule: Schedule = "cosine", leave_one: bool = False) -> list[int]:
    """How many tokens are known after each of T steps: N − floor(N · cos(π/2 · n/T)), at least one new a step.

    `linear` reveals about as many in each step, for orders that know their neighbours early. All are known after the
    last step; where T > N, the steps after the N-th reveal nothing. With `leave_one`, every step leaves one for the
    last.
    """
    known, most = [0], num_tokens - int(leave_one)
    for n in range(1, steps + 1):
        left = math.cos(math.pi / 2 * n / steps) if schedule == "cosine" else 1 - n / steps
        known.append(min(max(num_tokens - math.floor(num_tokens * left), known[-1] + 1), most))
    known[-1] = num_tokens
    return known[1:]
