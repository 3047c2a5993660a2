"""The processes that work together, as torchrun starts them. A process that is alone is a world of one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from djepa_mm.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor  # a second to import

T = TypeVar("T")


class ElsewhereError(UserError):
    """A mistake that another process has found, and tells."""

    told = True


@dataclass(frozen=True, slots=True)
class Ranks:
    """One of `world` processes. What they exchange goes through the CPU, never through an accelerator.

    group: what it goes through; None: what all have joined, which is the main thread's alone."""

    rank: int = 0
    world: int = 1
    group: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this one speaks for all: it writes what is written once, and shows how it goes."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Every process' value, by rank; each has to ask."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, self.group)
        return values

    def add(self, values: Tensor) -> None:
        """Each number becomes the sum of every process' one."""
        if self.world > 1:
            dist.all_reduce(values, group=self.group)

    @contextmanager
    def apart(self) -> Iterator[Ranks]:
        """The same processes with a group of their own, so that another thread can exchange while the main one does
        too. Every process has to call it."""
        if self.world == 1:
            yield self
            return
        group = dist.new_group(backend="gloo")
        try:
            yield replace(self, group=group)
        finally:
            dist.destroy_process_group(group)

    def agree(self, work: Callable[[], T], *, first_only: bool = False) -> T | None:
        """What `work` gives here, once all have done it, or the first alone where that is asked for.

        Raises its own UserError where one arose here, else ElsewhereError where one arose elsewhere, so that nobody
        waits for a process that has given up. `work` may agree on parts of itself: an error that all have been told of
        there is not told again."""
        if self.world == 1:
            return work()
        result, error = None, None
        if self.first or not first_only:
            try:
                result = work()
            except UserError as found:
                if found.told:
                    raise
                error = found
        self.check(error)
        return result

    def check(self, error: UserError | None) -> None:
        """Raises the error that this process has found, else one that another has."""
        settle(error, self.gather(None if error is None else str(error)))


def settle(error: UserError | None, told: Sequence[str | None]) -> None:
    """Raises this process' own error, else ElsewhereError for the first that another has told of."""
    if error is not None:
        error.told = True
        raise error
    for rank, message in enumerate(told):
        if message is not None:
            raise ElsewhereError(f"rank {rank}: {message}")


ALONE = Ranks()


def launched() -> bool:
    """Whether torchrun, or what sets the same variables, has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_split(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether each process has a part of it, as of a model that is sharded."""
    return hasattr(tensor, "full_tensor")


def restarts() -> int:
    """How often torchrun has started these processes again after one of them had failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def current() -> Ranks:
    """This process among those that have joined."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return ALONE


@contextmanager
def joined() -> Iterator[Ranks]:
    """In here, processes that torchrun has started are joined. Raises ElsewhereError where another one has ended."""
    if not launched() or dist.is_initialized():
        yield current()
        return
    gpus = torch.cuda.is_available()
    if gpus:
        torch.cuda.set_device(local_device())
    store, rank, world = next(dist.rendezvous("env://"))
    # torchrun's store outlives a restart, and what the processes before had left in it would keep these apart
    store = dist.PrefixStore(f"attempt {restarts()}", store)
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", store=store, rank=rank, world_size=world)
    try:
        yield current()
    except RuntimeError as error:
        if "gloo" in str(error) and "by peer" in str(error):  # closed, or reset
            raise ElsewhereError("another process has ended; it says why") from None
        raise
    finally:
        dist.destroy_process_group()


def local_device() -> torch.device:
    """The accelerator of this process, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
