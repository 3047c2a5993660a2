"""Measure a run beside held-out items."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from djepa_mm.cli.options import (
    DeviceOption,
    GuidanceOption,
    RecogniserOption,
    RunArgument,
    SeedOption,
    SetOption,
    StepsOption,
    SweepsOption,
    TemperatureOption,
    check_finite,
    console,
    progress_bar,
    read_prompts,
    run_of,
    write_json,
)
from djepa_mm.errors import UserError

WIN_RATE = "winrate"


def evaluate(
    context: typer.Context,
    run: RunArgument,
    votes: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(
            metavar="[VOTES.csv]", help="After `winrate` in place of RUN: people's votes between two models' pictures."
        ),
    ] = None,
    prompts: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A file with one text a line; by default the corpus' held-out items, with their recordings."),
    ] = None,
    count: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Items; by default 100 held-out sentences, 200 clips or pictures, 300 of shapes."),
    ] = None,
    recogniser: RecogniserOption = "auto",
    extractor: Annotated[
        str,
        typer.Option(
            help="Of the features of clips and pictures: a TorchScript file (I3D), a video model's folder or hub name, "
            "or embedded: a classifier of frames, trained on the corpus, or pixels where it has no classes."
        ),
    ] = "embedded",
    given: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Frames of a held-out clip that the others are predicted from; a quarter by default."),
    ] = None,
    steps: StepsOption = None,
    sweeps: SweepsOption = None,
    guidance: GuidanceOption = None,
    temperature: TemperatureOption = None,
    seed: SeedOption = 0,
    out: Annotated[Optional[Path], typer.Option(help="JSON file; RUN/evaluation.json by default.")] = None,  # noqa: UP045
    set_: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure a run beside held-out items; a table, and JSON with the checkpoint's hash.

    Speech: word error rate, distances to recordings. Clips and pictures: Fréchet distance, recognised classes,
    prediction. Shapes: what fits its caption. Speed. `evaluate winrate VOTES.csv` counts people's votes."""
    import shlex

    from djepa_mm.door import load
    from djepa_mm.evaluate.report import report
    from djepa_mm.ranks import current
    from djepa_mm.runs.files import check_writable

    if votes is not None:
        _count_votes(context, run, votes, out)
        return
    if str(run) == WIN_RATE and not run.exists():
        raise UserError(f"evaluate {WIN_RATE}: which votes? name their file: djepa-mm evaluate {WIN_RATE} VOTES.csv")
    check_finite(guidance=guidance, temperature=temperature)
    texts = read_prompts(prompts) if prompts is not None else []
    target = out or run_of(run) / "evaluation.json"
    if target.is_dir():
        raise UserError(f"--out {target}: that is a folder; name a file in it")
    check_writable(target.parent)  # before minutes of work
    model = load(run, set_ or [], device=device)
    with progress_bar("evaluating") as progress:
        figures = model.evaluate(
            texts=texts,
            count=count,
            recogniser=recogniser,
            extractor=extractor,
            given=given,
            ar_steps=steps,
            sweeps=sweeps,
            guidance=guidance,
            temperature=temperature,
            seed=seed,
            command=shlex.join(["djepa-mm", *sys.argv[1:]]),
            progress=progress,
        )
    if not current().first:
        return
    write_json(target, figures)
    console().print(report(figures))
    typer.echo(target)


def _count_votes(context: typer.Context, word: Path, votes: Path, out: Path | None) -> None:
    """The table of win rates, and JSON where it is asked for."""
    from djepa_mm.evaluate.win_rate import win_rate_table, win_rates

    if str(word) != WIN_RATE:
        raise UserError(f"{votes}: one RUN is measured at a time; votes are counted by: evaluate {WIN_RATE} VOTES.csv")
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        given = source is not None and source.name == "COMMANDLINE"
        if given and parameter.name not in ("run", "votes", "out"):
            raise UserError(f"{parameter.opts[0]} does not go with {WIN_RATE}: leave it out")
    rates = win_rates(votes)
    if out is not None:
        if out.is_dir():
            raise UserError(f"--out {out}: that is a folder; name a file in it")
        write_json(out, rates)
    console().print(win_rate_table(rates, str(votes)))
