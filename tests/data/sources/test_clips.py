"""Video files are read frame by frame, and broken ones are named without taking the run down."""

from __future__ import annotations

import os
import pickle
import re
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import SHARED
from torch.utils.data import DataLoader

from djepa_mm.data.corpus import Corpus, Cursor
from djepa_mm.data.sources.clips import Clips, ClipsConfig
from djepa_mm.data.video import reader as video_reader
from djepa_mm.data.video import worker as video_worker
from djepa_mm.data.video.reader import VideoReader, Wanted
from djepa_mm.media.clips import write_clip
from djepa_mm.recipe.load import load_recipe
from djepa_mm.recipe.schema import BatchConfig
from djepa_mm.types import BrokenItem, MediaSpec, UserError

av = pytest.importorskip("av")

SHARED_CLIPS = SHARED / "data" / "video" / "clips"


def readers() -> list[str]:
    try:
        video_worker.find_decoder("decord")
    except ImportError:
        return ["pyav"]
    return ["decord", "pyav"]


each_reader = pytest.mark.parametrize("reader", readers())


def write(
    path: Path,
    levels: Sequence[int],
    size: tuple[int, int] = (32, 32),
    rate: int = 25,
    codec: str = "libx264",
    form: str = "yuv420p",
    **options: str,
) -> Path:
    """A video whose frame n is grey of levels[n]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate, options={"crf": "10"} if codec == "libx264" else {})
        stream.height, stream.width, stream.pix_fmt = *size, form
        stream.codec_context.thread_count = 1
        for level in levels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((*size, 3), level, np.uint8), "rgb24")))
        container.mux(stream.encode())
    return path


def ramp(count: int, step: int = 5) -> range:
    return range(10, 10 + step * count, step)


def clips(root: Path, **options: Any) -> Clips:
    settings: dict[str, Any] = {"frames": 8, "size": [16, 16], "reader": "pyav", **options}
    return ClipsConfig(source="clips", root=str(root), **settings).build()


def levels(media: torch.Tensor) -> list[float]:
    return ((media.mean((0, 2, 3)) + 1) * 127.5).tolist()


def numbers(media: torch.Tensor, step: int = 5) -> list[int]:
    """Which frames of a `ramp` these are."""
    return [round((level - 10) / step) for level in levels(media)]


# --- what is good


@each_reader
def test_class_folders_of_videos(tmp_path: Path, reader: str) -> None:
    for name in ("run/a.mp4", "run/b.MKV", "walk/deep/c.mp4", "stray.mp4"):
        write(tmp_path / name, ramp(12))
    (tmp_path / "walk" / "notes.txt").write_text("not a video")
    source = clips(tmp_path, reader=reader)
    assert source.classes == ("run", "walk")
    assert [source.entry(i).name for i in range(len(source))] == ["run/a.mp4", "run/b.MKV", "walk/deep/c.mp4"]
    for i, item in enumerate(source.read_all(range(3))):
        assert item.media.shape == source.shape(i) == (3, 8, 16, 16)
        assert item.entry.label == source.classes[i // 2]
        assert numbers(item.media) == list(range(2, 10))  # the middle
        assert np.abs(np.array(levels(item.media)) - ramp(12)[2:10]).max() < 3
        assert torch.equal(source.read(i).media, item.media)
    assert clips(tmp_path / "run").classes == ()


def test_what_is_no_clip_of_the_corpus_is_left_out_and_counted(tmp_path: Path) -> None:
    for name in ("run/a.mp4", "run/.a.mp4", ".trash/b.mp4", "__MACOSX/run/._a.mp4", "run/b.mp4.part", "run/notes.txt"):
        write(tmp_path / "all" / name, ramp(12)) if name.endswith(".mp4") else (tmp_path / "all" / name).touch()
    write(tmp_path / "elsewhere" / "c.mp4", ramp(12))
    (tmp_path / "all" / "walk").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "all" / "run" / "folder.mp4").mkdir()
    source = clips(tmp_path / "all")
    assert source.classes == ("run", "walk")
    assert [source.entry(i).name for i in range(len(source))] == ["run/a.mp4", "walk/c.mp4"]
    assert source.left_out == {"hidden files and folders": 3, "files that end in .part": 1, "files that end in .txt": 1}
    (tmp_path / "all" / "run" / "a.mp4").unlink()
    (tmp_path / "all" / "walk").unlink()
    with pytest.raises(UserError, match=r"no videos in .*, and there are 3 hidden files and folders; 1 files"):
        clips(tmp_path / "all")


def test_names_of_any_bytes_can_be_reported(tmp_path: Path) -> None:
    write(tmp_path / "good.mp4", ramp(8))
    os.rename(os.fsencode(tmp_path / "good.mp4"), os.fsencode(tmp_path) + b"/caf\xe9.mp4")
    item = clips(tmp_path).read(0)
    assert item.entry.name.encode() == "caf\ufffd.mp4".encode()
    assert numbers(item.media) == list(range(8))


@each_reader
def test_windows(tmp_path: Path, reader: str) -> None:
    write(tmp_path / "a.mp4", ramp(21))
    source = clips(tmp_path, reader=reader, window="all")
    assert [numbers(item.media) for item in source.read_all(range(2))] == [list(range(8)), list(range(8, 16))]
    assert [source.entry(i).name for i in range(len(source))] == ["a.mp4 window 0", "a.mp4 window 1"]
    source = clips(tmp_path, reader=reader, window="random")
    drawn = [numbers(source.read(0).media) for _ in range(60)]
    assert all(row == list(range(row[0], row[0] + 8)) for row in drawn)
    assert {row[0] for row in drawn} >= {0, 13}
    assert len(source) == 1


@each_reader
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"stride": 3, "frames": 7}, [1, 4, 7, 10, 13, 16, 19]),
        ({"frame_rate": 5.0, "frames": 4}, [2, 7, 12, 17]),  # of a file at 25 a second
        ({"frame_rate": 10.0, "frames": 8}, [1, 4, 6, 9, 11, 14, 16, 19]),
        ({"frame_rate": 50.0, "frames": 4, "window": "all"}, [0, 1, 1, 2]),
        ({"frame_rate": 10.0, "stride": 2, "frames": 3}, [5, 10, 15]),
    ],
)
def test_rate_and_stride(tmp_path: Path, reader: str, options: dict[str, Any], expected: list[int]) -> None:
    write(tmp_path / "a.mp4", ramp(21))
    assert numbers(clips(tmp_path, reader=reader, **options).read(0).media) == expected


@each_reader
def test_a_window_between_key_frames(tmp_path: Path, reader: str) -> None:
    """Seeking finds the very frames that decoding from the start does."""
    write(tmp_path / "a.mp4", [(37 * n) % 200 for n in range(600)])  # key frames every 250
    source = clips(tmp_path, reader=reader, window="all")
    for window in (0, 20, 31, 62, 74):
        expected = [(37 * n) % 200 for n in range(8 * window, 8 * window + 8)]
        assert np.abs(np.array(levels(source.read(window).media)) - expected).max() < 6


@each_reader
def test_a_films_own_size_is_cut_and_never_resized(tmp_path: Path, reader: str) -> None:
    """130×98 pixels hold 128×96, whose shape is another: the largest part of that shape would be resized."""
    write_clip(2 * torch.rand(3, 9, 98, 130) - 1, tmp_path / "a.mp4", 10.0)
    whole = clips(tmp_path, reader=reader, frames=None, size=None).read(0).media
    cut = clips(tmp_path, reader=reader, frames=None, size=None, multiple_of=[1, 32, 64]).read(0).media
    assert torch.equal(cut, whole[:, :, 1:97, 1:129])


def test_the_largest_centred_part_is_cut_out_and_resized(tmp_path: Path) -> None:
    pixels = np.zeros((1, 60, 100, 3), np.uint8)
    pixels[:, :, 20:80] = 255
    assert video_worker.crop(pixels, (16, 16), True).shape == (1, 60, 60, 3)
    assert video_worker.crop(pixels, (16, 16), True).min() == 255
    assert video_worker.crop(pixels, (10, 100), True).shape == (1, 10, 100, 3)
    write(tmp_path / "a.mp4", ramp(12), size=(30, 50))
    assert clips(tmp_path, size=[20, 10]).read(0).media.shape == (3, 8, 20, 10)


@pytest.mark.parametrize("reader", ["auto", "pyav"])  # decord alone cannot read such narrow ones
def test_videos_may_keep_their_own_length_and_size(tmp_path: Path, reader: str) -> None:
    write(tmp_path / "a.mp4", ramp(13), size=(30, 50))
    write(tmp_path / "b.mp4", ramp(7), size=(16, 24))
    write(tmp_path / "c.mp4", ramp(3), size=(64, 64))
    write(tmp_path / "d.mp4", ramp(20), size=(6, 64))
    source = clips(tmp_path, reader=reader, frames=None, size=None, multiple_of=[4, 8, 8])
    assert [source.shape(i) for i in range(2)] == [(3, 12, 24, 48), (3, 4, 16, 24)]
    assert [source.read(i).media.shape for i in range(2)] == [(3, 12, 24, 48), (3, 4, 16, 24)]
    assert numbers(source.read(0).media) == list(range(12))
    assert source.broken == {
        2: "too short: 3 frames at 25 a second, 4 are needed",
        3: "64×6 pixels, less than data.multiple_of",
    }
    slower = clips(tmp_path, reader=reader, frames=None, frame_rate=12.5)
    assert [slower.shape(i)[1] for i in range(3)] == [7, 4, 2]
    assert numbers(slower.read(0).media) == list(range(0, 13, 2))


@each_reader
def test_odd_sizes_and_turned_cameras(tmp_path: Path, reader: str) -> None:
    write(tmp_path / "a.mp4", ramp(12), size=(33, 65), form="yuv444p")
    data = bytearray(write(tmp_path / "b.mp4", ramp(12), size=(32, 64)).read_bytes())
    matrix = data.find(b"tkhd") + 44
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 32 << 16, 0, 1 << 30)
    (tmp_path / "b.mp4").write_bytes(data)
    assert numbers(clips(tmp_path, reader=reader).read(0).media) == list(range(2, 10))
    turned = VideoReader(reader, 10)
    header = turned.header(tmp_path / "b.mp4")
    assert (header.height, header.width) == (64, 32)
    wanted = Wanted(path=tmp_path / "b.mp4", header=header, indices=(0,), size=(64, 32))
    assert turned._ask(video_reader._request(wanted)).shape == (1, 64, 32, 3)  # nothing was cut off
    assert clips(tmp_path, reader=reader, size=None).read(1).media.shape == (3, 8, 64, 32)


def test_readers_agree_on_real_clips() -> None:
    if not SHARED_CLIPS.is_dir() or len(readers()) < 2:
        pytest.skip(f"needs decord and the real corpus {SHARED_CLIPS}")
    pair = [clips(SHARED_CLIPS, reader=reader, window="all") for reader in readers()]
    for i in range(0, len(pair[0]), 60):
        assert torch.equal(pair[0].read(i).media, pair[1].read(i).media)


def test_a_loader_with_processes(tmp_path: Path) -> None:
    for name in range(6):
        write(tmp_path / f"{name}.mp4", ramp(12 + name))
    source = clips(tmp_path, window="random")
    source.read(0)  # the forked processes inherit a reader at work
    rows = list(DataLoader([source] * 6, num_workers=2, batch_size=None, collate_fn=lambda s: s.read(0).media))
    assert len(rows) == 6
    assert source.read(5).media.shape == rows[0].shape == (3, 8, 16, 16)
    assert torch.equal(pickle.loads(pickle.dumps(source)).read(1).media.isfinite(), torch.ones(3, 8, 16, 16).bool())


def test_the_reader_ends_with_its_owner(tmp_path: Path) -> None:
    reader = VideoReader("pyav", 10)
    header = reader.header(write(tmp_path / "a.mp4", ramp(3)))
    wanted = [Wanted(path=tmp_path / "a.mp4", header=header, indices=(n,), size=(16, 16)) for n in range(3)]
    reader.frames(wanted[0], wanted[1:])
    processes = [worker.process for worker in reader._decoders.workers]
    assert len(processes) == 2
    assert all(process.poll() is None for process in processes)
    del reader
    assert all(process.poll() is not None for process in processes)


# --- what is held out


def test_moments_are_on_one_side(tmp_path: Path) -> None:
    for moment in range(20):
        for crop in "lr":
            write(tmp_path / "c" / f"v_c_cam-{crop}_f{moment:04}.mp4", ramp(8))
    config = ClipsConfig(
        source="clips", root=str(tmp_path), frames=8, size=[16, 16], held_out=0.3, moment=r"_f(\d+)", reader="pyav"
    )
    sides = [config.build(), config.build_held_out()]
    names = [{source.entry(i).name for i in range(len(source))} for source in sides]
    moments = [{name[-8:] for name in side} for side in names]
    assert not moments[0] & moments[1]
    assert len(names[0] | names[1]) == 40
    assert 2 <= len(moments[1]) <= 12
    assert clips(tmp_path).config.build_held_out() is None
    with pytest.raises(UserError, match="choose a larger share"):
        clips(tmp_path, held_out=0.0, split="held-out")
    with pytest.raises(ValueError, match="regular expression"):
        ClipsConfig(source="clips", root="x", size=[8, 8], moment="(")


# --- what is broken


@pytest.fixture
def poisoned(tmp_path: Path) -> Path:
    write(tmp_path / "good.mp4", ramp(12))
    restless = [(61 * n) % 256 for n in range(80)]
    cut = write(tmp_path / "cut.mp4", restless).read_bytes()  # the header comes last
    (tmp_path / "cut.mp4").write_bytes(cut[: len(cut) // 2])
    early = write(tmp_path / "early.mp4", restless, movflags="faststart").read_bytes()  # the header comes first
    (tmp_path / "early.mp4").write_bytes(early[: len(early) * 2 // 3])
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("this is no video\n" * 100)
    write(tmp_path / "one.mp4", [100])
    write(tmp_path / "wide.mp4", ramp(12), size=(16, 20_000), codec="mjpeg", form="yuvj420p")
    return tmp_path


def reasons(source: Clips) -> dict[str, str]:
    """By name; and the broken items are the same through `shape`, `read` and `read_all`, as far as each can know."""
    found = {}
    for i, item in enumerate(source.read_all(range(len(source)))):
        if isinstance(item, BrokenItem):
            found[source.entry(i).name] = str(item)
            with pytest.raises(BrokenItem, match=re.escape(str(item))):
                source.read(i)
        else:
            assert item.media.shape == source.shape(i)
    return found


@each_reader
def test_broken_files_are_named_in_a_line(poisoned: Path, reader: str) -> None:
    found = reasons(clips(poisoned, reader=reader, window="all"))
    expected = {
        "early.mp4": r"cut short, \d\d of 80 frames",
        "cut.mp4": r"not a readable video \(Invalid data found .*moov atom not found\)",
        "empty.mp4": r"not a readable video \(Invalid data found .*\)",
        "text.mp4": r"not a readable video \(Invalid data found .*\)",
        "one.mp4": r"too short: 1 frames at 25 a second, 8 are needed",
        "wide.mp4": r"20000×16 pixels, more than data\.max_side 4096",
    }
    assert found.keys() == expected.keys()
    assert all(re.fullmatch(expected[name], reason) for name, reason in found.items()), found
    assert not any("\n" in reason or str(poisoned) in reason for reason in found.values())


def test_limits_of_the_header(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", ramp(12))
    write(tmp_path / "b.mp4", ramp(50, 2))
    assert reasons(clips(tmp_path, max_frames=49)) == {"b.mp4": "50 frames, more than data.max_frames 49"}
    assert reasons(clips(tmp_path, max_duration_s=1.5)) == {"b.mp4": "2 s, more than data.max_duration_s 1.5"}
    with pytest.raises(UserError, match=r"no usable video in .*such as a\.mp4: too short: 12 frames"):
        clips(tmp_path, frames=60)
    container = write(tmp_path / "sound" / "c.mp4", ramp(12)).read_bytes()
    (tmp_path / "sound" / "c.mp4").write_bytes(container.replace(b"vide", b"soun"))
    with pytest.raises(UserError, match=r"no usable video in .*such as c\.mp4: no video in it"):
        clips(tmp_path / "sound")
    empty = tmp_path / "none"
    empty.mkdir()
    with pytest.raises(UserError, match=r"data\.root: no videos"):
        clips(empty)
    with pytest.raises(UserError, match=r"data\.root: no folder"):
        clips(tmp_path / "nowhere")


def test_a_file_without_end_is_given_up(tmp_path: Path) -> None:
    """A pipe that nobody writes to hangs inside the library, where no exception reaches."""
    write(tmp_path / "a.mp4", ramp(12))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "b.mp4").symlink_to(tmp_path / "pipe")
    write(tmp_path / "c.mp4", ramp(12))
    found = reasons(clips(tmp_path, decode_timeout_s=1.5))
    assert found == {"b.mp4": "decoding took longer than 1.5 s (data.decode_timeout_s)"}


BAD_DECODER = """
import os, sys, time
sys.path.insert(0, {folder!r})
import worker as video_worker
decode = video_worker.pyav_frames
def bad(path, ask):
    name = os.path.basename(path)
    if "hang" in name:
        time.sleep(100)
    if "crash" in name:
        os.abort()
    if "bomb" in name:
        bytearray(6 << 30)
    return decode(path, ask)
