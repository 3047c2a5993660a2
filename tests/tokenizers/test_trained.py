"""Learned tokens of clips and mels, and what a run holds on to: the weights that made its tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from support import SMALL_TOKENIZER, inside, of_pictures, realistic, sets, write_pictures
from torch import Tensor

from djepa_mm.data.batches import tokenizer_draws
from djepa_mm.data.encoding import encode_corpus
from djepa_mm.errors import Notice
from djepa_mm.generation.pipeline import Pipeline
from djepa_mm.media.clips import write_clip
from djepa_mm.recipe.load import load_recipe, recipe_data
from djepa_mm.recipe.schema import Recipe
from djepa_mm.recipe.tokenizer import TokenizerRecipe, load_tokenizer_recipe
from djepa_mm.runs.checkpoint import differences
from djepa_mm.tokenizers.trained import Trained, TrainedConfig
from djepa_mm.training.djepa import DJEPATask, train
from djepa_mm.training.loop import Trainer
from djepa_mm.training.tokenizer import train_tokenizer
from djepa_mm.types import UserError
from djepa_mm.weights import checkpoints, find_checkpoint, read_state

SIZE = 16
MODEL = {
    "model.width": 32, "model.depth": 1, "model.heads": 2, "model.dropout": 0.1, "head.width": 16, "head.blocks": 1,
    "head.steps": 2, "batch.size": 4, "batch.cache": False, "sample.steps": 2, "optim.minutes": None,
    "optim.precision": "fp32", "optim.steps": 2, "run.sample_every": None, "run.samples": 2, "run.log_every": 1,
}  # fmt: skip


def tokens_of(run: Path | str, **keys: Any) -> Trained:
    return TrainedConfig(kind="trained", path=str(run), **keys).build()


def on_tokens(run: Path, pictures: Path, **changes: Any) -> Recipe:
    """A small model of pictures' learned tokens."""
    data = {"source": "image-folder", "root": str(pictures), "size": [SIZE, SIZE]}
    tokens = {"kind": "trained", "path": str(run)}
    return load_recipe("digits", {**MODEL, "data": data, "tokenizer": tokens, **changes})


def mistake(*arguments: str) -> str:
    result = inside(*arguments)
    assert result.returncode == 2, result.stdout + result.stderr
    (line,) = filter(None, result.stderr.splitlines())
    return line


# --- clips and mels ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two steps on clips of 8 frames of 16 × 16 pixels, of 9 where the first stands alone, and on hums."""
    root = tmp_path_factory.mktemp("runs")
    for folder in ("clips", "sounds/wavs"):
        (root / folder).mkdir(parents=True)
    for n, clip in enumerate(realistic((1, 9, SIZE, SIZE), 0, count=3)):
        write_clip(clip, root / "clips" / f"{n}.mp4", 10.0)
        sound = 0.3 * np.sin(np.arange(9000 + 3000 * n) * (0.05 + 0.02 * n))
        soundfile.write(root / "sounds" / "wavs" / f"{n}.wav", sound, 22050)
    (root / "sounds" / "metadata.csv").write_text("".join(f"{n}|hum|hum\n" for n in range(3)))
    clips = {"source": "clips", "root": str(root / "clips"), "frames": 8, "size": [SIZE, SIZE], "channels": 1}
    blocks = {"kind": "clip-patches", "patch": [2, 4, 4], "channels": 1, "frames": 8, "size": [SIZE, SIZE]}
    recipes = {
        "clips": {"data": {**clips, "reader": "pyav"}, "tokenizer": {**blocks, "frame_rate": 10.0}},
        "mels": {
            "data": {"source": "ljspeech", "root": str(root / "sounds")},
            "tokenizer": {"kind": "mel", "vocoder": {"kind": "griffin-lim", "iterations": 2}},
            "model.window": 2,
        },
    }
    alone = {"tokenizer.first_alone": True, "tokenizer.frames": 9, "data.frames": 9}
    recipes["causal clips"] = {**recipes["clips"], **alone, "model.causal": True, "model.window": 2}
    for name, changes in recipes.items():
        train_tokenizer(load_tokenizer_recipe("digits-tokens", {**SMALL_TOKENIZER, **changes}), root / "runs" / name)
    return {name: root / "runs" / name for name in recipes}


