"""How soon a folder of very many files is ready to train on, and what a process that reads takes.

    python benchmarks/folder_start.py [--count 100000] [--own-size | --speech]

The folder is made of hard links to a few real files, 1,000 to a class. A start is a process that imports what it
needs, then makes the corpus; its seconds beyond the imports are shown, by the clock and of work (its processor time),
of the first start and of later ones, their medians; and of these the part that goes to the folder and its headers.
Memory: what the largest process that reads has for itself (its private pages) after an epoch of reading.
--own-size: pictures of their own size, whose headers must be known (`data.size: null`). --speech: recordings in
LJSpeech's layout, each with another text, read as characters; without their normalising, which is no matter of files.
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
import soundfile
from PIL import Image
from rich.console import Console
from rich.table import Table

START = """
import json, sys, time
import torch, torchaudio.functional, torchvision.transforms.functional
from torch.utils.data import DataLoader
from djepa_mm.data.corpus import Corpus
from djepa_mm.data.reading import Reading
from djepa_mm.recipe.load import load_recipe
name, overrides, read = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
recipe = load_recipe(name, overrides)
began, idle = time.perf_counter(), time.process_time()
source = recipe.data.build()
folder = time.process_time() - idle
tokenizer, condition = recipe.tokenizer.build(), recipe.condition.build()
condition.bind(source)
corpus = Corpus(source, tokenizer, condition, recipe.batch)
seconds, work = time.perf_counter() - began, time.process_time() - idle

def private(_):
    import os
    for line in open(f"/proc/{os.getpid()}/smaps_rollup"):
        if line.startswith("Private_Dirty"):
            return int(line.split()[1]) / 1024

most = 0
if read:
    read = min(read, len(source)) // 100 * 100
    rows = [[(n, 0) for n in range(start, start + 100)] for start in range(0, read, 100)]
    loader = DataLoader(Reading(source), batch_sampler=rows, num_workers=2, collate_fn=private)
    most = max(loader)
print(json.dumps({"items": len(source), "s": seconds, "work": work, "folder": folder, "private_mib": most}))
"""


SPEECH = ["condition.units=characters", "condition.normalize=none", "condition.characters=' 0123456789'"]
OWN_SIZE = ["data.size=null", "data.multiple_of=[8, 8]", "tokenizer.vary=true", "model.positions=rotary"]


def make_speech(folder: Path, count: int) -> None:
    draw = np.random.default_rng(0)
    kinds = []
    for n in range(20):
        path = folder.parent / f"{n}.wav"
        soundfile.write(path, draw.uniform(-0.1, 0.1, 22050 + 1000 * n), 22050)
        kinds.append(path)
    (folder / "wavs").mkdir(parents=True)
    with (folder / "metadata.csv").open("w", encoding="utf-8") as lines:
        for n in range(count):
            os.link(kinds[n % len(kinds)], folder / "wavs" / f"a-reader-{n:08}.wav")
            lines.write(f"a-reader-{n:08}|the text of {n}|{' '.join(f'{n:08}' * 8)}\n")


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
    parser.add_argument("--speech", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as there:
        folder = Path(there) / "corpus"
        (make_speech if args.speech else make)(folder, args.count)
        recipe, changes = ("ljspeech", SPEECH) if args.speech else ("pictures", OWN_SIZE if args.own_size else [])
        overrides = [f"data.root={folder}", "data.held_out=0", "batch.cache=false", *changes]
        environment = os.environ | {"XDG_CACHE_HOME": f"{there}/cache"}

        def start(read: int) -> dict[str, float]:
            command = [sys.executable, "-c", START, recipe, json.dumps(overrides), str(read)]
            done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
            return found

        first, *later = [start(0) for _ in range(1 + args.repeats)]
        read = start(20_000)
    usual = {what: statistics.median(one[what] for one in later) for what in first}
    table = Table(f"{first['items']:,} items", "by the clock", "of work", "of it, folder and headers")
    for name, one in (("first start", first), ("later ones", usual)):
        table.add_row(name, *(f"{one[what]:.2f} s" for what in ("s", "work", "folder")))
    Console().print(table)
    print(f"private memory of a process that reads: {read['private_mib']:.0f} MiB")


if __name__ == "__main__":
    main()
