"""Clips and pictures in files. PyAV (which brings FFmpeg) is imported when the first clip is read or written.

C channels, 1 or 3; T frames, H and W pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from djepa_mm.types import UserError

CRF = "15"  # of x264, 0 to 51: hardly to be told from the original
ANIMATIONS: dict[str, dict[str, Any]] = {".gif": {}, ".webp": {"quality": 90, "method": 4}}  # Pillow's options


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipFormat:
    """What a clip's file says of it."""

    frames: int
    size: tuple[int, int]  # height and width in pixels
    frame_rate: float  # frames a second


def probe_clip(path: Path) -> ClipFormat:
    """Frames, size and rate of any file that FFmpeg reads. Raises UserError, one line."""
    with _opened(path) as (stream, frames):
        first = next(frames, None)
        if first is None:
            raise UserError(f"{path}: not readable as a clip (no frames in it)")
        count = stream.frames or 1 + sum(1 for _ in frames)  # frames are counted where the header is silent
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        return ClipFormat(frames=count, size=_upright(first, "gray").shape[:2], frame_rate=rate)


def read_clip(path: Path, *, channels: int = 3, most: int | None = None, last: int | None = None) -> Tensor:
    """Any file that FFmpeg reads, or an animated .webp -> (C, T, H, W) in [-1, 1]. Raises UserError, one line.

    most, last: only its first `most` frames; of these, only the last `last`."""
    pixels = list(deque(islice(_frames(path, channels), most), maxlen=last))
    if not pixels or len({frame.shape for frame in pixels}) > 1:
        raise UserError(f"{path}: not readable as a clip ({'frames of many sizes' if pixels else 'no frames in it'})")
    return _from_bytes(np.stack(pixels)).permute(3, 0, 1, 2)


def read_picture(path: Path, *, channels: int = 3) -> Tensor:
    """Any file that Pillow reads -> (C, H, W) in [-1, 1]. Raises UserError, one line."""
    with _opened_by_pillow(path, "a picture") as picture:
        return _from_bytes(_pixels(picture, channels)).permute(2, 0, 1)


def write_clip(clip: Tensor, path: Path, frame_rate: float) -> None:
    """(C, T, H, W) in [-1, 1] -> .mp4 (H.264, yuv420p: plays everywhere), or an animated .gif or .webp.

    An animation has neighbours that are exactly alike as one frame that is shown longer. Raises UserError for another
    suffix, and for an .mp4 of odd height or width, which yuv420p cannot hold."""
    if path.suffix in ANIMATIONS:
        _write_animation(clip, path, frame_rate)
    elif path.suffix == ".mp4":
        _write_mp4(clip, path, frame_rate)
    else:
        raise UserError(f"{path}: clips are written as .mp4, {' or '.join(ANIMATIONS)}")


def pictures(clip: Tensor) -> list[Image.Image]:
    """(C, T, H, W) in [-1, 1] -> a grey or RGB picture of every frame."""
    return [Image.fromarray(frame.squeeze(-1) if frame.shape[-1] == 1 else frame) for frame in _to_bytes(clip)]


def _write_mp4(clip: Tensor, path: Path, frame_rate: float) -> None:
    _, _, height, width = clip.shape
    if height % 2 or width % 2:
        raise UserError(
            f"{path}: H.264 files need an even height and width, not {height}×{width}; .gif and .webp do not"
        )
    av = _av()
    with av.open(path, "w") as container:
        stream = container.add_stream(
            "libx264", rate=Fraction(frame_rate).limit_denominator(1001), options={"crf": CRF}
        )
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for pixels in _to_bytes(clip.expand(3, -1, -1, -1)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def _write_animation(clip: Tensor, path: Path, frame_rate: float) -> None:
    """With each frame's end rounded, not its length, for GIF counts in hundredths of a second."""
    first, *others = pictures(clip)
    ends = [round((n + 1) * 100 / frame_rate) for n in range(1 + len(others))]
    durations_ms = [10 * max(1, end - start) for start, end in zip([0, *ends], ends, strict=False)]
    first.save(path, save_all=True, append_images=others, duration=durations_ms, loop=0, **ANIMATIONS[path.suffix])


def _to_bytes(clip: Tensor) -> np.ndarray:
    """(C, T, H, W) in [-1, 1] -> (T, H, W, C) uint8."""
    pixels = ((clip.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return np.ascontiguousarray(pixels.permute(1, 2, 3, 0).numpy())


def _from_bytes(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.copy()) / 127.5 - 1


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise UserError('clips need PyAV: pip install "djepa-mm[video]"') from error
    av.logging.set_level(None)  # what goes wrong is an exception
    return av


def _upright(frame: Any, form: str) -> np.ndarray:
    """(H, W, C) uint8 of a frame, turned as the camera was held, in exact colours: swscale's default way from YUV to
    RGB, made for speed, darkens all by 1.5 of 255."""
    flags = _av().video.reformatter.Interpolation
    exact = flags.BICUBIC | flags.ACCURATE_RND | flags.FULL_CHR_H_INT | flags.FULL_CHR_H_INP
    pixels = frame.to_ndarray(format=form, interpolation=exact).reshape(frame.height, frame.width, -1)
    return np.rot90(pixels, frame.rotation // 90)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Iterator[Any]]]:
    """The video stream of a file and its decoded frames. FFmpeg's ways to fail, now and later, become one line."""
    av = _av()
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(f"{path}: not readable as a clip (no video in it)")
            yield container.streams.video[0], container.decode(video=0)
    except (av.error.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path}: not readable as a clip ({' '.join(reason.split())})") from None


def _frames(path: Path, channels: int) -> Iterator[np.ndarray]:
    """(H, W, C) uint8 of every frame. Pillow reads animated .webp, which FFmpeg does not."""
    if path.suffix.lower() == ".webp":
        with _opened_by_pillow(path, "a clip") as picture:
            for number in range(getattr(picture, "n_frames", 1)):
                picture.seek(number)
                yield _pixels(picture, channels)
    else:
        with _opened(path) as (_, frames):
            for frame in frames:
                yield _upright(frame, "gray" if channels == 1 else "rgb24")


def _pixels(picture: Image.Image, channels: int) -> np.ndarray:
    """(H, W, C) uint8."""
    return np.asarray(picture.convert("L" if channels == 1 else "RGB")).reshape(picture.height, picture.width, channels)


@contextmanager
def _opened_by_pillow(path: Path, what: str) -> Iterator[Any]:
    """Pillow's ways to fail, now and later, become one line."""
    try:
        with Image.open(path) as picture:
            yield picture
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not readable as {what} ({' '.join(str(error).split())})") from None
