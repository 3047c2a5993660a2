"""Mean and variance of what comes in parts, how its channels vary together, and tokens of unit variance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

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


class Covariance(Moments):
    """And how the channels vary together."""

    def __init__(self) -> None:
        super().__init__()
        self.products = torch.zeros(())  # (C, C) once there are rows

    def add(self, rows: Tensor) -> None:
        super().add(rows)
        rows = rows.cpu().double()
        self.products = self.products + rows.T @ rows

    @property
    def effective_channels(self) -> float:
        """How many independent channels of one deviation vary as much as these: exp(−Σ p ln p), p the eigenvalues of
        the covariance over their sum. From 1, where all say the same, to C; never more than there are rows."""
        mean = self.mean
        powers = torch.linalg.eigvalsh(self.products / self.count - mean[:, None] * mean).clamp_min(0)
        return torch.special.entr(powers / powers.sum().clamp_min(1e-30)).sum().exp().item()


class UnitVariance:
    """Brings tokens of raw pixels to unit variance.

    One mean for each channel of a token, but one standard deviation for all: a distance between tokens then stays a
    distance between pixels, so the loss weighs every pixel alike, and a channel that hardly ever changes (the corner of
    a big patch) is not blown up until its noise costs as much as the drawing.
    """

    def __init__(self, channels: int) -> None:
        self.mean, self.std = torch.zeros(channels), torch.ones(())

    def fit(self, rows: Iterable[Tensor]) -> None:
        """rows: (n, C) each."""
        moments = Moments()
        for some in rows:
            moments.add(some)
        self.mean = moments.mean.float()
        # the floor: a corpus of one flat colour still has tokens
        self.std = moments.variance.mean().clamp_min(1e-6).sqrt().float()

    def apply(self, tokens: Tensor) -> Tensor:
        """(…, C)"""
        return (tokens - self.mean.to(tokens)) / self.std.to(tokens)

    def undo(self, tokens: Tensor) -> Tensor:
        """(…, C)"""
        return tokens * self.std.to(tokens) + self.mean.to(tokens)

    def state(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "std": self.std}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.mean, self.std = state["mean"], state["std"]
