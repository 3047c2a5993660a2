"""What chance decides of an item: by a seed of its own, so that it is the same wherever and whenever it is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

BEFORE = -1  # epoch that stands for what is read before training
TOKENS = 1  # purpose: what is drawn of an item's tokens, apart from what is drawn of its media
LEFT = 2  # purpose of a seed that an item's tokens have: which of them are left
TEXT = 3  # purpose: which of its texts
BATCH = 4  # purpose: what all items of a batch have in common


def item_seed(seed: int, epoch: int, *place: int) -> int:
    """Of the run's seed, the epoch (from BEFORE on), and the item's place in its corpus, with a purpose behind it."""
    return int(np.random.SeedSequence((seed, epoch - BEFORE, *place)).generate_state(1)[0])


@contextmanager
def drawing(seed: int) -> Iterator[None]:
    """What torch draws on the CPU in here begins with the seed, and nothing outside of here notices: no GPU's random
    state either, which `torch.manual_seed` would set, and not in no time."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)


def one_of(count: int) -> int:
    """A number below `count`, each as likely; nothing is drawn where there is no choice."""
    return int(torch.rand(()) * count) if count > 1 else 0
