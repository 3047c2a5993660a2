"""What frozen encoders make of captions, kept with the latents: training reads what it would have encoded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file
from text_encoders.test_pretrained import KINDS, write_encoder

from djepa_mm.data.check import check_corpus
from djepa_mm.data.encoding import Keeping, encode_corpus
from djepa_mm.data.latents import Latents, file_hash, write_about
from djepa_mm.errors import UserError
from djepa_mm.recipe.load import load_recipe, recipe_data
from djepa_mm.recipe.schema import Recipe
from djepa_mm.runs.checkpoint import differences
from djepa_mm.text_encoders.pretrained import Pretrained
from djepa_mm.training.djepa import train
from djepa_mm.weights import find_checkpoint

pytest.importorskip("transformers")
CAPTIONS = ["a red circle", "two of a blue square", "red", "a  red circle", "green square", "a red circle left of a"]
DIFFERENT = {"a red circle", "two of a blue square", "red", "green square", "a red circle left of a"}
SMALL = {
    "model.width": 32, "model.depth": 1, "model.heads": 2, "head.width": 16, "head.blocks": 1, "head.steps": 2,
    "batch.size": 3, "batch.cache": False, "sample.steps": 2, "optim.minutes": None, "optim.precision": "fp32",
    "optim.steps": 3, "run.sample_every": None, "run.samples": 2, "run.texts": ["red", "green square"],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures with captions, and encoders."""
    folder = tmp_path_factory.mktemp("features")
    (folder / "pictures").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for n, caption in enumerate(CAPTIONS):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(folder / "pictures" / f"{n}.png")
        rows.append(json.dumps({"file": f"{n}.png", "caption": caption}))
    (folder / "pictures" / "captions.jsonl").write_text("\n".join(rows))
    for kind in KINDS:
        write_encoder(folder / kind, kind)
    return folder


def recipe(folder: Path, kind: str = "t5", precision: str = "bf16", **changes: Any) -> Recipe:
    encoder = {"kind": kind, "model": str(folder / kind), "precision": precision}
    sections = {
        "data": {"source": "image-folder", "root": str(folder / "pictures"), "size": [8, 8]},
        "tokenizer": {"kind": "patches", "patch": 4, "channels": 3, "size": [8, 8]},
        "condition": {"kind": "caption", "encoder": encoder},
    }
    return load_recipe("digits", {**SMALL, **sections, **changes})


def on_latents(recipe: Recipe, out: Path, **changes: Any) -> Recipe:
    return load_recipe({**recipe_data(recipe), "data": {"source": "latents", "root": str(out)}}, changes)


