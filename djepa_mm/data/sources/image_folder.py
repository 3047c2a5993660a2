"""A folder of pictures, one subfolder for each class, with captions where there are any."""

from __future__ import annotations

import codecs
import copy
import json
import os
import posixpath
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from PIL import Image, ImageOps
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from djepa_mm.data.compact import Packed
from djepa_mm.data.drawing import one_of
from djepa_mm.data.folders import FolderConfig, Found, class_of, find_files, printable
from djepa_mm.data.headers import in_threads, read_headers
from djepa_mm.data.sizes import Size, SizesKey, chance, drawn_size, largest_size, phase
from djepa_mm.media.pictures import SUFFIXES, flat, readable, upright, upright_size
from djepa_mm.types import BrokenItem, Entry, Item, UserError

Texts = tuple[str, ...]
CAPTIONS = "captions.jsonl"  # rows with "file" (relative to the root) and "caption", or a list of "captions"
BESIDE = ".txt"
MOST_BYTES = 100_000  # of a text file beside a picture
NAMED = 5  # lines of captions.jsonl that are named, of all that are alike


class ImageFolderConfig(FolderConfig):
    """Pictures in class folders, or straight in the root where there are no classes."""

    source: Literal["image-folder"]
    size: Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)] | None
    """Height and width: the largest centred part of that shape is cut out and resized; null takes each picture at its
    own size."""
    multiple_of: Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)] = (1, 1)
    """Where height and width are the picture's own, its middle is cut out to multiples of these: the tokenizer's
    patch."""
    sizes: SizesKey = None
    """Draws a size at each reading, in place of `size`: a list of distributions, one after the other. Pictures keep
    their aspect, as far as `multiple_of` lets them; of one that is too small for all of a distribution, only the part
    that it can have is drawn, and its largest where that is none."""
    enlarge: PositiveFloat = 1.0
    """Most that `sizes` enlarge a side of a picture."""
    channels: Literal[1, 3] = 3
    """1 makes pictures grey."""
    flip: bool = False
    """Mirror half of the pictures at random, each time they are read."""
    captions: Literal["auto", "none", "jsonl", "txt"] = "auto"
    """Texts of the pictures: jsonl is a captions.jsonl in the root, a row for each picture with its "file" and its
    "caption", or a list of "captions" of which each reading takes one; txt is a text file beside each, such as cat.txt
    beside cat.png. Pictures that have none there are broken. auto takes captions.jsonl where there is one."""
    held_out_root: str | None = None
    """Another folder of the same layout to evaluate with, in place of a share of this one."""

    @model_validator(mode="after")
    def _check_sides(self) -> ImageFolderConfig:
        if self.sizes and self.size is not None:
            raise ValueError("data.sizes draws what data.size says: set data.size to null")
        if self.held_out and self.held_out_root is not None:
            raise ValueError("data.held_out and data.held_out_root: give one of the two")
        if self.held_out_root is not None:
            seen, unseen = (Path(folder).expanduser().resolve() for folder in (self.root, self.held_out_root))
            if seen == unseen or seen in unseen.parents:
                raise ValueError(
                    "data.held_out_root lies in data.root, so training would see it: choose another folder"
                )
        return self

    def build(self) -> ImageFolder:
        return ImageFolder(self)

    def build_held_out(self) -> ImageFolder | None:
        """Never mirrored."""
        still = self.model_copy(update={"flip": False})
        if self.held_out_root is not None:
            return ImageFolder(still.model_copy(update={"root": self.held_out_root}), field="data.held_out_root")
        return ImageFolder(still.held_out_side()) if self.held_out else None


