"""What several verbs share: arguments and options, and what is made of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from djepa_mm.errors import UserError

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from djepa_mm.generation.pipeline import Generation

MOST_PATHS = 20  # that a verb prints of what it wrote

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a packaged recipe.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or one checkpoint in it.")]
OutOption = Annotated[Optional[Path], typer.Option(help="Run folder; runs/<recipe's name> by default.")]  # noqa: UP045
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on exactly where the run in the folder stopped.")]
SetOption = Annotated[
    Optional[list[str]],  # noqa: UP045  (typer reads it at run time)
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe, e.g. optim.lr=1e-4. Repeatable."),
]
StepsOption = Annotated[Optional[int], typer.Option(min=1, help="Autoregressive steps, T.")]  # noqa: UP045
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
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


def console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


def find_device(name: str) -> torch.device:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: no CUDA device is visible here; djepa-mm doctor says more")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    return device


def check_finite(**options: float | None) -> None:
    for name, value in options.items():
        if value is not None and not math.isfinite(value):
            raise UserError(f"--{name} {value}: expected a finite number")


def readable(generation: Generation, text: str, unknown: Unknown) -> str:
    """The text without the characters that the model does not know, of which a warning tells; or as it is."""
    vocabulary = generation.conditions.vocabulary
    if vocabulary is None or unknown is Unknown.error or not (left_out := vocabulary.unknown(text)):
        return text
    typer.echo(f"djepa-mm: left out of {text!r}: {left_out!r}", err=True)
    return vocabulary.clean(text)


def known_suffix(generation: Generation, suffix: str, option: str) -> str:
    """The suffix, if the model writes such files. Raises UserError, naming the option that asked for it."""
    known = generation.tokenizer.suffixes
    if suffix not in known:
        raise UserError(f"{option}: this model writes {', '.join(known)} files")
    return suffix


def read_prompts(path: Path) -> list[str]:
    from djepa_mm.recipe.schema import FOLDER

    packaged = FOLDER / f"prompts-{path}.txt"
    if len(path.parts) == 1 and not path.exists() and packaged.is_file():
        path = packaged
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts {path}: cannot be read: {error}") from None
    texts = [line for line in lines if line]
    if not texts:
        raise UserError(f"--prompts {path}: holds no text; write one a line")
    return texts


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr; yields progress(done, total)."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
