"""Class and text conditions -> condition tokens at the head of the context encoder's sequence.

B batch, K buffer tokens, L condition items (1 class, or the text's characters), D model width.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from djepa_mm.speech.english import normalize
from djepa_mm.speech.espeak import phonemes
from djepa_mm.types import Condition, UserError

READABLE = string.ascii_letters + string.digits + string.punctuation + " "  # what espeak-ng's English reads
MARKS = '.,;:!?"()[]{}-'
FINAL = 4  # symbols; of 1, 2, 3, 4 and 6 it leaves the least error on spoken digits, 3 and 4 on sentences
RIDGE_STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0, 1e3, 1e4, 1e6)
TextLayout = Literal["paced", "stretched", "plain"]


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


def text_condition(texts: Sequence[Tensor], num_tokens: Sequence[int], layout: TextLayout, pace: Pace) -> Condition:
    """Texts of a batch, each (L_b,) int64, padded.

    Layout `paced` lays the symbols along the time axis of their media's tokens, each as far as it is expected to last;
    `stretched` lays them there evenly; `plain` counts 0, 1, 2, … The first two give the alignment a good start.
    """
    positions = []
    for text, tokens in zip(texts, num_tokens, strict=True):
        place = torch.arange(len(text), dtype=torch.float32)
        if layout == "paced":
            place = pace.centres(text) * tokens - 0.5
        elif layout == "stretched":
            place = (place + 0.5) * tokens / len(text) - 0.5
        positions.append(torch.stack([place, torch.zeros_like(place), torch.zeros_like(place)], dim=-1))
    lengths = torch.tensor([len(text) for text in texts])
    return Condition(
        ids=pad_sequence(list(texts), batch_first=True),
        valid=torch.arange(int(lengths.max())) < lengths[:, None],
        positions=pad_sequence(positions, batch_first=True),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """From a text to the numbers of its symbols, in three steps: normalise, (phonemes,) look up.

    symbols: in the order of their numbers. english: write numbers, abbreviations and the like out as English words.
    phonemes: the symbols are espeak-ng's phonemes instead of the text's own characters.
    """

    symbols: str
    lowercase: bool = True
    english: bool = False
    phonemes: bool = False

    def read(self, text: str) -> str:
        """The text as it is read: numbers as words, one space between words, folded to lower case.

        Of the marks that only part words and sentences, those that are no symbols are left out."""
        return _read(self, text)

    def unknown(self, text: str) -> str:
        """Characters of the text as it is read that are not known, each once."""
        known = READABLE if self.phonemes else self.symbols
        return "".join(sorted(set(self.read(text)) - set(known)))

    def encode(self, text: str) -> Tensor:
        """(L,) int64. Raises UserError for a text without a word and for unknown characters, which it names.

        Of the phonemes of known characters, those that are no symbols are left out."""
        if not any(c.isalnum() for c in text):
            raise UserError(f"the text {text!r} is empty: give at least one word")
        if unknown := self.unknown(text):
            known = "".join(sorted(READABLE if self.phonemes else self.symbols))
            raise UserError(
                f"text {text!r} has characters outside the vocabulary: {unknown!r}; known are {known!r}; "
                "leave them out (generate does with --unknown drop)"
            )
        read = self.read(text)
        if self.phonemes:
            (read,) = phonemes([read])
        numbers = [self.symbols.index(c) for c in read if c in self.symbols]
        if not numbers:
            raise UserError(f"text {text!r} has no symbol that the model knows")
        return torch.tensor(numbers, dtype=torch.int64)

    def clean(self, text: str) -> str:
        """The text as it is read, without its unknown characters."""
        unknown = self.unknown(text)
        return " ".join("".join(c for c in self.read(text) if c not in unknown).split())


@lru_cache(maxsize=100_000)  # a training reads each text again in every epoch
def _read(vocabulary: Vocabulary, text: str) -> str:
    text = normalize(text) if vocabulary.english else text
    if not vocabulary.phonemes:
        text = "".join(" " if c in MARKS and c not in vocabulary.symbols else c for c in text)
    text = " ".join(text.split())
    return text.lower() if vocabulary.lowercase else text


@dataclass(frozen=True, slots=True)
class Pace:
    """How many media tokens each symbol of a text is expected to take; fitted to the corpus.

    per_symbol: by the symbol's number in the vocabulary. margin: at the two ends of an item together. longest: the
    most tokens that an item of the corpus has. final: what a symbol takes more, or less, among the last FINAL of a
    text, where speech changes its pace; none where it was not fitted.
    """

    per_symbol: tuple[float, ...]
    margin: float = 0.0
    longest: int = 0
    final: tuple[float, ...] = ()

    @classmethod
    def fit(cls, texts: Sequence[Tensor], num_tokens: Sequence[int], vocabulary_size: int) -> Pace:
        """Least squares of the lengths on how often each symbol occurs, in all and at the end.

        First a straight line on the number of symbols, then each symbol's difference from it by ridge regression, of
        the strength whose leave-one-out errors are the least: rare symbols stay near the line.
        """

        def count(texts: Sequence[Tensor]) -> Tensor:  # (items, symbols)
            return torch.stack([torch.bincount(t, minlength=vocabulary_size) for t in texts]).double()

        counts = count(texts)
        y = torch.tensor(num_tokens, dtype=torch.float64)
        x = counts.sum(1)
        spread = ((x - x.mean()) ** 2).sum()
        slope = ((x - x.mean()) * (y - y.mean())).sum() / spread if spread else y.mean() / x.mean()
        slope = slope.clamp_min(1e-3)
        margin = (y.mean() - slope * x.mean()).clamp_min(0.0)
        rest = y - margin - slope * x
        counts = torch.cat([counts, count([t[-FINAL:] for t in texts])], dim=1)
        weights = _ridge(counts, rest, min(RIDGE_STRENGTHS, key=lambda s: _left_out_error(counts, rest, s)))
        symbols, final = weights.split(vocabulary_size)
        return cls(tuple((slope + symbols).tolist()), float(margin), max(num_tokens), tuple(final.tolist()))

    def tokens(self, text: Tensor) -> float:
        """(L,) int64 -> media tokens, at least 1."""
        return max(1.0, self.margin + float(self._widths(text).sum()))

    def centres(self, text: Tensor) -> Tensor:
        """(L,) int64 -> (L,) the middle of each symbol as a share of the item's length, rising from 0 to 1."""
        widths = self._widths(text).clamp_min(0.0)  # a silent letter may take from its neighbours, as in "eight"
        total = self.margin + widths.sum()
        if total <= 0:
            return (torch.arange(len(text)) + 0.5) / len(text)
        return (self.margin / 2 + widths.cumsum(0) - widths / 2) / total

    def _widths(self, text: Tensor) -> Tensor:
        widths = torch.tensor(self.per_symbol)[text]
        if self.final:
            widths[-FINAL:] += torch.tensor(self.final)[text[-FINAL:]]
        return widths


def _ridge(inputs: Tensor, outputs: Tensor, strength: float) -> Tensor:
    """inputs (items, symbols), outputs (items,) -> (symbols,) weights."""
    return torch.linalg.solve(_regularised(inputs, strength), inputs.T @ outputs)


def _left_out_error(inputs: Tensor, outputs: Tensor, strength: float) -> float:
    """Mean square of ridge regression's error for each item when it is left out of the fit, in closed form."""
    leverage = (inputs * torch.linalg.solve(_regularised(inputs, strength), inputs.T).T).sum(1)
    errors = (outputs - inputs @ _ridge(inputs, outputs, strength)) / (1 - leverage).clamp_min(1e-6)
    return float(errors.square().mean())


def _regularised(inputs: Tensor, strength: float) -> Tensor:
    return inputs.T @ inputs + strength * torch.eye(inputs.shape[1], dtype=inputs.dtype)
