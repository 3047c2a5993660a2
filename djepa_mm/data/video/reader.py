"""Frames out of video files that may be broken: other processes decode, which a time limit ends."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import tempfile
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from djepa_mm.types import BrokenItem, UserError

PROGRAM = Path(__file__).with_name("worker.py")

DECODERS = 2  # processes at most; what is read ahead is shared out among them
AHEAD = 4  # requests that wait for the processes, so that they never wait for the next one

_Request = tuple[Any, ...]  # see `worker`


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a video's header says; the reader has decoded nothing yet."""

    frames: int
    frame_rate: float  # frames a second
    height: int
    width: int

    @property
    def duration_s(self) -> float:
        return self.frames / self.frame_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Frames of a video."""

    path: Path
    indices: tuple[int, ...]  # frame numbers, rising
    size: tuple[int, int]  # height and width; the largest centred part of that shape is cut out and resized to it


class VideoReader:
    """Headers and frames of videos. Starts its processes when they are first needed, in every process that asks, and
    again where a file took one down."""

    def __init__(self, reader: Literal["auto", "decord", "pyav"], timeout_s: float) -> None:
        self.reader, self.timeout_s = reader, timeout_s
        self._decoders: _Decoders | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_decoders": None}

    def header(self, path: Path) -> Header:
        """Raises BrokenItem where the file is no video, and UserError where no reader is installed."""
        _, (frames, rate, height, width) = self._ask(("header", str(path)))
        return Header(frames=frames, frame_rate=rate, height=height, width=width)

    def frames(self, wanted: Wanted, then: Sequence[Wanted] = ()) -> Tensor:
        """-> (3, T, H, W) float in [-1, 1].

        then: what will be asked for next, in this order; the first AHEAD of it are decoded meanwhile.
        Raises BrokenItem where decoding fails or takes longer than the time limit."""
        frames, _ = self._ask(*(_request(one) for one in (wanted, *then[:AHEAD])))
        frames = frames.permute(0, 3, 1, 2)  # (T, 3, h, w) uint8
        if frames.shape[2:] != wanted.size:
            from torchvision.transforms.v2 import InterpolationMode, functional  # a second to import

            frames = functional.resize(frames, list(wanted.size), InterpolationMode.BICUBIC, antialias=True)
        media = torch.empty(3, len(frames), *wanted.size)
        return media.copy_(frames.transpose(0, 1)).div_(127.5).sub_(1)

    def _ask(self, *requests: _Request) -> tuple[Tensor, Any]:
        """-> frames (T, h, w, 3) uint8 in shared memory until the next call, and the plain answer, to the first one."""
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
            if code == -signal.SIGALRM:
                raise BrokenItem(f"decoding took longer than {self.timeout_s:g} s (data.decode_timeout_s)") from None
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise BrokenItem(f"the decoder crashed ({how})") from None
        decoders.pending.popleft()  # not before: an interrupt while it waits leaves it asked
        if not well:
            raise BrokenItem(answer)
        return (memory.view(answer) if requests[0][0] == "frames" else torch.empty(0)), answer


def _request(wanted: Wanted) -> _Request:
    return "frames", str(wanted.path), wanted.indices, wanted.size


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
    """A running `worker`, the channel to it, and the memories where it lays frames in turn."""

    def __init__(self, reader: str, timeout_s: float) -> None:
        self.sent = self.received = 0
        self.channel, there = Pipe()
        self.memories = [_Memory() for _ in range(1 + AHEAD)]
        fds = there.fileno(), *(memory.file for memory in self.memories)
        command = [sys.executable, "-P", str(PROGRAM), reader, str(timeout_s), *map(str, fds)]
        null = subprocess.DEVNULL
        self.process = subprocess.Popen(command, pass_fds=fds, stdin=null, stdout=null, stderr=null)
        there.close()
        weakref.finalize(self, _end, self.process, self.channel, os.getpid())
        try:
            well, answer = self.channel.recv()
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
        self.channel.send(((self.sent - 1) % len(self.memories), request))

    def receive(self) -> tuple[_Memory, tuple[bool, Any]]:
        """The answer to the oldest request, and the memory that it may lie in."""
        reply = self.channel.recv()
        self.received += 1
        return self.memories[(self.received - 1) % len(self.memories)], reply


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


def _end(process: subprocess.Popen[bytes], channel: Connection, owner: int) -> None:
    channel.close()
    if os.getpid() == owner:
        process.kill()
        process.wait()
