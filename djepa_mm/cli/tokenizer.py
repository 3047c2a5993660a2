"""Tokenizers of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from djepa_mm.cli.options import (
    DeviceOption,
    OutOption,
    RecipeArgument,
    ResumeOption,
    RunArgument,
    SetOption,
    console,
    progress_bar,
    same_command,
    write_json,
)
from djepa_mm.errors import UserError

FEW = 50  # items of each side, for a line at the end of the training

app = typer.Typer(help="Train a tokenizer of our own, and see what it keeps.", no_args_is_help=True)


@app.command("train")
def train_tokenizer_verb(
    recipe: RecipeArgument,
    out: OutOption = None,
    resume: ResumeOption = False,
    set_: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train an autoencoder whose tokens a model can then learn: of pictures, clips or mels."""
    from djepa_mm.bench.reconstruction import reconstruct, summary
    from djepa_mm.door import find_device
    from djepa_mm.ranks import current
    from djepa_mm.recipe.tokenizer import load_tokenizer_recipe
    from djepa_mm.runs.log import run_console
    from djepa_mm.training.tokenizer import train_tokenizer

    loaded = load_tokenizer_recipe(recipe, set_ or [])
    folder = out or Path("runs") / loaded.name
    outcome = train_tokenizer(loaded, folder, resume=resume, device=find_device(device), console=run_console())
    if not outcome.finished:
        typer.echo(f"go on with it: {same_command('--resume')}")
        raise typer.Exit(130)
    if current().first:
        try:
            with progress_bar("reconstructing") as progress:
                found = reconstruct(outcome.run, count=FEW, noises=(), device=find_device(device), progress=progress)
            typer.echo(f"{summary(found)}; more of it: djepa-mm tokenizer evaluate {outcome.run}")
        except UserError as error:  # the run is whole all the same
            typer.echo(f"not measured: {error}", err=True)
    typer.echo(f"train on its tokens: --set 'tokenizer={{kind: trained, path: {outcome.run}}}'")


@app.command("evaluate")
def evaluate_tokenizer(
    run: RunArgument,
    count: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Most items of each side; 100 by default."),
    ] = None,
    json_: Annotated[Optional[Path], typer.Option("--json", help="File for all figures.")] = None,  # noqa: UP045
    set_: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """What a tokenizer keeps of held-out items of its corpus, beside those that it has learned from."""
    from djepa_mm.bench.reconstruction import COUNT, reconstruct, report, table
    from djepa_mm.door import find_device
    from djepa_mm.runs.files import check_writable

    if json_ is not None:
        check_writable(json_.parent)
    with progress_bar("reconstructing") as progress:
        found = reconstruct(run, set_ or [], count=count or COUNT, device=find_device(device), progress=progress)
    console().print(table(found))
    if found.held_out is None:
        typer.echo("the corpus keeps nothing back: these are items that the tokenizer has learned from")
    if json_ is not None:
        write_json(json_, report(found))
        typer.echo(json_)
