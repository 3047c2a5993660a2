"""A folder of pictures, one subfolder for each class, with captions where there are any."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import torch
from PIL import ExifTags, Image, ImageOps
from pydantic import Field, PositiveInt
from torch import Tensor

from djepa_mm.types import BrokenItem, Entry, Item, SourceConfig, UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CAPTIONS = "captions.jsonl"  # rows with "file" (relative to the root) and "caption"
UPRIGHT = 1  # EXIF's number for pictures that lie in the file as they are seen
ON_THEIR_SIDE = (5, 6, 7, 8)  # and for those whose width is what the file calls height


class ImageFolderConfig(SourceConfig):
    """Pictures in class folders, or straight in the root where there are no classes."""

    source: Literal["image-folder"]
    root: str
    size: Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)] | None
    """Height and width: the largest centred part of that shape is cut out and resized; null takes each picture at its
    own size."""
    multiple_of: Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)] = (1, 1)
    """Where height and width are the picture's own, its middle is cut out to multiples of these: the tokenizer's
    patch."""
    flip: bool = False
    """Mirror half of the pictures at random, each time they are read."""

    def build(self) -> ImageFolder:
        return ImageFolder(self)


class ImageFolder:
    """Where there are class folders, pictures outside them have no class and are left out."""

    def __init__(self, config: ImageFolderConfig) -> None:
        self.config = config
        self.draws = config.flip
        self.root = Path(config.root).expanduser()
        if not self.root.is_dir():
            raise UserError(f"data.root: no folder at {config.root!r}; give a folder of pictures or of class folders")
        found = sorted(p.relative_to(self.root) for p in self.root.rglob("*") if p.suffix.lower() in SUFFIXES)
        self.classes = tuple(sorted({path.parts[0] for path in found if len(path.parts) > 1}))
        self.files = [path for path in found if len(path.parts) > 1] if self.classes else found
        if not self.files:
            raise UserError(f"data.root: no pictures in {config.root!r}; it takes {', '.join(SUFFIXES)}")
        self.captions = _captions(self.root / CAPTIONS)

    def __len__(self) -> int:
        return len(self.files)

    def entry(self, index: int) -> Entry:
        file = self.files[index]
        name = file.as_posix()
        label = file.parts[0] if self.classes else None
        return Entry(name=name, path=self.root / file, label=label, text=self.captions.get(name))

    def shape(self, index: int) -> tuple[int, ...]:
        """(3, H, W)."""
        if self.config.size is not None:
            return (3, *self.config.size)
        with _opened(self.root / self.files[index]) as image:
            return (3, *self._own_size(image))

    def read(self, index: int) -> Item:
        with _opened(self.root / self.files[index]) as image:
            if self.config.size is not None:
                media = to_media(ImageOps.exif_transpose(image), self.config.size, channels=3)
            else:
                upright = image if _orientation(image) == UPRIGHT else ImageOps.exif_transpose(image)
                height, width = size = self._own_size(image)
                left, top = (upright.width - width) // 2, (upright.height - height) // 2
                media = to_media(upright.crop((left, top, left + width, top + height)), size, channels=3)
        if self.config.flip and torch.rand(()) < 0.5:
            media = media.flip(-1)
        return Item(entry=self.entry(index), media=media)

    def _own_size(self, image: Image.Image) -> tuple[int, int]:
        """Height and width, the greatest multiples within a picture's own, from its header. Raises BrokenItem."""
        width, height = image.size
        if _orientation(image) in ON_THEIR_SIDE:
            width, height = height, width
        rows, columns = self.config.multiple_of
        if height < rows or width < columns:
            raise BrokenItem(f"{width}×{height} pixels, less than data.multiple_of")
        return height - height % rows, width - width % columns


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except BrokenItem:
        raise
    except Exception as error:  # Pillow's readers meet broken files with nearly any exception
        raise BrokenItem(f"not a readable picture ({error})") from error


def _orientation(image: Image.Image) -> int:
    """EXIF's number for how the camera was held, UPRIGHT where the header does not say.

    Pillow would decode all of a PNG in search of one that stands behind the pixels, where hardly any does."""
    if image.format == "PNG" and "exif" not in image.info:
        return UPRIGHT
    return image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)


def to_media(image: Image.Image, size: tuple[int, int], channels: Literal[1, 3]) -> Tensor:
    """A Pillow image, transparent parts on white, centre-cropped and resized to (C, H, W) in [-1, 1]."""
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    from torchvision.transforms.functional import pil_to_tensor  # a second to import

    height, width = size
    image = ImageOps.fit(image.convert("RGB" if channels == 3 else "L"), (width, height), Image.Resampling.BICUBIC)
    return pil_to_tensor(image).float() / 127.5 - 1


def _captions(path: Path) -> dict[str, str]:
    """Captions by file; empty where there is no such file."""
    if not path.is_file():
        return {}
    captions = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            captions[row["file"]] = row["caption"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f'{path} line {number}: not an object with "file" and "caption": {line[:60]!r}') from error
    return captions
