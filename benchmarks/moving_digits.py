"""Moving digits: are the generated ones the digits asked for, and do they move in straight lines between the walls?

    python benchmarks/moving_digits.py --runs runs/moving-digits        measures runs that are there
    python benchmarks/moving_digits.py --minutes 5                      trains the ways below at equal time first

For each run: --count generated clips, the classes in turn. Recognised: the share of frames in which a classifier,
trained on real frames, sees the digit that was asked for; its share of real held-out frames stands beside it. Path: the
length of the second difference of the ink's centre of mass, in pixels, its median over frames and clips; 0 would be
straight. Prediction: 4 frames of 100 held-out clips are given and 12 predicted; PSNR of these, beside that of repeating
the fourth. In-between: the first and the last frames (a token's worth) of 20 held-out clips are given; the greatest
difference that the given frames come back with.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from djepa_mm.data.sources.moving_digits import centres_of_mass
from djepa_mm.evaluate.features import train_classifier
from djepa_mm.evaluate.visual import first_frames, predict, read_items, spread
from djepa_mm.generation.edit import given_frames, run_edits
from djepa_mm.generation.pipeline import Pipeline
from djepa_mm.generation.request import Request
from djepa_mm.media.sheet import sheet
from djepa_mm.weights import checkpoints, read_state

FAINT = 0.1  # ink below this is taken for noise, in generated clips and in real ones
WHOLE = ("mask.horizon=null", "mask.start=0")  # all that is masked
RANDOM = (*WHOLE, "mask.orders=[random]", "sample.order=random", "sample.schedule=cosine")
WAYS = {  # what is cut, in which order it is revealed, and how much of it is predicted at once
    "frames, 4×8×8, next four frames": (),
    "frames, 2×8×8, next two frames": ("tokenizer.patch=[2,8,8]", "mask.low=0.05"),
    "frames, 1×8×8, next frame": ("tokenizer.patch=[1,8,8]", "mask.low=0.03"),
    "frames, 4×8×8, all": WHOLE,
    "random, 4×8×8, all": (*RANDOM, "mask.low=0.3"),
    "tubes, 4×8×8, all": (*WHOLE, "mask.orders=[tubes]", "sample.order=tubes"),
    "frames, 4×8×8, next four frames, velocity": ("head.predicts=velocity", "head.time_mean=0", "head.time_shift=1"),
    "frames, 4×8×8, next four frames, usual rotary": ("model.positions=rotary", "model.rotary_base=10000"),
    "frames, 4×8×8, next four frames, AdamW": ("optim.optimizer=adamw",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="*", type=Path, default=[], help="measure these instead of training")
    parser.add_argument("--minutes", type=float, default=5, help="of training, for each way")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--set", action="append", default=[], help="override of the recipe, for training")
    parser.add_argument("--sample", action="append", default=[], help="override of the recipe, for sampling")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--curve", action="store_true", help="the earlier checkpoints too, with a quarter of the clips")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/moving-digits-ways"))
    args = parser.parse_args()

    runs = args.runs or [train(args.out, way, args.minutes, args.set) for way in args.ways]
    pipeline = Pipeline.load(runs[0], args.sample)
    corpus, held_out = pipeline.recipe.data.build(), pipeline.recipe.data.build_held_out()
    real = list(read_items(pipeline, held_out, range(len(held_out))))
    learned = read_items(pipeline, corpus, spread(1000, len(corpus)))
    judge = train_classifier(learned, real, corpus.classes, seed=0)
    table = Table("run", "step", "minutes", "recognised", "path, px", "of real", "PSNR, dB", "gain, dB", "kept within",
                  "s a clip")  # fmt: skip
    console = Console(width=150)
    score = judge.accuracy([item.media for item in real], [item.entry.label for item in real])["frame_accuracy"]
    straight = bends([item.media for item in real])
    console.print(f"real held-out clips: {score:.1%} of frames recognised, path {straight:.3f} px")
    rows = []
    for run in runs:
        found = checkpoints(run / "checkpoints") if args.curve else []
        for checkpoint in [*found[:-1], run]:
            count = args.count if checkpoint == run else args.count // 4
            pipeline = Pipeline.load(checkpoint, args.sample)
            state = read_state(checkpoint if checkpoint != run else checkpoints(run / "checkpoints")[-1])
            conditions = pipeline.condition.examples(count, ())  # the classes in turn
            requests = [Request(condition=one, seed=(args.seed, n)) for n, one in enumerate(conditions)]
            began = time.perf_counter()
            clips = [clip.clamp(-1, 1) for clip in pipeline(requests)]
            seconds = (time.perf_counter() - began) / count
            right = judge.accuracy(clips, [request.condition["class"] for request in requests])["frame_accuracy"]
            given = first_frames(pipeline, 4)
            assert given is not None
            prediction = predict(pipeline, real[: min(100, count)], given)
            row = {"run": run.name, "step": state["step"], "minutes": state["seconds"] / 60, "clips": count,
                   "recognised": right, "path": bends(clips), "path_of_real": bends(clips) / straight,
                   "given": given, "psnr_db": prediction["psnr_db"],
                   "gain_db": prediction["psnr_db"] - prediction["repeated_psnr_db"],
                   "kept_within": between(pipeline, [item.media for item in real[:20]]),
                   "seconds_per_clip": seconds}  # fmt: skip
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
            table.add_row(run.name, str(row["step"]), f"{row['minutes']:.1f}", f"{right:.1%}", f"{row['path']:.3f}",
                          f"{row['path_of_real']:.2f}", f"{row['psnr_db']:.2f}", f"{row['gain_db']:+.2f}",
                          f"{row['kept_within']:.0e}", f"{seconds:.2f}")  # fmt: skip
            if checkpoint == run:
                shown = [pipeline.tokenizer.media.preview(clip) for clip in clips[:20]]
                args.out.mkdir(parents=True, exist_ok=True)
                sheet(shown, columns=4).save(args.out / f"{run.name}.png")
    console.print(table)
    args.out.mkdir(parents=True, exist_ok=True)
    result = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__,
              "threads": torch.get_num_threads(), "real": {"recognised": score, "path": straight},
              "rows": rows}  # fmt: skip
    (args.out / "moving_digits.json").write_text(json.dumps(result, indent=2) + "\n")


def bends(clips: list[Tensor]) -> float:
    """Median length, in pixels, of the second difference of the ink's centre; clips (1, T, H, W) in [-1, 1]."""
    lengths = []
    for clip in clips:
        ink = (clip[0].double() + 1) / 2
        ink = ink * (ink > FAINT)
        lengths.append(centres_of_mass(ink).diff(n=2, dim=0).norm(dim=1))
    return float(torch.cat(lengths).nan_to_num(nan=torch.inf).median())  # a frame without ink has no centre


