"""Key types that every floor of the house shares.

B batch, N tokens, C token channels, D model width, L condition tokens.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from djepa_mm.errors import BrokenItem, UserError

__all__ = [
    "BrokenItem",
    "Condition",
    "Config",
    "Head",
    "Item",
    "MediaSpec",
    "Progress",
    "Source",
    "SourceConfig",
    "TokenBatch",
    "Tokenizer",
    "TokenizerConfig",
    "UserError",
]


class Config(BaseModel):
    """Base of every part of a recipe: unknown keys are errors, types are strict, values never change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


class _OnDevice:
    """`.to(device)` for a dataclass whose fields are tensors or other such dataclasses."""

    def to(self, device: torch.device | str) -> Self:
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self)}  # type: ignore[arg-type]
        return replace(self, **moved)  # type: ignore[type-var]


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition(_OnDevice):
    """What to generate: a class (L = 1) or a text (L characters), as integers. All on one device."""

    ids: Tensor  # (B, L) int64, from 0; what they count (classes, characters) is the conditioner's matter
    valid: Tensor  # (B, L) bool, False on padding
    positions: Tensor  # (B, L, 3) float coordinates on (t, h, w), in units of media tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch(_OnDevice):
    """Media of one batch as continuous tokens, padded to the longest item."""

    tokens: Tensor  # (B, N, C) float, unit variance
    positions: Tensor  # (B, N, 3) float coordinates on (t, h, w); unused axes 0
    valid: Tensor  # (B, N) bool, False on padding
    condition: Condition


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaSpec:
    """The size of one item: of its token grid, and of the media itself."""

    grid: tuple[int, int, int]  # tokens on (t, h, w)
    shape: tuple[int, ...]  # media without the batch axis: (C, H, W), (C, T, H, W) or (samples,)

    @property
    def num_tokens(self) -> int:
        t, h, w = self.grid
        return t * h * w

    def positions(self) -> Tensor:
        """(N, 3) float: every place of the grid as (t, h, w), w fastest."""
        axes = [torch.arange(n, dtype=torch.float32) for n in self.grid]
        return torch.cartesian_prod(*axes)


class Tokenizer(Protocol):
    """Media <-> continuous tokens. One file in `tokenizers/` holds one modality.

    Media: image (B, C, H, W) in [-1, 1], clip (B, 3, T, H, W) in [-1, 1], waveform (B, samples) in [-1, 1].
    """

    token_dim: int

    @property
    def sample_rate_hz(self) -> int | None:
        """Of waveforms; None for other media."""
        ...

    suffixes: ClassVar[tuple[str, ...]]  # of the files that `save` writes, each with its dot
    suffix: ClassVar[str]  # the first of them: of what is written where nothing else is asked for

    def spec_of(self, shape: tuple[int, ...]) -> MediaSpec:
        """Grid of media of this shape (no batch axis). Raises UserError where the shape cannot be tokenized."""
        ...

    def spec_for(self, *, num_tokens: int | None = None, duration_s: float | None = None) -> MediaSpec:
        """Spec of media to generate, from at most one of a token count and a duration; with neither, the fixed size.

        Raises UserError for a duration where there is none to choose, or for none where one must be chosen."""
        ...

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens a second on the t axis; None for stills."""
        ...

    @property
    def span(self) -> tuple[int, int, int]:
        """Samples or frames, rows and columns of the media that one token stands for; 1 on axes that it lacks."""
        ...

    def encode(self, media: Tensor) -> Tensor:
        """(B, *shape) -> (B, N, C), unit variance once `fit` has seen the corpus."""
        ...

    def decode(self, tokens: Tensor, spec: MediaSpec) -> Tensor:
        """(B, N, C) -> (B, *spec.shape)."""
        ...

    def fit(self, media: Iterable[Tensor]) -> None:
        """Learn the statistics that bring tokens to unit variance, from unbatched media; none where they are known."""
        ...

    def statistics(self) -> dict[str, Tensor]:
        """What `fit` learned; kept in the checkpoint."""
        ...

    def load_statistics(self, statistics: Mapping[str, Tensor]) -> None: ...

    def save(self, media: Tensor, path: Path) -> None:
        """Write one item (no batch axis) to `path`, whose suffix is one of `suffixes`."""
        ...

    def load(self, path: Path) -> Tensor:
        """Read one item (no batch axis) from a file of the kind that `save` writes. Raises UserError."""
        ...

    def blend(self, original: Tensor, new: Tensor, kept: Tensor) -> Tensor:
        """`original` where `kept`, else `new`, without a seam: changes only what is not kept. No batch axis.

        kept: bool on the media's axes of time and space: (T, H, W), (H, W) or (samples,)."""
        ...

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """One item out of consecutive ones (no batch axis). Raises UserError where media cannot follow each other."""
        ...

    def preview(self, media: Tensor) -> Image.Image:
        """A picture of one item (no batch axis) to look at: itself, a contact sheet, a mel picture."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One item of a corpus, with whichever condition it has."""

    media: Tensor  # no batch axis
    label: int | None = None  # index into the source's classes
    text: str | None = None


class Source(Protocol):
    """A corpus: items by index, in a fixed order."""

    classes: tuple[str, ...]  # names of the classes; empty where there are none

    @property
    def sample_rate_hz(self) -> int | None:
        """Of waveforms; None for other media."""
        ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What a report calls the item: its path in the corpus."""
        ...

    def text(self, index: int) -> str | None:
        """The item's text, without reading its media."""
        ...

    def shape(self, index: int) -> tuple[int, ...]:
        """Shape of the item's media, from its header alone. Raises BrokenItem."""
        ...

    def read(self, index: int) -> Item:
        """Raises BrokenItem."""
        ...


class Head(Protocol):
    """Distribution of one token given its feature, p(x_i | z_i). M tokens at a time."""

    def loss(self, z: Tensor, target: Tensor, generator: torch.Generator) -> Tensor:
        """z (M, D), target (M, C) -> (M,) fp32."""
        ...

    def sample(
        self,
        z: Tensor,
        *,
        noise: Callable[[], Tensor],
        z_null: Tensor | None = None,
        guidance: Tensor | float = 1.0,
        temperature: float = 1.0,
    ) -> Tensor:
        """z (M, D) -> (M, C). `noise()` draws the next unit normal noise (M, C); `guidance` is a number or (M, 1)."""
        ...


class SourceConfig(Config):
    """Base of a recipe's `data` section, defined beside the source that it builds."""

    @abstractmethod
    def build(self) -> Source: ...

    def build_held_out(self) -> Source | None:
        """Items that training never sees, to evaluate with; None where none are kept back."""
        return None

    def fetch(self, progress: Progress) -> str:
        """Download or make the corpus -> what was done, in a line. Raises UserError where that cannot be done here."""
        raise UserError("this corpus cannot be fetched from here; the recipe's head says where it comes from")


class TokenizerConfig(Protocol):
    """A recipe's `tokenizer` section, defined beside the tokenizer that it builds."""

    def build(self) -> Tokenizer: ...


Progress = Callable[[int, int], Any]  # called with (done, total)
