"""What is hidden in training, and what is revealed when in sampling.

B batch, N tokens, T steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskRatio:
    """Truncated normal distribution of the share of tokens that is masked, drawn once a batch."""

    mean: float = 1.0
    std: float = 0.25
    low: float = 0.7
    high: float = 1.0

    def draw(self, generator: torch.Generator) -> float:
        ratio = torch.empty(1, device=generator.device)
        torch.nn.init.trunc_normal_(ratio, self.mean, self.std, self.low, self.high, generator=generator)
        return ratio.item()


def draw_mask(valid: Tensor, ratio: float, generator: torch.Generator) -> Tensor:
    """Mask ceil(n · ratio) of each sample's n valid tokens, chosen uniformly.

    valid (B, N) bool -> masked (B, N) bool, a subset of valid.
    """
    scores = torch.rand(valid.shape, generator=generator, device=generator.device).to(valid.device)
    rank = scores.masked_fill(~valid, torch.inf).argsort(dim=1).argsort(dim=1)  # (B, N), padding last
    count = (valid.sum(1, keepdim=True) * ratio).ceil()
    return (rank < count) & valid


def reveal_schedule(num_tokens: int, steps: int) -> list[int]:
    """How many tokens are known after each of T steps: N − floor(N · cos(π/2 · n/T)), at least one new a step.

    All are known after the last step; where T > N, the steps after the N-th reveal nothing.
    """
    known = [0]
    for n in range(1, steps + 1):
        cosine = num_tokens - math.floor(num_tokens * math.cos(math.pi / 2 * n / steps))
        known.append(min(max(cosine, known[-1] + 1), num_tokens))
    known[-1] = num_tokens
    return known[1:]
