"""Published files: read as weights alone, into runs and tokenizers, and written again to the bit."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from pathlib import Path

import diffusers
import pytest
import torch
from reference import MODELS, recipe_of, reference
from safetensors.torch import load_file, save_file
from torch import Tensor

from djepa_mm.errors import UserError
from djepa_mm.generation.pipeline import Pipeline
from djepa_mm.recipe.build import build_model
from djepa_mm.recipe.load import load_recipe, recipe_data
from djepa_mm.runs.published import (
    class_names,
    export_model,
    export_vae,
    family_of,
    fitting_recipe,
    import_model,
    import_vae,
    model_pieces,
    read_published,
    shapes_of,
    vae_folder,
)
from djepa_mm.training.optimizers import build_optimizers
from djepa_mm.weights import find_checkpoint, read_tensors

PUBLISHED = ("imagenet256-b", "imagenet256-l", "imagenet256-h", "mar256-b", "mar256-l", "mar256-h")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        value.dtype == other[name].dtype and torch.equal(value, other[name]) for name, value in one.items()
    )


def theirs(recipe: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the file that a packaged recipe stands for."""
    loaded = load_recipe(recipe)
    with torch.device("meta"):
        online = build_model(loaded, loaded.tokenizer.build(), loaded.condition.build()).online
    pieces = model_pieces(family_of(loaded), shapes_of(online.state_dict()))
    return {name: shape for piece in pieces for name, shape in piece.theirs.items()}


# --- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_export_gives_the_same_names_and_tensors(name: str, tmp_path: Path) -> None:
    found = reference(name)
    import_model(found.published(tmp_path / "theirs.pth"), recipe_of(name), tmp_path / "run")
    family = "mar" if name == "mar" else "djepa"
    export_model(tmp_path / "run", family, tmp_path / "back.safetensors")
    assert same(load_file(tmp_path / "back.safetensors"), found.weights)
    import_model(tmp_path / "back.safetensors", recipe_of(name), tmp_path / "again")
    one, other = (read_tensors(find_checkpoint(tmp_path / run), "averaged") for run in ("run", "again"))
    assert same(one, other)
    with pytest.raises(UserError, match=f"export it: --to {family}"):
        export_model(tmp_path / "run", "djepa" if family == "mar" else "mar", tmp_path / "no.safetensors")


def test_averaged_plain_and_compiled_weights(tmp_path: Path) -> None:
    """As MAR's code saves them: with its settings, its optimiser, and after torch.compile."""
    found = reference("mar")
    averaged = {f"_orig_mod.{name}": 2 * value for name, value in found.weights.items()}
    settings = argparse.Namespace(model="mar_base", lr=1e-4, resume=None)
    file = found.published(tmp_path / "a.pth", model_ema=averaged, args=settings, epoch=3, optimizer={"state": {}})
    for kept, factor in (("averaged", 2), ("plain", 1)):
        import_model(file, recipe_of("mar"), tmp_path / kept, kept=kept)  # type: ignore[arg-type]
        export_model(tmp_path / kept, "mar", tmp_path / f"{kept}.safetensors")
        expected = {name: factor * value for name, value in found.weights.items()}
        assert same(load_file(tmp_path / f"{kept}.safetensors"), expected)
    export_model(tmp_path / "averaged", "mar", tmp_path / "online.safetensors", kept="plain")
    assert same(load_file(tmp_path / "online.safetensors"), found.weights)
    torch.save(found.weights, tmp_path / "bare.pth")
    torch.save(found.weights, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    for bare in ("bare.pth", "legacy.pth"):
        assert same(read_published(tmp_path / bare).averaged, found.weights)


def test_an_imported_run_generates_edits_and_is_trained_further(tmp_path: Path) -> None:
    """With classes by name, a small VAE in the place of KL-16, and pictures that it makes itself."""
    import djepa_mm

    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8,) * 3,
        latent_channels=16,
        norm_num_groups=4,
    )
    vae.save_pretrained(tmp_path / "vae")
    small = ("tokenizer.stride=4", "tokenizer.size=[32, 32]", f"tokenizer.model={tmp_path / 'vae'}")
    recipe = recipe_of("djepa-gauss", *small, "head.steps=2", "sample.steps=2", "optim.steps=2", "batch.size=4")
    names = [f"n{n:02d}" for n in range(10)]
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
    file = reference("djepa-gauss").published(tmp_path / "theirs.pth")
    import_model(file, recipe, tmp_path / "run", classes=class_names(tmp_path / "names.txt"))
    model = djepa_mm.load(tmp_path / "run")
    item = model.generate(class_="n07", count=2)[1]
    assert item.media.shape == (3, 32, 32)
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[8:] = True
    assert torch.equal(model.edit(item, class_="n03", mask=mask).media[..., ~mask], item.media[..., ~mask])
    for name in names:
        for n in range(2):
            item.save(tmp_path / "data" / name / f"{n}.png")
    changes = {"data.root": str(tmp_path / "data"), "data.size": [32, 32], "batch.workers": 0, "run.samples": 1}
    further = djepa_mm.load_recipe(recipe_data(recipe), changes)
    outcome = djepa_mm.train(further, tmp_path / "further", start=tmp_path / "run", progress=False)
    assert outcome.step == 2
    assert class_names(tmp_path / "data") == names


