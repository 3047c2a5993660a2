"""Training a tokenizer: exact on resume, the same in parts, and what its losses do."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import SMALL_TOKENIZER, of_pictures, write_pictures
from torch import Tensor, nn

from djepa_mm.data.pack import pack
from djepa_mm.recipe.load import load_recipe
from djepa_mm.recipe.tokenizer import TokenizerRecipe, load_tokenizer_recipe
from djepa_mm.runs.checkpoint import differences
from djepa_mm.tokenizers.trained import TrainedConfig
from djepa_mm.training.adversarial import PatchDiscriminator, deception
from djepa_mm.training.loop import Trainer
from djepa_mm.training.perceptual import PerceptualLoss
from djepa_mm.training.tokenizer import TokenizerTask, train_tokenizer
from djepa_mm.types import UserError
from djepa_mm.weights import find_checkpoint, read_tensors

CPU = torch.device("cpu")
DENOISE = {"loss.denoise": {"until": 0.6}}
ADVERSARIAL = {"loss.verdict": 0.1, "loss.features": 0.1, "loss.adversarial_from": 0.4}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten of 8 × 8 pixels."""
    return write_pictures(tmp_path_factory.mktemp("pictures"), *[(3, 8, 8)] * 10)


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve of three sizes."""
    return write_pictures(tmp_path_factory.mktemp("sizes"), *[(3, 8, 8), (3, 8, 12), (3, 16, 8)] * 4)


def of_sizes(root: Path, **changes: Any) -> TokenizerRecipe:
    data = {"source": "image-folder", "root": str(root), "size": None, "multiple_of": [4, 4]}
    return of_pictures(root, (8, 8), **{"data": data, "tokenizer.vary": True, **changes})


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def steps(task: TokenizerTask, trainer: Trainer, count: int) -> None:
    batches = task.batches(task.state.cursor)
    for group in task.groups.values():
        group.module.train()
    for _ in range(count):
        trainer.one_step(batches)


# --- a run ------------------------------------------------------------------------------------------------------------


def test_losses_fall_and_a_run_leaves_its_files(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    changes = {"optim.steps": 60, "optim.lr": 1e-2, "run.sample_every": 40, "data.held_out": 0.2, "batch.cache": True}
    outcome = train_tokenizer(of_pictures(pictures, (8, 8), **changes), out)
    assert outcome.finished
    log = rows(out)
    for term in ("squared", "absolute"):
        assert fmean(row[term] for row in log[-5:]) < 0.7 * fmean(row[term] for row in log[:5]), term
    assert {"kl", "gradient_norm"} < log[0].keys()
    assert not {"perceptual", "verdict", "features", "detection"} & log[0].keys()
    assert [path.name for path in sorted((out / "samples").iterdir())] == ["step-00000040.png", "step-00000060.png"]
    assert load_tokenizer_recipe(out / "recipe.yaml").optim.steps == 60
    with pytest.raises(UserError, match="holds a run already; go on with it: --resume"):
        train_tokenizer(of_pictures(pictures, (8, 8)), out)


@pytest.mark.parametrize(
    "way",
    [
        {"data.flip": True, "batch.cache": True},
        {"data.flip": True, **DENOISE},
        {**ADVERSARIAL, "run.sample_every": 1},
        {**DENOISE, **ADVERSARIAL, "model.bottleneck": "sphere", "optim.optimizer": "muon", "loss.kl": 0.0},
    ],
    ids=["plain", "denoise", "adversarial", "sphere"],
)
def test_resuming_equals_never_stopping(pictures: Path, tmp_path: Path, way: dict[str, Any]) -> None:
    """To the bit, stopped before and after what changes within a run, and over an epoch's end."""
    recipe = of_pictures(pictures, (8, 8), **{"optim.steps": 7, **way})
    train_tokenizer(recipe, tmp_path / "whole")
    for resume in (False, True):
        task = TokenizerTask(recipe, device=CPU)
        trainer = Trainer(task, tmp_path / "cut", resume=resume)
        steps(task, trainer, 2 + resume)
        trainer.save()
    train_tokenizer(recipe, tmp_path / "cut", resume=True)
    assert differences(find_checkpoint(tmp_path / "whole"), find_checkpoint(tmp_path / "cut")) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.patch": 2}, r"its tokenizer\.patch is 4, here 2"),
        ({"model.causal": True}, r"its model\.causal is False, here True"),
        ({"model.channels": 4}, r"its model\.channels is 3, here 4"),
        ({"optim.optimizer": "muon"}, r"its optim\.optimizer is 'adamw', here 'muon'"),
        (ADVERSARIAL, r"its loss\.verdict is 0\.0, here [\d.]+; make them agree"),
    ],
)
def test_a_run_is_not_resumed_as_another(pictures: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    train_tokenizer(of_pictures(pictures, (8, 8), **{"optim.steps": 1}), tmp_path / "run")
    with pytest.raises(UserError, match=f"{message}[^\n]*$"):
        train_tokenizer(of_pictures(pictures, (8, 8), **changes), tmp_path / "run", resume=True)


def test_a_run_keeps_its_discriminator(pictures: Path, tmp_path: Path) -> None:
    """Its weights may change, but not its size."""
    train_tokenizer(of_pictures(pictures, (8, 8), **{**ADVERSARIAL, "optim.steps": 1}), tmp_path / "run")
    for changes, message in (
        ({**ADVERSARIAL, "loss.discriminator_channels": 5}, r"its loss\.discriminator_channels is 4, here 5"),
        ({}, r"its loss\.verdict is 0\.1, here 0\.0"),
    ):
        with pytest.raises(UserError, match=f"{message}; make them agree$"):
            train_tokenizer(of_pictures(pictures, (8, 8), **changes), tmp_path / "run", resume=True)
    changed = {**ADVERSARIAL, "loss.verdict": 0.7, "optim.steps": 2}
    train_tokenizer(of_pictures(pictures, (8, 8), **changed), tmp_path / "run", resume=True)


def test_keys_that_are_younger_than_a_run_had_their_defaults(pictures: Path, tmp_path: Path) -> None:
    train_tokenizer(of_pictures(pictures, (8, 8), **{"optim.steps": 1}), tmp_path / "run")
    path = find_checkpoint(tmp_path / "run") / "state.json"
    state = json.loads(path.read_text())
    for section, key in (("tokens", "channels"), ("size", "window"), ("size", "bottleneck")):
        del state[section][key]
    path.write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"its model\.bottleneck is 'kl', here 'sphere'"):
        train_tokenizer(of_pictures(pictures, (8, 8), **{"model.bottleneck": "sphere"}), tmp_path / "run", resume=True)
    train_tokenizer(of_pictures(pictures, (8, 8)), tmp_path / "run", resume=True)
    tokenizer = TrainedConfig(kind="trained", path=str(tmp_path / "run")).build()
    assert tokenizer.encode(torch.zeros(1, 3, 8, 8)).shape == (1, 4, 3)
    state["tokens"].pop("patch")  # which has none
    path.write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"not of this kind of run \(its tokens: KeyError\('patch'\)\)"):
        train_tokenizer(of_pictures(pictures, (8, 8)), path.parent, resume=True)


