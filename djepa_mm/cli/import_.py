"""Make a run, or a tokenizer's VAE, of a model that its authors publish."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from djepa_mm.cli.options import Kept, KeptOption, SetOption
from djepa_mm.errors import UserError


def import_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Weights: .pth or .ckpt of the authors, or .safetensors.")
    ],
    recipe: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="RECIPE", help="Whose model it is, such as imagenet256-b or mar256-l; none for the VAE."),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Run folder, runs/<recipe's name> by default; of a VAE, its folder, data/kl16 by default."),
    ] = None,
    classes: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Names of the classes in the model's order: a file with one a line, or a folder of folders."),
    ] = None,
    weights: KeptOption = Kept.averaged,
    set_: SetOption = None,
) -> None:
    """Import D-JEPA's or MAR's published weights, or MAR's KL-16 VAE: runs that generate, edit, evaluate and fine-tune.

    Of a file, weights are read and nothing else: code in it is never run.
    """
    from djepa_mm.recipe.load import load_recipe
    from djepa_mm.runs.published import class_names, import_model, import_vae

    if recipe is None:
        if classes is not None or set_:
            raise UserError("--classes and --set belong to a model: give its --recipe, or leave them out for a VAE")
        folder = import_vae(file, out or Path("data/kl16"))
        typer.echo(f"use it: djepa-mm train imagenet256-b --set tokenizer.model={folder}")
        return
    loaded = load_recipe(recipe, set_ or [])
    run = out or Path("runs") / loaded.name
    names = [] if classes is None else class_names(classes)
    import_model(file, loaded, run, classes=names, kept=weights.value)
    typer.echo(f"generate from it: djepa-mm generate {run} --class {names[0] if names else 0}")
