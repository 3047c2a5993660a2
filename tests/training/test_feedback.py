"""Data feedback in runs: scores move what is sampled, resumed runs go on exactly, and what was sampled can be seen."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import inside

from djepa_mm.data.sources.shapes import ShapesConfig
from djepa_mm.data.words import Words
from djepa_mm.errors import UserError
from djepa_mm.generation.pipeline import Pipeline
from djepa_mm.recipe.load import load_recipe
from djepa_mm.recipe.schema import Recipe
from djepa_mm.runs.checkpoint import differences
from djepa_mm.training.callbacks import Callback
from djepa_mm.training.djepa import train
from djepa_mm.weights import checkpoints, find_checkpoint, read_state

SMALL = {
    "model.width": 32, "model.depth": 1, "model.heads": 2, "head.width": 16, "head.blocks": 1, "head.steps": 2,
    "batch.size": 4, "batch.cache": False, "sample.steps": 2, "optim.minutes": None, "optim.steps": 9,
    "run.sample_every": None, "tokenizer.channels": 3, "run.save_every": 2, "run.keep": 9, "run.samples": 1,
}  # fmt: skip
WANTED = {"label": {"class0": 0.3, "class1": 0.7}, "colours": "uniform"}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes; of five colours in their captions, the first is in three of four."""
    rng, rows = np.random.default_rng(0), []
    for n in range(20):
        file = f"class{n % 4 % 2}/{n}.png"
        (tmp_path / "pictures" / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(tmp_path / "pictures" / file)
        colour = "red" if n % 4 else ("blue", "green", "pink", "black")[n // 4 % 4]
        rows.append(json.dumps({"file": file, "caption": f"a {colour} square"}))
    (tmp_path / "pictures" / "captions.jsonl").write_text("\n".join(rows))
    return tmp_path / "pictures"


def recipe(pictures: Path, **changes: Any) -> Recipe:
    data = {"source": "image-folder", "root": str(pictures), "size": [8, 8], "flip": True}
    return load_recipe("digits", {**SMALL, "data": data, "feedback.wanted": WANTED, **changes})


class Scores(Callback):
    """Red gets better; stop: the run behind the third step."""

    def __init__(self, stop: threading.Event | None = None) -> None:
        self.stop, self.asked = stop, []

    def on_step(self, step: int, progress: float) -> None:
        if self.stop is not None and step == 3:
            self.stop.set()

    def scores(self, step: int, pipeline: Pipeline) -> Mapping[str, float]:
        assert isinstance(pipeline, Pipeline)
        self.asked.append(step)
        return {"red": step / 10, "blue": 0.1}


def test_a_steered_run_goes_on_exactly(pictures: Path, tmp_path: Path) -> None:
    whole = Scores()
    train(recipe(pictures), tmp_path / "whole", callbacks=[whole])
    assert whole.asked == [2, 4, 6, 8]
    stop = threading.Event()
    train(recipe(pictures), tmp_path / "cut", callbacks=[Scores(stop)], stop=stop)
    assert read_state(find_checkpoint(tmp_path / "cut"))["step"] == 3
    train(recipe(pictures), tmp_path / "cut", resume=True, callbacks=[Scores()])
    ours, theirs = (checkpoints(tmp_path / name / "checkpoints") for name in ("whole", "cut"))
    assert [one.name for one in theirs if one.name != "step-00000003"] == [one.name for one in ours]
    for one in ours:
        assert differences(one, tmp_path / "cut" / "checkpoints" / one.name) == []
    began, _ = read_state(ours[-1])["cursor"]["feedback"]
    assert began["factors"]["colours/red"] < 1 < began["factors"]["colours/blue"]
    shown = inside("data", "stats", str(tmp_path / "whole"))
    assert shown.returncode == 0, shown.stderr
    assert all(word in shown.stdout for word in ("colours", "offered", "wanted"))
    with Image.open(tmp_path / "whole" / "data-stats.png") as plot:
        assert plot.width == 960
    rows = json.loads(inside("data", "stats", str(tmp_path / "whole"), "--json").stdout)
    label = {row["name"]: row for row in rows if row["kind"] == "label"}
    assert (label["class0"]["wanted"], label["class1"]["wanted"]) == (0.3, 0.7)
    assert sum(row["items"] for row in label.values()) == 9 * 4
    assert sum(row["sampled"] for row in label.values()) == pytest.approx(1)
    assert sum(row["offered"] for row in label.values()) == pytest.approx(1)
    assert {row["name"]: row["items"] for row in rows if row["kind"] == "size"} == {"8": 36}


def test_a_corpus_may_judge_what_was_generated(pictures: Path, tmp_path: Path) -> None:
    judged = {"feedback.judged": 3, "optim.steps": 3}
    with pytest.raises(UserError, match=r"^feedback\.judged 3: the corpus image-folder cannot judge"):
        train(recipe(pictures, **judged), tmp_path / "refused")
    shapes = {"data": {"source": "shapes", "count": 12}, "tokenizer.size": [32, 32], "tokenizer.patch": 8}
    train(recipe(pictures, **judged, **shapes, **{"feedback.wanted": {"shapes": "uniform"}}), tmp_path / "run")
    _, added = read_state(find_checkpoint(tmp_path / "run"))["cursor"]["feedback"]
    said = [ShapesConfig(source="shapes").build_held_out().entry(n).text for n in range(3)]
    named = {name for text in said for name in Words({})(text or "") if name.startswith("shapes/")}
    assert named
    assert added["factors"].keys() == named


def test_a_run_without_statistics_says_so(pictures: Path, tmp_path: Path) -> None:
    train(recipe(pictures, **{"feedback": None, "optim.steps": 1}), tmp_path / "run")
    found = inside("data", "stats", str(tmp_path / "run"))
    assert found.returncode == 2
    assert "no statistics" in found.stderr
