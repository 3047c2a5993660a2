"""WebDataset's shards: tars whose files of one name, but for the suffix, are one item.

A tar is read in order and nothing of it is unpacked under a name that it gives. What is no plain file, or leads out of
the shard, or is too large, breaks its item, which is then named.
"""

from __future__ import annotations

import copy
import io
import json
import math
import os
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import IO, Annotated, Any, Literal, Self
from urllib.parse import urlparse

import safetensors.torch
import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from safetensors import SafetensorError
from torch import Tensor

from djepa_mm.data.drawing import one_of
from djepa_mm.data.folders import printable
from djepa_mm.data.sizes import SizesKey, chance, drawn_size, phase
from djepa_mm.data.sources import clips, image_folder, ljspeech
from djepa_mm.media import pictures
from djepa_mm.types import BrokenItem, Entry, Item, Sample, Stream, UserError

INDEX = "index.json"  # beside the shards, of `djepa-mm data pack`
TENSOR = "safetensors"  # suffix of media that no other kind of file keeps as they are
SUFFIXES = {
    "picture": pictures.SUFFIXES,
    "sound": tuple({suffix.lower(): None for suffix in ljspeech.SUFFIXES}),
    "clip": clips.SUFFIXES,
}
MIRRORED = 2  # readings of a picture that may be mirrored
AXES = {"picture": 3, "sound": 1, "clip": 4}
OWN = {  # keys that are of one kind of media alone, or two
    "picture": ("size", "sizes", "enlarge", "multiple_of", "channels", "flip", "max_side"),
    "sound": ("sample_rate_hz", "max_duration_s"),
    "clip": (
        *("size", "multiple_of", "channels", "frames", "frame_rate", "stride", "window", "reader"),
        *("decode_timeout_s", "max_side", "max_frames", "max_duration_s"),
    ),
}
LOOKED_AT = 20, 50  # shards, and items of each, to find the classes in where nothing names them
MOST_HEADER = 1 << 16  # bytes of a name or of a list of attributes in a tar
MOST_INDEX = 1 << 28  # bytes
MOST_SHARDS = 1_000_000
MOST_LABEL = 1000  # characters
TAGS = ("style", "source")  # names in a .json


