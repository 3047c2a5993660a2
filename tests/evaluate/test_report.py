from __future__ import annotations

import pytest
import torch

from djepa_mm.evaluate.frechet import frechet_distance


def test_frechet_distance_of_known_normals() -> None:
    """N(0, I) against N(m, s²I): |m|² + d·(1 − s)², exactly, for samples whitened to those moments."""
    torch.manual_seed(0)
    x = torch.randn(500, 6).double()
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
    shift = torch.tensor([1.0, 2.0, 0.0, 0.0, 0.0, 0.0])
    assert frechet_distance(x, 3 * x + shift) == pytest.approx(5 + 6 * 4, rel=1e-6)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_singular_covariances() -> None:
    """Dead pixels must not spoil it; checked against scipy on the living ones."""
    from scipy.linalg import sqrtm

    torch.manual_seed(0)
    a, b = torch.randn(300, 4).double() @ torch.randn(4, 4).double(), torch.randn(200, 4).double()
    ca, cb = torch.cov(a.T).numpy(), torch.cov(b.T).numpy()
    expected = float((a.mean(0) - b.mean(0)).square().sum()) + float((ca + cb - 2 * sqrtm(ca @ cb).real).trace())
    dead = torch.zeros(1, 3)
    padded = frechet_distance(torch.cat([a, dead.expand(300, 3)], 1), torch.cat([b, dead.expand(200, 3)], 1))
    assert padded == pytest.approx(expected, rel=1e-6)
