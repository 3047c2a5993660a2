"""Which tokens generate well: the same small core, trained on each of several tokenizers for equal time and measured.

The time that a tokenizer of our own was trained for is counted in: its core gets what is left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from djepa_mm.bench.candidate import Candidate, candidate_of, parse_tokenizer
from djepa_mm.bench.measure import Measures, add_measures, blank_table, measure, measured, slug
from djepa_mm.data.check import check_media
from djepa_mm.data.drawing import drawing
from djepa_mm.data.reading import KeptCorpus
from djepa_mm.evaluate.report import check_measurable, evaluate_run, held_out_items
from djepa_mm.generation.pipeline import Pipeline
from djepa_mm.media.plot import scatter
from djepa_mm.recipe.build import build_model
from djepa_mm.recipe.load import load_recipe, recipe_data
from djepa_mm.recipe.schema import Recipe
from djepa_mm.tokenizers.trained import Trained
from djepa_mm.training.djepa import train, with_hashes
from djepa_mm.types import BrokenItem, Progress, Source, Stream, UserError
from djepa_mm.weights import checkpoints, find_checkpoint, read_state

OWN = "recipe"  # names the recipe's own tokenizer
ENDLESS = 10**9  # steps, so that the clock ends the training
FAITHFUL_DB = 50.0  # PSNR from which on nobody sees a difference; the plot shows no more
MOST_LETTERS = 200  # of a run folder's name, so that long paths differ
LEFT_OUT = ("encoded, items a second", "decoded, items a second", "mean of a channel", "deviation of a channel")


# --- what is tried ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A tokenizer, the recipe of the core on its tokens, and the run folder of that."""

    candidate: Candidate
    recipe: Recipe
    run: Path
    own_minutes: float  # that the tokenizer itself was trained for

    @property
    def complete(self) -> bool:
        """Whether its core has been trained to the end."""
        if not checkpoints(self.run / "checkpoints"):
            return False
        state, optim = read_state(find_checkpoint(self.run)), self.recipe.optim
        assert optim.minutes is not None
        return state["seconds"] >= 60 * optim.minutes or state["step"] >= optim.steps


def plan(recipe: Recipe, names: Sequence[str], minutes: float, folder: Path, *, endless: bool = True) -> list[Trial]:
    """A trial for each tokenizer, by the words that `parse_tokenizer` takes, or OWN.

    endless: the recipe's steps do not count, only the minutes do. Everything that can be told before the work is
    checked: raises UserError."""
    source = recipe.data.build()
    if isinstance(source, KeptCorpus):
        raise UserError("data.source latents: kept tokens are of one tokenizer; name the corpus that they were made of")
    own = candidate_of(OWN, recipe.tokenizer)
    trials: dict[Path, Trial] = {}
    for name in names:
        candidate = own if name == OWN else parse_tokenizer(name, like=own)
        tokenizer, spent = candidate.tokenizer, 0.0
        if isinstance(tokenizer, Trained):
            spent = read_state(tokenizer.checkpoint).get("seconds", 0.0) / 60
        if spent >= minutes:
            raise UserError(
                f"--tokenizer {name}: it was trained for {spent:.3g} minutes itself, so that of --generate {minutes:g} "
                "nothing is left for its core: give more"
            )
        steps = ENDLESS if endless else recipe.optim.steps
        optim = recipe.optim.model_copy(update={"minutes": minutes - spent, "steps": steps})
        changed = with_hashes(recipe.model_copy(update={"tokenizer": candidate.config, "optim": optim}))
        trial = Trial(candidate=candidate, recipe=changed, run=folder / slug(name, MOST_LETTERS), own_minutes=spent)
        if trial.run in trials:
            other = trials[trial.run].candidate.name
            raise UserError(f"--tokenizer {name} and {other}: both would be kept in {trial.run}; give one of them")
        try:
            _check(changed, candidate, source)
        except UserError as error:
            raise UserError(f"--tokenizer {name}: {error}") from None
        _check_run(trial)
        trials[trial.run] = trial
    return list(trials.values())


def _check(recipe: Recipe, candidate: Candidate, source: Source | Stream) -> None:
    """Raises UserError where the core could not be trained on these tokens, or not be measured."""
    tokenizer, condition = candidate.tokenizer, recipe.condition.build()
    check_media(source, tokenizer)
    condition.bind(source)
    with torch.device("meta"):
        model = build_model(recipe, tokenizer, condition)
    held_out = check_measurable(Pipeline(recipe, model, tokenizer, condition))
    for index in range(len(held_out)):
        with suppress(BrokenItem):
            tokenizer.spec_of(held_out.shape(index))
            return


def _check_run(trial: Trial) -> None:
    """Raises UserError where the folder holds a run of another recipe."""
    if not checkpoints(trial.run / "checkpoints"):
        return
    there = _flat(recipe_data(load_recipe(find_checkpoint(trial.run) / "recipe.yaml")))
    here = _flat(recipe_data(trial.recipe))
    for key in here.keys() | there.keys():
        if key.endswith("sha256") and there.get(key) is None:
            continue  # older runs did not note it
        if here.get(key) != there.get(key):
            raise UserError(
                f"{trial.run}: holds a run whose {key} is {there.get(key)!r}, here {here.get(key)!r}; "
                "choose another folder: --out"
            )


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as `optim.minutes`."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


# --- training and measuring -------------------------------------------------------------------------------------------


