"""A corpus that is read from its shards' beginnings to their ends, by a fixed number of readers.

Each reader has shards of its own in every epoch, or its part of the items of one, and mixes them in blocks. A batch
takes as many items from each reader, so that it depends on the recipe alone, however many processes share the readers.
Readers go on into their next epoch by themselves: where they have unequal shares of the items, some are ahead.

V readers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from djepa_mm.data.batches import (
    ALL,
    Batcher,
    Content,
    Portion,
    Read,
    Share,
    deaf_to_interrupts,
    leave_interrupts,
)
from djepa_mm.data.corpus import Corpus, Cursor, Seen
from djepa_mm.data.drawing import BATCH, BEFORE, TEXT, TOKENS, drawing, item_seed, one_of
from djepa_mm.data.feedback import Feedback, State, check_classes, measures, moved
from djepa_mm.ranks import ALONE, Ranks
from djepa_mm.recipe.schema import BatchConfig, FeedbackConfig
from djepa_mm.types import (
    BrokenItem,
    ConditionKind,
    Entry,
    Item,
    Progress,
    Sample,
    Source,
    Stream,
    Tokenizer,
    UserError,
)

FEW = 1000  # items that are looked at before training; of fewer, no share of broken ones is taken


class Place(NamedTuple):
    """Where a reader stands: its epoch, where its block begins, and how many items of the block it has given."""

    epoch: int = 0
    shard: int = 0  # its place among those of the reader
    item: int = 0  # of the shard, or one that comes before it
    given: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """An item that a reader gives, and where it lies in the corpus."""

    epoch: int
    shard: int
    item: int
    sample: Sample

    def seed(self, run: int, *purpose: int) -> int:
        return item_seed(run, self.epoch, self.shard, self.item, *purpose)


class Reader:
    """One of V."""

    def __init__(self, stream: Stream, number: int, *, seed: int = 0, shuffle: int | None = None) -> None:
        """shuffle: items in a block, else as many as the stream says."""
        self.stream, self.number, self.seed = stream, number, seed
        self.shuffle = stream.shuffle if shuffle is None else shuffle

    def taken(self, place: Place) -> Iterator[tuple[Taken, Place]]:
        """Items without end from a place on, each with the place that follows it.

        Raises UserError where a shard is not there, or this reader has no items."""
        while True:
            nothing = place == Place(place.epoch)
            for found in self.epoch(place):
                nothing = False
                yield found
            if nothing:
                shards = ", ".join(dict.fromkeys(self.stream.shards[shard] for shard, *_ in self._parts(place.epoch)))
                raise UserError(
                    f"data.readers {self.stream.readers}: no item is left for reader {self.number} of {shards}; "
                    "set it lower, or check the shards"
                )
            place = Place(place.epoch + 1)

    def epoch(self, place: Place) -> Iterator[tuple[Taken, Place]]:
        """The same to the end of the epoch."""
        for began, block, after in self._blocks(place):
            order = list(range(len(block)))
            if self.shuffle:
                seed = item_seed(self.seed, place.epoch, self.number, began.shard, began.item)
                order = torch.randperm(len(block), generator=torch.Generator().manual_seed(seed)).tolist()
            skip = place.given if began == place._replace(given=0) else 0
            for given, n in enumerate(order[skip:], start=skip + 1):
                yield block.pop(n), after if given == len(order) else began._replace(given=given)

    def _blocks(self, place: Place) -> Iterator[tuple[Place, dict[int, Taken], Place]]:
        """Where each begins, its items by number, and where the next begins: right behind its last item, even where
        the shard ends there."""
        began = place._replace(given=0)
        items, block = self._items(began), max(1, self.shuffle)
        while found := list(islice(items, block)):
            after = found[-1][1]
            rest = dict(enumerate(taken for taken, _ in found))
            del found  # whoever takes items out of the block frees them
            yield began, rest, after
            began = after

    def _items(self, place: Place) -> Iterator[tuple[Taken, Place]]:
        """In the order of the shards, each with the place behind it."""
        first = place.item
        for number, (shard, rest, step) in islice(enumerate(self._parts(place.epoch)), place.shard, None):
            for item, sample in self.stream.samples(shard, first + (rest - first) % step, step):
                taken = Taken(epoch=place.epoch, shard=shard, item=item, sample=sample)
                yield taken, Place(place.epoch, number, item + 1)
            first = 0

    def _parts(self, epoch: int) -> list[tuple[int, int, int]]:
        """What is this reader's in an epoch, in order: shards, each with the item that it begins with and the step to
        the next. Where there are fewer shards than readers, several share one."""
        count, readers = len(self.stream.shards), self.stream.readers
        order = list(range(count))
        if self.shuffle:
            generator = torch.Generator().manual_seed(item_seed(self.seed, epoch))
            order = torch.randperm(count, generator=generator).tolist()
        if count >= readers:
            return [(shard, 0, 1) for shard in order[self.number :: readers]]
        rest, share = divmod(self.number, count)
        return [(order[share], rest, len(range(share, readers, count)))]


class StreamCorpus:
    """A stream seen through a tokenizer, as `Corpus` is a source.

    broken: reason by name for every item that could not be read so far.
    """

    def __init__(
        self,
        source: Stream,
        tokenizer: Tokenizer,
        condition: ConditionKind[Any],
        config: BatchConfig,
        *,
        feedback: FeedbackConfig | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if config.cache:
            raise UserError("batch.cache: a corpus of shards is not kept in memory; set batch.cache to false")
        if config.tokens is not None and config.tokens < source.readers * (config.item_tokens or 0):
            least = source.readers * (config.item_tokens or 0)
            raise UserError(
                f"batch.tokens {config.tokens}: each of {source.readers} data.readers gives an item of up to "
                f"{config.item_tokens} tokens (batch.item_tokens) to a batch; set it to {least} or more"
            )
        self.source, self.tokenizer, self.condition, self.feedback = source, tokenizer, condition, feedback
        self.config, self.seed, self.device = config, seed, torch.device(device)
        self.batcher = Batcher(tokenizer, condition, self.device, config.item_tokens)
        self.broken = self.batcher.broken
        self.seen = 0  # items
        self._begun = False  # reading batches

    def identity(self) -> dict[str, Any]:
        """What tells this corpus from another: a run that goes on needs the same one."""
        names = hashlib.sha256("\n".join(self.source.shards).encode("utf-8", "surrogateescape"))
        return {"items": self.source.total, "names": names.hexdigest()[:16]}

    # --- before training

    def grids(self) -> set[tuple[int, int, int]]:
        """The one that all have; none where they vary."""
        return set() if self.tokenizer.fixed is None else {self.tokenizer.fixed.grid}

    def fit_condition(self) -> None:
        """Let the condition learn what it does from its values and the sizes of the media, of the first items."""
        if type(self.condition).fit is ConditionKind.fit:
            return  # it learns nothing
        first = list(islice(self._each(), FEW))
        if not first:
            raise UserError(f"the corpus has no readable item: {self.batcher.example}")
        self.condition.fit([item.value for item in first], [item.spec.num_tokens for item in first])

    def fit_tokenizer(self, most: int = FEW) -> None:
        """Let the tokenizer learn its statistics from the first items of all readers."""
        self.batcher.fit(item.media for item in islice(self._each(), most) if item.media is not None)

    def fill_cache(self, progress: Progress | None = None, ranks: Ranks = ALONE) -> None:
        raise AssertionError("refused before")

    def each(self, progress: Progress) -> Iterator[Seen]:
        """Every item once, but for broken ones, which `broken` then names."""
        self.seen = 0
        for item in self._each():
            yield item
            progress(self.seen, self.source.total or self.seen)

    def _each(self) -> Iterator[Seen]:
        """Items that can be read, from each reader in turn, in the order of their shards."""
        readers = [
            Reader(self.source, number, seed=self.seed, shuffle=0).epoch(Place())
            for number in range(self.source.readers)
        ]
        while readers:
            for reader in list(readers):
                if (found := next(reader, None)) is None:
                    readers.remove(reader)
                    continue
                self.seen += 1
                taken = found[0]
                try:
                    with drawing(item_seed(self.seed, BEFORE, taken.shard, taken.item)):
                        item = self.source.decode(taken.sample)
                    spec, value = self.tokenizer.spec_of(tuple(item.media.shape)), self.condition.read(item.entry)
                except (BrokenItem, UserError) as error:
                    self.broken[taken.sample.name] = str(error)
                    self._check_share()
                else:
                    yield Seen(entry=item.entry, value=value, spec=spec, media=item.media)

    # --- batches

    def batches(self, start: Cursor, share: Share = ALL) -> Iterator[tuple[list[Portion | None], Cursor]]:
        """Batches without end from a place on, each with the place that follows it: the parts of this process, None
        for one of which no item could be read.

        The places after a batch are those of this process' readers; see `merge`."""
        count, each = self._readers_a_part(share), self.config.size // self.source.readers
        own = range(share.rank * share.parts * count, (share.rank + 1) * share.parts * count)
        began = {number: place for number, place in enumerate(self._places(start)) if number in own}
        places = {number: place for number, place in began.items() if place is not None}
        assert places.keys() == began.keys(), "cursors of all processes are merged before they are kept"
        workers = max((n for n in range(1, self.config.workers + 1) if len(own) % n == 0), default=0)
        counted: dict[int, State | None] = dict.fromkeys(own) if self.feedback is None else self._counted(start, own)
        loader = DataLoader(
            _Reading(self, list(places.items()), each, start.batch, counted),
            batch_size=None,
            num_workers=workers,
            worker_init_fn=leave_interrupts,
            generator=torch.Generator(),  # of its own, so that it draws nothing from the run's random state
        )
        with deaf_to_interrupts(workers):
            reading = iter(loader)
        batch, barren, known = start.batch, True, dict(places)
        self.seen, self._begun = self.seen if self._begun else 0, True
        while True:
            portions: list[Portion | None] = []
            for part in range(share.parts):
                reads: list[Read] = []
                for number in own[part * count : (part + 1) * count]:
                    found = next(reading)
                    if isinstance(found, str):
                        raise UserError(found)
                    assert found.reader == number
                    known[number], counted[number] = found.after, found.counted
                    reads += [self._read(row, number * each + n) for n, row in enumerate(found.rows)]
                portions.append(self._portion(reads))
            batch, barren = batch + 1, barren and not any(portions)
            epoch = min(place.epoch for place in known.values())
            if barren and share.world == 1 and epoch > min(place.epoch for place in places.values()) + 1:
                raise UserError(f"no item of the corpus can be read: {self.batcher.example}")
            every = range(self.source.readers)
            feedback = () if self.feedback is None else tuple(counted.get(n) for n in every)
            yield portions, Cursor(epoch, batch, tuple(known.get(n) for n in every), feedback=feedback)

    def _counted(self, start: Cursor, own: Sequence[int]) -> dict[int, State | None]:
        """What each of these readers has counted; nothing yet where the run was not steered."""
        known = len(start.feedback) == self.source.readers
        return {number: start.feedback[number] if known else {} for number in own}

    def moved(self, cursor: Cursor, scores: Mapping[str, float]) -> Cursor:
        """The place, where frequencies move by scores, at once."""
        return replace(cursor, feedback=tuple(moved(self.feedback, state, scores) for state in cursor.feedback))

    def _readers_a_part(self, share: Share) -> int:
        """Raises UserError where readers, batch and processes do not divide."""
        readers, size, parts = self.source.readers, self.config.size, share.world * share.parts
        if size % readers:
            below, above = size // readers * readers, -(-size // readers) * readers
            near = f"{below} or {above}" if below else f"{above}"
            raise UserError(
                f"batch.size {size} is not a multiple of data.readers {readers}: set batch.size to {near}, "
                f"or data.readers to {max(n for n in range(1, readers + 1) if size % n == 0)}"
            )
        if readers % parts:
            raise UserError(
                f"data.readers {readers} cannot be dealt to {parts} parts of a batch ({share.world} processes, "
                f"{share.parts} each): set data.readers to {-(-readers // parts) * parts}, or run other processes"
            )
        return readers // parts

    def _places(self, start: Cursor) -> Sequence[Place | None]:
        """Where each reader begins. Raises UserError where the checkpoint had others."""
        readers = self.source.readers
        if start.readers and len(start.readers) != readers:
            raise UserError(
                f"data.readers is {readers}, but this run has read with {len(start.readers)}; make them agree"
            )
        if not start.readers:
            if start != Cursor():
                raise UserError(
                    "data.source: this run has read a corpus by index; a stream cannot go on where it stood"
                )
            return [Place()] * readers
        return [None if place is None else Place(*place) for place in start.readers]

    def _read(self, row: _Row, place: int) -> Read:
        content, value = row.content, None
        if row.entry is not None:
            try:
                value = self.condition.read(row.entry)
            except BrokenItem as error:
                content = str(error)
        return Read(named=lambda: row.name, place=place, value=value, seed=row.seed, content=content)

    def _portion(self, reads: Sequence[Read]) -> Portion | None:
        known = len(self.broken)
        portion = self.batcher.portion(reads)
        self.seen += len(reads)
        if len(self.broken) > known:
            self._check_share()
        return portion

    # --- the report

    @property
    def items(self) -> int:
        """How many there are, where that is known; else how many were seen."""
        return self.source.total or self.seen

    def _check_share(self) -> None:
        items = self.source.total or max(self.seen, FEW)
        share = len(self.broken) / items
        if share > self.config.max_broken_share:
            raise UserError(
                f"{len(self.broken)} items of the corpus cannot be read ({share:.1%} of {items}, more than "
                f"batch.max_broken_share {self.config.max_broken_share:.1%}), such as {self.batcher.example}. "
                "Mend them, or go on without them: --set batch.max_broken_share=1"
            )


