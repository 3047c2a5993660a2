"""Compare tokenizers, on files or by what a small core makes of their tokens; save tokens, and take them back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Optional

import typer

from djepa_mm.cli.options import (
    MOST_PATHS,
    DeviceOption,
    SetOption,
    check_finite,
    console,
    progress_bar,
    same_command,
    write_json,
)
from djepa_mm.errors import UserError


def tokens(
    files: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Argument(metavar="FILE...", help="Clips, pictures or sounds; or saved tokens."),
    ] = None,
    tokenizer: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="A recipe, or a kind with keys: clip-patches,patch=[2,8,8], or trained,path=runs/digits-tokens. "
            "Repeatable."
        ),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder for comparisons, for the media of saved tokens, or for runs; tokens/ by default."),
    ] = None,
    save: Annotated[Optional[Path], typer.Option(help="Folder to save the tokens in, as safetensors.")] = None,  # noqa: UP045
    json_: Annotated[Optional[Path], typer.Option("--json", help="File for all figures.")] = None,  # noqa: UP045
    repeats: Annotated[int, typer.Option(min=1, help="Of encoding and decoding; rates are medians.")] = 3,
    generate: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            metavar="MINUTES",
            help="Instead of files: train the core of --recipe on each tokenizer for so long, a tokenizer's own "
            "training counted in, and compare what they generate.",
        ),
    ] = None,
    recipe: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="RECIPE", help="With --generate. --tokenizer recipe is its own tokenizer."),
    ] = None,
    count: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=2, help="With --generate: items to measure; by default 100 sentences, or 200 others."),
    ] = None,
    seed: Annotated[Optional[int], typer.Option(min=0, help="With --generate: in place of the recipe's.")] = None,  # noqa: UP045
    set_: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """The token bench: what tokenizers keep of files, in figures and side by side; saved tokens back to media.

    With --generate MINUTES: what the same small core makes of their tokens, in equal time."""
    if generate is not None:
        if files or save is not None:
            raise UserError(
                f"--generate measures items of the recipe's corpus: leave {'FILE' if files else '--save'} out"
            )
        sets = [*(set_ or []), *([] if seed is None else [f"run.seed={seed}"])]
        _generate(generate, recipe, tokenizer or [], out or Path("tokens"), json_, count, sets, device)
        return
    for name, value in (("recipe", recipe), ("count", count), ("seed", seed), ("set", set_)):
        if value is not None and value != []:
            raise UserError(f"--{name} goes with --generate MINUTES; files are measured without")
    if not files:
        raise UserError("FILE: give clips, pictures, sounds or saved tokens, or --generate MINUTES with --recipe")
    _compare(files, tokenizer or [], out or Path("tokens"), save, json_, repeats, device)


def _compare(
    files: Sequence[Path],
    names: Sequence[str],
    folder: Path,
    save: Path | None,
    json_: Path | None,
    repeats: int,
    device: str,
) -> None:
    from djepa_mm.bench.candidate import parse_tokenizer
    from djepa_mm.bench.measure import bench, report, table, write_comparisons
    from djepa_mm.bench.saved import decode_files, save_all
    from djepa_mm.door import find_device

    if all(file.suffix == ".safetensors" for file in files):
        for path in decode_files(files, folder, find_device(device)):
            typer.echo(path)
        return
    _check_named(names)
    candidates = [parse_tokenizer(name, files) for name in names]
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
        write_json(json_, report(rows))


def _generate(
    minutes: float,
    recipe: str | None,
    names: Sequence[str],
    folder: Path,
    json_: Path | None,
    count: int | None,
    sets: Sequence[str],
    device: str,
) -> None:
    from djepa_mm.bench.compare import measure_core, plan, plot, report, table, train_core
    from djepa_mm.door import find_device
    from djepa_mm.ranks import current
    from djepa_mm.recipe.load import load_recipe
    from djepa_mm.runs.files import check_writable
    from djepa_mm.runs.log import run_console

    check_finite(generate=minutes)
    if minutes <= 0:
        raise UserError(f"--generate {minutes:g}: give the minutes that each tokenizer gets, above 0")
    if recipe is None:
        raise UserError("--recipe: name the recipe whose core is trained on each tokenizer, such as digits")
    _check_named(names)
    keys = {override.partition("=")[0].strip() for override in sets}
    if "optim.minutes" in keys:
        raise UserError("--set optim.minutes: --generate says the minutes")
    target = json_ or folder / "generation.json"
    for place in (folder, target.parent):
        check_writable(place)  # before minutes of work
    where = find_device(device)
    trials = plan(load_recipe(recipe, sets), names, minutes, folder, endless=not keys & {"optim", "optim.steps"})
    command, results = same_command(), []
    try:
        for n, trial in enumerate(trials, start=1):
            typer.echo(f"{trial.candidate.name} ({n} of {len(trials)}), in {trial.run}")
            if not train_core(trial, device=where, console=run_console()):
                raise KeyboardInterrupt
            with progress_bar("evaluating") as progress:
                results.append(measure_core(trial, count=count, device=where, command=command, progress=progress))
    except KeyboardInterrupt:
        typer.echo(f"go on with it by the same command: {command}")
        raise typer.Exit(130) from None
    if not current().first:
        return
    title = f"{trials[0].recipe.name}, {minutes:g} minutes on each tokenizer"
    console().print(table(results, title))
    data = {"command": command, "recipe": trials[0].recipe.name, "minutes": minutes, "tokenizers": report(results)}
    write_json(target, data)
    typer.echo(target)
    if (picture := plot(results, title)) is not None:
        picture.save(folder / "generation.png")
        typer.echo(folder / "generation.png")


def _check_named(names: Sequence[str]) -> None:
    if not names:
        raise UserError("--tokenizer: give at least one, such as clip-patches,patch=[2,8,8] or a recipe's name")