def between(pipeline: Pipeline, clips: list[Tensor]) -> float:
    """The greatest difference of the given frames from what they were, where first and last ones are given."""
    frames, condition = pipeline.tokenizer.span[0], pipeline.condition.usual_requests()[0]
    edits = [
        given_frames(
            pipeline, Request(condition=condition, seed=(7, n)), first=clip[:, :frames], last=clip[:, -frames:]
        )
        for n, clip in enumerate(clips)
    ]
    done = run_edits(pipeline, edits)
    both = [torch.cat([new - old for new, old in ((a[:, :frames], b[:, :frames]), (a[:, -frames:], b[:, -frames:]))])
            for a, b in zip(done, clips, strict=True)]  # fmt: skip
    return float(torch.stack(both).abs().max())


def train(out: Path, way: str, minutes: float, overrides: list[str]) -> Path:
    run = out / way.replace(" ", "-").replace(",", "").replace("×", "x")
    if not (run / "checkpoints").exists():
        sets = [f"optim.minutes={minutes}", "run.sample_every=null", *WAYS[way], *overrides]
        command = [sys.executable, "-m", "djepa_mm", "train", "moving-digits", "--out", str(run)]
        subprocess.run([*command, *(word for s in sets for word in ("--set", s))], check=True)
    return run


if __name__ == "__main__":
    main()