class ShardsConfig(clips.VideoConfig):
    """WebDataset's shards of pictures, sounds or clips, with labels in .cls, captions in .txt, either in .json, where
    a list of "captions" gives each reading one of them, and a style and a source may stand too.

    Keys of other media than these are refused where they are set."""

    source: Literal["shards"]
    urls: str | Annotated[tuple[str, ...], Field(min_length=1)]
    """Shards: a file, a folder of them, a pattern such as data/{000..099}.tar, or the same of https://; or a list."""
    media: Literal["picture", "sound", "clip"]
    """What an item is."""
    size: Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)] | None = None
    sizes: SizesKey = None
    """Draws a size of pictures, in place of `size`, as that of an image-folder; one for all that readers give to a
    batch, so that they are alike."""
    enlarge: PositiveFloat = 1.0
    """Most that `sizes` enlarge a side of a picture."""
    flip: bool = False
    """Mirror half of the pictures at random, each time they are read."""
    sample_rate_hz: PositiveInt = 22050
    """Sounds of another rate are resampled."""
    classes: tuple[str, ...] = ()
    """Names of the classes in their order. Where none are given, they are taken from the index that `djepa-mm data
    pack` writes beside the shards, else from the first items."""
    readers: PositiveInt = 8
    """Virtual readers that the shards are dealt to; a batch takes as many items from each. Processes share them."""
    shuffle: NonNegativeInt = 256
    """Items that each reader holds and mixes, in shards whose order is drawn anew in each epoch; 0 mixes nothing."""
    max_member_mb: PositiveFloat = 256.0
    """A file in a shard that is larger breaks its item."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        others = {key for keys in OWN.values() for key in keys} - set(OWN[self.media])
        for key in sorted(others):
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"data.{key} has no meaning for data.media {self.media}: leave it out")
        if self.sizes and self.size is not None:
            raise ValueError("data.sizes draws what data.size says: set data.size to null")
        if self.window == "all":
            raise ValueError("data.window all: of a stream each file is one item; choose middle or random")
        return self

    def build(self) -> Shards:
        return Shards(self)


class Shards(Stream):
    def __init__(self, config: ShardsConfig) -> None:
        self.config = config
        self.drawn = config.sizes[0] if config.sizes else None
        self.chance: float | None = None  # by which the size is drawn, where it is for all of a batch
        self.readers, self.shuffle = config.readers, config.shuffle
        self.urls = _expanded([config.urls] if isinstance(config.urls, str) else config.urls)
        names = [url.rpartition("/")[2] for url in self.urls]
        self.shards = names if len(set(names)) == len(names) else self.urls
        self.cut = clips.Cut(config)
        self.suffixes = SUFFIXES[config.media]
        if config.media == "sound":
            self.sample_rate_hz = config.sample_rate_hz
        for url in self.urls:
            if not _is_remote(url) and not os.path.isfile(url):
                raise _missing(url, "no such file")
        if isinstance(config.urls, str) and (folder := Path(config.urls).expanduser()).is_dir():
            for row in self.index.get("shards", ()):
                if row["name"] not in self.shards:
                    raise _missing(str(folder / row["name"]), f"{INDEX} names it, and it is not there")

    # --- what is known beforehand

    @cached_property
    def classes(self) -> tuple[str, ...]:  # looked for only where somebody asks
        if known := self.config.classes or tuple(str(name) for name in self.index.get("classes", ())):
            return known
        shards, items = LOOKED_AT
        found: set[str] = set()
        for shard in range(0, len(self.urls), -(-len(self.urls) // shards)):
            for _, sample in islice(self.samples(shard), items):
                try:
                    found |= {label} if (label := _said(sample)[0]) is not None else set()
                except BrokenItem:
                    continue
        return tuple(sorted(found, key=lambda name: (not name.isdecimal(), name.zfill(MOST_LABEL))))

    @cached_property
    def total(self) -> int | None:
        counts = {row["name"]: row["items"] for row in self.index.get("shards", ())}
        found = [counts.get(url.rpartition("/")[2]) for url in self.urls]
        return None if None in found else sum(count for count in found if count is not None)

    @cached_property
    def index(self) -> dict[str, Any]:
        """Empty where there is none."""
        url = self.urls[0].rpartition("/")[0]
        url = f"{url}/{INDEX}" if url or self.urls[0].startswith("/") else INDEX
        if not _is_remote(url) and not os.path.isfile(url):
            return {}
        try:
            with _opened(url) as file:
                raw = file.read(MOST_INDEX)
        except UserError:
            return {}  # of shards on a server, which may have none
        try:
            found = json.loads(raw)
            rows = [(row["name"], row["items"]) for row in found["shards"]]
            if not all(isinstance(name, str) and type(items) is int and items >= 0 for name, items in rows):
                raise ValueError
            list(found["classes"])
        except (ValueError, TypeError, KeyError, RecursionError):
            raise UserError(
                f"{url}: not an index of `djepa-mm data pack`; remove it, or pack the corpus anew"
            ) from None
        return dict(found)

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.classes)

    # --- reading

    def samples(self, shard: int, first: int = 0, step: int = 1) -> Iterator[tuple[int, Sample]]:
        most = int(self.config.max_member_mb * 1e6)
        number, current = -1, None
        members: dict[str, bytes | str] = {}

        def asked() -> bool:
            return number >= first and (number - first) % step == 0

        def sample() -> Sample:
            name = self.shards[shard]
            return Sample(name=f"{name}/{printable(current)}" if current else name, members=members)

        for key, suffix, content in _files(self.urls[shard], most):
            if key != current:
                if asked():
                    yield number, sample()
                number, current, members = number + 1, key, {}
            if asked():
                read = content if isinstance(content, str) else content()
                members[suffix] = "given twice" if suffix in members else read
        if asked():
            yield number, sample()

    def entry(self, sample: Sample) -> Entry:
        label, texts, tags = _said(sample)
        if label is not None and label not in self._known and label.isdecimal() and int(label) < len(self.classes):
            label = self.classes[int(label)]
        text, texts = (texts[0] if texts else None), (texts if len(texts) > 1 else ())
        return Entry(name=sample.name, label=label, text=text, texts=texts, tags=tags)

    def decode(self, sample: Sample) -> Item:
        entry = self.entry(sample)
        suffix = next((one for one in sample.members if one == TENSOR or _ends_in(one, self.suffixes)), None)
        if suffix is None:
            raise BrokenItem(f"no {self.config.media} in it, but {', '.join(sample.members)}")
        content = sample.members[suffix]
        assert isinstance(content, bytes)
        if not content:
            raise BrokenItem(f".{suffix}: empty")
        read = {"picture": self._picture, "sound": self._sound, "clip": self._clip}[self.config.media]
        media = self._tensor(content) if suffix == TENSOR else read(content, suffix)
        if self.config.flip and one_of(MIRRORED) == 0:
            media = media.flip(-1)
        return Item(entry=entry, media=media)

    def at(self, batch: int, seed: int) -> Self:
        if not self.config.sizes:
            return self
        other = copy.copy(self)
        other.drawn = phase(self.config.sizes, batch)
        other.chance = chance(torch.Generator().manual_seed(seed))
        return other

    @property
    def largest(self) -> tuple[int, ...] | None:
        if self.drawn is None or self.chance is None:
            return None
        side = self.drawn.side(self.chance, math.inf)
        rows, columns = (math.ceil(side / multiple) * multiple for multiple in self.config.multiple_of[1:])
        return (self.config.channels, rows, columns)

    def _picture(self, content: bytes, suffix: str) -> Tensor:
        config = self.config
        with pictures.readable(io.BytesIO(content)) as image:
            if max(image.size) > config.max_side:
                width, height = image.size
                raise BrokenItem(f"{width}×{height} pixels, more than data.max_side {config.max_side}")
            size, multiple_of = config.size, config.multiple_of[1:]
            if self.drawn is not None:
                own = pictures.upright_size(image)
                drawn = chance() if self.chance is None else self.chance
                size = drawn_size(self.drawn, own, multiple_of, config.enlarge, drawn)
            return image_folder.seen_as(image, size, multiple_of, config.channels)

    def _sound(self, content: bytes, suffix: str) -> Tensor:
        file = io.BytesIO(content)
        frames, rate_hz = ljspeech.sound_header(file)
        if frames / rate_hz > self.config.max_duration_s:
            long = self.config.max_duration_s
            raise BrokenItem(f"{frames / rate_hz:.0f} s, more than data.max_duration_s {long:g}")
        return ljspeech.read_sound(file, frames, self.config.sample_rate_hz)

    def _clip(self, content: bytes, suffix: str) -> Tensor:
        with tempfile.NamedTemporaryFile(suffix=f".{suffix.rpartition('.')[2]}") as file:
            file.write(content)
            file.flush()
            path = Path(file.name)
            header = self.cut.reader.header(path)
            (first,) = self.cut.firsts(header)
            return self.cut.frames(self.cut.wanted(path, header, first))

    def _tensor(self, content: bytes) -> Tensor:
        """Media as they were; nothing is cut out of them or resized."""
        config = self.config
        try:
            media = safetensors.torch.load(content)["media"]
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise BrokenItem(f"not readable as safetensors ({error})") from None
        visual = config.media != "sound"
        if media.dtype != torch.float32 or media.dim() != AXES[config.media] or not media.numel():
            raise BrokenItem(f"a tensor {tuple(media.shape)} of {media.dtype}, which is no {config.media}")
        if visual and (len(media) != config.channels or config.size not in (None, tuple(media.shape[-2:]))):
            raise BrokenItem(f"a tensor {tuple(media.shape)}, of another size than data.channels and data.size say")
        if not media.isfinite().all():
            raise BrokenItem("numbers that are not finite")
        return media


# --- items ------------------------------------------------------------------------------------------------------------


def _said(sample: Sample) -> tuple[str | None, tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Label, texts and tags of an item. Raises BrokenItem; also where one of its files cannot be used."""
    for suffix, content in sample.members.items():
        if isinstance(content, str):
            raise BrokenItem(f".{suffix}: {content}" if suffix else content)
    label, text = (_text(sample, suffix) for suffix in ("cls", "txt"))
    tags: tuple[tuple[str, str], ...] = ()
    texts: tuple[str, ...] = ()
    if (raw := _text(sample, "json")) is not None:
        try:
            found = json.loads(raw)
        except (ValueError, RecursionError):
            raise BrokenItem(".json: not JSON") from None
        if not isinstance(found, dict):
            raise BrokenItem(".json: no object of names and values")
        text = text if text is not None else _value(found.get("caption", found.get("text")))
        if isinstance(several := found.get("captions"), list) and all(isinstance(one, str) for one in several):
            texts = tuple(several)
        label = label if label is not None else _value(found.get("label"))
        tags = tuple((tag, value) for tag in TAGS if 0 < len(value := _value(found.get(tag)) or "") <= MOST_LABEL)
    if label is not None and len(label) > MOST_LABEL:
        raise BrokenItem(f"a label of {len(label):,} characters")
    return label, texts if text is None else (text,), tags


