from __future__ import annotations

import pytest
import torch

from djepa_mm.moments import Covariance, Moments


def test_moments_of_parts_are_torchs_of_the_whole() -> None:
    rows = torch.randn(1000, 7, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 8) + torch.arange(7) * 3
    moments = Moments()
    for part in rows.split([1, 300, 699]):
        moments.add(part)
    assert moments.count == 1000
    assert moments.mean.dtype == moments.std.dtype == torch.float64
    torch.testing.assert_close(moments.mean, rows.double().mean(0))
    torch.testing.assert_close(moments.variance, rows.double().var(0, correction=0))
    torch.testing.assert_close(moments.std, rows.double().std(0, correction=0))


def test_channels_that_never_change_have_no_deviation() -> None:
    moments = Moments()
    moments.add(torch.full((333, 2), 0.1))
    assert moments.std.isfinite().all()
    assert moments.std.max() < 1e-7


def test_nothing_has_no_mean() -> None:
    with pytest.raises(AssertionError):
        _ = Moments().mean


def test_effective_channels_count_what_is_independent() -> None:
    independent = torch.randn(20_000, 6, generator=torch.Generator().manual_seed(0))
    for rows, expected in (
        (independent, 6),
        (independent[:, [0, 0, 0, 1, 1, 1]], 2),  # two things, said three times each
        (independent[:, :1] * torch.arange(1, 5) + 7, 1),
        (torch.cat([independent, torch.zeros(20_000, 3)], dim=1), 6),  # dead ones add nothing
    ):
        covariance = Covariance()
        for part in rows.split(9000):
            covariance.add(part)
        assert covariance.effective_channels == pytest.approx(expected, abs=0.01)
    torch.testing.assert_close(covariance.std, rows.double().std(0, correction=0))
