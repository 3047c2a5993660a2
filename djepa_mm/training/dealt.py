"""Global batches that are dealt to processes and parts: what every process has to know of the whole.

Chance decides for the whole batch, in every process alike, and means are taken over all of it, so that it makes no
difference how many processes and parts it is dealt to. B items of the batch, N tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from djepa_mm.core.types import TokenBatch
from djepa_mm.data.batches import Portion, laid_out
from djepa_mm.ranks import Ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """A global batch without its tokens. Items that could not be read are not in it."""

    number: dict[int, int]  # of its items, by their places
    valid: Tensor  # (B, N) bool
    positions: Tensor  # (B, N, 3)
    tokens: int

    @property
    def items(self) -> int:
        return len(self.number)

    def rows(self, part: Portion) -> list[int] | None:
        """Which of the batch's items a part holds; None where it is all of them."""
        if len(part.places) == self.items:
            return None
        return [self.number[place] for place in part.places]


class Dealt:
    """spare: tokens of some batch before, for a process that has a part of which no item could be read."""

    def __init__(self, ranks: Ranks, device: torch.device) -> None:
        self.ranks, self.device = ranks, device
        self._spare: TokenBatch | None = None

    @property
    def spare(self) -> TokenBatch:
        assert self._spare is not None
        return self._spare

    def whole(self, batch: Sequence[Portion | None]) -> Whole | None:
        """Of this process' parts of a batch, the batch; None where nothing of it could be read. Each has to ask."""
        parts = [part for part in batch if part is not None]
        self._spare = parts[0].batch if parts else self._spare
        told = self.ranks.gather(([(part.places, part.grids, part.some) for part in parts], self._spare is None))
        items = {place: one for them, _ in told for part in them for place, *one in zip(*part, strict=True)}
        if not items:
            return None
        if any(lacking for _, lacking in told):  # a process has never read anything: it takes what another has
            spares = self.ranks.gather(None if self._spare is None else self._spare.to("cpu"))
            self._spare = self._spare or next(spare for spare in spares if spare is not None).to(self.device)
        number = {place: n for n, place in enumerate(sorted(items))}
        valid, positions = laid_out(*zip(*(items[place] for place in number), strict=True))
        return Whole(
            number=number,
            valid=valid.to(self.device),
            positions=positions.to(self.device),
            tokens=int(valid.sum()),
        )


def gradients_stay_here(network: nn.Module, wanted: bool) -> AbstractContextManager[Any]:
    """Until the last part of a batch, other processes need not know this one's gradients."""
    return network.no_sync() if wanted and isinstance(network, DistributedDataParallel) else nullcontext()
