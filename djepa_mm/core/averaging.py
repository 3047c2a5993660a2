"""Exponential moving average (EMA) of a network's weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def warmed_decay(step: int, decay: float) -> float:
    """Decay at an optimiser step (from 0): short memory at first, so that the average leaves its random start soon."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update_average(averaged: nn.Module, online: nn.Module, decay: float) -> None:
    """θ̄ ← decay · θ̄ + (1 − decay) · θ for every parameter; buffers are copied."""
    parameters = [p.detach() for p in online.parameters()]
    get_ema_multi_avg_fn(decay)(list(averaged.parameters()), parameters, torch.tensor(1))
    for old, new in zip(averaged.buffers(), online.buffers(), strict=True):
        old.copy_(new)
