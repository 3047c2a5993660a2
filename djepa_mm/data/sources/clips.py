"""A folder of video files, one subfolder for each class."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from djepa_mm.data.compact import Packed
from djepa_mm.data.drawing import drawing
from djepa_mm.data.folders import FolderConfig, Found, class_of, find_files, printable
from djepa_mm.data.headers import read_headers
from djepa_mm.data.video.reader import AHEAD, Header, VideoReader, Wanted
from djepa_mm.types import BrokenItem, Entry, Item, SourceConfig, UserError

LUMA = torch.tensor([0.299, 0.587, 0.114]).reshape(3, 1, 1, 1)  # of red, green and blue, ITU-R BT.601
SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")


class VideoConfig(SourceConfig):
    """What sources of video files have in common."""

    frames: PositiveInt | None = 16
    """Frames of an item, n; null takes all frames of a video, whatever their number."""
    size: Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)] | None
    """Height and width: the largest centred part of that shape is cut out and resized; null takes it as it is."""
    multiple_of: Annotated[tuple[PositiveInt, PositiveInt, PositiveInt], Field(strict=False)] = (1, 1, 1)
    """Where frames, height and width are the video's own, they are cut to multiples of these: the tokenizer's patch."""
    channels: Literal[1, 3] = 3
    """1 makes clips grey."""
    frame_rate: PositiveFloat | None = None
    """Frames a second that videos are resampled to, by repeating or dropping, at the times at which they are shown;
    their own where it is not given."""
    stride: PositiveInt = 1
    """Every how manyth frame is taken, after resampling."""
    window: Literal["middle", "random", "all"] = "middle"
    """Which n frames of a longer video: those in the middle; any, anew each time it is read; or one item for each
    window that follows another."""
    reader: Literal["auto", "decord", "pyav"] = "auto"
    """auto and pyav: PyAV. decord: decord where it counts a film's frames as they are shown, else PyAV."""
    decode_timeout_s: PositiveFloat = 10.0
    """A file that takes longer is broken."""
    max_side: PositiveInt = 4096
    """A file with more pixels than this on a side is broken."""
    max_frames: PositiveInt = 100_000
    """A file with more frames is broken."""
    max_duration_s: PositiveFloat = 600.0
    """A file that lasts longer is broken."""


class ClipsConfig(FolderConfig, VideoConfig):
    """Videos in class folders, or straight in the root where there are no classes."""

    source: Literal["clips"]

    def build(self) -> Clips:
        root = Path(self.root).expanduser()
        found = find_videos(root, "data.root")
        files = self.kept(found.files)
        classes = tuple(printable(name) for name in found.classes)
        return Clips(self, root, files, classes, self.left_out(found, files))

    def build_held_out(self) -> Clips | None:
        return self.held_out_side().build() if self.held_out else None