def test_after_its_share_of_the_training_the_decoder_learns_alone(pictures: Path, tmp_path: Path) -> None:
    recipe = of_pictures(pictures, (8, 8), **{"optim.steps": 4, "loss.denoise": {"until": 0.5}})
    task = TokenizerTask(recipe, device=CPU)
    trainer = Trainer(task, tmp_path / "run")
    before = _copied(task.online)
    steps(task, trainer, 2)
    settled = _copied(task.online)
    assert {name.split(".")[0] for name in settled if not torch.equal(settled[name], before[name])} == {
        "encoder", "decoder", "hidden",
    }  # fmt: skip
    portions, cursor = next(task.batches(task.state.cursor))
    trainer.one_step(iter([([*portions, None], cursor)]))  # and in a part of which nothing could be read
    after = _copied(task.online)
    moved = {name.split(".")[0] for name in after if not torch.equal(settled[name], after[name])}
    assert moved == {"decoder"}


def _copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


# --- corpora ----------------------------------------------------------------------------------------------------------


def test_sizes_that_vary_share_a_batch_and_parts_learn_what_the_whole_does(
    sizes: Path, seeing: Path, tmp_path: Path
) -> None:
    """Every loss: each item counts by its tokens, whichever are dealt to a part with it."""
    losses = {**DENOISE, **ADVERSARIAL, "loss.perceptual": 0.1, "loss.perceptual_network": str(seeing)}
    for accumulate in (1, 3):
        changes = {"optim.steps": 5, "batch.size": 12, "compute.accumulate": accumulate, **losses}
        recipe = of_sizes(sizes, **changes, **{"optim.eps": 1e-3})  # else AdamW makes much of gradients of rounding
        task = TokenizerTask(recipe, device=CPU)
        (portion, *_), _ = next(task.batches(task.state.cursor))
        assert portion is not None
        assert len(set(portion.grids)) > 1
        Trainer(task, tmp_path / str(accumulate)).run()
    whole, parts = rows(tmp_path / "1"), rows(tmp_path / "3")
    assert [row["detection"] > 0 for row in whole] == [False, False, True, True, True]
    for ours, theirs in zip(whole, parts, strict=True):
        for term in ("squared", "absolute", "kl", "perceptual", "verdict", "features", "detection", "gradient_norm"):
            assert theirs[term] == pytest.approx(ours[term], rel=1e-5), term
    ours_, theirs_ = (read_tensors(find_checkpoint(tmp_path / name), "online") for name in ("1", "3"))
    for name, tensor in ours_.items():
        torch.testing.assert_close(theirs_[name], tensor, rtol=1e-3, atol=1e-5)


