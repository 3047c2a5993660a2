"""Headers are read once: an index keeps them for as long as their files stay the same."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from djepa_mm.data import headers
from djepa_mm.data.headers import in_threads, read_headers
from djepa_mm.data.sources import ljspeech
from djepa_mm.data.sources.image_folder import ImageFolder, ImageFolderConfig
from djepa_mm.data.sources.ljspeech import LJSpeech, LJSpeechConfig
from djepa_mm.errors import BrokenItem, Notice


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names = [f"{n}.txt" for n in range(12)]
    (tmp_path / "files").mkdir()
    for n, name in enumerate(names):
        (tmp_path / "files" / name).write_text("x" * n)
    return names


class Reading:
    """Sizes of files, and which of them were read."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def __call__(self, paths: Sequence[Path]) -> Iterator[tuple[int] | str]:
        for path in paths:
            self.read.append(path.name)
            size = path.stat().st_size
            yield "too short" if size == 3 else (size,)


@pytest.mark.parametrize("at_once", [5, 4096])
def test_the_second_start_reads_what_has_changed_alone(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(headers, "AT_ONCE", at_once)
    root = tmp_path / "files"
    first, second, third = Reading(), Reading(), Reading()
    expected = [(n,) if n != 3 else "too short" for n in range(12)]
    assert list(read_headers(root, files, first, kind="sizes")) == expected
    assert first.read == files
    assert list(read_headers(root, files, second, kind="sizes")) == expected
    assert second.read == ["3.txt"]  # what is broken is tried again
    (root / "5.txt").write_text("longer than before")
    os.utime(root / "6.txt", ns=(1, 1))
    (root / "12.txt").write_text("new")
    names = ["12.txt", *files[1:]]
    assert list(read_headers(root, names, third, kind="sizes"))[:7] == [
        "too short",
        (1,),
        (2,),
        "too short",
        (4,),
        (18,),
        (6,),
    ]
    assert sorted(third.read) == ["12.txt", "3.txt", "5.txt", "6.txt"]
    other = Reading()
    read_headers(root, files, other, kind="other")
    assert other.read == files


def test_two_sides_of_a_folder_share_an_index(files: list[str], tmp_path: Path) -> None:
    root = tmp_path / "files"
    for side in (files[::2], files[1::2]):
        read_headers(root, side, Reading(), kind="sizes")
    for side in (files[::2], files[1::2]):
        again = Reading()
        read_headers(root, side, again, kind="sizes")
        assert again.read == [name for name in side if name == "3.txt"]  # the broken one


def test_what_is_broken_alone_writes_no_index_anew(files: list[str], tmp_path: Path) -> None:
    read_headers(tmp_path / "files", files, Reading(), kind="sizes")
    (index,) = (tmp_path / "cache").rglob("*.jsonl")
    before = index.stat().st_ino
    read_headers(tmp_path / "files", files, Reading(), kind="sizes")
    assert index.stat().st_ino == before


def test_an_index_that_is_torn_or_cannot_be_written_is_read_past(files: list[str], tmp_path: Path) -> None:
    root = tmp_path / "files"
    read_headers(root, files, Reading(), kind="sizes")
    (index,) = (tmp_path / "cache").rglob("*.jsonl")
    index.write_text(index.read_text()[:-4])
    again = Reading()
    read_headers(root, files, again, kind="sizes")
    assert again.read == files
    index.unlink()
    index.mkdir()
    (index / "full").touch()
    with pytest.warns(Notice, match="headers are read anew at each start"):
        assert len(read_headers(root, files, Reading(), kind="sizes")) == 12
    assert not [path for path in index.parent.iterdir() if path != index]  # nothing half-written stays


def test_many_are_read_side_by_side_and_in_order(files: list[str], tmp_path: Path) -> None:
    def size(path: Path) -> tuple[int]:
        if path.name == "7.txt":
            raise BrokenItem("seven")
        return (path.stat().st_size,)

    found = in_threads(size)([tmp_path / "files" / name for name in files])
    assert list(found) == [(n,) if n != 7 else "seven" for n in range(12)]


def test_pictures_of_their_own_size_are_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "pictures").mkdir()
    for n in range(4):
        Image.new("RGB", (8 + 4 * n, 16)).save(tmp_path / "pictures" / f"{n}.png")
    (tmp_path / "pictures" / "4.png").write_text("no picture")
    config = ImageFolderConfig(source="image-folder", root=str(tmp_path / "pictures"), size=None, multiple_of=(4, 4))

    def shapes(folder: ImageFolder) -> list[tuple[int, ...]]:
        return [folder.shape(n) for n in range(4)]

    expected = [(3, 16, 8 + 4 * n) for n in range(4)]
    assert shapes(ImageFolder(config)) == expected
    opened: list[Path] = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda path, *rest, **named: opened.append(path) or real(path, *rest, **named))
    folder = ImageFolder(config)
    assert shapes(folder) == expected
    assert [Path(path).name for path in opened] == ["4.png"]
    with pytest.raises(BrokenItem, match="not"):
        folder.shape(4)


def test_recordings_are_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    wavs = tmp_path / "speech" / "wavs"
    wavs.mkdir(parents=True)
    for n in range(4):
        soundfile.write(wavs / f"{n}.wav", np.zeros(8000 + n), 8000)
    (wavs / "4.wav").write_text("no sound")
    (wavs.parent / "metadata.csv").write_text("".join(f"{n}|text {n}\n" for n in (2, 0, 4, 3, 1, 5)))
    config = LJSpeechConfig(source="ljspeech", root=str(wavs.parent), sample_rate_hz=8000)

    def clips(source: LJSpeech) -> dict[str, int | str]:
        found: dict[str, int | str] = {}
        for n in range(len(source)):
            try:
                (found[source.entry(n).name],) = source.shape(n)
            except BrokenItem as error:
                found[source.entry(n).name] = str(error)
        return found

    first = clips(LJSpeech(config))
    assert list(first) == ["2", "0", "4", "3", "1", "5"]
    assert [first[name] for name in "0123"] == [8000, 8001, 8002, 8003]
    opened: list[str] = []
    real = ljspeech.sound_header
    monkeypatch.setattr(ljspeech, "sound_header", lambda file: opened.append(Path(file.name).name) or real(file))
    assert clips(LJSpeech(config)) == first
    assert opened == ["4.wav"]  # what is broken is tried again
    soundfile.write(wavs / "3.wav", np.zeros(9000), 8000)
    assert clips(LJSpeech(config)) == {**first, "3": 9000}
    assert sorted(opened[1:]) == ["3.wav", "4.wav"]
    assert clips(LJSpeech(config.model_copy(update={"limit": 2}))) == {"2": 8002, "0": 8000}
