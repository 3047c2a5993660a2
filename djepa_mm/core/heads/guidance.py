"""Classifier-free guidance at the head: both features go through it, and the results are extrapolated."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def guided(
    network: Callable[[Tensor, Tensor, Tensor], Tensor], z: Tensor, z_null: Tensor | None, guidance: Tensor | float
) -> Callable[[Tensor, float], Tensor]:
    """(x (M, C), time) -> ε_u + s · (ε_c − ε_u), with s a number or (M, 1).

    network: takes (M, C), the time (1,) and features (M, D).
    Where the network gives more than C channels (a learned variance), the rest is the conditional one's.
    """

    def conditional(x: Tensor, time: float) -> Tensor:
        return network(x, torch.full((1,), time, device=x.device), z)

    if z_null is None:
        return conditional
    both = torch.cat([z, z_null])

    def extrapolated(x: Tensor, time: float) -> Tensor:
        out = network(torch.cat([x, x]), torch.full((1,), time, device=x.device), both)
        cond, null = out.chunk(2)
        channels = x.shape[-1]
        mean = null[:, :channels] + guidance * (cond[:, :channels] - null[:, :channels])
        return torch.cat([mean, cond[:, channels:]], dim=-1)

    return extrapolated