def test_a_broken_picture_is_skipped_and_named(tmp_path: Path) -> None:
    """Also on the sheet, which is of the first ones; and a part of nothing else counts for nothing."""
    root = write_pictures(tmp_path / "pictures", *[(3, 8, 8)] * 6)
    bad = root / "class0" / "00.png"
    bad.write_bytes(bad.read_bytes()[:60])
    changes = {"batch.size": 3, "compute.accumulate": 3, "optim.steps": 4, "batch.max_broken_share": 0.2}
    out = tmp_path / "run"
    train_tokenizer(of_pictures(root, (8, 8), **changes, **ADVERSARIAL), out)
    assert list(json.loads((out / "report.json").read_text())["reasons"]) == ["class0/00.png"]
    assert all(np.isfinite(row["squared"]) for row in rows(out))
    with pytest.raises(UserError, match=r"1 of 6 items of the corpus cannot be read .*max_broken_share"):
        train_tokenizer(of_pictures(root, (8, 8)), tmp_path / "strict")


def test_a_corpus_of_broken_pictures_is_one_line(pictures: Path, tmp_path: Path) -> None:
    """In a folder and in shards."""
    root, shards = write_pictures(tmp_path / "pictures", *[(3, 8, 8)] * 3), tmp_path / "shards"
    shards.mkdir()
    with tarfile.open(shards / "000000.tar", "w") as shard:
        for picture in root.rglob("*.png"):
            picture.write_bytes(picture.read_bytes()[:60])
            shard.add(picture, picture.name)
    data = {"source": "shards", "urls": str(shards), "media": "picture", "size": [8, 8], "readers": 1}
    lenient = {"batch.max_broken_share": 1.0}
    for changes in ({}, {"data": data}):
        with pytest.raises(UserError, match=r"^no item of the corpus can be read: .*0\d.*truncated"):
            train_tokenizer(of_pictures(root, (8, 8), **lenient, **changes), tmp_path / "run")


def test_a_stream_of_shards_trains_and_goes_on(pictures: Path, tmp_path: Path) -> None:
    pack(of_pictures(pictures, (8, 8)), tmp_path / "shards", 600, lambda done, total: None)
    data = {"source": "shards", "urls": str(tmp_path / "shards"), "media": "picture", "size": [8, 8], "readers": 2}
    recipe = of_pictures(pictures, (8, 8), **{"data": {**data, "shuffle": 3, "flip": True}, "optim.steps": 6})
    train_tokenizer(recipe, tmp_path / "whole")
    assert Image.open(tmp_path / "whole" / "samples" / "step-00000006.png").size[1] >= 128  # two rows
    task = TokenizerTask(recipe, device=CPU)
    trainer = Trainer(task, tmp_path / "cut")
    steps(task, trainer, 3)
    trainer.save()
    train_tokenizer(recipe, tmp_path / "cut", resume=True)
    assert differences(find_checkpoint(tmp_path / "whole"), find_checkpoint(tmp_path / "cut")) == []


