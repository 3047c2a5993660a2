"""Items as the processes that read hand them over: media, tokens that were kept, or the reason why there are none.

A source that draws anew at each reading either chooses one of few readings of an item, as flips are, all of which can
be kept; or it has too many of them, as windows of a film are, and says in `draws` which setting makes it so.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from djepa_mm.data.batches import Content, Encoded, deaf_to_interrupts, encode, leave_interrupts
from djepa_mm.data.drawing import BEFORE, drawing, item_seed, one_of
from djepa_mm.types import BrokenItem, Item, MediaSpec, Source, Tokenizer, UserError

READINGS = 2  # purpose of a seed: of one of several readings that are kept


@runtime_checkable
class ReadsAhead(Protocol):
    """A source that reads several items faster than one after the other."""

    def read_all(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Iterable[Item | BrokenItem]:
        """Each item, or why it cannot be read. seeds: of what is drawn of each."""
        ...


@runtime_checkable
class FewReadings(Protocol):
    """A source that gives one of few readings of an item: `read` takes that which `one_of` chooses of them."""

    readings: int

    def read_as(self, index: int, reading: int) -> Item:
        """Raises BrokenItem."""
        ...


@runtime_checkable
class Kept(Protocol):
    """What holds the tokens of every reading of each item."""

    readings: int

    def tokens(self, index: int, reading: int) -> Encoded:
        """Raises BrokenItem, and UserError where what holds them is damaged."""
        ...


@runtime_checkable
class KeptCorpus(Kept, Protocol):
    """A source whose tokens were kept, with what its tokenizer had learned."""

    statistics: Mapping[str, Tensor]

    def check(self, section: Any, tokenizer: Tokenizer) -> None:
        """Raises UserError where the tokenizer, of that section of a recipe, would give other tokens than are kept."""
        ...

    def check_statistics(self, tokenizer: Tokenizer) -> None:
        """Raises UserError where the tokenizer of a run that goes on has learned others."""
        ...


def draws(source: Source) -> str:
    """The setting by which an item has too many readings to keep; empty where it has one or few."""
    return str(getattr(source, "draws", ""))


def few(source: Source) -> TypeGuard[Kept | FewReadings]:
    """Whether each reading of an item can be asked for."""
    return isinstance(source, Kept | FewReadings) and not draws(source)


def chance(source: Source | Kept) -> bool:
    """Whether a reading of an item may draw anything; to seed it takes longer than to fetch tokens from memory."""
    return not isinstance(source, Kept) or source.readings > 1


@dataclass(frozen=True, slots=True)
class Row:
    """What a reading process hands over. An error of the user is for the process that trains to raise."""

    index: int
    content: Content | UserError


class Reading(Dataset[Row]):
    """Items by index and seed."""

    def __init__(self, source: Source | Kept) -> None:
        self.source: Any = source
        # once: to ask whether a source has a protocol takes as long as to read a small item
        self.ahead = source if isinstance(source, ReadsAhead) else None
        self.kept = source if isinstance(source, Kept) else None
        self.chance = chance(source)

    def __getitems__(self, wanted: Sequence[tuple[int, int]]) -> list[Row]:
        """A batch at once: sources that can read ahead do so."""
        if self.ahead is None:
            return [self[one] for one in wanted]
        indices, seeds = [index for index, _ in wanted], [seed for _, seed in wanted]
        return [
            Row(index, str(item) if isinstance(item, BrokenItem) else item.media)
            for index, item in zip(indices, self.ahead.read_all(indices, seeds), strict=True)
        ]

    def __getitem__(self, wanted: tuple[int, int]) -> Row:
        index, seed = wanted
        try:
            with drawing(seed) if self.chance else nullcontext():
                return Row(index, self.content(index))
        except BrokenItem as error:
            return Row(index, str(error))
        except UserError as error:
            return Row(index, error)

    def content(self, index: int) -> Tensor | Encoded:
        """One reading of an item, drawn by torch's random state. Raises BrokenItem."""
        if self.kept is not None:
            return self.kept.tokens(index, one_of(self.kept.readings))
        return self.source.read(index).media


# --- every reading of each item ---------------------------------------------------------------------------------------


