"""How well a trained model speaks: what a recogniser hears, and how far its speech is from recordings."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import fmean
from typing import TypedDict

import torch
from torch import Tensor

from djepa_mm.core.sampler import Sampler
from djepa_mm.evaluate.distance import mel_cepstral_distortion, stft_distance
from djepa_mm.evaluate.words import Recogniser, plain_words, word_error_rate, word_errors
from djepa_mm.generation.pipeline import Pipeline
from djepa_mm.media.mel import LogMel
from djepa_mm.media.sounds import Sounds
from djepa_mm.speech.english import normalize
from djepa_mm.types import Progress, Tokenizer, UserError


class Sentence(TypedDict):
    """One sentence, in plain words, and what was heard of it."""

    text: str
    heard: str
    errors: int
    seconds: float
    """Length of the generated speech."""


class RecordingFigures(TypedDict):
    """What can be reached at best. `vocoder_*`: the recordings after the tokenizer's encode and decode, which is what a
    perfect model would give."""

    word_error_rate: float
    """Of the recordings as they are: the recogniser's own errors."""
    vocoder_word_error_rate: float
    vocoder_stft_distance: float
    vocoder_mel_cepstral_distortion_db: float
    vocoder_real_time_factor: float
    """Seconds that decode takes for a second of sound."""


class SpeechFigures(TypedDict):
    """Figures over all sentences, ready for JSON. Rates are shares, not percent."""

    sentences: int
    words: int
    word_error_rate: float
    seconds: float
    """Length of all generated speech."""
    real_time_factor: float
    """Seconds that sampling and decoding take for a second of sound."""
    mel_cepstral_distortion_db: float | None
    """Between generated speech and recordings, warped in time; None without recordings."""
    length_error: float | None
    """Mean of |generated − recorded| / recorded; None without recordings."""
    recordings: RecordingFigures | None
    each: list[Sentence]


def evaluate_speech(
    pipeline: Pipeline,
    texts: Sequence[str],
    recordings: Sequence[Tensor] | None,
    recogniser: Recogniser,
    sampler: Sampler | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    *,
    baseline: bool = True,
    batch_size: int = 32,
) -> SpeechFigures:
    """Speak the texts, let the recogniser hear them, and compare with the recordings where there are some.

    recordings: a waveform (samples,) in [-1, 1] for each text, at the tokenizer's rate. sampler: the recipe's own by
    default. progress: counts sentences, each once when it is spoken and once at each hearing. baseline: measure the
    recordings themselves, too. Raises UserError for a model of other media, and for texts that it cannot speak or that
    hold no words.
    """
    rate_hz = _sounds(pipeline.tokenizer).sample_rate_hz
    log_mel, references = LogMel(rate_hz), _references(texts)
    tally = _Tally(len(texts) * (4 if recordings is not None and baseline else 2), progress)

    began = time.perf_counter()
    requests = pipeline.requests([{"text": text} for text in texts], seed=seed)
    generated = pipeline(requests, sampler=sampler, batch_size=batch_size, progress=tally.sampling(len(texts)))
    elapsed_s = time.perf_counter() - began

    seconds = [len(wave) / rate_hz for wave in generated]
    heard = _hear(generated, recogniser, rate_hz, tally)
    pairs = list(zip(recordings, generated, strict=True)) if recordings is not None else []
    known = None
    if recordings is not None and baseline:
        known = evaluate_recordings(
            pipeline.tokenizer, texts, recordings, recogniser, tally.next, device=pipeline.device
        )
    return {
        "sentences": len(texts),
        "words": sum(len(reference.split()) for reference in references),
        "word_error_rate": word_error_rate(references, heard),
        "seconds": sum(seconds),
        "real_time_factor": elapsed_s / sum(seconds),
        "mel_cepstral_distortion_db": fmean(mel_cepstral_distortion(a, b, log_mel) for a, b in pairs)
        if pairs
        else None,
        "length_error": fmean(abs(len(b) - len(a)) / len(a) for a, b in pairs) if pairs else None,
        "recordings": known,
        "each": [
            {"text": text, "heard": words, "errors": word_errors(text, words), "seconds": length}
            for text, words, length in zip(references, heard, seconds, strict=True)
        ],
    }


def evaluate_recordings(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    recordings: Sequence[Tensor],
    recogniser: Recogniser,
    progress: Progress | None = None,
    *,
    device: torch.device | str = "cpu",
) -> RecordingFigures:
    """What the recogniser hears of recordings (samples,), as they are and through the tokenizer; no model.

    progress: counts sentences, each twice. device: where the tokenizer works. Raises UserError for texts without
    words, and for a tokenizer of other media.
    """
    rate_hz = _sounds(tokenizer).sample_rate_hz
    log_mel = LogMel(rate_hz)
    references, tally = _references(texts), _Tally(2 * len(texts), progress)
    heard = _hear(recordings, recogniser, rate_hz, tally)
    decoded, decoding_s = [], 0.0
    for recording in recordings:
        tokens, spec = tokenizer.encode(recording[None].to(device)), tokenizer.spec_of(tuple(recording.shape))
        began = time.perf_counter()
        decoded.append(tokenizer.decode(tokens, spec)[0].float().cpu())
        decoding_s += time.perf_counter() - began
    pairs = list(zip(recordings, decoded, strict=True))
    return {
        "word_error_rate": word_error_rate(references, heard),
        "vocoder_word_error_rate": word_error_rate(references, _hear(decoded, recogniser, rate_hz, tally)),
        "vocoder_stft_distance": fmean(stft_distance(a, b) for a, b in pairs),
        "vocoder_mel_cepstral_distortion_db": fmean(mel_cepstral_distortion(a, b, log_mel) for a, b in pairs),
        "vocoder_real_time_factor": decoding_s * rate_hz / sum(len(recording) for recording in recordings),
    }


def spoken_words(text: str) -> str:
    """The words of a text as they are scored: numbers and abbreviations written out, then plain."""
    return plain_words(normalize(text))


def _sounds(tokenizer: Tokenizer) -> Sounds:
    if not isinstance(tokenizer.media, Sounds):
        raise UserError("this model does not speak: its tokenizer is not for waveforms")
    return tokenizer.media


def _references(texts: Sequence[str]) -> list[str]:
    references = [spoken_words(text) for text in texts]
    word_error_rate(references, references)  # raises now, before the work, where there are no words
    return references


def _hear(waves: Sequence[Tensor], recogniser: Recogniser, rate_hz: int, tally: _Tally) -> list[str]:
    heard = []
    for wave in waves:
        heard.append(spoken_words(recogniser.hear(wave, rate_hz)))
        tally.at(tally.done + 1)
    return heard


class _Tally:
    """Reports progress in sentences, over sampling and hearing."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.done, self.total, self.progress = 0, total, progress

    def at(self, done: int) -> None:
        self.done = done
        if self.progress is not None:
            self.progress(done, self.total)

    def next(self, done: int, total: int) -> None:
        """One sentence more, whatever part of the work counts it."""
        self.at(self.done + 1)

    def sampling(self, sentences: int) -> Progress:
        return lambda step, steps: self.at(step * sentences // steps)
