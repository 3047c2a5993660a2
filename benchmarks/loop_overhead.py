"""What the loop costs: a step of `djepa-mm train` over the bare step of the same model.

    python benchmarks/loop_overhead.py
    python benchmarks/loop_overhead.py --recipe digits --set batch.size=64

The bare step has batches that lie ready, and does what no training can do without: draw, losses, gradients, their norm,
the optimiser, the averages. `train` reads the corpus, tokenizes it, keeps the log and the clock, and listens to signals
besides. Both run --steps steps by turns, --repeats times, in one process; figures are medians.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from itertools import islice
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

import djepa_mm
from djepa_mm.core.averaging import update_average
from djepa_mm.recipe.load import load_recipe
from djepa_mm.training.djepa import DJEPATask
from djepa_mm.training.task import autocast


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    fixed = [f"optim.steps={args.steps + 1}", "optim.minutes=null", "run.sample_every=null", "run.samples=1"]
    recipe = load_recipe(args.recipe, [*args.set, *fixed])
    bare, through = [], []
    for _ in range(args.repeats):
        bare.append(bare_step(recipe, args.steps))
        through.append(train_step(recipe))
    table = Table(
        "step", "median, ms", "ratio", title=f"{args.recipe}, {torch.get_num_threads()} threads, {platform.processor()}"
    )
    table.add_row("bare", f"{median(bare) * 1e3:.1f}", "1.000")
    ratios = [there / here for here, there in zip(bare, through, strict=True)]
    table.add_row("through train", f"{median(through) * 1e3:.1f}", f"{median(ratios):.3f}")
    Console().print(table)


def bare_step(recipe: djepa_mm.Recipe, steps: int) -> float:
    """Seconds a step."""
    task = DJEPATask(recipe, device=torch.device("cpu"))
    task.corpus.fit_tokenizer()
    batches = [portions[0].batch for portions, _ in islice(task.batches(task.state.cursor), steps + 1)]
    task.model.train()
    for n, batch in enumerate(batches):
        if n == 1:  # the first one warms up
            began = time.perf_counter()
        with autocast(recipe.optim, task.device):
            losses = task.model(batch, task.state.generator)
        task.online.zero_grad()
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(task.online.parameters(), recipe.optim.clip)
        for optimizer in task.state.optimizers:
            optimizer.step()
        update_average(task.model.averaged, task.online, 0.9)
    return (time.perf_counter() - began) / steps


def train_step(recipe: djepa_mm.Recipe) -> float:
    """Seconds a step, from the end of the first to the end of the last."""
    times = []

    class Clock(djepa_mm.Callback):
        def on_step(self, step: int, progress: float) -> None:
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        djepa_mm.train(recipe, Path(folder) / "run", device="cpu", progress=False, callbacks=[Clock()])
    return (times[-1] - times[0]) / (len(times) - 1)


if __name__ == "__main__":
    main()
