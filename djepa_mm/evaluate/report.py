"""`djepa-mm evaluate`: the figures of a run, with the command and the checkpoint that they belong to."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from djepa_mm.checkpoint import find_checkpoint
from djepa_mm.evaluate.candidates import recogniser_for
from djepa_mm.evaluate.speech import evaluate_speech
from djepa_mm.generate import Generation
from djepa_mm.sampler import Sampler
from djepa_mm.types import Progress, UserError


def evaluate_run(
    run: Path,
    generation: Generation,
    *,
    texts: Sequence[str] = (),
    count: int = 100,
    recogniser: str = "auto",
    sampler: Sampler | None = None,
    seed: int = 0,
    command: str = "",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Figures of the newest checkpoint of `run`, which `generation` was loaded from; ready for JSON.

    texts: what to speak; without them, up to `count` held-out items of the run's corpus, with their recordings.
    Raises UserError where there is nothing to measure with.
    """
    if generation.tokenizer.sample_rate_hz is None or generation.conditions.vocabulary is None:
        raise UserError("evaluate measures speech from texts so far; this run gives something else")
    recordings = None
    if not texts:
        texts, recordings = _held_out(generation, count)
    listener = recogniser_for(generation, recogniser, texts)
    figures = evaluate_speech(generation, texts, recordings, listener, sampler, seed, progress)
    checkpoint = find_checkpoint(run)
    sampler = sampler or generation.sampler
    return {
        "command": command,
        "checkpoint": checkpoint.name,
        "sha256": hashlib.sha256((checkpoint / "averaged.safetensors").read_bytes()).hexdigest(),
        "recipe": generation.recipe.name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "recogniser": type(listener).__name__,
        "steps": sampler.steps,
        "guidance": sampler.guidance,
        "temperature": sampler.temperature,
        "seed": seed,
        **figures,
    }


def _held_out(generation: Generation, count: int) -> tuple[list[str], list[torch.Tensor]]:
    source = generation.recipe.data.build_held_out()
    if source is None:
        raise UserError(
            "the recipe's corpus holds nothing out: give texts with --prompts, or train with data.held_out above 0"
        )
    items = [source.read(index) for index in range(min(count, len(source)))]
    texts = [generation.conditions.clean(item.text) or "" for item in items]
    return texts, [item.media for item in items]


def report(figures: dict[str, Any]) -> Table:
    """The figures as a table for the terminal."""
    table = Table("measure", "value", title=f"{figures['recipe']}, {figures['checkpoint']}, {figures['recogniser']}")
    for name, value in figures.items():
        if isinstance(value, float):
            table.add_row(name.replace("_", " "), _shown(name, value))
    for name, value in (figures.get("recordings") or {}).items():
        table.add_row(f"recordings: {name.replace('_', ' ')}", _shown(name, value))
    return table


def _shown(name: str, value: float) -> str:
    return f"{value:.1%}" if name.endswith(("error_rate", "length_error")) else f"{value:.3g}"
