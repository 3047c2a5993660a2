"""Training D-JEPA by a recipe: the task that `djepa-mm train` gives to the loop."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from djepa_mm.core.djepa import Losses
from djepa_mm.core.types import TokenBatch
from djepa_mm.data.batches import Portion, Share
from djepa_mm.data.check import check_media, held_out_and_learned
from djepa_mm.data.corpus import Cursor
from djepa_mm.data.drawing import item_seed
from djepa_mm.data.reading import KeptCorpus
from djepa_mm.data.streams import open_corpus
from djepa_mm.errors import Notice, UserError
from djepa_mm.generation.pipeline import Jobs, Pipeline
from djepa_mm.generation.request import Request
from djepa_mm.media.sheet import sheet
from djepa_mm.ranks import current, joined, restarts
from djepa_mm.recipe.build import build_model, check_memory
from djepa_mm.recipe.describe import Passes, train_flops
from djepa_mm.recipe.load import load_recipe, trained_on
from djepa_mm.recipe.schema import TOKENS_FREE, Recipe
from djepa_mm.recipe.tokenizer import load_tokenizer_recipe
from djepa_mm.tokenizers.trained import Trained
from djepa_mm.training.callbacks import Callback
from djepa_mm.training.dealt import Dealt, gradients_stay_here
from djepa_mm.training.loop import Outcome, Trainer, check_folder
from djepa_mm.training.optimizers import build_optimizers
from djepa_mm.training.state import SameCorpus, TrainState, load_module
from djepa_mm.training.task import Group, Learned, Report, Scores, Update, autocast
from djepa_mm.training.wrap import ready_to_sample, wrap_djepa
from djepa_mm.types import Judge, Pinned, Progress, Source, Stream, Tokenizer
from djepa_mm.weights import TOKENIZER, checkpoints, find_checkpoint, read_tensors

# Keys by which weights mean what they mean, though no shape may tell; `None` is all keys of a section but FREE ones
MEANING: dict[str, tuple[str, ...] | None] = {
    "tokenizer": None,
    "condition": None,
    "model": ("heads", "positions", "axes", "rotary_base", "field", "streams"),
    "head": ("kind", "predicts", "time_scale"),
}
FREE = {
    "tokenizer": TOKENS_FREE - {"sha256"},
    "condition": {"drop", "sentences", "classes", "encoder.model", "encoder.width", "encoder.precision"},
}
FLOPS_PER_TOKEN: dict[tuple[Hashable, ...], float] = {}  # to train, by all that decides of them


class DJEPATask:
    """A recipe's model, tokenizer, condition and corpus.

    start: a run or checkpoint whose averaged weights a fresh run begins with; nothing else of it is taken.
    """

    def __init__(self, recipe: Recipe, *, device: torch.device, start: Path | None = None) -> None:
        self.recipe, self.device, self.start = recipe, device, start
        self.optim, self.settings = recipe.optim, recipe.run
        self.ranks = current()
        self.share = Share(rank=self.ranks.rank, world=self.ranks.world, parts=recipe.compute.accumulate)
        source = recipe.data.build()
        tokenizer = recipe.tokenizer.build()
        self._check_fit(source, tokenizer)
        condition = recipe.condition.build()
        condition.bind(source)
        check_memory(recipe, tokenizer, condition, device)
        torch.manual_seed(recipe.run.seed)
        with device:
            self.model = build_model(recipe, tokenizer, condition)
        self.corpus = open_corpus(
            source, tokenizer, condition, recipe.batch, feedback=recipe.feedback, seed=recipe.run.seed, device=device
        )
        if recipe.model.fixed_grid and len(self.corpus.grids()) > 1:
            positions = recipe.model.positions
            raise UserError(f"model.positions is {positions}, but this corpus' media vary in size: set it to rotary")
        self.corpus.fit_condition()
        self.pipeline = Pipeline(recipe, self.model, tokenizer, condition)
        self.online = self.model.online
        self.wrapped = wrap_djepa(self.model, recipe.compute, self.ranks, device)
        self.dealt = Dealt(self.ranks, device)
        self.state = TrainState(
            networks=self.model.online,
            averaged=self.model.averaged,
            optimizers=build_optimizers(self.model.online, recipe.optim),
            generator=torch.Generator(device).manual_seed(recipe.run.seed),
            device=device,
            tensors={TOKENIZER: tokenizer},
            facts={"condition": condition, "corpus": SameCorpus(self.corpus.identity())},
        )
        self.groups = {"model": Group(module=self.model.online, optimizers=self.state.optimizers)}

    def _check_fit(self, source: Source | Stream, tokenizer: Tokenizer) -> None:
        """The corpus gives what the tokenizer takes; learned positions need media of one size."""
        check_media(source, tokenizer)
        if isinstance(source, KeptCorpus):
            source.check(self.recipe.tokenizer, tokenizer)
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
                load_module(module, found, f"--from {checkpoint}")
        self.corpus.fit_tokenizer()

    def prepare(self, progress: Progress) -> None:
        if isinstance(self.corpus.source, KeptCorpus):
            self.corpus.source.check_statistics(self.pipeline.tokenizer)
        self.examples = self.pipeline.prepare(self._requests())
        self.judged = self._judged()
        if self.recipe.batch.cache:
            self.corpus.fill_cache(progress, self.ranks)

    def batches(self, cursor: Cursor) -> Iterator[tuple[list[Portion | None], Cursor]]:
        return self.corpus.batches(cursor, self.share)

    def learn(self, batch: Sequence[Portion | None], update: Update, progress: float) -> Learned | None:
        """Chance decides for the whole batch, in every process alike, and means are taken over all of it, so that it
        makes no difference how many processes and parts it is dealt to."""
        whole = self.dealt.whole(batch)
        if whole is None:
            return None
        draws = self.model.draw(whole.valid, whole.positions, self.state.generator)
        among = int(draws.mask.masked.sum())
        if self.ranks.world > 1 and self.recipe.model.dropout:
            torch.manual_seed(item_seed(self.recipe.run.seed, self.state.step, self.ranks.rank))
        sums = torch.zeros(2, device=self.device)

        def losses() -> Iterator[Tensor]:
            for n, part in enumerate(batch):
                with gradients_stay_here(self.wrapped, n < len(batch) - 1):
                    with autocast(self.optim, self.device):
                        if part is None:
                            found = self._nothing()
                        else:
                            rows = whole.rows(part)
                            own = draws if rows is None else draws.of(rows, part.batch.valid.shape[1])
                            found = self.model.losses(self._placed(part), own, among=among, online=self.wrapped)
                    sums.add_(torch.stack([found.generation, found.prediction]).detach())
                    yield found.total * self.ranks.world  # over the processes, gradients are averaged

        norm = update("model", losses())
        self.ranks.add(sums)
        terms = {"generation": sums[0], "prediction": sums[1], "gradient_norm": norm}
        flops = whole.items * self._flops(round(whole.tokens / whole.items))
        return Learned(terms=terms, items=whole.items, tokens=whole.tokens, flops=flops)

    def _placed(self, part: Portion) -> TokenBatch:
        """A part of a batch as the networks take it."""
        grids = torch.tensor(part.grids, device=self.device)
        return replace(part.batch, positions=self.model.place(part.batch.positions, grids))

    def _flops(self, num_tokens: int) -> float:
        """To train on an item of so many tokens, about. Counting takes as long as a step of a small model: it is done
        once for lengths of the same first two digits, and for all runs of a process."""
        recipe, tokenizer, condition = self.recipe, self.pipeline.tokenizer, self.pipeline.condition
        behind = recipe.condition.buffer_tokens + condition.usual_length
        sections = (recipe.model, recipe.head, recipe.mask, recipe.loss)
        alike = (*sections, tokenizer.token_dim, behind, f"{num_tokens:.1e}")
        if alike not in FLOPS_PER_TOKEN:
            with torch.device("meta"):
                networks = build_model(recipe, tokenizer, condition).online
            flops = train_flops(recipe, Passes(networks, tokenizer.token_dim, behind), num_tokens)
            FLOPS_PER_TOKEN[alike] = flops / num_tokens
        return num_tokens * FLOPS_PER_TOKEN[alike]

    # --- data feedback

    def _judged(self) -> list[tuple[Jobs, str]]:
        """What is generated to be judged: held-out items' conditions, with their texts.

        Raises UserError where the corpus cannot judge."""
        feedback, data = self.recipe.feedback, self.recipe.data
        if feedback is None or not feedback.judged:
            return []
        held_out = data.build_held_out()
        if not isinstance(data, Judge) or held_out is None:
            raise UserError(
                f"feedback.judged {feedback.judged}: the corpus {data.source} cannot judge what was generated: set it "
                "to 0; a callback may give scores"
            )
        if feedback.judged > len(held_out):
            raise UserError(f"feedback.judged {feedback.judged}: {len(held_out)} items are held out; give no more")
        entries = [held_out.entry(index) for index in range(feedback.judged)]
        requests = [
            Request(condition=self.pipeline.condition.request(entry), seed=(self.recipe.run.seed, n))
            for n, entry in enumerate(entries)
        ]
        return [(jobs, entry.text or "") for jobs, entry in zip(self.pipeline.prepare(requests), entries, strict=True)]

    def moved(self, cursor: Cursor, hooks: Sequence[Scores]) -> Cursor:
        """By what the corpus itself judges, and by the hooks' scores, which win. Those of the first process count."""
        if self.recipe.feedback is None or not self.recipe.feedback.wanted:
            return cursor
        scores: dict[str, float] = {}
        with ready_to_sample(self.model.averaged):
            if self.judged:
                jobs, texts = zip(*self.judged, strict=True)
                facts: dict[str, list[bool]] = {}
                for found in self.recipe.data.judge(self.pipeline.run(jobs), texts):
                    for name, holds in found.facts.items():
                        facts.setdefault(name, []).append(holds)
                scores = {name: sum(held) / len(held) for name, held in facts.items()}
            for hook in hooks:
                scores |= hook(self.state.step, self.pipeline)
        scores = self.ranks.gather(scores)[0]
        return self.corpus.moved(cursor, scores) if scores else cursor

    def _nothing(self) -> Losses:
        """Of a part of which no item could be read: zero, by way of the networks, for which the others wait."""
        spare, generator = self.dealt.spare, torch.Generator(self.device).manual_seed(0)
        draws = self.model.draw(spare.valid, spare.positions, generator)
        found = self.model.losses(spare, draws, online=self.wrapped)
        return Losses(total=found.total * 0, generation=found.generation * 0, prediction=found.prediction * 0)

    def write_samples(self, folder: Path, stem: str, progress: Progress) -> list[Path]:
        """A sheet, and a file an item where it is not a picture."""
        if not self.examples:
            return []
        with ready_to_sample(self.model.averaged):
            items = self.pipeline.run(self.examples, progress=progress)
        if not self.ranks.first:
            return []
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
        broken = {name: why for found in self.ranks.gather(self.corpus.broken) for name, why in found.items()}
        return Report(items=self.corpus.items, broken=broken, left_out=left_out)

    def _requests(self) -> list[Request]:
        run = self.recipe.run
        return self.pipeline.examples(run.samples, run.texts, run.seed)


