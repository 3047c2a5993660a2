"""Edit a clip, a picture or a sound."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from djepa_mm.cli.options import (
    ConditionOption,
    DeviceOption,
    GuidanceOption,
    NegativeOption,
    RunArgument,
    SeedOption,
    SetOption,
    StepsOption,
    SweepsOption,
    TemperatureOption,
    Unknown,
    UnknownOption,
    asked,
    check_finite,
    progress_bar,
    sides_of,
    size_of,
)
from djepa_mm.errors import UserError

if TYPE_CHECKING:
    import torch


def edit(
    run: RunArgument,
    clip: Annotated[Path, typer.Argument(metavar="FILE", help="The clip or picture to edit; it stays as it is.")],
    from_: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            "--from", help="Where the edit begins, in seconds; the clip's end by default, which continues it."
        ),
    ] = None,
    to: Annotated[Optional[float], typer.Option(help="Where it ends; the clip's end by default.")] = None,  # noqa: UP045
    seconds: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Length of what comes in; as long as what goes out by default."),
    ] = None,
    mask: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="A picture as large as FILE, or a clip of as many frames: what is white in it, or transparent, is "
            "painted anew; in a clip, between --from and --to where they are given."
        ),
    ] = None,
    size: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="WIDTHxHEIGHT", help="Paint around FILE until it is so large, in pixels."),
    ] = None,
    extend: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="SIDE=PIXELS", help="Paint beside FILE, such as left=16,bottom=8."),
    ] = None,
    text: Annotated[Optional[str], typer.Option(help="Text of the whole clip after the edit.")] = None,  # noqa: UP045
    class_: Annotated[Optional[str], typer.Option("--class", help="Class of what is painted.")] = None,  # noqa: UP045
    condition: ConditionOption = None,
    negative: NegativeOption = None,
    unknown: UnknownOption = Unknown.error,
    steps: StepsOption = None,
    sweeps: SweepsOption = None,
    guidance: GuidanceOption = None,
    temperature: TemperatureOption = None,
    seed: SeedOption = 0,
    out: Annotated[Optional[Path], typer.Option(help="The new file; FILE's name with -edited by default.")] = None,  # noqa: UP045
    set_: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Edit a clip between two times, continue it, paint a part of a picture or clip anew, or what lies around it; the
    rest stays."""
    from djepa_mm.door import load
    from djepa_mm.generation.files import check_suffix

    check_finite(**{"from": from_, "to": to}, seconds=seconds, guidance=guidance, temperature=temperature)
    extra = {} if unknown is Unknown.error else {"unknown": "drop"}
    conditions = asked(
        [class_] if class_ is not None else [], [text] if text is not None else [], condition or [], extra
    )
    model = load(run, set_ or [], device=device)
    form = model.pipeline.tokenizer.media
    target = out or clip.with_name(f"{clip.stem}-edited{form.suffixes[0]}")
    check_suffix(form, target.suffix, f"--out {target}")
    if target.resolve() == clip.resolve():
        raise UserError(f"--out {target}: that is the file to edit, which stays as it is; choose another name")
    with progress_bar("editing") as progress:
        media = model.read(clip, sized=size is None and extend is None)
        edited = model.edit(
            media,
            conditions[0] if conditions else None,
            mask=None if mask is None else _read_mask(mask, tuple(media.shape)),
            size=size_of(size),
            extend=sides_of(extend),
            start_s=from_,
            stop_s=to,
            seconds=seconds,
            negative=negative,
            ar_steps=steps,
            sweeps=sweeps,
            guidance=guidance,
            temperature=temperature,
            seed=seed,
            progress=progress,
        )
    typer.echo(edited.save(target))


def _read_mask(path: Path, shape: tuple[int, ...]) -> torch.Tensor:
    """Bool, True where it is white: (H, W) of a picture; for a clip, (T, H, W) of one.

    shape: of what is edited. No more of a mask that does not fit is read than tells that."""
    from djepa_mm.media.clips import read_clip
    from djepa_mm.media.pictures import read_picture

    if len(shape) != 4:
        white = read_picture(path, channels=1) > 0
    else:
        white = read_clip(path, channels=1, most=1)[0] > 0
        if white.shape[1:] == shape[2:]:
            white = read_clip(path, channels=1, most=shape[1] + 1)[0] > 0
    return white[0] if len(white) == 1 else white  # a picture is a clip of one frame