class _EveryReading(Dataset[list[Row]]):
    """All readings of an item, or `drawn` of them where there are too many."""

    def __init__(self, source: Source, seed: int, drawn: int) -> None:
        self.seed, self.drawn, self.reading = seed, drawn, Reading(source)
        self.few = source if few(source) else None

    def __getitems__(self, indices: Sequence[int]) -> list[list[Row]]:
        if self.few is not None:
            return [[self._as(self.few, index, n) for n in range(self.few.readings)] for index in indices]
        wanted = [
            (index, item_seed(self.seed, BEFORE, index, *((READINGS, n) if self.drawn > 1 else ())))
            for index in indices
            for n in range(self.drawn)
        ]
        rows = self.reading.__getitems__(wanted)
        return [rows[start : start + self.drawn] for start in range(0, len(rows), self.drawn)]

    @staticmethod
    def _as(source: Kept | FewReadings, index: int, reading: int) -> Row:
        try:
            if isinstance(source, Kept):
                return Row(index, source.tokens(index, reading))
            return Row(index, source.read_as(index, reading).media)
        except BrokenItem as error:
            return Row(index, str(error))
        except UserError as error:
            return Row(index, error)


def readings_of(source: Source, drawn: int = 1) -> int:
    """How many readings of an item are kept."""
    return source.readings if few(source) else drawn


def every_reading(
    source: Source,
    tokenizer: Tokenizer,
    blocks: Iterable[list[int]],
    *,
    seed: int,
    device: torch.device,
    drawn: int = 1,
    workers: int = 0,
) -> Generator[tuple[int, list[Encoded] | str], None, None]:
    """The tokens of every reading of each item, on the CPU, or why there are none.

    blocks: indices of items, of which media of one shape are encoded together. drawn: readings, where there are too
    many. Raises UserError where kept tokens are damaged."""
    loader = DataLoader(
        _EveryReading(source, seed, drawn),
        batch_sampler=blocks,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=leave_interrupts,
        generator=torch.Generator(),
    )
    with deaf_to_interrupts(workers):
        reading = iter(loader)
    for block in reading:
        found: dict[int, list[Encoded] | str] = {}
        media: list[tuple[int, Tensor]] = []
        for rows in block:
            index = rows[0].index
            reason = _reason(rows, tokenizer)
            found[index] = reason or [row.content for row in rows if isinstance(row.content, Encoded)]
            media += [(index, row.content) for row in rows if not reason and isinstance(row.content, Tensor)]
        encoded = encode(tokenizer, [one for _, one in media], device, at_once=len(block))
        for (index, _), one in zip(media, encoded, strict=True):
            found[index].append(one.cpu())  # type: ignore[union-attr]  # of whole items alone
        yield from found.items()


def _reason(rows: Sequence[Row], tokenizer: Tokenizer) -> str:
    """Why an item has no tokens; empty where it has. Raises UserError."""
    for row in rows:
        if isinstance(row.content, UserError):
            raise row.content
        if isinstance(row.content, str):
            return row.content
        if isinstance(row.content, Tensor):
            try:
                tokenizer.spec_of(tuple(row.content.shape))
            except UserError as error:  # of a size that the tokenizer cannot take
                return str(error)
    return ""


class Memory:
    """The tokens of every reading of each item, kept in memory."""

    def __init__(self, readings: int) -> None:
        self.readings = readings
        self.items: dict[int, list[Encoded] | str] = {}

    def tokens(self, index: int, reading: int) -> Encoded:
        item = self.items[index]
        if isinstance(item, str):
            raise BrokenItem(item)
        return item[reading]


@dataclass(frozen=True, slots=True)
class Packed:
    """Items with all of their tokens in one tensor, which processes send far sooner than one for each."""

    kept: dict[int, list[tuple[MediaSpec, list[torch.Size]]] | str]  # of each reading its tensors' sizes
    numbers: Tensor

    @classmethod
    def of(cls, items: Iterable[tuple[int, list[Encoded] | str]]) -> Packed:
        kept: dict[int, list[tuple[MediaSpec, list[torch.Size]]] | str] = {}
        parts: list[Tensor] = []
        for index, item in items:
            if isinstance(item, str):
                kept[index] = item
                continue
            tensors = [[t for t in (one.tokens, one.deviation) if t is not None] for one in item]
            kept[index] = [(one.spec, [t.shape for t in some]) for one, some in zip(item, tensors, strict=True)]
            parts += [t.flatten() for some in tensors for t in some]
        assert len({part.dtype for part in parts}) < 2, "tokens of one corpus are of one type"
        return cls(kept, torch.cat(parts) if parts else torch.empty(0))

    def unpacked(self) -> Iterator[tuple[int, list[Encoded] | str]]:
        """With memory of their own again, so that an item which is sent on does not take all others with it."""
        sizes = [size for item in self.kept.values() if not isinstance(item, str) for _, some in item for size in some]
        parts = iter(self.numbers.split([size.numel() for size in sizes]))
        for index, item in self.kept.items():
            if isinstance(item, str):
                yield index, item
                continue
            readings = []
            for spec, some in item:
                tokens, *deviation = (next(parts).view(size).clone() for size in some)
                readings.append(Encoded(tokens, spec, deviation[0] if deviation else None))
            yield index, readings
