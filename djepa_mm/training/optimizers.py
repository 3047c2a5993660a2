"""Optimisers, and the learning rate over a run."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from djepa_mm.recipe.schema import OptimConfig

COSINE_END = 0.02  # share of the learning rate that a cosine schedule ends at


def build_optimizers(networks: nn.Module, optim: OptimConfig) -> list[torch.optim.Optimizer]:
    """For the networks of D-JEPA: AdamW for all, or Muon for the blocks' matrices and AdamW for the rest.

    Weight decay on matrices only; none on biases, norms, embeddings, positions, buffer tokens and the head."""
    blocks: list[Tensor] = []
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    for name, parameter in networks.named_parameters():
        if parameter.ndim < 2 or name.startswith(("head.", "embedder.")) or ".learned." in name:
            plain.append(parameter)
        elif optim.optimizer == "muon" and ".blocks." in name:
            blocks.append(parameter)
        else:
            decayed.append(parameter)
    groups = [{"params": decayed, "weight_decay": optim.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=True)]
    if blocks:  # steps of the size that AdamW's have, so that one learning rate serves both
        adjust = "match_rms_adamw"
        optimizers.append(torch.optim.Muon(blocks, lr=optim.lr, weight_decay=optim.weight_decay, adjust_lr_fn=adjust))
    return optimizers


def learning_rate(optim: OptimConfig, step: int, progress: float) -> float:
    """Linear warm-up, then constant or a cosine to COSINE_END; `progress` in [0, 1]."""
    warmup = min(1.0, (step + 1) / (optim.warmup_steps + 1))
    if optim.schedule == "constant":
        return optim.lr * warmup
    return optim.lr * warmup * (COSINE_END + (1 - COSINE_END) * (1 + math.cos(math.pi * progress)) / 2)
