"""Quality of generated digits over guidance: recognised share and Fréchet distance in pixel space.

    python benchmarks/digits_quality.py                         trains seeds 0, 1, 2 with prediction weight 1 and 0
    python benchmarks/digits_quality.py --runs runs/digits      measures runs that are there

For each run and guidance: 1,000 digits, 100 a class. Recognised: the share that a support-vector classifier, trained
on 80 % of the real digits, takes for the class asked for. Distance: Fréchet distance to all real digits, and its
ratio to what 1,000 real training digits give (mean of 20 draws).
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.svm import SVC

from djepa_mm.data.sources.digits import load_digits
from djepa_mm.evaluate.frechet import frechet_distance
from djepa_mm.generation.pipeline import Pipeline, with_sampling

COUNT = 100  # a class


def pixels(media: torch.Tensor) -> torch.Tensor:
    """Media (n, 1, 8, 8) in [-1, 1], as a PNG would keep them -> (n, 64) in [0, 16], the corpus' own scale."""
    return ((media + 1) / 2 * 255).round().flatten(1) / 255 * 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="*", type=Path, help="measure these instead of training")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--guidance", type=float, nargs="*", default=[1.0, 1.25, 1.5, 2.0, 3.0])
    parser.add_argument("--set", action="append", default=[], help="override of the recipe, for training")
    parser.add_argument("--sample", action="append", default=[], help="override of the recipe, for sampling")
    parser.add_argument("--out", type=Path, default=Path("runs/digits-quality"))
    args = parser.parse_args()

    runs = args.runs or [train(args.out, seed, weight, args.set) for seed in args.seeds for weight in (1, 0)]
    (train_x, train_y), (test_x, test_y), (all_x, _) = (load_digits(split) for split in ("train", "test", "all"))
    judge = SVC(gamma=0.001, C=10).fit(pixels(train_x).numpy(), train_y)
    score = judge.score(pixels(test_x).numpy(), test_y)
    rng = np.random.default_rng(0)
    draws = [rng.choice(len(train_x), 10 * COUNT, replace=False) for _ in range(20)]
    real = float(np.mean([frechet_distance(pixels(train_x[d]), pixels(all_x)) for d in draws]))
    console = Console(width=120)
    console.print(
        f"classifier on held-out real digits: {score:.2%}; distance of 1,000 real training digits: {real:.2f}"
    )

    table = Table("run", "prediction", "guidance", "recognised", "distance", "ratio", "seconds")
    rows = []
    for run in runs:
        pipeline = Pipeline.load(run, args.sample)
        for guidance in args.guidance:
            requests = pipeline.requests(count=COUNT, seed=1)
            began = time.perf_counter()
            media = pipeline(requests, sampler=with_sampling(pipeline.sampler, guidance=guidance), batch_size=500)
            seconds = time.perf_counter() - began
            x = pixels(torch.stack(media))
            wanted = [int(request.condition["class"]) for request in requests]
            right = float(np.mean(judge.predict(x.numpy()) == wanted))
            distance = frechet_distance(x, pixels(all_x))
            weight = pipeline.recipe.loss.prediction
            rows.append({"run": run.name, "prediction": weight, "guidance": guidance, "recognised": right,
                         "distance": distance, "ratio": distance / real, "seconds": seconds})  # fmt: skip
            table.add_row(run.name, f"{weight:g}", f"{guidance:g}", f"{right:.1%}", f"{distance:.2f}",
                          f"{distance / real:.2f}", f"{seconds:.0f}")  # fmt: skip
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    console.print(table)
    args.out.mkdir(parents=True, exist_ok=True)
    result = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__,
              "classifier": score, "real": real, "rows": rows}  # fmt: skip
    (args.out / "digits_quality.json").write_text(json.dumps(result, indent=2) + "\n")


def train(out: Path, seed: int, weight: float, overrides: list[str]) -> Path:
    run = out / f"prediction-{weight}-seed-{seed}"
    if not (run / "checkpoints").exists():
        # equal steps for both weights, so no limit on minutes; all digits, which the distances are to
        sets = [f"run.seed={seed}", f"loss.prediction={weight}", "optim.minutes=null", "data.split=all", *overrides]
        command = [sys.executable, "-m", "djepa_mm", "train", "digits", "--out", str(run)]
        subprocess.run([*command, *(word for s in sets for word in ("--set", s))], check=True)
    return run


if __name__ == "__main__":
    main()
