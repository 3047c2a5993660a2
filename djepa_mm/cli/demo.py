"""The demo: train the embedded recipes shortly, generate, and show everything on one HTML page."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from djepa_mm.cli.options import DeviceOption

if TYPE_CHECKING:
    from djepa_mm.generation.files import Results


@dataclass(frozen=True, slots=True)
class Act:
    """One recipe of the demo, its share of the time, and the words that introduce it."""

    recipe: str
    share: float
    title: str


ACTS = (
    Act("digits", 0.3, "Handwritten digits, ten of each class"),
    Act("spoken-digits", 0.7, "Spoken digits, text to speech"),
)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the runs and the page.")] = Path("demo"),
    minutes: Annotated[float, typer.Option(min=0.1, help="Training time, shared out over the recipes.")] = 4.5,
    device: DeviceOption = "auto",
) -> None:
    """Train the embedded recipes shortly, generate, and write one HTML page to look at and listen to."""
    typer.echo(f"open {make_demo(out, minutes=minutes, device=device)}")


def make_demo(out: Path, *, minutes: float, device: str) -> Path:
    """Runs and `index.html` in `out`; returns the page's path. Runs that finished before are used again."""
    import torch

    from djepa_mm import door
    from djepa_mm.media.page import page
    from djepa_mm.recipe.load import load_recipe

    began = time.monotonic()
    sections = []
    for act in ACTS:
        run = out / act.recipe
        if not _finished(run):
            typer.echo(f"training {act.recipe}, about {minutes * act.share:.1f} minutes")
            changes = {"optim.minutes": minutes * act.share, "run.sample_every": None, "run.log_every": 50}
            resume = (run / "checkpoints").is_dir()
            if not door.train(load_recipe(act.recipe, changes), run, resume=resume, device=device).finished:
                raise KeyboardInterrupt
        model = door.load(run, device=device)
        sections.append(_section(act, run, model.examples()))
    used = model.pipeline.device
    name = torch.cuda.get_device_name(used) if used.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    minutes_taken = (time.monotonic() - began) / 60
    intro = f"Trained just now, on {name}, in {minutes_taken:.1f} minutes: the same code with two recipes."
    index = out / "index.html"
    index.write_text(page("djepa-mm: pictures and speech from one D-JEPA core", intro, sections), encoding="utf-8")
    return index


def _finished(run: Path) -> bool:
    """Whether the run has trained to its end: its last sample sheet is drawn after its last checkpoint."""
    steps = {path.name.removesuffix(".png") for path in (run / "samples").glob("step-????????.png")}
    return bool(steps & {path.name for path in (run / "checkpoints").glob("step-*")})


def _section(act: Act, run: Path, items: Results) -> str:
    from djepa_mm.media.page import figure, heading
    from djepa_mm.media.sheet import sheet

    rows = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    trained = f"{rows[-1]['step']:,} steps in {rows[-1]['seconds'] / 60:.1f} minutes; " if rows else ""
    parts = [heading(act.title, f"{trained}run folder {run.name}")]
    if items[0].kind.per_second is None:
        parts.append(figure("", sheet([item.preview() for item in items], columns=10)))
    else:
        for n, item in enumerate(items):
            path = item.save(run / f"demo-{n:02d}{item.kind.suffixes[0]}")
            parts.append(figure(item.title, item.preview(), path))
    return "\n".join(parts)
