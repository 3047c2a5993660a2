"""Frames are those that a film shows, in the order in which it shows them, whatever its file says.

The film of `benchmarks/film_table.py`, whose frames tell their numbers, in the cases that go wrong elsewhere.
"""

from __future__ import annotations

import importlib.util
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from support import ROOT, SHARED

from djepa_mm.data.sources.clips import Clips, ClipsConfig
from djepa_mm.data.video import worker
from djepa_mm.data.video.reader import Header, Wanted, asked
from djepa_mm.types import BrokenItem

av = pytest.importorskip("av")

CLIPS = SHARED / "faults-1" / "clips" / "k"


def _film_table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("film_table", ROOT / "benchmarks" / "film_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["film_table"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


table = _film_table()


def readers() -> list[str]:
    try:
        worker.find_decoder("decord")
    except ImportError:
        return ["pyav"]
    return ["pyav", "decord"]


each_reader = pytest.mark.parametrize("reader", readers())


def header_of(path: Path) -> Header:
    return Header(*worker.header(str(path), for_decord="decord" in readers()))


ESSENTIAL = (
    "H.264 mp4",
    "H.264 ts",
    "H.264 avi",
    "H.264 mp4, open groups",
    "H.264 ts, refreshed bit by bit",
    "HEVC mp4",
    "VP8 webm",
    "VP9 mp4",
    "AV1 mp4",
    "H.264 mp4, interlaced",
    "MPEG-4 avi",
    "MPEG-4 mp4",
    "MPEG-2 mpg",
    "MPEG-2 ts",
    "H.264, edit list",
    "MPEG-4, edit list",
    "H.264 mkv, variable rate",
    "H.264 mp4, turned",
    "H.264 mkv, 29.97 a second",
    "H.264 mp4, copied from 40",
    "H.264 mp4, open groups, copied from 69",
    "MPEG-2 ts, copied from 40",
)


@pytest.mark.parametrize("name", ESSENTIAL)
def test_every_window_is_the_films(tmp_path: Path, name: str) -> None:
    film = table.FILMS[name]
    path = tmp_path / f"film{film.suffix}"
    try:
        film.write(path)
    except av.error.FFmpegError as error:
        pytest.skip(f"this FFmpeg does not write it ({error})")
    truth = table.decoded(path)
    first = truth[0] if film.begins is None else film.begins
    assert truth == list(range(first, table.FRAMES))
    header = header_of(path)
    assert header.frames == len(truth)
    assert (header.height, header.width) == (table.SIZE[::-1] if "turned" in name else table.SIZE)
    for one in table.windows(path, header)[::3]:
        expected = [truth[n] for n in one.indices]
        for reader in readers():
            frames = worker.find_decoder(reader)(str(path), asked(one))
            assert [table.number_of(frame) for frame in frames] == expected, reader


def test_frames_whose_stamps_are_made_up_after_a_jump(tmp_path: Path) -> None:
    """MPEG-1 in a program stream: decoding that begins at frame 150 gives the stamps of 153 and on, and falls back."""
    path = tmp_path / "film.mpg"
    table.FILMS["MPEG-1 mpg"].write(path)
    header = header_of(path)
    for n in range(150, 168):
        ask = asked(Wanted(path=path, header=header, indices=(n, n + 1), size=(header.height, header.width)))
        assert [table.number_of(frame) for frame in worker.pyav_frames(str(path), ask)] == [n, n + 1]


def test_what_decord_is_trusted_with(tmp_path: Path) -> None:
    """It reads the usual files itself, and none where its numbers are others."""
    if "decord" not in readers():
        pytest.skip("decord is not installed")
    path = tmp_path / "film.mp4"
    for name in ("MPEG-4 mp4", "H.264, edit list", "H.264 mp4, refreshed bit by bit", "H.264 mp4"):
        table.FILMS[name].write(path)
        ask = asked(table.windows(path, header_of(path))[1])
        if name == "H.264 mp4":
            assert worker.decord_frames(str(path), ask).shape == (8, *table.SIZE, 3)
        else:
            with pytest.raises(worker.DisagreeError):
                worker.decord_frames(str(path), ask)
    assert ask.times is not None
    for other in (ask._replace(total=ask.total - 1), ask._replace(times=tuple(time + 0.04 for time in ask.times))):
        with pytest.raises(worker.DisagreeError):
            worker.decord_frames(str(path), other)


# --- a frame's grey tells when it is shown


def write(path: Path, shown: list[int], codec: str = "libx264", **options: str) -> Path:
    """A film at 30 a second whose frames are shown at these times, in 1/30 s; its grey tells the time."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=30, options=options)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        stream.bit_rate = 1_000_000
        stream.codec_context.thread_count = 1
        for time in shown:
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 10 + 4 * time, np.uint8), "rgb24")
            frame.pts = time
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def times(media: torch.Tensor) -> list[int]:
    return [round((((frame.mean().item() + 1) * 127.5) - 10) / 4) for frame in media.transpose(0, 1)]


def clips(root: Path, **options: Any) -> Clips:
    return ClipsConfig(source="clips", root=str(root), **{"frames": 8, "size": None, **options}).build()


HELD = [*range(31), 36, 42, 48, 54]  # 30 frames a second, then five


@each_reader
def test_variable_rates_are_resampled_by_time(tmp_path: Path, reader: str) -> None:
    write(tmp_path / "a.mp4", HELD)

    def found(**options: Any) -> list[list[int]]:
        source = clips(tmp_path, reader=reader, frame_rate=10.0, **options)
        return [times(item.media) for item in source.read_all(range(len(source))) if not isinstance(item, BrokenItem)]

    evenly = [0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 30, 36, 36, 42, 42, 48, 48, 54]
    assert found(frames=None) == [evenly]
    assert found(frames=None, multiple_of=[4, 1, 1]) == [evenly[:16]]
    assert found(frames=6, window="all") == [evenly[:6], evenly[6:12], [36, 36, 42, 42, 48, 48]]
    assert found(frames=4, window="all", stride=2) == [evenly[0:8:2], evenly[8:16:2]]
    source = clips(tmp_path, reader=reader, frame_rate=10.0, window="random")
    for row in (times(source.read(0).media) for _ in range(20)):
        assert all(time <= row[0] + 3 * k < time + 6 for k, time in enumerate(row))
    torch.manual_seed(3)
    first = times(source.read(0).media)[0]
    torch.manual_seed(3)
    assert first == HELD[int(torch.randint(31, ()))]  # 54 - 7 * 3 is within the frame that begins at 30
    assert clips(tmp_path, reader=reader, frame_rate=30.0, frames=55).windows[0].first == 0
    write(tmp_path / "b.mp4", [*range(10), 15])
    source = clips(tmp_path, reader=reader, frame_rate=10.0, frames=12)
    assert source.broken == {1: "too short: its 11 frames begin within 0.50 s, 1.10 s are needed"}


def test_windows_of_even_rates_are_drawn_as_ever(tmp_path: Path) -> None:
    """One random number for each, out of the frames that an item may begin with."""
    write(tmp_path / "a.mp4", list(range(40)))
    cases: list[tuple[dict[str, Any], int]] = [
        ({}, 8),
        ({"stride": 3}, 22),
        ({"frame_rate": 12.0}, 19),
        ({"frame_rate": 60.0}, 5),
    ]
    for options, span in cases:
        source = clips(tmp_path, window="random", **options)
        torch.manual_seed(5)
        drawn = [times(source.read(0).media) for _ in range(5)]
        torch.manual_seed(5)
        assert [row[0] for row in drawn] == [int(torch.randint(41 - span, ())) for _ in range(5)]


@each_reader
def test_a_count_that_is_too_high_breaks_nothing(tmp_path: Path, reader: str) -> None:
    data = bytearray(write(tmp_path / "a.avi", list(range(40)), "mpeg4", bf="2").read_bytes())
    length = data.find(b"strh") + 8 + 32
    assert struct.unpack_from("<I", data, length) == (40,)
    struct.pack_into("<I", data, length, 41)
    (tmp_path / "a.avi").write_bytes(data)
    source = clips(tmp_path, reader=reader, window="random")
    for row in (times(source.read(0).media) for _ in range(60)):
        assert row == list(range(row[0], row[0] + 8))


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv", ".ts"])
def test_what_is_cut_short_is_named_or_read_right(tmp_path: Path, suffix: str) -> None:
    whole = table.FILMS["MPEG-4 avi" if suffix == ".avi" else f"H.264 {suffix[1:]}"]
    path = tmp_path / f"film{suffix}"
    whole.write(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    reason, header = None, None
    try:
        header = header_of(path)
    except Exception as error:
        reason = worker.why(str(path), error)
    if header is None:
        assert reason
        assert "\n" not in reason
        return
    truth = table.decoded(path)
    assert header.frames == len(truth) < table.FRAMES
    for one in table.windows(path, header)[::5]:
        frames = worker.pyav_frames(str(path), asked(one))
        assert [table.number_of(frame) for frame in frames] == [truth[n] for n in one.indices]


def test_a_frame_that_never_comes(tmp_path: Path) -> None:
    """As on a screen, the one before it stays; where more are missing, the film is broken."""
    path = write(tmp_path / "a.mp4", [*range(10), *range(11, 20), *range(22, 30)])
    header = header_of(path)
    assert header.stamps is not None
    step = header.stamps[1]

    def found(*wanted: int) -> list[int]:
        ask = worker.Ask(numbers=wanted, stamps=[step * n for n in wanted], starts=(), times=None, total=30)
        return [round((float(frame.mean()) - 10) / 4) for frame in worker.pyav_frames(str(path), ask)]

    assert found(9, 10, 11) == [9, 9, 11]
    assert found(28, 29, 30) == [28, 29, 29]
    with pytest.raises(worker.UnusableError, match="2 frames"):
        found(19, 20, 21)


# --- films from elsewhere


@each_reader
@pytest.mark.parametrize(
    ("name", "frames", "first"),
    [
        ("bframes.avi", 60, 0),
        ("bframes.mp4", 60, 0),
        ("edit-list.mp4", 36, 24),
        ("packed-last-frame.avi", 59, 0),
        ("variable-rate.mp4", 35, 0),
    ],
)
def test_films_that_were_read_wrong(name: str, frames: int, first: int, reader: str) -> None:
    if not CLIPS.is_dir():
        pytest.skip(f"needs the clips in {CLIPS}")
    path = CLIPS / name
    header = header_of(path)
    assert header.frames == frames
    decode = worker.find_decoder(reader)

    def numbers(*indices: int) -> list[int]:
        one = Wanted(path=path, header=header, indices=indices, size=(header.height, header.width))
        return [round((float(frame.mean()) - 4.8) / 3.75) for frame in decode(str(path), asked(one))]

    even = 31 if name == "variable-rate.mp4" else frames - 1  # frames that are evenly spaced
    for window in range(0, even - 7, 8):
        assert numbers(*range(window, window + 8)) == list(range(first + window, first + window + 8))
    assert numbers(frames - 1) == [54 if name == "variable-rate.mp4" else 59]
