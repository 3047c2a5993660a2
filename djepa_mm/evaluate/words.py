"""Word error rate, and recognisers that turn speech into words: pocketsphinx without a network, or a Whisper."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from djepa_mm.types import UserError
from djepa_mm.weights import hub_reach

RECOGNISER_RATE_HZ = 16_000  # of pocketsphinx' English model and of every Whisper
PEAK = 0.7
WORD_INSERTION_PENALTY = 1e-3  # fewer invented words than pocketsphinx' default gives
WHISPER_SECONDS = 30  # that a Whisper hears at once

INSTALL = 'pip install "djepa-mm[evaluate]"'


# --- scoring


def plain_words(text: str) -> str:
    """Lower-case words with one space between them; a hyphen parts words, an apostrophe within a word stays."""
    text = re.sub(r"[-–—/]", " ", text.lower().replace("’", "'"))
    text = re.sub(r"(?<!\w)'|'(?!\w)", "", re.sub(r"[^\w\s']|_", "", text))
    return " ".join(text.split())


def word_error_rate(references: Sequence[str], heard: Sequence[str]) -> float:
    """Word edits over words: (substitutions + deletions + insertions) / words of the references.

    Compares words as they are written: take `plain_words` of both sides first. Raises UserError for references without
    a word.
    """
    words = sum(len(reference.split()) for reference in references)
    if not words:
        raise UserError("no words to compare: a word error rate needs texts with words in them")
    return sum(word_errors(r, h) for r, h in zip(references, heard, strict=True)) / words


def word_errors(reference: str, heard: str) -> int:
    """The fewest substitutions, deletions and insertions of words that lead from one text to the other."""
    from torchaudio.functional import edit_distance

    return edit_distance(reference.split(), heard.split())


# --- recognisers


class Recogniser(Protocol):
    def hear(self, waveform: Tensor, sample_rate_hz: int) -> str:
        """(samples,) in [-1, 1] -> the words heard, one space between them."""
        ...


def recogniser(name: str, texts: Sequence[str]) -> Recogniser:
    """A recogniser by name.

    name: `grammar`, the words of the texts in any order; `sentences`, one of the texts, whole; `language-model`, any
    English; else a Whisper, as a folder or as its name on the hub. Raises UserError where it cannot be had.
    """
    if name == "grammar":
        return GrammarRecogniser(sorted({word for text in texts for word in plain_words(text).split()}))
    if name == "sentences":
        return SentenceRecogniser(texts)
    if name == "language-model":
        return LanguageModelRecogniser()
    return WhisperRecogniser(name)


def known_words(words: Iterable[str]) -> set[str]:
    """Those of the words that pocketsphinx' dictionary has, so that a grammar can hold them."""
    dictionary = _decoder(lm=None)
    return {word for word in words if dictionary.lookup_word(word) is not None}


class _Pocketsphinx:
    """pocketsphinx with its packaged English sounds, hearing what a JSGF rule allows, or else any English.

    It gets used to a voice, so what it hears depends a little on what it has heard before.
    """

    def __init__(self, rule: str | None = None, words: Sequence[str] = (), **options: Any) -> None:
        """words: those of the rule. options: the decoder's. Raises UserError for words that the dictionary lacks."""
        if rule is None:
            self.decoder = _decoder(**options)
            return
        if not words:
            raise UserError("a recogniser's grammar needs words; the texts hold none")
        if unknown := sorted(set(words) - known_words(words)):
            raise UserError(f"not in pocketsphinx' dictionary: {', '.join(unknown[:10])}; use another recogniser")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "words.gram"
            path.write_text(f"#JSGF V1.0; grammar words; public <words> = {rule} ;")
            self.decoder = _decoder(jsgf=str(path), **options)

    def hear(self, waveform: Tensor, sample_rate_hz: int) -> str:
        """(samples,) in [-1, 1] -> the words heard, one space between them."""
        sound = _for_recogniser(waveform, sample_rate_hz)
        sound = sound * (PEAK / sound.abs().max().clamp_min(1e-5))
        self.decoder.start_utt()
        self.decoder.process_raw((sound * 32767).to(torch.int16).numpy().tobytes(), full_utt=True)
        self.decoder.end_utt()
        hypothesis = self.decoder.hyp()
        return hypothesis.hypstr if hypothesis else ""


