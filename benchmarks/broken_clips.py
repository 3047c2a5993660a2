"""Training on a folder of clips with broken ones among them: does it go on, name each, and keep its memory flat?

    python benchmarks/broken_clips.py FOLDER

FOLDER holds class folders of videos. A copy of it gets, in every class folder: a video cut short, a text named .mp4, a
clip of one frame, an empty file, a clip of odd sizes (which is fine) and one of 20,000×16 pixels. The clips recipe then
trains on the copy, with a small model, while the memory of its process and of all that it started (the proportional
set, which counts shared pages once) is read at every log line. Memory's slope is a straight line's, fitted from step
100 on.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from djepa_mm.data.sources.clips import find_videos
from djepa_mm.media.clips import write_clip

SETTLED = 100  # steps after which memory should not grow
SMALL = ("model.width=128", "model.depth=2", "model.heads=2", "head.width=128", "head.blocks=2", "data.size=[32,32]",
         "tokenizer.size=[32,32]", "run.sample_every=null", "run.log_every=10", "sample.steps=8", "run.samples=2",
         "head.steps=4", "batch.size=4", "batch.max_broken_share=0.5")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--set", action="append", default=[], help="override of the recipe")
    parser.add_argument("--out", type=Path, default=Path("runs/broken-clips"))
    args = parser.parse_args()

    shutil.rmtree(args.out, ignore_errors=True)
    corpus = args.out / "corpus"
    shutil.copytree(args.folder, corpus)
    classes = sorted({file.parts[0] for file in find_videos(corpus, "FOLDER").files})
    bad = sorted(name for class_ in classes for name in poison(corpus / class_))
    print(f"{len(find_videos(corpus, 'FOLDER').files)} files, of which {len(bad)} are broken")
    overrides = [f"data.root={corpus}", f"optim.steps={args.steps}", *SMALL, *args.set]
    command = [sys.executable, "-m", "djepa_mm", "train", "clips", "--out", str(args.out / "run")]
    run = subprocess.Popen([*command, *(word for s in overrides for word in ("--set", s))])
    log, curve = args.out / "run" / "log.jsonl", []
    while run.poll() is None:
        lines = log.read_text().splitlines() if log.exists() else []
        if lines and (not curve or json.loads(lines[-1])["step"] > curve[-1][0]):
            curve.append((json.loads(lines[-1])["step"], memory_mib(run.pid)))
        time.sleep(0.2)
    report = json.loads((args.out / "run" / "report.json").read_text())
    named = sorted(report["reasons"])
    curve = [(step, mib) for step, mib in curve if mib]
    steps, mib = np.array([row for row in curve if row[0] >= SETTLED], dtype=float).T
    slope = float(np.polyfit(steps, mib, 1)[0]) * 100

    table = Table("file", "reason")
    for name, reason in report["reasons"].items():
        table.add_row(name, reason)
    console = Console(width=160)
    console.print(table)
    console.print(
        f"exit code {run.returncode}; the report names {len(named)} files, exactly the broken: {named == bad}"
    )
    console.print(
        f"memory at steps {[int(s) for s in steps[:: max(1, len(steps) // 8)]]}: "
        f"{[round(m) for m in mib[:: max(1, len(mib) // 8)]]} MiB; slope {slope:+.2f} MiB in 100 steps"
    )
    result = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__, "slope": slope,
              "curve": curve, "report": report, "exit_code": run.returncode}  # fmt: skip
    (args.out / "broken_clips.json").write_text(json.dumps(result, indent=2) + "\n")


def poison(folder: Path) -> list[str]:
    """Put broken clips into a class folder -> the names that a report should have for them."""
    whole = sorted(folder.glob("*.mp4"))[0].read_bytes()
    (folder / "x-cut-short.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "x-text.mp4").write_text("This is no video.\n" * 100)
    (folder / "x-empty.mp4").touch()
    write_clip(torch.zeros(3, 1, 32, 32), folder / "x-one-frame.mp4", 10)
    write_wide(folder / "x-wide.mp4")
    write_clip(torch.rand(3, 20, 34, 58), folder / "x-odd-sizes.mp4", 10)  # not broken
    return [f"{folder.name}/x-{name}.mp4" for name in ("cut-short", "text", "empty", "one-frame", "wide")]


def write_wide(path: Path) -> None:
    """20 frames of 20,000×16 pixels, which are too wide for H.264."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = 16, 20_000, "yuvj420p"
        for _ in range(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 20_000, 3), np.uint8), "rgb24")))
        container.mux(stream.encode())


def memory_mib(process: int) -> float:
    """Proportional set size of a process and its descendants; 0 where it has just ended."""
    total = 0
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
        children = Path(f"/proc/{process}/task").glob("*/children")
        others = [int(child) for path in children for child in path.read_text().split()]
    except OSError:
        return 0.0
    return total / 1024 + sum(memory_mib(child) for child in others)


if __name__ == "__main__":
    main()
