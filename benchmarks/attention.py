"""Attention on a CPU: torch's fused kernel beside products of matrices, forward and gradient, over the length.

    python benchmarks/attention.py

As many tokens in every row, heads of 64, some keys masked. The two take turns; medians of --repeats, and of the ratio
in the same turn. `nn/attention.py` takes the plain one where short sequences need a gradient.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from djepa_mm.core.nn.attention import plain_attention

TOKENS, HEADS, WIDTH = 2048, 4, 64
WAYS: dict[str, Callable[..., Tensor]] = {"fused": F.scaled_dot_product_attention, "plain": plain_attention}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", nargs="*", type=int, default=[32, 64, 128, 256, 512, 1024, 2048])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    args = parser.parse_args()
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    table = Table("S", "fused, ms", "plain, ms", "fused / plain", title=f"{args.precision}, forward + gradient")
    for length in args.lengths:
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
        for turn in range(1 + args.repeats):
            for name, way in WAYS.items():
                taken = once(length, dtype, way)
                if turn:  # the first one warms up
                    times[name].append(taken)
        medians = [[1000 * median(part) for part in zip(*rows, strict=True)] for rows in times.values()]
        ratio = median(sum(a) / sum(b) for a, b in zip(times["fused"], times["plain"], strict=True))
        table.add_row(str(length), *(f"{there:.1f} + {back:.1f}" for there, back in medians), f"{ratio:.2f}")
    Console().print(table, f"{torch.get_num_threads()} threads, torch {torch.__version__}")


def once(length: int, dtype: torch.dtype, way: Callable[..., Tensor]) -> tuple[float, float]:
    """Seconds of a forward pass and of its gradient."""
    batch = TOKENS // length
    q, k, v = (torch.randn(batch, HEADS, length, WIDTH, dtype=dtype, requires_grad=True) for _ in range(3))
    mask = torch.ones(batch, 1, 1, length, dtype=torch.bool)
    mask[..., -length // 16 :] = False
    began = time.perf_counter()
    y = way(q, k, v, attn_mask=mask, dropout_p=0.0)
    half = time.perf_counter()
    y.backward(torch.ones_like(y))
    return half - began, time.perf_counter() - half


if __name__ == "__main__":
    main()
