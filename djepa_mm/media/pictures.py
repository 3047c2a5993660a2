"""Pictures: their files, and how people look at them.

C channels, 1 or 3; H and W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from djepa_mm.errors import UserError

JPEG_QUALITY = 95  # of 100
PREVIEW_PIXELS = 64  # what has fewer on a side is enlarged to be looked at


class Pictures:
    """Pictures (C, H, W) in [-1, 1], of any size."""

    suffixes: tuple[str, ...] = (".png", ".webp", ".jpg")
    per_second: float | None = None

    def __init__(self, channels: int) -> None:
        self.channels = channels

    def save(self, media: Tensor, path: Path) -> None:
        """.png and .webp keep every pixel, .jpg does not."""
        image_of(to_bytes(media)).save(path, lossless=True, quality=JPEG_QUALITY)

    def load(self, path: Path, shape: tuple[int, ...] | None = None) -> Tensor:
        """Any file that Pillow reads."""
        picture = read_picture(path, channels=self.channels)
        if shape is not None and tuple(picture.shape) != tuple(shape):
            found, wanted = (f"{width}×{height}" for _, height, width in (picture.shape, shape))
            raise UserError(f"{path}: the picture is {found} pixels, this model takes {wanted}; resize it first")
        return picture

    def blend(self, original: Tensor, new: Tensor, kept: Tensor) -> Tensor:
        return torch.where(kept, original, new)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        raise UserError("pictures do not follow each other in time: generate them one by one")

    def preview(self, media: Tensor) -> Image.Image:
        picture = image_of(to_bytes(media))
        return enlarged(picture, min(picture.size))


def read_picture(path: Path, *, channels: int = 3) -> Tensor:
    """Any file that Pillow reads -> (C, H, W) in [-1, 1]. Raises UserError, one line."""
    with opened(path, "a picture") as picture:
        return from_bytes(pixels_of(picture, channels)).permute(2, 0, 1)


def enlarged(picture: Image.Image, side: int) -> Image.Image:
    """So many times as large that what has `side` pixels on it has PREVIEW_PIXELS or more."""
    times = -(-PREVIEW_PIXELS // side)
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)


def to_bytes(media: Tensor) -> np.ndarray:
    """(C, …) in [-1, 1] -> (…, C) uint8."""
    pixels = ((media.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return np.ascontiguousarray(pixels.movedim(0, -1).numpy())


def from_bytes(pixels: np.ndarray) -> Tensor:
    """uint8 -> [-1, 1], of the same shape."""
    return torch.from_numpy(pixels.copy()) / 127.5 - 1


def image_of(pixels: np.ndarray) -> Image.Image:
    """(H, W, C) uint8 -> a grey or RGB picture."""
    return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)


def pixels_of(picture: Image.Image, channels: int) -> np.ndarray:
    """-> (H, W, C) uint8."""
    return np.asarray(picture.convert("L" if channels == 1 else "RGB")).reshape(picture.height, picture.width, channels)


@contextmanager
def opened(path: Path, what: str) -> Iterator[Any]:
    """A file in Pillow, whose ways to fail, now and later, become one line: it is not readable as `what`."""
    try:
        with Image.open(path) as picture:
            yield picture
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not readable as {what} ({' '.join(str(error).split())})") from None
