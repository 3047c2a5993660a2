"""Sampling in bf16 with weights cast once, beside weights that autocast casts for every product, in one run.

    python benchmarks/sampling_casts.py

A model of width 384, 6 + 6 blocks and a head of 3 × 512 on 64 tokens of 16 channels; T = 16, 25 steps of the head,
guidance 3, a batch of 16. The two ways in turn, --repeats times each after one to warm up: medians, their ratio, and
whether they give the same to the bit. On a processor without bf16 both are very slow, and the package takes fp32 there,
which is the third row; the two are run there with --slow alone, best of --batch 1.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from djepa_mm.conditions.label import ClassEmbedder, class_condition
from djepa_mm.core import DJEPA, Positions, Sampler, Size
from djepa_mm.core.heads.flow import FlowHead
from djepa_mm.precision import cast_linears, fast_bf16
from djepa_mm.types import MediaSpec

SIDE = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--slow", action="store_true", help="bf16 also where the processor is slow at it")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = DJEPA(
        token_dim=16,
        size=Size(width=384, depth=6, heads=6),
        positions=Positions(grid=(1, SIDE, SIDE)),
        embedder=ClassEmbedder(10, 384, 8),
        head=FlowHead(token_dim=16, feature_width=384, width=512, blocks=3, solver_steps=25),
    )
    for parameter in model.averaged.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    sampler = Sampler(ar_steps=16, guidance=3.0)
    positions = MediaSpec(grid=(1, SIDE, SIDE), shape=(16, SIDE, SIDE)).positions().expand(args.batch, -1, -1)

    def sample() -> Tensor:
        return sampler(
            model,
            positions=positions,
            valid=torch.ones(args.batch, SIDE**2, dtype=torch.bool),
            condition=class_condition([n % 10 for n in range(args.batch)]),
            generators=[torch.Generator().manual_seed(n) for n in range(args.batch)],
        )

    def in_bf16(once: bool) -> Tensor:
        casts = cast_linears(model.averaged, torch.bfloat16) if once else nullcontext()
        with casts, torch.autocast("cpu", torch.bfloat16):
            return sample()

    ways: dict[str, Callable[[], Tensor]] = {"bf16, cast each time": lambda: in_bf16(False)}
    ways |= {"bf16, cast once": lambda: in_bf16(True), "fp32": sample}
    if not fast_bf16(torch.device("cpu")) and not args.slow:
        ways = {"fp32": sample}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results: dict[str, Tensor] = {}
    for _ in range(1 + args.repeats):
        for name, way in ways.items():
            began = time.perf_counter()
            results[name] = way()
            seconds[name].append(time.perf_counter() - began)
    table = Table("way", "median, s", "ratio", title=f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    plain = median(next(iter(seconds.values()))[1:])
    for name, values in seconds.items():
        table.add_row(name, f"{median(values[1:]):.3f}", f"{median(values[1:]) / plain:.3f}")
    Console().print(table)
    if len(ways) == 1:
        Console().print("this processor is slow at bf16, so the package samples in fp32")
    else:
        once, each = results["bf16, cast once"], results["bf16, cast each time"]
        Console().print(f"to the bit the same: {torch.equal(once, each)}")


if __name__ == "__main__":
    main()
