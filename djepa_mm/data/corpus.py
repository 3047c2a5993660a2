"""A corpus of items by index: length buckets, a token budget, broken items skipped and named."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from djepa_mm.data.batches import ALL, Batcher, Encoded, Portion, Read, Share, deaf_to_interrupts, leave_interrupts
from djepa_mm.data.compact import Alike
from djepa_mm.data.drawing import BEFORE, TEXT, TOKENS, drawing, item_seed, one_of
from djepa_mm.data.feedback import Feedback, State, measures, merged, moved
from djepa_mm.data.reading import (
    Kept,
    KeptCorpus,
    Memory,
    Packed,
    Reading,
    Row,
    chance,
    draws,
    every_reading,
    readings_of,
)
from djepa_mm.data.sizes import DrawsSizes
from djepa_mm.ranks import ALONE, Ranks
from djepa_mm.recipe.schema import BatchConfig, FeedbackConfig
from djepa_mm.types import (
    BrokenItem,
    ConditionKind,
    Entry,
    FrozenFeatures,
    KeptFeatures,
    MediaSpec,
    Progress,
    Source,
    Tokenizer,
    UserError,
)

T = TypeVar("T")

BUCKET_BATCHES = 32  # items of this many batches are sorted by length together


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where in the data a run stands: the next batch to read."""

    epoch: int = 0
    batch: int = 0
    readers: tuple[tuple[int, ...] | None, ...] = ()
    """Of a stream, where each of its readers stands; None of those that other processes read."""
    before: int = 0
    """Of a corpus by index, batches of all epochs before."""
    feedback: tuple[State | None, ...] = ()
    """What each reader of a stream has counted, where that steers it. Of a corpus by index, what there was when the
    epoch began, and what the epoch has added."""

    def __post_init__(self) -> None:
        places = (None if place is None else tuple(place) for place in self.readers)  # JSON gives lists
        object.__setattr__(self, "readers", tuple(places))
        object.__setattr__(self, "feedback", tuple(self.feedback))

    def state(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {name: value for name, value in asdict(self).items() if name != "feedback" or value}


def merge(cursors: Sequence[Cursor]) -> Cursor:
    """Where all processes stand that have learned from parts of the same batches, each of which knows its own."""
    first = cursors[0]
    if not first.readers:
        return first

    def known(of_each: Iterable[tuple[T | None, ...]]) -> tuple[T | None, ...]:
        return tuple(next((one for one in told if one is not None), None) for told in zip(*of_each, strict=True))

    places, counted = known(cursor.readers for cursor in cursors), known(cursor.feedback for cursor in cursors)
    return Cursor(min(cursor.epoch for cursor in cursors), first.batch, places, feedback=counted)


class Corpus:
    """A source seen through a tokenizer.

    broken: reason by name for every item that could not be read so far.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        condition: ConditionKind[Any],
        config: BatchConfig,
        *,
        feedback: FeedbackConfig | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.source, self.tokenizer, self.condition, self.feedback = source, tokenizer, condition, feedback
        self.config, self.seed, self.device = config, seed, torch.device(device)
        self.batcher = Batcher(tokenizer, condition, self.device, config.item_tokens)
        self.broken = self.batcher.broken
        self.specs: Alike[MediaSpec] = Alike(len(source))  # as the headers say; broken items are not in it
        self.values: Alike[Any] = Alike(len(source))  # of the condition, likewise
        self.choices: dict[int, tuple[Any, ...]] = {}  # the same of all its texts, where an item has several
        self.reading: Source | Kept = source  # or the cache of it
        self._whole = Reading(source)
        self._names = hashlib.sha256()
        of_shape: dict[tuple[int, ...], MediaSpec] = {}
        for index in range(len(source)):
            entry = source.entry(index)
            self._names.update(f"{entry.name}\0".encode())
            try:
                value, shape = condition.read(entry), source.shape(index)
                if (spec := of_shape.get(shape)) is None:
                    spec = of_shape.setdefault(shape, tokenizer.spec_of(shape))
            except (BrokenItem, UserError) as error:  # UserError: of a size that the tokenizer cannot take
                self.broken[entry.name] = str(error)
            else:
                self.values[index], self.specs[index] = value, spec
                if entry.texts:
                    self.choices[index] = tuple(condition.read(replace(entry, text=text)) for text in entry.texts)
        if not self.specs:
            raise UserError(f"the corpus has no readable item among {len(source)}: {self.batcher.example}")
        self._check_share()
        if config.cache and (setting := draws(source)):
            raise UserError(
                f"batch.cache keeps every reading of an item, but by {setting} this corpus has too many of them: set "
                "batch.cache to false, or let it draw nothing"
            )

    def identity(self) -> dict[str, Any]:
        """What tells this corpus from another: a run that goes on needs the same one."""
        return {"items": len(self.source), "names": self._names.hexdigest()[:16]}

    # --- reading

    def read(self, index: int) -> Tensor | Encoded | None:
        """The media of an item or its kept tokens, or None where it is broken; the report then names it."""
        try:
            with drawing(item_seed(self.seed, BEFORE, index)):
                return self._whole.content(index)
        except BrokenItem as error:
            self.broken[self.source.entry(index).name] = str(error)
            self._check_share()
            return None

    def grids(self) -> set[tuple[int, int, int]]:
        """Of the tokens of the items, as far as headers tell."""
        return {spec.grid for spec in self.specs.values()}

    def fit_condition(self) -> None:
        """Let the condition learn what it does from its values and the sizes of the media."""
        values, specs = self.values, self.specs
        self.condition.fit(list(values.values()), [specs[index].num_tokens for index in values])

    def each(self, progress: Progress) -> Iterator[Seen]:
        """Every item once, but for broken ones, which `broken` then names. Raises UserError where kept tokens, or
        features of texts, are damaged."""
        stored = None
        if isinstance(self.source, KeptFeatures) and isinstance(self.condition, FrozenFeatures):
            stored = self.source.kept_features(self.condition.made_by)
        for done, index in enumerate(self.specs):
            content = self.read(index)
            if content is not None and isinstance(self.source, Kept):
                for reading in range(self.source.readings):
                    self.source.tokens(index, reading)
            if stored is not None:
                stored(self.values[index])
            if content is not None:
                media = content if isinstance(content, Tensor) else None
                spec = self.tokenizer.spec_of(tuple(content.shape)) if isinstance(content, Tensor) else content.spec
                size = (
                    self.source.file_size(index) if media is not None and isinstance(self.source, KnowsSizes) else None
                )
                entry, value = self.source.entry(index), self.values[index]
                yield Seen(entry=entry, value=value, spec=spec, media=media, file_size=size)
            progress(done + 1, len(self.specs))

    def fit_tokenizer(self, most: int = 1000) -> None:
        """Let the tokenizer learn its statistics from up to `most` items, evenly spread over the corpus; kept tokens
        come with those that they were made by."""
        if isinstance(self.source, KeptCorpus):
            self.tokenizer.load_state(self.source.statistics)
            return
        indices = list(self.specs)
        indices = indices[:: max(1, len(indices) // most)][:most]
        contents = (self.read(index) for index in indices)
        self.batcher.fit(media for media in contents if isinstance(media, Tensor))

    def fill_cache(self, progress: Progress | None = None, ranks: Ranks = ALONE) -> None:
        """Tokenize every reading of each item once and keep the tokens. The processes take a block each, time and
        again, so that all have all items in the end, and know at once where one cannot go on."""
        memory = Memory(readings_of(self.source))
        counts = {index: spec.num_tokens for index, spec in self.specs.items()}
        blocks = self._cut(list(counts), counts)  # as many together as in training
        own = blocks[ranks.rank :: ranks.world]
        reading = every_reading(
            self.source, self.tokenizer, own, seed=self.seed, device=self.device, workers=self.config.workers
        )
        for turn in range(math.ceil(len(blocks) / ranks.world)):
            size = len(own[turn]) if turn < len(own) else 0
            part = ranks.agree(partial(Packed.of, islice(reading, size)))
            for index, item in chain.from_iterable(found.unpacked() for found in ranks.gather(part) if found):
                memory.items[index] = item
                if isinstance(item, str):
                    self.broken[self.source.entry(index).name] = item
                    self._check_share()
            if progress is not None:
                progress(len(memory.items), len(self.specs))
        self.reading = memory

    # --- batches

    def plan(self, epoch: int, before: int = 0, counted: State | None = None) -> list[list[int]]:
        """Indices of every batch of an epoch; the same for the same seed, epoch and corpus. before: batches of all
        epochs before. counted: until then, where that steers it; then no batch may be left."""
        return self._plan(epoch, self._counts(self._source_at(before), epoch), counted)

    def _source_at(self, before: int) -> Source | Kept:
        """As it is in the epoch that comes after so many batches."""
        return self.reading.at(before) if isinstance(self.reading, DrawsSizes) else self.reading

    def _counts(self, source: Source | Kept, epoch: int) -> Sequence[int]:
        """Tokens of each item in that epoch; 0 of broken ones."""
        counts, sized = array("q", [0]) * len(self.source), self._sized(source)
        for index, spec in self.specs.items():
            spec = spec if sized is None else self._drawn_spec(sized, index, epoch)
            counts[index] = self.batcher.count(spec.num_tokens)
        return counts

    def _sized(self, source: Source | Kept) -> DrawsSizes | None:
        return source if isinstance(source, DrawsSizes) and draws(self.source) else None

    def _drawn_spec(self, source: DrawsSizes, index: int, epoch: int) -> MediaSpec:
        generator = torch.Generator().manual_seed(item_seed(self.seed, epoch, index))
        with suppress(BrokenItem, UserError):  # of a size that the tokenizer cannot take: so it is read
            return self.tokenizer.spec_of(source.drawn_shape(index, generator))
        return self.specs[index]

    def _plan(self, epoch: int, counts: Sequence[int], counted: State | None) -> list[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        indices = list(self.specs)
        indices = [indices[i] for i in torch.randperm(len(indices), generator=generator).tolist()]
        if self.feedback is not None and not (indices := self._thinned(indices, epoch, counted)):
            return []
        if len({counts[index] for index in indices}) == 1:
            batches = self._cut(indices, counts)
            return batches if len(batches) == 1 or len(batches[-1]) == len(batches[0]) else batches[:-1]
        bucket = self.config.size * BUCKET_BATCHES
        batches = []
        for start in range(0, len(indices), bucket):
            part = sorted(indices[start : start + bucket], key=lambda i: counts[i])
            batches += self._cut(part, counts)
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

    def _cut(self, indices: Sequence[int], counts: Sequence[int] | Mapping[int, int]) -> list[list[int]]:
        """Cut a list into batches of at most `size` items and `tokens` tokens, padding counted."""
        batches: list[list[int]] = [[]]
        longest = 0
        for index in indices:
            longest = max(longest, counts[index])
            batch = batches[-1]
            over = self.config.tokens is not None and longest * (len(batch) + 1) > self.config.tokens
            if batch and (len(batch) == self.config.size or over):
                batches.append([index])
                longest = counts[index]
            else:
                batch.append(index)
        return batches

    def _thinned(self, indices: Sequence[int], epoch: int, counted: State | None) -> list[int]:
        """Those that are to be taken, one after the other by what was taken before."""
        assert self.feedback is not None
        feedback, kept = Feedback(self.feedback, counted), []
        for index in indices:
            entry = self._entry(index, epoch)
            attributes = feedback.attributes(entry)
            if feedback.accepts(attributes, entry.name, epoch):
                feedback.observe(attributes, taken=True)
                kept.append(index)
        return kept

    def _observe(
        self, feedback: Feedback, source: Source | Kept, epoch: int, indices: Iterable[int], taken: bool
    ) -> None:
        """Items as they are in that epoch."""
        sized = self._sized(source)
        for index in indices:
            attributes = feedback.attributes(self._entry(index, epoch))
            if taken:
                spec = self.specs[index] if sized is None else self._drawn_spec(sized, index, epoch)
                attributes += measures(tuple(spec.shape))
            feedback.observe(attributes, taken=taken)

    def _entry(self, index: int, epoch: int) -> Entry:
        """With the text that it has in that epoch."""
        entry = self.source.entry(index)
        if not entry.texts:
            return entry
        with drawing(item_seed(self.seed, epoch, index, TEXT)):
            return replace(entry, text=entry.texts[one_of(len(entry.texts))])

    def moved(self, cursor: Cursor, scores: Mapping[str, float]) -> Cursor:
        """The place, where frequencies move by scores; from the next epoch on."""
        *began, added = cursor.feedback or ({}, {})
        return replace(cursor, feedback=(*began, moved(self.feedback, added, scores)))

    def batches(self, start: Cursor, share: Share = ALL) -> Iterator[tuple[list[Portion | None], Cursor]]:
        """Batches without end from a place on, each with the place that follows it: the parts of this process, None
        for one of which no item could be read."""
        epoch, skip, before = start.epoch, start.batch, start.before
        known = len(start.feedback) == 2 and not start.readers  # where the run was steered, by index too
        began, added = (one or {} for one in (start.feedback if known else ({}, {})))
        while True:
            source = self._source_at(before)
            counts = self._counts(source, epoch)
            whole = self._plan(epoch, counts, began)
            plan = whole[skip:]
            feedback = None if self.feedback is None else Feedback(self.feedback, added)
            if feedback is not None and not skip:
                given = {index for batch in whole for index in batch}
                self._observe(feedback, source, epoch, (index for index in self.specs if index not in given), False)
            drawn = chance(source)
            loader = DataLoader(
                Reading(source),
                batch_sampler=(
                    [(batch[n], item_seed(self.seed, epoch, batch[n]) if drawn else 0) for n in part]
                    for batch in plan
                    for part in _dealt(batch, counts, share)
                ),
                num_workers=0 if isinstance(self.reading, Memory) else self.config.workers,
                collate_fn=list,
                worker_init_fn=leave_interrupts,
                generator=torch.Generator(),  # of its own, so that it draws nothing from the run's random state
            )
            with deaf_to_interrupts(loader.num_workers):
                reading = iter(loader)
            trained = False
            for number, batch in enumerate(plan, start=skip + 1):
                portions = [self._portion(next(reading), part, epoch) for part in _dealt(batch, counts, share)]
                trained |= any(portions)
                if feedback is not None:
                    self._observe(feedback, source, epoch, batch, True)
                    added = feedback.state()
                counted = (began, added) if feedback is not None else ()
                yield portions, Cursor(epoch, number, before=before, feedback=counted)
            # others may have read what was not dealt to this one; of a whole epoch that was thinned, nothing is read
            if plan and not trained and skip == 0 and share.world == 1:
                raise UserError(f"no item of the corpus can be read: {self.batcher.example}")
            epoch, skip, before = epoch + 1, 0, before + len(whole)
            if feedback is not None:
                began = merged([began, added])
                added = {"factors": began["factors"]}

    def _portion(self, rows: Sequence[Row], places: Sequence[int], epoch: int) -> Portion | None:
        known, contents = len(self.broken), []
        for row in rows:
            if isinstance(row.content, UserError):
                raise row.content
            contents.append(row.content)
        portion = self.batcher.portion(
            [
                Read(
                    named=partial(self._name, row.index),
                    place=place,
                    value=self._value(row.index, epoch),
                    seed=self._token_seed(row.index, epoch),
                    content=content,
                )
                for row, content, place in zip(rows, contents, places, strict=True)
            ]
        )
        if len(self.broken) > known:
            self._check_share()
        return portion

    def _name(self, index: int) -> str:
        return self.source.entry(index).name

    def _token_seed(self, index: int, epoch: int) -> int:
        """Of what is drawn of an item's tokens, where anything is."""
        drawn = self.batcher.draws or self.batcher.most is not None
        return item_seed(self.seed, epoch, index, TOKENS) if drawn else 0

    def _value(self, index: int, epoch: int) -> Any:
        """Of an item's condition, by one of its texts."""
        if (values := self.choices.get(index)) is None:
            return self.values[index]
        with drawing(item_seed(self.seed, epoch, index, TEXT)):
            return values[one_of(len(values))]

    # --- the report

    @property
    def items(self) -> int:
        """How many there are, broken ones counted."""
        return len(self.source)

    def _check_share(self) -> None:
        share = len(self.broken) / len(self.source)
        if share > self.config.max_broken_share:
            raise UserError(
                f"{len(self.broken)} of {len(self.source)} items of the corpus cannot be read ({share:.1%}, more than "
                f"batch.max_broken_share {self.config.max_broken_share:.1%}), such as {self.batcher.example}. "
                "Mend them, or go on without them: --set batch.max_broken_share=1"
            )


def _dealt(batch: Sequence[int], counts: Sequence[int], share: Share) -> list[list[int]]:
    return share.deal([counts[index] for index in batch])


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """An item that was read."""

    entry: Entry
    value: Any  # of its condition
    spec: MediaSpec
    media: Tensor | None  # none where tokens were kept
    file_size: tuple[int, int] | None = None  # height and width in the file, before anything is cut or resized


@runtime_checkable
class KnowsSizes(Protocol):
    """A source of files of many sizes."""

    def file_size(self, index: int) -> tuple[int, int]:
        """Height and width in the file, before anything is cut or resized."""
        ...
