"""Data feedback without training: ten million captions in shards, read and thinned on one core; the counts before and
after, memory on the way, the same after kills, and how sampled sizes are counted beside what is wanted of them.

python benchmarks/feedback.py [captions]  (Linux)
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from djepa_mm.data.corpus import Cursor
from djepa_mm.data.feedback import Feedback, measures, merged
from djepa_mm.data.sizes import SizesConfig, drawn_size
from djepa_mm.data.sources.shards import Shards, ShardsConfig
from djepa_mm.data.statistics import size_shares
from djepa_mm.data.streams import Place, Reader, StreamCorpus
from djepa_mm.recipe.load import load_recipe
from djepa_mm.recipe.schema import BatchConfig, FeedbackConfig
from djepa_mm.types import Entry, Item, Sample

SHARDS, ITEMS, READERS, BATCH = 10, 10_000, 8, 256  # shards that are written; the rest are links to them
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SHAPES = ("circle", "square", "triangle", "cross", "ring")
WANTED = FeedbackConfig(wanted={"colours": "uniform", "shapes": "uniform"})
KILLS, KILLED = 3, 40_000  # items that the runs that are killed read


def captions(count: int, seed: int) -> list[str]:
    """Of one or two coloured shapes; colours and shapes are rarer in their order, by Zipf's law."""
    rng = np.random.default_rng(seed)
    drawn = []
    for names in (COLOURS, SHAPES):
        weights = 1 / np.arange(1, len(names) + 1)
        drawn.append(rng.choice(names, (count, 2), p=weights / weights.sum()))
    relations = rng.choice(["", "", "left of", "right of", "above", "below"], count)
    return [
        f"a {c[0]} {s[0]}" + (f" {where} a {c[1]} {s[1]}" if where else "")
        for c, s, where in zip(*drawn, relations, strict=True)
    ]