video_worker.pyav_frames = bad
video_worker.main(*sys.argv[1:])
"""


def test_a_decoder_that_hangs_or_crashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bad_worker.py"
    program.write_text(BAD_DECODER.format(folder=str(Path(video_worker.__file__).parent)))
    monkeypatch.setattr(video_reader, "PROGRAM", program)
    for name in ("a", "b_hang", "c", "d_crash", "e_bomb", "f"):
        write(tmp_path / f"{name}.mp4", ramp(12))
    found = reasons(clips(tmp_path, decode_timeout_s=1.5))
    assert found.pop("e_bomb.mp4").startswith("not decodable (")
    assert found == {
        "b_hang.mp4": "decoding took longer than 1.5 s (data.decode_timeout_s)",
        "d_crash.mp4": "the decoder crashed (SIGABRT)",
    }


def test_a_crash_is_blamed_on_its_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the process was asked for more, and had answered before, when it died."""
    program = tmp_path / "bad_worker.py"
    program.write_text(BAD_DECODER.format(folder=str(Path(video_worker.__file__).parent)))
    monkeypatch.setattr(video_reader, "PROGRAM", program)
    names = ["a", "b", "c_crash", "d", "e_crash", "f", "g", "h"]
    for n, name in enumerate(names):
        write(tmp_path / f"{name}.mp4", [20 * n + 20] * 12)
    source = clips(tmp_path)
    for pause in (0.0, 0.3):
        found = []
        for item in source.read_all(range(len(names))):
            found.append("crash" if isinstance(item, BrokenItem) else levels(item.media)[0])
            time.sleep(pause)  # time for the processes to come to the next file, and to die of it
        assert found[2] == found[4] == "crash"
        assert [found[n] for n in (0, 1, 3, 5, 6, 7)] == pytest.approx([20, 40, 80, 120, 140, 160], abs=3)


