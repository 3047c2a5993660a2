"""Train vocoders of our own, and listen to them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
)

app = typer.Typer(help="Train a vocoder of our own, and listen to what one does.", no_args_is_help=True)


@app.command("train")
def train_vocoder_verb(
    recipe: RecipeArgument = "vocoder",
    out: OutOption = None,
    resume: ResumeOption = False,
    set_: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train our Fourier-head vocoder on recordings in LJSpeech's layout."""
    from djepa_mm.door import find_device
    from djepa_mm.recipe.vocoder import load_vocoder_recipe
    from djepa_mm.training.vocoder import train_vocoder

    loaded = load_vocoder_recipe(recipe, set_ or [])
    folder = out or Path("runs") / loaded.name
    outcome = train_vocoder(loaded, folder, resume=resume, device=find_device(device), console=console())
    if not outcome.finished:
        typer.echo(f"go on with it: {same_command('--resume')}")
        raise typer.Exit(130)
    typer.echo(f"speak with it: --set 'tokenizer.vocoder={{kind: fourier, path: {outcome.run}}}'")


@app.command("copy")
def copy_recordings(
    run: RunArgument,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Recordings; they stay as they are.")],
    out: Annotated[Path, typer.Option(help="Folder for the sounds and the page.")] = Path("copies"),
    device: DeviceOption = "auto",
) -> None:
    """Take recordings to log-mels and back, by the vocoder of a run and by Griffin-Lim, to listen and compare."""
    from djepa_mm.door import find_device
    from djepa_mm.speech.copy import copy_synthesis

    with progress_bar("copying") as progress:
        typer.echo(copy_synthesis(run, files, out, device=find_device(device), progress=progress))