def make(folder: Path, count: int) -> None:
    for shard in range(min(SHARDS, count // ITEMS)):
        first = folder / f"{shard:05d}.tar"
        with tarfile.open(first, "w") as out:
            for n, text in enumerate(captions(ITEMS, shard)):
                info = tarfile.TarInfo(f"{n:05d}.txt")
                info.size = len(text)
                out.addfile(info, io.BytesIO(text.encode()))
        for copy in range(shard + SHARDS, count // ITEMS, SHARDS):
            os.link(first, folder / f"{copy:05d}.tar")


class Captions(Shards):
    """Shards of captions alone: their media are one grey token."""

    GREY = torch.zeros(1, 4, 4)

    def decode(self, sample: Sample) -> Item:
        return Item(entry=self.entry(sample), media=self.GREY)


def source(folder: Path, readers: int = READERS) -> Captions:
    return Captions(ShardsConfig(source="shards", urls=str(folder), media="picture", channels=1, readers=readers))


def resident() -> float:
    """MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


# --- ten million


def through(folder: Path, count: int) -> None:
    """What a reader does with its items until one is decoded: on to the next, its caption, to take it or not."""
    corpus, feedback, memory = source(folder, readers=1), Feedback(WANTED), []
    began, worked, taken = time.monotonic(), time.process_time(), 0
    for number, (one, _) in enumerate(islice(Reader(corpus, 0).taken(Place()), count), start=1):
        attributes = feedback.attributes(corpus.entry(one.sample))
        accepted = feedback.accepts(attributes, one.sample.name, one.epoch)
        feedback.observe(attributes, taken=accepted)
        taken += accepted
        if number % (count // 20) == 0:
            memory.append(resident())
            print(f"{number:,} captions: {memory[-1]:.0f} MB", file=sys.stderr, flush=True)
    seconds, cpu = time.monotonic() - began, time.process_time() - worked
    print(
        f"{count:,} captions, {taken:,} of them taken: {count / seconds:,.0f} a second, {count / cpu:,.0f} a second of "
        f"work; memory {memory[0]:.0f} to {memory[-1]:.0f} MB, {max(memory):.0f} at most"
    )


def steered(count: int = 200_000) -> None:
    """What thinning does to what captions say, the captions alone."""
    texts = captions(count, seed=0)
    found = {visits: Feedback(WANTED.model_copy(update={"visits": visits})) for visits in (2, 4, 10)}
    taken = dict.fromkeys(found, 0)
    for visits, feedback in found.items():
        for number, text in enumerate(texts):
            attributes = feedback.attributes(Entry(name=str(number), text=text))
            accepted = feedback.accepts(attributes, str(number), 0)
            feedback.observe(attributes, taken=accepted)
            taken[visits] += accepted
    print("| attribute | wanted | before | " + " | ".join(f"visits {visits}" for visits in found) + " |")
    print("|---|" + "---|" * (2 + len(found)))
    for kind, names in (("colours", COLOURS), ("shapes", SHAPES)):
        rows = [found[2].offered, *(feedback.sampled for feedback in found.values())]
        totals = [sum(n for name, n in counts.items() if name.startswith(kind)) for counts in rows]
        for name in (f"{kind}/{one}" for one in names):
            shares = [counts[name] / total for counts, total in zip(rows, totals, strict=True)]
            cells = " | ".join(f"{share:.3f}" for share in (found[2].shares(kind)[name], *shares))
            print(f"| {name} | {cells} |")
    print("| items taken | | 1.000 | " + " | ".join(f"{n / count:.3f}" for n in taken.values()) + " |")


# --- kills


def follow(folder: Path, out: Path, items: int) -> None:
    """In a process of its own: read on from what `out` says, and write there where it stands and what was taken."""
    lines = out.read_text().splitlines() if out.exists() else []
    start = Cursor(**json.loads(lines[-1])["cursor"]) if lines else Cursor()
    recipe = load_recipe("digits", {"condition": {"kind": "none"}, "sample.guidance": 1.0})
    tokenizer = recipe.tokenizer.model_copy(update={"size": (4, 4), "patch": 4}).build()
    taken: list[str] = []

    class Noting(Captions):
        def decode(self, sample: Sample) -> Item:
            taken.append(sample.name)
            return super().decode(sample)

    corpus = Noting(source(folder).config)
    kind, batch = recipe.condition.build(), BatchConfig(size=BATCH)
    found = StreamCorpus(corpus, tokenizer, kind, batch, feedback=WANTED)
    with out.open("a") as log:
        for _, cursor in found.batches(start):
            log.write(json.dumps({"cursor": cursor.state(), "taken": taken}) + "\n")
            log.flush()
            taken.clear()
            if cursor.batch * BATCH >= items:
                return


def kills(folder: Path) -> None:
    whole, killed = folder.parent / "whole.jsonl", folder.parent / "killed.jsonl"
    command = [sys.executable, __file__, "follow", str(folder)]
    subprocess.run([*command, str(whole), str(KILLED)], check=True)
    for n in range(KILLS):
        process = subprocess.Popen([*command, str(killed), str(KILLED)])
        while not killed.exists() or killed.read_bytes().count(b"\n") < 30 * (n + 1):
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
        rows = killed.read_bytes().splitlines(keepends=True)
        killed.write_bytes(b"".join(row for row in rows if row.endswith(b"\n")))  # none that is cut off
    subprocess.run([*command, str(killed), str(KILLED)], check=True)
    same = whole.read_bytes() == killed.read_bytes()
    counted = merged(json.loads(whole.read_text().splitlines()[-1])["cursor"]["feedback"])
    size = len(json.dumps(counted))
    print(f"killed {KILLS} times in {KILLED:,} items: the same items and statistics as without: {same}")
    print(f"statistics of all {READERS} readers together: {size:,} bytes of JSON")
    assert same


# --- sizes


def sizes(count: int = 100_000) -> None:
    """The paper's two phases, of pictures that are large enough, at four aspects and in multiples of 16."""
    rng = np.random.default_rng(0)
    for mean, std, low, high in ((512, 120, 256, 1024), (1024, 1000, 256, 4096)):
        one = SizesConfig(mean=mean, std=std, low=low, high=high)
        begin, end = ((edge - mean) / std for edge in (low, high))
        aspects = rng.choice([0.5, 0.75, 1.0, 1.78], count).tolist()
        shapes = [
            drawn_size(one, (round(16_384 / aspect**0.5), round(16_384 * aspect**0.5)), (16, 16), 1.0, chance)
            for aspect, chance in zip(aspects, rng.random(count).tolist(), strict=True)
        ]
        exact = stats.kstest(np.sqrt(np.prod(shapes, 1)), stats.truncnorm(begin, end, mean, std).cdf)
        feedback = Feedback(FeedbackConfig())
        for height, width in shapes:
            feedback.observe(measures((3, height, width)), taken=True)
        expected = size_shares([one], 1)
        far = max(abs(feedback.sampled.get(name, 0) / count - share) for name, share in expected.items())
        print(
            f"sizes of mean {mean}, deviation {std}: Kolmogorov-Smirnov {exact.statistic:.4f} from what is wanted; "
            f"{len(expected)} classes, at most {far:.4f} from their shares"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["follow"]:
        follow(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    else:
        asked = int(sys.argv[1]) if sys.argv[1:] else 10_000_000
        sizes()
        steered()
        with tempfile.TemporaryDirectory() as place:
            shards = Path(place) / "shards"
            shards.mkdir()
            make(shards, asked)
            kills(shards)
            through(shards, asked)