def train_core(trial: Trial, *, device: torch.device | str = "cpu", console: Console | None = None) -> bool:
    """Train the core, or go on with it -> whether it came to its end."""
    if trial.complete:
        return True
    resume = bool(checkpoints(trial.run / "checkpoints"))
    return train(trial.recipe, trial.run, resume=resume, device=device, console=console).finished


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of a trial: of the same held-out items, what the tokenizer keeps, and what the core makes."""

    trial: Trial
    step: int
    core_minutes: float
    measures: Measures
    figures: Mapping[str, Any]  # as `djepa-mm evaluate` gives them

    @property
    def speaks(self) -> bool:
        return "word_error_rate" in self.figures

    @property
    def frechet_ratio(self) -> float | None:
        """The Fréchet distance over that of real items; None where there is none, and where the real ones do not
        differ."""
        if "frechet_distance" not in self.figures or not self.figures["real"]["frechet_distance"]:
            return None
        return self.figures["frechet_distance"] / self.figures["real"]["frechet_distance"]


def measure_core(
    trial: Trial,
    *,
    count: int | None = None,
    device: torch.device | str = "cpu",
    command: str = "",
    progress: Progress | None = None,
) -> Result:
    """Of a trial whose core is trained. count: of held-out items, and of generated ones. Raises UserError."""
    state, seed = read_state(find_checkpoint(trial.run)), trial.recipe.run.seed
    pipeline = Pipeline.load(trial.run, device=device)
    figures = evaluate_run(trial.run, pipeline, count=count, seed=seed, command=command, progress=progress)
    with drawing(seed):
        items = held_out_items(pipeline, check_measurable(pipeline), count)
        measures = measure(pipeline.tokenizer, (item.media for item in items), device=device)
    return Result(
        trial=trial, step=state["step"], core_minutes=state["seconds"] / 60, measures=measures, figures=figures
    )


# --- showing ----------------------------------------------------------------------------------------------------------


def table(results: Sequence[Result], title: str) -> Table:
    """A column for every tokenizer."""
    shown = blank_table(title, [result.trial.candidate.name for result in results])
    shown.add_row("minutes of the tokenizer", *(f"{result.trial.own_minutes:.1f}" for result in results))
    shown.add_row("minutes of the core", *(f"{result.core_minutes:.1f}" for result in results))
    shown.add_row("steps of the core", *(f"{result.step:,}" for result in results), end_section=True)
    add_measures(shown, [result.measures for result in results], leave_out=LEFT_OUT)
    shown.add_section()
    for name, line in GENERATION.items():
        cells = [line(result) for result in results]
        if any(cells):
            shown.add_row(name, *cells)
    return shown


def _figure(*keys: str, form: str) -> Callable[[Result], str]:
    """What lies at a place in the figures; empty where nothing does."""

    def line(result: Result) -> str:
        found: Any = result.figures
        for key in keys:
            found = (found or {}).get(key)
        return "" if found is None else format(found, form)

    return line


GENERATION: dict[str, Callable[[Result], str]] = {
    "recognised": _figure("clip_accuracy", form=".1%"),
    "recognised, of real ones": _figure("real", "clip_accuracy", form=".1%"),
    "Fréchet distance over real's": lambda r: "" if r.frechet_ratio is None else f"{r.frechet_ratio:.2f}",
    "fits its text": _figure("seen", "generated", "overall", form=".1%"),
    "fits its text, through tokens": _figure("seen", "reconstructed", "overall", form=".1%"),
    "word error rate": _figure("word_error_rate", form=".1%"),
    "word error rate of recordings": _figure("recordings", "word_error_rate", form=".1%"),
    "word error rate through tokens": _figure("recordings", "vocoder_word_error_rate", form=".1%"),
    "generated, seconds an item": _figure("seconds_per_item", form=".3g"),
    "generated, seconds a second": _figure("real_time_factor", form=".3g"),
}


def report(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Everything as plain data."""
    return [
        {
            "tokenizer": result.trial.candidate.name,
            "config": recipe_data(result.trial.candidate.config),
            "run": str(result.trial.run),
            "own_minutes": result.trial.own_minutes,
            "core_minutes": result.core_minutes,
            "steps": result.step,
            "frechet_ratio": result.frechet_ratio,
            "reconstruction": measured(result.measures),
            "generation": dict(result.figures),
        }
        for result in results
    ]


def plot(results: Sequence[Result], title: str) -> Image.Image | None:
    """Generation over reconstruction, a point for each tokenizer; None where no generation can be compared."""
    points: dict[str, tuple[float, float]] = {}
    for result in results:
        known = result.measures.likeness_db
        made = 100 * result.figures["word_error_rate"] if result.speaks else result.frechet_ratio
        if made is not None:
            across = known if result.measures.psnr_db is None else min(known, FAITHFUL_DB)
            points[result.trial.candidate.name] = (across, made)
    if not points:
        return None
    speaks = results[0].speaks
    x = f"reconstruction: PSNR of held-out items, dB (more is better; {FAITHFUL_DB:g} is as much or more)"
    if results[0].measures.psnr_db is None:
        x = "reconstruction: mel distance of held-out items, dB (less is better)"
    y = "word error rate, %" if speaks else "Fréchet distance, times that of real items"
    positive = all(made > 0 for _, made in points.values())
    return scatter(points, title=title, x=x, y=f"generation: {y} (less is better)", log_y=not speaks and positive)
