"""What is read of checkpoints, and what is wrong with those that cannot be read."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from djepa_mm.errors import UserError
from djepa_mm.weights import ANSWER_S, PretrainedVAE, find_checkpoint, load_weights, read_state, read_tensors


def checkpoint(run: Path, step: int, **state: object) -> Path:
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text("name: it\n")
    (folder / "state.json").write_text(json.dumps({"format": 3, "step": step, **state}))
    save_file({"weight": torch.full((2, 3), float(step)), "bias": torch.zeros(2)}, folder / "averaged.safetensors")
    return folder


def test_the_newest_checkpoint_of_a_run_is_found_and_one_is_itself(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such run folder"):
        find_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no checkpoint yet"):
        find_checkpoint(tmp_path)
    old, new = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    assert find_checkpoint(tmp_path) == find_checkpoint(new) == new
    assert find_checkpoint(old) == old
    (tmp_path / "checkpoints" / "step-00000010-good").mkdir()  # a copy that somebody keeps
    (tmp_path / "checkpoints" / "step-best").mkdir()
    assert find_checkpoint(tmp_path) == new
    (new / "recipe.yaml").unlink()
    with pytest.raises(UserError, match=r"recipe.yaml: damaged checkpoint .*delete step-00000010 to go on from step-"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize("number", [2, 3])
def test_this_format_and_the_one_before_are_read(number: int, tmp_path: Path) -> None:
    assert read_state(checkpoint(tmp_path, 5, format=number))["step"] == 5


@pytest.mark.parametrize(("number", "advice"), [(1, "train again"), (4, "upgrade djepa-mm"), (None, "train again")])
def test_other_formats_are_refused_with_the_way_out(number: int | None, advice: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"format {number}, and this version of djepa-mm reads 2 and 3: {advice}$"):
        read_state(checkpoint(tmp_path, 5, format=number))


def test_states_that_were_made_to_harm_are_one_line(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 1)
    wrong: tuple[tuple[str, object], ...] = (
        ("step", -1), ("step", 2**63), ("step", "x"), ("seconds", "x"), ("seconds", -1), ("cursor", 5),
        ("cursor", {"epoch": -1}), ("folder", 5), ("folder", "a\0b"), ("sha256", []), ("sha256", {"a": 5}),
    )  # fmt: skip
    for key, value in wrong:
        (folder / "state.json").write_text(json.dumps({"format": 3, "step": 1, key: value}))
        with pytest.raises(UserError, match=rf"state\.json: damaged checkpoint \({key}[^\n]*$"):
            read_state(folder)
    (folder / "state.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"state\.json: damaged checkpoint \([^\n]*recursion[^\n]*$"):
        read_state(folder)


def test_damaged_files_name_the_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    checkpoint(tmp_path, 1)
    new = checkpoint(tmp_path, 2)
    weights = new / "averaged.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    (new / "state.json").write_text("{")
    advice = r"damaged checkpoint \([^\n]+\); delete step-00000002 to go on from step-00000001$"
    with pytest.raises(UserError, match=advice):
        read_tensors(new, "averaged")
    with pytest.raises(UserError, match=advice):
        read_state(new)
    (new / "state.json").write_text("[]")
    with pytest.raises(UserError, match=advice):
        read_state(new)


def test_weights_are_loaded_in_place_or_put_in_place(tmp_path: Path) -> None:
    tensors = read_tensors(checkpoint(tmp_path, 4), "averaged")
    layer = nn.Linear(3, 2)
    kept = layer.weight
    load_weights(layer, tensors, "here")
    assert layer.weight is kept
    assert (layer.weight == 4).all()
    with torch.device("meta"):
        layer = nn.Linear(3, 2)
    load_weights(layer, tensors, "here", assign=True)
    assert (layer.weight == 4).all()
    with pytest.raises(UserError, match=r"^here: the weights do not fit the recipe: [^\n]*size mismatch[^\n]*$"):
        load_weights(nn.Linear(3, 4), tensors, "here")


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Session:
        def head(self, url: str, timeout: float) -> None:
            asked.append((url, timeout))
            raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.get_session", Session)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"it waits for {seconds} s to try again"))
    vae = PretrainedVAE("nobody/vae", None, classes=("AutoencoderKL",), allow_pickle=False)
    for _ in range(2):
        with pytest.raises(UserError, match=r"^tokenizer\.model: cannot load a VAE from 'nobody/vae' [^\n]*folder or"):
            _ = vae.bare
    assert asked == [("https://huggingface.co", ANSWER_S)]
