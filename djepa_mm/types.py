"""Key types that every floor of the house shares. What goes into the core is in `djepa_mm.core.types`.

B batch, N tokens, C token channels, D model width, L condition items.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, Protocol, Self, TypeVar, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from djepa_mm.core.types import Condition
from djepa_mm.errors import BrokenItem, UserError

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "USUAL",
    "BrokenItem",
    "ConditionConfig",
    "ConditionKind",
    "Config",
    "DrawnTokens",
    "Entry",
    "Extent",
    "FrozenFeatures",
    "Item",
    "Judge",
    "Judgement",
    "KeptFeatures",
    "Media",
    "MediaSpec",
    "Pinned",
    "Progress",
    "RawTokens",
    "Sample",
    "Source",
    "SourceConfig",
    "Stream",
    "Tokenizer",
    "TokenizerConfig",
    "UserError",
    "WayTo",
    "nearest_size",
]

Progress = Callable[[int, int], Any]  # called with (done, total)
Probability = Annotated[float, Field(ge=0, le=1)]
WayTo = Annotated[str, Field(pattern=r"^[^\x00]*$", max_length=4096)]  # a path out of a file that somebody else wrote


class Config(BaseModel):
    """Base of every part of a recipe: unknown keys are errors, types are strict, values never change.

    Numbers are finite, for JSON has no others, and a checkpoint's recipe could not be read again. Texts are not empty:
    an empty folder's name, such as of a variable of the shell that is not set, would be the current folder. Nor are
    they longer than anybody writes by hand."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        str_min_length=1,
        str_max_length=10_000,
        use_attribute_docstrings=True,
    )


# --- media and their tokens -------------------------------------------------------------------------------------------


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How large an item to generate shall be; None where nothing is asked for, and the usual or the needed is meant."""

    num_tokens: int | None = None
    duration_s: float | None = None
    size: tuple[int, int] | None = None  # height and width in pixels


USUAL = Extent()


def nearest_size(size: tuple[int, int], multiples: tuple[int, int]) -> tuple[int, int]:
    """Height and width that are multiples of two numbers, and at least these."""
    rows, columns = (max(1, round(side / multiple)) * multiple for side, multiple in zip(size, multiples, strict=True))
    return rows, columns


class Media(Protocol):
    """One kind of media: its files, and how people see or hear it. Items have no batch axis here.

    Picture (C, H, W) in [-1, 1], clip (C, T, H, W) in [-1, 1], sound (samples,) in [-1, 1].
    """

    suffixes: tuple[str, ...]
    """Of the files that `save` writes, each with its dot; the first where nothing else is asked for."""

    per_second: float | None
    """Samples or frames a second; None for stills."""

    def save(self, media: Tensor, path: Path) -> None:
        """Write one item to `path`, whose suffix is one of `suffixes`."""
        ...

    def load(self, path: Path, shape: tuple[int, ...] | None = None) -> Tensor:
        """Read one item from a file of the kind that `save` writes, of that shape where one is asked for.

        Raises UserError, which names the file."""
        ...

    def blend(self, original: Tensor, new: Tensor, kept: Tensor) -> Tensor:
        """`original` where `kept`, else `new`, without a seam: changes only what is not kept.

        kept: bool on the media's axes of time and space: (T, H, W), (H, W) or (samples,)."""
        ...

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """One item out of consecutive ones. Raises UserError where media cannot follow each other."""
        ...

    def preview(self, media: Tensor) -> Image.Image:
        """A picture to look at: itself, a contact sheet, a mel picture."""
        ...


