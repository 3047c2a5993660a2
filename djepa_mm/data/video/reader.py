"""Frames out of video files that may be broken: other processes decode, which a time limit ends."""

from __future__ import annotations

import mmap
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import weakref
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from djepa_mm.data.video.worker import KERNEL_ENDS, START_S, Ask, Channel, Numbers
from djepa_mm.types import BrokenItem, UserError

PROGRAM = Path(__file__).with_name("worker.py")

DECODERS = 2  # processes at most; what is read ahead is shared out among them
AHEAD = 4  # requests that wait for the processes, so that they never wait for the next one
SHARES_FILES = os.name == "posix"  # open files can be left to a process; elsewhere frames come through its pipe

_Request = tuple[Any, ...]  # see `worker`


@dataclass(frozen=True)
class Header:
    """What a film shows, frame by frame. A frame's number is its place among the frames that are shown."""

    frames: int
    frame_rate: float  # frames a second, as the file says
    height: int  # of its frames, upright
    width: int
    stamps: Numbers | None  # when each frame is shown, in `base`, rising; None where frames can only be counted
    base: float  # seconds
    keys: Numbers  # numbers of the frames where decoding may begin, rising
    plain: bool  # decord counts its frames in the same way, as far as can be seen; False where it is not to read them

    def row(self) -> tuple[Any, ...]:
        """What JSON can keep; numbers that are evenly spaced as first, end and step."""
        values = (getattr(self, field.name) for field in fields(self))
        return tuple(
            {"range": [v.start, v.stop, v.step]} if isinstance(v, range) else list(v) if isinstance(v, array) else v
            for v in values
        )

    @classmethod
    def of(cls, row: Sequence[Any]) -> Header:
        values: list[Any] = [range(*v["range"]) if isinstance(v, dict) else v for v in row]
        return cls(*values)

    @property
    def duration_s(self) -> float:
        return self.frames / self.frame_rate

    @cached_property
    def steady(self) -> bool:
        """Frame n is the one nearest to n / frame_rate after the first, for all n."""
        if self.stamps is None:
            return True
        interval, first = 1 / self.frame_rate / self.base, self.stamps[0]
        apart = [self.frames - 1] if isinstance(self.stamps, range) else range(self.frames)  # most at the end
        return all(abs(self.stamps[n] - first - n * interval) < interval / 2 for n in apart)

    def time(self, number: int) -> float:
        """Seconds from the first frame to this one."""
        if self.stamps is None:
            return number / self.frame_rate
        return (self.stamps[number] - self.stamps[0]) * self.base

    def shown(self, time: float) -> int:
        """The frame that is shown so many seconds after the first one, or begins within half a usual frame then.

        -1 before the first frame. For films whose frames have stamps."""
        assert self.stamps is not None
        return bisect_right(self.stamps, (time + self._usual / 2) / self.base + self.stamps[0]) - 1

    @cached_property
    def _usual(self) -> float:
        """Seconds that a frame is shown."""
        assert self.stamps is not None
        return self.base * (statistics.median_low([b - a for a, b in pairwise(self.stamps)]) if self.frames > 1 else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Frames of a video."""

    path: Path
    header: Header
    indices: tuple[int, ...]  # frame numbers, rising
    size: tuple[int, int]  # height and width; the largest centred part of that shape is cut out and resized to it,
    resized: bool = True  # or, where this is False, that many pixels in the middle are cut out


class VideoReader:
    """Headers and frames of videos. Starts its processes when they are first needed, in every process that asks, and
    again where a file took one down.

    reader: "pyav" or "auto" for PyAV; "decord" for decord where it counts frames as the header does and can read
    them, else PyAV."""

    def __init__(self, reader: Literal["auto", "decord", "pyav"], timeout_s: float) -> None:
        self.reader, self.timeout_s = reader, timeout_s
        self._decoders: _Decoders | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_decoders": None}

    def header(self, path: Path, then: Sequence[Path] = ()) -> Header:
        """then: as for `frames`. Raises BrokenItem where the file is no video, and UserError where no reader is
        installed."""
        return Header(*self._ask(*(("header", str(one)) for one in (path, *then[: self._ahead]))))

    def frames(self, wanted: Wanted, then: Sequence[Wanted] = ()) -> Tensor:
        """-> (3, T, H, W) float in [-1, 1].

        then: what will be asked for next, in this order; the first AHEAD of it are decoded meanwhile.
        Raises BrokenItem where decoding fails or takes longer than the time limit."""
        frames: Tensor = self._ask(*(_request(one) for one in (wanted, *then[: self._ahead])))
        frames = frames.permute(0, 3, 1, 2)  # (T, 3, h, w) uint8
        if frames.shape[2:] != wanted.size:
            from torchvision.transforms.v2 import InterpolationMode, functional  # a second to import

            frames = functional.resize(frames, list(wanted.size), InterpolationMode.BICUBIC, antialias=True)
        media = torch.empty(3, len(frames), *wanted.size)
        return media.copy_(frames.transpose(0, 1)).div_(127.5).sub_(1)

    @property
    def _ahead(self) -> int:
        """Requests to send beside one; none where answers fill the pipe, which both sides would wait for."""
        return AHEAD if SHARES_FILES else 0

    def _ask(self, *requests: _Request) -> Any:
        """The answer to the first one: fields of a header, or frames (T, h, w, 3) uint8, in memory that holds until
        the next call."""
        decoders = self._decoders
        started = 0 if decoders is None else len(decoders.pending)
        if decoders is None or decoders.owner != os.getpid() or decoders.asked != list(requests[:started]):
            # none yet; or those of the process that this one was forked from; or at work on what nobody fetched
            decoders, started = _Decoders(self.reader, self.timeout_s), 0
            self._decoders = decoders
        for request in requests[started:]:
            decoders.send(request)
        _, worker = decoders.pending[0]
        try:
            memory, (well, answer) = worker.receive()
        except (EOFError, OSError):
            code = worker.process.wait()
            self._decoders = None
            if worker.late.is_set() or (KERNEL_ENDS and code == -signal.SIGALRM):
                raise BrokenItem(f"decoding took longer than {self.timeout_s:g} s (data.decode_timeout_s)") from None
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise BrokenItem(f"the decoder crashed ({how})") from None
        decoders.pending.popleft()  # not before: an interrupt while it waits leaves it asked
        if not well:
            raise BrokenItem(answer)
        if requests[0][0] == "header":
            return answer
        return torch.from_numpy(answer) if memory is None else memory.view(answer)


def _request(wanted: Wanted) -> _Request:
    return "frames", str(wanted.path), wanted.size, wanted.resized, *asked(wanted)


def asked(wanted: Wanted) -> Ask:
    """The frames as a decoder is asked for them."""
    header, indices = wanted.header, wanted.indices
    key = bisect_right(header.keys, indices[0]) - 1
    stamps = None if header.stamps is None else tuple(header.stamps[n] for n in indices)
    return Ask(
        numbers=indices,
        stamps=stamps,
        starts=tuple(header.stamps[header.keys[n]] for n in (key, key - 1) if n > 0) if header.stamps else (),
        times=tuple(stamp * header.base for stamp in stamps) if header.plain and stamps is not None else None,
        total=header.frames,
    )


class _Decoders:
    """Processes that decode, and what they are at work on, in the order in which it was asked for."""

    def __init__(self, reader: str, timeout_s: float) -> None:
        self.reader, self.timeout_s = reader, timeout_s
        self.owner = os.getpid()
        self.workers: list[_Worker] = []
        self.pending: deque[tuple[_Request, _Worker]] = deque()

    @property
    def asked(self) -> list[_Request]:
        return [request for request, _ in self.pending]

    def send(self, request: _Request) -> None:
        """To the process with the least to do; to a new one while there may be more and none is idle."""
        if all(worker.waiting for worker in self.workers) and len(self.workers) < DECODERS:
            self.workers.append(_Worker(self.reader, self.timeout_s))
        worker = min(self.workers, key=lambda worker: worker.waiting)
        with suppress(OSError):  # it is gone; its answers tell so in their turn, after those that it still gave
            worker.send(request)
        self.pending.append((request, worker))


class _Worker:
    """A running `worker`, the channel to it, and the memories where it lays frames in turn, if it can."""

    def __init__(self, reader: str, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.sent = self.received = 0
        self.late = threading.Event()  # it was ended by `_limit`
        self.memories = [_Memory() for _ in range(1 + AHEAD)] if SHARES_FILES else []
        fds = [memory.file for memory in self.memories]
        command = [sys.executable, "-P", str(PROGRAM), reader, str(timeout_s), *map(str, fds)]
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        self.process = subprocess.Popen(command, pass_fds=fds, stdin=pipe, stdout=pipe, stderr=null)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.channel = Channel(self.process.stdout, self.process.stdin)
        weakref.finalize(self, _end, self.process, self.channel, os.getpid())
        try:
            well, answer = self._limited(START_S)
        except EOFError:
            raise UserError(f"the video reader did not start (exit code {self.process.wait()})") from None
        if not well:
            raise UserError(f'data.reader: {reader} cannot be used here ({answer}): pip install "djepa-mm[video]"')

    @property
    def waiting(self) -> int:
        """Requests that it has not yet answered."""
        return self.sent - self.received

    def send(self, request: _Request) -> None:
        self.sent += 1
        self.channel.send((self._turn(self.sent), request))

    def receive(self) -> tuple[_Memory | None, tuple[bool, Any]]:
        """The answer to the oldest request, and the memory that it may lie in."""
        reply = self._limited(self.timeout_s)
        self.received += 1
        return (self.memories[self._turn(self.received)] if self.memories else None), reply

    def _turn(self, count: int) -> int:
        """Whose turn among the memories it is for the so manyth request."""
        return (count - 1) % (1 + AHEAD)

    def _limited(self, seconds: float) -> Any:
        """Its next answer. Where the kernel does not end it at its time limit, this does."""
        if KERNEL_ENDS:
            return self.channel.receive()
        timer = threading.Timer(seconds, self._expire)
        timer.start()
        try:
            return self.channel.receive()
        finally:
            timer.cancel()

    def _expire(self) -> None:
        self.late.set()
        self.process.kill()


class _Memory:
    """Memory shared through an open file, which the other side makes larger as needed."""

    def __init__(self) -> None:
        self.file = _unnamed_file()
        weakref.finalize(self, os.close, self.file)
        self.map = mmap.mmap(-1, 1)

    def view(self, shape: tuple[int, ...]) -> Tensor:
        """Its first bytes as a tensor, uint8."""
        count = torch.Size(shape).numel()
        if len(self.map) < count:
            self.map = mmap.mmap(self.file, count)
        return torch.frombuffer(self.map, dtype=torch.uint8, count=count).view(shape)


def _unnamed_file() -> int:
    if sys.platform == "linux":
        return os.memfd_create("frames")  # in no folder, which could be small or on a disk
    file, path = tempfile.mkstemp()
    os.unlink(path)
    return file


def _end(process: subprocess.Popen[bytes], channel: Channel, owner: int) -> None:
    if os.getpid() == owner:
        process.kill()
        process.wait()
    channel.close()
