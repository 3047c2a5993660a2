"""Tokens kept in files or in memory: what training reads of them is what it would have encoded."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.numpy import load_file, save_file
from support import ROOT, inside

from djepa_mm.data.check import check_corpus
from djepa_mm.data.corpus import Corpus, Cursor
from djepa_mm.data.encoding import Keeping, encode_corpus
from djepa_mm.data.latents import Latents, file_hash, write_about
from djepa_mm.errors import UserError
from djepa_mm.recipe.load import load_recipe
from djepa_mm.recipe.schema import Recipe
from djepa_mm.runs.checkpoint import differences
from djepa_mm.training.djepa import DJEPATask, train
from djepa_mm.training.loop import Trainer
from djepa_mm.weights import find_checkpoint

SMALL = {
    "model.width": 32, "model.depth": 1, "model.heads": 2, "head.width": 16, "head.blocks": 1, "head.steps": 2,
    "batch.size": 4, "batch.cache": False, "sample.steps": 2, "optim.minutes": None, "optim.precision": "fp32",
    "run.sample_every": None, "run.samples": 2, "run.log_every": 1, "optim.steps": 7,
}  # fmt: skip
ITEMS, SIZE = 14, 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of 16×16 pixels in two classes, one of them broken, and a VAE whose tokens are 8×8 of three channels."""
    folder = tmp_path_factory.mktemp("latents")
    save_vae(folder / "vae", seed=0)
    rng = np.random.default_rng(0)
    for n in range(ITEMS):
        path = folder / "pictures" / f"class{n % 2}" / f"{n:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (SIZE, SIZE, 3), np.uint8)).save(path)
    (folder / "pictures" / "class1" / "05.png").write_bytes(b"no picture")
    return folder


def save_vae(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=3,
    ).save_pretrained(folder)


def patches(folder: Path, **changes: Any) -> Recipe:
    data = {
        "source": "image-folder", "root": str(folder / "pictures"), "size": [SIZE, SIZE], "flip": True, "held_out": 0.2
    }  # fmt: skip
    tokenizer = {"kind": "patches", "patch": 4, "channels": 3, "size": [SIZE, SIZE]}
    common = {"data": data, "tokenizer": tokenizer, "batch.max_broken_share": 0.2}
    return load_recipe("digits", {**SMALL, **common, **changes})


def latent(folder: Path, **changes: Any) -> Recipe:
    tokenizer = {"kind": "kl-vae", "model": str(folder / "vae"), "size": [SIZE, SIZE], "sample": True}
    return patches(folder, tokenizer=tokenizer, **changes)


def kept(recipe: Recipe, out: Path, **keeping: Any) -> dict[str, Any]:
    """The data section that reads what is encoded here."""
    assert encode_corpus(recipe, out, Keeping(**{"shard_items": 4, "at_once": 1, **keeping})).finished
    return {"source": "latents", "root": str(out)}


def from_latents(recipe: Recipe, data: dict[str, Any], **changes: Any) -> Recipe:
    raw = json.loads(recipe.model_dump_json(serialize_as_any=True))
    return load_recipe({**raw, "data": data}, changes)


def corpus(recipe: Recipe) -> Corpus:
    source, tokenizer, kind = recipe.data.build(), recipe.tokenizer.build(), recipe.condition.build()
    kind.bind(source)
    made = Corpus(source, tokenizer, kind, recipe.batch, seed=recipe.run.seed)
    made.fit_tokenizer()
    if recipe.batch.cache:
        made.fill_cache()
    return made


