"""The verbs in their order, and the entry point."""

from __future__ import annotations

import os
import sys
import time
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, TextIO

import typer

import djepa_mm
from djepa_mm.cli import data, recipes, tokenizer, vocoder
from djepa_mm.cli.demo import demo
from djepa_mm.cli.doctor import doctor
from djepa_mm.cli.edit import edit
from djepa_mm.cli.encode import encode
from djepa_mm.cli.evaluate import evaluate
from djepa_mm.cli.export import export
from djepa_mm.cli.generate import generate
from djepa_mm.cli.import_ import import_
from djepa_mm.cli.info import info
from djepa_mm.cli.tokens import tokens
from djepa_mm.cli.train import train
from djepa_mm.errors import Notice, UserError

PATIENCE_S = 10  # of torchrun's other processes, until they speak for themselves


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"djepa-mm {djepa_mm.__version__}")
        raise typer.Exit


app = typer.Typer(
    name="djepa-mm",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=True,
)


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version, and end.")
    ] = False,
) -> None:
    """Generate images, video and speech with one model family, D-JEPA: train a recipe, then generate from the run."""


for verb in (train, encode, generate, edit, evaluate, tokens, info, doctor, demo):
    app.command()(verb)
app.command("import")(import_)
app.command()(export)
app.add_typer(recipes.app, name="recipes")
app.add_typer(data.app, name="data")
app.add_typer(tokenizer.app, name="tokenizer")
app.add_typer(vocoder.app, name="vocoder")


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit code 2."""
    warnings.showwarning = _show
    first = os.environ.get("RANK", "0") == "0"  # of torchrun's processes, it speaks for all
    if not first:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    try:
        _check_none_empty(sys.argv[1:])
        with _together():
            app(args=[_expanded(word) for word in sys.argv[1:]])
    except UserError as error:
        if not first:  # all have found the same, mostly: the first one says it, and torchrun ends this one meanwhile
            time.sleep(PATIENCE_S)
        sys.stderr.write(f"djepa-mm: {error}\n")
        sys.exit(2)
    except BrokenPipeError:  # whoever read what was printed is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        sys.stderr.write(f"djepa-mm: {error.filename or 'a file'}: {(error.strerror or str(error)).lower()}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _together() -> AbstractContextManager[object]:
    """Processes that torchrun has started are joined."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return nullcontext()
    from djepa_mm.ranks import joined  # seconds to import

    return joined()


def _check_none_empty(words: list[str]) -> None:
    """An empty folder's name would be the current folder. Raises UserError."""
    for before, word in zip(["djepa-mm", *words], words, strict=False):
        option, equals, value = word.partition("=")
        if not word or (equals and not value and option[:2] == "--"):
            raise UserError(
                f"{before if not word else option}: nothing comes after it; is a variable of the shell not set?"
            )


def _expanded(word: str) -> str:
    """An option such as --out=~/run with the home folder in it, which no shell puts there."""
    option, equals, value = word.partition("=")
    return f"{option}={Path(value).expanduser()}" if equals and option[:2] == "--" and value[:1] == "~" else word


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A line on stderr for what the user should know; other warnings as Python writes them."""
    if os.environ.get("RANK", "0") != "0":
        return
    usual = warnings.formatwarning(message, category, filename, lineno, line)
    sys.stderr.write(f"djepa-mm: {message}\n" if category is Notice else usual)