def test_an_interrupt_while_it_waits_mixes_up_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in range(4):
        write(tmp_path / f"{name}.mp4", [20 * name + 20] * 12)
    reader = VideoReader("pyav", 10)
    paths = [tmp_path / f"{name}.mp4" for name in range(4)]
    wanted = [Wanted(path=path, header=reader.header(path), indices=(5,), size=(16, 16)) for path in paths]

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(video_reader._Worker, "receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            reader.frames(wanted[0], wanted[1:])
    found = [levels(reader.frames(one, wanted[n + 1 :]))[0] for n, one in enumerate(wanted) if n]
    assert found == pytest.approx([40, 60, 80], abs=3)


def test_an_absent_library_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.mp4", ramp(12))
    program = tmp_path / "worker.py"
    text = BAD_DECODER.format(folder=str(Path(video_worker.__file__).parent))
    program.write_text(text.replace("import os, sys, time", "import os, sys, time\nsys.modules['decord'] = None"))
    monkeypatch.setattr(video_reader, "PROGRAM", program)
    with pytest.raises(UserError, match=r'data\.reader: decord cannot be used here .*"djepa-mm\[video\]"'):
        clips(tmp_path, reader="decord")
    assert numbers(clips(tmp_path, reader="auto").read(0).media) == list(range(2, 10))
    program.write_text("raise SystemExit(3)")
    with pytest.raises(UserError, match=r"did not start \(exit code 3\)"):
        clips(tmp_path)


def test_what_was_asked_ahead_and_left_is_forgotten(tmp_path: Path) -> None:
    for name in range(9):
        write(tmp_path / f"{name}.mp4", [20 * name + 20] * 12)
    source = clips(tmp_path)
    ahead = source.read_all(range(9))
    assert [levels(next(ahead).media)[0] for _ in range(2)] == pytest.approx([20, 40], abs=3)
    assert levels(source.read(7).media)[0] == pytest.approx(160, abs=3)
    rest = [levels(item.media)[0] for item in ahead]  # more than there are memories for
    assert rest == pytest.approx([60, 80, 100, 120, 140, 160, 180], abs=3)


class _Plain:
    """Tokens that are the mean of every frame; enough for a corpus."""

    token_dim = 1

    def spec_of(self, shape: tuple[int, ...]) -> MediaSpec:
        return MediaSpec(grid=(shape[1], 1, 1), shape=shape)

    def encode(self, media: torch.Tensor) -> torch.Tensor:
        return media.mean((1, 3, 4))[..., None]


def test_a_corpus_reads_ahead_and_names_what_is_broken(tmp_path: Path) -> None:
    for name in "abcd":
        write(tmp_path / f"run/{name}.mp4", ramp(8))
    whole = (tmp_path / "run/b.mp4").read_bytes()
    source = clips(tmp_path)
    (tmp_path / "run/b.mp4").write_bytes(whole[:200])  # after its header was read
    asked: list[list[int]] = []
    read_all = source.read_all
    source.read_all = lambda indices, *more: read_all(asked.append(list(indices)) or indices, *more)  # type: ignore[method-assign]
    settings = BatchConfig(size=4, max_broken_share=0.5)
    condition = load_recipe("digits").condition.build()
    condition.bind(source)
    corpus = Corpus(source, _Plain(), condition, settings)  # type: ignore[arg-type]
    ((portion,), _) = next(corpus.batches(Cursor()))
    batch = portion.batch
    assert batch.tokens.shape == (3, 8, 1)
    assert [sorted(indices) for indices in asked] == [[0, 1, 2, 3]]
    assert list(corpus.broken) == ["run/b.mp4"]


def test_random_windows_are_the_same_wherever_reading_begins(tmp_path: Path) -> None:
    """With processes that read and without, from the start and from amid an epoch; but not from epoch to epoch."""
    for name in "abcd":
        write(tmp_path / f"run/{name}.mp4", ramp(40))
    source = clips(tmp_path, window="random")
    condition = load_recipe("digits").condition.build()
    condition.bind(source)

    def read(start: Cursor, workers: int, count: int) -> list[torch.Tensor]:
        corpus = Corpus(source, _Plain(), condition, BatchConfig(size=2, workers=workers))  # type: ignore[arg-type]
        batches = corpus.batches(start)
        return [next(batches)[0][0].batch.tokens for _ in range(count)]

    whole = read(Cursor(), 0, 4)
    for start, workers in ((0, 2), (1, 0), (1, 2)):
        found = read(Cursor(0, start), workers, 4 - start)
        assert all(torch.equal(a, b) for a, b in zip(whole[start:], found, strict=True))
    assert not torch.equal(torch.cat(whole[:2]).sort(0).values, torch.cat(whole[2:]).sort(0).values)
    with pytest.raises(UserError, match=r"batch\.cache keeps every reading .*data\.window: random"):
        Corpus(source, _Plain(), condition, BatchConfig(size=2, cache=True))  # type: ignore[arg-type]