def encode(recipe: Recipe, out: Path, **keys: Any) -> bool:
    return encode_corpus(recipe, out, Keeping(shard_items=2), **keys).finished


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def kept(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents with the features of the T5, in three shards."""
    out = tmp_path_factory.mktemp("kept") / "latents"
    assert encode(recipe(folder), out)
    return out


def refuse(self: Pretrained) -> None:
    raise AssertionError("the encoder's weights are loaded")


@pytest.mark.parametrize(("kind", "precision"), [("t5", "bf16"), ("clip", "fp32"), ("sentence", "bf16")])
def test_training_is_the_same_without_the_encoders_weights(
    kind: str, precision: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = recipe(folder, kind, precision)
    assert encode(direct, tmp_path / "latents")
    train(direct, tmp_path / "direct")
    condition = direct.condition.build()
    stored = Latents(tmp_path / "latents").kept_features(condition.made_by)
    assert stored is not None
    assert len(stored.index["key"]) == len(DIFFERENT)  # type: ignore[attr-defined]
    for text in DIFFERENT:
        (features,) = condition.features([text])
        assert features.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
        assert torch.equal(stored(text), features)
        assert stored(text).dtype == features.dtype
    assert stored("a blue circle") is None
    with monkeypatch.context() as without:
        without.setattr(Pretrained, "network", property(refuse))
        train(on_latents(direct, tmp_path / "latents"), tmp_path / "kept")
    assert differences(*(find_checkpoint(tmp_path / name) for name in ("direct", "kept"))) == []
    bound = on_latents(direct, tmp_path / "latents")
    other = bound.condition.build()
    other.bind(bound.data.build())
    assert torch.equal(other.features(["a blue circle"])[0], condition.features(["a blue circle"])[0])
    assert list(other.encoder.kept) == ["a blue circle"], "which alone was encoded"


def test_interrupted_or_shared_out_the_files_are_the_same(folder: Path, kept: Path, tmp_path: Path) -> None:
    for order in ((0, 1), (1, 0)):
        out = tmp_path / f"latents{order}"
        assert [encode(recipe(folder), out, rank=rank, world=2) for rank in order] == [False, True]
        assert files(out) == files(kept)
    seen: list[tuple[int, int]] = []
    cut = tmp_path / "cut"
    assert not encode(recipe(folder), cut, progress=lambda *at: seen.append(at), stopped=lambda: len(seen) > 7)
    assert seen[-1] == (8, 11), "six items and two of five texts"
    with pytest.raises(UserError, match="not complete; go on: djepa-mm encode"):
        Latents(cut)
    assert {name for name in files(cut) if name.startswith("features")} == {"features-00000.safetensors"}
    assert encode(recipe(folder), cut, progress=lambda *at: seen.append(at))
    assert files(cut) == files(kept)
    (cut / "features-00001.safetensors").unlink()
    stamps = {path: path.stat().st_mtime_ns for path in cut.glob("*0*.safetensors")}
    assert encode(recipe(folder), cut)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert files(cut) == files(kept)


def test_latents_from_before_go_on_working_and_get_features_by_encoding_again(
    folder: Path, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, words = tmp_path / "latents", {"kind": "caption", "encoder": {"kind": "words"}}
    assert encode(recipe(folder, condition=words), out)
    assert not [name for name in files(out) if name.startswith("features")]
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("0*")}
    train(on_latents(recipe(folder), out), tmp_path / "encodes")
    assert encode(recipe(folder), out)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert files(out) == files(kept)
    monkeypatch.setattr(Pretrained, "network", property(refuse))
    train(on_latents(recipe(folder), out), tmp_path / "reads")
    assert differences(*(find_checkpoint(tmp_path / name) for name in ("encodes", "reads"))) == []
    train(on_latents(recipe(folder, condition=words), out), tmp_path / "words")  # does not ask for them


def test_features_of_another_encoder_are_refused(folder: Path, kept: Path, tmp_path: Path) -> None:
    write_encoder(tmp_path / "t5", "t5", width=24)
    for changes, message in (
        ({"condition.encoder.precision": "fp32"}, r"condition\.encoder\.precision 'bf16', here it is 'fp32'; make"),
        ({"condition.max_tokens": 5}, r"condition\.max_tokens 256, here it is 5; make them agree, or encode again"),
        (
            {"condition.encoder.model": str(tmp_path / "t5")},
            r"condition\.encoder\.sha256 '\w{12}', here it is '\w{12}'",
        ),
        (
            {"condition.encoder": {"kind": "clip", "model": str(folder / "clip")}},
            r"condition\.encoder\.kind 't5', here it is 'clip'",
        ),
    ):
        with pytest.raises(UserError, match=rf"^data\.root: the latents in [^\n]* were made with {message}"):
            train(on_latents(recipe(folder), kept, **changes), tmp_path / "run")
        begun = r"^--out [^\n]* begun with condition\.[^\n]+; make them agree, or choose another folder$"
        with pytest.raises(UserError, match=begun):
            encode(recipe(folder, **changes), kept)


def test_damaged_features_are_named(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "latents"
    assert encode(recipe(folder), out)
    ours = on_latents(recipe(folder), out)
    runs = (tmp_path / f"run{n}" for n in range(9))
    shard, index = out / "features-00001.safetensors", out / "features.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-20] + bytes(19) + b"\1")
    with pytest.raises(UserError, match=r"features-00001\.safetensors: damaged \(the features of '.*' were changed\)"):
        train(ours, next(runs))
    with pytest.raises(UserError, match=r"features-00001\.safetensors: damaged \(the features of"):
        check_corpus(ours, lambda *_: None)
    shard.unlink()
    with pytest.raises(
        UserError, match=r"features-00001\.safetensors: damaged \(missing\); delete it and encode again"
    ):
        train(ours, next(runs))
    shard.write_bytes(whole)
    about, arrays = json.loads((out / "latents.json").read_text()), load_file(index)
    del about["sha256"]
    for name, wrong in (("key", 0), ("place", 99), ("begin", 2**40), ("length", 0)):
        save_file({**arrays, name: np.full_like(arrays[name], wrong)}, index)
        write_about(out / "latents.json", about | {"features": about["features"] | {"index": file_hash(index)}})
        with pytest.raises(UserError, match=r"features(-\d+)?\.safetensors: damaged \([^\n]+$"):
            train(ours, next(runs))
    write_about(out / "latents.json", about | {"features": {"shards": 5}})
    with pytest.raises(UserError, match=r"latents\.json: damaged \(features\."):
        train(ours, next(runs))
