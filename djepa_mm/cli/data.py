"""Fetch, make, check and pack corpora."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from djepa_mm.cli.options import RecipeArgument, SetOption, console, progress_bar

app = typer.Typer(help="Fetch or make a corpus; check one; pack one into shards.", no_args_is_help=True)


@app.command("fetch")
def fetch_data(
    recipe: RecipeArgument,
    out: Annotated[Optional[Path], typer.Option(help="Where to; the recipe's data.root by default.")] = None,  # noqa: UP045
    set_: SetOption = None,
) -> None:
    """Download or make the corpus of a recipe, e.g. ljspeech or spoken-digits."""
    from djepa_mm.recipe.kinds import load_any

    overrides = [*(set_ or []), *([f"data.root={out}"] if out else [])]
    with progress_bar("fetching") as progress:
        typer.echo(load_any(recipe, overrides).data.fetch(progress))


@app.command("check")
def check_data(recipe: RecipeArgument, set_: SetOption = None) -> None:
    """Read every item of a recipe's corpus and report the broken ones; exit code 1 where there are any."""
    from djepa_mm.data.check import check_corpus
    from djepa_mm.recipe.kinds import load_any

    with progress_bar("reading") as progress:
        table, healthy = check_corpus(load_any(recipe, set_ or []), progress)
    console().print(table)
    if not healthy:
        raise typer.Exit(1)


@app.command("pack")
def pack_data(
    recipe: RecipeArgument,
    out: Annotated[Path, typer.Option(help="Folder to make; it appears once all is in it.")],
    shard_size: Annotated[float, typer.Option(min=0.001, metavar="MB", help="Of a shard, about.")] = 256,
    set_: SetOption = None,
) -> None:
    """Write the corpus of a recipe as WebDataset's shards, shuffled, with an index; broken items are named."""
    from djepa_mm.data.pack import pack
    from djepa_mm.recipe.kinds import load_any

    with progress_bar("packing") as progress:
        packed = pack(load_any(recipe, set_ or []), out, int(shard_size * 1e6), progress)
    typer.echo(f"{packed.items:,} items in {packed.shards:,} shards: {out}")
    for name, reason in packed.broken.items():
        typer.echo(f"left out, broken: {name}: {reason}", err=True)
