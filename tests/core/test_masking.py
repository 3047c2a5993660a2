from __future__ import annotations

import math

import pytest
import torch

from djepa_mm.core.masking import MaskRatio, Order, draw_mask, reveal_keys, reveal_schedule


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
        masked = draw_mask(valid, ratio, torch.Generator().manual_seed(0)).masked
        assert masked.sum(1).tolist() == [math.ceil(n * ratio) for n in (10, 3, 7)]
        assert not (masked & ~valid).any()


def test_masks_are_uniform_and_independent() -> None:
    masked = draw_mask(torch.ones(4000, 8, dtype=torch.bool), 0.5, torch.Generator().manual_seed(0)).masked.float()
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


def test_the_start_is_masked_as_often_as_asked() -> None:
    generator = torch.Generator().manual_seed(0)
    ratio = MaskRatio(mean=0.3, std=0.01, low=0.2, high=0.4, start=0.6)
    draws = torch.tensor([ratio.draw(generator, start_share=0.25) for _ in range(4000)])
    start = draws[draws > 0.4]
    assert abs(len(start) / len(draws) - 0.6) < 0.03
    counts = (8 - (8 * start).ceil()).long().bincount()  # known of eight tokens, two of which are the start
    assert len(counts) == 2
    assert (counts / len(start) - 0.5).abs().max() < 0.03


GRID = torch.cartesian_prod(torch.arange(4.0), torch.arange(3.0), torch.arange(5.0))  # 60 places on (t, h, w)


def revealed(order: Order, seed: int = 0) -> torch.Tensor:
    """(60, 3): the places of two samples' second in the order in which they are revealed."""
    keys = reveal_keys(GRID.expand(2, -1, -1), order, torch.Generator().manual_seed(seed))
    return GRID[keys[1].argsort(stable=True)]


def test_frames_are_revealed_one_after_the_other() -> None:
    places = revealed("frames")
    assert places[:, 0].tolist() == sorted(GRID[:, 0].tolist())
    assert not torch.equal(places[:15, 1:], GRID[:15, 1:])
    assert not torch.equal(places[:15, 1:], places[15:30, 1:])


def test_tubes_are_revealed_whole() -> None:
    places = revealed("tubes")
    assert torch.equal(places.reshape(15, 4, 3)[:, :1, 1:].expand(-1, 4, -1), places.reshape(15, 4, 3)[..., 1:])
    assert not torch.equal(places, revealed("tubes", seed=1))


def test_raster_is_the_numbering() -> None:
    assert torch.equal(revealed("raster"), GRID)


@pytest.mark.parametrize("order", ["random", "frames", "tubes", "raster"])
def test_nothing_left_has_no_order(order: Order) -> None:
    assert reveal_keys(torch.zeros(2, 0, 3), order, torch.Generator()).shape == (2, 0)


@pytest.mark.parametrize("steps", [1, 3, 5, 12])
@pytest.mark.parametrize("num_tokens", [1, 5, 16])
def test_one_is_left_for_the_last_step(num_tokens: int, steps: int) -> None:
    """As MAR's code counts: what stays hidden is N·cos(π/2 · n/T), rounded down, less than before and at least one."""
    hidden = [num_tokens]
    for n in range(1, steps):
        hidden.append(max(1, min(hidden[-1] - 1, math.floor(num_tokens * math.cos(math.pi / 2 * n / steps)))))
    expected = [*(num_tokens - h for h in hidden[1:]), num_tokens]
    assert reveal_schedule(num_tokens, steps, leave_one=True) == expected


@pytest.mark.parametrize("order", ["random", "frames", "tubes", "raster"])
def test_what_an_order_reveals_last_is_masked(order: Order) -> None:
    positions, valid = GRID.expand(8, -1, -1), torch.ones(8, 60, dtype=torch.bool)
    valid[3, 40:] = False
    masked = draw_mask(valid, 0.5, torch.Generator().manual_seed(0), positions, order).masked
    assert masked.sum(1).tolist() == [30] * 3 + [20] + [30] * 4
    assert not (masked & ~valid).any()
    if order == "frames":  # a whole number of frames, of those there are
        assert (GRID[masked[0]][:, 0] >= 2).all()
    if order == "tubes":
        whole = masked[0].reshape(4, 15).sum(0)
        assert ((whole == 0) | (whole == 4)).sum() >= 14
    if order != "raster":
        assert not torch.equal(masked[0], masked[1]) or order == "frames"


def test_a_horizon_leaves_out_what_comes_later() -> None:
    positions, valid = GRID.expand(2, -1, -1), torch.ones(2, 60, dtype=torch.bool)
    valid[1, 33:] = False
    mask = draw_mask(valid, 0.5, torch.Generator().manual_seed(0), positions, "frames", horizon=15)
    assert mask.visible.sum(1).tolist() == [30, 16]
    assert mask.masked.sum(1).tolist() == [15, 15]
    assert GRID[mask.visible[0]][:, 0].max() == 1
    assert (GRID[mask.masked[0]][:, 0] == 2).all()
    near_the_end = draw_mask(valid, 0.1, torch.Generator().manual_seed(0), positions, "frames", horizon=15)
    assert near_the_end.masked.sum(1).tolist() == [6, 4]


def test_the_linear_schedule_is_even() -> None:
    known = reveal_schedule(64, 16, "linear")
    assert known == [4 * n for n in range(1, 17)]
    assert reveal_schedule(3, 8, "linear")[-1] == 3