class ImageFolder:
    """Where there are class folders, pictures outside them have no class and are left out."""

    def __init__(self, config: ImageFolderConfig, field: str = "data.root") -> None:
        """field: of the recipe, that says which folder it is."""
        self.config = config
        self.readings = 2 if config.flip else 1  # mirrored, and as it is
        self.draws = "data.sizes" if config.sizes else ""
        self.drawn = config.sizes[0] if config.sizes else None
        self.root = Path(config.root).expanduser()
        if not self.root.is_dir():
            where = self.root.absolute()
            raise UserError(f"{field}: no folder at {where}; give a folder of pictures or of class folders")
        beside = BESIDE if config.captions == "txt" else None
        found = find_files(self.root, SUFFIXES, known=(CAPTIONS,), beside=beside)
        if not found.files:
            where = self.root.absolute()
            raise UserError(f"{field}: no pictures in {where}; it takes {', '.join(SUFFIXES)}{found.others}")
        self.classes = tuple(printable(name) for name in found.classes)
        self.files = config.kept(found.files)
        self.left_out = config.left_out(found, self.files)
        self.captions: Sequence[Texts | str] | None = None  # by index in `files`, or why there are none
        if config.captions == "txt":
            self.captions = self._beside(found)
        elif config.captions != "none":
            self.captions = self._captions(found.files)
        self.own_sizes: Sequence[Size | str] | None = None  # (H, W) in the files, or why it is not known
        if config.size is None:
            self.own_sizes = read_headers(self.root, self.files, in_threads(_size_in), kind="pictures 1")

    def __len__(self) -> int:
        return len(self.files)

    def entry(self, index: int) -> Entry:
        file = self.files[index]
        label = class_of(file) if self.classes else None
        said: Texts | str = () if self.captions is None else self.captions[index]
        texts = () if isinstance(said, str) else said
        return Entry(
            name=printable(file),
            path=self.root / file,
            label=label,
            text=texts[0] if texts else None,
            texts=texts if len(texts) > 1 else (),
            untold=said if isinstance(said, str) else "",
        )

    def shape(self, index: int) -> tuple[int, ...]:
        """(C, H, W)."""
        self._check_caption(index)
        config = self.config
        if config.size is not None:
            return (config.channels, *config.size)
        own = self._own_size(index)
        if config.sizes:
            return (config.channels, *largest_size(config.sizes, own, config.multiple_of, config.enlarge))
        return (config.channels, *own_size(*own, config.multiple_of))

    def at(self, batch: int) -> Self:
        """With the sizes that are drawn from that batch of the run on."""
        drawn = phase(self.config.sizes, batch) if self.config.sizes else None
        if drawn is self.drawn:
            return self
        other = copy.copy(self)
        other.drawn = drawn
        return other

    def drawn_shape(self, index: int, generator: torch.Generator) -> tuple[int, ...]:
        """(C, H, W) of the reading that the generator draws. Raises BrokenItem."""
        config = self.config
        if self.drawn is None:
            return self.shape(index)
        size = drawn_size(self.drawn, self._own_size(index), config.multiple_of, config.enlarge, chance(generator))
        return (config.channels, *size)

    def _own_size(self, index: int) -> Size:
        assert self.own_sizes is not None
        size = self.own_sizes[index]
        if isinstance(size, str):
            raise BrokenItem(size)
        return size

    def file_size(self, index: int) -> Size:
        """(H, W) of the picture in the file. Raises BrokenItem."""
        return _size_in(self.root / self.files[index])

    def read(self, index: int) -> Item:
        size = self.config.size
        if self.drawn is not None:  # before all else that is drawn, see `DrawsSizes`
            _, height, width = self.drawn_shape(index, torch.default_generator)
            size = (height, width)
        return self._read(index, size, one_of(self.readings))

    def read_as(self, index: int, reading: int) -> Item:
        """reading: of a corpus that is mirrored at random, 0 is mirrored."""
        assert self.drawn is None, "too many readings to choose one"
        return self._read(index, self.config.size, reading)

    def _read(self, index: int, size: Size | None, reading: int) -> Item:
        config = self.config
        self._check_caption(index)
        with readable(self.root / self.files[index]) as image:
            media = seen_as(image, size, config.multiple_of, config.channels)
        return Item(entry=self.entry(index), media=media.flip(-1) if config.flip and reading == 0 else media)

    def _check_caption(self, index: int) -> None:
        """Raises BrokenItem where a picture has no caption, and the recipe says where it should be."""
        if self.captions is not None and self.config.captions != "auto":
            said = self.captions[index]
            if isinstance(said, str):
                raise BrokenItem(said)

    def _beside(self, found: Found) -> Sequence[Texts | str]:
        """Raises UserError where not a single picture has a text file."""
        if not found.beside:
            where = self.root.absolute()
            raise UserError(
                f"data.captions txt: no picture in {where} has a text file of its name, such as cat{BESIDE}"
            )
        of_name = {os.path.splitext(file)[0]: file for file in found.beside}
        names = [os.path.splitext(file)[0] for file in self.files]
        files = sorted({of_name[name] for name in names if name in of_name})
        texts = dict(zip(files, read_headers(self.root, files, in_threads(_text_in), kind="texts 1"), strict=True))
        return Packed(texts[of_name[name]] if name in of_name else f"no {BESIDE} beside it" for name in names)

    def _captions(self, files: Sequence[str]) -> Sequence[Texts | str] | None:
        """Lines of the file of captions that say nothing of one of these pictures are counted, and the first named.

        Raises UserError where it is not there, and has to be."""
        path = self.root / CAPTIONS
        if not path.is_file():
            if self.config.captions == "auto":
                return None
            raise UserError(f"data.captions jsonl: no {CAPTIONS} in {self.root.absolute()}; write one, or take txt")
        names = {_key(printable(file)) for file in files}
        captions: dict[str, Texts | str] = {}
        wrong: dict[str, list[int]] = {}  # numbers of lines
        for number, line in enumerate(path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
            if not line.strip():
                continue
            file, texts, reason = _caption(line)
            if reason is None and file not in names:
                reason = "no such picture"
            if reason is None and not isinstance(captions.get(file, ""), str):
                reason = "a picture that has one already"
            if reason is None:
                captions[file] = texts
            else:
                captions.setdefault(file, f"{CAPTIONS}, line {number}: {reason}")
                wrong.setdefault(reason, []).append(number)
        for reason, numbers in wrong.items():
            some = ", ".join(map(str, numbers[:NAMED])) + (", …" if len(numbers) > NAMED else "")
            self.left_out[f"lines of {CAPTIONS}: {reason} ({some})"] = len(numbers)
        return Packed(captions.get(_key(printable(file)), f"{CAPTIONS} has no line of it") for file in self.files)


def _size_in(path: Path) -> Size:
    """Height and width of the picture in a file, upright. Raises BrokenItem."""
    with readable(path) as image:
        return upright_size(image)


def _text_in(path: Path) -> Texts:
    """Of a text file. Raises BrokenItem."""
    try:
        with path.open("rb") as file:
            found = file.read(MOST_BYTES + 1)
        if len(found) > MOST_BYTES:
            raise BrokenItem(f"{path.name}: more than {MOST_BYTES:,} bytes")
        return (found.decode("utf-8-sig").strip(),)
    except OSError as error:
        raise BrokenItem(f"{path.name}: not readable ({error.strerror})") from None
    except UnicodeDecodeError:
        raise BrokenItem(f"{path.name}: not UTF-8") from None


def _caption(line: bytes) -> tuple[str, Texts, str | None]:
    """File, captions, and what is wrong with the line."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return "", (), "not UTF-8"
    except (ValueError, RecursionError):
        return "", (), "not JSON"
    if not isinstance(row, dict) or not isinstance(row.get("file"), str):
        return "", (), 'no "file" and "caption" that are texts'
    captions = row.get("captions") or [row.get("caption")]
    if not isinstance(captions, list) or not captions or not all(isinstance(one, str) for one in captions):
        return _key(row["file"]), (), 'no "file" and "caption" that are texts'
    return _key(row["file"]), tuple(captions), None


def _key(name: str) -> str:
    """A file's name as captions are looked up by: however its accents, and the way to it, are written."""
    return unicodedata.normalize("NFC", posixpath.normpath(name.replace("\\", "/")))


def seen_as(image: Any, size: Size | None, multiple_of: Size, channels: Literal[1, 3]) -> Tensor:
    """A picture of `readable`, upright, of that size or of the greatest multiples within its own -> (C, H, W).

    Raises BrokenItem."""
    seen = upright(image)
    if size is not None:
        return to_media(seen, size, channels)
    height, width = own_size(*upright_size(image), multiple_of)
    left, top = (seen.width - width) // 2, (seen.height - height) // 2
    return to_media(seen.crop((left, top, left + width, top + height)), (height, width), channels)


def own_size(height: int, width: int, multiple_of: Size) -> Size:
    """Height and width, the greatest multiples within a picture's own. Raises BrokenItem."""
    rows, columns = multiple_of
    if height < rows or width < columns:
        raise BrokenItem(f"{width}×{height} pixels, less than data.multiple_of")
    return height - height % rows, width - width % columns


def to_media(image: Image.Image, size: tuple[int, int], channels: Literal[1, 3]) -> Tensor:
    """A Pillow image, transparent parts on white, centre-cropped and resized to (C, H, W) in [-1, 1]."""
    from torchvision.transforms.functional import pil_to_tensor  # a second to import

    height, width = size
    image = ImageOps.fit(flat(image, channels), (width, height), Image.Resampling.BICUBIC)
    return pil_to_tensor(image).float() / 127.5 - 1