# --- losses -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random transformer that sees pictures of 64 × 64 pixels."""
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return _saved(ViTModel(ViTConfig(**sizes, image_size=64, patch_size=16)), tmp_path_factory.mktemp("vit"))


def _saved(model: Any, folder: Path) -> Path:
    from transformers import ViTImageProcessor

    model.save_pretrained(folder)
    ViTImageProcessor().save_pretrained(folder)
    return folder


def test_pictures_are_as_far_apart_as_a_network_sees_them(seeing: Path, tmp_path: Path) -> None:
    """A transformer or a convolutional network, grey or coloured, of any size."""
    from transformers import ResNetConfig, ResNetModel

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "layer_type": "basic"}
    for folder in (seeing, _saved(ResNetModel(ResNetConfig(**sizes)), tmp_path / "resnet")):
        loss = PerceptualLoss(str(folder), CPU)
        assert not [p for p in loss.parameters() if p.requires_grad]
        for shape in ((2, 3, 8, 12), (2, 1, 40, 80)):
            real = torch.rand(shape) * 2 - 1
            made = (real + 0.3 * torch.randn(shape)).requires_grad_()
            assert loss(real, real) == 0
            near, far = loss(real + 0.1 * (made - real), real), loss(made, real)
            assert 0 < near < far
            far.backward()
            assert made.grad is not None
            assert made.grad.abs().sum() > 0


