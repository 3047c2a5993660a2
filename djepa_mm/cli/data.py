"""Fetch, make and check corpora."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from djepa_mm.cli.options import RecipeArgument, SetOption, console, progress_bar

app = typer.Typer(help="Fetch or make a corpus; check one.", no_args_is_help=True)


@app.command("fetch")
def fetch_data(
    recipe: RecipeArgument,
    out: Annotated[Optional[Path], typer.Option(help="Where to; the recipe's data.root by default.")] = None,  # noqa: UP045
    set_: SetOption = None,
) -> None:
    """Download or make the corpus of a recipe, e.g. ljspeech or spoken-digits."""
    from djepa_mm.recipe.load import load_recipe

    overrides = [*(set_ or []), *([f"data.root={out}"] if out else [])]
    with progress_bar("fetching") as progress:
        typer.echo(load_recipe(recipe, overrides).data.fetch(progress))


@app.command("check")
def check_data(recipe: RecipeArgument, set_: SetOption = None) -> None:
    """Read every item of a recipe's corpus and report the broken ones; exit code 1 where there are any."""
    from djepa_mm.data.check import check_corpus
    from djepa_mm.recipe.load import load_recipe

    with progress_bar("reading") as progress:
        table, healthy = check_corpus(load_recipe(recipe, set_ or []), progress)
    console().print(table)
    if not healthy:
        raise typer.Exit(1)
