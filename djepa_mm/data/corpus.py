"""From a corpus to batches of tokens: length buckets, a token budget, broken items skipped and named.

B batch, N tokens, C token channels.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from djepa_mm.core.types import TokenBatch
from djepa_mm.data.compact import Alike
from djepa_mm.recipe.schema import BatchConfig
from djepa_mm.types import (
    BrokenItem,
    ConditionKind,
    DrawnTokens,
    Item,
    MediaSpec,
    Progress,
    Source,
    Tokenizer,
    UserError,
)

BUCKET_BATCHES = 32  # items of this many batches are sorted by length together
BEFORE = -1  # epoch that stands for what is read before training
TOKENS = 1  # sets the seed of what is drawn of tokens apart from that of the media


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where in the data a run stands: the next batch to read."""

    epoch: int = 0
    batch: int = 0


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
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.source, self.tokenizer, self.condition = source, tokenizer, condition
        self.config, self.seed, self.device = config, seed, torch.device(device)
        self.broken: dict[str, str] = {}
        self.specs: Alike[MediaSpec] = Alike(len(source))  # as the headers say; broken items are not in it
        self.values: Alike[Any] = Alike(len(source))  # of the condition, likewise
        self._cache: dict[int, Encoded] = {}
        of_shape: dict[tuple[int, ...], MediaSpec] = {}
        for index in range(len(source)):
            try:
                value, shape = condition.read(source.entry(index)), source.shape(index)
                if (spec := of_shape.get(shape)) is None:
                    spec = of_shape.setdefault(shape, tokenizer.spec_of(shape))
            except (BrokenItem, UserError) as error:  # UserError: of a size that the tokenizer cannot take
                self._report(index, str(error))
            else:
                self.values[index], self.specs[index] = value, spec
        if not self.specs:
            raise UserError(f"the corpus has no readable item among {len(source)}: {self._example()}")
        self._check_share()
        if config.cache and (source_draws(source) or tokenizer_draws(tokenizer)):
            drawn = "data.flip or data.window" if source_draws(source) else "tokenizer.sample"
            raise UserError(
                f"batch.cache keeps one reading of each item, but this recipe draws anew at each reading ({drawn}): "
                "set batch.cache to false, or let it draw nothing"
            )

    # --- reading

    def read(self, index: int) -> Item | None:
        """The item, or None where it is broken; the report then names it."""
        try:
            with drawing(self._seed(BEFORE, index)):
                return self.source.read(index)
        except BrokenItem as error:
            self._report(index, str(error))
            self._check_share()
            return None

    def fit_tokenizer(self, most: int = 1000) -> None:
        """Let the tokenizer learn its statistics from up to `most` items, evenly spread over the corpus."""
        indices = list(self.specs)
        indices = indices[:: max(1, len(indices) // most)][:most]
        items = (self.read(index) for index in indices)
        self.tokenizer.fit(item.media for item in items if item is not None)

    def fill_cache(self, progress: Progress | None = None) -> None:
        """Tokenize every item once and keep the tokens."""
        for done, index in enumerate(self.specs):
            item = self.read(index)
            if item is not None:
                tokens = self.tokenizer.encode(item.media[None].to(self.device))[0].cpu()
                self._cache[index] = Encoded(tokens, self.tokenizer.spec_of(tuple(item.media.shape)))
            if progress is not None:
                progress(done + 1, len(self.specs))

    # --- batches

    def plan(self, epoch: int) -> list[list[int]]:
        """Indices of every batch of an epoch; the same for the same seed, epoch and corpus."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        indices = list(self.specs)
        indices = [indices[i] for i in torch.randperm(len(indices), generator=generator).tolist()]
        if len({spec.num_tokens for spec in self.specs.values()}) == 1:
            batches = self._cut(indices)
            return batches if len(batches) == 1 or len(batches[-1]) == len(batches[0]) else batches[:-1]
        bucket = self.config.size * BUCKET_BATCHES
        batches = []
        for start in range(0, len(indices), bucket):
            part = sorted(indices[start : start + bucket], key=lambda i: self.specs[i].num_tokens)
            batches += self._cut(part)
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

    def _cut(self, indices: Sequence[int]) -> list[list[int]]:
        """Cut a list into batches of at most `size` items and `tokens` tokens, padding counted."""
        batches: list[list[int]] = [[]]
        longest = 0
        for index in indices:
            longest = max(longest, self.specs[index].num_tokens)
            batch = batches[-1]
            over = self.config.tokens is not None and longest * (len(batch) + 1) > self.config.tokens
            if batch and (len(batch) == self.config.size or over):
                batches.append([index])
                longest = self.specs[index].num_tokens
            else:
                batch.append(index)
        return batches

    def batches(self, start: Cursor) -> Iterator[tuple[TokenBatch, Cursor]]:
        """Batches without end from a place on, tokens on the device, each with the place that follows it."""
        epoch, skip = start.epoch, start.batch
        while True:
            plan = self.plan(epoch)[skip:]
            trained = False
            loader = DataLoader(
                _Reading(self.source, self._cache),
                batch_sampler=[[(index, self._seed(epoch, index)) for index in indices] for indices in plan],
                num_workers=0 if self._cache else self.config.workers,
                collate_fn=list,
                worker_init_fn=_leave_interrupts,
                generator=torch.Generator(),  # of its own, so that it draws nothing from the run's random state
            )
            with _deaf_to_interrupts(loader.num_workers):
                reading = iter(loader)
            for number, rows in enumerate(reading, start=skip + 1):
                batch = self._tokenize(rows, epoch)
                if batch is not None:
                    trained = True
                    yield batch, Cursor(epoch, number)
            if not trained and skip == 0:
                raise UserError(f"no item of the corpus can be read: {self._example()}")
            epoch, skip = epoch + 1, 0

    def _seed(self, epoch: int, index: int, *purpose: int) -> int:
        """Of what reading an item draws: the same wherever and whenever it is read in that epoch."""
        return int(np.random.SeedSequence((self.seed, epoch - BEFORE, index, *purpose)).generate_state(1)[0])

    def _tokenize(self, rows: Sequence[_Row], epoch: int) -> TokenBatch | None:
        whole = []
        for row in rows:
            try:
                if isinstance(row.content, str):
                    raise BrokenItem(row.content)
                if isinstance(row.content, Tensor):
                    self.tokenizer.spec_of(tuple(row.content.shape))
            except (BrokenItem, UserError) as error:  # UserError: of a size that the tokenizer cannot take
                self._report(row.index, str(error))
            else:
                whole.append(row)
        if len(whole) < len(rows):
            self._check_share()
        if not whole:
            return None
        encoded = self._encoded(whole, epoch)
        counts = [len(one.tokens) for one in encoded]
        return TokenBatch(
            tokens=pad_sequence([one.tokens for one in encoded], batch_first=True),
            positions=pad_sequence([one.spec.positions() for one in encoded], batch_first=True),
            valid=torch.arange(max(counts)) < torch.tensor(counts)[:, None],
            condition=self.condition.encode([self.values[row.index] for row in whole], counts),
        )

    def _encoded(self, rows: Sequence[_Row], epoch: int) -> list[Encoded]:
        """Media of one shape are encoded together. Their sizes are those that were read, whatever the headers said."""
        contents = [row.content for row in rows]
        found = {n: content for n, content in enumerate(contents) if isinstance(content, Encoded)}
        alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for n, content in enumerate(contents):
            if isinstance(content, Tensor):
                alike[tuple(content.shape)].append(n)
        for shape, group in alike.items():
            spec = self.tokenizer.spec_of(shape)
            media = torch.stack([contents[n] for n in group])  # type: ignore[misc]  # tensors, all of them
            tokens = self._tokens(media.to(self.device), [rows[n].index for n in group], epoch)
            found.update({n: Encoded(row, spec) for n, row in zip(group, tokens, strict=True)})
        return [found[n] for n in range(len(contents))]

    def _tokens(self, media: Tensor, indices: Sequence[int], epoch: int) -> Tensor:
        """(B, *shape) -> (B, N, C); where they are drawn, each item's by its own seed."""
        if not tokenizer_draws(self.tokenizer):
            return self.tokenizer.encode(media)
        mean, deviation = self.tokenizer.posterior(media)
        seeds = (self._seed(epoch, index, TOKENS) for index in indices)
        noise = [torch.randn(mean.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return mean + deviation * torch.stack(noise).to(mean)

    # --- the report

    def _report(self, index: int, reason: str) -> None:
        self.broken[self.source.entry(index).name] = reason

    def _example(self) -> str:
        return next((f"{name}: {reason}" for name, reason in self.broken.items()), "none is there")

    def _check_share(self) -> None:
        share = len(self.broken) / len(self.source)
        if share > self.config.max_broken_share:
            raise UserError(
                f"{len(self.broken)} of {len(self.source)} items of the corpus cannot be read ({share:.1%}, more than "
                f"batch.max_broken_share {self.config.max_broken_share:.1%}), such as {self._example()}. "
                "Mend them, or go on without them: --set batch.max_broken_share=1"
            )

    def save_report(self, path: Path) -> None:
        """JSON: how many items there are, how many were left out and why, and every broken one with its reason."""
        report = {
            "items": len(self.source),
            "left_out": getattr(self.source, "left_out", {}),
            "broken": len(self.broken),
            "reasons": self.broken,
        }
        path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@runtime_checkable
class ReadsAhead(Protocol):
    """A source that reads several items faster than one after the other."""

    def read_all(self, indices: Sequence[int]) -> Iterable[Item | BrokenItem]:
        """Each item, or why it cannot be read."""
        ...


@dataclass(frozen=True, slots=True)
class Encoded:
    """The tokens of one item, and the size of its media."""

    tokens: Tensor  # (N, C)
    spec: MediaSpec


@dataclass(frozen=True, slots=True)
class _Row:
    """What a reading process hands over: the media, their cached tokens, or the reason why there are none."""

    index: int
    content: Tensor | Encoded | str


class _Reading(Dataset[_Row]):
    def __init__(self, source: Source, cache: dict[int, Encoded]) -> None:
        self.source, self.cache = source, cache

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, wanted: list[tuple[int, int]]) -> list[_Row]:
        """A batch at once, by index and seed: sources that can read ahead do so, and draw by the first one's seed."""
        if self.cache or not isinstance(self.source, ReadsAhead):
            return [self[one] for one in wanted]
        indices = [index for index, _ in wanted]
        with drawing(wanted[0][1]):
            return [
                _Row(index, str(item) if isinstance(item, BrokenItem) else item.media)
                for index, item in zip(indices, self.source.read_all(indices), strict=True)
            ]

    def __getitem__(self, wanted: tuple[int, int]) -> _Row:
        index, seed = wanted
        if index in self.cache:
            return _Row(index, self.cache[index])
        try:
            with drawing(seed):
                return _Row(index, self.source.read(index).media)
        except BrokenItem as error:
            return _Row(index, str(error))


@contextmanager
def drawing(seed: int) -> Iterator[None]:
    """What torch draws in here begins with the seed, and nothing outside of here notices."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def tokenizer_draws(tokenizer: object) -> TypeGuard[DrawnTokens]:
    """Whether it gives other tokens of the same media each time."""
    return isinstance(tokenizer, DrawnTokens) and tokenizer.draws


def source_draws(source: Source) -> bool:
    """Whether the source gives another reading of an item each time."""
    return getattr(source, "draws", False)


@contextmanager
def _deaf_to_interrupts(processes: int) -> Iterator[None]:
    """So many processes, which start in here, never hear Ctrl-C: it is for the one that trains, which hears it
    afterwards, saves, and then ends its readers. Those that are not forked take seconds to start, and would die of it.
    """
    if not processes or not hasattr(signal, "pthread_sigmask"):  # as on Windows
        yield
        return
    if multiprocessing.get_start_method() != "fork":
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()  # else it starts in here, and lifts the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_interrupts(_: int) -> None:
    """The same for a process that has started, where the system knows no such mask."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
