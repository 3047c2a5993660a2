"""From texts to the numbers of their symbols: characters or phonemes."""

from __future__ import annotations

import string
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from djepa_mm.errors import UserError
from djepa_mm.speech.english import normalize
from djepa_mm.speech.espeak import phonemes

READABLE = string.ascii_letters + string.digits + string.punctuation + " "  # what espeak-ng's English reads
MOST_SHOWN = 500  # characters of a text in an error
MARKS = '.,;:!?"()[]{}-'


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
            raise self.unknown_error(text, unknown)
        read = self.read(text)
        if self.phonemes:
            (read,) = phonemes([read])
        numbers = [self.symbols.index(c) for c in read if c in self.symbols]
        if not numbers:
            raise UserError(f"text {text!r} has no symbol that the model knows")
        return torch.tensor(numbers, dtype=torch.int64)

    def unknown_error(self, text: str, unknown: str) -> UserError:
        """What to raise where those characters of a text are not known."""
        text, unknown = (one if len(one) <= MOST_SHOWN else f"{one[:MOST_SHOWN]}…" for one in (text, unknown))
        known = "".join(sorted(READABLE if self.phonemes else self.symbols))
        return UserError(
            f"text {text!r} has characters outside the vocabulary: {unknown!r}; known are {known!r}; "
            "leave them out (generate does with --unknown drop)"
        )

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
