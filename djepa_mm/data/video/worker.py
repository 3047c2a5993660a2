"""The process that opens videos for `reader`. It may hang or crash: it is ended at its time limit.

Run as a program, so that it imports nothing but numpy, PyAV and decord and starts at once. Requests come through its
standard input and replies go through its standard output, pickled:

    ("header", path)                     -> the fields of `reader.Header` in their order
    ("frames", path, size, resized, *see `Ask`)
                                         -> the shape of the frames, which lie in the shared memory of this request; or
                                            the frames themselves, (T, h, w, 3) uint8, where there is no such memory

A request comes with the number of its memory; a reply is (whether it went well, what came of it).

A film has one list of the frames that it shows, in the order in which they are shown, and a frame's number is its place
there. A file's own counts are no such list: they hold frames that are never shown, or leave out where one shows two.
"""

from __future__ import annotations

import math
import mmap
import os
import pickle
import re
import signal
import sys
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice, pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

START_S = 120  # time to import the libraries
MEMORY_BYTES = 4 << 30  # address space that a request may take beyond what the libraries hold
KERNEL_ENDS = hasattr(signal, "setitimer")  # the process at its time limit; elsewhere the asking side does

STAMPED = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts"}  # containers that give every packet its time stamp
ONE_EACH = {"h264", "hevc", "vp9", "av1", "mpeg2video", "mjpeg"}  # codecs whose packets show one frame each
LISTS = {"concat", "dash", "hls", "imf"}  # FFmpeg's formats of files that say where a film's parts are
HEAD = 4  # frames that are decoded to see whether such a file keeps to that

MOST_KEYS = 64  # that are tried, in a film that decord may read

UNSHOWN = {"skip_idct": "all", "skip_loop_filter": "all"}  # of a codec: decode no pixels that anybody looks at

Numbers = Sequence[int]  # a range, where they are evenly spaced; else an array


class UnusableError(Exception):
    """Says in a line why a video cannot be used."""


class DisagreeError(Exception):
    """decord would give other frames than those on the list."""


class Ask(NamedTuple):
    """Frames of a film, in the order of the list."""

    numbers: Numbers
    stamps: Numbers | None  # theirs, in the stream's time base; None where a film's frames are told by counting
    starts: Sequence[int]  # stamps of key frames before them, to begin at; the last of them first
    times: Sequence[float] | None  # theirs in seconds, where decord counts as the list does; None where it does not
    total: int  # frames of the film


Decode = Callable[[str, Ask], np.ndarray]  # -> (T, H, W, 3) uint8 in RGB


# --- the list of frames


def header(path: str, for_decord: bool) -> tuple[Any, ...]:
    """The fields of `reader.Header`, from a pass over the packets; what those leave in doubt is decoded to see."""
    import av

    with av.open(path) as container:
        if container.format.name in LISTS:
            raise UnusableError("a list of other files")
        if not container.streams.video:
            raise UnusableError("no video in it")
        stream = container.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate
        form, codec, base = container.format.name, stream.codec_context.codec.canonical_name, stream.time_base
        packets = [packet for packet in map(_Packet.of, container.demux(stream)) if packet is not None]
        named = len(stream.index_entries) if form.startswith("mov") else 0
        if packets and (packets[-1].corrupt or len(packets) < named):
            there = len(packets) - packets[-1].corrupt
            raise UnusableError(f"cut short, {there} of {max(named, stream.frames, len(packets))} frames")
    if not packets or not rate or base is None:
        raise UnusableError(f"its header speaks of {len(packets)} frames at {rate or 0} a second")
    stamps: list[int | None] = [packet.pts for packet in packets if not packet.discard]
    sure = form in STAMPED and codec in ONE_EACH and None not in stamps and len(set(stamps)) == len(stamps)
    sure = sure and packets[0].key and not any(packet.corrupt for packet in packets)
    if sure:
        stamps.sort()
        sure = packets[0].pts <= stamps[0] or packets[0].discard  # else it begins amid what refers to frames before it
    first = _decoded(path, HEAD, {})
    sure = sure and first.stamps == stamps[: len(first.stamps)] and len(first.stamps) == min(HEAD, len(stamps))
    if not sure:
        stamps = _decoded(path, None, UNSHOWN).stamps
    if not stamps:
        raise UnusableError("no frame of it can be decoded")
    rising = None not in stamps and all(a < b for a, b in pairwise(stamps))  # type: ignore[operator]
    # AVI stores no stamps: where frames are reordered, those it is given depend on where decoding began
    told = rising and not (form == "avi" and first.reorders)
    places = {stamp: n for n, stamp in enumerate(stamps)} if told else {}
    keys = sorted(places[packet.pts] for packet in packets if packet.key and packet.pts in places)
    plain = for_decord and sure and len(packets) == len(stamps)
    plain = plain and [packet.pts for packet in packets if packet.key] == [packets[n].pts for n in keys]
    return (
        len(stamps),
        float(rate),
        first.height,
        first.width,
        _compact(stamps) if told else None,
        float(base),
        _compact(keys),
        plain and _keys_show(path, [stamps[number] for number in keys]),
    )