class LanguageModelRecogniser(_Pocketsphinx):
    """pocketsphinx with its packaged language model: any English. It errs on clear speech too: give its own rate."""

    def __init__(self) -> None:
        super().__init__()


class GrammarRecogniser(_Pocketsphinx):
    """pocketsphinx, listening for one or more of the given words in any order."""

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__(f"( {' | '.join(words)} )+", words, wip=WORD_INSERTION_PENALTY)


class SentenceRecogniser(_Pocketsphinx):
    """pocketsphinx, listening for one of the given sentences, whole; it gives them as plain words."""

    def __init__(self, sentences: Sequence[str]) -> None:
        plain = sorted({plain_words(sentence) for sentence in sentences} - {""})
        words = [word for sentence in plain for word in sentence.split()]
        # No second search: it would end amid a sentence now and then.
        super().__init__(" | ".join(plain), words, wip=1.0, bestpath=False)


class WhisperRecogniser:
    """A Whisper through transformers (Radford et al. 2022, arXiv 2212.04356), in English, without sampling.

    name: a folder, or a name on the hub such as `openai/whisper-base`. Raises UserError where it is neither.
    """

    def __init__(self, name: str | Path, device: torch.device | str = "cpu") -> None:
        try:
            from transformers import AutoConfig, WhisperForConditionalGeneration, WhisperProcessor
            from transformers.utils import logging
        except ImportError as error:
            raise UserError(f"a Whisper needs transformers: {INSTALL}") from error
        known = "grammar, sentences, language-model, a Whisper's folder or its name on the hub"
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            reach = hub_reach(str(name))
            kind = AutoConfig.from_pretrained(name, **reach).model_type
            if kind != "whisper":
                raise UserError(f"{name}: not a Whisper but a model of type {kind!r}; known recognisers: {known}")
            self.processor = WhisperProcessor.from_pretrained(name, **reach)
            self.model = WhisperForConditionalGeneration.from_pretrained(name, **reach).eval().to(device)
        except (OSError, ValueError, TypeError, KeyError) as error:
            if isinstance(error, UserError):
                raise
            detail = " ".join(str(error).split())[:200]
            raise UserError(f"no recogniser {str(name)!r} ({detail}); known: {known}") from None

    @torch.inference_mode()
    def hear(self, waveform: Tensor, sample_rate_hz: int) -> str:
        """(samples,) in [-1, 1] -> the text heard, with its punctuation; every 30 s by themselves."""
        heard = []
        spoken = {"language": "en", "task": "transcribe"} if self.model.generation_config.is_multilingual else {}
        for part in _for_recogniser(waveform, sample_rate_hz).split(WHISPER_SECONDS * RECOGNISER_RATE_HZ):
            inputs = self.processor(part.numpy(), sampling_rate=RECOGNISER_RATE_HZ, return_tensors="pt")
            ids = self.model.generate(inputs.input_features.to(self.model.device), do_sample=False, **spoken)
            heard.append(self.processor.batch_decode(ids, skip_special_tokens=True)[0])
        return " ".join(" ".join(heard).split())


def _for_recogniser(waveform: Tensor, sample_rate_hz: int) -> Tensor:
    """(samples,) -> (samples',) at the recognisers' rate, on the CPU."""
    from torchaudio.functional import resample

    return resample(waveform.float().cpu(), sample_rate_hz, RECOGNISER_RATE_HZ)


def _decoder(**options: Any) -> Any:
    try:
        from pocketsphinx import Decoder
    except ImportError as error:
        raise UserError(f"this recogniser needs pocketsphinx: {INSTALL}") from error
    return Decoder(loglevel="FATAL", **options)
