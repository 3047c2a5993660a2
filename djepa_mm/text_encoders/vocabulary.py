"""Encoders with nothing to download: words of the corpus' own captions, or characters, learned with the model."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from djepa_mm.text_encoders.encoder import TextEncoder
from djepa_mm.types import Config, UserError

WORD = re.compile(r"\w+(?:['’-]\w+)*")


class WordsConfig(Config):
    """Words, each with a vector of its own that is learned with the model."""

    kind: Literal["words"]
    vocabulary: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Every word that is known; those of the corpus' captions where none are given. Capitals make no difference."""
    most: PositiveInt = 10_000
    """Words of the captions that are known, the most frequent ones."""

    def build(self, most: int) -> Words:
        return Words(self, most)


class SymbolsConfig(Config):
    """Characters, each with a vector of its own that is learned with the model."""

    kind: Literal["symbols"]
    characters: Annotated[str, Field(min_length=1)] = f"{string.ascii_lowercase}{string.digits} {string.punctuation}"
    """Every character that is known; the others are left out."""
    lowercase: bool = True
    """Fold texts to lower case."""

    def build(self, most: int) -> Symbols:
        return Symbols(self, most)


class _Learned(TextEncoder):
    """A vector for each unit of a vocabulary."""

    between: ClassVar[str]
    """What joins units to a text."""

    numbers: Mapping[str, int]  # by unit

    def units(self, text: str) -> list[str]:
        raise NotImplementedError

    def unknown(self, text: str) -> list[str]:
        return list(dict.fromkeys(unit for unit in self.units(text) if unit not in self.numbers))

    def known(self, text: str) -> str:
        return self.between.join(unit for unit in self.units(text) if unit in self.numbers).strip()

    def ids(self, text: str) -> list[int]:
        return [self.numbers[unit] for unit in self.units(text) if unit in self.numbers]

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        return [torch.tensor(self.read(text), dtype=torch.int64) for text in texts]

    def module(self, width: int) -> nn.Module:
        table = nn.Embedding(len(self.numbers), width)
        nn.init.trunc_normal_(table.weight, std=0.02)
        return table


class Words(_Learned):
    usual_length: ClassVar[int] = 8
    between: ClassVar[str] = " "

    def __init__(self, config: WordsConfig, most: int) -> None:
        super().__init__(most)
        self.config = config
        self.numbers = _numbered(word.lower() for word in config.vocabulary or ())

    def units(self, text: str) -> list[str]:
        return WORD.findall(text.lower())

    def bind(self, captions: Iterator[str] | None) -> None:
        if self.config.vocabulary is not None:
            return
        if captions is None:
            raise UserError(
                "condition.encoder.vocabulary: the words of shards are not looked for: list them, or set "
                "condition.encoder.kind to symbols"
            )
        counts = Counter(word for caption in captions for word in self.units(caption))
        if not counts:
            raise UserError("condition.kind is caption, but the corpus has no texts: choose another condition.kind")
        frequent = sorted(counts, key=lambda word: (-counts[word], word))
        self.numbers = _numbered(sorted(frequent[: self.config.most]))

    def module(self, width: int) -> nn.Module:
        if not self.numbers:
            raise UserError("the words are not known without the corpus: give condition.encoder.vocabulary")
        return super().module(width)

    def state(self) -> dict[str, Any]:
        return {"words": list(self.numbers)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        words = state["words"]
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise TypeError("words that are no list of them")
        if self.numbers and list(self.numbers) != words:
            differing = ", ".join(sorted(set(self.numbers) ^ set(words))[:5]) or "their order"
            raise UserError(
                f"the captions have other words than the run was trained on: {differing}; restore them, or begin a new "
                "run"
            )
        self.numbers = _numbered(words)


class Symbols(_Learned):
    between: ClassVar[str] = ""

    def __init__(self, config: SymbolsConfig, most: int) -> None:
        super().__init__(most)
        self.config = config
        self.numbers = _numbered(config.characters)

    def units(self, text: str) -> list[str]:
        return list(text.lower() if self.config.lowercase else text)


def _numbered(units: Iterator[str] | Sequence[str]) -> dict[str, int]:
    return {unit: number for number, unit in enumerate(dict.fromkeys(units))}
