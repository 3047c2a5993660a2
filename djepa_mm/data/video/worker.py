"""The process that opens videos for `reader`. It may hang or crash: the kernel ends it at its time limit.

Run as a program, so that it imports nothing but numpy, PyAV and decord and starts at once. A request is
("header", path) or ("frames", path, indices, (height, width)), with the number of the shared memory to lay frames in;
a reply is (whether it went well, what came of it).
"""

from __future__ import annotations

import mmap
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

START_S = 120  # time to import the libraries
MEMORY_BYTES = 4 << 30  # address space that a request may take beyond what the libraries hold

Decode = Callable[[str, Sequence[int]], np.ndarray]  # path, frame numbers in order -> (T, H, W, 3) uint8


class UnusableError(Exception):
    """Says in a line why a video cannot be used."""


def decord_frames(path: str, indices: Sequence[int]) -> np.ndarray:
    """Frames by number, with decord; (T, H, W, 3) uint8 in RGB."""
    import decord

    frames = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1).get_batch(list(indices))
    return np.from_dlpack(Frames(frames))


class Frames:
    """decord's array, to be looked at by numpy without a copy, which its `asnumpy` makes."""

    def __init__(self, frames: Any) -> None:
        self.frames = frames

    def __dlpack__(self, **_: Any) -> Any:
        return self.frames.to_dlpack()

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0  # a CPU, the first


def either_frames(path: str, indices: Sequence[int]) -> np.ndarray:
    """With decord, and what it cannot read (some narrow sizes, some codecs) with PyAV."""
    try:
        return decord_frames(path, indices)
    except Exception:  # decord has errors of its own, and others
        return pyav_frames(path, indices)


def pyav_frames(path: str, indices: Sequence[int]) -> np.ndarray:
    """Frames by number, with PyAV; (T, H, W, 3) uint8 in RGB. Decodes from the last key frame before the first one."""
    import av
    from av.video.reformatter import VideoReformatter

    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        reformatter = VideoReformatter()  # one for all frames: each frame's own would be set up anew
        stamps = [packet.pts for packet in container.demux(stream) if packet.size]
        counted = None in stamps  # some AVI has no time stamps: its frames are counted from the start
        keys = list(range(len(stamps))) if counted else sorted(stamp for stamp in stamps if stamp is not None)
        wanted = [keys[i] for i in indices]
        container.seek(0 if counted else wanted[0], stream=stream)
        found: dict[int | None, np.ndarray] = {}
        for number, frame in enumerate(container.decode(stream)):
            key = number if counted else frame.pts
            if key in wanted:
                pixels = reformatter.reformat(frame, format="rgb24").to_ndarray()
                found[key] = np.rot90(pixels, frame.rotation // 90)
                if len(found) == len(set(wanted)):
                    break
        if len(found) < len(set(wanted)):
            raise UnusableError("frames that its index names are not in it")
        return np.stack([found[key] for key in wanted])


def header(path: str) -> tuple[int, float, int, int]:
    """Frames, frames a second, height and width in pixels, from the header; frames are counted where it is silent."""
    import av

    with av.open(path) as container:
        if not container.streams.video:
            raise UnusableError("no video in it")
        stream = container.streams.video[0]
        frames = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
        rate = stream.average_rate or stream.guessed_rate
        if not frames or not rate:
            raise UnusableError(f"its header speaks of {frames} frames at {rate or 0} a second")
        return frames, float(rate), stream.codec_context.height, stream.codec_context.width


def why(path: str, error: Exception) -> str:
    """The reason why a video cannot be read, in a line."""
    import av

    if isinstance(error, UnusableError):
        return str(error)
    with suppress(Exception), av.open(path) as container:
        stream = container.streams.video[0]
        there = sum(1 for packet in container.demux(stream) if packet.size)
        if there < stream.frames:
            return f"cut short, {there} of {stream.frames} frames"
    if isinstance(error, av.error.FFmpegError):
        log: Any = error.log  # (level, library, message)
        said = [error.strerror, *(log[2:] if log else [])]
        return f"not a readable video ({', '.join(s.strip() for s in said if s)})"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = re.sub(r".*\.cc:\d+: ", "", lines[0]).replace(path, "the file")  # decord says where in its source, too
    return f"not decodable ({text})"


def crop(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The largest centred part of (T, H, W, 3) that has the shape of `size`, height and width."""
    height, width = frames.shape[1:3]
    scale = min(height / size[0], width / size[1])
    h, w = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    top, left = (height - h) // 2, (width - w) // 2
    return frames[:, top : top + h, left : left + w]


class Memory:
    """Memory shared with the asking process through an open file. It grows as needed."""

    def __init__(self, file: int) -> None:
        self.file, self.map = file, mmap.mmap(-1, 1)

    def put(self, array: np.ndarray) -> None:
        if len(self.map) < array.nbytes:
            os.ftruncate(self.file, array.nbytes)
            self.map = mmap.mmap(self.file, array.nbytes)
        np.copyto(np.frombuffer(self.map, np.uint8, array.size).reshape(array.shape), array)


def find_decoder(name: str) -> Decode:
    """By name: "decord", "pyav", or "auto" for decord where it is installed and can, else PyAV. Raises ImportError."""
    import av

    av.logging.set_level(av.logging.PANIC)
    if name == "pyav":
        return pyav_frames
    try:
        import decord
    except (ImportError, OSError, RuntimeError) as error:  # the latter two: a library that does not load
        if name == "decord":
            raise ImportError(str(error)) from error
        return pyav_frames
    decord.logging.set_level(decord.logging.QUIET)
    return decord_frames if name == "decord" else either_frames


def serve(channel: Connection, memories: Sequence[Memory], timeout_s: float, decode: Decode) -> None:
    """Answer requests until the other side is gone. A request that takes longer than `timeout_s` ends the process."""

    def answer(memory: int, what: str, path: str, *rest: Any) -> Any:
        if what == "header":
            return header(path)
        indices, size = rest
        frames = crop(decode(path, indices), size)
        memories[memory].put(frames)
        return frames.shape

    while True:
        try:
            memory, request = channel.recv()
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_REAL, timeout_s)
        try:
            reply = True, answer(memory, *request)
        except Exception as error:  # the libraries meet broken files with nearly any exception
            reply = False, why(request[1], error)
        signal.setitimer(signal.ITIMER_REAL, 0)
        channel.send(reply)


def main(reader: str, timeout_s: str, channel_fd: str, *memory_fds: str) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process, wherever it is
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the asking process decides
    signal.setitimer(signal.ITIMER_REAL, START_S)
    channel = Connection(int(channel_fd))
    try:
        decode = find_decoder(reader)
    except ImportError as error:
        channel.send((False, str(error)))
        return
    with suppress(ImportError, OSError, ValueError):  # where the system knows no such limit
        import resource

        held = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY_BYTES, resource.RLIM_INFINITY))
    signal.setitimer(signal.ITIMER_REAL, 0)
    channel.send((True, decode.__name__))
    serve(channel, [Memory(int(fd)) for fd in memory_fds], float(timeout_s), decode)


if __name__ == "__main__":
    main(*sys.argv[1:])
