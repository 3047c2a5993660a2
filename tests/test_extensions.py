"""What users add in folders of their own: a kind of condition, a modality. Nothing of the package is touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import ROOT

EXTENSION = Path(__file__).parent / "extension"
SMALL = [
    "model={preset: tiny, width: 32, depth: 1, heads: 2, positions: rotary}", "head={kind: flow, width: 16, blocks: 1}",
    "head.steps=2", "batch.size=6", "sample.steps=2", "run.samples=2", "run.sample_every=null", "optim.steps=4",
    "optim.minutes=null", "mask.low=0.5",
]  # fmt: skip


def python(code: str, folder: Path, *, extended: bool = True) -> subprocess.CompletedProcess[str]:
    """A script in a process of its own, where the extension is found by the environment's variable."""
    environment = os.environ | {"COLUMNS": "200", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if extended:
        environment["DJEPA_MM_EXTENSIONS"] = str(EXTENSION)
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


VERBS = """
import sys
from djepa_mm.cli import main

def run(*arguments, code=0):
    sys.argv = ["djepa-mm", *arguments]
    try:
        main()
    except SystemExit as end:
        assert (end.code or 0) == code, end.code
    else:
        assert code == 0

"""


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Grey squares as bright as the first of the two numbers beside each."""
    root = tmp_path / "pictures"
    root.mkdir()
    for n in range(12):
        Image.fromarray(np.full((8, 8, 3), 20 * n, np.uint8)).save(root / f"{n}.png")
        (root / f"{n}.json").write_text(json.dumps([n / 12, 1.0]))
    (root / "11.json").write_text("[1.0]")  # one too few
    return root


def test_a_condition_of_ones_own_by_the_command_line(pictures: Path, tmp_path: Path) -> None:
    sets = [
        f"data={{source: image-folder, root: {pictures}, size: [8, 8]}}", "tokenizer.channels=3", "batch.cache=false",
        "condition={kind: vector, numbers: 2, buffer_tokens: 2}", "batch.max_broken_share=0.1",
    ]  # fmt: skip
    options = [word for override in [*SMALL, *sets] for word in ("--set", override)]
    script = f"""{VERBS}
run("train", "digits", "--out", "run", *{options!r})
run("info", "run/recipe.yaml")
run("generate", "run", "--condition", "vector=[0.5, 1]", "--count", "2", "--out", "out", "--guidance", "1.5")
run("generate", "run", "--out", "usual")
for request in ("vector=[1, 2, 3]", "class=7", "vector"):
    run("generate", "run", "--condition", request, code=2)
"""
    result = python(script, tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert sorted(p.suffix for p in (tmp_path / "out").iterdir()) == [".html", ".png", ".png", ".png"]
    assert len(list((tmp_path / "usual").glob("00*.png"))) == 4  # those that `fit` has seen
    assert "expected 2 numbers" in json.loads((tmp_path / "run" / "report.json").read_text())["reasons"]["11.png"]

    mistakes = [line for line in result.stderr.splitlines() if line.startswith("djepa-mm:")][-3:]
    messages = ("expected 2 numbers", "takes no class; it knows vector", "write it as KEY=VALUE")
    for line, message in zip(mistakes, messages, strict=True):
        assert message in line
    assert "Traceback" not in result.stderr


def test_a_condition_of_ones_own_through_the_door(pictures: Path, tmp_path: Path) -> None:
    """Known once the folder is; before, the error says how to name it."""
    script = f"""{VERBS}
import djepa_mm
run("recipes", "validate", "digits", "--set", "condition={{kind: vector, numbers: 2}}", code=2)
djepa_mm.extend({str(EXTENSION)!r})
recipe = djepa_mm.load_recipe("digits", {{
    "data": {{"source": "image-folder", "root": {str(pictures)!r}, "size": [8, 8]}},
    "tokenizer.channels": 3, "batch.cache": False, "batch.workers": 1, "batch.max_broken_share": 0.1,
    "condition": {{"kind": "vector", "numbers": 2, "buffer_tokens": 2}},
    "model.width": 32, "model.depth": 1, "model.heads": 2, "head.width": 16, "head.blocks": 1, "head.steps": 2,
    "batch.size": 6, "sample.steps": 2, "optim.steps": 4, "optim.minutes": None, "run.sample_every": None,
}})
outcome = djepa_mm.train(recipe, "run", progress=False)
model = djepa_mm.load(outcome.run)
(item,) = model.generate({{"vector": [0.5, 1.0]}})
print(tuple(item.media.shape), tuple(model.features(item, {{"vector": [0.5, 1.0]}}).shape))
"""
    result = python(script, tmp_path, extended=False)
    assert result.returncode == 0, result.stderr
    (unknown,) = (line for line in result.stderr.splitlines() if line.startswith("djepa-mm:"))
    assert all(part in unknown for part in ("condition.kind", "'vector'", "DJEPA_MM_EXTENSIONS"))
    assert result.stdout.strip() == "(3, 8, 8) (4, 32)"


def test_a_modality_of_ones_own(tmp_path: Path) -> None:
    """One file with its tokenizer, its files and its source, and one recipe; series of many lengths."""
    root = tmp_path / "data" / "series"
    root.mkdir(parents=True)
    for n in range(10):
        time = np.arange(12 + 4 * (n % 3)) / 10
        np.savetxt(root / f"{n}.csv", np.stack([np.sin(time + n), np.cos(time)], axis=1), delimiter=",")
    (root / "broken.csv").write_text("a,b\nc")
    sets = [s for s in SMALL if not s.startswith(("model=", "batch.size"))]
    sets += ["model.width=32", "model.depth=1", "model.heads=2", "batch.size=4", "batch.max_broken_share=0.1"]
    options = [word for override in sets for word in ("--set", override)]
    script = f"""{VERBS}
run("recipes", "validate", {str(EXTENSION / "series.yaml")!r})
run("train", {str(EXTENSION / "series.yaml")!r}, "--out", "run", *{options!r})
run("generate", "run", "--count", "2", "--out", "out")
run("generate", "run", "--seconds", "2.4", "--out", "long")
"""
    result = python(script, tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert [np.loadtxt(tmp_path / "out" / f"000{n}-sample.csv", delimiter=",").shape for n in range(2)] == [(16, 2)] * 2
    assert np.loadtxt(tmp_path / "long" / "0000-sample.csv", delimiter=",").shape == (24, 2)
    assert list(json.loads((tmp_path / "run" / "report.json").read_text())["reasons"]) == ["broken.csv"]


def test_a_file_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    (tmp_path / "conditions").mkdir()
    (tmp_path / "conditions" / "bad.py").write_text("import nothing_of_that_name\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DJEPA_MM_EXTENSIONS": str(tmp_path)}
    command = [sys.executable, "-m", "djepa_mm", "recipes", "validate", "digits"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "bad.py" in result.stderr
    assert "nothing_of_that_name" in result.stderr
    assert len(result.stderr.splitlines()) == 1
