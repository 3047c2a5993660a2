"""What a run trains, as the loop sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from djepa_mm.data.corpus import Cursor
from djepa_mm.precision import fast_bf16
from djepa_mm.recipe.schema import OptimConfig
from djepa_mm.training.state import TrainState
from djepa_mm.types import Config, Progress


class Update(Protocol):
    """One step of the optimisers of one of the task's groups."""

    def __call__(self, group: str, losses: Iterable[Tensor]) -> Tensor:
        """losses: of the parts of the batch, each of which is gone back from before the next is asked for.

        -> the norm of the gradient. Where it or a loss is not finite, nothing moves."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Networks that are moved together."""

    module: nn.Module
    optimizers: list[torch.optim.Optimizer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What of a corpus could not be used: names with reasons, and how many were left out and why."""

    items: int
    broken: Mapping[str, str]
    left_out: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What a step gives the log: terms, the gradient's norm among them, and how much was learned from.

    flops: of its products of matrices and attention, about; 0 where nobody counts them."""

    terms: Mapping[str, Tensor]
    items: int
    tokens: int
    flops: float = 0.0


class RunSettings(Protocol):
    """How often a run writes what: a recipe's `run` section."""

    @property
    def log_every(self) -> int: ...

    @property
    def sample_every(self) -> int | None: ...

    @property
    def save_every(self) -> int: ...

    @property
    def keep(self) -> int: ...

    @property
    def tracker(self) -> str | None: ...


class Task(Protocol):
    """What a run trains: networks, the data that they learn from, and what shows how well they have learned.

    The loop draws batches, has each learned from, moves the averages, writes the log and the checkpoints.
    """

    state: TrainState

    @property
    def recipe(self) -> Config: ...

    @property
    def optim(self) -> OptimConfig: ...

    @property
    def settings(self) -> RunSettings: ...

    @property
    def groups(self) -> Mapping[str, Group]: ...

    @property
    def online(self) -> nn.Module:
        """The network whose average is kept, in `state.averaged`."""
        ...

    def begin(self, progress: Progress) -> None:
        """What a fresh run learns from its corpus before the first step; a resumed one has it in its checkpoint."""
        ...

    def prepare(self, progress: Progress) -> None:
        """What comes before the first step in any case, such as filling a cache.

        Raises UserError for mistakes that are better heard of now than after hours."""
        ...

    def batches(self, cursor: Cursor) -> Iterator[tuple[Any, Cursor]]:
        """Batches without end from a place in the data on, or what of them this process learns from, each with the
        place that follows it."""
        ...

    def learn(self, batch: Any, update: Update, progress: float) -> Learned | None:
        """Losses of a batch and one update from them; None where nothing in it can be used."""
        ...

    def write_samples(self, folder: Path, stem: str, progress: Progress) -> list[Path]:
        """What the averaged weights give now, as files whose names begin with `stem`. Where sampling takes long,
        `progress` is called in between, and may end it by an exception."""
        ...

    def report(self) -> Report: ...


Scores = Callable[[int, Any], Mapping[str, float]]  # of a step and what generates, by attribute


@runtime_checkable
class Steered(Protocol):
    """A task of which scores decide what is sampled next."""

    def moved(self, cursor: Cursor, hooks: Sequence[Scores]) -> Cursor:
        """The place, with frequencies moved by scores of the weights as they are; the same one where nothing moves.

        hooks: what gives scores, besides the task itself."""
        ...


def product_type(optim: OptimConfig, device: torch.device) -> torch.dtype:
    """Of products of matrices: the recipe's precision; fp32 where the device is slower in bf16."""
    return torch.bfloat16 if optim.precision == "bf16" and fast_bf16(device) else torch.float32


def autocast(optim: OptimConfig, device: torch.device) -> AbstractContextManager[Any]:
    """Products of matrices in that type."""
    dtype = product_type(optim, device)
    return nullcontext() if dtype is torch.float32 else torch.autocast(device.type, dtype)
