"""How soon a folder of very many pictures is ready to train on, and what a process that reads takes.

    python benchmarks/folder_start.py [--count 100000] [--own-size]

The folder is made of hard links to a few real pictures, 1,000 to a class. A start is a process that imports what it
needs, then makes the corpus; its seconds beyond the imports are shown, of the first start and of later ones, their
median. Memory: what the largest process that reads has for itself (its private pages) after an epoch of reading.
--own-size: pictures of their own size, whose headers must be known (`data.size: null`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

START = """
import json, sys, time
import torch, torchvision.transforms.functional
from torch.utils.data import DataLoader
from djepa_mm.data.corpus import Corpus
from djepa_mm.data.reading import Reading
from djepa_mm.recipe.load import load_recipe
overrides, read = json.loads(sys.argv[1]), int(sys.argv[2])
recipe = load_recipe("pictures", overrides)
began = time.perf_counter()
source, tokenizer, condition = recipe.data.build(), recipe.tokenizer.build(), recipe.condition.build()
condition.bind(source)
corpus = Corpus(source, tokenizer, condition, recipe.batch)
seconds = time.perf_counter() - began

def private(_):
    import os
    for line in open(f"/proc/{os.getpid()}/smaps_rollup"):
        if line.startswith("Private_Dirty"):
            return int(line.split()[1]) / 1024

most = 0
if read:
    rows = [[(n, 0) for n in range(start, start + 100)] for start in range(0, read, 100)]
    loader = DataLoader(Reading(source), batch_sampler=rows, num_workers=2, collate_fn=private)
    most = max(loader)
print(json.dumps({"items": len(source), "seconds": seconds, "private_mib": most}))
"""


def make(folder: Path, count: int) -> None:
    draw = np.random.default_rng(0)
    kinds = []
    for n in range(20):
        path = folder.parent / f"{n}.png"
        Image.fromarray(draw.integers(0, 256, (32 + n, 32, 3), dtype=np.uint8)).save(path)
        kinds.append(path)
    for n in range(count):
        if n % 1000 == 0:
            (folder / f"class-{n // 1000:04}").mkdir(parents=True)
        os.link(kinds[n % len(kinds)], folder / f"class-{n // 1000:04}" / f"a-picture-of-something-{n:08}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--own-size", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as there:
        folder = Path(there) / "pictures"
        make(folder, args.count)
        overrides = [f"data.root={folder}", "data.held_out=0", "batch.cache=false"]
        if args.own_size:
            overrides += ["data.size=null", "data.multiple_of=[8, 8]", "tokenizer.vary=true", "model.positions=rotary"]
        environment = os.environ | {"XDG_CACHE_HOME": f"{there}/cache"}

        def start(read: int) -> dict[str, float]:
            command = [sys.executable, "-c", START, json.dumps(overrides), str(read)]
            done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
            return found

        first, *later = [start(0) for _ in range(1 + args.repeats)]
        read = start(min(args.count, 20_000))
    table = Table("pictures", "first start", "later ones", "private memory of a process that reads")
    median = statistics.median(one["seconds"] for one in later)
    table.add_row(
        f"{first['items']:,}", f"{first['seconds']:.2f} s", f"{median:.2f} s", f"{read['private_mib']:.0f} MiB"
    )
    Console().print(table)


if __name__ == "__main__":
    main()
