"""Positions of tokens on the axes (t, h, w): a learned table over a fixed grid, or rotary angles.

B batch, S sequence, D model width, F rotary frequencies (half of a head's width).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

AXES = ("t", "h", "w")
Rotary = tuple[Tensor, Tensor]  # cosines and sines, each (B, 1, S, F)


class LearnedPositions(nn.Module):
    """One learned vector for every place of a fixed grid (D-JEPA's class-conditional models)."""

    def __init__(self, grid: tuple[int, int, int], width: int) -> None:
        super().__init__()
        t, h, w = grid
        self.grid = grid
        self.table = nn.Parameter(torch.empty(t * h * w, width))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, positions: Tensor) -> Tensor:
        """(B, S, 3) grid coordinates -> (B, S, D). Raises ValueError for a place outside the grid."""
        t, h, w = (places := positions.long()).unbind(-1)  # each (B, S)
        outside = ((places < 0) | (places >= places.new_tensor(self.grid))).any(-1)
        if bool(outside.any()):
            place = tuple(places[outside][0].tolist())
            raise ValueError(f"the place {place} (t, h, w) is outside the grid {self.grid} of the learned positions")
        _, height, width = self.grid
        # not self.table[…]: its gradient adds up in an order that varies with the threads, so runs would not repeat
        return functional.embedding((t * height + h) * width + w, self.table)


class RotaryPositions(nn.Module):
    """Rotary position embedding (Su et al. 2021) with a head's frequencies shared out evenly over the named axes.

    Coordinates are real numbers, so positions may be stretched or centred freely.
    """

    frequencies: Tensor

    def __init__(self, head_width: int, axes: tuple[str, ...], base: float = 10_000.0) -> None:
        super().__init__()
        per_axis = head_width // 2 // len(axes)
        if per_axis == 0:
            raise ValueError(f"heads of width {head_width} are too narrow for rotary positions on {len(axes)} axes")
        # (3, F): frequency f turns with the coordinate of the one axis that it belongs to; left-over ones stand still
        table = torch.zeros(3, head_width // 2)
        for n, axis in enumerate(axes):
            table[AXES.index(axis), n * per_axis : (n + 1) * per_axis] = base ** -(torch.arange(per_axis) / per_axis)
        self.register_buffer("frequencies", table)

    def forward(self, positions: Tensor) -> Rotary:
        """(B, S, 3) coordinates -> cosines and sines (B, 1, S, F)."""
        angles = (positions.float() @ self.frequencies.float()).unsqueeze(1)
        return angles.cos(), angles.sin()


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Turn queries or keys (B, heads, S, 2F) by their positions' angles."""
    cos, sin = (part.to(x.dtype) for part in rotary)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
