"""Whatever README and docs show is run, and what they list is there."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from examples import SMALL, blocks, commands, run_command, run_notebook, run_page
from support import ROOT

from djepa_mm.recipe.reference import reference

README, DOCS = ROOT / "README.md", ROOT / "docs"
LONG = '"optim.minutes": 0.5'  # what first steps train for
FEW = {**SMALL, "optim.steps": 1000, "optim.minutes": 0.005}
SHORT = ", ".join(f'"{key}": {value!r}' for key, value in FEW.items())
TREE = ("djepa_mm", "tokenizers", "recipes", "docs", "benchmarks")


def run(folder: Path, *command: str | Path) -> str:
    """What a Python program printed, run in a folder with nothing of this machine's caches."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "COLUMNS": "120",
    }
    environment.pop("DJEPA_MM_EXTENSIONS", None)
    result = subprocess.run(
        [sys.executable, *map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def run_page_in(folder: Path, page: Path) -> str:
    """What the examples of a page print, run in a folder; in this process, where most is imported already."""
    shown = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(shown), mock.patch.dict(os.environ):
        os.environ |= {"XDG_CACHE_HOME": str(folder / "cache"), "COLUMNS": "120"}
        run_page(page)
    return shown.getvalue()


# --- the examples -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def readme_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What README's examples leave in a folder that holds speech in LJSpeech's layout."""
    for package in ("espeakng_loader", "sklearn", "av"):
        pytest.importorskip(package)
    import soundfile

    folder = tmp_path_factory.mktemp("readme")
    corpus, rng, lines = folder / "LJSpeech-1.1", np.random.default_rng(0), []
    (corpus / "wavs").mkdir(parents=True)
    for n in range(12):
        text = " ".join(["please", "enter", "your", "password", "now"][: 1 + n % 5])
        soundfile.write(corpus / "wavs" / f"c{n}.wav", 0.1 * rng.standard_normal(6000 + 1200 * len(text)), 22050)
        lines.append(f"c{n}|{text}|{text}\n")
    (corpus / "metadata.csv").write_text("".join(lines))
    run_page_in(folder, README)
    return folder


def test_readme(readme_runs: Path) -> None:
    assert (readme_runs / "demo" / "index.html").read_text().count("<audio") >= 1
    assert len(list((readme_runs / "runs" / "digits" / "generated").glob("00*-7.png"))) == 16
    assert len(list((readme_runs / "sevens").glob("00*.png"))) == 16
    assert list((readme_runs / "runs" / "moving-digits" / "generated").glob("*.gif"))
    assert list((readme_runs / "runs" / "ljspeech" / "generated").glob("*.wav"))


def test_python_page(readme_runs: Path, tmp_path: Path) -> None:
    shutil.copytree(readme_runs / "runs", tmp_path / "runs")
    shown = run_page_in(tmp_path, DOCS / "python.md")
    assert shown.splitlines()[-1] == "--text: this model takes no text; it knows class"
    names = ("quick", "watched", "unconditional")
    assert all(list((tmp_path / "runs" / name / "checkpoints").glob("step-*")) for name in names)
    for name in ("seven.png", "seven.gif", "310.wav", "sevens/index.html"):
        assert (tmp_path / name).is_file(), name


def test_learned_tokens_page(tmp_path: Path) -> None:
    shown = run_page_in(tmp_path, DOCS / "learned-tokens.md")
    assert "clips-tokens: valid" in shown
    assert "compression, numbers of the media" in shown
    for run in ("digits", "digits-learned"):
        assert "sha256: " in (tmp_path / "runs" / run / "recipe.yaml").read_text("utf-8")
    assert list((tmp_path / "runs" / "digits" / "generated").glob("00*-7.png"))


def test_text_to_image_page(tmp_path: Path) -> None:
    run_page_in(tmp_path, DOCS / "text-to-image.md")
    assert (tmp_path / "painted" / "0000-a-red-circle.png").is_file()
    assert (tmp_path / "runs" / "painted" / "generated" / "0000-a-red-circle.png").is_file()


def test_extending_page(tmp_path: Path) -> None:
    shown = run(tmp_path, "-m", "examples", DOCS / "extending.md")  # in a process of its own, which is extended
    assert "tones: valid" in shown
    assert (tmp_path / "runs" / "tones" / "generated" / "0000-440.wav").is_file()
    assert (tmp_path / "330.wav").is_file()


def test_an_example_that_nothing_runs_is_an_error() -> None:
    for command in ("rm -rf runs", "pip install something", "djepa-mm-old train digits"):
        with pytest.raises(ValueError, match="nothing runs this example"):
            run_command(command)


def test_every_command_is_one_that_there_is() -> None:
    """Also in tables and in the heads of recipes: each names a verb, and options that it has."""
    from typer.main import get_command

    from djepa_mm.cli import app

    root = get_command(app)
    pages = [README, *DOCS.glob("*.md"), *(ROOT / "recipes").glob("*.yaml")]
    written = re.compile(r"(?:`|&& |^(?:#   )?)djepa-mm ([a-z][^`|#\n&]*)", re.MULTILINE)
    found = {line for page in pages for line in written.findall(page.read_text("utf-8"))}
    assert len(found) > 30
    for line in found:
        words = line.split()
        command: Any = root
        while words and words[0] in getattr(command, "commands", ()):
            command = command.commands[words.pop(0)]
        assert command is not root, f"djepa-mm {line}: there is no such verb"
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", line):
            assert option in known or option == "--help", f"djepa-mm {line}: {option} is no option of it"


# --- first steps ------------------------------------------------------------------------------------------------------


def shorter(code: str) -> str:
    assert code.count(LONG) == 1
    return code.replace(LONG, SHORT)


def test_first_steps_as_a_script(tmp_path: Path) -> None:
    code = (DOCS / "first_steps.py").read_text(encoding="utf-8")
    assert len(code.splitlines()) <= 15
    assert ";" not in code
    shown = io.StringIO()
    with contextlib.chdir(tmp_path), contextlib.redirect_stdout(shown):
        exec(compile(shorter(code), "first_steps.py", "exec"), {"__name__": "__main__"})
    assert shown.getvalue().splitlines()[-1].endswith("torch.Size([4, 16])")
    assert len(list((tmp_path / "sevens").glob("00*-7.png"))) == 16
    assert (tmp_path / "edited.png").is_file()


def test_first_steps_as_a_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are shown; progress is lines of text, and nothing warns."""
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(DOCS / "first-steps.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code" and LONG in cell.source:
            cell.source = shorter(cell.source)
    run_notebook(notebook, tmp_path)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert sum("<img" in "".join(output.get("data", {}).get("text/html", "")) for output in outputs) == 2
    printed = "".join(output["text"] for output in outputs if output.output_type == "stream")
    assert "finished at step" in printed
    assert "\x1b" not in printed, "a live bar, drawn in a place that cannot show it"
    assert (tmp_path / "edited.png").is_file()


def test_the_notebook_is_kept_executed() -> None:
    nbformat = pytest.importorskip("nbformat")
    path = DOCS / "first-steps.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    text = path.read_text(encoding="utf-8")
    assert len(text) < 150_000
    assert not re.search(r"/(?:home|tmp|root|work|Users)/", text)
    script = (DOCS / "first_steps.py").read_text(encoding="utf-8")
    for line in (line for cell in code for line in cell.source.splitlines()):
        assert line.split("  #")[0] in script or line.startswith(("sevens", "edited", "tokens", "print")), line


# --- what pages list --------------------------------------------------------------------------------------------------


def test_the_page_of_recipes_is_fresh() -> None:
    fresh = (DOCS / "recipes.md").read_text(encoding="utf-8") == reference()
    assert fresh, "out of date: python -m djepa_mm.recipe.reference > docs/recipes.md"


def test_the_tree_has_a_line_for_every_file() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone")
    (tree,) = (text for _, language, text in blocks(README) if language == "text")
    shown, folders = set(), []
    for line in tree.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 4, line.split()[0]
        folders = [*folders[:depth], name.rstrip("/")]
        if not name.endswith("/"):
            shown.add("/".join(folders))
            assert len(line.split()) > 1, f"{line}: nothing is said of it"
    listed = subprocess.run(["git", "ls-files", "-z", *TREE], cwd=ROOT, capture_output=True, text=True, check=True)
    files = {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}
    packages = {name for name in files if name.endswith("/__init__.py")} - {
        "djepa_mm/__init__.py"
    }  # their folder's line
    assert files - packages - shown == set(), "without a line in README's tree"
    media = {name for name in shown if name.endswith((".png", ".wav"))}
    assert shown - files - media - {"cli.py"} == set(), "in README's tree, and not there"


def test_links_lead_somewhere() -> None:
    for page in (README, *DOCS.glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
            media = target.endswith((".png", ".wav"))
            assert media or (page.parent / target).exists(), f"{page.name}: {target}"


def test_commands_are_read_as_a_shell_does() -> None:
    assert list(commands("a b && c\n\nd\n")) == ["a b", "c", "d"]