# --- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_file_is_told_by_its_shapes(name: str) -> None:
    assert fitting_recipe(theirs(name)) == name


def test_a_file_that_fits_another_recipe_says_which(tmp_path: Path) -> None:
    weights = {name: torch.zeros(1).expand(shape) for name, shape in theirs("mar256-b").items()}
    torch.save({"model": weights}, tmp_path / "mar.pth")
    for other in ("imagenet256-b", "mar256-l"):
        with pytest.raises(UserError, match=rf"does not fit {other}: .*; it fits --recipe mar256-b$"):
            import_model(tmp_path / "mar.pth", load_recipe(other), tmp_path / "run")
    with pytest.raises(UserError, match="holds a model and no VAE; import it with --recipe mar256-b"):
        import_vae(tmp_path / "mar.pth", tmp_path / "vae")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="neither D-JEPA's nor MAR's own layout"):
        import_model(tmp_path / "mar.pth", load_recipe("digits"), tmp_path / "run")


class Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("was-run"),))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w | {"mask_token": torch.zeros(1, 1, 47)}, r"mask_token is \(1, 1, 47\), expected \(1, 1, 48\)"),
        (lambda w: {k: v for k, v in w.items() if "norm1" not in k}, "lacks decoder_blocks.0.norm1.bias and 7 more"),
        (lambda w: w | {"text.weight": torch.zeros(2)}, "it also holds text.weight; no packaged recipe fits"),
        (lambda w: w | {"mask_token": "one"}, "mask_token is no tensor but str"),
        (lambda w: w | {"mask_token": torch.zeros(1, 1, 48, device="meta")}, "mask_token is no plain tensor"),
        (lambda w: w | {"mask_token": torch.zeros(1, 1, 48).to_sparse()}, "mask_token is no plain tensor"),
        (lambda w: w | {"code": Code()}, "it holds .*, which is no weight; nothing of it was run"),
        (lambda w: [1, 2], "expected weights by name, found list"),
        (lambda w: {"model": 3}, "expected weights by name, found int"),
    ],
)  # fmt: skip
def test_what_is_not_expected_is_one_line(
    change: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = reference("djepa-gauss")
    torch.save(change(found.weights), "theirs.pth")  # type: ignore[operator]
    with pytest.raises(UserError, match=message) as caught:
        import_model(Path("theirs.pth"), recipe_of("djepa-gauss"), Path("run"))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("theirs.pth: ")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.pth"]


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "torn.pth").write_bytes(b"\x80\x02X\x05")  # a text of so many bytes, which are not there
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    (tmp_path / "old.ckpt").write_bytes(pickle.dumps({"model": Code()}))
    whole = reference("djepa-gauss").published(tmp_path / "whole.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(1 << 20))
    with pytest.raises(UserError, match=r"bomb\.pth: x/data\.pkl is compressed: it is no file of weights$"):
        read_published(tmp_path / "bomb.pth")
    for name in ("text.pth", "empty.pth", "torn.pth", "cut.safetensors", "old.ckpt", "half.pth", "none.pth"):
        with pytest.raises(UserError, match=name) as caught:
            read_published(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "was-run").exists()
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="neither MAR's KL-16 VAE nor"):
        import_vae(tmp_path / "a.safetensors", tmp_path / "vae")


def test_a_run_is_not_overwritten_and_names_are_counted(tmp_path: Path) -> None:
    file = reference("mar").published(tmp_path / "theirs.pth")
    with pytest.raises(UserError, match=r"--classes: 2 names, but condition\.classes is 10"):
        import_model(file, recipe_of("mar"), tmp_path / "run", classes=["a", "b"])
    import_model(file, recipe_of("mar"), tmp_path / "run")
    assert Pipeline.load(tmp_path / "run").condition.state() == {"classes": [str(n) for n in range(10)]}
    with pytest.raises(UserError, match="holds a run already"):
        import_model(file, recipe_of("mar"), tmp_path / "run")
    (tmp_path / "twice.txt").write_text("a\na\n")
    with pytest.raises(UserError, match="each once"):
        class_names(tmp_path / "twice.txt")


