"""Pictures in files, and to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from djepa_mm.errors import BrokenItem, UserError
from djepa_mm.media.pictures import SUFFIXES, Pictures, flat, read_picture
from djepa_mm.media.sheet import sheet


def picture(channels: int = 3, height: int = 6, width: int = 9) -> torch.Tensor:
    """Of whole 255ths, as files hold them."""
    levels = torch.randint(0, 256, (channels, height, width), generator=torch.Generator().manual_seed(0))
    return levels / 127.5 - 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_files_keep_every_pixel(channels: int, suffix: str, tmp_path: Path) -> None:
    kind, path = Pictures(channels), tmp_path / f"a{suffix}"
    kind.save(picture(channels), path)
    assert torch.equal(kind.load(path), picture(channels))
    assert torch.equal(kind.load(path, (channels, 6, 9)), picture(channels))


def test_pixels_beyond_the_range_are_clipped(tmp_path: Path) -> None:
    Pictures(1).save(torch.tensor([[[-3.0, 0.0, 7.0]]]), tmp_path / "a.png")
    assert np.asarray(Image.open(tmp_path / "a.png")).tolist() == [[0, 128, 255]]


def test_a_picture_of_another_size_is_refused_with_both(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Pictures(3).save(picture(height=16, width=12), path)
    with pytest.raises(UserError) as error:
        Pictures(3).load(path, (3, 8, 8))
    assert str(error.value) == f"{path}: the picture is 12×16 pixels, this model takes 8×8; resize it first"


def test_files_that_are_no_pictures_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    Pictures(3).save(picture(height=64, width=64), tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:2000])
    for name in ("text.png", "cut.png", "missing.png", "."):
        with pytest.raises(UserError, match=r"^[^\n]*: not readable as a picture \([^\n]+\)$"):
            read_picture(tmp_path / name)


def test_what_is_kept_keeps_its_pixels_and_the_rest_is_new() -> None:
    kept = torch.zeros(6, 9, dtype=torch.bool)
    kept[2:, 3:] = True
    blended = Pictures(3).blend(picture(), -picture(), kept)
    assert torch.equal(blended[:, 2:, 3:], picture()[:, 2:, 3:])
    assert torch.equal(blended[:, :2], -picture()[:, :2])


def test_small_pictures_are_enlarged_to_be_looked_at() -> None:
    shown = Pictures(3).preview(picture())
    assert shown.size == (9 * 11, 6 * 11)
    assert shown.getpixel((2 * 11 + 5, 4 * 11 + 5)) == tuple(((picture()[:, 4, 2] + 1) * 127.5).round().int().tolist())
    assert Pictures(1).preview(picture(1, 100, 80)).size == (80, 100)


def test_a_sheet_has_its_cells_row_by_row() -> None:
    cells = [Image.new("L", (10 + n, 8), 40 * n) for n in range(5)]
    page = sheet(cells, columns=2)
    assert page.size == (2 * 16 + 2, 3 * 10 + 2)
    assert [page.getpixel((3 + n % 2 * 16, 3 + n // 2 * 10)) for n in range(5)] == [(40 * n,) * 3 for n in range(5)]
    assert page.getpixel((0, 0)) == page.getpixel((20, 25)) == (255, 255, 255)
    assert sheet(cells).size == page.size


# --- as pictures are seen

GREYS = [0, 1, 64, 127, 128, 200, 254, 255]


def levels(media: torch.Tensor) -> list[list[int]]:
    """Bytes of each channel, row after row."""
    return [((channel + 1) * 127.5).round().int().flatten().tolist() for channel in media]


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".pgm"])
def test_16_bits_keep_their_black_and_white(suffix: str, tmp_path: Path) -> None:
    deep = np.array([[257 * grey for grey in GREYS]], np.uint16)
    path = tmp_path / f"a{suffix}"
    if suffix == ".pgm":  # which Pillow opens with 32 bits
        path.write_bytes(b"P5 8 1 65535\n" + deep.astype(">u2").tobytes())
    else:
        Image.fromarray(deep).save(path)
    assert levels(read_picture(path, channels=1)) == [GREYS]
    assert levels(read_picture(path, channels=3)) == [GREYS] * 3


@pytest.mark.parametrize("order", ["I;16", "I;16L", "I;16B"])
def test_both_orders_of_bytes_are_read(order: str) -> None:
    assert np.asarray(flat(Image.new(order, (2, 1), 65535 // 5), 1)).tolist() == [[51, 51]]


def test_between_two_greys_the_nearest_is_taken(tmp_path: Path) -> None:
    Image.fromarray(np.array([[128, 129, 300, 65407]], np.uint16)).save(tmp_path / "a.png")
    assert levels(read_picture(tmp_path / "a.png", channels=1)) == [[0, 1, 1, 255]]


def test_a_nearly_black_mask_of_16_bits_is_black(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 300, np.uint16)).save(tmp_path / "mask.png")
    assert not (read_picture(tmp_path / "mask.png", channels=1) > 0).any()


@pytest.mark.parametrize("white", [1, 255])
def test_floats_go_up_to_one_or_to_255(white: int, tmp_path: Path) -> None:
    Image.fromarray(np.array([GREYS], np.float32) / 255 * white).save(tmp_path / "a.tiff")
    assert levels(read_picture(tmp_path / "a.tiff", channels=1)) == [GREYS]


def test_what_white_is_unknown_of_is_refused_in_a_line(tmp_path: Path) -> None:
    for name, values in {
        "a": np.array([[0.0, 300.0]], np.float32),
        "b": np.array([[-1.0, 1.0]], np.float32),
        "c": np.array([[np.nan, 1.0]], np.float32),
        "d": np.array([[0, 70_000]], np.int32),
    }.items():
        Image.fromarray(values).save(tmp_path / f"{name}.tiff")
        with pytest.raises(UserError, match=rf"{name}\.tiff: [^\n]*white is not known[^\n]*$"):
            read_picture(tmp_path / f"{name}.tiff")
        with Image.open(tmp_path / f"{name}.tiff") as image, pytest.raises(BrokenItem):
            flat(image, 1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_every_mode_has_its_black_and_white(mode: str) -> None:
    ends = Image.fromarray(np.array([[[0] * 3, [255] * 3]], np.uint8))
    image = ends.convert({"PA": "P", "RGBa": "RGBA"}.get(mode, mode)).convert(mode)
    for channels in (1, 3):
        assert np.abs(np.asarray(flat(image, channels)).reshape(2, -1) - [[0], [255]]).max() <= 1


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    """Of colours with and without a palette, of greys, and of one grey of a file."""
    Image.new("RGBA", (1, 1), (0, 0, 0, 0)).save(tmp_path / "rgba.png")
    Image.new("LA", (1, 1), (0, 0)).save(tmp_path / "la.png")
    Image.new("P", (1, 1), 0).save(tmp_path / "p.png", transparency=0)
    Image.new("P", (1, 1), 0).save(tmp_path / "p.gif", transparency=0)
    Image.new("L", (1, 1), 0).save(tmp_path / "l.png", transparency=0)
    Image.new("1", (1, 1), 0).save(tmp_path / "1.png", transparency=0)
    Image.new("RGB", (1, 1), 0).save(tmp_path / "rgb.png", transparency=(0, 0, 0))
    Image.fromarray(np.array([[5000]], np.uint16)).save(tmp_path / "i16.png", transparency=5000)
    for path in tmp_path.iterdir():
        assert levels(read_picture(path)) == [[255]] * 3, path.name
    Image.new("RGBA", (1, 1), (255, 0, 0, 51)).save(tmp_path / "a.webp", lossless=True)
    assert levels(read_picture(tmp_path / "a.webp")) == [[255], [204], [204]]


def test_pictures_to_edit_are_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    stored = np.zeros((2, 4, 3), np.uint8)
    stored[:, 0] = 255  # what is seen on top
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    seen = Pictures(3).load(tmp_path / "a.png", (3, 4, 2))
    assert levels(seen) == [[255, 255] + [0] * 6] * 3


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_is_read(suffix: str, tmp_path: Path) -> None:
    form = "JPEG" if suffix == ".jfif" else Image.registered_extensions()[suffix]
    Image.new("RGB", (16, 16), (200, 40, 40)).save(tmp_path / f"a{suffix}", form)
    assert (read_picture(tmp_path / f"a{suffix}").mean((1, 2)) - torch.tensor([0.57, -0.69, -0.69])).abs().max() < 0.05


def test_of_an_animation_the_first_frame_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for suffix in (".gif", ".webp"):
        frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:], lossless=True)
        red, _, blue = read_picture(tmp_path / f"a{suffix}").mean((1, 2))
        assert red > 0.9
        assert blue < -0.9


def test_a_picture_of_very_many_pixels_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (8, 5)).save(tmp_path / "large.png")
    monkeypatch.setattr("djepa_mm.media.pictures.MOST_PIXELS", 39)
    with pytest.raises(UserError, match=r"large\.png: 8×5 pixels, more than 39; make it smaller$"):
        read_picture(tmp_path / "large.png")
    monkeypatch.setattr("djepa_mm.media.pictures.MOST_PIXELS", 40)
    assert read_picture(tmp_path / "large.png").shape == (3, 5, 8)
