"""Training D-JEPA by a recipe: the task that `djepa-mm train` gives to the loop."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from djepa_mm.core.types import TokenBatch
from djepa_mm.data.check import check_media
from djepa_mm.data.corpus import Corpus, Cursor
from djepa_mm.errors import UserError
from djepa_mm.generation.pipeline import Pipeline
from djepa_mm.generation.request import Request
from djepa_mm.media.sheet import sheet
from djepa_mm.recipe.build import build_model
from djepa_mm.recipe.load import load_recipe
from djepa_mm.recipe.schema import Recipe
from djepa_mm.training.callbacks import Callback
from djepa_mm.training.loop import Outcome, Trainer, check_folder
from djepa_mm.training.optimizers import build_optimizers
from djepa_mm.training.state import TrainState
from djepa_mm.training.task import Group, Report, Update, autocast
from djepa_mm.types import Progress, Source, Tokenizer
from djepa_mm.weights import TOKENIZER, find_checkpoint, load_weights, read_tensors

# Keys by which weights mean what they mean, though no shape may tell; `None` is all keys of a section but FREE ones
MEANING: dict[str, tuple[str, ...] | None] = {
    "tokenizer": None,
    "condition": None,
    "model": ("heads", "positions", "axes", "rotary_base", "streams"),
    "head": ("kind", "predicts", "time_scale"),
}
FREE = {
    "tokenizer": {"vocoder", "max_duration_s", "size", "frames", "frame_rate", "vary", "tile", "model", "allow_pickle"},
    "condition": {"drop", "sentences", "classes"},
}


class DJEPATask:
    """A recipe's model, tokenizer, condition and corpus.

    start: a run or checkpoint whose averaged weights a fresh run begins with; nothing else of it is taken.
    """

    def __init__(self, recipe: Recipe, *, device: torch.device, start: Path | None = None) -> None:
        self.recipe, self.device, self.start = recipe, device, start
        self.optim, self.settings = recipe.optim, recipe.run
        source = recipe.data.build()
        tokenizer = recipe.tokenizer.build()
        self._check_fit(source, tokenizer)
        condition = recipe.condition.build()
        condition.bind(source)
        torch.manual_seed(recipe.run.seed)
        with device:
            self.model = build_model(recipe, tokenizer, condition)
        self.corpus = Corpus(source, tokenizer, condition, recipe.batch, seed=recipe.run.seed, device=device)
        if recipe.model.fixed_grid and len({spec.grid for spec in self.corpus.specs.values()}) > 1:
            positions = recipe.model.positions
            raise UserError(f"model.positions is {positions}, but this corpus' media vary in size: set it to rotary")
        values, specs = self.corpus.values, self.corpus.specs
        condition.fit(list(values.values()), [specs[index].num_tokens for index in values])
        self.pipeline = Pipeline(recipe, self.model, tokenizer, condition)
        self.online = self.model.online
        self.state = TrainState(
            networks=self.model.online,
            averaged=self.model.averaged,
            optimizers=build_optimizers(self.model.online, recipe.optim),
            generator=torch.Generator(device).manual_seed(recipe.run.seed),
            device=device,
            tensors={TOKENIZER: tokenizer},
            facts={"condition": condition},
        )
        self.groups = {"model": Group(module=self.model.online, optimizers=self.state.optimizers)}

    def _check_fit(self, source: Source, tokenizer: Tokenizer) -> None:
        """The corpus gives what the tokenizer takes; learned positions need media of one size."""
        check_media(source, tokenizer)
        if self.recipe.model.fixed_grid and tokenizer.fixed is None:
            kind = self.recipe.model.positions
            raise UserError(f"model.positions is {kind}, but this tokenizer's media vary in size: set it to rotary")

    def begin(self, progress: Progress) -> None:
        if self.start is not None:
            checkpoint = find_checkpoint(self.start)
            check_meaning(checkpoint, self.recipe, f"--from {checkpoint}")
            tensors = read_tensors(checkpoint, "averaged")
            found = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{TOKENIZER}.")}
            for module in (self.model.averaged, self.model.online):
                load_weights(module, found, f"--from {checkpoint}")
        self.corpus.fit_tokenizer()

    def prepare(self, progress: Progress) -> None:
        self.examples = self.pipeline.prepare(self._requests())
        if self.recipe.batch.cache:
            self.corpus.fill_cache(progress)

    def batches(self, cursor: Cursor) -> Iterator[tuple[TokenBatch, Cursor]]:
        for portions, after in self.corpus.batches(cursor):
            for portion in portions:
                if portion is not None:
                    yield portion.batch, after

    def learn(self, batch: TokenBatch, update: Update, progress: float) -> Mapping[str, Tensor]:
        with autocast(self.optim, self.device):
            losses = self.model(batch.to(self.device), self.state.generator)
        norm = update("model", losses.total)
        return {"generation": losses.generation, "prediction": losses.prediction, "gradient_norm": norm}

    def write_samples(self, folder: Path, stem: str) -> list[Path]:
        """A sheet, and a file an item where it is not a picture."""
        if not self.examples:
            return []
        items = self.pipeline.run(self.examples)
        folder.mkdir(exist_ok=True)
        media, files = self.pipeline.tokenizer.media, [folder / f"{stem}.png"]
        sheet([media.preview(item) for item in items]).save(files[0])
        if media.suffixes[0] != ".png":
            for n, item in enumerate(items):
                files.append(folder / f"{stem}-{n:02d}{media.suffixes[0]}")
                media.save(item, files[-1])
        return files

    def report(self) -> Report:
        left_out = getattr(self.corpus.source, "left_out", {})
        return Report(items=len(self.corpus.source), broken=self.corpus.broken, left_out=left_out)

    def _requests(self) -> list[Request]:
        run = self.recipe.run
        return self.pipeline.examples(run.samples, run.texts, run.seed)


def check_meaning(checkpoint: Path, recipe: Recipe, option: str) -> None:
    """Raises UserError where the weights of a checkpoint would mean something else in this recipe."""
    theirs = load_recipe(checkpoint / "recipe.yaml")
    for section, keys in MEANING.items():
        there, here = (_meaning(getattr(one, section), keys, FREE.get(section, set())) for one in (theirs, recipe))
        for key in there.keys() | here.keys():
            if there.get(key) != here.get(key):
                raise UserError(
                    f"{option}: its {section}.{key} is {there.get(key)!r}, here {here.get(key)!r}; make them agree"
                )


def _meaning(section: Any, keys: tuple[str, ...] | None, free: set[str]) -> dict[str, Any]:
    values = section.model_dump()
    if "preset" in values:
        values |= {name: section.size(name) for name in ("width", "depth", "heads")}
    return {key: value for key, value in values.items() if (key in keys if keys is not None else key not in free)}


def train(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    start: Path | None = None,
    device: torch.device | str = "cpu",
    console: Console | None = None,
    callbacks: Sequence[Callback] = (),
    stop: threading.Event | None = None,
) -> Outcome:
    """Train a recipe in the run folder `out`, from scratch or from the weights of the run or checkpoint `start`.

    stop: ends the run when it is set, with a checkpoint. Raises UserError where `out` holds a run already, or none to
    resume."""
    if resume and start is not None:
        raise UserError("--resume and --from: a run that goes on has its own weights; give one of the two")
    check_folder(out, resume=resume)
    if resume:
        _check_resumable(find_checkpoint(out), recipe)
    device = torch.device(device)
    try:
        task = DJEPATask(recipe, device=device, start=start)
        return Trainer(task, out, resume=resume, console=console, callbacks=callbacks, stop=stop).run()
    except torch.OutOfMemoryError:
        raise UserError(
            f"{device} is out of memory: lower batch.size ({recipe.batch.size}) or batch.tokens ({recipe.batch.tokens})"
        ) from None


def _check_resumable(checkpoint: Path, recipe: Recipe) -> None:
    check_meaning(checkpoint, recipe, f"--resume {checkpoint}")
    there, here = load_recipe(checkpoint / "recipe.yaml").optim.optimizer, recipe.optim.optimizer
    if there != here:
        raise UserError(f"--resume {checkpoint}: its optim.optimizer is {there}, here {here}; make them agree")
