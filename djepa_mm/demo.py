"""The demo: train the embedded recipes shortly, generate, and show everything on one HTML page."""

from __future__ import annotations

import base64
import html
import io
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from djepa_mm.generate import Generation, Request, sheet
from djepa_mm.recipe import load_recipe
from djepa_mm.train import train


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

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>djepa-mm demo</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
h1 {{ font-size: 1.6rem; }} h2 {{ font-size: 1.2rem; margin-top: 2.5rem; }}
img {{ max-width: 100%; image-rendering: pixelated; }}
figure {{ margin: 1rem 0; }} figcaption {{ font-weight: 600; }} audio {{ display: block; margin: .3rem 0; }}
small, code {{ color: #555; }}
</style></head><body>
<h1>djepa-mm: pictures and speech from one D-JEPA core</h1>
<p>Trained just now, on {device}, in {minutes:.1f} minutes. Both parts are the same code with another recipe.</p>
{sections}
</body></html>
"""


def make_demo(out: Path, *, minutes: float, device: torch.device, console: Console) -> Path:
    """Runs and `index.html` in `out`; returns the page's path. Runs that finished before are used again."""
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
    page = out / "index.html"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    minutes_taken = (time.monotonic() - began) / 60
    page.write_text(PAGE.format(device=name, minutes=minutes_taken, sections="\n".join(sections)), encoding="utf-8")
    return page


def _finished(run: Path) -> bool:
    """Whether the run has trained to its end: its last sample sheet is drawn after its last checkpoint."""
    steps = {path.name.removesuffix(".png") for path in (run / "samples").glob("step-????????.png")}
    return bool(steps & {path.name for path in (run / "checkpoints").glob("step-*")})


def _section(act: Act, run: Path, generation: Generation, requests: list[Request], media: list[torch.Tensor]) -> str:
    tokenizer = generation.tokenizer
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    trained = f"{rows[-1]['step']:,} steps in {rows[-1]['seconds'] / 60:.1f} minutes" if rows else ""
    parts = [
        f"<h2>{html.escape(act.title)}</h2>",
        f"<p><small>{trained}; run folder <code>{run.name}</code></small></p>",
    ]
    if tokenizer.suffix == ".png":
        page = sheet([tokenizer.preview(item) for item in media], columns=10)
        parts.append(f'<figure><img alt="{html.escape(act.title)}" src="{_picture(page)}"></figure>')
    else:
        for n, (request, item) in enumerate(zip(requests, media, strict=True)):
            path = run / f"demo-{n:02d}{tokenizer.suffix}"
            tokenizer.save(item, path)
            sound = base64.b64encode(path.read_bytes()).decode()
            parts.append(
                f"<figure><figcaption>{html.escape(request.text or '')}</figcaption>"
                f'<audio controls src="data:audio/wav;base64,{sound}"></audio>'
                f'<img alt="mel" src="{_picture(tokenizer.preview(item))}"></figure>'
            )
    return "\n".join(parts)


def _picture(picture: object) -> str:
    data = io.BytesIO()
    picture.save(data, format="PNG")  # type: ignore[attr-defined]
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
