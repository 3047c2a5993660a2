"""Pictures in files, and to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from djepa_mm.errors import UserError
from djepa_mm.media.pictures import Pictures, read_picture
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
