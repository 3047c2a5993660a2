"""Class and text conditions -> condition tokens at the head of the context encoder's sequence.

B batch, K buffer tokens, L condition items (1 class, or the text's characters), D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from djepa_mm.types import Condition, UserError

TextLayout = Literal["stretched", "plain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionTokens:
    tokens: Tensor  # (B, K + L, D)
    valid: Tensor  # (B, K + L) bool
    positions: Tensor  # (B, K + L, 3)


class ClassConditioner(nn.Module):
    """K learned buffer tokens, each plus the class embedding (method of MAR and D-JEPA). No classes: unconditional.

    The embedding's last row is the null class, which stands where the condition is dropped.
    """

    def __init__(self, num_classes: int, width: int, buffer_tokens: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.buffer = nn.Parameter(torch.empty(buffer_tokens, width))
        self.classes = nn.Embedding(num_classes + 1, width)
        nn.init.trunc_normal_(self.buffer, std=0.02)
        nn.init.trunc_normal_(self.classes.weight, std=0.02)

    def forward(self, condition: Condition, dropped: Tensor) -> ConditionTokens:
        """dropped (B,) bool: True where the null condition stands in for the class."""
        ids = condition.ids[:, 0].masked_fill(dropped, self.num_classes)
        tokens = self.buffer + self.classes(ids).unsqueeze(1)  # (B, K, D)
        return ConditionTokens(
            tokens=tokens,
            valid=torch.ones(tokens.shape[:2], dtype=torch.bool, device=ids.device),
            positions=tokens.new_zeros(*tokens.shape[:2], 3, dtype=torch.float32),
        )


class TextConditioner(nn.Module):
    """K learned buffer tokens, then one token a character. A dropped text keeps its length, not its letters."""

    def __init__(self, vocabulary_size: int, width: int, buffer_tokens: int) -> None:
        super().__init__()
        self.vocabulary_size = vocabulary_size
        self.buffer = nn.Parameter(torch.empty(buffer_tokens, width))
        self.characters = nn.Embedding(vocabulary_size + 1, width)
        nn.init.trunc_normal_(self.buffer, std=0.02)
        nn.init.trunc_normal_(self.characters.weight, std=0.02)

    def forward(self, condition: Condition, dropped: Tensor) -> ConditionTokens:
        ids = condition.ids.masked_fill(dropped[:, None], self.vocabulary_size)
        batch, buffer = len(ids), len(self.buffer)
        return ConditionTokens(
            tokens=torch.cat([self.buffer.expand(batch, -1, -1), self.characters(ids)], dim=1),  # (B, K + L, D)
            valid=torch.cat([condition.valid.new_ones(batch, buffer), condition.valid], dim=1),
            positions=torch.cat([condition.positions.new_zeros(batch, buffer, 3), condition.positions], dim=1),
        )


def class_condition(labels: Sequence[int]) -> Condition:
    """Class indices of a batch; use 0 where there are no classes."""
    ids = torch.tensor(labels, dtype=torch.int64)[:, None]
    return Condition(ids=ids, valid=torch.ones_like(ids, dtype=torch.bool), positions=torch.zeros(len(labels), 1, 3))


def text_condition(ids: Sequence[Tensor], num_tokens: Sequence[int], layout: TextLayout) -> Condition:
    """Texts of a batch, each (L_b,) int64, padded.

    Layout `stretched` lays a text evenly along the time axis of its media's tokens, which gives their alignment a
    good start; `plain` counts 0, 1, 2, …
    """
    positions = []
    for text, tokens in zip(ids, num_tokens, strict=True):
        place = torch.arange(len(text), dtype=torch.float32)
        if layout == "stretched":
            place = (place + 0.5) * tokens / len(text) - 0.5
        positions.append(torch.stack([place, torch.zeros_like(place), torch.zeros_like(place)], dim=-1))
    lengths = torch.tensor([len(text) for text in ids])
    return Condition(
        ids=pad_sequence(list(ids), batch_first=True),
        valid=torch.arange(int(lengths.max())) < lengths[:, None],
        positions=pad_sequence(positions, batch_first=True),
    )


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Characters that a text condition knows, in the order of their numbers."""

    characters: str
    lowercase: bool = True

    def unknown(self, text: str) -> str:
        """The text's characters that are not in the vocabulary, each once."""
        return "".join(sorted(set(self._fold(text)) - set(self.characters)))

    def encode(self, text: str) -> Tensor:
        """(L,) int64. Raises UserError for an empty text or an unknown character."""
        if not text.strip():
            raise UserError("the text is empty: give at least one word")
        if unknown := self.unknown(text):
            known = "".join(sorted(self.characters))
            raise UserError(f"text {text!r} has characters outside the vocabulary: {unknown!r}; known are {known!r}")
        return torch.tensor([self.characters.index(c) for c in self._fold(text)], dtype=torch.int64)

    def clean(self, text: str) -> str:
        """The text without its unknown characters."""
        unknown = self.unknown(text)
        return "".join(c for c in self._fold(text) if c not in unknown)

    def _fold(self, text: str) -> str:
        text = " ".join(text.split())
        return text.lower() if self.lowercase else text


@dataclass(frozen=True, slots=True)
class TextLength:
    """How many media tokens a text takes: a straight line fitted to the corpus."""

    tokens_per_character: float
    tokens_at_start: float

    @classmethod
    def fit(cls, characters: Sequence[int], num_tokens: Sequence[int]) -> TextLength:
        """Least squares over the corpus; through the mean alone where all texts are of one length."""
        x, y = torch.tensor([characters, num_tokens], dtype=torch.float64)
        spread = ((x - x.mean()) ** 2).sum()
        slope = float(((x - x.mean()) * (y - y.mean())).sum() / spread) if spread else float(y.mean() / x.mean())
        return cls(slope, float(y.mean()) - slope * float(x.mean()))

    def __call__(self, characters: int) -> int:
        return max(1, round(self.tokens_at_start + self.tokens_per_character * characters))
