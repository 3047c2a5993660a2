"""Attention from products of matrices against torch's fused one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from djepa_mm.core.nn.attention import Attention, plain_attention


@pytest.mark.parametrize("masked", [False, True])
def test_plain_attention_gives_what_the_fused_one_gives(masked: bool) -> None:
    torch.manual_seed(0)
    heads = [torch.randn(2, 3, 7, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    mask = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    mask[1, ..., 4:] = False
    results = []
    for attention in (plain_attention, F.scaled_dot_product_attention):
        y = attention(*heads, attn_mask=mask if masked else None, dropout_p=0.0)
        results.append([y, *torch.autograd.grad(y.square().sum(), heads)])
    for plain, fused in zip(*results, strict=True):
        torch.testing.assert_close(plain, fused)


def test_training_in_bf16_gives_what_sampling_gives() -> None:
    """The first goes without the fused kernel on a CPU, the second takes it."""
    torch.manual_seed(0)
    attention = Attention(width=32, heads=2, dropout=0.0)
    x = torch.randn(2, 9, 32)
    mask = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    mask[0, ..., 6:] = False
    with torch.autocast("cpu", torch.bfloat16):
        trained = attention.attend(attention.project(x), mask, None)
        with torch.no_grad():
            sampled = attention.attend(attention.project(x), mask, None)
    assert trained.requires_grad
    assert not sampled.requires_grad
    torch.testing.assert_close(trained, sampled, atol=2e-2, rtol=2e-2)


def test_plain_attention_drops_out() -> None:
    torch.manual_seed(0)
    q, k = torch.zeros(2, 1, 1, 64, 4).unbind(0)
    v = torch.ones(1, 1, 64, 4)
    dropped = plain_attention(q, k, v, attn_mask=None, dropout_p=0.5)
    assert dropped.std() > 0.05
    assert abs(dropped.mean() - 1) < 0.1
