"""Pictures: their files, and how people look at them.

C channels, 1 or 3; H and W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, features
from torch import Tensor

from djepa_mm.errors import BrokenItem, UserError

MOST_PIXELS = 64_000_000  # what is transparent takes 16 bytes for each until it is flat
JPEG_QUALITY = 95  # of 100
PREVIEW_PIXELS = 64  # what has fewer on a side is enlarged to be looked at
SUFFIXES: tuple[str, ...] = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")
if "avif" in features.modules and features.check("avif"):  # Pillow reads it since 11.3, where it was built with it
    SUFFIXES = (*SUFFIXES, ".avif")
TRANSPARENT = ("LA", "PA", "RGBA", "RGBa")  # modes
UPRIGHT = 1  # EXIF's number for pictures that lie in the file as they are seen
ON_THEIR_SIDE = (5, 6, 7, 8)  # and for those whose width is what the file calls height


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
        if shape is not None:
            with opened(path, "a picture") as header:
                size = upright_size(header)
            if size != tuple(shape[1:]):
                found, wanted = (f"{width}×{height}" for height, width in (size, shape[1:]))
                raise UserError(f"{path}: the picture is {found} pixels, this model takes {wanted}; resize it first")
        return read_picture(path, channels=self.channels)

    def blend(self, original: Tensor, new: Tensor, kept: Tensor) -> Tensor:
        return torch.where(kept, original, new)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        raise UserError("pictures do not follow each other in time: generate them one by one")

    def preview(self, media: Tensor) -> Image.Image:
        picture = image_of(to_bytes(media))
        return enlarged(picture, min(picture.size))


def read_picture(path: Path, *, channels: int = 3) -> Tensor:
    """Any file that Pillow reads, as it is seen: upright, transparent parts on white -> (C, H, W) in [-1, 1].

    Of an animation, its first frame. Raises UserError, one line."""
    with opened(path, "a picture") as picture:
        return from_bytes(pixels_of(upright(picture), channels)).permute(2, 0, 1)


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
    """Of any of Pillow's modes, transparent parts on white -> (H, W, C) uint8."""
    return np.asarray(flat(picture, channels)).reshape(picture.height, picture.width, channels)


# --- as pictures are seen ---------------------------------------------------------------------------------------------


def flat(picture: Image.Image, channels: int) -> Image.Image:
    """Of any of Pillow's modes, in 8 bits and with transparent parts on white: grey (L) or RGB.

    16 bits keep their black and white; Pillow alone would cut them off at 255. Raises BrokenItem where what is white
    cannot be known: beyond 16 bits, and floats beyond 255 or below 0."""
    if picture.mode.startswith(("I", "F")):
        picture = _narrowed(picture)
    if picture.mode in TRANSPARENT or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("L" if channels == 1 else "RGB")


def _narrowed(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits, or of floats up to 1 or up to 255, in 8 bits (L, or LA where one grey means transparent)."""
    values = np.asarray(picture)
    low, high = values.min(), values.max()
    if picture.mode == "F":  # what would be black all over up to 255 has 1 for white
        white = 255.0 if high > 1 else 1.0
    else:
        white = 65535.0
    if not (low >= 0 and high <= white):
        kind = "floats" if picture.mode == "F" else "integers"
        raise BrokenItem(f"{kind} from {low:g} to {high:g}, of which white is not known; save it with 8 or 16 bits")
    scaled = values.astype(np.float32)  # in place from here on, for these are the largest pictures
    scaled *= 255 / white
    grey = Image.fromarray(scaled.round(out=scaled).astype(np.uint8))
    if isinstance(clear := picture.info.get("transparency"), int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def upright(picture: Image.Image) -> Image.Image:
    """Turned as the camera was held."""
    return picture if orientation(picture) == UPRIGHT else ImageOps.exif_transpose(picture)


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """(H, W) of the same, from its header alone."""
    height, width = picture.height, picture.width
    return (width, height) if orientation(picture) in ON_THEIR_SIDE else (height, width)


def orientation(picture: Image.Image) -> int:
    """EXIF's number for how the camera was held, UPRIGHT where the header does not say.

    Pillow would decode all of a PNG in search of one that stands behind the pixels, where hardly any does."""
    if picture.format == "PNG" and "exif" not in picture.info:
        return UPRIGHT
    return picture.getexif().get(ExifTags.Base.Orientation, UPRIGHT)


# --- files ------------------------------------------------------------------------------------------------------------


@contextmanager
def readable(path: Path | IO[bytes], what: str = "a picture") -> Iterator[Any]:
    """A file, or what one holds, in Pillow, whose ways to fail, now and later, become BrokenItem: it is not readable
    as `what`."""
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise BrokenItem(f"{picture.width}×{picture.height} pixels, more than {MOST_PIXELS:,}; make it smaller")
            yield picture
    except (BrokenItem, UserError):
        raise
    except Exception as error:  # Pillow's readers meet broken files with nearly any exception
        raise BrokenItem(f"not readable as {what} ({' '.join(str(error).split())})") from None


@contextmanager
def opened(path: Path, what: str) -> Iterator[Any]:
    """The same for a single file: UserError, which names it."""
    try:
        with readable(path, what) as picture:
            yield picture
    except BrokenItem as error:
        raise UserError(f"{path}: {error}") from None
