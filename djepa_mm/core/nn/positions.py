"""Positions of tokens on the axes (t, h, w): a learned table over a fixed grid, or rotary angles, of the places as they
are or as they lie in a field of view.

B batch, N tokens, S sequence, D model width, F rotary frequencies (half of a head's width).
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

    Coordinates are real numbers, so positions may be stretched or centred freely. exact: angles are fp32 under
    autocast too; in bf16, those beyond 64 are off by up to 0.25.
    """

    frequencies: Tensor

    def __init__(self, head_width: int, axes: tuple[str, ...], base: float = 10_000.0, exact: bool = False) -> None:
        super().__init__()
        self.exact = exact
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
        if self.exact:
            angles = positions.float()[..., self.frequencies.argmax(0)] * self.frequencies.float().sum(0)
        else:
            angles = positions.float() @ self.frequencies.float()
        angles = angles.unsqueeze(1)
        return angles.cos(), angles.sin()


def in_field(positions: Tensor, grids: Tensor, field: float, offsets: Tensor | None = None) -> Tensor:
    """VoPE (D-JEPA-T2I, §2.2): places (B, N, 3) on grids (B, 3), both on (t, h, w), as they lie in a field of view.

    An item of W × H places lies centred in a field of g × g: with ρ = max(W, H)/g and b = |W − H|/2, the place (w, h)
    is at ((w + b)/ρ, h/ρ) if W ≤ H, else at (w/ρ, (h + b)/ρ). The rotary base does not change. The paper speaks of
    pixels, but counts tokens: its 4096² pixels at stride 8 and patch 2 have ρ = 1, so g is 256 tokens. Times stay as
    they are: a longer clip shows more, and not the same more finely.

    offsets (B, 2): how far an item is moved down and to the right, in sides of the field; the paper's b moves along
    the shorter side alone. Among the item's own tokens that changes nothing, for only differences of positions count
    there; it is the condition's tokens, which stay, that they have moved away from.
    """
    sides = grids[:, 1:].float()  # (B, 2): H, W
    longest = sides.amax(1, keepdim=True)  # (B, 1)
    moved = (longest - sides) / 2  # b on the shorter side, 0 on the longer
    if offsets is not None:
        moved = moved + offsets * longest
    places = (positions[..., 1:] + moved[:, None]) * (field / longest[:, None])
    return torch.cat([positions[..., :1], places], dim=-1)


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Turn queries or keys (B, heads, S, 2F) by their positions' angles."""
    cos, sin = (part.to(x.dtype) for part in rotary)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