class _Packet(NamedTuple):
    pts: Any  # int, or None
    dts: Any
    key: bool
    discard: bool
    corrupt: bool

    @classmethod
    def of(cls, packet: Any) -> _Packet | None:
        if not packet.size:  # marks the end
            return None
        return cls(packet.pts, packet.dts, packet.is_keyframe, packet.is_discard, packet.is_corrupt)


class _Decoded(NamedTuple):
    stamps: list[int | None]  # in the order in which the frames are shown
    height: int  # of a frame, upright
    width: int
    reorders: bool  # the codec shows frames in another order than it stores them


def _decoded(path: str, most: int | None, options: dict[str, str]) -> _Decoded:
    """What decoding a film from its start gives, up to so many frames of it."""
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        stream.codec_context.options = options
        stamps: list[int | None] = []
        sides = (0, 0)
        for frame in islice(container.decode(stream), most):
            if not stamps:
                sides = (frame.height, frame.width) if frame.rotation % 180 == 0 else (frame.width, frame.height)
            stamps.append(frame.pts)
        return _Decoded(stamps, *sides, reorders=bool(stream.codec_context.has_b_frames))


def _keys_show(path: str, stamps: Sequence[Any]) -> bool:
    """Whether decoding that begins at a key frame begins with it, for all of them."""
    import av

    if len(stamps) > MOST_KEYS:
        return False
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for stamp in stamps:
            container.seek(stamp, stream=stream)
            frame = next(container.decode(stream), None)
            if frame is None or frame.pts != stamp or not _whole(frame):
                return False
    return True


def _whole(frame: Any) -> bool:
    """Whether a frame, the first one where decoding begins, needs none before it. Some films have no such frames but
    at their start, and are refreshed bit by bit instead."""
    from av.video.frame import PictureType

    return bool(frame.pict_type == PictureType.I) and not frame.is_corrupt


def _compact(numbers: Sequence[Any]) -> Numbers:
    """Integers in little memory."""
    steps = {b - a for a, b in pairwise(numbers)}
    if len(numbers) > 1 and len(steps) == 1 and 0 not in steps:
        step = steps.pop()
        return range(numbers[0], numbers[-1] + (1 if step > 0 else -1), step)
    return array("q", numbers)


# --- readers


def pyav_frames(path: str, ask: Ask) -> np.ndarray:
    """With PyAV. From a key frame; where the file does not lead there, or leads too far, from the one before it, and
    at last from the film's start."""
    import av

    for start in ask.starts:
        with suppress(av.error.FFmpegError):
            frames, lost = _passing(path, ask, start)
            if not lost:
                return frames
    frames, lost = _passing(path, ask, None)
    if lost > 1:
        raise UnusableError(f"{lost} frames that its index names are not in it")
    return frames


