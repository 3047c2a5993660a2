"""`djepa-mm evaluate`: the figures of a run, with the command and the checkpoint that they belong to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from rich.table import Table

from djepa_mm.core.sampler import Sampler
from djepa_mm.evaluate.candidates import recogniser_for
from djepa_mm.evaluate.features import EMBEDDED, extractor_for, train_classifier
from djepa_mm.evaluate.judged import JudgedFigures, evaluate_judged, judged_table
from djepa_mm.evaluate.speech import evaluate_speech
from djepa_mm.evaluate.visual import evaluate_visual, first_frames, learned, read_items, spread
from djepa_mm.generation.pipeline import Pipeline
from djepa_mm.media.sounds import Sounds
from djepa_mm.types import Item, Judge, Progress, Source, UserError
from djepa_mm.weights import find_checkpoint

SPEECH_COUNT, VISUAL_COUNT, JUDGED_COUNT = 100, 200, 300  # items, where nothing else is asked for
CLASSIFIER_ITEMS = 1000  # most that the classifier of frames learns from


def evaluate_run(
    run: Path,
    pipeline: Pipeline,
    *,
    texts: Sequence[str] = (),
    count: int | None = None,
    recogniser: str = "auto",
    extractor: str = EMBEDDED,
    given: int | None = None,
    sampler: Sampler | None = None,
    seed: int = 0,
    command: str = "",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Figures of the newest checkpoint of `run`, which `pipeline` was loaded from; ready for JSON.

    texts: what to speak; without them, up to `count` held-out items of the run's corpus, with their recordings. Clips
    and pictures are always measured with held-out ones. recogniser: of speech; extractor, given: for clips and
    pictures, unless their corpus itself can tell what fits a text. Raises UserError where there is nothing to measure
    with.
    """
    sampler = sampler or pipeline.sampler
    figures: Mapping[str, Any]
    if isinstance(pipeline.tokenizer.media, Sounds):
        _check_speaks(pipeline)
        if given is not None:
            raise UserError(f"--given {given}: frames are for clips; this run speaks")
        figures = _speech(pipeline, texts, count or SPEECH_COUNT, recogniser, sampler, seed, progress)
    elif texts:
        raise UserError("--prompts are for speech; clips and pictures are measured with the corpus' held-out items")
    elif (judge := _judge(pipeline)) is not None:
        if given is not None:
            raise UserError(f"--given {given}: frames are for clips that follow their first ones; leave it out here")
        held_out = _held_out(pipeline)
        figures = evaluate_judged(pipeline, judge, held_out, sampler, seed, count or JUDGED_COUNT, progress)
    else:
        figures = _visual(pipeline, count or VISUAL_COUNT, extractor, given, sampler, seed, progress)
    checkpoint = find_checkpoint(run)
    return {
        "command": command,
        "checkpoint": checkpoint.name,
        "sha256": hashlib.sha256((checkpoint / "averaged.safetensors").read_bytes()).hexdigest(),
        "recipe": pipeline.recipe.name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "steps": sampler.ar_steps,
        "sweeps": sampler.sweeps,
        "sweep_share": sampler.sweep_share,
        "guidance": sampler.guidance,
        "temperature": sampler.temperature,
        "seed": seed,
        **figures,
    }


def _speech(
    pipeline: Pipeline,
    texts: Sequence[str],
    count: int,
    recogniser: str,
    sampler: Sampler,
    seed: int,
    progress: Progress | None,
) -> dict[str, Any]:
    recordings = None
    if not texts:
        items = list(held_out_items(pipeline, _held_out(pipeline), count))
        texts = [pipeline.condition.request(item.entry)["text"] for item in items]
        recordings = [item.media for item in items]
    listener = recogniser_for(pipeline, recogniser, texts)
    figures = evaluate_speech(pipeline, texts, recordings, listener, sampler, seed, progress)
    return {"recogniser": type(listener).__name__, **figures}


