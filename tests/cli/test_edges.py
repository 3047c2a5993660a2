"""The command line at its edges: files, values, seeds, versions."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import ROOT, inside

from djepa_mm.cli.options import asked, read_prompts
from djepa_mm.errors import UserError
from djepa_mm.generation.pipeline import Pipeline
from djepa_mm.generation.request import Request
from djepa_mm.precision import cast_linears
from djepa_mm.recipe.load import load_recipe

SMALL = [
    "model.width=32", "model.depth=1", "model.heads=2", "head.width=32", "head.blocks=1", "head.steps=2",
    "batch.size=16", "sample.steps=2", "run.samples=4", "run.sample_every=null", "optim.minutes=null", "optim.steps=1",
]  # fmt: skip


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "200", "PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-m", "djepa_mm", *arguments]
    return subprocess.run(program, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("edges") / "run"
    options = [word for override in SMALL for word in ("--set", override)]
    result = inside("train", "digits", "--out", str(out), *options)
    assert result.returncode == 0, result.stderr
    return out


def test_version_and_completion() -> None:
    import djepa_mm

    result = command("--version")
    assert (result.returncode, result.stdout.strip()) == (0, f"djepa-mm {djepa_mm.__version__}")
    assert "--install-completion" in command("--help").stdout


def test_generating_from_a_checkpoint_writes_beside_the_run_and_leaves_nothing_stale(run: Path) -> None:
    (checkpoint,) = (run / "checkpoints").iterdir()
    before = sorted(path.name for path in checkpoint.iterdir())
    assert inside("generate", str(checkpoint), "--class", "7", "--count", "3").returncode == 0
    assert sorted(path.name for path in checkpoint.iterdir()) == before
    (run / "generated" / "mine.txt").write_text("kept")
    assert inside("generate", str(run), "--class", "2").returncode == 0
    found = sorted(path.name for path in (run / "generated").iterdir())
    assert found == ["0000-2.png", "index.html", "mine.txt", "sheet.png"]


def test_a_home_folder_behind_an_equals_sign(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    result = inside("generate", str(run), "--class", "7", "--out=~/made", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "home" / "made" / "0000-7.png").is_file()
    assert not (tmp_path / "~").exists()


def test_what_is_printed_may_be_cut_off() -> None:
    """As by `| head`, which is gone before the rest comes."""
    read, write = os.pipe()
    os.close(read)
    program = [sys.executable, "-m", "djepa_mm", "recipes", "list"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(program, stdout=write, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    os.close(write)
    assert (result.returncode, result.stderr) == (1, "")


def test_a_place_that_cannot_be_written_is_one_line(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for arguments in (
        ("generate", str(run), "--class", "7", "--out", str(tmp_path / "file")),
        ("evaluate", str(run), "--out", str(tmp_path / "file" / "x.json")),
        ("train", "digits", "--out", str(tmp_path / "file")),
        ("recipes", "copy", "digits", str(tmp_path / "file" / "x.yaml")),
    ):
        result = inside(*arguments)
        assert result.returncode == 2, result.stderr
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        assert len(lines) == 1, result.stderr


@pytest.mark.parametrize(
    ("override", "root"),
    [
        ("data.root=my pics #2", "my pics #2"),
        ("data.root=2024", "2024"),
        ("data.root=1e3", "1e3"),
        ("data.root=true", "true"),
        ("data.root='quoted # too'", "quoted # too"),
        ("data.root=plain", "plain"),
    ],
)
def test_a_value_for_a_text_is_a_text(override: str, root: str) -> None:
    assert load_recipe("ljspeech", [override]).data.root == root


def test_other_values_stay_what_they_are() -> None:
    recipe = load_recipe("spoken-digits", ["data.root=null", "optim.lr=1e-3", "run.texts=[one, two]"])
    assert (recipe.data.root, recipe.optim.lr, recipe.run.texts) == (None, 1e-3, ("one", "two"))
    with pytest.raises(UserError, match=r"--set optim\.lr"):
        load_recipe("digits", ["optim.lr=fast"])


def test_a_condition_is_the_same_however_it_is_given() -> None:
    assert asked([], [], ["class=7"], {}) == asked(["7"], [], [], {}) == [{"class": "7"}]
    assert asked([], [], ["text=2024 #1"], {}) == asked([], ["2024 #1"], [], {}) == [{"text": "2024 #1"}]
    assert asked([], [], ["vector=[0.5, 1]", "rate=2"], {}) == [{"vector": [0.5, 1], "rate": 2}]


def test_info_makes_no_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    result = inside("info", "moving-digits")
    assert result.returncode == 0, result.stderr
    result = inside("info", "moving-digits", "--set", "condition.classes=null")
    assert result.returncode == 2
    assert "condition.classes" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_doctor_outlives_a_module_without_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "decord":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    (tmp_path / "decord.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "decord", raising=False)
    monkeypatch.setattr(importlib.metadata, "version", version)
    result = inside("doctor")
    assert "of an unknown version" in result.stdout, result.stderr


# --- seeds, guidance, casts -------------------------------------------------------------------------------------------


def test_an_item_is_the_same_whatever_is_asked_for_beside_it(painter: Pipeline) -> None:
    seven, three = {"class": "7"}, {"class": "3"}
    alone = painter.requests([seven], seed=5)
    beside = painter.requests([three, seven], count=2, seed=5)
    assert alone[0] == beside[2]
    assert len({request.seed for request in beside}) == 4


def test_guidance_needs_a_model_that_knows_nothing(painter: Pipeline) -> None:
    recipe = load_recipe("digits", [*SMALL, "condition.drop=0.0", "sample.guidance=1"])
    blind = Pipeline(recipe, painter.model, painter.tokenizer, painter.condition)
    request = Request(condition={"class": "3"})
    assert len(blind([request])) == 1
    with pytest.raises(UserError, match=r"--guidance 2: this model was trained with condition\.drop 0"):
        blind([request], sampler=type(blind.sampler)(ar_steps=2, guidance=2.0))


def test_weights_are_cast_for_sampling_alone_and_give_the_same(
    painter: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    for parameter in painter.model.averaged.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    before = {name: tensor.clone() for name, tensor in painter.model.averaged.state_dict().items()}
    monkeypatch.setattr("djepa_mm.generation.pipeline.fast_bf16", lambda _: True)
    requests = [Request(condition={"class": str(n)}, seed=(n,)) for n in range(4)]
    quick = painter(requests)
    after = painter.model.averaged.state_dict()
    assert all(torch.equal(before[name], after[name]) and after[name].dtype == torch.float32 for name in before)
    monkeypatch.setattr("djepa_mm.generation.pipeline.cast_linears", lambda *_: cast_linears(torch.nn.Identity(), _[1]))
    for ours, theirs in zip(quick, painter(requests), strict=True):
        assert torch.equal(ours, theirs)


def test_json_of_the_schema_is_whole() -> None:
    assert "properties" in json.loads(inside("recipes", "schema").stdout)


def test_names_are_taken_as_they_are_written() -> None:
    for name in ("007", "no", "1e3", "null", "seven"):
        assert asked([], [], [f"class={name}"], {}) == [{"class": name}]
    assert asked([], [], ["text='tis seven", "rate=1.5"], {}) == [{"text": "'tis seven", "rate": 1.5}]
    assert asked([], [], ["pitch=440"], {}) == [{"pitch": 440}]


def test_prompts_of_a_windows_editor(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes(b"\xef\xbb\xbfone two\r\n\r\nthree\r\n")
    assert read_prompts(tmp_path / "prompts.txt") == ["one two", "three"]


def test_prompts_without_end_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes(b"\n" * 10_000_001)
    with pytest.raises(UserError, match=r"prompts\.txt: 10,000,001 bytes; 10,000,000 are read at most"):
        read_prompts(tmp_path / "prompts.txt")


def test_a_recipe_in_another_encoding_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"name: \xe9t\xe9\n")
    result = inside("recipes", "show", str(tmp_path / "mine.yaml"))
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert "mine.yaml: cannot be read" in result.stderr


def test_what_cannot_be_written_is_told_before_the_work(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object, **__: object) -> None:
        raise AssertionError("it has begun")

    monkeypatch.setattr("djepa_mm.door.Model.evaluate", work)
    monkeypatch.setattr("djepa_mm.door.Model.generate", work)
    (tmp_path / "file").write_text("")
    for arguments in (
        ("generate", str(run), "--out", str(tmp_path / "file")),
        ("generate", str(run), "--out", str(tmp_path / "file" / "x")),
        ("evaluate", str(run), "--out", str(tmp_path / "file" / "x.json")),
        ("evaluate", str(run), "--out", str(tmp_path)),
    ):
        result = inside(*arguments)
        assert (result.returncode, len(result.stderr.splitlines())) == (2, 1), result.stderr


@pytest.mark.parametrize(
    "arguments", [("train", "digits", "--out", ""), ("train", "digits", "--out="), ("generate", "")]
)
def test_nothing_is_not_the_current_folder(arguments: tuple[str, ...], tmp_path: Path) -> None:
    result = inside(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.endswith(": nothing comes after it; is a variable of the shell not set?\n")
    assert list(tmp_path.iterdir()) == []