def _passing(path: str, ask: Ask, start: int | None) -> tuple[np.ndarray, int]:
    """The frames, and how many of them never came: as on a screen, the one before stays in the place of such a one."""
    import av
    from av.video.reformatter import VideoReformatter

    wanted = list(ask.numbers if ask.stamps is None else ask.stamps)
    rest = sorted(set(wanted), reverse=True)
    found: dict[int, np.ndarray] = {}
    lost = 0
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        reformatter = VideoReformatter()  # one for all frames: each frame's own would be set up anew

        def upright(frame: Any) -> np.ndarray:
            return np.rot90(reformatter.reformat(frame, format="rgb24").to_ndarray(), frame.rotation // 90)

        if start is not None:
            container.seek(start, stream=stream)
        before, last = None, -math.inf if start is None else start
        for number, frame in enumerate(container.decode(stream)):
            key = number if ask.stamps is None else frame.pts
            if key is None:
                continue
            if start is not None:
                # where no key frame is, stamps are made up; or it began amid what refers to frames before it
                begins = key in ask.starts and _whole(frame) if before is None else key > last
                if frame.is_corrupt or not begins:
                    return np.empty(0), len(rest)
                last = key
            while rest and rest[-1] < key:
                found[rest.pop()] = upright(before or frame)
                lost += 1
            if rest and rest[-1] == key:
                found[rest.pop()] = upright(frame)
            if not rest:
                break
            before = frame
        if rest and before is None:
            return np.empty(0), len(rest)
        for late in rest:
            found[late] = upright(before)
            lost += 1
    return np.stack([found[key] for key in wanted]), lost


def decord_frames(path: str, ask: Ask) -> np.ndarray:
    """With decord. Raises DisagreeError where its numbers are not those of the list."""
    import decord

    if ask.times is None:
        raise DisagreeError
    video = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
    numbers = list(ask.numbers)
    if len(video) != ask.total or np.abs(video.get_frame_timestamp(numbers)[:, 0] - ask.times).max() > 1e-3:
        raise DisagreeError
    return np.from_dlpack(Frames(video.get_batch(numbers)))


class Frames:
    """decord's array, to be looked at by numpy without a copy, which its `asnumpy` makes."""

    def __init__(self, frames: Any) -> None:
        self.frames = frames

    def __dlpack__(self, **_: Any) -> Any:
        return self.frames.to_dlpack()

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0  # a CPU, the first


def either_frames(path: str, ask: Ask) -> np.ndarray:
    """With decord, and what it counts in another way or cannot read (some narrow sizes, some codecs) with PyAV."""
    try:
        return decord_frames(path, ask)
    except Exception:  # decord has errors of its own, and others
        return pyav_frames(path, ask)


def find_decoder(name: str) -> Decode:
    """By name: "pyav", "auto" for it too, or "decord" for that where it is right. Raises ImportError."""
    import av

    av.logging.set_level(av.logging.PANIC)
    if name != "decord":
        return pyav_frames
    try:
        import decord
    except (OSError, RuntimeError) as error:  # its library does not load
        raise ImportError(str(error)) from error
    decord.logging.set_level(decord.logging.QUIET)
    return either_frames


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


# --- the process


def crop(frames: np.ndarray, size: tuple[int, int], resized: bool) -> np.ndarray:
    """The centred part of (T, H, W, 3) that has the shape of `size`, height and width: the largest, to be resized, or
    that of this size."""
    height, width = frames.shape[1:3]
    scale = min(height / size[0], width / size[1]) if resized else 1.0
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


class Channel:
    """Pickled objects through pipes, to the other side and back."""

    def __init__(self, incoming: IO[bytes], outgoing: IO[bytes]) -> None:
        self.incoming, self.outgoing = incoming, outgoing

    def send(self, what: Any) -> None:
        """Raises OSError where the other side is gone."""
        self.outgoing.write(pickle.dumps(what, protocol=5))
        self.outgoing.flush()

    def receive(self) -> Any:
        """Raises EOFError where the other side is gone."""
        try:
            return pickle.load(self.incoming)
        except pickle.UnpicklingError as error:  # gone amid an answer
            raise EOFError from error

    def close(self) -> None:
        for pipe in (self.incoming, self.outgoing):
            with suppress(OSError):  # what it still holds for the other side, which is gone
                pipe.close()


def end_after(seconds: float) -> None:
    """The kernel ends this process then, wherever it is, if it knows how; 0 calls it off."""
    if KERNEL_ENDS:
        signal.setitimer(signal.ITIMER_REAL, seconds)


def serve(channel: Channel, memories: Sequence[Memory], timeout_s: float, decode: Decode) -> None:
    """Answer requests until the other side is gone. A request that takes longer than `timeout_s` ends the process."""

    def answer(memory: int, what: str, path: str, *rest: Any) -> Any:
        if what == "header":
            return header(path, for_decord=decode is either_frames)
        size, resized, *ask = rest
        frames = crop(decode(path, Ask(*ask)), size, resized)
        if not memories:
            return np.ascontiguousarray(frames)
        memories[memory].put(frames)
        return frames.shape

    while True:
        try:
            memory, request = channel.receive()
        except EOFError:
            return
        end_after(timeout_s)
        try:
            reply = True, answer(memory, *request)
        except Exception as error:  # the libraries meet broken files with nearly any exception
            reply = False, why(request[1], error)
        end_after(0)
        channel.send(reply)


def main(reader: str, timeout_s: str, *memory_fds: str) -> None:
    if KERNEL_ENDS:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process
    for name in {"SIGINT", "SIGTERM", "SIGUSR1"} & set(dir(signal)):  # the asking process decides
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    end_after(START_S)
    outgoing = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library prints is no reply
    channel = Channel(sys.stdin.buffer, outgoing)
    try:
        decode = find_decoder(reader)
    except ImportError as error:
        channel.send((False, str(error)))
        return
    with suppress(ImportError, OSError, ValueError):  # where the system knows no such limit
        import resource

        held = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY_BYTES, resource.RLIM_INFINITY))
    end_after(0)
    channel.send((True, decode.__name__))
    with suppress(BrokenPipeError):  # the other side went without waiting for its answer
        serve(channel, [Memory(int(fd)) for fd in memory_fds], float(timeout_s), decode)


if __name__ == "__main__":
    main(*sys.argv[1:])