class Tokenizer(Protocol):
    """Media <-> continuous tokens. One file in `tokenizers/` holds one modality."""

    token_dim: int
    media: Media

    @property
    def fixed(self) -> MediaSpec | None:
        """The one size that all its media have; None where they vary."""
        ...

    @property
    def span(self) -> tuple[int, int, int]:
        """Samples or frames, rows and columns of the media that one token stands for; 1 on axes that it lacks."""
        ...

    def spec_of(self, shape: tuple[int, ...]) -> MediaSpec:
        """Size of media of this shape (no batch axis). Raises UserError where the shape cannot be tokenized."""
        ...

    def spec_for(self, extent: Extent = USUAL) -> MediaSpec:
        """Size of media to generate. Raises UserError for what cannot be chosen, or for what must be."""
        ...

    def encode(self, media: Tensor) -> Tensor:
        """(B, *shape) -> (B, N, C), unit variance once `fit` has seen the corpus. The same media, the same tokens."""
        ...

    def decode(self, tokens: Tensor, spec: MediaSpec) -> Tensor:
        """(B, N, C) -> (B, *spec.shape)."""
        ...

    def fit(self, media: Iterable[Tensor]) -> None:
        """Learn the statistics that bring tokens to unit variance, from unbatched media; none where they are known."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What `fit` learned; kept in the checkpoint."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None: ...


@runtime_checkable
class DrawnTokens(Protocol):
    """Of a tokenizer that can train on tokens drawn from a distribution, as a variational autoencoder has it."""

    @property
    def draws(self) -> bool:
        """Whether training draws, anew at each reading; else it takes what `encode` gives."""
        ...

    def posterior(self, media: Tensor) -> tuple[Tensor, Tensor]:
        """(B, *shape) -> mean and deviation of the tokens, (B, N, C) each."""
        ...


class TokenizerConfig(Protocol):
    """A recipe's `tokenizer` section, defined beside the tokenizer that it builds."""

    def build(self) -> Tokenizer: ...


@runtime_checkable
class Pinned(Protocol):
    """Of a section whose weights a run must not lose sight of."""

    def pinned(self) -> Self:
        """With the hash of the weights that are there. Raises UserError where there are none."""
        ...


