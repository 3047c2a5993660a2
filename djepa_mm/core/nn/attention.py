"""Self-attention, mostly with RMSNorm on the queries and keys of each head.

B batch, S sequence, D model width, A heads, E width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from djepa_mm.core.nn.positions import Rotary, rotate

Heads = tuple[Tensor, Tensor, Tensor]  # queries, keys and values
FUSED_FROM = 512  # S; below, the gradient of torch's fused bf16 attention is slow on CPUs (benchmarks/attention.py)


class RMSNorm(nn.RMSNorm):
    """With its scale brought to the input's type, so that the fused kernel runs under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """In two halves, `project` and `attend`, between which two sequences can be joined; the caller applies `out`."""

    def __init__(self, width: int, heads: int, dropout: float, qk_norm: bool = True) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} does not divide into {heads} heads")
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = RMSNorm(width // heads, eps=1e-6) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(width // heads, eps=1e-6) if qk_norm else nn.Identity()
        self.out = nn.Linear(width, width)

    def project(self, x: Tensor) -> Heads:
        """x (B, S, D) -> queries and keys, normed, and values: each (B, A, S, E)."""
        q, k, v = rearrange(self.qkv(x), "b s (three a e) -> three b a s e", three=3, a=self.heads)
        return self.q_norm(q), self.k_norm(k), v

    def attend(self, heads: Heads, mask: Tensor | None, rotary: Rotary | None) -> Tensor:
        """mask (B, 1, 1, S) bool, True where attended to, None for everywhere -> (B, S, D), before `out`."""
        q, k, v = heads
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        dropout = self.dropout if self.training else 0.0
        slow = q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad and q.shape[2] < FUSED_FROM
        attention = plain_attention if slow else F.scaled_dot_product_attention
        y = attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return rearrange(y, "b a s e -> b s (a e)")


def plain_attention(q: Tensor, k: Tensor, v: Tensor, *, attn_mask: Tensor | None, dropout_p: float) -> Tensor:
    """What `scaled_dot_product_attention` gives, from products of matrices: (B, A, S, E) each."""
    scores = (q * q.shape[-1] ** -0.5) @ k.mT  # (B, A, S, S)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    return F.dropout(scores.softmax(-1), dropout_p) @ v