def _text(sample: Sample, suffix: str) -> str | None:
    content = sample.members.get(suffix)
    if not isinstance(content, bytes):
        return None
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise BrokenItem(f".{suffix}: not UTF-8") from None


def _value(found: object) -> str | None:
    return str(found) if isinstance(found, str | int) else None


def _ends_in(suffix: str, known: tuple[str, ...]) -> bool:
    return f".{suffix.rpartition('.')[2]}" in known


# --- shards -----------------------------------------------------------------------------------------------------------


def _expanded(urls: Sequence[str]) -> list[str]:
    """Every shard. Raises UserError."""
    from braceexpand import braceexpand  # webdataset's own

    found: list[str] = []
    for pattern in urls:
        if _many(pattern) > MOST_SHARDS:
            raise UserError(f"data.urls: {pattern!r} names more than {MOST_SHARDS:,} shards")
        try:
            places = list(braceexpand(pattern))
        except ValueError as error:
            raise UserError(f"data.urls: {pattern!r} is not a pattern ({error})") from None
        for place in places:
            if _is_remote(place):
                found.append(place)
                continue
            path = Path(place).expanduser()
            inside = sorted(str(file) for file in path.glob("*.tar")) if path.is_dir() else [str(path)]
            if not inside:
                raise UserError(f"data.urls: no .tar in the folder {path.absolute()}")
            found += inside
    return found