def media_of(name: str) -> Tensor:
    return realistic((1, 8, SIZE, SIZE), 5) if name == "clips" else realistic((11_000,), 5)


@pytest.mark.parametrize("name", ["clips", "mels"])
def test_sizes_are_those_of_the_raw_tokens(runs: dict[str, Path], name: str) -> None:
    tokenizer, media = tokens_of(runs[name]), media_of(name)
    raw = tokenizer.raw
    spec = tokenizer.spec_of(tuple(media.shape[1:]))
    assert spec == raw.spec_of(tuple(media.shape[1:]))
    assert (tokenizer.span, tokenizer.fixed) == (raw.span, raw.fixed)
    tokens = tokenizer.encode(media)
    assert tokens.shape == (2, spec.num_tokens, 3)
    torch.testing.assert_close(tokens[:1], tokenizer.encode(media[:1]), atol=1e-4, rtol=1e-4)
    back = tokenizer.decode(tokens, spec)
    assert back.shape == media.shape
    assert back.isfinite().all()
    assert not torch.equal(back[0], back[1])


@pytest.mark.parametrize("name", ["clips", "mels"])
def test_fitted_tokens_have_unit_variance_and_come_back_from_a_checkpoint(runs: dict[str, Path], name: str) -> None:
    tokenizer, restored, media = tokens_of(runs[name]), tokens_of(runs[name]), media_of(name)
    spec, before = tokenizer.spec_of(tuple(media.shape[1:])), tokenizer.encode(media)
    decoded = tokenizer.decode(before, spec)
    tokenizer.fit(iter(media))
    tokens = tokenizer.encode(media)
    assert tokens.std() == pytest.approx(1, abs=0.02)
    torch.testing.assert_close(tokenizer.decode(tokens, spec), decoded, atol=1e-4, rtol=1e-4)
    restored.load_state(tokenizer.state())
    assert torch.equal(restored.encode(media), tokens)


@pytest.mark.parametrize("name", ["clips", "mels"])
def test_they_are_drawn_where_that_is_asked_for(runs: dict[str, Path], name: str) -> None:
    media = media_of(name)
    still, drawn = tokens_of(runs[name]), tokens_of(runs[name], sample=True)
    assert (tokenizer_draws(still), tokenizer_draws(drawn)) == (False, True)
    drawn.fit(iter(media))
    mean, std = drawn.posterior(media)
    assert torch.equal(mean, drawn.encode(media))
    _, latent_std = drawn.network.posterior(
        drawn.raw.encode(media), drawn.spec_of(tuple(media.shape[1:])).positions().expand(2, -1, -1)
    )
    torch.testing.assert_close(std * drawn.unit.std, latent_std)


