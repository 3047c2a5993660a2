"""Compare tokenizers on files, save tokens, and turn them back into media."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from djepa_mm.cli.options import MOST_PATHS, DeviceOption, console, progress_bar
from djepa_mm.errors import UserError


def tokens(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Clips, pictures or sounds; or saved tokens.")],
    tokenizer: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="A recipe, or a kind with keys: clip-patches,patch=[2,8,8]. Repeatable."),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder for comparisons, or for the media of saved tokens; tokens/ by default."),
    ] = None,
    save: Annotated[Optional[Path], typer.Option(help="Folder to save the tokens in, as safetensors.")] = None,  # noqa: UP045
    json_: Annotated[Optional[Path], typer.Option("--json", help="File for all figures.")] = None,  # noqa: UP045
    repeats: Annotated[int, typer.Option(min=1, help="Of encoding and decoding; rates are medians.")] = 3,
    device: DeviceOption = "auto",
) -> None:
    """The token bench: what tokenizers keep of files, in figures and side by side; saved tokens back to media."""
    import json

    from djepa_mm.bench.candidate import parse_tokenizer
    from djepa_mm.bench.measure import bench, report, table, write_comparisons
    from djepa_mm.bench.saved import decode_files, save_all
    from djepa_mm.door import find_device

    folder = out or Path("tokens")
    if all(file.suffix == ".safetensors" for file in files):
        for path in decode_files(files, folder, find_device(device)):
            typer.echo(path)
        return
    if not tokenizer:
        raise UserError("--tokenizer: give at least one, such as clip-patches,patch=[2,8,8] or a recipe's name")
    candidates = [parse_tokenizer(name, files) for name in tokenizer]
    with progress_bar("tokenizing") as progress:
        rows = bench(candidates, files, repeats=repeats, device=find_device(device), progress=progress)
    console().print(table(rows))
    for path, reason in dict(pair for row in rows for pair in row.skipped).items():
        typer.echo(f"skipped {path}: {reason}", err=True)
    for row in rows:
        written = list(write_comparisons(row, folder))
        if save is not None:
            written += list(save_all(row, save, find_device(device)))
        for path in written if len(written) <= MOST_PATHS else written[:1]:
            typer.echo(path)
    if json_ is not None:
        json_.parent.mkdir(parents=True, exist_ok=True)
        json_.write_text(json.dumps(report(rows), indent=2) + "\n", encoding="utf-8")
