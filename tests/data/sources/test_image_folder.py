"""Folders of pictures: what is good is read, what is broken is named."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import SHARED

from djepa_mm.data.sources.image_folder import ImageFolder, ImageFolderConfig
from djepa_mm.media.pictures import read_picture
from djepa_mm.types import BrokenItem, UserError

DATA = SHARED / "data"


def real(folder: str) -> str:
    if not (DATA / folder).is_dir():
        pytest.skip(f"the real corpus {DATA / folder} is not on this machine")
    return str(DATA / folder)


def folder(root: Path, **options: Any) -> ImageFolder:
    return ImageFolderConfig(source="image-folder", root=str(root), **{"size": [8, 8], **options}).build()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name, colour in (
        ("cat/a.png", "red"),
        ("cat/b.JPG", "red"),
        ("dog/c.webp", "blue"),
        ("dog/deep/d.bmp", "blue"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 12), colour).save(tmp_path / name)
    (tmp_path / "cat" / "notes.txt").write_text("not a picture")
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_class_folders_give_classes(pictures: Path) -> None:
    source = folder(pictures)
    assert source.classes == ("cat", "dog")
    assert [source.entry(i).name for i in range(len(source))] == [
        "cat/a.png",
        "cat/b.JPG",
        "dog/c.webp",
        "dog/deep/d.bmp",
    ]
    for i in range(4):
        item = source.read(i)
        assert item.media.shape == source.shape(i)
        assert item.entry == source.entry(i)
        assert item.entry.label == source.classes[i // 2]
        assert item.entry.path == pictures / item.entry.name
        red, _, blue = item.media.mean((1, 2))
        assert (red > blue) == (item.entry.label == "cat")


def test_a_flat_folder_has_no_classes(pictures: Path) -> None:
    source = folder(pictures / "cat")
    assert source.classes == ()
    assert source.entry(0).label is None


def test_the_largest_centred_part_is_cut_out(tmp_path: Path) -> None:
    pixels = np.zeros((10, 40, 3), np.uint8)
    pixels[:, 8:32] = 255  # a little more than the middle 2:1, for resizing looks at neighbours
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    assert folder(tmp_path, size=[5, 10]).read(0).media.min() == 1
    assert folder(tmp_path, size=[5, 20]).read(0).media.min() == -1


def test_transparent_parts_are_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "rgba.png")
    Image.new("P", (8, 8), 0).save(tmp_path / "palette.png", transparency=0)
    Image.new("LA", (8, 8), (0, 0)).save(tmp_path / "grey.png")
    source = folder(tmp_path)
    assert len(source) == 3
    assert all(source.read(i).media.min() == 1 for i in range(3))


def test_half_of_the_pictures_are_mirrored(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, :4] = 255
    Image.fromarray(pixels).save(tmp_path / "left.png")
    torch.manual_seed(0)
    source = folder(tmp_path, flip=True)
    lefts = sum(source.read(0).media[0, 0, 0].item() == 1 for _ in range(100))
    assert 30 < lefts < 70


def test_captions_are_texts(pictures: Path) -> None:
    (pictures / "captions.jsonl").write_text(
        json.dumps({"file": "cat/a.png", "caption": "a red cat", "more": 1}) + "\n"
    )
    source = folder(pictures)
    assert source.entry(0).text == source.read(0).entry.text == "a red cat"
    assert source.entry(1).text is None
    assert source.left_out == {"files that end in .txt": 1}


def test_lines_of_captions_that_say_nothing_are_counted(pictures: Path) -> None:
    lines = [
        "\ufeff" + json.dumps({"file": "cat/a.png", "caption": "one\u2028line\x85of text"}, ensure_ascii=False),
        "",
        "rubbish",
        '"cat/b.JPG"',
        json.dumps({"file": "./cat/b.JPG", "caption": "red"}),
        json.dumps({"file": "dog/c.webp", "caption": None}),
        json.dumps({"file": "dog/c.webp", "caption": ["blue"]}),
        json.dumps({"file": "dog\\deep\\d.bmp", "caption": "bl\u00fc"}) + "\r",
        json.dumps({"file": "dog/gone.bmp", "caption": "x"}),
        "[" * 100_000,
        json.dumps({"file": "cat/b.JPG", "captions": None, "caption": "green"}),
    ]
    text = "\n".join(lines).encode() + b'\n{"file": "dog/c.webp", "caption": "caf\xe9"}\n'
    (pictures / "captions.jsonl").write_bytes(text)
    source = folder(pictures)
    assert [source.entry(n).text for n in range(4)] == ["one\u2028line\x85of text", "red", None, "bl\u00fc"]
    assert source.left_out == {
        "files that end in .txt": 1,
        "lines of captions.jsonl: not JSON (3, 10)": 2,
        'lines of captions.jsonl: no "file" and "caption" that are texts (4, 6, 7)': 3,
        "lines of captions.jsonl: no such picture (9)": 1,
        "lines of captions.jsonl: a picture that has one already (11)": 1,
        "lines of captions.jsonl: not UTF-8 (12)": 1,
    }


def test_pictures_whose_captions_were_asked_for_need_one(pictures: Path) -> None:
    rows = [
        json.dumps({"file": "cat/a.png", "caption": "a red cat"}),
        "not JSON",
        json.dumps({"file": "cat/b.JPG", "captions": ["one", 2]}),
        json.dumps({"file": "dog/c.webp", "captions": ["one", "two"]}),
    ]
    (pictures / "captions.jsonl").write_text("\n".join(rows))
    source = folder(pictures, captions="jsonl")
    assert source.read(0).entry.text == "a red cat"
    entry = source.read(2).entry
    assert (entry.text, entry.texts) == ("one", ("one", "two"))
    for index, reason in ((1, r"captions\.jsonl, line 3: no \"file\""), (3, "has no line of it")):
        for ask in (source.read, source.shape):
            with pytest.raises(BrokenItem, match=reason):
                ask(index)
    lenient = folder(pictures)
    assert lenient.read(3).entry.text is None
    assert lenient.entry(1).untold == 'captions.jsonl, line 3: no "file" and "caption" that are texts'
    assert (lenient.entry(0).untold, lenient.entry(3).untold) == ("", "captions.jsonl has no line of it")
    assert folder(pictures, captions="none").entry(0).text is None
    (pictures / "captions.jsonl").unlink()
    with pytest.raises(UserError, match=r"^data\.captions jsonl: no captions\.jsonl in "):
        folder(pictures, captions="jsonl")


def test_texts_may_lie_beside_pictures(pictures: Path) -> None:
    with pytest.raises(UserError, match=r"^data\.captions txt: no picture in "):
        folder(pictures, captions="txt")
    (pictures / "cat/a.txt").write_text("\ufeffa red cat\n", encoding="utf-8")
    (pictures / "dog/c.TXT").write_bytes(b"caf\xe9")
    (pictures / "dog/deep/d.txt").write_text("x" * 100_001)
    source = folder(pictures, captions="txt")
    assert source.read(0).entry.text == "a red cat"
    assert source.left_out == {"files that end in .txt and belong to no other": 1}
    reasons = {1: r"no \.txt beside it", 2: r"c\.TXT: not UTF-8", 3: r"d\.txt: more than 100,000 bytes"}
    for index, reason in reasons.items():
        with pytest.raises(BrokenItem, match=reason):
            source.read(index)


def test_only_pictures_of_the_folders_become_items(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Neither hidden ones, nor what archives and notebooks leave behind; links to folders are like folders."""
    red = pictures / "cat" / "a.png"
    for name in (
        ".ipynb_checkpoints/a.png",
        ".trash/a.png",
        "__MACOSX/cat/._a.png",
        "cat/._b.png",
        "cat/.hidden/c.png",
    ):
        (pictures / name).parent.mkdir(parents=True, exist_ok=True)
        (pictures / name).write_bytes(red.read_bytes())
    (pictures / "x.jpg").mkdir()
    (pictures / "lonely.png").write_bytes(red.read_bytes())
    os.mkfifo(pictures / "cat" / "pipe.png")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "bird.png").write_bytes(red.read_bytes())
    (pictures / "bird").symlink_to(elsewhere)
    (pictures / "cat" / "round").symlink_to(pictures)
    (pictures / "dog" / "self").symlink_to(".")
    (pictures / "dog" / "own").symlink_to("own")  # no folder, and no picture
    source = folder(pictures)
    assert source.classes == ("bird", "cat", "dog")
    names = [source.entry(n).name for n in range(len(source))]
    assert names == ["bird/bird.png", "cat/a.png", "cat/b.JPG", "dog/c.webp", "dog/deep/d.bmp"]
    assert source.left_out == {
        "hidden files and folders": 5,
        "files that end in .txt": 1,
        "files without a suffix": 1,
        "links to a folder that they lie in": 2,
        "neither files nor folders": 1,
        "outside of the class folders": 1,
    }


