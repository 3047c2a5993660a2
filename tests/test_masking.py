from __future__ import annotations

import math

import pytest
import torch

from djepa_mm.masking import MaskRatio, draw_mask, reveal_schedule


@pytest.mark.parametrize("num_tokens", [1, 2, 7, 16, 256])
@pytest.mark.parametrize("steps", [1, 2, 5, 16, 64, 300])
def test_schedule_reveals_everything_and_never_less(num_tokens: int, steps: int) -> None:
    known = reveal_schedule(num_tokens, steps)
    new = [b - a for a, b in zip([0, *known], known, strict=False)]
    assert len(known) == steps
    assert known[-1] == num_tokens
    assert all(n >= 1 for n in new[: min(steps, num_tokens)])
    assert all(n == 0 for n in new[num_tokens:])


def test_schedule_is_the_cosine_where_tokens_suffice() -> None:
    known = reveal_schedule(256, 16)
    assert known == [256 - math.floor(256 * math.cos(math.pi / 2 * n / 16)) for n in range(1, 17)]


def test_mask_counts_and_stays_within_valid() -> None:
    valid = torch.arange(10) < torch.tensor([10, 3, 7])[:, None]
    for ratio in (0.7, 0.85, 1.0):
        masked = draw_mask(valid, ratio, torch.Generator().manual_seed(0))
        assert masked.sum(1).tolist() == [math.ceil(n * ratio) for n in (10, 3, 7)]
        assert not (masked & ~valid).any()


def test_masks_are_uniform_and_independent() -> None:
    masked = draw_mask(torch.ones(4000, 8, dtype=torch.bool), 0.5, torch.Generator().manual_seed(0)).float()
    assert (masked.mean(0) - 0.5).abs().max() < 0.03
    pairs = (masked.T @ masked / len(masked)).fill_diagonal_(0)  # P(both) = 4/8 · 3/7
    assert (pairs[pairs > 0] - 3 / 14).abs().max() < 0.03


def test_ratio_is_the_truncated_normal() -> None:
    """Mean of N(1, 0.25) truncated to [0.7, 1]: μ − σ·(φ(β) − φ(α)) / (Φ(β) − Φ(α))."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.tensor([MaskRatio().draw(generator) for _ in range(4000)])
    normal = torch.distributions.Normal(0.0, 1.0)
    low, high = torch.tensor(-1.2), torch.tensor(0.0)
    density = (normal.log_prob(low).exp() - normal.log_prob(high).exp()) / (normal.cdf(high) - normal.cdf(low))
    assert draws.min() >= 0.7
    assert draws.max() <= 1.0
    assert abs(draws.mean() - (1 + 0.25 * density)) < 0.005
