"""Fetch, make, check and pack corpora; what a run has sampled of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from djepa_mm.cli.options import RecipeArgument, RunArgument, SetOption, console, progress_bar, run_of

app = typer.Typer(
    help="Fetch or make a corpus; check one; pack one into shards; see what a run has sampled.", no_args_is_help=True
)


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


@app.command("stats")
def stats(
    run: RunArgument,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON, and draw nothing.")] = False,
    plot: Annotated[Optional[Path], typer.Option(help="PNG file; RUN/data-stats.png by default.")] = None,  # noqa: UP045
) -> None:
    """What a run with data feedback has really sampled, beside what was wanted and what its corpus offered."""
    from dataclasses import asdict

    from djepa_mm.data.statistics import most_frequent, statistics, table
    from djepa_mm.media.plot import bars
    from djepa_mm.runs.files import written_to

    rows = statistics(run)
    if json_:
        import json

        typer.echo(json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False))
        return
    title = f"{run_of(run).name}: what was sampled"
    console().print(table(rows, title))
    target = plot or run_of(run) / "data-stats.png"
    with written_to(target.parent):
        bars(most_frequent(rows), title=title, bar="sampled", mark="wanted").save(target, "PNG")
    typer.echo(f"plot: {target}")