def test_names_of_any_bytes_can_be_reported(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    os.rename(os.fsencode(tmp_path / "good.png"), os.fsencode(tmp_path) + b"/caf\xe9.png")
    source = folder(tmp_path)
    assert source.read(0).entry.name.encode() == "caf\ufffd.png".encode()


def test_accents_may_be_written_in_either_way(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "cafe\u0301.png")  # as macOS writes it
    (tmp_path / "captions.jsonl").write_text(json.dumps({"file": "caf\u00e9.png", "caption": "coffee"}))
    assert folder(tmp_path).entry(0).text == "coffee"


# --- held out


def test_a_share_of_the_pictures_is_held_out_by_their_names(tmp_path: Path) -> None:
    for n in range(400):
        (tmp_path / f"{n % 2}").mkdir(exist_ok=True)
        (tmp_path / f"{n % 2}" / f"{n // 4:03d}-{n % 4}.png").write_bytes(b"")
    config = ImageFolderConfig(source="image-folder", root=str(tmp_path), size=(8, 8), held_out=0.2, flip=True)
    train, held_out = config.build(), config.build_held_out()
    assert held_out is not None
    ours, theirs = ({source.entry(n).name for n in range(len(source))} for source in (train, held_out))
    assert len(ours | theirs) == len(ours) + len(theirs) == 400
    assert 40 < len(theirs) < 120
    assert train.classes == held_out.classes == ("0", "1")
    assert train.left_out == {"on the other side of data.held_out 0.2": len(theirs)}
    assert not held_out.config.flip
    digest = hashlib.sha1(b"held out? 0/000-0").hexdigest()
    assert ("0/000-0.png" in theirs) == (int(digest, 16) % 1000 < 200)

    config = config.model_copy(update={"moment": r"^\d+"})
    train, held_out = config.build(), config.build_held_out()
    assert held_out is not None
    ours, theirs = ({source.entry(n).name.split("-")[0] for n in range(len(source))} for source in (train, held_out))
    assert theirs
    assert not ours & theirs


def test_another_folder_may_be_held_out(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "cat").mkdir()
    Image.new("RGB", (9, 9)).save(other / "cat" / "new.png")
    options = {"source": "image-folder", "root": str(pictures), "size": (8, 8), "held_out_root": str(other)}
    config = ImageFolderConfig(**options)  # type: ignore[arg-type]
    held_out = config.build_held_out()
    assert held_out is not None
    assert [held_out.entry(n).name for n in range(len(held_out))] == ["cat/new.png"]
    assert len(config.build()) == 4
    with pytest.raises(ValueError, match="one of the two"):
        ImageFolderConfig(**options, held_out=0.1)  # type: ignore[arg-type]
    for inside in (pictures, pictures / "cat"):
        with pytest.raises(ValueError, match=r"held_out_root lies in data\.root"):
            ImageFolderConfig(**(options | {"held_out_root": str(inside)}))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^data\.held_out_root: no folder at /"):
        config.model_copy(update={"held_out_root": "nowhere"}).build_held_out()


def test_nothing_on_a_side_is_one_line(pictures: Path) -> None:
    with pytest.raises(UserError, match=r"side 'held-out' of data\.held_out 0\.001; choose a larger share$"):
        ImageFolderConfig(source="image-folder", root=str(pictures), size=(8, 8), held_out=0.001).build_held_out()


def test_pictures_may_be_grey(pictures: Path) -> None:
    source = folder(pictures, channels=1)
    assert source.read(0).media.shape == source.shape(0) == (1, 8, 8)
    own = folder(pictures, channels=1, size=None)
    assert own.read(0).media.shape == own.shape(0) == (1, 12, 20)
    assert own.file_size(0) == (12, 20)


def huge_png() -> bytes:
    """A PNG of 60,000 × 60,000 pixels in a few bytes."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    packed = [struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def test_broken_pictures_are_named(pictures: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(pictures / "dog" / "x-truncated.png")
    whole = (pictures / "dog" / "x-truncated.png").read_bytes()
    (pictures / "dog" / "x-truncated.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "dog" / "x-header.png").write_bytes(whole[:20])
    (pictures / "dog" / "x-empty.png").write_bytes(b"")
    (pictures / "dog" / "x-text.jpg").write_text("hello")
    (pictures / "dog" / "x-huge.png").write_bytes(huge_png())
    (pictures / "dog" / "x-folder.png").mkdir()
    (pictures / "dog" / "x-link.png").symlink_to("nowhere.png")
    source = folder(pictures)
    broken = [i for i in range(len(source)) if "/x-" in source.entry(i).name]
    assert len(broken) == 6  # the folder is none
    for i in broken:
        with pytest.raises(BrokenItem, match="not readable as a picture"):
            source.read(i)
    assert source.read(0).media.isfinite().all()


def test_folders_without_pictures_are_one_line(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"^data\.root: no [^\n]*$"):
            folder(root)


def test_real_emoji() -> None:
    source = folder(Path(real("images/emoji64")), size=[64, 64])
    assert len(source) == 3486
    assert len(source.classes) == 9
    item = source.read(0)
    assert item.media.shape == (3, 64, 64)
    assert item.entry.text == "mahjong red dragon"
    captions = folder(Path(real("images/emoji64")), size=[64, 64], captions="jsonl")
    assert not any(isinstance(said, str) for said in captions.captions or [""])


# --- pictures of their own sizes


def numbered(height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8, no two pixels alike."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, 0 * rows], axis=-1).astype(np.uint8)


def test_pictures_have_their_own_sizes_and_pixels(tmp_path: Path) -> None:
    sizes = [(7, 12), (30, 9), (16, 16)]
    for n, (height, width) in enumerate(sizes):
        Image.fromarray(numbered(height, width)).save(tmp_path / f"{n}.png")
    source = folder(tmp_path, size=None)
    for n, (height, width) in enumerate(sizes):
        media = source.read(n).media
        assert media.shape == source.shape(n) == (3, height, width)
        pixels = ((media + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(pixels, numbered(height, width))


def test_the_middle_is_cut_to_multiples(tmp_path: Path) -> None:
    Image.fromarray(numbered(19, 17)).save(tmp_path / "a.png")
    source = folder(tmp_path, size=None, multiple_of=[8, 4])
    media = source.read(0).media
    assert media.shape == source.shape(0) == (3, 16, 16)
    pixels = ((media + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(pixels, numbered(19, 17)[1:17, 0:16])  # not resized


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_pictures_are_turned_as_the_camera_was_held(orientation: int, suffix: str, tmp_path: Path) -> None:
    """Whatever EXIF says, what is read is upright; multiples are those of the upright picture."""
    upright = numbered(21, 10)
    turns = {  # from the upright picture to the file's rows and columns
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(turns[orientation])
    Image.fromarray(stored).save(tmp_path / f"a{suffix}", exif=exif, lossless=True)
    source = folder(tmp_path, size=None, multiple_of=[4, 3])
    assert source.shape(0) == (3, 20, 9)
    pixels = ((source.read(0).media + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(pixels, upright[0:20, 0:9])


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_edited_and_compared_is_what_is_trained_on(channels: Any, tmp_path: Path) -> None:
    """One reader for all: pictures that are turned, transparent, of 16 bits, or of a palette."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(numbered(8, 12)).save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(numbered(8, 12)).convert("RGBA").resize((9, 9)).save(tmp_path / "rgba.png")
    Image.new("RGBA", (8, 8), (0, 90, 0, 60)).save(tmp_path / "clear.png")
    Image.fromarray(np.full((8, 8), 30_000, np.uint16)).save(tmp_path / "deep.png")
    Image.new("P", (8, 8), 0).save(tmp_path / "palette.gif", transparency=0)
    source = folder(tmp_path, size=None, channels=channels)
    for n in range(5):
        item = source.read(n)
        assert item.entry.path is not None
        assert torch.equal(read_picture(item.entry.path, channels=channels), item.media), item.entry.name


def test_sizes_come_from_headers_alone(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 48, 3), np.uint8)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    source = folder(tmp_path, size=None)
    assert source.shape(0) == (3, 64, 48)
    with pytest.raises(BrokenItem, match="not readable as a picture"):
        source.read(0)


