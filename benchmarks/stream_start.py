"""Ten million items in shards: how soon the first batch is there, in how much memory reading goes on, and whether it
goes on with the next item after a kill. And how fast pictures of 256x256 come out of shards, beside webdataset alone.

python benchmarks/stream_start.py [rates]  (Linux)
"""

from __future__ import annotations

import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

SHARDS, NAMES, ITEMS = 10, 1000, 10_000
READ, WARM = 200_000, 20_000  # items; memory is compared from the latter on
BATCH, READERS = 64, 8
PICTURES, ROUNDS = 512, 9


def write(path: Path, items: Any) -> None:
    with tarfile.open(path, "w") as shard:
        for name, content in items:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, quality=90)
    return out.getvalue()


def make(folder: Path) -> None:
    small = [encoded(np.full((8, 8), n, np.uint8), "PNG") for n in range(256)]
    for shard in range(SHARDS):
        first = folder / f"{shard:04d}.tar"
        pairs = ((n, small[(n + shard) % 256]) for n in range(ITEMS))
        write(first, (pair for n, png in pairs for pair in ((f"{n:05d}.png", png), (f"{n:05d}.cls", b"%d" % (n % 10)))))
        for copy in range(shard + SHARDS, NAMES, SHARDS):
            os.link(first, folder / f"{copy:04d}.tar")


def corpus(folder: Path, media: dict[str, Any], size: int = BATCH) -> Any:
    from djepa_mm.data.streams import open_corpus
    from djepa_mm.recipe.load import load_recipe

    data = {"source": "shards", "urls": str(folder), "media": "picture", "readers": READERS, **media}
    batch = {"size": size, "cache": False}
    recipe = load_recipe("digits", {"data": {**data, "classes": list("0123456789")}, "batch": batch})
    source, condition = recipe.data.build(), recipe.condition.build()
    condition.bind(source)
    return open_corpus(source, recipe.tokenizer.build(), condition, recipe.batch)


def resident() -> float:
    """MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def follow(folder: Path, out: Path, shuffle: int, items: int) -> None:
    """In a process of its own: read on from what `out` says, and write there where it stands and what it read."""
    import djepa_mm.data.streams as streams
    import djepa_mm.training.djepa  # noqa: F401  # what a training imports
    from djepa_mm.data.corpus import Cursor

    began, worked = time.monotonic(), time.process_time()
    lines = out.read_text().splitlines() if out.exists() else []
    last = json.loads(lines[-1]) if lines else {"cursor": {}}
    found = corpus(folder, {"size": [8, 8], "channels": 1, "shuffle": shuffle})
    taken: list[tuple[int, int, int]] = []
    row = streams._Reading._row

    def noted(self: Any, one: Any, source: Any) -> Any:
        taken.append((one.epoch, one.shard, one.item))
        return row(self, one, source)

    streams._Reading._row = noted  # type: ignore[method-assign]
    with out.open("a") as log:
        for number, (_, cursor) in enumerate(found.batches(Cursor(**last["cursor"]))):
            if number == 0:
                first, cpu = time.monotonic() - began, time.process_time() - worked
            line = {"cursor": {"epoch": cursor.epoch, "batch": cursor.batch, "readers": cursor.readers}}
            line |= {"taken": list(taken), "first_s": first, "first_cpu_s": cpu, "mb": resident()}
            log.write(json.dumps(line) + "\n")
            log.flush()
            taken.clear()
            if (number + 1) * BATCH >= items:
                return


def ten_million(folder: Path, shuffle: int) -> None:
    out = folder.parent / f"log-{shuffle}"
    command = [sys.executable, __file__, "follow", str(folder)]
    subprocess.run([*command, str(out), str(shuffle), str(READ)], check=True)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    memory = [line["mb"] for line in lines[WARM // BATCH :]]
    print(
        f"shuffle {shuffle}: first batch after {lines[0]['first_s']:.2f} s "
        f"({lines[0]['first_cpu_s']:.2f} s of work); over {READ:,} items memory between "
        f"{min(memory):.0f} and {max(memory):.0f} MB, {max(memory) / memory[0] - 1:+.1%} at most",
        flush=True,
    )
    whole = [tuple(one) for line in lines for one in line["taken"]]
    assert len(set(whole)) == len(whole)
    killed = folder.parent / f"killed-{shuffle}"
    for _ in range(3):
        process = subprocess.Popen([*command, str(killed), str(shuffle), str(READ)])
        before = killed.read_bytes().count(b"\n") if killed.exists() else 0
        while not killed.exists() or killed.read_bytes().count(b"\n") < before + 30:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        rows = killed.read_bytes().splitlines(keepends=True)
        killed.write_bytes(b"".join(one for one in rows if one.endswith(b"\n")))  # none that is cut off
    found = [tuple(one) for line in killed.read_text().splitlines() for one in json.loads(line)["taken"]]
    same = found == whole[: len(found)]
    print(f"shuffle {shuffle}: killed 3 times in {len(found):,} items; the same items as without: {same}", flush=True)
    assert same


def rates(folder: Path) -> None:
    """Items a second to tensors, in turn."""
    import webdataset

    from djepa_mm.data.sources.image_folder import to_media
    from djepa_mm.data.sources.shards import ShardsConfig
    from djepa_mm.data.streams import Place, Reader

    rng = np.random.default_rng(0)
    for shard in range(8):
        noise = (rng.integers(0, 255, (32, 32, 3), np.uint8) for _ in range(PICTURES // 8))
        large = (np.asarray(Image.fromarray(one).resize((256, 256), Image.Resampling.BICUBIC)) for one in noise)
        write(folder / f"{shard}.tar", ((f"{n:05d}.jpg", encoded(one, "JPEG")) for n, one in enumerate(large)))
    urls = sorted(str(path) for path in folder.glob("*.tar"))

    def alone() -> int:
        def decoded(sample: Any) -> torch.Tensor:
            return to_media(Image.open(io.BytesIO(sample["jpg"])), (256, 256), 3)

        stream = webdataset.WebDataset(urls, shardshuffle=False).shuffle(256).map(decoded)
        return sum(1 for _ in stream)

    def ours() -> int:
        source = ShardsConfig(source="shards", urls=str(folder), media="picture", size=(256, 256), readers=8).build()
        readers = [Reader(source, number).epoch(Place()) for number in range(8)]
        return sum(
            1 for turn in zip(*readers, strict=False) for taken, _ in turn if source.decode(taken.sample) is not None
        )

    figures: dict[str, list[float]] = {"webdataset alone": [], "ours": []}
    for _ in range(ROUNDS):
        for name, read in (("webdataset alone", alone), ("ours", ours)):
            began = time.perf_counter()
            figures[name].append(read() / (time.perf_counter() - began))
    for name, found in figures.items():
        print(f"{name}: {statistics.median(found):.0f} pictures a second ({min(found):.0f} to {max(found):.0f})")
    ratio = statistics.median(b / a for a, b in zip(*figures.values(), strict=True))
    print(f"ours / webdataset alone: {ratio:.3f}, median of {ROUNDS}", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["follow"]:
        follow(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
        return
    with tempfile.TemporaryDirectory() as place:
        (pictures := Path(place) / "pictures").mkdir()
        rates(pictures)
        if sys.argv[1:2] == ["rates"]:
            return
        (small := Path(place) / "small").mkdir()
        make(small)
        print(f"{NAMES * ITEMS:,} items under {NAMES:,} names", flush=True)
        for shuffle in (256, 0):
            ten_million(small, shuffle)


if __name__ == "__main__":
    main()
