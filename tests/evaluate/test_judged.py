"""What fits its text is counted by category and attribute, beside what the tokenizer keeps and real items."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from support import inside
from torch import Tensor

from djepa_mm.data.scenes import CATEGORIES
from djepa_mm.evaluate.judged import evaluate_judged, judged_table, scores
from djepa_mm.evaluate.report import check_measurable
from djepa_mm.generation.pipeline import Pipeline
from djepa_mm.recipe.build import build_model
from djepa_mm.recipe.load import load_recipe
from djepa_mm.training.djepa import train
from djepa_mm.types import Judgement

SMALL = [
    "model.preset=tiny", "model.width=32", "model.depth=1", "model.heads=2", "model.positions=rotary", "head.width=32",
    "head.blocks=1", "head.steps=2", "batch.size=8", "batch.cache=false", "sample.steps=2", "run.sample_every=null",
    "optim.precision=fp32", "optim.steps=1", "optim.minutes=null", "condition={kind: class, buffer_tokens: 2}",
]  # fmt: skip
ONE_SIZE = ["data={source: shapes, count: 30}", "tokenizer={kind: patches, patch: 8, size: [32, 32]}"]
MANY = [
    "data={source: shapes, count: 30, sizes: [24, 40]}",
    "tokenizer={kind: patches, patch: 8, size: [32, 32], vary: true}",
]


def judgement(kind: str, fits: bool, **facts: bool) -> Judgement:
    return Judgement(fits=fits, facts=facts, kind=kind, centre=None)


def test_overall_is_the_mean_of_the_categories() -> None:
    found = scores(
        [
            judgement("colours", True, red=True, circle=True),
            judgement("colours", True, red=True, ring=True),
            judgement("colours", False, red=False, ring=True),
            judgement("counting", False, two=False, ring=False),
        ]
    )
    assert found["items"] == 4
    assert found["categories"] == {"colours": pytest.approx(2 / 3), "counting": 0}
    assert found["overall"] == pytest.approx(1 / 3)
    assert found["attributes"] == {"red": pytest.approx(2 / 3), "circle": 1, "ring": pytest.approx(2 / 3), "two": 0}


def pipeline_of(*overrides: str) -> Pipeline:
    recipe = load_recipe("digits", [*SMALL, *overrides])
    tokenizer, condition = recipe.tokenizer.build(), recipe.condition.build()
    condition.bind(source := recipe.data.build())
    tokenizer.fit(source.read(index).media for index in range(20))
    return Pipeline(recipe, build_model(recipe, tokenizer, condition), tokenizer, condition)


@pytest.mark.parametrize("overrides", [ONE_SIZE, MANY])
def test_sides_and_columns(overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that is perfect but for the first item: pictures at the sizes of the real ones."""
    pipeline = pipeline_of(*overrides)
    data = pipeline.recipe.data
    sides = data.build_held_out(), data.build_unseen()
    real = [side.read(index).media for side in sides for index in range(12)]
    sizes = []

    def perfect(self: Pipeline, requests: Any, **options: Any) -> list[Tensor]:
        sizes.extend(request.size for request in requests)
        return [torch.zeros_like(real[0]), *real[1:]]

    monkeypatch.setattr(Pipeline, "__call__", perfect)
    figures = evaluate_judged(pipeline, data, check_measurable(pipeline), count=12)
    assert figures["items"] == 24
    assert sizes == ([None] * 24 if overrides is ONE_SIZE else [tuple(media.shape[1:]) for media in real])
    seen, unseen = figures["seen"], figures["unseen"]
    assert unseen is not None
    assert seen["real"]["overall"] == seen["reconstructed"]["overall"] == unseen["generated"]["overall"] == 1
    assert list(seen["real"]["categories"]) == list(CATEGORIES)
    assert list(unseen["real"]["categories"]) == list(CATEGORIES[1:])
    assert seen["generated"]["categories"]["single object"] == 0.5
    assert seen["generated"]["overall"] == pytest.approx(5.5 / 6)


def test_a_run_is_measured(tmp_path: Path) -> None:
    recipe = load_recipe("digits", [*SMALL, *ONE_SIZE])
    train(recipe, tmp_path / "run", resume=False, device=torch.device("cpu"), console=Console(quiet=True))
    result = inside("evaluate", str(tmp_path / "run"), "--count", "6")
    assert result.returncode == 0, result.stderr
    figures = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert figures["seen"]["real"]["overall"] == figures["unseen"]["reconstructed"]["overall"] == 1
    assert figures["seen"]["generated"]["overall"] == 0
    assert figures["seconds_per_item"] > 0
    assert len(figures["sha256"]) == 64
    for shown in ("overall", "colour attribution", "reconstructed", "generated, unseen"):
        assert shown in result.stdout
    result = inside("evaluate", str(tmp_path / "run"), "--given", "2")
    assert "frames are for clips" in result.stderr


def test_a_simpler_grammar_has_no_unseen_side(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = pipeline_of("data={source: shapes, count: 30, categories: [single object]}", ONE_SIZE[1])
    data = pipeline.recipe.data
    figures = evaluate_judged(pipeline, data, data.build_held_out(), count=2)
    assert figures["unseen"] is None
    assert len(judged_table(figures, "title").columns) == 4
