"""Runs the examples of a page one after the other, in the folder where it is started: `python -m examples PAGE`.

Of a notebook it writes what the cells give into it: `cd tests && python -m examples ../docs/first-steps.ipynb`.

Blocks of Python share one namespace; those that begin with a comment that is a path are written there instead, and so
is YAML. Commands go through the entry point, in this process. Trainings are short and small; nothing else is changed.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import djepa_mm
from djepa_mm.layout import EXTENSIONS

SMALL = {
    "model.width": 32, "model.depth": 1, "model.heads": 2, "head.width": 32, "head.blocks": 1, "head.steps": 2,
    "batch.size": 8, "batch.cache": False, "sample.steps": 2, "run.samples": 4, "run.sample_every": None,
    "run.log_every": 2, "optim.steps": 4, "optim.minutes": None, "optim.precision": "fp32",
}  # fmt: skip
SMALL_TOKENIZER = {
    "model.width": 12, "model.depth": 0, "model.heads": 2, "batch.size": 8, "batch.cache": False, "optim.steps": 4,
    "optim.minutes": None,
}  # fmt: skip
SMALL_VOCODER = {"model.width": 16, "model.blocks": 1, "batch.size": 2, "optim.steps": 2, "optim.minutes": None}
ELSEWHERE = (  # what CI and the developer run, before or beside the tests
    "python3 -m venv .venv",
    ". .venv/bin/activate",
    "pip install uv",
    'uv pip install --compile-bytecode -e ".[demo]" -c constraints.txt',
    'uv pip install --compile-bytecode -e ".[dev]" -c constraints.txt',
    'pip install -e ".[dev]" -c constraints.txt',
    *("pytest", "pytest -n 2", "pre-commit install", "ruff check .", "ruff format .", "mypy"),
)


def blocks(page: Path) -> Iterator[tuple[int, str, str]]:
    """(Line where it begins, language, text) of every fenced block."""
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield text[: found.start()].count("\n") + 1, found[1], found[2]


def run_page(page: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for line, language, text in blocks(page):
        named = re.match(r"# (\S+/\S+\.(?:py|yaml))\n", text)
        if named:
            Path(named[1]).parent.mkdir(parents=True, exist_ok=True)
            Path(named[1]).write_text(text, encoding="utf-8")
        elif language == "python":
            with shortened():
                exec(compile("\n" * line + text, str(page), "exec"), namespace)
        elif language == "bash":
            for command in commands(text):
                run_command(command)
        else:
            assert language == "text", f"{page}:{line}: a block of {language or 'no language'} that nothing runs"


def commands(text: str) -> Iterator[str]:
    for line in text.splitlines():
        yield from (command.strip() for command in line.split("&&") if command.strip())


def run_command(command: str) -> None:
    """Raises ValueError for one that is neither ours nor known to run elsewhere."""
    name, *arguments = shlex.split(command, comments=True)
    if command in ELSEWHERE:
        return
    if name == "export":
        for variable, value in (argument.split("=", 1) for argument in arguments):
            if variable == EXTENSIONS:  # which the commands' own processes would read as they start
                djepa_mm.extend(value)
            else:
                os.environ[variable] = value
        return
    if name != "djepa-mm":
        raise ValueError(f"nothing runs this example: {command}")
    from djepa_mm.cli import main

    print("$", command, flush=True)
    with shortened(), mock.patch("sys.argv", [name, *arguments]):
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise RuntimeError(f"{command}: exit code {end.code}") from None


@contextmanager
def shortened() -> Iterator[None]:
    """While it lasts, whatever is trained is trained shortly."""
    from djepa_mm import door
    from djepa_mm.recipe.load import load_recipe, recipe_data
    from djepa_mm.recipe.tokenizer import load_tokenizer_recipe
    from djepa_mm.recipe.vocoder import load_vocoder_recipe
    from djepa_mm.training import djepa, tokenizer, vocoder

    def train(recipe: Any, *arguments: Any, **options: Any) -> Any:
        small: dict[str, Any] = {**SMALL}
        if hasattr(recipe.data, "count"):
            small["data.count"] = 60
        if hasattr(getattr(recipe.tokenizer, "vocoder", None), "iterations"):
            small["tokenizer.vocoder.iterations"] = 4
        return djepa.train(load_recipe(recipe_data(recipe), small), *arguments, **options)

    def shorter(real: Any, load: Any, small: Any) -> Any:
        return lambda recipe, *arguments, **options: real(load(recipe_data(recipe), small), *arguments, **options)

    of_tokenizers = shorter(tokenizer.train_tokenizer, load_tokenizer_recipe, SMALL_TOKENIZER)
    of_vocoders = shorter(vocoder.train_vocoder, load_vocoder_recipe, SMALL_VOCODER)
    with (
        mock.patch.object(door, "train_djepa", train),
        mock.patch.object(tokenizer, "train_tokenizer", of_tokenizers),
        mock.patch.object(vocoder, "train_vocoder", of_vocoders),
    ):
        yield


def run_notebook(notebook: Any, folder: Path) -> None:
    """Execute it with this Python, whatever kernels are installed; the outputs lie in its cells afterwards."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    kernel = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, km=kernel, timeout=300, resources=resources, record_timing=False).execute()


def rewrite_notebook(path: Path) -> None:
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    metadata = dict(notebook.metadata)
    with TemporaryDirectory() as folder:
        run_notebook(notebook, Path(folder))
    notebook.metadata = nbformat.from_dict(metadata)  # without the version of this Python
    nbformat.write(notebook, path)


if __name__ == "__main__":
    page = Path(sys.argv[1])
    rewrite_notebook(page) if page.suffix == ".ipynb" else run_page(page)