def _many(pattern: str) -> int:
    """How many names a pattern stands for, about: braces within others are counted as if they stood beside them."""
    count = 1
    for inside in re.findall(r"\{([^{}]*)", pattern):
        ends = re.fullmatch(r"(-?\d{1,18})\.\.(-?\d{1,18})(\.\..*)?", inside)
        count *= inside.count(",") + 1 if ends is None else abs(int(ends[2]) - int(ends[1])) + 1
    return count


def _is_remote(url: str) -> bool:
    """Whether a server has it, not this machine. Raises UserError for other ways, some of which would run programs."""
    scheme = urlparse(url).scheme.lower()
    if len(scheme) > 1 and scheme not in ("http", "https"):  # a letter is a disk of Windows
        raise UserError(f"data.urls: {url!r}: shards are files, http:// or https://, and not {scheme}:")
    return len(scheme) > 1


def _missing(url: str, reason: str) -> UserError:
    return UserError(f"data.urls: the shard {url} cannot be read ({reason}); bring it back, or correct data.urls")


@contextmanager
def _opened(url: str) -> Iterator[IO[bytes]]:
    """Raises UserError where it is not there, or gone before its end."""
    if not _is_remote(url):
        try:
            with open(url, "rb") as file:
                yield file
        except OSError as error:
            raise _missing(url, error.strerror or str(error)) from None
        return
    from webdataset.gopen import gopen_curl

    try:
        stream = gopen_curl(url)
        try:
            yield stream
        finally:
            stream.close()
    except OSError:
        raise _missing(url, "curl could not get it whole") from None


