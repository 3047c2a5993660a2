"""What a training run shows at the terminal and keeps in its log."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from djepa_mm.errors import UserError

Advance = Callable[..., None]


def run_console(*, quiet: bool = False) -> Console:
    """Where a run shows how it goes. A notebook without ipywidgets cannot show a live bar: it gets lines of text."""
    console = Console(highlight=False, markup=False, quiet=quiet)
    if console.is_jupyter and find_spec("ipywidgets") is None:
        return Console(highlight=False, markup=False, quiet=quiet, force_jupyter=False, force_terminal=False)
    return console


@contextmanager
def quiet_board() -> Iterator[None]:
    """In here, what TensorBoard's thread cannot write is raised at the next row alone, and not also printed from the
    thread, with a traceback."""
    shown = threading.excepthook

    def show(what: threading.ExceptHookArgs) -> None:
        if not (isinstance(what.exc_value, OSError) and type(what.thread).__module__.startswith("tensorboard.")):
            shown(what)

    threading.excepthook = show
    try:
        yield
    finally:
        threading.excepthook = shown


@contextmanager
def run_bar(console: Console, what: str, start: float = 0.0) -> Iterator[Advance]:
    """A live bar; yields advance(share, text): the share that is done, in [0, 1], and what is shown behind it.

    Where the console is neither a terminal nor a notebook, the texts are printed line by line instead."""
    live = console.is_terminal or console.is_jupyter
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[text]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not live,
    )
    with bar:
        task = bar.add_task(what, total=1.0, text="")
        bar.update(task, completed=start)

        def advance(share: float, text: str | None = None) -> None:
            bar.update(task, completed=share)
            if text is not None:
                bar.update(task, text=text)
                if not live:
                    console.print(text, soft_wrap=True)

        yield advance


def append_log(path: Path, row: Mapping[str, float]) -> None:
    """Add a line to a log.jsonl, with seven digits of each figure, however small."""
    shown = {key: float(f"{value:.7g}") if isinstance(value, float) else value for key, value in row.items()}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(shown) + "\n")


@contextmanager
def tracker(
    kind: str | None, name: str, config: Mapping[str, Any]
) -> Iterator[Callable[[Mapping[str, float], int], None]]:
    """Yields what takes the figures of a step to Trackio, which keeps them on this machine, or to Weights & Biases,
    which has the same interface. Raises UserError where it is not installed."""
    if kind is None:
        yield lambda figures, step: None
        return
    try:
        module = import_module(kind)
    except ImportError:
        advice = f"pip install {kind}, or set run.tracker to null"
        raise UserError(f"run.tracker {kind}: it is not installed; {advice}") from None
    run = module.init(project="djepa-mm", name=name, config=dict(config), resume="allow")
    try:
        yield lambda figures, step: run.log(dict(figures), step=step)
    finally:
        run.finish()


def cut_log(path: Path, step: int) -> None:
    """Drop the lines that a killed run wrote after its last checkpoint, of `step`: they will be written again."""
    if path.exists():
        rows = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        kept = [line for line in rows if json.loads(line)["step"] <= step]
        path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
