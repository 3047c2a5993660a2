"""The command line as a person meets it: in a process of its own."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALL = [
    "model.width=32", "model.depth=1", "model.heads=2", "head.width=32", "head.blocks=1", "head.steps=3",
    "batch.size=16", "sample.steps=3", "run.samples=4", "run.sample_every=null", "run.log_every=2",
    "optim.minutes=null", "optim.steps=2",
]  # fmt: skip


def command(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "djepa_mm", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        check=False,
    )


def sets(*overrides: str) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def mistake(*arguments: str, cwd: Path | None = None) -> str:
    """The one line that a user's mistake gives."""
    result = command(*arguments, cwd=cwd)
    assert result.returncode == 2, result.stdout + result.stderr
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "digits"
    result = command("train", "digits", "--out", str(out), *sets(*SMALL))
    assert result.returncode == 0, result.stderr
    assert "djepa-mm generate" in result.stdout
    return out


def test_help_imports_nothing_heavy() -> None:
    """What --help needs: no torch, and none of the rest."""
    code = """
import sys
sys.argv = ["djepa-mm", "--help"]
from djepa_mm.cli import main
try:
    main()
except SystemExit:
    print(sorted({name.split(".")[0] for name in sys.modules}))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(result.stdout.strip().splitlines()[-1]))
    assert "Usage" in result.stdout
    assert not loaded & {"torch", "numpy", "pydantic", "yaml", "diffusers", "PIL"}


def test_verbs() -> None:
    """Frozen: a verb or an option that goes away breaks somebody's script."""
    shown = command("--help").stdout
    for verb in ("train", "generate", "recipes", "data", "info", "doctor", "demo"):
        assert f"\n  {verb}" in shown
    shown = command("generate", "--help").stdout
    for option in (
        *("--class", "--text", "--prompts", "--count", "--seconds", "--steps", "--guidance", "--temperature"),
        *("--seed", "--out", "--set"),
    ):
        assert option in shown
    shown = command("train", "--help").stdout
    for option in ("--out", "--resume", "--set", "--device"):
        assert option in shown


@pytest.mark.parametrize("entry", [["-m", "djepa_mm"], [str(ROOT / "cli.py")]])
def test_every_entry_works_from_everywhere(entry: list[str], tmp_path: Path) -> None:
    for cwd in (ROOT, tmp_path):
        result = subprocess.run(
            [sys.executable, *entry, "recipes", "list"], capture_output=True, text=True, cwd=cwd, check=True
        )
        assert "spoken-digits" in result.stdout


def test_transformers_imports_from_the_root() -> None:
    """The folder `tokenizers/` must not shadow the package that transformers needs."""
    code = "import transformers, tokenizers; tokenizers.Tokenizer; transformers.PreTrainedTokenizerFast"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_generate_writes_pictures_and_a_sheet(digits_run: Path, tmp_path: Path) -> None:
    arguments = ["generate", str(digits_run), "--class", "7", "--class", "2", "--count", "2", "--seed", "3"]
    first, second = tmp_path / "first", tmp_path / "second"
    for out in (first, second):
        assert command(*arguments, "--out", str(out), "--guidance", "1.5", "--steps", "2").returncode == 0
    names = ["0000-7.png", "0001-7.png", "0002-2.png", "0003-2.png", "sheet.png"]
    assert sorted(p.name for p in first.iterdir()) == names
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)
    assert (first / names[0]).read_bytes() != (first / names[1]).read_bytes()


def test_recipe_verbs(tmp_path: Path) -> None:
    assert "name: digits" in command("recipes", "show", "digits").stdout
    assert "lr: 0.5" in command("recipes", "show", "digits", "--set", "optim.lr=0.5").stdout
    assert command("recipes", "copy", "digits", str(tmp_path / "mine.yaml")).returncode == 0
    assert "is there already" in mistake("recipes", "copy", "digits", str(tmp_path / "mine.yaml"))
    assert "valid" in command("recipes", "validate", str(tmp_path / "mine.yaml")).stdout
    assert "properties" in json.loads(command("recipes", "schema").stdout)