def tokens(recipe: Recipe, count: int = 7) -> list[torch.Tensor]:
    """Of the first batches, over more than one epoch."""
    batches = corpus(recipe).batches(Cursor())
    return [portion.batch.tokens for _ in range(count) for portion in next(batches)[0] if portion is not None]


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row["generation"] for row in rows]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- the same tokens --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "workers"), [(patches, 0), (latent, 2)])
def test_batches_are_the_same_to_the_bit(folder: Path, tmp_path: Path, make: Any, workers: int) -> None:
    """With flips, and drawn from a VAE's posterior, item by item: encoded each time, kept in files, in memory."""
    alone = make(folder, **{"batch.size": 1, "batch.workers": workers})
    data = kept(alone, tmp_path / "latents")
    encoded = tokens(alone, 26)
    for other in (from_latents(alone, data), make(folder, **{"batch.size": 1, "batch.cache": True})):
        found = tokens(other, 26)
        assert len(found) == len(encoded)
        assert all(torch.equal(a, b) for a, b in zip(encoded, found, strict=True))


def test_of_a_vae_they_are_the_same_to_rounding_where_other_items_are_encoded_together(
    folder: Path, tmp_path: Path
) -> None:
    recipe = latent(folder)
    encoded = tokens(recipe)
    data = kept(recipe, tmp_path / "latents", at_once=3)
    for other in (from_latents(recipe, data), latent(folder, **{"batch.cache": True})):
        for a, b in zip(encoded, tokens(other), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_without_sampling_the_mean_is_taken(folder: Path, tmp_path: Path) -> None:
    data = kept(latent(folder), tmp_path / "latents")
    still = latent(folder, **{"tokenizer.sample": False, "batch.size": 1})
    for a, b in zip(tokens(still), tokens(from_latents(still, data)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_narrower_numbers_are_the_rounded_ones(folder: Path, tmp_path: Path, dtype: str) -> None:
    recipe = patches(folder)
    data = kept(recipe, tmp_path / "latents", dtype=dtype)
    narrow = torch.bfloat16 if dtype == "bf16" else torch.float16
    for a, b in zip(tokens(recipe), tokens(from_latents(recipe, data)), strict=True):
        assert torch.equal(a.to(narrow).float(), b)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_is_the_same_and_goes_on_exactly(folder: Path, tmp_path: Path, workers: int) -> None:
    recipe = patches(folder, **{"batch.workers": workers})
    ours = from_latents(recipe, kept(recipe, tmp_path / "latents", at_once=3))
    train(recipe, tmp_path / "encoded")
    train(ours, tmp_path / "whole")
    assert losses(tmp_path / "encoded") == losses(tmp_path / "whole")
    task = DJEPATask(ours, device=torch.device("cpu"))
    trainer = Trainer(task, tmp_path / "cut")
    task.online.train()
    batches = task.batches(task.state.cursor)
    for _ in range(4):  # past the end of an epoch of three
        trainer.one_step(batches)
    trainer.save()
    train(ours, tmp_path / "cut", resume=True)
    whole, cut, encoded = (find_checkpoint(tmp_path / name) for name in ("whole", "cut", "encoded"))
    assert differences(whole, cut) == []
    assert differences(whole, encoded) == []


def test_training_on_a_vaes_latents_has_the_same_losses(folder: Path, tmp_path: Path) -> None:
    recipe = latent(folder)
    train(recipe, tmp_path / "encoded")
    train(from_latents(recipe, kept(recipe, tmp_path / "latents", at_once=16)), tmp_path / "kept")
    np.testing.assert_allclose(losses(tmp_path / "encoded"), losses(tmp_path / "kept"), rtol=1e-4)


def test_random_windows_are_refused_or_kept_as_draws(tmp_path: Path) -> None:
    from djepa_mm.media.clips import write_clip

    for n in range(3):
        ramp = torch.linspace(-1, 1, 12)[None, :, None, None].expand(1, 12, SIZE, SIZE) * (n + 1) / 3
        (tmp_path / "films").mkdir(exist_ok=True)
        write_clip(ramp, tmp_path / "films" / f"{n}.mp4", 10.0)
    clips = {"source": "clips", "root": str(tmp_path / "films"), "size": [SIZE, SIZE], "channels": 1, "frames": 4}
    tokenizer = {"kind": "clip-patches", "patch": [2, 8, 8], "channels": 1, "frames": 4, "size": [SIZE, SIZE],
                 "frame_rate": 10.0}  # fmt: skip
    changes = {"data": {**clips, "window": "random"}, "tokenizer": tokenizer, "condition": {"kind": "none"}}
    recipe = load_recipe("digits", {**SMALL, **changes, "sample.guidance": 1.0, "batch.size": 1})
    with pytest.raises(UserError, match=r"data\.window: random .*--draws 8"):
        encode_corpus(recipe, tmp_path / "latents")
    still = load_recipe("digits", {**SMALL, **changes, "data": clips, "sample.guidance": 1.0})
    with pytest.raises(UserError, match="--draws 2: this corpus draws nothing"):
        encode_corpus(still, tmp_path / "latents", Keeping(drawn=2))
    data = kept(recipe, tmp_path / "latents", drawn=3)
    found = [round(float(one.mean()), 4) for one in tokens(from_latents(recipe, data), 30)]
    assert 3 < len(set(found)) <= 9  # of each film up to three windows


# --- interrupted, and shared out --------------------------------------------------------------------------------------

SLOW = """
import sys, time
from djepa_mm.data import encoding
write = encoding._Writer._save
def slow(self, number, found):
    write(self, number, found)
    print("shard", number, flush=True)
    time.sleep(0.2)
encoding._Writer._save = slow
from djepa_mm.cli import main
sys.argv = ["djepa-mm", *sys.argv[1:]]
main()
"""


def encoding(out: Path) -> subprocess.Popen[str]:
    script = out.with_suffix(".py")
    script.write_text(SLOW)
    return subprocess.Popen(
        [sys.executable, str(script), "encode", "digits", "--out", str(out), "--shard", "200"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "latents"
    assert encode_corpus(load_recipe("digits"), out, Keeping(shard_items=200)).finished
    return out


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_and_gone_on_is_the_same_byte_for_byte(
    undisturbed: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "latents"
    process = encoding(out)
    assert process.stdout is not None
    for line in process.stdout:
        if line == "shard 2\n":
            process.send_signal(number)
            break
    said, code = process.communicate()[0], process.returncode
    if number != signal.SIGKILL:
        assert code == 130
        assert f"go on with it: djepa-mm encode digits --out {out} --shard 200\n" in said
    (out / ".00003.safetensors.1.part").write_bytes(b"half a shard")  # as it lies where a kill hits the writing
    with pytest.raises(UserError, match="not complete; go on: djepa-mm encode"):
        Latents(out)
    result = inside("encode", "digits", "--out", str(out), "--shard", "200", "--device", "cpu")
    assert "going on" in result.stdout
    assert files(out) == files(undisturbed)


def test_two_processes_write_what_one_does(undisturbed: Path, tmp_path: Path) -> None:
    """Whichever of them is done first."""
    for order in ((0, 1), (1, 0)):
        out = tmp_path / f"latents{order}"
        ended = [encode_corpus(load_recipe("digits"), out, Keeping(shard_items=200), rank=n, world=2) for n in order]
        assert [one.finished for one in ended] == [False, True]
        assert files(out) == files(undisturbed)


def test_what_is_there_is_not_encoded_again(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "latents"
    shutil.copytree(undisturbed, out)
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("0*")}
    (out / "00001.safetensors").unlink()
    encode_corpus(load_recipe("digits"), out, Keeping(shard_items=200))
    changed = [path.name for path in stamps if path.stat().st_mtime_ns != stamps[path]]
    assert changed == ["00001.safetensors"]
    assert files(out) == files(undisturbed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.patch": 2}, r"begun with tokenizer\.patch 4, now it is 2"),
        ({"data.split": "all"}, r"begun with data\.split 'train', now it is 'all'"),
        ({"run.seed": 1}, r"begun with seed 0, now it is 1"),
    ],
)
def test_latents_of_other_settings_are_never_mixed(undisturbed: Path, changes: dict[str, Any], message: str) -> None:
    before = files(undisturbed)
    with pytest.raises(UserError, match=message):
        encode_corpus(load_recipe("digits", changes), undisturbed, Keeping(shard_items=200))
    with pytest.raises(UserError, match=r"begun with kept\.dtype 'fp32', now it is 'bf16'"):
        encode_corpus(load_recipe("digits"), undisturbed, Keeping(shard_items=200, dtype="bf16"))
    assert files(undisturbed) == before


def test_a_folder_of_something_else_and_a_full_disk_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from djepa_mm.data import encoding

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        encode_corpus(load_recipe("digits"), tmp_path / "mine")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(encoding, "save_file", full)
    with pytest.raises(UserError, match="cannot be written"):
        encode_corpus(load_recipe("digits"), tmp_path / "latents")
    assert not (tmp_path / "latents").exists()


# --- stale ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def stale(folder: Path, tmp_path: Path) -> tuple[Recipe, Path]:
    shutil.copytree(folder / "vae", tmp_path / "vae")
    recipe = latent(folder, **{"tokenizer.model": str(tmp_path / "vae")})
    data = kept(recipe, tmp_path / "latents")
    return from_latents(recipe, data), tmp_path / "latents"


def begin(recipe: Recipe, **changes: Any) -> None:
    raw = json.loads(recipe.model_dump_json(serialize_as_any=True))
    task = DJEPATask(load_recipe(raw, changes), device=torch.device("cpu"))
    task.begin(lambda *_: None)
    task.prepare(lambda *_: None)
    batches = task.batches(Cursor())
    for _ in range(4):
        next(batches)


def test_other_settings_and_other_weights_are_refused(stale: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, _ = stale
    begin(recipe)
    begin(recipe, **{"tokenizer.tile": True, "tokenizer.allow_pickle": True})  # change no token
    with pytest.raises(UserError, match=r"made with tokenizer\.scale None, here it is 0\.5"):
        begin(recipe, **{"tokenizer.scale": 0.5})
    with pytest.raises(UserError, match=r"made with tokenizer\.kind 'kl-vae', here it is 'patches'"):
        begin(recipe, tokenizer={"kind": "patches", "patch": 2, "size": [SIZE, SIZE]})
    save_vae(tmp_path / "vae", seed=1)
    with pytest.raises(UserError, match=r"made with the tokenizer's weights '\w+', here it is '\w+'"):
        begin(recipe)


def test_latents_without_deviations_are_not_drawn_from(folder: Path, tmp_path: Path) -> None:
    still = latent(folder, **{"tokenizer.sample": False})
    data = kept(still, tmp_path / "latents")
    with pytest.raises(UserError, match=r"made with tokenizer\.sample False, here it is True"):
        begin(from_latents(latent(folder), data))


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_shards_are_named(stale: tuple[Recipe, Path], workers: int) -> None:
    recipe, out = stale
    shard = out / "00001.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-9])
    with pytest.raises(UserError, match=r"00001\.safetensors: damaged \(.* of .* bytes\)"):
        begin(recipe)
    middle = len(whole) // 2  # among the tokens
    shard.write_bytes(whole[:middle] + bytes(9) + whole[middle + 9 :])
    with pytest.raises(UserError, match=r"00001\.safetensors: damaged \(the tokens of class\d/\d\d\.png were changed"):
        begin(recipe, **{"batch.workers": workers})
    with pytest.raises(UserError, match=r"00001\.safetensors: damaged \(the tokens"):
        check_corpus(recipe, lambda *_: None)
    shard.unlink()
    with pytest.raises(UserError, match=r"00001\.safetensors: damaged \(missing\)"):
        begin(recipe)


def test_another_format_and_changed_indices_and_statistics_are_refused(folder: Path, tmp_path: Path) -> None:
    recipe = patches(folder)
    out = tmp_path / "latents"
    ours = from_latents(recipe, kept(recipe, out))
    whole = {name: text for name, text in files(out).items() if not name.startswith("0")}
    changes = {
        "latents.json": (b'"format": 1', b'"format": 9', "format 9, and this version of djepa-mm reads 1: upgrade"),
        "index.safetensors": (b"class0/", b"class9/", r"index\.safetensors: damaged"),
        "statistics.safetensors": (b'"std"', b'"sdt"', r"statistics\.safetensors: damaged"),
    }
    for name, (old, new, message) in changes.items():
        assert old in whole[name]
        (out / name).write_bytes(whole[name].replace(old, new))
        with pytest.raises(UserError, match=message):
            begin(ours)
        (out / name).write_bytes(whole[name])
    (out / "latents.json").write_bytes(whole["latents.json"].replace(b'"patch": 4', b'"patch": 2'))
    with pytest.raises(UserError, match="its text was changed"):
        begin(ours)
    (out / "latents.json").write_bytes(whole["latents.json"][:100])
    with pytest.raises(UserError, match=r"latents\.json: damaged"):
        begin(ours)


def test_latents_that_were_made_to_harm_are_one_line(folder: Path, tmp_path: Path) -> None:
    """Their hashes agree, as those of whoever changes them would."""
    recipe = patches(folder)
    out = tmp_path / "latents"
    ours = from_latents(recipe, kept(recipe, out))
    about, index = json.loads((out / "latents.json").read_text()), load_file(out / "index.safetensors")
    del about["sha256"]
    for key, value in (("shards", 5), ("classes", [1]), ("kept", {}), ("folder", "a\0b"), ("items", 3)):
        write_about(out / "latents.json", {**about, key: value})
        with pytest.raises(UserError, match=r"(latents\.json|index\.safetensors): damaged \([^\n]+$"):
            begin(ours)
    for name, wrong in (("spec", 99), ("label", 99), ("begin", -1), ("grids", 0), ("name_ends", 2**40), ("names", 255)):
        save_file({**index, name: np.full_like(index[name], wrong)}, out / "index.safetensors")
        write_about(out / "latents.json", {**about, "index": file_hash(out / "index.safetensors")})
        with pytest.raises(UserError, match=r"index\.safetensors: damaged \([^\n]+$"):
            begin(ours)


def test_a_run_does_not_go_on_with_other_statistics(folder: Path, tmp_path: Path) -> None:
    recipe = patches(folder)
    ours = from_latents(recipe, kept(recipe, tmp_path / "latents"), **{"optim.steps": 1})
    train(ours, tmp_path / "run")
    shutil.rmtree(tmp_path / "latents")
    kept(patches(folder, **{"data.held_out": 0.4}), tmp_path / "latents")
    with pytest.raises(UserError, match=r"another (mean|std) of the tokenizer than this run has learned"):
        train(
            from_latents(ours, {"source": "latents", "root": str(tmp_path / "latents")}), tmp_path / "run", resume=True
        )


# --- the verbs --------------------------------------------------------------------------------------------------------


def test_the_verbs_work_for_a_run_on_latents(folder: Path, tmp_path: Path) -> None:
    recipe = patches(folder, **{"optim.steps": 2, "data.held_out": 0.3})
    kept(recipe, tmp_path / "latents")
    train(from_latents(recipe, {"source": "latents", "root": str(tmp_path / "latents")}), tmp_path / "run")
    saved = str(tmp_path / "run" / "recipe.yaml")
    assert "parameters in all" in inside("info", saved).stdout
    checked = inside("data", "check", saved)
    assert "class class1" in checked.stdout
    assert "class1/05.png" in checked.stdout
    assert checked.returncode == 1
    assert inside("generate", str(tmp_path / "run"), "--class", "class0").returncode == 0
    figures = inside("evaluate", str(tmp_path / "run"), "--count", "2", "--device", "cpu")
    assert figures.returncode == 0, figures.stderr
    with pytest.raises(UserError, match="djepa-mm encode RECIPE --out"):
        Latents(tmp_path / "nothing")


def test_what_is_known_of_a_million_items_takes_tens_of_bytes_each(undisturbed: Path) -> None:
    latents = Latents(undisturbed)
    assert sum(block.nbytes for block in latents.index.values()) < 64 * len(latents)
