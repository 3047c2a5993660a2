"""What several verbs share: arguments and options, and what is made of them."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from djepa_mm.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

MOST_PATHS = 20  # that a verb prints of what it wrote
MOST_BYTES = 10_000_000  # of a file of prompts
# Keys of conditions whose values are texts as they are typed, whatever YAML makes of them
TEXTS = ("class", "text", "negative")

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a packaged recipe.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or one checkpoint in it.")]
OutOption = Annotated[Optional[Path], typer.Option(help="Run folder; runs/<recipe's name> by default.")]  # noqa: UP045
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on exactly where the run in the folder stopped.")]
SetOption = Annotated[
    Optional[list[str]],  # noqa: UP045  (typer reads it at run time)
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe, e.g. optim.lr=1e-4. Repeatable."),
]
StepsOption = Annotated[Optional[int], typer.Option(min=1, help="Autoregressive steps, T.")]  # noqa: UP045
SweepsOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=0, help="Draw some of it anew, so many times: slower, and parts fit together better."),
]
GuidanceOption = Annotated[Optional[float], typer.Option(min=0, help="Guidance; 1 is none.")]  # noqa: UP045
TemperatureOption = Annotated[Optional[float], typer.Option(min=0, help="Scale of the noise.")]  # noqa: UP045
SeedOption = Annotated[int, typer.Option(min=0, help="The same seed gives the same items.")]
RecogniserOption = Annotated[
    str,
    typer.Option(help="grammar, language-model, or a Whisper: a folder or a hub name. auto: grammar for few words."),
]


class Unknown(StrEnum):
    """What to do with characters that the model does not know."""

    error = "error"
    drop = "drop"


UnknownOption = Annotated[
    Unknown, typer.Option(help="Characters that the model does not know: an error that names them, or dropped.")
]


class Kept(StrEnum):
    """Which of two sets of weights."""

    averaged = "averaged"
    plain = "plain"


KeptOption = Annotated[
    Kept, typer.Option("--weights", help="The averaged weights, which are meant to sample, or the plain ones.")
]
ConditionOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--condition", metavar="KEY=VALUE", help="What to generate, for any kind of condition. Repeatable."),
]
NegativeOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="A text that guidance leads away from, for models of captions."),
]
OffsetOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar="SHARE|X,Y",
        help="Move the picture in the model's field of view, in sides of the field: along its shorter side, or to the "
        "right and down; for model.positions vope.",
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


def console() -> Console:
    from rich.console import Console

    return Console(highlight=False, markup=False)


def same_command(*more: str) -> str:
    """The command that was given, with all of its options, and words that it may lack; to go on with it."""
    given = sys.argv[1:]
    return shlex.join(["djepa-mm", *given, *(word for word in more if word not in given)])


def check_finite(**options: float | None) -> None:
    for name, value in options.items():
        if value is not None and not math.isfinite(value):
            raise UserError(f"--{name} {value}: expected a finite number")


def asked(
    class_: Sequence[str], texts: Sequence[str], pairs: Sequence[str], extra: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Conditions from --class, from texts and from --condition KEY=VALUE, all pairs of which make up one. extra: what
    goes with each text. Raises UserError where they are mixed or a pair is none."""
    import yaml

    from djepa_mm.recipe.load import parse_value

    given = [name for name, value in (("class", class_), ("text", texts), ("condition", pairs)) if value]
    if len(given) > 1:
        raise UserError(f"--{given[0]} and --{given[1]}: give one of the two")
    condition: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--condition {pair}: write it as KEY=VALUE, such as class=7")
        key = key.strip()
        try:
            condition[key] = value.strip() if key in TEXTS else parse_value(value)
        except yaml.YAMLError:
            raise UserError(f"--condition {pair}: {value!r} is not plain YAML") from None
    if condition or class_:
        if extra:
            raise UserError(f"--{next(iter(extra))} goes with a text: give --text or --prompts")
        return [condition] if condition else [{"class": name} for name in class_]
    return [{"text": text, **extra} for text in texts]


def size_of(value: str | None) -> tuple[int, int] | None:
    """Height and width of WIDTHxHEIGHT."""
    if value is None:
        return None
    width, _, height = value.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and 0 < int(width) < 100_000 and 0 < int(height) < 100_000):
        raise UserError(f"--size {value}: expected width and height in pixels, such as 96x48")
    return int(height), int(width)


def aspect_of(value: str | None) -> float | None:
    """Width over height of WIDTH:HEIGHT."""
    if value is None:
        return None
    width, colon, height = value.partition(":")
    try:
        if not colon or not 0 < float(width) < 100_000 or not 0 < float(height) < 100_000:
            raise ValueError
    except ValueError:
        raise UserError(f"--aspect {value}: expected width and height, such as 16:9") from None
    return float(width) / float(height)


def sides_of(value: str | None) -> tuple[int, int, int, int] | None:
    """Pixels to the left, at the top, to the right and at the bottom, of left=16,right=16."""
    if value is None:
        return None
    sides, given = dict.fromkeys(("left", "top", "right", "bottom"), 0), dict[str, int]()
    for part in value.split(","):
        side, _, pixels = part.partition("=")
        if side.strip() not in sides or not pixels.strip().isdecimal() or len(pixels) > 5:
            raise UserError(f"--extend {value}: expected pixels by the side, such as left=16,bottom=8")
        if side.strip() in given:
            raise UserError(f"--extend {value}: {side.strip()} comes twice; give each side once")
        given[side.strip()] = int(pixels)
    sides |= given
    return (sides["left"], sides["top"], sides["right"], sides["bottom"])


def offset_of(value: str | None) -> float | tuple[float, float] | None:
    """SHARE, or down and to the right of X,Y."""
    if value is None:
        return None
    try:
        along, *rest = (float(one) for one in value.split(","))
        (down,) = rest or (None,)
    except ValueError:
        raise UserError(f"--offset {value}: expected a share such as 0.2, or two (right, down): 0.2,-0.1") from None
    return along if down is None else (down, along)


def read_prompts(path: Path) -> list[str]:
    from djepa_mm.recipe.packaged import FOLDER

    packaged = FOLDER / f"prompts-{path}.txt"
    if len(path.parts) == 1 and not path.exists() and packaged.is_file():
        path = packaged
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise UserError(f"--prompts {path}: {size:,} bytes; {MOST_BYTES:,} are read at most: give it in parts")
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts {path}: cannot be read: {error}") from None
    texts = [line for line in lines if line]
    if not texts:
        raise UserError(f"--prompts {path}: holds no text; write one a line")
    return texts


def run_of(path: Path) -> Path:
    """The run folder of a run or of one of its checkpoints, which rotation deletes."""
    return path.absolute().parent.parent if (path / "state.json").is_file() else path


def write_json(path: Path, data: Any) -> None:
    """With the folder that it lies in."""
    import json

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr; yields progress(done, total)."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
