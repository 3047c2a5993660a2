"""Transformer blocks and the stack that the context encoder and the predictor are made of.

B batch, L condition tokens at the head of the sequence, S sequence (condition and media), D model width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from djepa_mm.core.nn.attention import Attention, Heads
from djepa_mm.core.nn.positions import Rotary

Streams = Literal["one", "two"]


class Block(nn.Module):
    """Pre-LN ViT block with one set of weights: D-JEPA's class-conditional backbone; without q/k norm, MAR's."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, dropout: float, qk_norm: bool = True) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.attention_norm = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, heads, dropout, qk_norm)
        self.mlp_norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width), nn.Dropout(dropout)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, condition_length: int, mask: Tensor | None, rotary: Rotary | None) -> Tensor:
        """x (B, S, D) -> (B, S, D); how many of S are condition tokens makes no difference here."""
        return self.finish(x, self.attention.attend(self.project(x), mask, rotary))

    def project(self, x: Tensor) -> Heads:
        """x (B, S, D) -> queries, keys and values, each (B, heads, S, E)."""
        return self.attention.project(self.attention_norm(x))

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The two residual branches: x (B, S, D), attended (B, S, D) -> (B, S, D)."""
        x = x + self.dropout(self.attention.out(attended))
        return x + self.mlp(self.mlp_norm(x))


class TwoStreamBlock(nn.Module):
    """Weights for the condition and weights for the media, one joint attention over both (D-JEPA-T2I, fig. 2b)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, dropout: float, qk_norm: bool = True) -> None:
        super().__init__()
        self.condition = Block(width, heads, mlp_ratio, dropout, qk_norm)
        self.media = Block(width, heads, mlp_ratio, dropout, qk_norm)

    def forward(self, x: Tensor, condition_length: int, mask: Tensor | None, rotary: Rotary | None) -> Tensor:
        """x (B, S, D), condition first -> (B, S, D)."""
        streams = ((self.condition, slice(None, condition_length)), (self.media, slice(condition_length, None)))
        projected = zip(*(block.project(x[:, part]) for block, part in streams), strict=True)
        q, k, v = (torch.cat(parts, dim=2) for parts in projected)  # (B, heads, S, E)
        attended = self.media.attention.attend((q, k, v), mask, rotary)
        return torch.cat([block.finish(x[:, part], attended[:, part]) for block, part in streams], dim=1)


class Transformer(nn.Module):
    """`depth` blocks and a final LayerNorm.

    recompute: in training, what a block has computed is not kept but computed again on the way back (activation
    checkpointing), which takes a third more time and a fraction of the memory."""

    recompute = False

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        dropout: float,
        streams: Streams = "one",
        qk_norm: bool = True,
    ) -> None:
        super().__init__()
        block = Block if streams == "one" else TwoStreamBlock
        self.blocks = nn.ModuleList(block(width, heads, mlp_ratio, dropout, qk_norm) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.apply(xavier_init)

    def forward(self, x: Tensor, condition_length: int, valid: Tensor | None, rotary: Rotary | None) -> Tensor:
        """x (B, S, D), condition first -> (B, S, D). valid: bool, True where attended to, (B, S) or (B, S, S) of what
        each attends to; None for all."""
        mask = None if valid is None else valid[:, None] if valid.dim() == 3 else valid[:, None, None]
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, condition_length, mask, rotary, use_reentrant=False)
            else:
                x = block(x, condition_length, mask, rotary)
        return self.norm(x)


def xavier_init(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for linear layers, as in MAE, MAR and D-JEPA."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
