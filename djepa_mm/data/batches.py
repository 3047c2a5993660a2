"""From items that were read to batches of tokens, whatever the corpus they come from.

B batch, N tokens, C token channels.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from djepa_mm.core.types import TokenBatch
from djepa_mm.data.drawing import BEFORE, LEFT, item_seed
from djepa_mm.types import BrokenItem, ConditionKind, DrawnTokens, MediaSpec, Tokenizer, UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What of each global batch a process learns from, in how many parts: `parts` for each of `world` processes."""

    rank: int = 0
    world: int = 1
    parts: int = 1

    def deal(self, lengths: Sequence[int]) -> list[list[int]]:
        """Places of a global batch's items, by their tokens -> those of each part of this process, rising.

        All parts of all processes get as many items, give or take one, and about as many tokens."""
        count = self.world * self.parts
        dealt: list[list[int]] = [[] for _ in range(count)]
        for n, place in enumerate(sorted(range(len(lengths)), key=lambda place: -lengths[place])):
            turn, part = divmod(n, count)
            dealt[part if turn % 2 == 0 else count - 1 - part].append(place)
        return [sorted(part) for part in dealt[self.rank * self.parts : (self.rank + 1) * self.parts]]


ALL = Share()
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]  # end a run
UNHEARD = [  # by readers; which end by SIGTERM, where the system does not say who has sent it
    number for number in SIGNALS if number != signal.SIGTERM or hasattr(signal, "sigwaitinfo")
]


