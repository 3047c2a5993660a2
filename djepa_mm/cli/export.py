"""Write a run's weights as the authors of D-JEPA or MAR name them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer

from djepa_mm.cli.options import Kept, KeptOption


class Family(StrEnum):
    """Whose names and cuts."""

    djepa = "djepa"
    mar = "mar"
    kl16 = "kl16"


def export(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run folder, or one checkpoint in it; for kl16 also a VAE's folder.")
    ],
    to: Annotated[Family, typer.Option(help="Whose names the weights get.")],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="File; RUN/<name>.safetensors by default, where name is what --to says."),
    ] = None,
    weights: KeptOption = Kept.averaged,
) -> None:
    """Export a run's weights, or its VAE's, as safetensors under the authors' names."""
    from djepa_mm.runs.published import export_model, export_vae, vae_folder

    path = out or run / f"{to.value}.safetensors"
    if to is Family.kl16:
        export_vae(vae_folder(run), path)
    else:
        export_model(run, "mar" if to is Family.mar else "djepa", path, kept=weights.value)
    typer.echo(path)
