"""Runs of version afa075e, whose checkpoints had format 2: they load, generate what they did, and go on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from djepa_mm.errors import UserError
from djepa_mm.generation.pipeline import Pipeline
from djepa_mm.recipe.load import load_recipe
from djepa_mm.training.djepa import train
from djepa_mm.weights import find_checkpoint, read_state, read_tensors

OLD = Path(__file__).parent / "digits-format-2"  # three steps of a tiny `digits`, by that version
SAME = {"atol": 1e-5, "rtol": 1e-5}  # not to the bit: it was made on another machine


def test_an_old_checkpoint_generates_what_it_did() -> None:
    pipeline = Pipeline.load(OLD)
    assert pipeline.condition.state() == {"classes": list("0123456789")}
    expected = load_file(OLD / "generated-at-3.safetensors")
    for n, media in enumerate(pipeline(pipeline.examples(4, (), 3))):
        torch.testing.assert_close(media, expected[str(n)], **SAME)


def test_an_old_run_goes_on_as_that_version_went_on(tmp_path: Path) -> None:
    shutil.copytree(OLD, tmp_path / "run")
    outcome = train(load_recipe(OLD / "recipe.yaml"), tmp_path / "run", resume=True)
    assert outcome.step == 5
    found = read_tensors(find_checkpoint(tmp_path / "run"), "averaged")
    expected = load_file(OLD / "averaged-at-5.safetensors")
    assert {key.replace("conditioner.", "embedder.") for key in expected} == found.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key.replace("conditioner.", "embedder.")], tensor, **SAME)
    assert read_state(find_checkpoint(tmp_path / "run"))["cursor"] == {
        "epoch": 0,
        "batch": 5,
        "readers": [],
        "before": 0,
    }


def test_a_checkpoint_that_lacks_something_is_one_line(tmp_path: Path) -> None:
    shutil.copytree(OLD, tmp_path / "run")
    checkpoint = find_checkpoint(tmp_path / "run")
    weights = load_file(checkpoint / "averaged.safetensors")
    without = {name: tensor for name, tensor in weights.items() if not name.startswith("tokenizer.")}
    save_file(without, checkpoint / "averaged.safetensors")
    with pytest.raises(UserError, match=rf"^{checkpoint}: [^\n]*damaged[^\n]*$"):
        Pipeline.load(tmp_path / "run")
    save_file(weights, checkpoint / "averaged.safetensors")
    (checkpoint / "state.json").write_text('{"format": 3}')
    with pytest.raises(UserError, match=rf"^{checkpoint}: [^\n]*damaged[^\n]*$"):
        Pipeline.load(tmp_path / "run")
