"""Keep the tokens of a corpus."""

from __future__ import annotations

import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer

from djepa_mm.cli.options import DeviceOption, RecipeArgument, SetOption, console, same_command
from djepa_mm.errors import UserError

SHOW_EVERY_S, PRINT_EVERY_S = 0.5, 60.0  # at a terminal, and elsewhere


class Width(StrEnum):
    """Of a number that is kept."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


def encode(
    recipe: RecipeArgument,
    out: Annotated[Path, typer.Option(help="Folder for the latents; what is there already is not made again.")],
    draws: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Readings of an item, where the corpus has too many to keep: random windows."),
    ] = None,
    dtype: Annotated[
        Width, typer.Option(help="Of what is kept; bf16 and fp16 take half the room, and round the tokens.")
    ] = Width.fp32,
    batch: Annotated[int, typer.Option(min=1, help="Items encoded together.")] = 16,
    shard: Annotated[int, typer.Option(min=1, help="Most items in a file.")] = 1000,
    set_: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Write the tokens of a recipe's corpus once, and what a frozen text encoder makes of its captions; training reads
    them by data.source latents.

    Stopped, it goes on where it was; under torchrun several processes share out the work. Flips are kept as two, of a
    VAE that draws the mean and deviation."""
    from djepa_mm.data.encoding import Keeping, encode_corpus
    from djepa_mm.data.latents import ABOUT
    from djepa_mm.door import find_device
    from djepa_mm.ranks import current
    from djepa_mm.recipe.load import load_recipe
    from djepa_mm.runs.log import run_bar
    from djepa_mm.training.interrupts import Interrupts

    ranks = current()
    keeping = Keeping(dtype=dtype.value, drawn=draws, at_once=batch, shard_items=shard)
    terminal = console()
    if (out / ABOUT).exists():
        typer.echo(f"going on with the latents in {out}")
    every_s = SHOW_EVERY_S if terminal.is_terminal else PRINT_EVERY_S
    interrupts = Interrupts()
    with interrupts.heard(), run_bar(terminal, "encoding") as advance:
        began, first, shown = time.monotonic(), None, 0.0

        def progress(done: int, total: int) -> None:
            nonlocal first, shown
            first = done if first is None else first  # what was there before
            now = time.monotonic()
            text = None
            if now - shown > every_s:
                text, shown = f"{done:,}/{total:,}  {(done - first) / (now - began):.1f}/s", now
            advance(done / max(total, 1), text)

        try:
            result = encode_corpus(
                load_recipe(recipe, set_ or []),
                out,
                keeping,
                rank=ranks.rank,
                world=ranks.world,
                device=find_device(device),
                progress=progress,
                stopped=lambda: bool(interrupts),
            )
        except UserError as error:
            if not ranks.first:  # which nobody waits for, and so nobody would tell it
                sys.stderr.write(f"djepa-mm: rank {ranks.rank}: {error}\n")
            raise
    if interrupts and not result.finished:
        typer.echo(f"go on with it: {same_command()}")
        raise typer.Exit(130)
    if not result.finished:
        typer.echo(f"rank {ranks.rank} is done; the last one of {ranks.world} writes the index")
        return
    broken = f", {result.broken:,} of them broken" if result.broken else ""
    typer.echo(f"{result.items:,} items{broken}; train on them: --set 'data={{source: latents, root: {out}}}'")
