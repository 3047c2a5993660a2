"""Clips: their files, and how people look at them. PyAV (which brings FFmpeg) is imported when the first clip is read
or written.

C channels, 1 or 3; T frames, H and W pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
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
from torch.nn import functional

from djepa_mm.errors import UserError
from djepa_mm.media.pictures import SUFFIXES, enlarged, from_bytes, image_of, opened, pixels_of, to_bytes, upright

CRF = "15"  # of x264, 0 to 51: hardly to be told from the original
ANIMATIONS: dict[str, dict[str, Any]] = {".gif": {}, ".webp": {"quality": 90, "method": 4}}  # Pillow's options
LISTS = {"concat", "dash", "hls", "imf"}  # FFmpeg's formats of files that say where a film's parts are
PREVIEW_FRAMES = 8  # most on a contact sheet, in rows of four


class Clips:
    """Clips (C, T, H, W) in [-1, 1], of any length and size."""

    suffixes: tuple[str, ...] = (".mp4", *ANIMATIONS)

    def __init__(self, channels: int, frame_rate: float) -> None:
        self.channels, self.frame_rate = channels, frame_rate
        self.per_second: float | None = frame_rate

    def save(self, media: Tensor, path: Path) -> None:
        """As `write_clip`: H.264 in .mp4, which takes even sizes alone, or an animated .gif or .webp."""
        write_clip(media, path, self.frame_rate)

    def load(self, path: Path, shape: tuple[int, ...] | None = None) -> Tensor:
        """Any file that `read_clip` reads; where a shape is asked for, no further than one frame beyond it."""
        if shape is None:
            return read_clip(path, channels=self.channels)
        _, frames, height, width = shape
        first = next(_decoded(path, self.channels), None)  # of another size, no more of them are decoded
        if first is not None and first.shape[:2] != (height, width):
            found = f"{first.shape[1]}×{first.shape[0]}"
            raise UserError(
                f"{path}: the clip's frames are of {found} pixels, this model takes {frames} of {width}×{height}; "
                "resize it first"
            )
        clip = read_clip(path, channels=self.channels, most=frames + 1)
        if tuple(clip.shape) != tuple(shape):
            count = f"more than {frames}" if clip.shape[1] > frames else clip.shape[1]
            raise UserError(
                f"{path}: the clip has {count} frames of {clip.shape[3]}×{clip.shape[2]} pixels, this model takes "
                f"{frames} of {width}×{height}; cut or resize it first"
            )
        return clip

    def blend(self, original: Tensor, new: Tensor, kept: Tensor) -> Tensor:
        return torch.where(kept, original, new)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """One after the other in time."""
        return torch.cat(list(parts), dim=1)

    def preview(self, media: Tensor) -> Image.Image:
        """A contact sheet of frames at even steps, in rows of four, first and last among them."""
        count = min(media.shape[1], PREVIEW_FRAMES)
        columns = min(count, PREVIEW_FRAMES // 2)
        chosen = torch.linspace(0, media.shape[1] - 1, count // columns * columns).round().long()
        cells = functional.pad(media.detach().float().cpu()[:, chosen], (1, 1, 1, 1), value=1.0)
        rows = cells.unflatten(1, (-1, columns)).movedim(3, 2)  # (C, rows, H, columns, W)
        sheet = image_of(to_bytes(rows.flatten(3).flatten(1, 2)))
        return enlarged(sheet, min(media.shape[-2:]))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipFormat:
    """What a clip's file says of it."""

    frames: int
    size: tuple[int, int]  # height and width in pixels
    frame_rate: float  # frames a second


def probe_clip(path: Path) -> ClipFormat:
    """Frames, size and rate of any file that FFmpeg reads. Raises UserError, one line."""
    with _opened(path) as (stream, decoded):
        first = next(decoded, None)
        if first is None:
            raise UserError(f"{path}: not readable as a clip (no frames in it)")
        count = stream.frames or 1 + sum(1 for _ in decoded)  # frames are counted where the header is silent
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        return ClipFormat(frames=count, size=_upright(first, "gray").shape[:2], frame_rate=rate)


def read_clip(path: Path, *, channels: int = 3, most: int | None = None, last: int | None = None) -> Tensor:
    """Any file that FFmpeg reads -> (C, T, H, W) in [-1, 1]; pictures, animated or of one frame, are read as pictures
    are. Raises UserError, one line.

    most, last: only its first `most` frames; of these, only the last `last`."""
    pixels = list(deque(islice(_decoded(path, channels), most), maxlen=last))
    if not pixels or len({frame.shape for frame in pixels}) > 1:
        raise UserError(f"{path}: not readable as a clip ({'frames of many sizes' if pixels else 'no frames in it'})")
    return from_bytes(np.stack(pixels)).permute(3, 0, 1, 2)


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


def frames(clip: Tensor) -> list[Image.Image]:
    """(C, T, H, W) in [-1, 1] -> a grey or RGB picture of every frame."""
    return [image_of(pixels) for pixels in to_bytes(clip)]


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
        for pixels in to_bytes(clip.expand(3, -1, -1, -1)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def _write_animation(clip: Tensor, path: Path, frame_rate: float) -> None:
    """With each frame's end rounded, not its length, for GIF counts in hundredths of a second."""
    first, *others = frames(clip)
    ends = [round((n + 1) * 100 / frame_rate) for n in range(1 + len(others))]
    durations_ms = [10 * max(1, end - start) for start, end in zip([0, *ends], ends, strict=False)]
    first.save(path, save_all=True, append_images=others, duration=durations_ms, loop=0, **ANIMATIONS[path.suffix])


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
            if container.format.name in LISTS:
                raise UserError(f"{path}: not readable as a clip (a list of other files)")
            if not container.streams.video:
                raise UserError(f"{path}: not readable as a clip (no video in it)")
            yield container.streams.video[0], container.decode(video=0)
    except (av.error.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path}: not readable as a clip ({' '.join(reason.split())})") from None


def _decoded(path: Path, channels: int) -> Iterator[np.ndarray]:
    """(H, W, C) uint8 of every frame. FFmpeg does not read animated .webp, and knows no white behind pictures."""
    if path.suffix.lower() in SUFFIXES:
        with opened(path, "a clip") as picture:
            for number in range(getattr(picture, "n_frames", 1)):
                picture.seek(number)
                yield pixels_of(upright(picture), channels)
    else:
        with _opened(path) as (_, pictures):
            for picture in pictures:
                yield _upright(picture, "gray" if channels == 1 else "rgb24")
