"""Transformer blocks and the stack that the context encoder and the predictor are made of.

B batch, S sequence, D model width.
"""

from __future__ import annotations

from torch import Tensor, nn

from djepa_mm.nn.attention import Attention
from djepa_mm.nn.positions import Rotary


class Block(nn.Module):
    """Pre-LN ViT block with q/k norm: D-JEPA's class-conditional backbone."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.attention_norm = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, heads, dropout)
        self.mlp_norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width), nn.Dropout(dropout)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None, rotary: Rotary | None) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), mask, rotary))  # (B, S, D)
        return x + self.mlp(self.mlp_norm(x))


class Transformer(nn.Module):
    """`depth` blocks and a final LayerNorm."""

    def __init__(self, *, width: int, depth: int, heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.apply(xavier_init)

    def forward(self, x: Tensor, valid: Tensor | None, rotary: Rotary | None) -> Tensor:
        """x (B, S, D); valid (B, S) bool or None where nothing is padding -> (B, S, D)."""
        mask = None if valid is None else valid[:, None, None, :]
        for block in self.blocks:
            x = block(x, mask, rotary)
        return self.norm(x)


def xavier_init(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for linear layers, as in MAE, MAR and D-JEPA."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
