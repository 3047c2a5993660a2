"""A folder of pictures, one subfolder for each class, with captions where there are any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import torch
from PIL import Image, ImageOps
from pydantic import Field, PositiveInt
from torch import Tensor

from djepa_mm.types import BrokenItem, Item, SourceConfig, UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CAPTIONS = "captions.jsonl"  # rows with "file" (relative to the root) and "caption"


class ImageFolderConfig(SourceConfig):
    """Pictures in class folders, or straight in the root where there are no classes."""

    source: Literal["image-folder"]
    root: str
    size: Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)]
    """Height and width: the largest centred part of that shape is cut out and resized."""
    flip: bool = False
    """Mirror half of the pictures at random, each time they are read."""

    def build(self) -> ImageFolder:
        return ImageFolder(self)


class ImageFolder:
    """Where there are class folders, pictures outside them have no class and are left out."""

    sample_rate_hz = None

    def __init__(self, config: ImageFolderConfig) -> None:
        self.config = config
        self.root = Path(config.root).expanduser()
        if not self.root.is_dir():
            raise UserError(f"data.root: no folder at {config.root!r}; give a folder of pictures or of class folders")
        found = sorted(p.relative_to(self.root) for p in self.root.rglob("*") if p.suffix.lower() in SUFFIXES)
        self.classes = tuple(sorted({path.parts[0] for path in found if len(path.parts) > 1}))
        self.files = [path for path in found if len(path.parts) > 1] if self.classes else found
        if not self.files:
            raise UserError(f"data.root: no pictures in {config.root!r}; it takes {', '.join(SUFFIXES)}")
        self.labels = {name: label for label, name in enumerate(self.classes)}
        self.captions = _captions(self.root / CAPTIONS)

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        return self.files[index].as_posix()

    def text(self, index: int) -> str | None:
        return self.captions.get(self.name(index))

    def shape(self, index: int) -> tuple[int, ...]:
        return (3, *self.config.size)

    def read(self, index: int) -> Item:
        try:
            with Image.open(self.root / self.files[index]) as image:
                media = to_media(ImageOps.exif_transpose(image), self.config.size, channels=3)
        except Exception as error:  # Pillow's readers meet broken files with nearly any exception
            raise BrokenItem(f"not a readable picture ({error})") from error
        if self.config.flip and torch.rand(()) < 0.5:
            media = media.flip(-1)
        label = self.labels.get(self.files[index].parts[0])
        return Item(media=media, label=label, text=self.text(index))


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
