"""espeak-ng, which comes inside a package: texts to sound, and texts to phonemes.

One machine for each process, started at its first use. Calls may take turns, also from several threads and from both
sides of a fork: each sets its own voice.
"""

from __future__ import annotations

import ctypes
import re
import threading
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, lru_cache

import numpy as np

from djepa_mm.types import UserError

PHONEMES = " !,.:;?abdefhijklmnoprstuvwxzæçðŋɐɑɔəɚɛɜɡɪɬɹɾʃʊʌʒʔʲˈˌːθᵻ"
"""Each symbol that `phonemes` can give for English text in the voice en-us; a length mark is a symbol of its own."""

# espeak-ng's speak_lib.h
AUDIO_OUTPUT_SYNCHRONOUS = 2
ESPEAK_RATE = 1
POS_CHARACTER = 1
CHARS_UTF8 = 1
PHONEMES_IPA = 2

_QUOTES = re.compile(r"[\"“”„«»‹›()\[\]{}<>`]")
_DASH = re.compile(r"\s*(?:-{2,}|[–—]|(?<!\S)-(?!\S))\s*")
# A mark ends a clause, except within "10,000", "3:45", "3.5" and after an abbreviation such as "a.m." amid the text.
_MARKS = re.compile(r"((?:[,;:!?](?!\d)|(?:(?<!\w\.\w)\.|\.(?=\s*$))(?=[\s,.;:!?]|$))+)")
_LANGUAGE = re.compile(r"\([a-z]{2,3}(?:-[a-z0-9-]+)?\)")  # espeak-ng's note that a word is of another language


def speak(texts: Iterable[str], voice: str, words_per_minute: int) -> list[tuple[np.ndarray, int]]:
    """(samples,) int16, mono, and their rate in Hz, for each text. Some voices have a little noise, new at every call.

    Raises UserError where espeak-ng is not installed or lacks the voice.
    """
    return list(spoken(texts, voice, words_per_minute))


def spoken(texts: Iterable[str], voice: str, words_per_minute: int) -> Iterator[tuple[np.ndarray, int]]:
    """As `speak`, one text at a time."""
    machine = _machine()
    for text in texts:
        encoded = text.encode() + b"\0"
        with machine.turn:
            machine.set_voice(voice)
            machine.library.espeak_SetParameter(ESPEAK_RATE, words_per_minute, 0)
            machine.pieces.clear()
            machine.library.espeak_Synth(encoded, len(encoded), 0, POS_CHARACTER, 0, CHARS_UTF8, None, None)
            machine.library.espeak_Synchronize()
            samples = np.concatenate([np.zeros(0, np.int16), *machine.pieces])
        yield samples, machine.rate_hz


def phonemes(texts: Iterable[str], voice: str = "en-us") -> list[str]:
    """Each text in the International Phonetic Alphabet: "Hello, world!" is "həlˈoʊ, wˈɜːld!".

    Stress marks stay, one space parts words (espeak-ng joins a few small ones: "of the" is "ʌvðə"), and the marks
    , . ; : ! ? stay behind their clauses, the last of several. A dash between words counts as a comma; quotes and
    brackets go. In the voice en-us all that comes out is in `PHONEMES`. For numbers and abbreviations the text had
    better be normalised first. Raises UserError where espeak-ng is not installed or lacks the voice.
    """
    return [_phonemes(text, voice) for text in texts]


@lru_cache(maxsize=100_000)
def _phonemes(text: str, voice: str) -> str:
    text = _QUOTES.sub(" ", unicodedata.normalize("NFC", text).replace("’", "'").replace("…", ". "))
    clauses: list[tuple[str, str]] = []
    parts = [*_MARKS.split(_DASH.sub(", ", text)), ""]
    for clause, marks in zip(parts[::2], parts[1::2], strict=True):
        if any(c.isalnum() for c in clause):
            clauses.append((_machine().phonemes(clause, voice), marks[-1:]))
        elif clauses and marks:
            clauses[-1] = clauses[-1][0], marks[-1]
    return " ".join(ipa + mark for ipa, mark in clauses if ipa)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Machine:
    library: ctypes.CDLL
    rate_hz: int
    pieces: list[np.ndarray]  # of the sound being made, int16
    keep: object  # the callback that fills `pieces`; it must live as long as the library
    turn: threading.Lock = field(default_factory=threading.Lock)

    def set_voice(self, voice: str) -> None:
        if self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise UserError(f"espeak-ng has no voice {voice!r}; a usual one is 'en-us'")

    def phonemes(self, clause: str, voice: str) -> str:
        """One clause in IPA, without combining signs."""
        buffer = ctypes.create_string_buffer(clause.encode())
        rest = ctypes.c_void_p(ctypes.addressof(buffer))  # espeak-ng moves it on, and to null at the end
        found = []
        with self.turn:
            self.set_voice(voice)
            while rest.value:
                found.append(self.library.espeak_TextToPhonemes(ctypes.byref(rest), CHARS_UTF8, PHONEMES_IPA).decode())
        ipa = _LANGUAGE.sub("", " ".join(found))
        ipa = "".join(c for c in ipa if unicodedata.category(c) not in ("Mn", "Cf"))
        return " ".join(ipa.split())


@cache
def _machine() -> _Machine:
    try:
        import espeakng_loader
    except ImportError as error:
        raise UserError('espeak-ng is not installed: pip install "djepa-mm[speech]"') from error
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    pieces: list[np.ndarray] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int16), ctypes.c_int, ctypes.c_void_p)
    def keep(samples: ctypes._Pointer[ctypes.c_int16], count: int, events: int) -> int:
        if count:
            pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0  # go on

    rate_hz = library.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
    assert rate_hz > 0, "espeak-ng did not find its data"
    library.espeak_SetSynthCallback(keep)
    return _Machine(library=library, rate_hz=rate_hz, pieces=pieces, keep=keep)
