"""Speak every text several times and keep what a recogniser understands best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from djepa_mm.conditions.text import TextCondition
from djepa_mm.evaluate.speech import spoken_words
from djepa_mm.evaluate.words import GrammarRecogniser, Recogniser, recogniser, word_errors
from djepa_mm.generation.pipeline import Pipeline
from djepa_mm.generation.request import Request
from djepa_mm.media.sounds import Sounds
from djepa_mm.types import UserError


def recogniser_for(pipeline: Pipeline, name: str, texts: Sequence[str]) -> Recogniser:
    """The recogniser of that name; `auto` listens for the corpus' own words where they are few, else for any English.

    `sentences` listens for one of the texts. Raises UserError where it cannot be had, or where `grammar` is asked for
    and the corpus has too many words."""
    words = pipeline.condition.words if isinstance(pipeline.condition, TextCondition) else ()
    if name == "auto":
        name = "grammar" if words else "language-model"
    if name == "grammar":
        if not words:
            raise UserError("--recogniser grammar: the corpus of this run has too many words; try language-model")
        return GrammarRecogniser(words)
    return recogniser(name, texts)


def best_of(
    pipeline: Pipeline, requests: Sequence[Request], candidates: int, recogniser: Recogniser, **options: Any
) -> list[Tensor]:
    """For every request the candidate with the fewest word errors, the first of equals. A word error rate that is
    measured on the result with the same recogniser flatters it.

    options: as for calling a Pipeline. Raises UserError for media that cannot be heard."""
    sounds = pipeline.tokenizer.media
    if not isinstance(sounds, Sounds) or "text" not in pipeline.condition.keys:
        raise UserError("--candidates: only speech from texts can be judged by a recogniser")
    several = [replace(request, seed=(*request.seed, n)) for request in requests for n in range(candidates)]
    media = pipeline(several, **options)
    kept = []
    for start, request in zip(range(0, len(several), candidates), requests, strict=True):
        words = spoken_words(request.condition["text"])
        group = media[start : start + candidates]
        errors = [word_errors(words, spoken_words(recogniser.hear(item, sounds.sample_rate_hz))) for item in group]
        kept.append(group[errors.index(min(errors))])
    return kept
