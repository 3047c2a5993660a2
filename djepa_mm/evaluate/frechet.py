"""Fréchet distance between two sets of vectors, each taken for a sample of a normal distribution."""

from __future__ import annotations

import torch
from torch import Tensor


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½) of (n, d) and (m, d), in float64 (Heusel et al. 2017, eq. 6).

    tr (Σ₁ Σ₂)^½ is the sum of the singular values of Σ₁^½ Σ₂^½, which is exact for singular Σ too.
    """
    first, second = first.double(), second.double()
    roots = [_root(torch.cov(x.T)) for x in (first, second)]
    mean = (first.mean(0) - second.mean(0)).square().sum()
    traces = sum(root.square().sum() for root in roots)
    return float(mean + traces - 2 * torch.linalg.svdvals(roots[0] @ roots[1]).sum())


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp_min(0).sqrt() @ vectors.T