def test_a_size_that_stands_behind_the_pixels_is_not_looked_for(tmp_path: Path) -> None:
    """The picture then lies as it does in the file, for its shape and for its pixels."""
    exif = Image.Exif()
    exif[0x0112] = 6
    note = exif.tobytes()[6:]  # without the head that JPEG has
    chunk = struct.pack(">I", len(note)) + b"eXIf" + note + struct.pack(">I", zlib.crc32(b"eXIf" + note))
    Image.fromarray(numbered(6, 10)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[:-12] + chunk + content[-12:])
    source = folder(tmp_path, size=None)
    assert source.read(0).media.shape == source.shape(0) == (3, 6, 10)


def test_pictures_that_are_too_small_or_broken_are_named(tmp_path: Path) -> None:
    Image.new("RGB", (20, 6)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("hello")
    (tmp_path / "c.png").write_bytes(huge_png())
    source = folder(tmp_path, size=None, multiple_of=[8, 8])
    for ask in (source.shape, source.read):
        with pytest.raises(BrokenItem, match=r"^20×6 pixels, less than data\.multiple_of$"):
            ask(0)
        for index in (1, 2):
            with pytest.raises(BrokenItem, match="not readable as a picture"):
                ask(index)


def test_own_sizes_keep_white_behind_and_mirror_halves(tmp_path: Path) -> None:
    Image.new("P", (8, 8), 0).save(tmp_path / "palette.png", transparency=0)
    assert folder(tmp_path, size=None, multiple_of=[3, 3]).read(0).media.min() == 1
    Image.fromarray(numbered(5, 7)).save(tmp_path / "a.png")
    source = folder(tmp_path, size=None, flip=True)
    lefts = sum(source.read(0).media[1, 0, 0].item() == -1 for _ in range(100))
    assert 30 < lefts < 70
