"""A modality that the package does not know, whole in one file: series of measurements, in CSV files.

B batch, S steps in time, C columns, r steps in a token, N = S / r.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from djepa_mm.moments import Moments
from djepa_mm.types import USUAL, BrokenItem, Config, Entry, Extent, Item, MediaSpec, SourceConfig, UserError


class SeriesSourceConfig(SourceConfig):
    """A folder of CSV files, a row a step."""

    source: Literal["series"]
    root: str

    def build(self) -> SeriesFolder:
        return SeriesFolder(Path(self.root))


class SeriesFolder:
    classes: tuple[str, ...] = ()

    def __init__(self, root: Path) -> None:
        self.root, self.files = root, sorted(root.glob("*.csv"))

    def __len__(self) -> int:
        return len(self.files)

    def entry(self, index: int) -> Entry:
        return Entry(name=self.files[index].name, path=self.files[index])

    def shape(self, index: int) -> tuple[int, ...]:
        return tuple(self.read(index).media.shape)

    def read(self, index: int) -> Item:
        try:
            return Item(entry=self.entry(index), media=Tables(1.0).load(self.files[index]))
        except UserError as error:
            raise BrokenItem(str(error)) from error


class Tables:
    """Series (C, 1, S, 1), as clips of columns: files, and a look at them."""

    suffixes: tuple[str, ...] = (".csv",)

    def __init__(self, per_second: float) -> None:
        self.per_second: float | None = per_second

    def save(self, media: Tensor, path: Path) -> None:
        np.savetxt(path, media[:, 0, :, 0].T.numpy(), delimiter=",")

    def load(self, path: Path, shape: tuple[int, ...] | None = None) -> Tensor:
        try:
            rows = np.loadtxt(path, delimiter=",", dtype=np.float32, ndmin=2)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: not readable as a series ({error})") from None
        return torch.from_numpy(rows).T[:, None, :, None]

    def blend(self, original: Tensor, new: Tensor, kept: Tensor) -> Tensor:
        return torch.where(kept, original, new)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts), dim=2)

    def preview(self, media: Tensor) -> Image.Image:
        level = ((media[:, 0, :, 0].clamp(-1, 1) + 1) * 127.5).to(torch.uint8)  # (C, S)
        return Image.fromarray(level.numpy()).resize((4 * level.shape[1], 64), Image.Resampling.NEAREST)


class SeriesConfig(Config):
    kind: Literal["series"]
    columns: PositiveInt = Field(examples=[2])
    steps_per_token: PositiveInt = 4
    per_second: PositiveFloat = 10.0
    seconds: PositiveFloat = 1.6
    """Of a generated series where nothing else is asked for."""

    def build(self) -> Series:
        return Series(self)


class Series:
    def __init__(self, config: SeriesConfig) -> None:
        self.config = config
        self.media = Tables(config.per_second)
        self.token_dim = config.columns * config.steps_per_token
        self.fixed: MediaSpec | None = None
        self.mean, self.std = torch.zeros(self.token_dim), torch.ones(self.token_dim)

    @property
    def span(self) -> tuple[int, int, int]:
        return (1, self.config.steps_per_token, 1)

    def spec_of(self, shape: tuple[int, ...]) -> MediaSpec:
        columns, r = self.config.columns, self.config.steps_per_token
        if len(shape) != 4 or shape[0] != columns or shape[1] != 1 or shape[2] % r or shape[3] != 1:
            raise UserError(f"expected a series of {columns} columns and a multiple of {r} steps, not {tuple(shape)}")
        return MediaSpec(grid=(1, shape[2] // r, 1), shape=tuple(shape))

    def spec_for(self, extent: Extent = USUAL) -> MediaSpec:
        if extent.size is not None:
            raise UserError("a series has no height and width: leave the size out")
        r = self.config.steps_per_token
        steps = (self.config.seconds if extent.duration_s is None else extent.duration_s) * self.config.per_second
        if not 0 < steps < 1e6:
            raise UserError(f"a duration of {extent.duration_s} s: give more than 0")
        count = max(1, round(steps / r)) if extent.num_tokens is None else extent.num_tokens
        return self.spec_of((self.config.columns, 1, count * r, 1))

    def encode(self, media: Tensor) -> Tensor:
        tokens = rearrange(media, "b c 1 (n r) 1 -> b n (r c)", r=self.config.steps_per_token)
        return (tokens - self.mean) / self.std

    def decode(self, tokens: Tensor, spec: MediaSpec) -> Tensor:
        tokens = tokens * self.std + self.mean
        return rearrange(tokens, "b n (r c) -> b c 1 (n r) 1", r=self.config.steps_per_token)

    def fit(self, media: Iterable[Tensor]) -> None:
        moments = Moments()
        for series in media:
            moments.add(rearrange(series, "c 1 (n r) 1 -> n (r c)", r=self.config.steps_per_token))
        self.mean, self.std = moments.mean.float(), moments.std.clamp_min(1e-3).float()

    def state(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "std": self.std}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.mean, self.std = state["mean"], state["std"]