def test_info_counts_the_papers_parameters() -> None:
    shown = command("info", "imagenet256-b").stdout
    for figure in ("85,056,000", "35,749,920", "212.4 M", "256 (1 × 16 × 16)"):
        assert figure in shown


def test_doctor() -> None:
    result = command("doctor")
    assert result.returncode == 0
    assert "torch" in result.stdout


def test_data_check_names_broken_files(tmp_path: Path) -> None:
    import numpy as np
    import soundfile

    (tmp_path / "wavs").mkdir()
    for name in "abc":
        soundfile.write(tmp_path / "wavs" / f"{name}.wav", np.zeros(22050), 22050)
    (tmp_path / "wavs" / "b.wav").write_text("not sound")
    (tmp_path / "metadata.csv").write_text("a|one|one\nb|two|two\nc|three|three\n")
    result = command("data", "check", "ljspeech", "--set", f"data.root={tmp_path}")
    assert result.returncode == 1
    assert "not readable" in result.stdout
    (tmp_path / "wavs" / "b.wav").unlink()
    soundfile.write(tmp_path / "wavs" / "b.wav", np.zeros(22050), 22050)
    assert command("data", "check", "ljspeech", "--set", f"data.root={tmp_path}").returncode == 0


def test_mistakes_are_one_line_and_exit_code_2(tmp_path: Path, digits_run: Path) -> None:
    line = mistake("train", "ljspeech", cwd=tmp_path)
    assert "data fetch ljspeech" in line
    assert "spoken-digits" in line
    assert "did you mean 'steps'" in mistake("train", "digits", "--set", "optim.stepz=3", cwd=tmp_path)
    assert "-3" in mistake("train", "digits", "--set", "model.width=-3", cwd=tmp_path)
    evil = tmp_path / "evil.yaml"
    evil.write_text("name: !!python/object/apply:os.system ['touch pwned']\n")
    assert "python/object" in mistake("train", str(evil), cwd=tmp_path)
    (tmp_path / "empty").mkdir()
    pictures = ["data={source: image-folder, root: empty, size: [8, 8]}"]
    assert "no pictures" in mistake("train", "digits", *sets(*pictures), cwd=tmp_path)
    assert "no checkpoint yet" in mistake("generate", "empty", cwd=tmp_path)
    assert "no checkpoint yet" in mistake("train", "digits", "--out", "empty", "--resume", cwd=tmp_path)
    assert "no such class" in mistake("generate", str(digits_run), "--class", "seven", cwd=tmp_path)
    assert "without texts" in mistake("generate", str(digits_run), "--text", "seven", cwd=tmp_path)
    assert "cannot be read" in mistake("generate", str(digits_run), "--prompts", "missing.txt", cwd=tmp_path)
    assert "finite" in mistake("generate", str(digits_run), "--seconds", "nan", cwd=tmp_path)
    assert "cuda" in mistake("generate", str(digits_run), "--device", "coda", cwd=tmp_path)
    assert "did you mean" in mistake("train", "digit", cwd=tmp_path)
    # nothing was left behind
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "evil.yaml"]
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_killed_run_resumes(tmp_path: Path) -> None:
    """SIGTERM saves a checkpoint and exits with 130; --resume finishes the run."""
    import signal
    import time

    out = tmp_path / "run"
    overrides = sets(*SMALL, "optim.steps=100000", "run.log_every=1")
    arguments = [sys.executable, "-m", "djepa_mm", "train", "digits", "--out", str(out), *overrides]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = out / "log.jsonl"
    for _ in range(600):
        if log.exists() and log.read_text().count("\n") > 3:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    reached = int(next(iter((out / "checkpoints").iterdir())).name.removeprefix("step-"))
    assert reached > 3
    result = command("train", "digits", "--out", str(out), "--resume", *sets(*SMALL, f"optim.steps={reached + 2}"))
    assert f"finished at step {reached + 2}" in result.stdout, result.stderr
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == sorted(set(steps))