def open_corpus(
    source: Source | Stream,
    tokenizer: Tokenizer,
    condition: ConditionKind[Any],
    config: BatchConfig,
    *,
    feedback: FeedbackConfig | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Corpus | StreamCorpus:
    """By index or as a stream, as the source is. Raises UserError."""
    if feedback is not None:
        check_classes(feedback)
    if isinstance(source, Stream):
        return StreamCorpus(source, tokenizer, condition, config, feedback=feedback, seed=seed, device=device)
    return Corpus(source, tokenizer, condition, config, feedback=feedback, seed=seed, device=device)


# --- processes that read ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row:
    """An item that was read, or the reason why it cannot be."""

    name: str
    entry: Entry | None
    seed: int  # of what is drawn of its tokens
    content: Content


@dataclass(frozen=True, slots=True)
class _Turn:
    """What a reader gives to a batch, and where it stands then."""

    reader: int
    rows: list[_Row]
    after: Place
    counted: State | None  # then, where that steers it


class _Reading(IterableDataset["_Turn | str"]):
    """Turns of each reader after the other, without end; or why none can follow."""

    def __init__(
        self,
        corpus: StreamCorpus,
        readers: Sequence[tuple[int, Place]],
        each: int,
        batch: int,
        counted: Mapping[int, State | None],
    ) -> None:
        """each: most items of a turn. batch: of the run, that the first turns are of. counted: by each reader, where
        that steers it."""
        self.feedback, self.counted = corpus.feedback, dict(counted)
        self.source, self.seed, self.readers, self.each, self.batch = corpus.source, corpus.seed, readers, each, batch
        self.count = corpus.batcher.count
        budget = corpus.config.tokens
        self.budget = None if budget is None else budget / corpus.source.readers
        self.spec_of: Callable[..., Any] | None = None if budget is None else corpus.tokenizer.spec_of

    def __iter__(self) -> Iterator[_Turn | str]:
        worker = get_worker_info()
        mine = self.readers if worker is None else self.readers[worker.id :: worker.num_workers]
        try:
            for turns in cycle([self._turns(number, place) for number, place in mine]):
                yield next(turns)
        except UserError as error:  # which would not come through as it is
            yield str(error)

    def _turns(self, number: int, place: Place) -> Iterator[_Turn]:
        rows: list[_Row] = []
        longest, batch, source = 0, self.batch, self._source(self.batch)
        feedback = None if self.feedback is None else Feedback(self.feedback, self.counted[number])
        attributes: tuple[str, ...] = ()

        def turn() -> _Turn:
            return _Turn(number, rows, place, None if feedback is None else feedback.state())

        for taken, after in Reader(self.source, number, seed=self.seed).taken(place):
            if feedback is not None:
                attributes = self._attributes(feedback, taken)
                if not feedback.accepts(attributes, taken.sample.name, taken.epoch):
                    feedback.observe(attributes, taken=False)
                    place = after
                    continue
            longest = max(longest, self._largest(source))
            if rows and self._are_over(longest, len(rows) + 1):
                yield turn()
                rows, batch = [], batch + 1
                source = self._source(batch)
                longest = self._largest(source)
            row, tokens = self._row(taken, source)
            if rows and self._are_over(max(longest, tokens), len(rows) + 1):
                yield turn()
                rows, batch = [], batch + 1
                if (then := self._source(batch)) is not source:
                    source = then
                    row, tokens = self._row(taken, source)
                longest = self._largest(source)
            if feedback is not None and isinstance(row.content, Tensor):
                feedback.observe((*attributes, *measures(tuple(row.content.shape))), taken=True)
            rows.append(row)
            longest, place = max(longest, tokens), after
            if len(rows) == self.each:
                yield turn()
                rows, longest, batch = [], 0, batch + 1
                source = self._source(batch)

    def _attributes(self, feedback: Feedback, taken: Taken) -> tuple[str, ...]:
        try:
            return feedback.attributes(self._with_text(self.source.entry(taken.sample), taken))
        except BrokenItem:  # reading it says so
            return ()

    def _with_text(self, entry: Entry, taken: Taken) -> Entry:
        """That which this reading takes, where it has several."""
        if not entry.texts:
            return entry
        with drawing(taken.seed(self.seed, TEXT)):
            return replace(entry, text=entry.texts[one_of(len(entry.texts))])

    def _source(self, batch: int) -> Stream:
        return self.source.at(batch, item_seed(self.seed, BEFORE, batch, 0, BATCH))

    def _largest(self, source: Stream) -> int:
        """Tokens that no item will exceed, where they are counted and that is known; else 0."""
        if self.spec_of is None or source.largest is None:
            return 0
        return self.count(self.spec_of(source.largest).num_tokens)

    def _are_over(self, longest: int, rows: int) -> bool:
        return self.budget is not None and longest * rows > self.budget

    def _row(self, taken: Taken, source: Stream) -> tuple[_Row, int]:
        """The item, and its tokens where they are counted."""
        name, seed = taken.sample.name, taken.seed(self.seed, TOKENS)
        try:
            with drawing(taken.seed(self.seed)):
                item: Item = source.decode(taken.sample)
            tokens = 0 if self.spec_of is None else self.count(self.spec_of(tuple(item.media.shape)).num_tokens)
        except (BrokenItem, UserError) as error:  # UserError: of a size that the tokenizer cannot take
            return _Row(name, None, seed, str(error)), 0
        return _Row(name, self._with_text(item.entry, taken), seed, item.media), tokens