@runtime_checkable
class RawTokens(Protocol):
    """Of a tokenizer whose tokens hold the media as they are, so that losses can look at these."""

    def views(self, tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Tokens (B, N, C) of items of one grid -> pictures, frames or mels, (B', channels, height, width), about in
        [-1, 1]; gradients go through it."""
        ...


# --- corpora ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What a corpus knows of an item before its media are read."""

    name: str  # what a report calls it: its path in the corpus
    path: Path | None = None  # of its file
    label: str | None = None  # name of its class
    text: str | None = None
    untold: str = ""  # why it has no text, where one was looked for
    tags: tuple[tuple[str, str], ...] = ()  # what else is said of it, such as ("style", "sketch")
    texts: tuple[str, ...] = ()  # where it has several, of which each reading takes one; `text` is the first then


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One item of a corpus."""

    entry: Entry
    media: Tensor  # no batch axis


class Source(Protocol):
    """A corpus: items by index, in a fixed order."""

    classes: tuple[str, ...]  # names of the classes; empty where there are none

    def __len__(self) -> int: ...

    def entry(self, index: int) -> Entry:
        """What is known without reading the media; also of broken items."""
        ...

    def shape(self, index: int) -> tuple[int, ...]:
        """Shape of the item's media, from its header alone; the largest where it is drawn anew at each reading.

        Raises BrokenItem."""
        ...

    def read(self, index: int) -> Item:
        """Raises BrokenItem."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """An item of a shard as it lies there."""

    name: str  # what a report calls it
    members: Mapping[str, bytes | str]  # what its files hold, by their suffixes; a text says why one cannot be used


class Stream(ABC):
    """A corpus that is read from its shards' beginnings to their ends."""

    readers: int  # that the corpus is cut into
    shuffle: int  # items that each of them mixes; 0 keeps their order
    shards: Sequence[str]  # what a report calls them

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty where there are none."""

    @property
    @abstractmethod
    def total(self) -> int | None:
        """How many items there are, where that is known."""

    def at(self, batch: int, seed: int) -> Self:
        """As it is for that batch of a run, where that makes a difference. seed: of what is drawn for all of it."""
        return self

    @property
    def largest(self) -> tuple[int, ...] | None:
        """Shape that no media exceed in their number of tokens, where `at` has drawn one for a batch."""
        return None

    @abstractmethod
    def samples(self, shard: int, first: int = 0, step: int = 1) -> Iterator[tuple[int, Sample]]:
        """Items `first`, `first + step` … of a shard, the same each time, with their numbers in it.

        Raises UserError where the shard is not there."""

    @abstractmethod
    def entry(self, sample: Sample) -> Entry:
        """What is known without reading the media. Raises BrokenItem."""

    @abstractmethod
    def decode(self, sample: Sample) -> Item:
        """Raises BrokenItem."""


FOLDERS = ("root", "held_out_root")  # fields of a corpus that name one


class SourceConfig(Config):
    """Base of a recipe's `data` section, defined beside the source that it builds."""

    made: ClassVar[bool] = False
    """Whether `build` makes the corpus where it is not there, so that nobody should call it only to look."""

    @property
    def origin(self) -> SourceConfig:
        """Of the corpus that the items come from in the end: another one where this keeps their tokens."""
        return self

    @abstractmethod
    def build(self) -> Source | Stream: ...

    def build_held_out(self) -> Source | None:
        """Items that training never sees, to evaluate with; None where none are kept back."""
        return None

    def seen_from(self, folder: Path, fields: Sequence[str] = FOLDERS) -> Self:
        """The same corpus, its relative folders taken from `folder`, but for those that are here and not there."""
        places = {}
        for field in fields:
            root = getattr(self, field, None)
            if isinstance(root, str) and not Path(root).expanduser().is_absolute():
                there = folder / root
                if there.exists() or not Path(root).exists():
                    places[field] = str(there)
        return self.model_copy(update=places)

    def fetch(self, progress: Progress) -> str:
        """Download or make the corpus -> what was done, in a line. Raises UserError where that cannot be done here."""
        raise UserError("this corpus cannot be fetched from here; the recipe's head says where it comes from")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Of an item beside what was asked for."""

    fits: bool
    facts: Mapping[str, bool]  # by attribute of the text: whether the item has it
    kind: str  # of what was asked for
    centre: tuple[float, ...] | None  # of what was found, as shares of the media's axes; None where nothing was


@runtime_checkable
class Judge(Protocol):
    """Of a corpus' config that can tell whether an item fits a text."""

    def judge(self, media: Sequence[Tensor], texts: Sequence[str]) -> list[Judgement]:
        """Raises UserError for a text that it does not understand."""
        ...

    def build_unseen(self) -> Source | None:
        """Items of combinations that training never has; None where there are none such."""
        ...


@runtime_checkable
class KeptFeatures(Protocol):
    """Of a source that keeps what a frozen network has made of the texts of its items, see `FrozenFeatures`."""

    def kept_features(self, made_by: Callable[[], Mapping[str, Any] | None]) -> Callable[[str], Tensor | None] | None:
        """What gives the features of a text, or None for one that is not kept; None where there are none at all.

        made_by: by what they would be made now; asked only where some are kept. Raises UserError where that differs."""
        ...


# --- conditions -------------------------------------------------------------------------------------------------------

Value = TypeVar("Value")  # of one item's or request's condition, as its kind keeps it


class ConditionKind(ABC, Generic[Value]):
    """One kind of condition: how items and requests say what they are, and the network that takes it.

    One file in `conditions/` holds one kind, with its config beside it. An item's entry or a request is turned into
    a value once, by `read`, `parse` or `split`; everything else takes that value.
    """

    keys: ClassVar[tuple[str, ...]] = ()
    """What a request may say, such as "class" or "text"."""

    # --- the corpus

    def bind(self, source: Source | Stream) -> None:
        """Learn what a corpus tells before the model is built, such as its classes.

        Raises UserError where the corpus does not fit."""

    @abstractmethod
    def read(self, entry: Entry) -> Value:
        """The value of an item of the corpus. Raises BrokenItem where it has none that can be used."""

    def fit(self, values: Sequence[Value], num_tokens: Sequence[int]) -> None:
        """Learn from the values of a corpus and the token counts of their media."""

    def summary(self, entries: Sequence[Entry]) -> dict[str, str]:
        """What there is to say of the conditions of a corpus, for `djepa-mm data check`."""
        return {}

    # --- the model

    @abstractmethod
    def module(self, width: int) -> nn.Module:
        """A `ConditionEmbedder` of this width. Raises UserError where its size is not known."""

    @abstractmethod
    def encode(self, values: Sequence[Value], num_tokens: Sequence[int]) -> Condition:
        """For the values of a batch and the token counts of their media."""

    def to(self, device: torch.device) -> None:
        """Where networks of its own that `encode` asks, such as one that reads texts, shall work; else nothing."""
        return

    @property
    def usual_length(self) -> int:
        """Condition tokens of a usual item, buffer tokens not counted; for estimates."""
        return 0

    # --- requests

    @abstractmethod
    def parse(self, request: Mapping[str, Any]) -> Value:
        """What a request says, by `keys`. Raises UserError for what this model cannot fulfil."""

    def negative(self, request: Mapping[str, Any]) -> Value | None:
        """What guidance leads away from; None is the null condition. Raises UserError as `parse`."""
        return None

    def split(self, request: Mapping[str, Any]) -> list[Value]:
        """The same in the parts that are generated at once and then joined; mostly it is one."""
        return [self.parse(request)]

    def length(self, value: Value) -> float | None:
        """Tokens that the media of a value are expected to take; None where the size says it."""
        return None

    def usual_requests(self) -> list[Mapping[str, Any]]:
        """What is generated where a request says nothing, such as each class. Raises UserError where it must."""
        return [{}]

    def examples(self, count: int, texts: Sequence[str]) -> list[Mapping[str, Any]]:
        """Requests that show what a run has learned. texts: the recipe's `run.texts`."""
        requests = self.usual_requests()
        return [requests[n % len(requests)] for n in range(count)]

    def request(self, entry: Entry) -> Mapping[str, Any]:
        """What asks for an item like this one."""
        return {}

    def title(self, request: Mapping[str, Any]) -> str:
        """What people call it, in a few words."""
        return " ".join(str(value) for value in request.values()) or "sample"

    # --- the checkpoint

    def state(self) -> dict[str, Any]:
        """What `bind` and `fit` learned, ready for JSON."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The way back. Raises KeyError or TypeError where it is not this kind's."""

    def check_keys(self, request: Mapping[str, Any]) -> None:
        """Raises UserError for what a request says that this kind does not know."""
        for key in request:
            if key not in self.keys:
                known = f"it knows {', '.join(self.keys)}" if self.keys else "it was trained without conditions"
                raise UserError(f"--{key}: this model takes no {key}; {known}")


@runtime_checkable
class FrozenFeatures(Protocol):
    """Of a kind of condition whose values are texts, and may be read by a network that does not learn: what it makes of
    each text can be kept. Its `bind` takes from a source with `KeptFeatures` what that has."""

    def made_by(self) -> Mapping[str, Any] | None:
        """All that features depend on beside the text, ready for JSON, by the keys of the recipe's section; None where
        no such network reads the texts."""
        ...

    def features(self, values: Sequence[str]) -> list[Tensor]:
        """(L, E) of each text, on the CPU, the same whatever it stands beside."""
        ...


class ConditionConfig(Config):
    """Base of a recipe's `condition` section, defined beside the kind that it builds."""

    buffer_tokens: Annotated[int, Field(gt=0, le=10_000)] = 64
    """Learned tokens at the head of the context encoder's sequence."""
    drop: Probability = 0.1
    """Probability that the condition is dropped in training; guidance needs it above 0."""

    along: ClassVar[tuple[Literal["t", "h", "w"], ...]] = ()
    """Axes of the media that the condition's tokens lie along; the model's positions must turn on them."""
    own_axes: ClassVar[tuple[Literal["t", "h", "w"], ...]] = ()
    """Axes that its tokens have places of their own on; rotary positions must turn on them too."""

    @abstractmethod
    def build(self) -> ConditionKind[Any]: ...