def test_what_is_no_network_that_sees_is_one_line(seeing: Path, pictures: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    _saved(BertModel(BertConfig(**sizes, vocab_size=9)), tmp_path / "text")
    (tmp_path / "empty").mkdir()
    for name in ("bare", "cut", "lacks"):
        (tmp_path / name).mkdir()
        for file in seeing.iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    (tmp_path / "bare" / "preprocessor_config.json").unlink()
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    from safetensors.torch import load_file, save_file

    lacking = load_file(tmp_path / "lacks" / "model.safetensors")
    lacking.pop(next(name for name in lacking if "layernorm_before.weight" in name))
    save_file(lacking, tmp_path / "lacks" / "model.safetensors", metadata={"format": "pt"})
    for name in ("none", "empty", "text", "bare", "cut", "lacks"):
        with pytest.raises(UserError, match=r"^loss\.perceptual_network: no vision model [^\n]*$") as error:
            PerceptualLoss(str(tmp_path / name), CPU)
        assert str(tmp_path / name) in str(error.value)
        assert (name == "none") == (f"(no folder at {tmp_path / name})" in str(error.value))
    assert "the weights lack" in str(error.value)
    recipe = of_pictures(
        pictures, (8, 8), **{"loss.perceptual": 1.0, "loss.perceptual_network": str(tmp_path / "none")}
    )
    with pytest.raises(UserError, match=r"loss\.perceptual_network"):
        train_tokenizer(recipe, tmp_path / "run")


def test_a_discriminator_looks_at_patches_and_deception_at_each_picture() -> None:
    judge = PatchDiscriminator(3, 4)
    real, made = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32)
    changed = real.clone()
    changed[:, :, 24:, 24:] = 0
    (seen,), (other,) = judge([real]), judge([changed])
    assert seen[-1].shape[-1] > 1
    assert torch.equal(seen[-1][..., 0, 0], other[-1][..., 0, 0])
    assert not torch.equal(seen[-1][..., -1, -1], other[-1][..., -1, -1])
    together = deception(judge([made]), judge([10 * real]), apart=True)
    each = [deception(judge([m[None]]), judge([10 * r[None]]), apart=True) for m, r in zip(made, real, strict=True)]
    for name in ("verdict", "features"):
        torch.testing.assert_close(getattr(together, name), torch.stack([getattr(one, name) for one in each]).mean())


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_a_recipes_mistake_is_one_line(pictures: Path, tmp_path: Path) -> None:
    def mistakes() -> Iterator[tuple[dict[str, Any], str]]:
        yield {"compute.shard": True}, r"compute\.shard is for D-JEPA: a tokenizer is small, set it to false"
        yield {"loss.squared": 0, "loss.absolute": 0}, r"loss\.squared and loss\.absolute are 0"
        yield {"loss.perceptual": 1.0}, r"loss\.perceptual and loss\.perceptual_network go together"
        yield {"loss.perceptual_network": "x"}, r"loss\.perceptual and loss\.perceptual_network go together"
        yield {"model.width": 25}, r"model\.width 25 does not divide into model\.heads 2 of an even width"
        yield {"model.width": 8}, r"model\.width 8 does not divide into model\.heads 2 of an even width from 6 on"
        yield {"model.channels": 10**9}, r"model\.channels: expected less than or equal to 65536"
        yield {"loss.squard": 1}, r"loss\.squard: unknown key .*did you mean 'squared'"
        yield {"condition": {"kind": "none"}}, "condition: unknown key"

    for changes, message in mistakes():
        with pytest.raises(UserError, match=f"{message}[^\n]*$"):
            of_pictures(pictures, (8, 8), **changes)

    vae = {"kind": "kl-vae", "model": "vae", "channels": 4, "stride": 4, "size": [8, 8]}
    train_tokenizer(of_pictures(pictures, (8, 8), **{"optim.steps": 1}), tmp_path / "tokens")
    trained = {"kind": "trained", "path": str(tmp_path / "tokens")}
    for changes, message in (
        ({"tokenizer": vae}, r"tokenizer\.kind kl-vae: raw tokens are compressed, such as patches or mel"),
        ({"tokenizer": trained}, r"tokenizer\.kind trained: raw tokens are compressed"),
        ({"tokenizer": {"kind": "mel"}}, "data gives no sound, the tokenizer takes sound at 22050 Hz"),
        ({"model.width": 60_000, "model.heads": 10}, r"model: the encoder and the decoder take [\d,]+ GB, and cpu has"),
        ({"batch.cache": True, "data.root": str(tmp_path / "none")}, r"data\.root"),
    ):
        with pytest.raises(UserError, match=f"^{message}[^\n]*$"):
            train_tokenizer(of_pictures(pictures, (8, 8), **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="no such run folder"):
        train_tokenizer(of_pictures(pictures, (8, 8)), tmp_path / "none", resume=True)


def test_latents_are_no_media_to_learn_from(pictures: Path, tmp_path: Path) -> None:
    from djepa_mm.data.encoding import encode_corpus

    tokens = {"tokenizer.channels": 3, "data": {"source": "image-folder", "root": str(pictures), "size": [8, 8]}}
    encode_corpus(load_recipe("digits", tokens), tmp_path / "latents")
    data = {"source": "latents", "root": str(tmp_path / "latents")}
    recipe = of_pictures(pictures, (8, 8), data=data)
    with pytest.raises(UserError, match=r"^data\.source latents: a tokenizer learns from media, not from tokens$"):
        train_tokenizer(recipe, tmp_path / "run")


def test_recipes_of_other_kinds_say_which_verb_trains_them() -> None:
    with pytest.raises(UserError, match=r"a recipe of a model; train it: djepa-mm train digits$"):
        load_tokenizer_recipe("digits")
    with pytest.raises(UserError, match=r"of the kind vocoder; train it: djepa-mm vocoder train vocoder$"):
        load_tokenizer_recipe("vocoder")
    with pytest.raises(UserError, match=r"of the kind tokenizer; train it: djepa-mm tokenizer train digits-tokens$"):
        load_recipe("digits-tokens")
    with pytest.raises(UserError, match=r"^recipe: kind: expected tokenizer or vocoder, or none for a model, got 'x'$"):
        load_recipe({"kind": "x"})
    assert load_tokenizer_recipe("digits-tokens", SMALL_TOKENIZER).model.channels == 3
