"""The verbs in their order, and the entry point."""

from __future__ import annotations

import sys
import warnings
from typing import TextIO

import typer

from djepa_mm.cli import data, recipes, vocoder
from djepa_mm.cli.demo import demo
from djepa_mm.cli.doctor import doctor
from djepa_mm.cli.edit import edit
from djepa_mm.cli.evaluate import evaluate
from djepa_mm.cli.export import export
from djepa_mm.cli.generate import generate
from djepa_mm.cli.import_ import import_
from djepa_mm.cli.info import info
from djepa_mm.cli.tokens import tokens
from djepa_mm.cli.train import train
from djepa_mm.errors import Notice, UserError

app = typer.Typer(
    name="djepa-mm",
    help="Generate images, video and speech with one model family, D-JEPA: train a recipe, then generate from the run.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)
for verb in (train, generate, edit, evaluate, tokens, info, doctor, demo):
    app.command()(verb)
app.command("import")(import_)
app.command()(export)
app.add_typer(recipes.app, name="recipes")
app.add_typer(data.app, name="data")
app.add_typer(vocoder.app, name="vocoder")


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit code 2."""
    warnings.showwarning = _show
    try:
        app()
    except UserError as error:
        sys.stderr.write(f"djepa-mm: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A line on stderr for what the user should know; other warnings as Python writes them."""
    usual = warnings.formatwarning(message, category, filename, lineno, line)
    sys.stderr.write(f"djepa-mm: {message}\n" if category is Notice else usual)
