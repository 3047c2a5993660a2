"""Self-attention with RMSNorm on the queries and keys of each head.

B batch, S sequence, D model width, A heads, E width of a head.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from djepa_mm.nn.positions import Rotary, rotate


class RMSNorm(nn.RMSNorm):
    """With its scale brought to the input's type, so that the fused kernel runs under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} does not divide into {heads} heads")
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = RMSNorm(width // heads, eps=1e-6)
        self.k_norm = RMSNorm(width // heads, eps=1e-6)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None, rotary: Rotary | None) -> Tensor:
        """x (B, S, D); mask (B, 1, 1, S) bool, True where attended to, None for everywhere -> (B, S, D)."""
        q, k, v = rearrange(self.qkv(x), "b s (three a e) -> three b a s e", three=3, a=self.heads)
        q, k = self.q_norm(q), self.k_norm(k)  # (B, A, S, E)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out(rearrange(y, "b a s e -> b s (a e)"))
