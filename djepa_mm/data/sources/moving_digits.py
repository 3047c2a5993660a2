"""Video that needs no download: scikit-learn's handwritten digits, bouncing in a box.

T frames, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional

from djepa_mm.data.cache import corpus_folder, made_whole
from djepa_mm.data.sources.clips import Clips, ClipsConfig
from djepa_mm.data.sources.digits import load_digits
from djepa_mm.media.clips import write_clip
from djepa_mm.types import Progress, SourceConfig, UserError

VERSION = 1  # of the clips that the settings give; a change makes them anew
HELD_OUT, HELD_OUT_SEED = 200, 1_000_003  # clips that `build_held_out` keeps for evaluation
FRAME_RATE = 10.0


class MovingDigitsConfig(SourceConfig):
    """One digit in each clip, ten classes: it flies straight and bounces off the edges of the frame."""

    source: Literal["moving-digits"]
    made: ClassVar[bool] = True
    count: PositiveInt = 2000
    frames: PositiveInt = 16
    size: Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)] = (32, 32)
    """Height and width, both even."""
    scale: PositiveInt = 2
    """Pixels of the clip, on a side, for one of the digit's 8×8."""
    min_speed: NonNegativeFloat = 0.5
    """Pixels a frame."""
    max_speed: PositiveFloat = 3.0
    seed: NonNegativeInt = 0
    reader: Literal["auto", "decord", "pyav"] = "auto"
    root: str | None = None
    """Folder to keep corpora in; by default the user's cache."""

    @property
    def folder(self) -> Path:
        """Where the corpus of these settings lies, or will."""
        settings = f"{self.model_dump_json(exclude={'root', 'reader'})} {FRAME_RATE} {VERSION}"
        return corpus_folder("moving-digits", settings, self.root)

    def build(self) -> Clips:
        """Read the corpus; write it first where this is its first use."""
        return self._build(self.folder, "train")

    def build_held_out(self) -> Clips:
        """HELD_OUT clips of other pictures of digits, on other paths."""
        return self._build(self.folder.with_name(f"{self.folder.name}-held-out"), "held-out")

    def fetch(self, progress: Progress) -> str:
        """Write the corpus, unless it is there."""
        self._build(self.folder, "train", progress)
        return f"moving digits are in {self.folder}"

    def _build(self, folder: Path, split: Split, progress: Progress | None = None) -> Clips:
        if not folder.exists():
            write_digits(self, split, folder, progress)
        clips = ClipsConfig(
            source="clips", root=str(folder), frames=self.frames, size=self.size, channels=1, reader=self.reader
        ).build()
        clips.classes = tuple("0123456789")  # all ten, also where a small corpus lacks some
        return clips


Split = Literal["train", "held-out"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MovingDigit:
    """A clip as it was before it became a file."""

    name: str  # as the source calls it
    label: int  # the digit
    clip: Tensor  # (1, T, H, W) in [-1, 1], black to white
    centres: Tensor  # (T, 2) the ink's centre of mass in pixels (y, x); a pixel's centre is at its half


def moving_digits(config: MovingDigitsConfig, split: Split = "train") -> Iterator[MovingDigit]:
    """Every clip of the corpus, the same ones each time. Raises UserError where the frame is too small for digits."""
    if config.min_speed > config.max_speed:
        raise UserError(f"data.min_speed: {config.min_speed:g} is more than data.max_speed, {config.max_speed:g}")
    if min(config.size) < 9 * config.scale:  # 8 pixels, and half a one around them that fades out
        raise UserError(f"data.size: {list(config.size)} is too small for digits of data.scale {config.scale}")
    generator = np.random.default_rng(config.seed + (HELD_OUT_SEED if split == "held-out" else 0))
    pictures, labels = load_digits("train" if split == "train" else "test")
    pictures = (pictures[:, 0] + 1) / 2  # (pictures, 8, 8), ink in [0, 1]
    for number in range(config.count if split == "train" else HELD_OUT):
        which = int(generator.integers(len(labels)))
        low, high = walls(pictures[which], config.scale, config.size)
        start = generator.uniform(low, high)
        angle, speed = generator.uniform(0, 2 * np.pi), generator.uniform(config.min_speed, config.max_speed)
        velocity = speed * np.array([np.sin(angle), np.cos(angle)])
        centres = torch.from_numpy(bounce(start + np.arange(config.frames)[:, None] * velocity, low, high)).float()
        yield MovingDigit(
            name=f"{labels[which]}/d{number:06}.mp4",
            label=labels[which],
            clip=draw(pictures[which], centres, config.scale, config.size),
            centres=centres,
        )


def walls(picture: Tensor, scale: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest (y, x), in pixels, of a digit's centre of mass while all of its ink is in the frame."""
    centre = centres_of_mass(picture[None]).numpy()[0]
    places = np.argwhere(picture.numpy() > 0)
    low = centre - (places.min(0) - 0.5)  # ink fades out half a pixel around its pixels
    high = places.max(0) + 1.5 - centre
    return scale * low, np.array(size) - scale * high


def bounce(straight: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """A straight path (T, 2), folded at walls. Each wall gives the speed back whole."""
    span = high - low
    return low + span - np.abs((straight - low) % (2 * span) - span)


def draw(picture: Tensor, centres: Tensor, scale: int, size: tuple[int, int]) -> Tensor:
    """A digit (8, 8), enlarged, with its centre of mass at each of `centres` (T, 2) -> (1, T, H, W) in [-1, 1]."""
    rows, columns = (torch.arange(n) + 0.5 for n in size)
    middle = centres_of_mass(picture[None])[0]
    y = (rows - centres[:, :1]) / scale + middle[0]  # (T, H) in pixels of the digit
    x = (columns - centres[:, 1:]) / scale + middle[1]  # (T, W)
    grid = torch.stack(
        [
            x[:, None, :].expand(-1, len(rows), -1) * 2 / picture.shape[1] - 1,
            y[:, :, None].expand(-1, -1, len(columns)) * 2 / picture.shape[0] - 1,
        ],
        dim=-1,
    )
    frames = functional.grid_sample(
        picture.expand(len(centres), 1, -1, -1), grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    return frames.transpose(0, 1) * 2 - 1


def centres_of_mass(ink: Tensor) -> Tensor:
    """(T, H, W), not negative -> (T, 2) in pixels (y, x); a pixel's centre is at its half. NaN where there is none."""
    rows, columns = (torch.arange(n, dtype=ink.dtype) + 0.5 for n in ink.shape[1:])
    total = ink.sum((1, 2))
    return torch.stack([(ink.sum(2) * rows).sum(1), (ink.sum(1) * columns).sum(1)], dim=1) / total[:, None]


def write_digits(config: MovingDigitsConfig, split: Split, out: Path, progress: Progress | None = None) -> None:
    """Write the clips as H.264 files in the class folders of `out`, which appears only once it is complete."""
    total = config.count if split == "train" else HELD_OUT
    with made_whole(out) as folder:
        for done, digit in enumerate(moving_digits(config, split), start=1):
            path = folder / digit.name
            path.parent.mkdir(exist_ok=True)
            write_clip(digit.clip, path, FRAME_RATE)
            if progress is not None:
                progress(done, total)
