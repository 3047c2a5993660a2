"""Tokenizers of one's own by the command line, and the verbs that take recipes of any kind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from support import inside, realistic, sets, write_pictures

from djepa_mm.media.pictures import Pictures, read_picture
from djepa_mm.recipe.kinds import load_any
from djepa_mm.recipe.packaged import packaged_recipes
from djepa_mm.tokenizers.autoencoder import Autoencoder
from djepa_mm.training.loop import Outcome

KINDS = ("digits", "digits-tokens", "vocoder")
SMALL = sets(
    "model={width: 24, depth: 1, heads: 2, channels: 3}", "batch.size=4", "optim.minutes=null", "optim.steps=2"
)
MODEL = sets(
    *("model.width=32", "model.depth=1", "model.heads=2", "head.width=16", "head.blocks=1", "head.steps=2"),
    *("batch.size=4", "sample.steps=2", "run.samples=2", "run.sample_every=null", "optim.minutes=null"),
    *("optim.steps=2", "batch.cache=false"),
)


def said(*arguments: str, cwd: Path | None = None) -> str:
    result = inside(*arguments, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stdout


def mistake(*arguments: str, cwd: Path | None = None) -> str:
    result = inside(*arguments, cwd=cwd)
    assert result.returncode == 2, result.stdout + result.stderr
    (line,) = filter(None, result.stderr.splitlines())
    return line


# --- recipes of any kind ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_recipes_of_every_kind_are_checked_and_shown(name: str, tmp_path: Path) -> None:
    assert said("recipes", "validate", name) == f"{name}: valid\n"
    (tmp_path / "resolved.yaml").write_text(said("recipes", "show", name, "--resolved"))
    assert load_any(tmp_path / "resolved.yaml") == load_any(name)
    assert f"\n{name} " in f"\n{said('recipes', 'list')}"


def test_mistakes_in_them_are_one_line(tmp_path: Path) -> None:
    assert "--set model.chanels: unknown key" in mistake(
        "recipes", "validate", "digits-tokens", *sets("model.chanels=3")
    )
    assert "--set loss.verdict: expected" in mistake("recipes", "validate", "vocoder", *sets("loss.verdict=x"))
    recipe = yaml.safe_load(packaged_recipes()["digits-tokens"].read_text()) | {"kind": "tokeniser"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    expected = "mine.yaml: kind: expected tokenizer or vocoder, or none for a model, got 'tokeniser'"
    for verb in (("recipes", "validate"), ("train",), ("tokenizer", "train"), ("info",)):
        assert expected in mistake(*verb, str(tmp_path / "mine.yaml"))
    assert "a recipe of the kind tokenizer; train it: djepa-mm tokenizer train" in mistake("train", "digits-tokens")
    assert "a recipe of the kind tokenizer; train it" in mistake("vocoder", "train", "digits-tokens")


@pytest.mark.parametrize("kind", ["tokenizer", "vocoder"])
def test_a_stopped_run_says_the_command_that_goes_on_with_the_same_settings(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = {"tokenizer": "digits-tokens", "vocoder": "vocoder"}[kind]
    stopped = Outcome(run=tmp_path, step=1, finished=False)
    monkeypatch.setattr(f"djepa_mm.training.{kind}.train_{kind}", lambda *_, **__: stopped)
    words = (kind, "train", name, "--out", str(tmp_path), "--set", "optim.lr=1e-4")
    for given in (words, (*words, "--resume")):
        result = inside(*given)
        assert result.returncode == 130
        assert result.stdout == f"go on with it: djepa-mm {' '.join(words)} --resume\n"


def test_what_a_recipe_of_any_kind_builds() -> None:
    shown = said("info", "digits-tokens", *sets("model.preset=small"))
    recipe = load_any("digits-tokens", ["model.preset=small"])
    network = Autoencoder(16, recipe.model)  # type: ignore[union-attr]
    for part in (network, network.encoder, network.decoder):
        assert f" {sum(p.numel() for p in part.parameters()):,} │" in shown
    assert "4 (1 × 2 × 2) │" in shown
    assert " 2 │" in shown  # 64 pixels for 4 × 8 numbers
    blocks, linear = 3 * (12 * 192**2 * 4 + 2 * 4**2 * 192), 4 * (16 * 192 + 192 * 16 + 16 * 16)
    angles = 4 * 3 * 16
    assert f"{2 * (blocks + linear + angles) / 1e6:,.2f} MFLOP │" in shown  # to encode
    assert "parameters in all" in said("info", "vocoder")


def test_corpora_of_any_recipe_are_checked_packed_and_fetched(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "pictures", *[(3, 8, 8)] * 4)
    data = sets(f"data={{source: image-folder, root: {root}, size: [8, 8]}}", "tokenizer.channels=3")
    shown = said("data", "check", "digits-tokens", *data)
    assert "tokens an item" in shown
    assert "class class1" in shown
    said("data", "pack", "digits-tokens", "--out", str(tmp_path / "shards"), *data)
    assert list((tmp_path / "shards").glob("*.tar"))
    (root / "class0" / "00.png").write_bytes(b"no picture")
    assert inside("data", "check", "digits-tokens", *data).returncode == 1
    assert "nothing to fetch" in said("data", "fetch", "digits-tokens")
    sounds = sets(f"data.root={tmp_path}")
    for verb in (("data", "check", "vocoder"), ("data", "pack", "vocoder", "--out", str(tmp_path / "s"))):
        assert "vocoder: a vocoder's recipe has no tokenizer; take a model's or a" in mistake(*verb, *sounds)


# --- from a tokenizer to pictures -------------------------------------------------------------------------------------


def test_a_tokenizer_is_trained_though_nothing_that_is_held_out_can_be_read(tmp_path: Path) -> None:
    root, held_out = (write_pictures(tmp_path / name, *[(3, 8, 8)] * 4) for name in ("pictures", "held-out"))
    for picture in held_out.rglob("*.png"):
        picture.write_bytes(picture.read_bytes()[:60])
    data = f"data={{source: image-folder, root: {root}, size: [8, 8], held_out_root: {held_out}}}"
    changes = sets("tokenizer={kind: patches, patch: 4, size: [8, 8]}", data)
    result = inside("tokenizer", "train", "digits-tokens", "--out", str(tmp_path / "run"), *SMALL, *changes)
    assert result.returncode == 0
    assert "not measured: no item of the corpus can be used to measure with: class0/00.png: " in result.stderr
    assert "train on its tokens" in result.stdout
    evaluated = mistake("tokenizer", "evaluate", str(tmp_path / "run"))
    assert "can be used to measure with: class0/00.png: not readable as a picture" in evaluated


def test_the_way_from_a_corpus_to_pictures(tmp_path: Path) -> None:
    """Train a tokenizer, look at it, encode, train on the latents, generate, edit; and what is not published."""
    root = write_pictures(tmp_path / "pictures", *[(3, 16, 16)] * 8)
    data = f"data={{source: image-folder, root: {root}, size: [16, 16]}}"
    raw = sets(data, "tokenizer={kind: patches, patch: 4, size: [16, 16]}")
    shown = said("tokenizer", "train", "digits-tokens", "--out", "tokens", *SMALL, *raw, cwd=tmp_path)
    advice = "tokenizer={kind: trained, path: tokens}"
    assert f"train on its tokens: --set '{advice}'" in shown
    assert (tmp_path / "tokens" / "samples" / "step-00000002.png").is_file()
    shown = said("tokenizer", "train", "digits-tokens", "--out", "tokens", "--resume", *SMALL, *raw, cwd=tmp_path)
    assert "finished at step 2" in shown

    on_tokens = [*MODEL, *sets(advice)]
    assert "16 (1 × 4 × 4) │" in said("info", "digits", *on_tokens, *sets(data), cwd=tmp_path)
    assert "tokens an item" in said("data", "check", "digits", *on_tokens, *sets(data), cwd=tmp_path)
    said("encode", "digits", "--out", "latents", *on_tokens, *sets(data), cwd=tmp_path)
    latents = "data={source: latents, root: latents}"
    djepa = "model.projector=norm"  # the layout that is published
    said("train", "digits", "--out", "run", *on_tokens, *sets(latents, djepa), cwd=tmp_path)
    said("generate", "run", "--class", "class0", "--count", "2", cwd=tmp_path)
    assert len(list((tmp_path / "run" / "generated").glob("00*.png"))) == 2

    picture, mask = realistic((3, 16, 16), 3)[0], torch.full((1, 16, 16), -1.0)
    mask[:, 6:, 3:9] = 1.0
    for name, one in (("picture", picture), ("mask", mask)):
        Pictures(len(one)).save(one, tmp_path / f"{name}.png")
    options = ("--mask", "mask.png", "--class", "class1", "--out", "edited.png")
    said("edit", "run", "picture.png", *options, cwd=tmp_path)
    before, after = (read_picture(tmp_path / f"{name}.png", channels=3) for name in ("picture", "edited"))
    white = (mask[0] > 0).expand(3, -1, -1)
    assert torch.equal(before[~white], after[~white])
    assert not torch.equal(before[white], after[white])

    expected = "tokenizer.kind trained learns of its corpus what brings tokens to unit variance"
    for options in (("--to", "djepa"), ("--to", "djepa", "--weights", "plain")):
        assert expected in mistake("export", "run", *options, cwd=tmp_path)
    assert "run uses no VAE that is a folder here (trained)" in mistake("export", "run", "--to", "kl16", cwd=tmp_path)
    assert "a run of the kind tokenizer; give a run of a model" in mistake(
        "export", "tokens", "--to", "djepa", cwd=tmp_path
    )
    published = ("import", "theirs.pth", "--recipe", "digits", *on_tokens, *sets(djepa, "condition.classes=10"))
    assert expected in mistake(*published, cwd=tmp_path)
