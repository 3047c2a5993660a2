"""Tokenizers of one's own."""

from __future__ import annotations

from pathlib import Path

import typer

from djepa_mm.cli.options import DeviceOption, OutOption, RecipeArgument, ResumeOption, SetOption

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
    from djepa_mm.door import find_device
    from djepa_mm.recipe.tokenizer import load_tokenizer_recipe
    from djepa_mm.runs.log import run_console
    from djepa_mm.training.tokenizer import train_tokenizer

    loaded = load_tokenizer_recipe(recipe, set_ or [])
    folder = out or Path("runs") / loaded.name
    outcome = train_tokenizer(loaded, folder, resume=resume, device=find_device(device), console=run_console())
    if not outcome.finished:
        typer.echo(f"go on with it: djepa-mm tokenizer train {recipe} --out {outcome.run} --resume")
        raise typer.Exit(130)
    typer.echo(f"train on its tokens: --set 'tokenizer={{kind: trained, path: {outcome.run}}}'")
