"""Mean and variance of what comes in parts."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Of C channels, from running sums in float64 on the CPU."""

    def __init__(self) -> None:
        self.count = 0
        self.total, self.squares = torch.zeros(()), torch.zeros(())  # (C,) once there are rows

    def add(self, rows: Tensor) -> None:
        """rows (n, C), on any device."""
        rows = rows.cpu().double()
        self.count += len(rows)
        self.total = self.total + rows.sum(0)
        self.squares = self.squares + rows.square().sum(0)

    @property
    def mean(self) -> Tensor:
        """(C,) float64."""
        assert self.count, "there is nothing to take the mean of"
        return self.total / self.count

    @property
    def variance(self) -> Tensor:
        """(C,) float64, of the rows themselves (division by their count); rounding may leave it a little below 0."""
        return self.squares / self.count - self.mean.square()

    @property
    def std(self) -> Tensor:
        """(C,) float64."""
        return self.variance.clamp_min(0).sqrt()
