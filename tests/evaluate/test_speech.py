"""The evaluation of a small real run, hardly trained."""

from __future__ import annotations

import json
from copy import copy

import pytest
import torch
from torch import Tensor

from djepa_mm.data.sources.spoken_digits import WORDS, speak
from djepa_mm.evaluate.speech import evaluate_recordings, evaluate_speech, spoken_words
from djepa_mm.evaluate.words import GrammarRecogniser
from djepa_mm.generation.pipeline import Pipeline
from djepa_mm.recipe.load import load_recipe
from djepa_mm.training.djepa import train
from djepa_mm.types import UserError

TEXTS = ["Three one zero", "nine six"]
SMALL = [
    "data.count=4", "model.width=32", "model.depth=1", "model.heads=2", "head.width=32", "head.blocks=1",
    "head.steps=3", "batch.size=4", "sample.steps=3", "run.sample_every=null", "optim.precision=fp32",
    "optim.steps=1", "optim.minutes=null",
]  # fmt: skip


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("speech")
    recipe = load_recipe("spoken-digits", [*SMALL, f"data.root={folder}"])
    train(recipe, folder / "run")
    return Pipeline.load(folder / "run")


@pytest.fixture(scope="module")
def recordings() -> list[Tensor]:
    return [torch.from_numpy(samples).float() / 32768 for samples, _ in speak(["three one zero", "nine six"])]


def test_figures(pipeline: Pipeline, recordings: list[Tensor]) -> None:
    """They agree with each other, and with what can be counted by hand."""
    progress: list[tuple[int, int]] = []
    hears = GrammarRecogniser(WORDS)
    figures = evaluate_speech(
        pipeline, TEXTS, recordings, hears, progress=lambda done, total: progress.append((done, total))
    )
    assert [one["text"] for one in figures["each"]] == ["three one zero", "nine six"]
    assert figures["sentences"] == 2
    assert figures["words"] == 5
    assert figures["word_error_rate"] == pytest.approx(sum(one["errors"] for one in figures["each"]) / 5)
    assert figures["word_error_rate"] > 0.3  # hardly trained
    assert figures["seconds"] == pytest.approx(sum(one["seconds"] for one in figures["each"]))
    assert figures["real_time_factor"] > 0

    against = figures["recordings"]
    assert against is not None
    assert against["word_error_rate"] == 0
    assert against["vocoder_word_error_rate"] <= 0.2
    assert figures["mel_cepstral_distortion_db"] is not None
    assert 0 < against["vocoder_mel_cepstral_distortion_db"] < figures["mel_cepstral_distortion_db"]
    assert 0 < against["vocoder_stft_distance"] < 5
    assert against["vocoder_real_time_factor"] > 0
    lengths = [len(recording) / 22050 for recording in recordings]
    expected = sum(abs(one["seconds"] - s) / s for one, s in zip(figures["each"], lengths, strict=True)) / 2
    assert figures["length_error"] == pytest.approx(expected)

    assert progress == sorted(progress)
    assert progress[-1] == (8, 8)
    assert json.loads(json.dumps(figures)) == figures

    again = evaluate_recordings(pipeline.tokenizer, TEXTS, recordings, hears)
    timed = {"vocoder_real_time_factor": 0.0}
    assert {**again, **timed} == {**against, **timed}
    lone = evaluate_speech(pipeline, TEXTS, recordings, hears, baseline=False)
    assert lone["recordings"] is None
    assert lone["mel_cepstral_distortion_db"] == figures["mel_cepstral_distortion_db"]


def test_without_recordings(pipeline: Pipeline) -> None:
    """The same speech is heard; the seed decides which."""
    hears = GrammarRecogniser(WORDS)
    lone = evaluate_speech(pipeline, TEXTS, None, hears)
    assert lone["recordings"] is lone["length_error"] is lone["mel_cepstral_distortion_db"] is None
    again = evaluate_speech(pipeline, TEXTS, None, GrammarRecogniser(WORDS))  # one that has heard nothing yet
    assert lone["each"] == again["each"]


def test_what_cannot_be_evaluated(pipeline: Pipeline) -> None:
    hears = GrammarRecogniser(WORDS)
    with pytest.raises(UserError, match="words"):
        evaluate_speech(pipeline, ["..."], None, hears)
    with pytest.raises(UserError):
        evaluate_speech(pipeline, ["jazz"], None, hears)  # letters that the recipe lacks
    pictures = copy(pipeline)
    pictures.tokenizer = load_recipe("digits").tokenizer.build()
    with pytest.raises(UserError, match="does not speak"):
        evaluate_speech(pictures, TEXTS, None, hears)
    with pytest.raises(UserError, match="does not speak"):
        evaluate_recordings(pictures.tokenizer, TEXTS, [], hears)


def test_numbers_are_scored_as_they_are_read() -> None:
    assert spoken_words("In 1455, Mr. Gutenberg!") == spoken_words("in fourteen fifty-five mister gutenberg")
