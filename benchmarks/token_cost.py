"""What tokens cost: time and memory of a training step and of sampling, over the number of tokens of a clip.

    python benchmarks/token_cost.py

The core of the clips recipe (width 256, 4 + 4 blocks) on random clips of 16 frames, cut into 256 to 4,096 tokens of one
size, 64 channels; a batch of one. Every size runs in a process of its own. Figures: the median time of --repeats
training steps (masking, losses, gradients, AdamW), of one step of sampling with guidance, and the most memory that the
process took, less what it held before the model was built. With --horizon, only so many tokens are predicted at once.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from djepa_mm.conditions.label import class_condition
from djepa_mm.core.masking import reveal_schedule
from djepa_mm.core.sampler import Sampler
from djepa_mm.core.types import TokenBatch
from djepa_mm.recipe.build import build_model
from djepa_mm.recipe.load import load_recipe

SIDES = {256: (32, 32), 512: (32, 64), 1024: (64, 64), 2048: (64, 128), 4096: (128, 128)}  # pixels, by tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="*", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--horizon", type=int)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--one", action="store_true", help="measure here, and print JSON")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.tokens[0], args.horizon, args.repeats)))
        return
    rows = []
    table = Table("tokens", "training step, ms", "µs a token", "sampling step, ms", "memory, MiB")
    for tokens in args.tokens:
        command = [sys.executable, __file__, "--one", "--tokens", str(tokens), "--repeats", str(args.repeats)]
        command += [] if args.horizon is None else ["--horizon", str(args.horizon)]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rows.append(row)
        table.add_row(
            f"{tokens:,}", f"{row['step_s'] * 1e3:.0f}", f"{row['step_s'] * 1e6 / tokens:.0f}",
            f"{row['sampling_s'] * 1e3:.0f}", f"{row['memory_mib']:.0f}",
        )  # fmt: skip
    Console().print(table)
    if args.out is not None:
        machine = {"machine": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
        args.out.write_text(json.dumps({**machine, "torch": torch.__version__, "rows": rows}, indent=2) + "\n")


def measure(tokens: int, horizon: int | None, repeats: int) -> dict[str, Any]:
    height, width = SIDES[tokens]
    recipe = load_recipe(
        "clips",
        [
            f"tokenizer.size=[{height},{width}]", "tokenizer.patch=[1,8,8]", "tokenizer.channels=1",
            "condition.classes=10", f"mask.horizon={'null' if horizon is None else horizon}",
        ],
    )  # fmt: skip
    tokenizer = recipe.tokenizer.build()
    spec = tokenizer.spec_for()
    assert spec.num_tokens == tokens
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    torch.manual_seed(0)
    model = build_model(recipe, tokenizer, recipe.condition.build()).train()
    optimizer = torch.optim.AdamW(model.online.parameters(), lr=1e-4, fused=True)
    generator = torch.Generator().manual_seed(0)
    batch = TokenBatch(
        tokens=torch.randn(1, tokens, tokenizer.token_dim),
        positions=spec.positions()[None],
        valid=torch.ones(1, tokens, dtype=torch.bool),
        condition=class_condition([3]),
    )
    steps, samplings = [], []
    for _ in range(2 + repeats):  # the first two warm up
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            total = model(batch, generator).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        model.update_average(0.99)
        steps.append(time.perf_counter() - began)
    sampler = Sampler(ar_steps=8, guidance=2.0, order="frames", schedule="linear", horizon=horizon)
    assert reveal_schedule(tokens, 8, "linear")[0] == tokens // 8
    for _ in range(2):
        began = time.perf_counter()
        sampler(model, positions=batch.positions, valid=batch.valid, condition=batch.condition, generators=[generator])
        samplings.append((time.perf_counter() - began) / 8)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "tokens": tokens,
        "step_s": median(steps[2:]),
        "sampling_s": min(samplings),
        "memory_mib": (most - before) / 1024,
    }


if __name__ == "__main__":
    main()