@dataclass(frozen=True, slots=True)
class Some:
    """So many of an item's tokens, and the seed that draws which."""

    count: int
    seed: int

    def places(self, num_tokens: int) -> Tensor:
        """Of all of them, (count,) rising."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randperm(num_tokens, generator=generator)[: self.count].sort().values


@dataclass(frozen=True, slots=True, kw_only=True)
class Portion:
    """One part of a global batch, on the device."""

    batch: TokenBatch
    places: tuple[int, ...]  # of its items in the global batch
    grids: tuple[tuple[int, int, int], ...]  # of their tokens on (t, h, w)
    some: tuple[Some | None, ...]  # of those tokens, which are there; None where all are


@dataclass(frozen=True, slots=True)
class Encoded:
    """The tokens of one item, and the size of its media."""

    tokens: Tensor  # (N, C); where they can be drawn at each reading, their mean
    spec: MediaSpec
    deviation: Tensor | None = None  # (N, C), where they can be drawn

    def drawn(self, seed: int) -> Tensor:
        """(N, C) where they are: the tokens, or those that the seed draws."""
        if self.deviation is None:
            return self.tokens
        noise = torch.randn(self.tokens.shape, generator=torch.Generator().manual_seed(seed))
        return self.tokens + self.deviation * noise.to(self.tokens.device)

    def cpu(self) -> Encoded:
        """With memory of its own, for it may be a row of many."""
        rows = (None if one is None else one.cpu().clone() for one in (self.tokens, self.deviation))
        tokens, deviation = rows
        assert tokens is not None
        return Encoded(tokens, self.spec, deviation)


Content = Tensor | Encoded | str  # media, their tokens, or the reason why there are none


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """One item of a batch, as it was read."""

    named: Callable[[], str]  # for an error; to ask may take as long as to read a small item
    place: int  # in the global batch
    value: Any  # of its condition
    seed: int  # of what is drawn of its tokens
    content: Content


class Batcher:
    """A tokenizer and a condition, and the device that they work on.

    most: tokens of an item; of more, some are drawn and the others left out (D-JEPA-T2I, appendix, "Scaling to 4K").
    broken: reason by name for every item that could not be used so far.
    """

    def __init__(
        self, tokenizer: Tokenizer, condition: ConditionKind[Any], device: torch.device, most: int | None = None
    ) -> None:
        self.tokenizer, self.condition, self.device, self.most = tokenizer, condition, device, most
        self.draws = tokenizer_draws(tokenizer)
        self.broken: dict[str, str] = {}

    def count(self, num_tokens: int) -> int:
        """Of an item with so many tokens, how many are there."""
        return num_tokens if self.most is None else min(num_tokens, self.most)

    def portion(self, items: Sequence[Read]) -> Portion | None:
        """Of those that are whole, in their order; None where there is none."""
        whole = [item for item in items if self._is_whole(item)]
        if not whole:
            return None
        encoded = self._encoded(whole)
        some = tuple(self._some(len(one.tokens), item.seed) for one, item in zip(encoded, whole, strict=True))
        tokens = [one.drawn(item.seed) if self.draws else one.tokens for one, item in zip(encoded, whole, strict=True)]
        tokens = [
            rows if drawn is None else rows[drawn.places(len(rows)).to(rows.device)]
            for rows, drawn in zip(tokens, some, strict=True)
        ]
        grids = tuple(one.spec.grid for one in encoded)
        valid, positions = laid_out(grids, some)
        batch = TokenBatch(
            tokens=pad_sequence(tokens, batch_first=True),
            positions=positions,
            valid=valid,
            condition=self.condition.encode([item.value for item in whole], [len(one.tokens) for one in encoded]),
        )
        return Portion(batch=batch.to(self.device), places=tuple(item.place for item in whole), grids=grids, some=some)

    def _some(self, num_tokens: int, seed: int) -> Some | None:
        count = self.count(num_tokens)
        return None if count == num_tokens else Some(count, item_seed(seed, BEFORE, LEFT))

    def _is_whole(self, item: Read) -> bool:
        try:
            if isinstance(item.content, str):
                raise BrokenItem(item.content)
            if isinstance(item.content, Tensor):
                self.tokenizer.spec_of(tuple(item.content.shape))
        except (BrokenItem, UserError) as error:  # UserError: of a size that the tokenizer cannot take
            self.broken[item.named()] = str(error)
            return False
        return True

    @property
    def example(self) -> str:
        """One of the broken items, for an error."""
        return next((f"{name}: {reason}" for name, reason in self.broken.items()), "none is there")

    def fit(self, media: Iterable[Tensor]) -> None:
        """Let the tokenizer learn its statistics. Raises UserError where there are no media, all being broken."""
        given = iter(media)
        if (first := next(given, None)) is None:
            raise UserError(f"no item of the corpus can be read: {self.example}")
        self.tokenizer.fit(chain([first], given))

    def _encoded(self, items: Sequence[Read]) -> list[Encoded]:
        """Their sizes are those that were read, whatever the headers said."""
        found = {n: item.content for n, item in enumerate(items) if isinstance(item.content, Encoded)}
        media = {n: item.content for n, item in enumerate(items) if isinstance(item.content, Tensor)}
        found.update(zip(media, encode(self.tokenizer, list(media.values()), self.device), strict=True))
        return [found[n] for n in range(len(items))]


def laid_out(grids: Sequence[tuple[int, int, int]], some: Sequence[Some | None]) -> tuple[Tensor, Tensor]:
    """Of items by their grids, and the tokens that are there -> valid (B, N) bool and positions (B, N, 3) of all of
    them as one batch."""
    places = {grid: MediaSpec(grid=grid, shape=()).positions() for grid in set(grids)}
    if len(places) == 1 and not any(some):  # as most corpora have it: nothing to pad
        (row,) = places.values()
        return torch.ones(len(grids), len(row), dtype=torch.bool), row.repeat(len(grids), 1, 1)
    rows = [places[grid] for grid in grids]
    rows = [row if drawn is None else row[drawn.places(len(row))] for row, drawn in zip(rows, some, strict=True)]
    counts = torch.tensor([len(row) for row in rows])
    return torch.arange(int(counts.max())) < counts[:, None], pad_sequence(rows, batch_first=True)


def encode(
    tokenizer: Tokenizer, media: Sequence[Tensor], device: torch.device, at_once: int | None = None
) -> list[Encoded]:
    """Media without a batch axis -> their tokens on the device, with a deviation where these are drawn.

    Those of one shape are encoded together, `at_once` or all of them."""
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for n, one in enumerate(media):
        alike[tuple(one.shape)].append(n)
    found: dict[int, Encoded] = {}
    for shape, group in alike.items():
        spec = tokenizer.spec_of(shape)
        step = at_once or len(group)
        for some in (group[start : start + step] for start in range(0, len(group), step)):
            stacked = torch.stack([media[n] for n in some]).to(device)
            if tokenizer_draws(tokenizer):
                rows = zip(*tokenizer.posterior(stacked), strict=True)
                found.update({n: Encoded(mean, spec, std) for n, (mean, std) in zip(some, rows, strict=True)})
            else:
                found.update({n: Encoded(row, spec) for n, row in zip(some, tokenizer.encode(stacked), strict=True)})
    return [found[n] for n in range(len(media))]


def tokenizer_draws(tokenizer: object) -> TypeGuard[DrawnTokens]:
    """Whether it gives other tokens of the same media each time."""
    return isinstance(tokenizer, DrawnTokens) and tokenizer.draws


# --- processes that read ----------------------------------------------------------------------------------------------


@contextmanager
def deaf_to_interrupts(processes: int) -> Iterator[None]:
    """So many processes, which start in here, never hear what ends a run, and reaches all of its processes, such as
    Ctrl-C, the SIGUSR1 that torchrun passes on, and a group's SIGTERM: it is for the one that trains, which hears it
    afterwards, saves, and then ends its readers. Those that are not forked take seconds to start, and would die of it.
    """
    if not processes or not hasattr(signal, "pthread_sigmask"):  # as on Windows
        yield
        return
    if multiprocessing.get_start_method() != "fork":
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()  # else it starts in here, and lifts the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, UNHEARD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_interrupts(_: int) -> None:
    """The same for a process that has started. SIGTERM ends it where it comes from the process that reads by it."""
    for number in UNHEARD:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)  # where the system knows no mask
    parent = multiprocessing.parent_process()
    if signal.SIGTERM in UNHEARD and parent is not None:
        threading.Thread(target=_end_by, args=(parent.pid,), daemon=True).start()


def _end_by(sender: int | None) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != sender:
        pass
    os._exit(0)  # as torch's own handler does