def test_causal_clips_do_not_look_ahead(runs: dict[str, Path]) -> None:
    """Their first frames give the same tokens whatever follows, or nothing; tokens the same first frames. A window of
    two tokens' times reaches one time back in one block."""
    tokenizer, frames, tokens = tokens_of(runs["causal clips"], media={"vary": True}), 5, 3 * 16
    clip, others = realistic((1, 9, SIZE, SIZE), 5, count=2).split(1)
    changed = torch.cat([clip[:, :, :frames], others[:, :, frames:]], dim=2)
    encoded, again, cut = (tokenizer.encode(one) for one in (clip, changed, clip[:, :, :frames]))
    torch.testing.assert_close(again[:, :tokens], encoded[:, :tokens], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(cut, encoded[:, :tokens], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(again, encoded, atol=1e-2)
    spec = tokenizer.spec_of((1, 9, SIZE, SIZE))
    mixed = torch.cat([encoded[:, :tokens], 2 - encoded[:, tokens:]], dim=1)
    decoded, other = tokenizer.decode(encoded, spec), tokenizer.decode(mixed, spec)
    torch.testing.assert_close(other[:, :, :frames], decoded[:, :, :frames], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(other, decoded, atol=1e-2)
    begun = torch.cat([others[:, :, :1], clip[:, :, 1:]], dim=2)
    torch.testing.assert_close(tokenizer.encode(begun)[:, 2 * 16 :], encoded[:, 2 * 16 :], atol=1e-6, rtol=1e-6)
    picture = tokenizer.encode(clip[:, :, :1])  # is a clip of one frame
    torch.testing.assert_close(picture, encoded[:, :16], atol=1e-5, rtol=1e-5)
    still = tokenizer.decode(picture, tokenizer.spec_of((1, 1, SIZE, SIZE)))
    torch.testing.assert_close(still, decoded[:, :, :1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["causal clips", "mels"])
def test_long_media_in_parts_are_as_they_are_whole(
    runs: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, media = (
        tokens_of(runs[name]),
        realistic((11_000,), 5) if name == "mels" else realistic((1, 9, 16, 16), 5),
    )
    spec = tokenizer.spec_of(tuple(media.shape[1:]))
    tokens = tokenizer.encode(media)
    back = tokenizer.network.decode(tokens, spec.positions().expand(2, -1, -1))
    monkeypatch.setattr("djepa_mm.tokenizers.trained.AT_ONCE", 2)
    torch.testing.assert_close(tokenizer.encode(media), tokens, atol=1e-5, rtol=1e-5)
    parts = tokenizer._through(tokenizer.network.decode, tokens, spec)
    torch.testing.assert_close(parts, back, atol=1e-5, rtol=1e-5)


def test_raw_tokens_may_be_of_another_size_rate_and_vocoder(runs: dict[str, Path]) -> None:
    wide = tokens_of(runs["clips"], media={"size": [16, 24], "frames": 4, "frame_rate": 5.0})
    assert wide.spec_for().grid == (2, 4, 6)
    assert wide.media.per_second == 5.0
    assert wide.encode(torch.zeros(1, 1, 4, 16, 24)).shape == (1, 48, 3)
    assert tokens_of(runs["clips"], media={"vary": True}).spec_of((1, 2, 8, 8)).grid == (1, 2, 2)
    sound = realistic((11_000,), 5)
    usual = tokens_of(runs["mels"])
    patient = tokens_of(runs["mels"], media={"vocoder": {"kind": "griffin-lim", "iterations": 9}, "max_duration_s": 1})
    tokens, spec = usual.encode(sound), usual.spec_of((11_000,))
    assert torch.equal(tokens, patient.encode(sound))
    assert not torch.allclose(usual.decode(tokens, spec), patient.decode(tokens, spec), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("clips", {"media": {"patch": [1, 4, 4]}}, r"tokenizer\.media\.patch: only size, vary, frames, "),
        ("clips", {"media": {"vocoder": {"kind": "griffin-lim"}}}, r"tokenizer\.media\.vocoder: Extra inputs"),
        ("clips", {"media": {"size": 16}}, r"tokenizer\.media\.size: Input should be"),
        (
            "clips",
            {"media": {"size": [18, 18]}},
            r"tokenizer\.media\.size: 18×18 pixels do not divide into tokens of 4×4",
        ),
        ("mels", {"media": {"size": [16, 16]}}, r"tokenizer\.media\.size: Extra inputs"),
        ("mels", {"media": {"vocoder": {"kind": "piano"}}}, r"tokenizer\.media\.vocoder: Input tag 'piano'"),
        ("mels", {"sha256": "0" * 64}, r"tokenizer\.sha256: the weights in .*step-00000002 are \w{12}…, not 000000000"),
    ],
)
def test_what_does_not_fit_is_one_line(runs: dict[str, Path], name: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}[^\n]*$"):
        tokens_of(runs[name], **keys)


def test_media_that_do_not_fit_name_keys_that_there_are(runs: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"make tokenizer\.media\.frames, tokenizer\.media\.size and the data's agree$"):
        tokens_of(runs["clips"]).spec_of((1, 8, 8, 8))


# --- the weights ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), *[(3, SIZE, SIZE)] * 10)


@pytest.fixture
def small(pictures: Path) -> TokenizerRecipe:
    return of_pictures(pictures, (SIZE, SIZE))


def test_a_run_holds_on_to_the_weights_of_its_tokens(small: TokenizerRecipe, pictures: Path, tmp_path: Path) -> None:
    """Trained further, they are others: no verb takes them for those that there were."""
    tokens, run, latents = tmp_path / "tokens", tmp_path / "run", tmp_path / "latents"
    train_tokenizer(small, tokens)
    first = find_checkpoint(tokens)
    digest = read_state(first)["sha256"]["averaged.safetensors"]
    recipe = on_tokens(tokens, pictures)
    assert recipe.tokenizer.sha256 is None
    assert encode_corpus(recipe, latents).finished
    train(recipe, run)
    kept = load_recipe(find_checkpoint(run) / "recipe.yaml")
    assert kept.tokenizer.sha256 == digest
    assert inside("generate", str(run), "--class", "class1", "--count", "2").returncode == 0
    train(on_tokens(tokens, pictures, **{"optim.steps": 3}), run, resume=True)
    from_latents = load_recipe(recipe_data(recipe), {"data": {"source": "latents", "root": str(latents)}})
    train(from_latents, tmp_path / "from-latents")
    assert load_recipe(tmp_path / "from-latents" / "recipe.yaml").tokenizer.sha256 == digest

    train_tokenizer(
        small.model_copy(update={"optim": small.optim.model_copy(update={"steps": 3})}), tokens, resume=True
    )
    others = mistake("generate", str(run), "--class", "class1")
    assert f"tokenizer.sha256: the weights in {tokens}" in others
    assert f"not {digest[:12]}…; name the run or checkpoint that was meant in tokenizer.path" in others
    (tmp_path / "recipe.yaml").write_text((run / "recipe.yaml").read_text())
    for recipe_file in ("recipe.yaml", "run/recipe.yaml"):  # as it notes the hash, and as it was written first
        again = mistake("train", str(tmp_path / recipe_file), "--out", str(run), "--resume", *sets("optim.steps=4"))
        assert "tokenizer.sha256" in again
    with pytest.raises(UserError, match=r"--resume .*: its tokenizer\.sha256 is '\w{64}', here '\w{64}'; make them"):
        train(on_tokens(tokens, pictures, **{"optim.steps": 4}), run, resume=True)
    with pytest.raises(UserError, match=r"--from .*: its tokenizer\.sha256 is '\w{64}', here '\w{64}'; make them"):
        train(on_tokens(tokens, pictures), tmp_path / "tuned", start=run)
    with pytest.raises(UserError, match=r"made with the tokenizer's weights '\w{12}', here it is '\w{12}'"):
        train(from_latents, tmp_path / "others")
    with pytest.raises(UserError, match=r"were begun with weights '\w{64}', now it is '\w{64}'"):
        encode_corpus(recipe, latents)

    assert first.exists()  # and may still be named
    assert inside("generate", str(run), "--class", "class1", *sets(f"tokenizer.path={first}")).returncode == 0
    train(on_tokens(first, pictures, **{"optim.steps": 4}), run, resume=True)


def test_items_that_only_the_model_holds_out_are_told_of(
    small: TokenizerRecipe, pictures: Path, tmp_path: Path
) -> None:
    train_tokenizer(small, tmp_path / "tokens")
    recipe = on_tokens(tmp_path / "tokens", pictures, **{"data.held_out": 0.5})
    with pytest.warns(
        Notice, match=r"^tokenizer\.path: .*step-00000002 has learned from \d of the items that data holds"
    ):
        train(recipe, tmp_path / "run")


def test_the_hash_is_of_weights_and_not_of_their_place(small: TokenizerRecipe, pictures: Path, tmp_path: Path) -> None:
    train_tokenizer(small, tmp_path / "tokens")
    train(on_tokens(tmp_path / "tokens", pictures), tmp_path / "run")
    (tmp_path / "tokens").rename(tmp_path / "moved")
    assert "tokenizer.path: no run at" in mistake("generate", str(tmp_path / "run"), "--class", "class0")
    moved = {"tokenizer.path": str(tmp_path / "moved")}
    pipeline = Pipeline.load(tmp_path / "run", moved)
    assert pipeline(pipeline.requests(count=1))[0].shape == (3, SIZE, SIZE)


def test_a_model_of_learned_tokens_goes_on_exactly(small: TokenizerRecipe, pictures: Path, tmp_path: Path) -> None:
    """With dropout: loading the tokenizer draws nothing. Also where tokens are drawn."""
    train_tokenizer(small, tmp_path / "tokens")
    changes = {"optim.steps": 5, "tokenizer.sample": True, "data.flip": True}
    recipe = on_tokens(tmp_path / "tokens", pictures, **changes)
    train(recipe, tmp_path / "whole")
    recipe = load_recipe(tmp_path / "whole" / "recipe.yaml")  # with the hash
    task = DJEPATask(recipe, device=torch.device("cpu"))
    trainer = Trainer(task, tmp_path / "cut")
    task.online.train()
    batches = task.batches(task.state.cursor)
    for _ in range(2):
        trainer.one_step(batches)
    trainer.save()
    train(recipe, tmp_path / "cut", resume=True)
    assert differences(find_checkpoint(tmp_path / "whole"), find_checkpoint(tmp_path / "cut")) == []


def test_sphere_tokens_have_one_length_and_are_not_drawn(pictures: Path, tmp_path: Path) -> None:
    recipe = of_pictures(pictures, (SIZE, SIZE), **{"model.bottleneck": "sphere"})
    train_tokenizer(recipe, tmp_path / "tokens")
    tokens = tokens_of(tmp_path / "tokens").encode(realistic((3, SIZE, SIZE), 1))
    torch.testing.assert_close(tokens.square().mean(-1), torch.ones(2, 16))
    with pytest.raises(UserError, match=r"tokenizer\.sample: tokens of the bottleneck sphere are not drawn"):
        tokens_of(tmp_path / "tokens", sample=True)


# --- runs that cannot be used -----------------------------------------------------------------------------------------


def test_a_run_that_is_missing_or_of_something_else_is_one_line(
    small: TokenizerRecipe, pictures: Path, tmp_path: Path
) -> None:
    def using(path: Path) -> str:
        data = f"data={{source: image-folder, root: {pictures}, size: [{SIZE}, {SIZE}]}}"
        return mistake("train", "digits", "--out", "run", *sets(f"tokenizer={{kind: trained, path: {path}}}", data))

    assert f"tokenizer.path: no run at {tmp_path / 'none'}; a tokenizer is trained by" in using(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "this folder has no checkpoint yet" in using(tmp_path / "empty")
    train_tokenizer(small, tmp_path / "tokens")
    train(on_tokens(tmp_path / "tokens", pictures, **{"optim.steps": 1}), tmp_path / "model")
    assert "step-00000001 holds no tokenizer; one is trained by: djepa-mm tokenizer train" in using(tmp_path / "model")
    vocoder = tmp_path / "vocoder" / "checkpoints" / "step-00000001"
    vocoder.mkdir(parents=True)
    (vocoder / "recipe.yaml").write_text("kind: vocoder\n")
    (vocoder / "state.json").write_text(json.dumps({"format": 3, "step": 1, "size": {}, "convention": {}}))
    assert "step-00000001 holds no tokenizer" in using(tmp_path / "vocoder")
    shown = mistake("generate", str(tmp_path / "tokens"))
    assert shown.endswith("step-00000002: a checkpoint of a run of the kind tokenizer; give a run of a model")


def test_a_run_finds_its_tokenizer_from_another_folder(
    small: TokenizerRecipe, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tokenizer.path is relative to where it was trained, and moves with it; one that is given is here."""
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    away.mkdir()
    monkeypatch.chdir(home)
    train_tokenizer(small, Path("tokens"))
    train(on_tokens(Path("tokens"), pictures, **{"optim.steps": 1}), Path("model"))
    monkeypatch.chdir(away)
    pipeline = Pipeline.load(home / "model")
    (expected,) = pipeline(pipeline.requests([{"class": "class0"}]))
    home.rename(tmp_path / "moved")
    moved = tmp_path / "moved"
    pipeline = Pipeline.load(moved / "model")
    assert torch.equal(pipeline(pipeline.requests([{"class": "class0"}]))[0], expected)
    (moved / "tokens").rename(away / "others")
    with pytest.raises(UserError, match=r"^tokenizer\.path: no run at .*away/tokens; "):
        Pipeline.load(moved / "model")
    Pipeline.load(moved / "model", ["tokenizer.path=others"])


DAMAGES: dict[str, Any] = {
    "sizes of another kind": (lambda state: state | {"size": [1]}, r"state\.json: Input should be an object"),
    "a size": (lambda state: state | {"size": state["size"] | {"channels": -1}}, r"state\.json\.channels: Input"),
    "no raw tokens": (lambda state: state | {"tokens": None}, r"state\.json: Input should be an object"),
    "unknown tokens": (lambda state: state | {"tokens": {"kind": "?"}}, r"state\.json: Input tag '\?' found"),
    "itself": (
        lambda state: state | {"tokens": {"kind": "trained", "path": "tokens"}},
        "tokens of the kind trained are not raw",
    ),
    "no hashes": (lambda state: state | {"sha256": {}}, "says no hash of its weights"),
}


def test_damaged_checkpoints_are_one_line(small: TokenizerRecipe, pictures: Path, tmp_path: Path) -> None:
    """Cut off, changed, and made to harm."""
    train_tokenizer(small, tmp_path / "tokens")
    (checkpoint,) = checkpoints(tmp_path / "tokens" / "checkpoints")
    recipe = on_tokens(tmp_path / "tokens", pictures)
    whole = (checkpoint / "state.json").read_text()
    for change, message in DAMAGES.values():
        (checkpoint / "state.json").write_text(json.dumps(change(json.loads(whole))))
        with pytest.raises(UserError, match=f"{message}[^\n]*$"):
            train(recipe, tmp_path / "run")
    (checkpoint / "state.json").write_text(whole[:40])
    with pytest.raises(UserError, match=r"state\.json: damaged checkpoint [^\n]*$"):
        train(recipe, tmp_path / "run")
    (checkpoint / "state.json").write_text(whole)
    for name, message in (("averaged.safetensors", "its hash differs"), ("recipe.yaml", "no such file")):
        kept = (checkpoint / name).read_bytes()
        (checkpoint / name).unlink()
        if name != "recipe.yaml":
            (checkpoint / name).write_bytes(kept[:-5])
        with pytest.raises(UserError, match=rf"{name}: damaged checkpoint \([^\n]*{message}[^\n]*$"):
            train(recipe, tmp_path / "run")
        (checkpoint / name).write_bytes(kept)
    from safetensors.torch import load_file, save_file

    state = json.loads(whole)
    tensors = load_file(checkpoint / "averaged.safetensors")
    bad = {name: tensor for name, tensor in tensors.items() if not name.startswith("tokenizer.")}
    save_file(bad, checkpoint / "averaged.safetensors")
    del state["sha256"]["averaged.safetensors"]
    state["sha256"]["averaged.safetensors"] = _sha256(checkpoint / "averaged.safetensors")
    (checkpoint / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"averaged\.safetensors: holds no statistics of raw tokens [^\n]*$"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()
    shutil.rmtree(tmp_path / "tokens")


def _sha256(path: Path) -> str:
    from djepa_mm.weights import sha256

    return sha256(path)