# --- KL-16 ------------------------------------------------------------------------------------------------------------


def test_the_vae_is_the_authors(tmp_path: Path) -> None:
    found = reference("kl16")
    extra = found.weights | {"loss.discriminator.weight": torch.zeros(1)}  # of its training
    torch.save({"model": extra}, tmp_path / "kl16.ckpt")
    folder = import_vae(tmp_path / "kl16.ckpt", tmp_path / "vae")
    vae = diffusers.AutoencoderKL.from_pretrained(folder, low_cpu_mem_usage=False)
    assert vae.config.scaling_factor == 0.2325
    with torch.no_grad():
        posterior = vae.encode(found.values["picture"]).latent_dist
        decoded = vae.decode(found.values["latent"]).sample
    close = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(posterior.mean, found.values["mean"], **close)
    torch.testing.assert_close(posterior.logvar, found.values["logvar"], **close)
    torch.testing.assert_close(decoded, found.values["decoded"], **close)
    export_vae(folder, tmp_path / "back.safetensors")
    assert same(load_file(tmp_path / "back.safetensors"), found.weights)


def test_the_vae_is_the_recipes_tokenizer(tmp_path: Path) -> None:
    torch.save({"model": reference("kl16").weights}, tmp_path / "kl16.ckpt")
    folder = import_vae(tmp_path / "kl16.ckpt", tmp_path / "vae")
    recipe = recipe_of("djepa-gauss", f"tokenizer.model={folder}")
    tokenizer = recipe.tokenizer.build()
    picture = torch.zeros(1, 3, 128, 128)
    assert tokenizer.decode(tokenizer.encode(picture), tokenizer.spec_for()).shape == picture.shape
    import_model(reference("djepa-gauss").published(tmp_path / "a.pth"), recipe, tmp_path / "run")
    assert vae_folder(tmp_path / "run") == vae_folder(folder) == folder
    with pytest.raises(UserError, match="holds a model already"):
        import_vae(tmp_path / "kl16.ckpt", folder)
    with pytest.raises(UserError, match="holds a VAE, no model for imagenet256-b; import it without --recipe"):
        import_model(tmp_path / "kl16.ckpt", recipe, tmp_path / "other")


@pytest.mark.parametrize("gone", ["encoder.down.0.block.0.conv1.bias", "quant_conv.weight", "decoder.conv_in.bias"])
def test_another_vae_is_one_line(gone: str, tmp_path: Path) -> None:
    weights = {name: value for name, value in reference("kl16").weights.items() if name != gone}
    torch.save({"model": weights}, tmp_path / "vae.ckpt")
    with pytest.raises(UserError, match=r"vae.ckpt: is no VAE of KL-16's kind") as caught:
        import_vae(tmp_path / "vae.ckpt", tmp_path / "vae")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "vae").exists()


def test_a_vae_that_cannot_be_built_is_one_line(tmp_path: Path) -> None:
    """Of widths that do not divide into the 32 groups of its norms."""
    odd = {"encoder.conv_in.weight": (33, 3, 3, 3), "quant_conv.weight": (8, 8, 1, 1)}
    odd["encoder.down.0.block.0.conv2.weight"] = (33, 33, 3, 3)
    torch.save({name: torch.zeros(shape) for name, shape in odd.items()}, tmp_path / "vae.ckpt")
    with pytest.raises(UserError, match=r"vae.ckpt: is no VAE of KL-16's kind: [^\n]*$"):
        import_vae(tmp_path / "vae.ckpt", tmp_path / "vae")


def test_a_folder_in_the_way_of_an_export_is_one_line(tmp_path: Path) -> None:
    import_model(reference("djepa-gauss").published(tmp_path / "a.pth"), recipe_of("djepa-gauss"), tmp_path / "run")
    with pytest.raises(UserError, match=r"run: cannot be written"):
        export_model(tmp_path / "run", "djepa", tmp_path / "run")


# --- the recipes' training --------------------------------------------------------------------------------------------


def test_weight_decay_is_on_the_blocks_alone_where_the_authors_have_it_so() -> None:
    recipe = recipe_of("djepa-gauss")
    model = build_model(recipe, recipe.tokenizer.build(), recipe.condition.build())
    (optimizer,) = build_optimizers(model.online, recipe.optim)
    names = {parameter: name for name, parameter in model.online.named_parameters()}
    decayed = [names[p] for p in optimizer.param_groups[0]["params"]]
    assert len(decayed) == 2 * 2 * 4  # two stacks of two blocks: qkv, out and the MLP's two
    assert all(".blocks." in name for name in decayed)
    assert {group["eps"] for group in optimizer.param_groups} == {1e-6}
