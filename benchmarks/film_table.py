"""Whether every frame of a film is read as itself: 300 frames that show their number, written in many ways.

    python benchmarks/film_table.py [FOLDER]

Each way is read in windows of 8 frames that follow one another, and in as many at random, by the reader with PyAV and
by the reader with decord. `by decord` counts those of the latter that decord itself read; for the rest it counts frames
in another way or cannot read them, and PyAV does. `decord alone` is decord asked for the same numbers and not checked.
Films stay in FOLDER where it is given.
"""

from __future__ import annotations

import argparse
import json
import re
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from djepa_mm.data.video import worker
from djepa_mm.data.video.reader import Header, VideoReader, Wanted, asked

FRAMES, WINDOW = 300, 8
SIZE = (64, 96)  # height and width
TENS, UNITS = 7, 24  # steps of grey


@dataclass(frozen=True, kw_only=True)
class Film:
    """A way to write the film."""

    codec: str
    suffix: str = ".mp4"
    rate: Fraction = Fraction(25)
    options: dict[str, str] = field(default_factory=dict)
    stamps: Callable[[int], int] = lambda n: n  # when frame n is shown, in 1 / rate
    after: Callable[[Path, Path], None] | None = None  # makes the film of one without it
    begins: int | None = 0  # the first frame that is seen; None where it is the first that can be decoded

    def write(self, path: Path) -> None:
        if self.after is None:
            return self._encode(path)
        whole = path.with_stem(f"{path.stem}-whole")
        self._encode(whole)
        self.after(whole, path)
        whole.unlink()

    def _encode(self, path: Path) -> None:
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream(self.codec, rate=self.rate, options=self.options)
            stream.height, stream.width = SIZE
            stream.pix_fmt = "yuvj420p" if self.codec == "mjpeg" else "yuv420p"
            stream.bit_rate = 0 if "crf" in self.options else 2_000_000
            stream.codec_context.thread_count = 1
            stream.codec_context.time_base = 1 / self.rate
            for number in range(FRAMES):
                frame = av.VideoFrame.from_ndarray(picture(number), "rgb24")
                frame.pts, frame.time_base = self.stamps(number), 1 / self.rate
                container.mux(stream.encode(frame))
            container.mux(stream.encode())