class _Header(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        found = cls._plain(buf, encoding, errors) or super().frombuf(buf, encoding, errors)
        if found.size < 0 or (found.type not in tarfile.REGULAR_TYPES and found.size > MOST_HEADER):
            raise tarfile.InvalidHeaderError("absurd size")  # type: ignore[attr-defined]
        return found

    @classmethod
    def _plain(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self | None:
        """Of a plain file with a short name, as nearly all are: the little of its header that is asked for here, in a
        third of the time. None of any other, and where anything is unusual."""
        whole = len(buf) == tarfile.BLOCKSIZE and buf[156:157] == tarfile.REGTYPE and not buf[345]  # no prefix
        if not whole or buf[135] not in b"\0 " or buf[154] not in b"\0 ":
            return None
        try:
            size, checksum = int(buf[124:135], 8), int(buf[148:154], 8)
        except ValueError:
            return None
        if sum(buf) - sum(buf[148:156]) + 8 * ord(" ") != checksum:
            return None
        found = cls(buf[:100].partition(b"\0")[0].decode(encoding, errors))
        found.size = size
        return found

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            assert isinstance(tar, _Tar)
            tar.ended = True
            raise


class _Tar(tarfile.TarFile):
    """ended: whether its own end was reached, which it lacks where it is cut short."""

    tarinfo = _Header
    ended = False


def _files(url: str, most: int) -> Iterator[tuple[str, str, Callable[[], bytes | str] | str]]:
    """Files of a shard in order: key, suffix, and what gives its bytes before the next is asked for, or why it is not
    to be used. most: bytes of one. Where the shard is not whole, the last has the key "" and says so.

    Raises UserError where the shard is not there."""
    from webdataset.tariterators import base_plus_ext

    with _opened(url) as file:
        whole = None if _is_remote(url) else os.fstat(file.fileno()).st_size
        try:
            tar = _Tar.open(fileobj=file, mode="r|" if whole is None else "r:", errorlevel=1)
        except tarfile.TarError as error:
            yield "", "", f"not a tar ({error})"
            return
        before = -1
        while whole is None or tar.offset <= whole:
            try:
                member = tar.next()
            except OSError:
                raise
            except Exception:  # broken headers are met with nearly any exception
                break
            if member is None or tar.offset <= before:  # a size below 0 would lead round in a circle
                break
            before = tar.offset
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
            key, suffix = base_plus_ext(member.name)
            if (refused := _refused(member, most)) is not None:
                yield key or member.name, (suffix or "").lower(), refused
            elif key is not None and not member.isdir():
                yield key, suffix.lower(), partial(_content, tar, member)
        if not getattr(tar, "ended", False):
            yield "", "", "cut short: it does not end as a tar does"


def _refused(member: tarfile.TarInfo, most: int) -> str | None:
    """Why a file of a shard is not to be used."""
    if member.isdir():
        return None
    if not member.isreg() or member.issparse():
        return "a link, a device or the like, and no plain file"
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "its name leads out of the shard"
    if member.size > most:
        return f"{member.size / 1e6:,.0f} MB, more than data.max_member_mb"
    return None


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | str:
    try:
        file = tar.extractfile(member)
        assert file is not None  # a plain file
        return file.read()
    except tarfile.TarError:
        return "cut short"