def check_meaning(checkpoint: Path, recipe: Recipe, option: str) -> None:
    """Raises UserError where the weights of a checkpoint would mean something else in this recipe."""
    theirs = load_recipe(checkpoint / "recipe.yaml")
    for section, keys in MEANING.items():
        there, here = (_meaning(getattr(one, section), keys, FREE.get(section, set())) for one in (theirs, recipe))
        for key in there.keys() | here.keys():
            if key.endswith("sha256") and there.get(key) is None:
                continue  # older runs did not note it
            if there.get(key) != here.get(key):
                raise UserError(
                    f"{option}: its {section}.{key} is {there.get(key)!r}, here {here.get(key)!r}; make them agree"
                )


def _meaning(section: Any, keys: tuple[str, ...] | None, free: set[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in section.model_dump().items():
        values |= {f"{key}.{name}": one for name, one in value.items()} if key == "encoder" else {key: value}
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

    stop: ends the run when it is set, with a checkpoint. Under torchrun, processes train together, and what torchrun
    starts again goes on. Raises UserError where `out` holds a run already, or none to resume."""
    if resume and start is not None:
        raise UserError("--resume and --from: a run that goes on has its own weights; give one of the two")
    with joined() as ranks:
        pinned = ranks.agree(partial(with_hashes, recipe))
        assert pinned is not None
        recipe = pinned
        resume = resume or (restarts() > 0 and bool(checkpoints(out / "checkpoints")))
        device = torch.device(device)

        def prepare() -> Trainer:
            check_folder(out, resume=resume)
            if resume:
                _check_resumable(find_checkpoint(out), recipe)
            task = DJEPATask(recipe, device=device, start=start)
            if ranks.first and isinstance(task.pipeline.tokenizer, Trained):
                _tell_of_held_out(recipe, task.pipeline.tokenizer)
            return Trainer(task, out, resume=resume, console=console, callbacks=callbacks, stop=stop)

        try:
            trainer = ranks.agree(prepare)
            assert trainer is not None
            return trainer.run()
        except torch.OutOfMemoryError:
            raise UserError(
                f"{device} is out of memory: lower batch.size ({recipe.batch.size}) or batch.tokens "
                f"({recipe.batch.tokens}), or raise compute.accumulate ({recipe.compute.accumulate})"
            ) from None


def _tell_of_held_out(recipe: Recipe, tokenizer: Trained) -> None:
    """A Notice where the tokenizer has learned from items that the recipe holds out, as far as its own corpus is there
    to tell."""
    checkpoint = tokenizer.checkpoint
    with suppress(UserError):
        data = load_tokenizer_recipe(checkpoint / "recipe.yaml").data
        seen = held_out_and_learned(recipe.data, trained_on(data, checkpoint))
        if seen:
            warnings.warn(
                f"tokenizer.path: {checkpoint} has learned from {seen:,} of the items that data holds out, so figures "
                "of them are better than of unseen ones; train the tokenizer on the same side as the model",
                Notice,
                stacklevel=2,
            )


def with_hashes(recipe: Recipe) -> Recipe:
    """With the hashes of the weights that its sections take from elsewhere. Raises UserError where they are not there,
    or others than the recipe says."""
    return recipe.model_copy(update={name: one.pinned() for name, one in recipe if isinstance(one, Pinned)})


def _check_resumable(checkpoint: Path, recipe: Recipe) -> None:
    check_meaning(checkpoint, recipe, f"--resume {checkpoint}")
    there, here = load_recipe(checkpoint / "recipe.yaml").optim.optimizer, recipe.optim.optimizer
    if there != here:
        raise UserError(f"--resume {checkpoint}: its optim.optimizer is {there}, here {here}; make them agree")