def picture(number: int) -> np.ndarray:
    """(H, W, 3): tens on the left, units on the right, both as grey."""
    pixels = np.empty((*SIZE, 3), np.uint8)
    pixels[:, : SIZE[1] // 2] = 20 + TENS * (number // 10)
    pixels[:, SIZE[1] // 2 :] = 20 + UNITS * (number % 10)
    return pixels


def number_of(pixels: np.ndarray) -> int:
    """Of a frame (H, W, 3). Upright, tens are on the left; where it was turned to stand, they are above."""
    height, width = pixels.shape[:2]
    halves = (pixels[:, : width // 2], pixels[:, width // 2 :])
    if height > width:
        halves = (pixels[: height // 2], pixels[height // 2 :])
    tens, units = (float(half[4:-4, 4:-4].mean()) - 20 for half in halves)
    return 10 * round(tens / TENS) + round(units / UNITS)


# --- what is done to a written film


def packets(path: Path) -> Iterator[tuple[Any, Any]]:
    """Packets, and the stream that they are of."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        for packet in container.demux(stream):
            if packet.size:
                yield packet, stream


def copied(first: int) -> Callable[[Path, Path], None]:
    """The film from its so manyth packet on, not decoded."""

    def copy(whole: Path, path: Path) -> None:
        with av.open(str(path), "w") as out:
            stream = None
            for number, (packet, origin) in enumerate(packets(whole)):
                stream = stream or out.add_stream_from_template(origin)
                if number >= first:
                    packet.stream = stream
                    out.mux(packet)

    return copy


def cut_amid(whole: Path, path: Path) -> None:
    """The last three quarters of its bytes."""
    data = whole.read_bytes()
    path.write_bytes(data[len(data) // 4 :])


def edit_list(first: int) -> Callable[[Path, Path], None]:
    """All of the film is there, but is shown from frame `first` on: as phones and editors cut without encoding."""

    def cut(whole: Path, path: Path) -> None:
        data = bytearray(whole.read_bytes())
        at = data.find(b"elst") + 4
        assert data[at] == 0
        assert struct.unpack_from(">I", data, at + 4) == (1,)
        duration, start = struct.unpack_from(">Ii", data, at + 8)
        (media,) = struct.unpack_from(">I", data, data.find(b"mdhd") + 16)
        (movie,) = struct.unpack_from(">I", data, data.find(b"mvhd") + 16)
        struct.pack_into(">Ii", data, at + 8, duration - first * movie // 25, start + first * media // 25)
        path.write_bytes(data)

    return cut


def turned(whole: Path, path: Path) -> None:
    """A quarter to the right, as a phone that is held upright says."""
    data = bytearray(whole.read_bytes())
    at = data.find(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, SIZE[0] << 16, 0, 1 << 30)
    path.write_bytes(data)


def held(number: int) -> int:
    """Variable rate: every third frame is shown three times as long."""
    return number + 2 * (number // 3)


X264 = {"crf": "12", "g": "48", "bf": "3", "sc_threshold": "0"}
OPEN = {**X264, "x264-params": "open-gop=1:keyint=24:scenecut=0"}
REFRESHED = {**X264, "bf": "0", "x264-params": "intra-refresh=1"}
X265 = {"crf": "10", "x265-params": "log-level=none:keyint=24:scenecut=0:pools=1"}
VP8 = {"auto-alt-ref": "1", "lag-in-frames": "16", "g": "60"}  # frames that are never shown have packets of their own
VP9 = {"crf": "10", "g": "60", "cpu-used": "5"}
AV1 = {"crf": "10", "preset": "9", "g": "60"}
MPEG4 = {"bf": "2", "g": "30", "sc_threshold": "1000000000"}
MPEG2 = {**MPEG4, "g": "15"}
NTSC, TWICE_NTSC = Fraction(30000, 1001), Fraction(60000, 1001)
FILMS: dict[str, Film] = {
    "H.264 mp4": Film(codec="libx264", options=X264),
    "H.264 mkv": Film(codec="libx264", suffix=".mkv", options=X264),
    "H.264 mov": Film(codec="libx264", suffix=".mov", options=X264),
    "H.264 ts": Film(codec="libx264", suffix=".ts", options=X264),
    "H.264 avi": Film(codec="libx264", suffix=".avi", options=X264),
    "H.264 mp4, open groups": Film(codec="libx264", options=OPEN),
    "H.264 mp4, refreshed bit by bit": Film(codec="libx264", options=REFRESHED),
    "H.264 ts, refreshed bit by bit": Film(codec="libx264", suffix=".ts", options=REFRESHED),
    "H.264 mp4, interlaced": Film(codec="libx264", options={**X264, "x264-params": "interlaced=1"}),
    "HEVC mp4": Film(codec="libx265", options=X265),
    "HEVC mkv": Film(codec="libx265", suffix=".mkv", options=X265),
    "HEVC ts": Film(codec="libx265", suffix=".ts", options=X265),
    "VP8 webm": Film(codec="libvpx", suffix=".webm", options=VP8),
    "VP9 webm": Film(codec="libvpx-vp9", suffix=".webm", options=VP9),
    "VP9 mp4": Film(codec="libvpx-vp9", options=VP9),
    "AV1 mp4": Film(codec="libsvtav1", options=AV1),
    "AV1 mkv": Film(codec="libsvtav1", suffix=".mkv", options=AV1),
    "MPEG-4 avi": Film(codec="mpeg4", suffix=".avi", options=MPEG4),
    "MPEG-4 avi, no B-frames": Film(codec="mpeg4", suffix=".avi", options={**MPEG4, "bf": "0"}),
    "MPEG-4 mp4": Film(codec="mpeg4", options=MPEG4),
    "MPEG-4 mkv": Film(codec="mpeg4", suffix=".mkv", options=MPEG4),
    "MJPEG avi": Film(codec="mjpeg", suffix=".avi"),
    "MPEG-1 mpg": Film(codec="mpeg1video", suffix=".mpg", options=MPEG2),
    "MPEG-2 mpg": Film(codec="mpeg2video", suffix=".mpg", options=MPEG2),
    "MPEG-2 ts": Film(codec="mpeg2video", suffix=".ts", options=MPEG2),
    "H.264, edit list": Film(codec="libx264", options=X264, after=edit_list(31), begins=31),
    "HEVC, edit list": Film(codec="libx265", options=X265, after=edit_list(31), begins=31),
    "MPEG-4, edit list": Film(codec="mpeg4", options=MPEG4, after=edit_list(31), begins=31),
    "H.264 mp4, variable rate": Film(codec="libx264", options=X264, stamps=held),
    "H.264 mkv, variable rate": Film(codec="libx264", suffix=".mkv", options=X264, stamps=held),
    "H.264 mp4, turned": Film(codec="libx264", options=X264, after=turned),
    "H.264 mp4, 29.97 a second": Film(codec="libx264", options=X264, rate=NTSC),
    "H.264 mkv, 29.97 a second": Film(codec="libx264", suffix=".mkv", options=X264, rate=NTSC),
    "H.264 mp4, 59.94 a second": Film(codec="libx264", options=X264, rate=TWICE_NTSC),
    "H.264 ts, 59.94 a second": Film(codec="libx264", suffix=".ts", options=X264, rate=TWICE_NTSC),
    "MPEG-2 mpg, 59.94 a second": Film(codec="mpeg2video", suffix=".mpg", options=MPEG2, rate=TWICE_NTSC),
    "H.264 mp4, copied from 48": Film(codec="libx264", options=X264, after=copied(48), begins=48),
    "H.264 mkv, copied from 48": Film(codec="libx264", suffix=".mkv", options=X264, after=copied(48), begins=48),
    "H.264 mp4, copied from 40": Film(codec="libx264", options=X264, after=copied(40), begins=None),
    "H.264 ts, copied from 40": Film(codec="libx264", suffix=".ts", options=X264, after=copied(40), begins=None),
    "H.264 mp4, open groups, copied from 69": Film(codec="libx264", options=OPEN, after=copied(69), begins=None),
    "HEVC mp4, copied from 40": Film(codec="libx265", options=X265, after=copied(40), begins=None),
    "HEVC mkv, copied from 40": Film(codec="libx265", suffix=".mkv", options=X265, after=copied(40), begins=None),
    "VP9 webm, copied from 60": Film(codec="libvpx-vp9", suffix=".webm", options=VP9, after=copied(60), begins=60),
    "MPEG-2 ts, copied from 40": Film(codec="mpeg2video", suffix=".ts", options=MPEG2, after=copied(40), begins=None),
    "MPEG-2 mpg, cut amid it": Film(codec="mpeg2video", suffix=".mpg", options=MPEG2, after=cut_amid, begins=None),
    "MPEG-4 avi, copied from 58": Film(codec="mpeg4", suffix=".avi", options=MPEG4, after=copied(58), begins=60),
    "MPEG-4 mp4, copied from 58": Film(codec="mpeg4", options=MPEG4, after=copied(58), begins=60),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--only", default="", help="part of a way's name")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    av.logging.set_level(av.logging.PANIC)
    columns = ("file's count", "frames", "pyav", "decord", "by decord", "decord alone")
    table = Table("way", *columns, title=f"windows of {WINDOW} frames that are right")
    rows = {}
    with tempfile.TemporaryDirectory() as there:
        folder = args.folder or Path(there)
        folder.mkdir(parents=True, exist_ok=True)
        for name, film in FILMS.items():
            if args.only in name:
                path = folder / (re.sub(r"\W+", "-", name) + film.suffix)
                film.write(path)
                rows[name] = examine(film, path)
                table.add_row(name, *(str(rows[name][column]) for column in columns))
    windows = sum(row["windows"] for row in rows.values())
    totals = (sum(row[column] for row in rows.values()) for column in columns[2:])
    table.add_row(f"all {windows} windows", "", "", *map(str, totals))
    Console(width=140).print(table)
    if args.out is not None:
        args.out.write_text(json.dumps({"rows": rows}, indent=2) + "\n")


def examine(film: Film, path: Path) -> dict[str, int]:
    """A row of the table: frames, and right windows of every reader."""
    truth = decoded(path)
    begins = truth[0] if film.begins is None else film.begins
    assert truth == list(range(begins, FRAMES)), f"{path} does not show what it should: {truth}"
    with av.open(str(path)) as container:
        row = {"file's count": container.streams.video[0].frames}
    readers = {"pyav": VideoReader("pyav", 60), "decord": VideoReader("decord", 60)}
    for name, reader in readers.items():
        header = reader.header(path)
        row["frames"] = header.frames
        assert header.frames == len(truth), f"{path} shows {len(truth)} frames, the header says {header.frames}"
        wanted = windows(path, header)
        row["windows"] = len(wanted)
        row[name] = sum(
            [number_of(frame) for frame in shown(reader.frames(one, wanted[n + 1 :]))]
            == [truth[i] for i in one.indices]
            for n, one in enumerate(wanted)
        )
    worker.find_decoder("decord")
    row["by decord"] = row["decord alone"] = 0
    for one in wanted:
        with suppress(Exception):
            worker.decord_frames(str(path), asked(one))
            row["by decord"] += 1
        with suppress(Exception):
            row["decord alone"] += decord_numbers(path, one.indices) == [truth[i] for i in one.indices]
    return row


def decoded(path: Path) -> list[int]:
    """Numbers of the frames that decoding shows, from the start."""
    with av.open(str(path)) as container:
        frames = container.decode(video=0)
        return [number_of(np.rot90(f.to_ndarray(format="rgb24"), f.rotation // 90)) for f in frames]


def windows(path: Path, header: Header) -> list[Wanted]:
    """One after another, and as many at random."""
    firsts = list(range(0, header.frames - WINDOW + 1, WINDOW))
    firsts += np.random.default_rng(0).integers(header.frames - WINDOW + 1, size=len(firsts)).tolist()
    size = (header.height, header.width)
    return [Wanted(path=path, header=header, indices=tuple(range(n, n + WINDOW)), size=size) for n in firsts]


def shown(clip: torch.Tensor) -> np.ndarray:
    """(3, T, H, W) in [-1, 1] -> (T, H, W, 3) in [0, 255]."""
    return ((clip.permute(1, 2, 3, 0) + 1) * 127.5).numpy()


def decord_numbers(path: Path, indices: Sequence[int]) -> list[int]:
    import decord

    video = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    return [number_of(frame) for frame in video.get_batch(list(indices)).asnumpy()]


if __name__ == "__main__":
    main()
