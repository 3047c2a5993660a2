"""How long texts take: the pace of each of their symbols, fitted to a corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FINAL = 4  # symbols; of 1, 2, 3, 4 and 6 it leaves the least error on spoken digits, 3 and 4 on sentences
RIDGE_STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0, 1e3, 1e4, 1e6)


@dataclass(frozen=True, slots=True)
class Pace:
    """How many media tokens each symbol of a text is expected to take; fitted to the corpus.

    per_symbol: by the symbol's number in the vocabulary. margin: at the two ends of an item together. longest: the
    most tokens that an item of the corpus has. final: what a symbol takes more, or less, among the last FINAL of a
    text, where speech changes its pace; none where it was not fitted.
    """

    per_symbol: tuple[float, ...]
    margin: float = 0.0
    longest: int = 0
    final: tuple[float, ...] = ()

    @classmethod
    def fit(cls, texts: Sequence[Tensor], num_tokens: Sequence[int], vocabulary_size: int) -> Pace:
        """Least squares of the lengths on how often each symbol occurs, in all and at the end.

        First a straight line on the number of symbols, then each symbol's difference from it by ridge regression, of
        the strength whose leave-one-out errors are the least: rare symbols stay near the line.
        """

        def count(texts: Sequence[Tensor]) -> Tensor:  # (items, symbols)
            return torch.stack([torch.bincount(t, minlength=vocabulary_size) for t in texts]).double()

        counts = count(texts)
        y = torch.tensor(num_tokens, dtype=torch.float64)
        x = counts.sum(1)
        spread = ((x - x.mean()) ** 2).sum()
        slope = ((x - x.mean()) * (y - y.mean())).sum() / spread if spread else y.mean() / x.mean()
        slope = slope.clamp_min(1e-3)
        margin = (y.mean() - slope * x.mean()).clamp_min(0.0)
        rest = y - margin - slope * x
        counts = torch.cat([counts, count([t[-FINAL:] for t in texts])], dim=1)
        weights = _ridge(counts, rest, min(RIDGE_STRENGTHS, key=lambda s: _left_out_error(counts, rest, s)))
        symbols, final = weights.split(vocabulary_size)
        return cls(tuple((slope + symbols).tolist()), float(margin), max(num_tokens), tuple(final.tolist()))

    def tokens(self, text: Tensor) -> float:
        """(L,) int64 -> media tokens, at least 1."""
        return max(1.0, self.margin + float(self._widths(text).sum()))

    def centres(self, text: Tensor) -> Tensor:
        """(L,) int64 -> (L,) the middle of each symbol as a share of the item's length, rising from 0 to 1."""
        widths = self._widths(text).clamp_min(0.0)  # a silent letter may take from its neighbours, as in "eight"
        total = self.margin + widths.sum()
        if total <= 0:
            return (torch.arange(len(text)) + 0.5) / len(text)
        return (self.margin / 2 + widths.cumsum(0) - widths / 2) / total

    def _widths(self, text: Tensor) -> Tensor:
        widths = torch.tensor(self.per_symbol)[text]
        if self.final:
            widths[-FINAL:] += torch.tensor(self.final)[text[-FINAL:]]
        return widths


def _ridge(inputs: Tensor, outputs: Tensor, strength: float) -> Tensor:
    """inputs (items, symbols), outputs (items,) -> (symbols,) weights."""
    return torch.linalg.solve(_regularised(inputs, strength), inputs.T @ outputs)


def _left_out_error(inputs: Tensor, outputs: Tensor, strength: float) -> float:
    """Mean square of ridge regression's error for each item when it is left out of the fit, in closed form."""
    leverage = (inputs * torch.linalg.solve(_regularised(inputs, strength), inputs.T).T).sum(1)
    errors = (outputs - inputs @ _ridge(inputs, outputs, strength)) / (1 - leverage).clamp_min(1e-6)
    return float(errors.square().mean())


def _regularised(inputs: Tensor, strength: float) -> Tensor:
    return inputs.T @ inputs + strength * torch.eye(inputs.shape[1], dtype=inputs.dtype)
