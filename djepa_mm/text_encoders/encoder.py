"""What every text encoder does."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from djepa_mm.errors import Notice

MOST_SHOWN = 80  # characters of a text in a notice


class TextEncoder(ABC):
    """Texts to numbers (L,) int64 of what is learned with the model, or to features (L, E) of a frozen network.

    most: tokens of a text; longer ones are cut.
    """

    pool: ClassVar[Literal["mean", "last"]] = "mean"
    """What stands for a text as a whole: the mean of its tokens, or the last one."""
    usual_length: ClassVar[int] = 64
    """Tokens of a usual text, for estimates."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.told = False  # that a text was cut
        self.stored: Callable[[str], Tensor | None] | None = None  # gives features of texts that were kept before

    def bind(self, captions: Iterator[str] | None) -> None:
        """Learn what a corpus tells before the model is built. captions: None where they cannot be read beforehand.

        Raises UserError where the encoder cannot be had, or the corpus does not fit."""
        return

    def unknown(self, text: str) -> list[str]:
        """What of a text is not known, each once."""
        return []

    def known(self, text: str) -> str:
        """The text without what is not known; empty where nothing is."""
        return text

    @abstractmethod
    def ids(self, text: str) -> list[int]:
        """Numbers of the text's tokens, however many."""

    def shorten(self, ids: list[int]) -> list[int]:
        """The first tokens, as many as there may be."""
        return ids[: self.most]

    def read(self, text: str) -> list[int]:
        """Numbers of its tokens, cut where they are too many. Only the first such text is told of, until `told` is
        unset again."""
        ids = self.ids(text)
        if len(ids) > self.most and not self.told:
            self.told = True
            shown = text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"
            warnings.warn(f"{shown!r} has {len(ids)} tokens, of which the first {self.most} are read", Notice, 2)
        return self.shorten(ids)

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """Numbers (L,) int64 or features (L, E) of each text, at least one token of each."""

    @abstractmethod
    def module(self, width: int) -> nn.Module:
        """From what `encode` gives to the model's width, (B, L) or (B, L, E) -> (B, L, D).

        Raises UserError where its size is not known."""

    def made_by(self) -> dict[str, Any] | None:
        """What the features of a frozen network depend on, ready for JSON; None where there is no such network."""
        return None

    def to(self, device: torch.device) -> None:
        """Where a network shall work, if there is one."""
        return

    def state(self) -> dict[str, Any]:
        """What `bind` learned, ready for JSON."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The way back. Raises KeyError or TypeError where it is not this encoder's."""
        return
