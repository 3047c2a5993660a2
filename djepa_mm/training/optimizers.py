"""Optimisers, and the learning rate over a run."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from djepa_mm.ranks import current
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
        optimizers.append(SharedMuon(blocks, lr=optim.lr, weight_decay=optim.weight_decay, adjust_lr_fn=adjust))
    return optimizers


class SharedMuon(torch.optim.Muon):
    """Muon whose matrices are dealt out among the processes: each orthogonalises its own, which is nearly all of the
    work, and sends what they became. Weights and momentum are those that torch.optim.Muon gives in each process."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Every process has to call it, with the same gradients."""
        ranks = current()
        if ranks.world == 1:
            super().step()
            return
        shares = self._dealt(ranks.world)
        others = {matrix: matrix.grad for matrix, owner in shares.items() if owner != ranks.rank}
        for matrix, gradient in others.items():
            assert gradient is not None  # as only those are dealt that have one
            state = self.state[matrix]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(matrix)
            state["momentum_buffer"].lerp_(gradient, 1 - self.defaults["momentum"])
            matrix.grad = None
        super().step()
        for matrix, gradient in others.items():
            matrix.grad = gradient
        for matrix, owner in shares.items():
            dist.broadcast(matrix.detach(), owner)

    def _dealt(self, world: int) -> dict[Tensor, int]:
        """Whose each matrix is that has a gradient, so that all take about as long."""
        matrices = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        taken, shares = [0] * world, {}
        for matrix in sorted(matrices, key=_products, reverse=True):
            shares[matrix] = owner = taken.index(min(taken))
            taken[owner] += _products(matrix)
        return shares


def _products(matrix: Tensor) -> int:
    """In a step of Newton-Schulz: X Xᵀ and its square, and what they do to X, with X's shorter side first."""
    short, long = sorted(matrix.shape)
    return short * short * (2 * long + short)


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
