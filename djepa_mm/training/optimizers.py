"""Optimisers, and the learning rate over a run."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from djepa_mm.recipe.schema import OptimConfig

COSINE_END = 0.02  # share of the learning rate that a cosine schedule ends at
LARGEST_DECAY = 0.9999  # that a linear schedule of the averages' decay rises to


def build_optimizers(networks: nn.Module, optim: OptimConfig) -> list[torch.optim.Optimizer]:
    """For the networks of D-JEPA: AdamW for all, or Muon for the blocks' matrices and AdamW for the rest.

    optim.weight_decay_on says what decays; never biases, norms and the head."""
    blocks: list[Tensor] = []
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    for name, parameter in networks.named_parameters():
        if not _decays(name, parameter, optim.weight_decay_on):
            plain.append(parameter)
        elif optim.optimizer == "muon" and ".blocks." in name:
            blocks.append(parameter)
        else:
            decayed.append(parameter)
    groups = [{"params": decayed, "weight_decay": optim.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)
    ]
    if blocks:  # steps of the size that AdamW's have, so that one learning rate serves both
        adjust = "match_rms_adamw"
        optimizers.append(torch.optim.Muon(blocks, lr=optim.lr, weight_decay=optim.weight_decay, adjust_lr_fn=adjust))
    return optimizers


def _decays(name: str, parameter: Tensor, which: Literal["matrices", "blocks", "all"]) -> bool:
    if name.startswith("head.") or (parameter.ndim < 2 and name != "predictor.mask_token"):
        return False
    if which == "all":
        return True
    table = name.startswith("embedder.") or ".learned." in name or "_positions" in name or parameter.ndim < 2
    return not table and (which == "matrices" or ".blocks." in name)


def learning_rate(optim: OptimConfig, step: int, progress: float) -> float:
    """Linear warm-up, then constant or a cosine to COSINE_END; `progress` in [0, 1]."""
    warmup = min(1.0, (step + 1) / (optim.warmup_steps + 1))
    if optim.schedule == "constant":
        return optim.lr * warmup
    return optim.lr * warmup * (COSINE_END + (1 - COSINE_END) * (1 + math.cos(math.pi * progress)) / 2)


def weight_decay_share(optim: OptimConfig, progress: float) -> float:
    """Share of the weight decay that holds at a `progress` in [0, 1]."""
    return 1.0 if optim.weight_decay_schedule == "constant" else progress


def average_decay(optim: OptimConfig, progress: float) -> float:
    """Decay of the averages at a `progress` in [0, 1], before their warm-up."""
    if optim.ema_schedule == "constant":
        return optim.ema_decay
    return min(LARGEST_DECAY, optim.ema_decay + (1 - optim.ema_decay) * progress)
