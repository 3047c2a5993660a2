"""A system without memory to share and without a kernel that ends processes on time still reads clips."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from djepa_mm.data.video import reader as video_reader
from djepa_mm.data.video import worker as video_worker
from djepa_mm.data.video.reader import VideoReader, Wanted
from djepa_mm.media.clips import write_clip
from djepa_mm.types import BrokenItem, UserError

pytest.importorskip("av")

WITHOUT = """
import os, signal
for module, name in ((signal, "setitimer"), (signal, "SIGALRM"), (signal, "alarm"), (os, "memfd_create")):
    if hasattr(module, name):
        delattr(module, name)
"""

WORKER = f"""
import os, sys, time
sys.path.insert(0, {str(Path(video_worker.__file__).parent)!r})
import worker
decode = worker.pyav_frames
def strange(path, ask):
    os.write(1, b"what a library prints is no reply")
    if "hang" in path:
        time.sleep(100)
    if "crash" in path:
        os.abort()
    return decode(path, ask)
worker.pyav_frames = strange
worker.main(*sys.argv[1:])
"""


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "plain_worker.py"
    program.write_text(WITHOUT + WORKER)
    monkeypatch.setattr(video_reader, "PROGRAM", program)
    monkeypatch.setattr(video_reader, "SHARES_FILES", False)
    monkeypatch.setattr(video_reader, "KERNEL_ENDS", False)


def films(folder: Path, *names: str) -> list[Path]:
    for n, name in enumerate(names):
        write_clip(torch.full((3, 12, 32, 32), n / 4 - 0.5), folder / name, 25)
    return [folder / name for name in names]


def levels(reader: VideoReader, paths: list[Path]) -> list[object]:
    """Each film's brightness, or why it is broken."""
    headers = [reader.header(path) for path in paths]
    wanted = [
        Wanted(path=path, header=header, indices=tuple(range(2, 10)), size=(32, 32))
        for path, header in zip(paths, headers, strict=True)
    ]
    found: list[object] = []
    for n, one in enumerate(wanted):
        try:
            found.append(pytest.approx(reader.frames(one, wanted[n + 1 :]).mean().item(), abs=0.02))
        except BrokenItem as error:
            found.append(str(error))
    return found


@pytest.mark.usefixtures("plain")
def test_the_plain_way_reads_and_gives_up(tmp_path: Path) -> None:
    paths = films(tmp_path, "a.mp4", "b-hang.mp4", "c.mp4", "d-crash.mp4", "e.mp4")
    assert levels(VideoReader("pyav", 2.0), paths) == [
        -0.5,
        "decoding took longer than 2 s (data.decode_timeout_s)",
        0.0,
        "the decoder crashed (SIGABRT)",
        0.5,
    ]


def test_both_ways_give_the_same_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = films(tmp_path, "a.mp4")
    clips = []
    for shares in (True, False):
        monkeypatch.setattr(video_reader, "SHARES_FILES", shares)
        reader = VideoReader("pyav", 10)
        clips.append(
            reader.frames(Wanted(path=path, header=reader.header(path), indices=(1, 5, 5), size=(20, 28))).clone()
        )
    assert torch.equal(*clips)


def test_what_a_library_prints_is_no_reply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "loud_worker.py"
    program.write_text(WORKER)
    monkeypatch.setattr(video_reader, "PROGRAM", program)
    assert levels(VideoReader("pyav", 10), films(tmp_path, "a.mp4", "b.mp4")) == [-0.5, -0.25]


@pytest.mark.usefixtures("plain")
def test_a_program_that_does_not_start_is_said(tmp_path: Path) -> None:
    video_reader.PROGRAM.write_text("raise SystemExit(3)")
    with pytest.raises(UserError, match=r"did not start \(exit code 3\)"):
        VideoReader("pyav", 2.0).header(tmp_path / "a.mp4")


def test_nothing_that_a_system_may_lack_is_needed_to_import() -> None:
    program = WITHOUT + "import djepa_mm.data.video.reader as reader\nassert not reader.KERNEL_ENDS"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)
