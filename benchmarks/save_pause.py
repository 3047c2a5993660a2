"""How long training stands still for a checkpoint, written beside it and at once.

    python benchmarks/save_pause.py [--repeats 7]

The recipe imagenet256-b's model at half its width, a fourth of its weights, with AdamW's moments. After each save 20
steps of plain products of matrices follow, as training would; what they take longer than without a save is counted as
standing still too. In turn, medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from djepa_mm.recipe.build import build_model
from djepa_mm.recipe.load import load_recipe
from djepa_mm.runs.checkpoint import save_checkpoint

STEPS = 20


def steps() -> float:
    """Seconds of what training would do."""
    matrix = torch.randn(1024, 1024)
    began = time.monotonic()
    for _ in range(STEPS):
        matrix = torch.nn.functional.normalize(matrix @ matrix)
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    changes = {"model.width": 384, "head.width": 512, "tokenizer": {"kind": "patches", "patch": 16, "size": [256, 256]}}
    recipe = load_recipe("imagenet256-b", {**changes, "condition": {"kind": "none"}, "sample.guidance": 1})
    model = build_model(recipe, recipe.tokenizer.build(), recipe.condition.build())
    online, averaged = model.online.state_dict(), model.averaged.state_dict()
    moments = {f"{name}.{key}": torch.rand_like(t) for name, t in online.items() for key in ("exp_avg", "exp_avg_sq")}
    tensors = {"averaged": averaged, "online": online, "training": moments}
    size = sum(t.numel() * t.element_size() for some in tensors.values() for t in some.values())
    figures: dict[str, list[float]] = {"at once": [], "beside": []}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as writer:
        steps()
        for n in range(repeats):
            for name, beside in (("at once", None), ("beside", writer)):
                alone, began = steps(), time.monotonic()
                written = save_checkpoint(Path(folder), "", {"step": n}, tensors, 1, beside)
                saved = time.monotonic() - began
                figures[name].append(saved + max(0.0, steps() - alone))
                written.result()
    table = Table("checkpoint", "training stands still", title=f"{size / 1e6:,.0f} MB")
    for name, found in figures.items():
        table.add_row(name, f"{statistics.median(found):.2f} s ({min(found):.2f} to {max(found):.2f})")
    ratio = statistics.median(b / a for a, b in zip(*figures.values(), strict=True))
    Console().print(table, f"beside / at once: {ratio:.2f}")


if __name__ == "__main__":
    main()
