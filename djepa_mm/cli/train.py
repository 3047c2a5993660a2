"""Train a recipe."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Optional

import typer

from djepa_mm.cli.options import DeviceOption, OutOption, RecipeArgument, ResumeOption, SetOption


def train(
    recipe: RecipeArgument,
    out: OutOption = None,
    resume: ResumeOption = False,
    from_: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--from", metavar="RUN", help="Begin with the weights of this run, to fine-tune it."),
    ] = None,
    set_: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train a recipe: checkpoints, logs and sample sheets go into the run folder."""
    from djepa_mm.door import train as run
    from djepa_mm.recipe.load import load_recipe

    outcome = run(load_recipe(recipe, set_ or []), out, resume=resume, start=from_, device=device)
    if outcome.finished:
        typer.echo(f"generate from it: djepa-mm generate {outcome.run}")
    else:
        settings = [word for one in set_ or [] for word in ("--set", one)]
        command = ["djepa-mm", "train", recipe, "--out", str(outcome.run), *settings, "--resume"]
        typer.echo(f"go on with it: {shlex.join(command)}")
        raise typer.Exit(130)
