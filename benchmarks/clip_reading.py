"""How fast clips are read: this package's reader beside decord alone, on the same clips in the same run.

    python benchmarks/clip_reading.py FOLDER

FOLDER holds class folders of videos. Every way reads the same --frames frames in the middle of each clip, at the clip's
own size (nothing is resized), in turns, --repeats times; figures are medians of the clips a second, and of the ratio
to decord in the same turn. `decord` gives uint8 frames and nothing else; `decord, as floats` what a model takes,
(3, T, H, W) in [-1, 1]; `reader` the same through the process that a time limit can end. One thread, as in a process
that loads data; a clip is let go before the next one is read.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from djepa_mm.data.sources.clips import find_videos
from djepa_mm.data.video.reader import Header, VideoReader, Wanted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    import decord

    torch.set_num_threads(1)
    paths = [args.folder / file for file in find_videos(args.folder, "FOLDER").files]
    readers = {name: VideoReader(name, 60) for name in ("decord", "pyav")}  # type: ignore[arg-type]
    headers = {path: readers["decord"].header(path) for path in paths}
    wanted = [middle(path, headers[path], args.frames) for path in paths if headers[path].frames >= args.frames]

    def alone(one: Wanted) -> torch.Tensor:
        video = decord.VideoReader(str(one.path), ctx=decord.cpu(0), num_threads=1)
        return torch.from_numpy(video.get_batch(list(one.indices)).asnumpy())

    def as_floats(one: Wanted) -> torch.Tensor:
        frames = alone(one).permute(3, 0, 1, 2)
        return torch.empty(frames.shape).copy_(frames).div_(127.5).sub_(1)

    def ours(name: str) -> Iterator[torch.Tensor]:
        return (readers[name].frames(one, wanted[n + 1 :]) for n, one in enumerate(wanted))

    ways: dict[str, Callable[[], Iterator[torch.Tensor]]] = {
        "decord": lambda: map(alone, wanted),
        "decord, as floats": lambda: map(as_floats, wanted),
        "reader (decord)": lambda: ours("decord"),
        "reader (pyav)": lambda: ours("pyav"),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(1 + args.repeats):
        for name, way in ways.items():
            began = time.perf_counter()
            for _ in way():
                pass
            if turn:  # the first one warms up
                rates[name].append(len(wanted) / (time.perf_counter() - began))
    table = Table("way", "clips/s", "of decord", "of decord, as floats", title=f"{len(wanted)} clips, medians")
    rows = {}
    for name, found in rates.items():
        ratios = {
            base: median(a / b for a, b in zip(found, rates[base], strict=True))
            for base in ("decord", "decord, as floats")
        }
        rows[name] = {"clips_per_s": median(found), **ratios}
        table.add_row(name, f"{median(found):.1f}", *(f"{ratio:.2f}" for ratio in ratios.values()))
    Console().print(table)
    if args.out is not None:
        result = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__, "rows": rows}
        args.out.write_text(json.dumps(result, indent=2) + "\n")


def middle(path: Path, header: Header, frames: int) -> Wanted:
    first = (header.frames - frames) // 2
    indices = tuple(range(first, first + frames))
    return Wanted(path=path, header=header, indices=indices, size=(header.height, header.width))


if __name__ == "__main__":
    main()
