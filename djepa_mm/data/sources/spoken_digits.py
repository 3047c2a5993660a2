"""Speech that needs no download: strings of digit words spoken by espeak-ng, which comes inside a package."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import soundfile
from pydantic import NonNegativeInt, PositiveInt

from djepa_mm.data.cache import corpus_folder, made_whole
from djepa_mm.data.sources.ljspeech import LJSpeech, LJSpeechConfig
from djepa_mm.speech import espeak
from djepa_mm.types import Progress, SourceConfig, UserError

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
VOICE = "en-us+klatt4"  # of espeak-ng's voices the one that a speech recogniser understands without a mistake
WORDS_PER_MINUTE = 130
HELD_OUT, HELD_OUT_SEED = 100, 1  # strings that `build_held_out` keeps for evaluation


class SpokenDigitsConfig(SourceConfig):
    """Strings of digits ("three one zero") in a clear synthetic voice, 22,050 Hz."""

    source: Literal["spoken-digits"]
    made: ClassVar[bool] = True
    count: PositiveInt = 2000
    min_words: PositiveInt = 1
    max_words: PositiveInt = 5
    seed: NonNegativeInt = 0
    root: str | None = None
    """Folder to keep corpora in; by default the user's cache."""

    @property
    def folder(self) -> Path:
        """Where the corpus of these settings lies, or will."""
        settings = f"{self.model_dump_json(exclude={'root'})} {VOICE} {WORDS_PER_MINUTE}"
        return corpus_folder("spoken-digits", settings, self.root)

    def build(self) -> LJSpeech:
        """Read the corpus; speak it first where this is its first use."""
        if not self.folder.exists():
            make_corpus(_strings(self), self.folder)
        return self._read(self.folder)

    def build_held_out(self) -> LJSpeech:
        """HELD_OUT unseen strings of 3 words or more, where the corpus has such."""
        folder = self.folder.with_name(f"{self.folder.name}-held-out")
        if not folder.exists():
            texts = unseen_strings(self, HELD_OUT, min(3, self.max_words), self.max_words, HELD_OUT_SEED)
            make_corpus(texts, folder)
        return self._read(folder)

    def _read(self, folder: Path) -> LJSpeech:
        return LJSpeechConfig(source="ljspeech", root=str(folder), max_duration_s=float(self.max_words)).build()

    def fetch(self, progress: Progress) -> str:
        """Speak the corpus, unless it is there."""
        if not self.folder.exists():
            make_corpus(_strings(self), self.folder, progress)
        return f"spoken digits are in {self.folder}"


def make_corpus(texts: Sequence[str], out: Path, progress: Progress | None = None) -> None:
    """Speak texts into the folder `out`, in LJSpeech's layout. The folder appears only once it is complete."""
    spoken = espeak.spoken(texts, VOICE, WORDS_PER_MINUTE)
    with made_whole(out) as corpus:
        (corpus / "wavs").mkdir()
        lines = []
        for number, (text, (samples, rate_hz)) in enumerate(zip(texts, spoken, strict=True)):
            name = f"D{number:06}"
            soundfile.write(corpus / "wavs" / f"{name}.wav", samples, rate_hz)
            lines.append(f"{name}|{text}|{text}\n")
            if progress:
                progress(number + 1, len(texts))
        (corpus / "metadata.csv").write_text("".join(lines), encoding="utf-8")


def unseen_strings(config: SpokenDigitsConfig, count: int, min_words: int, max_words: int, seed: int) -> list[str]:
    """Different strings of `min_words` to `max_words` digits that the corpus does not hold."""
    taken = set(_strings(config))
    left = sum(10**n for n in range(min_words, max_words + 1))
    left -= sum(min_words <= len(text.split()) <= max_words for text in taken)
    if count > left:
        raise UserError(f"only {left} strings of {min_words} to {max_words} digits are unseen, not {count}; allow more")
    generator = np.random.default_rng(seed)
    unseen: list[str] = []
    while len(unseen) < count:
        text = _string(generator, min_words, max_words)
        if text not in taken:
            taken.add(text)
            unseen.append(text)
    return unseen


def speak(texts: Iterable[str]) -> list[tuple[np.ndarray, int]]:
    """Samples (int16, mono) and their rate in Hz, for each text. The voice has a little noise, new at every call."""
    return espeak.speak(texts, VOICE, WORDS_PER_MINUTE)


def _strings(config: SpokenDigitsConfig) -> list[str]:
    """The corpus' texts; short ones come more than once."""
    if config.min_words > config.max_words:
        raise UserError(f"data.min_words: {config.min_words} is more than data.max_words, {config.max_words}")
    generator = np.random.default_rng(config.seed)
    return [_string(generator, config.min_words, config.max_words) for _ in range(config.count)]


def _string(generator: np.random.Generator, min_words: int, max_words: int) -> str:
    """Digit words, as many as any other number of them, each digit as likely as any other."""
    return " ".join(WORDS[d] for d in generator.integers(10, size=generator.integers(min_words, max_words + 1)))