class Cut:
    """Which frames of a film, and which part of them, an item is."""

    def __init__(self, config: VideoConfig) -> None:
        self.config = config
        self.reader = VideoReader(config.reader, config.decode_timeout_s)

    def wanted(self, path: Path, header: Header, first: int | None) -> Wanted:
        """What to ask the reader for. first: a frame's number; None where torch's random state decides."""
        if first is None:
            first = int(torch.randint(self.choices(header), ()))
        return Wanted(
            path=path,
            header=header,
            indices=self.indices(header, first),
            size=self.size(header),
            resized=self.config.size is not None,
        )

    def frames(self, wanted: Wanted, then: Sequence[Wanted] = ()) -> Tensor:
        """-> (C, T, H, W) in [-1, 1]. then: as for the reader. Raises BrokenItem."""
        media = self.reader.frames(wanted, then)
        return (media * LUMA).sum(0, keepdim=True) if self.config.channels == 1 else media

    def shape(self, header: Header) -> tuple[int, ...]:
        """(C, T, H, W) of an item."""
        return (self.config.channels, self.count(header), *self.size(header))

    def size(self, header: Header) -> tuple[int, int]:
        """Height and width of a file's items."""
        if self.config.size is not None:
            return self.config.size
        _, rows, columns = self.config.multiple_of
        return header.height - header.height % rows, header.width - header.width % columns

    def indices(self, header: Header, first: int) -> tuple[int, ...]:
        """Frame numbers of an item that begins with frame `first`."""
        count, step = self.count(header), self._step(header)
        if self._by_number(header):
            return tuple(first + int(k * step + 0.5) for k in range(count))
        began = header.time(first)
        return tuple(header.shown(began + k * self._step_s) for k in range(count))

    def _by_number(self, header: Header) -> bool:
        """Whether a frame's number tells when it is shown, as far as that matters."""
        return self.config.frame_rate is None or header.steady

    def count(self, header: Header) -> int:
        """Frames of an item."""
        if self.config.frames is not None:
            return self.config.frames
        if self._by_number(header):
            count = math.ceil((header.frames - 0.5) / self._step(header))  # all that lie inside, rounded as above
        else:
            count = 1 + int(header.time(-1) / self._step_s + 1e-6)
        return max(1, count // self.config.multiple_of[0]) * self.config.multiple_of[0]

    def choices(self, header: Header) -> int:
        """Frames that an item may begin with; not positive where the film is too short for one."""
        last = self.count(header) - 1
        if self._by_number(header):
            return header.frames - int(last * self._step(header) + 0.5)
        return header.shown(header.time(-1) - last * self._step_s) + 1

    def _step(self, header: Header) -> float:
        """Frames of the file from one frame of an item to the next, where they are evenly spaced."""
        rate = self.config.frame_rate
        return self.config.stride * (1.0 if rate is None else header.frame_rate / rate)

    @property
    def _step_s(self) -> float:
        """Seconds from one frame of an item to the next, where `frame_rate` tells."""
        assert self.config.frame_rate is not None
        return self.config.stride / self.config.frame_rate

    def firsts(self, header: Header) -> list[int | None]:
        """First frames of a file's items; None where it is drawn later. Raises BrokenItem."""
        config = self.config
        if max(header.height, header.width) > config.max_side:
            raise BrokenItem(f"{header.width}×{header.height} pixels, more than data.max_side {config.max_side}")
        if header.frames > config.max_frames:
            raise BrokenItem(f"{header.frames} frames, more than data.max_frames {config.max_frames}")
        if header.duration_s > config.max_duration_s:
            raise BrokenItem(f"{header.duration_s:.0f} s, more than data.max_duration_s {config.max_duration_s:g}")
        choices = self.choices(header)
        if choices < 1:
            if self._by_number(header):
                has = f"{header.frames} frames at {header.frame_rate:g} a second"
                needed = f"{header.frames + 1 - choices}"
            else:
                has = f"its {header.frames} frames begin within {header.time(-1):.2f} s"
                needed = f"{(self.count(header) - 1) * self._step_s:.2f} s"
            raise BrokenItem(f"too short: {has}, {needed} are needed")
        if not all(self.size(header)):
            raise BrokenItem(f"{header.width}×{header.height} pixels, less than data.multiple_of")
        if config.frames is None:
            return [0]
        if config.window == "random":
            return [None]
        if config.window == "middle":
            return [(choices - 1) // 2]
        if self._by_number(header):
            return list(range(0, choices, max(1, round(config.frames * self._step(header)))))
        firsts: list[int | None] = []
        first = 0
        while first < choices:
            firsts.append(first)
            first = max(first + 1, header.shown(header.time(first) + config.frames * self._step_s))
        return firsts


class _Window(NamedTuple):
    """Frames of a file: one item."""

    file: int
    first: int | None = None  # frame number; None where it is drawn at random
    number: int | None = None  # among the file's windows, where all of them are items


class Clips:
    """Headers are read once, here. Broken files stay in the list and say so when they are asked for."""

    def __init__(
        self,
        config: VideoConfig,
        root: Path,
        files: Packed[str],
        classes: tuple[str, ...],
        left_out: dict[str, int] | None = None,
    ) -> None:
        """files: relative to `root`, in folders of their classes where there are any. left_out: how many others there
        are, by the reason."""
        self.config, self.root, self.files, self.classes = config, root, files, classes
        self.left_out = left_out or {}
        self.draws = "data.window: random" if config.window == "random" else ""
        self.cut = Cut(config)
        self.headers = read_headers(root, files, self._read_headers, kind=f"videos 1 {config.reader}")
        self.broken: dict[int, str] = {}  # why a file cannot be used, by its index in `files`
        self.windows: Packed[_Window] = Packed()
        for number, row in enumerate(self.headers):
            try:
                if isinstance(row, str):
                    raise BrokenItem(row)
                firsts = self.cut.firsts(Header.of(row))
            except BrokenItem as error:
                self.broken[number] = str(error)
                firsts = [None]
            many = config.window == "all" and len(firsts) > 1
            for n, first in enumerate(firsts):
                self.windows.append(_Window(number, first, n if many else None))
        if len(self.broken) == len(files):
            raise UserError(f"data.root: no usable video in {str(root)!r}, such as {files[0]}: {self.broken[0]}")

    def _read_headers(self, paths: Sequence[Path]) -> Iterator[tuple[Any, ...] | str]:
        for number, path in enumerate(paths):
            try:
                yield self.cut.reader.header(path, paths[number + 1 : number + 1 + AHEAD]).row()
            except BrokenItem as error:
                yield str(error)

    def _header(self, file: int) -> Header:
        """Raises BrokenItem."""
        row = self.headers[file]
        if isinstance(row, str) or file in self.broken:
            raise BrokenItem(self.broken[file])
        return Header.of(row)

    def __len__(self) -> int:
        return len(self.windows)

    def entry(self, index: int) -> Entry:
        window = self.windows[index]
        file = self.files[window.file]
        name = printable(file) + ("" if window.number is None else f" window {window.number}")
        return Entry(name=name, path=self.root / file, label=class_of(file) if self.classes else None)

    def shape(self, index: int) -> tuple[int, ...]:
        """(C, T, H, W)."""
        return self.cut.shape(self._header(self.windows[index].file))

    def read(self, index: int) -> Item:
        (item,) = self.read_all([index])
        if isinstance(item, BrokenItem):
            raise item
        return item

    def read_all(self, indices: Iterable[int], seeds: Sequence[int] | None = None) -> Iterator[Item | BrokenItem]:
        """Many items in turn, or why one cannot be read. While one is being used, the next ones are decoded.

        seeds: of the window that is drawn of each; else torch's random state decides."""
        indices = list(indices)
        wanted = []
        for n, index in enumerate(indices):
            with nullcontext() if seeds is None else drawing(seeds[n]):
                wanted.append(self._wanted(index))
        whole = [one for one in wanted if isinstance(one, Wanted)]
        for index, this in zip(indices, wanted, strict=True):
            if isinstance(this, BrokenItem):
                yield this
                continue
            whole = whole[1:]
            try:
                yield Item(entry=self.entry(index), media=self.cut.frames(this, whole))
            except BrokenItem as error:
                yield error

    def _wanted(self, index: int) -> Wanted | BrokenItem:
        """What to ask the reader for."""
        window = self.windows[index]
        try:
            header = self._header(window.file)
        except BrokenItem as error:
            return error
        return self.cut.wanted(self.root / self.files[window.file], header, window.first)


def find_videos(root: Path, field: str) -> Found:
    """Video files below a folder. Raises UserError that names the recipe's `field`."""
    if not root.is_dir():
        raise UserError(f"{field}: no folder at {root.absolute()}; give a folder of videos or of class folders")
    found = find_files(root, SUFFIXES)
    if not found.files:
        raise UserError(f"{field}: no videos in {root.absolute()}; it takes {', '.join(SUFFIXES)}{found.others}")
    return found