def _visual(
    pipeline: Pipeline,
    count: int,
    extractor: str,
    given: int | None,
    sampler: Sampler,
    seed: int,
    progress: Progress | None,
) -> Mapping[str, Any]:
    first_frames(pipeline, given)  # raises now, before the work
    held_out, train = _held_out(pipeline), pipeline.recipe.data.build()
    device = pipeline.device
    with torch.random.fork_rng(devices=[]):  # some sources draw at random what they read of an item
        torch.manual_seed(seed)
        network = None
        if extractor != EMBEDDED or not train.classes:
            network = extractor_for(extractor, None, device)  # what can fail does so before the work
        classifier = None
        if train.classes:
            classifier = train_classifier(
                read_items(pipeline, train, learned(train, count, CLASSIFIER_ITEMS)),
                list(held_out_items(pipeline, held_out, count)),
                train.classes,
                seed=seed,
                device=device,
            )
        network = network or extractor_for(extractor, classifier, device)
        return evaluate_visual(
            pipeline, held_out, train, network, sampler, seed, count, progress, classifier=classifier, given=given
        )


def check_measurable(pipeline: Pipeline) -> Source:
    """What a run like this one is measured with, without a text given: the held-out part of its corpus. Raises
    UserError where there is none, or where its media cannot be measured."""
    if isinstance(pipeline.tokenizer.media, Sounds):
        _check_speaks(pipeline)
    elif _judge(pipeline) is None:
        first_frames(pipeline)
    return _held_out(pipeline)


def held_out_items(pipeline: Pipeline, source: Source, count: int | None = None) -> Iterator[Item]:
    """Those of the held-out part that a run is measured with. Raises UserError where none can be used."""
    if isinstance(pipeline.tokenizer.media, Sounds):
        return islice(read_items(pipeline, source, range(len(source))), count or SPEECH_COUNT)
    return read_items(pipeline, source, spread(count or VISUAL_COUNT, len(source)))


def _judge(pipeline: Pipeline) -> Judge | None:
    """The corpus that a run was trained on, where it can tell what fits a text."""
    origin = pipeline.recipe.data.origin
    return origin if isinstance(origin, Judge) else None


def _check_speaks(pipeline: Pipeline) -> None:
    if "text" not in pipeline.condition.keys:
        raise UserError("evaluate measures speech from texts, clips and pictures; this run gives something else")


def _held_out(pipeline: Pipeline) -> Source:
    source = pipeline.recipe.data.build_held_out()
    if source is None:
        fields = type(pipeline.recipe.data).model_fields
        way = "another corpus"
        if "held_out" in fields:
            way = "data.held_out above 0"
        elif "split" in fields:
            way = "data.split train"
        raise UserError(
            f"the run was trained on the whole corpus and nothing is held out: train with {way}; "
            "speech can also be measured on texts of your own, with --prompts"
        )
    return source


def report(figures: Mapping[str, Any]) -> Table:
    """The figures as a table for the terminal."""
    title = f"{figures['recipe']}, {figures['checkpoint']}"
    if "seen" in figures:
        return judged_table(cast(JudgedFigures, figures), title)
    network = figures.get("recogniser") or figures["extractor"]
    table = Table("measure", "value", title=f"{title}, {network}")
    for name, value in _rows(figures):
        table.add_row(name, value)
    return table


def _rows(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and values of all measures, those that are parts of others too; counts only of the parts."""
    for name, value in figures.items():
        shown = prefix + name.replace("_", " ")
        if isinstance(value, dict):
            yield from _rows(value, f"{shown}: ")
        elif isinstance(value, float):
            yield shown, _shown(name, value)
        elif isinstance(value, int) and prefix:
            yield shown, f"{value}"


def _shown(name: str, value: float) -> str:
    return f"{value:.1%}" if name.endswith(("error_rate", "length_error", "accuracy")) else f"{value:.3g}"
