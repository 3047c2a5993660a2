"""The demo: train the embedded recipes shortly, generate, and show everything on one HTML page."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from djepa_mm.cli.options import DeviceOption, console, find_device

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from djepa_mm.generation.pipeline import Generation, Request


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
    page = make_demo(out, minutes=minutes, device=find_device(device), console=console())
    typer.echo(f"open {page}")


def make_demo(out: Path, *, minutes: float, device: torch.device, console: Console) -> Path:
    """Runs and `index.html` in `out`; returns the page's path. Runs that finished before are used again."""
    import torch

    from djepa_mm.generation.pipeline import Generation
    from djepa_mm.media.page import page
    from djepa_mm.recipe.schema import load_recipe
    from djepa_mm.training.loop import train

    began = time.monotonic()
    sections = []
    for act in ACTS:
        run = out / act.recipe
        if not _finished(run):
            console.print(f"training {act.recipe}, about {minutes * act.share:.1f} minutes")
            overrides = [f"optim.minutes={minutes * act.share}", "run.sample_every=null", "run.log_every=50"]
            resume = (run / "checkpoints").is_dir()
            outcome = train(load_recipe(act.recipe, overrides), run, resume=resume, device=device, console=console)
            if not outcome.finished:
                raise KeyboardInterrupt
        generation = Generation.load(run, device=device)
        config = generation.recipe.run
        requests = generation.examples(config.samples, config.texts, seed=config.seed)
        sections.append(_section(act, run, generation, requests, generation(requests)))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    minutes_taken = (time.monotonic() - began) / 60
    lead = f"Trained just now, on {name}, in {minutes_taken:.1f} minutes: the same code with two recipes."
    index = out / "index.html"
    index.write_text(page("djepa-mm: pictures and speech from one D-JEPA core", lead, sections), encoding="utf-8")
    return index


def _finished(run: Path) -> bool:
    """Whether the run has trained to its end: its last sample sheet is drawn after its last checkpoint."""
    steps = {path.name.removesuffix(".png") for path in (run / "samples").glob("step-????????.png")}
    return bool(steps & {path.name for path in (run / "checkpoints").glob("step-*")})


def _section(act: Act, run: Path, generation: Generation, requests: list[Request], media: list[torch.Tensor]) -> str:
    from djepa_mm.generation.pipeline import sheet
    from djepa_mm.media.page import figure, heading

    tokenizer = generation.tokenizer
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    trained = f"{rows[-1]['step']:,} steps in {rows[-1]['seconds'] / 60:.1f} minutes; " if rows else ""
    parts = [heading(act.title, f"{trained}run folder {run.name}")]
    if tokenizer.suffix == ".png":
        parts.append(figure("", sheet([tokenizer.preview(item) for item in media], columns=10)))
    else:
        for n, (request, item) in enumerate(zip(requests, media, strict=True)):
            path = run / f"demo-{n:02d}{tokenizer.suffix}"
            tokenizer.save(item, path)
            parts.append(figure(request.text or "", tokenizer.preview(item), path))
    return "\n".join(parts)
