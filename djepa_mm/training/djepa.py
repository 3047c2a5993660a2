"""Training D-JEPA by a recipe: the task that `djepa-mm train` gives to the loop."""

from __future__ import annotations

import math
import threading
from collections.abc import Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pad_sequence

from djepa_mm.core.djepa import Losses
from djepa_mm.core.types import TokenBatch
from djepa_mm.data.batches import Portion, Share
from djepa_mm.data.check import check_media
from djepa_mm.data.corpus import Cursor
from djepa_mm.data.drawing import item_seed
from djepa_mm.data.reading import KeptCorpus
from djepa_mm.data.streams import open_corpus
from djepa_mm.errors import UserError
from djepa_mm.generation.pipeline import Pipeline
from djepa_mm.generation.request import Request
from djepa_mm.media.sheet import sheet
from djepa_mm.ranks import current, joined, restarts
from djepa_mm.recipe.build import build_model, check_memory
from djepa_mm.recipe.describe import Passes, train_flops
from djepa_mm.recipe.load import load_recipe
from djepa_mm.recipe.schema import TOKENS_FREE, Recipe
from djepa_mm.training.callbacks import Callback
from djepa_mm.training.loop import Outcome, Trainer, check_folder
from djepa_mm.training.optimizers import build_optimizers
from djepa_mm.training.state import SameCorpus, TrainState, load_module
from djepa_mm.training.task import Group, Learned, Report, Update, autocast
from djepa_mm.training.wrap import whole_weights, wrap
from djepa_mm.types import MediaSpec, Progress, Source, Stream, Tokenizer
from djepa_mm.weights import TOKENIZER, checkpoints, find_checkpoint, read_tensors

# Keys by which weights mean what they mean, though no shape may tell; `None` is all keys of a section but FREE ones
MEANING: dict[str, tuple[str, ...] | None] = {
    "tokenizer": None,
    "condition": None,
    "model": ("heads", "positions", "axes", "rotary_base", "streams"),
    "head": ("kind", "predicts", "time_scale"),
}
FREE = {
    "tokenizer": TOKENS_FREE,
    "condition": {"drop", "sentences", "classes"},
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
        self.corpus = open_corpus(source, tokenizer, condition, recipe.batch, seed=recipe.run.seed, device=device)
        if recipe.model.fixed_grid and len(self.corpus.grids()) > 1:
            positions = recipe.model.positions
            raise UserError(f"model.positions is {positions}, but this corpus' media vary in size: set it to rotary")
        self.corpus.fit_condition()
        self.pipeline = Pipeline(recipe, self.model, tokenizer, condition)
        self.online = self.model.online
        self.wrapped = wrap(self.model, recipe.compute, self.ranks, device)
        self._spare: TokenBatch | None = None
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
            source.check(self.recipe, tokenizer)
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
        if self.recipe.batch.cache:
            self.corpus.fill_cache(progress)

    def batches(self, cursor: Cursor) -> Iterator[tuple[list[Portion | None], Cursor]]:
        return self.corpus.batches(cursor, self.share)

    def learn(self, batch: Sequence[Portion | None], update: Update, progress: float) -> Learned | None:
        """Chance decides for the whole batch, in every process alike, and means are taken over all of it, so that it
        makes no difference how many processes and parts it is dealt to."""
        whole = [part for part in batch if part is not None]
        self._spare = whole[0].batch if whole else self._spare
        told = self.ranks.gather(([(part.places, part.grids) for part in whole], self._spare is None))
        items = {place: grid for parts, _ in told for part in parts for place, grid in zip(*part, strict=True)}
        if not items:
            return None
        if any(lacking for _, lacking in told):  # a process has never read anything: it takes what another has
            spares = self.ranks.gather(None if self._spare is None else self._spare.to("cpu"))
            self._spare = self._spare or next(spare for spare in spares if spare is not None).to(self.device)
        number = {place: n for n, place in enumerate(sorted(items))}  # of broken items, there is nothing
        grids = [items[place] for place in number]
        valid, positions = places(grids)
        draws = self.model.draw(valid.to(self.device), positions.to(self.device), self.state.generator)
        among = int(draws.mask.masked.sum())
        if self.ranks.world > 1 and self.recipe.model.dropout:
            torch.manual_seed(item_seed(self.recipe.run.seed, self.state.step, self.ranks.rank))
        sums = torch.zeros(2, device=self.device)

        def losses() -> Iterator[Tensor]:
            for n, part in enumerate(batch):
                with self._gradients_stay_here(n < len(batch) - 1):
                    with autocast(self.optim, self.device):
                        if part is None:
                            found = self._nothing()
                        else:
                            own = draws
                            if len(part.places) < len(items):
                                own = draws.of([number[place] for place in part.places], part.batch.valid.shape[1])
                            found = self.model.losses(part.batch, own, among=among, online=self.wrapped)
                    sums.add_(torch.stack([found.generation, found.prediction]).detach())
                    yield found.total * self.ranks.world  # over the processes, gradients are averaged

        norm = update("model", losses())
        self.ranks.add(sums)
        terms = {"generation": sums[0], "prediction": sums[1], "gradient_norm": norm}
        tokens = sum(math.prod(grid) for grid in grids)
        flops = len(grids) * self._flops(round(tokens / len(grids)))
        return Learned(terms=terms, items=len(grids), tokens=tokens, flops=flops)

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

    def _nothing(self) -> Losses:
        """Of a part of which no item could be read: zero, by way of the networks, for which the others wait."""
        assert self._spare is not None
        generator = torch.Generator(self.device).manual_seed(0)
        draws = self.model.draw(self._spare.valid, self._spare.positions, generator)
        found = self.model.losses(self._spare, draws, online=self.wrapped)
        return Losses(total=found.total * 0, generation=found.generation * 0, prediction=found.prediction * 0)

    def _gradients_stay_here(self, wanted: bool) -> AbstractContextManager[Any]:
        """Until the last part of a batch, other processes need not know this one's gradients."""
        return self.wrapped.no_sync() if wanted and isinstance(self.wrapped, DistributedDataParallel) else nullcontext()

    def write_samples(self, folder: Path, stem: str, progress: Progress) -> list[Path]:
        """A sheet, and a file an item where it is not a picture."""
        if not self.examples:
            return []
        with whole_weights(self.model.averaged):
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


def places(grids: Sequence[tuple[int, int, int]]) -> tuple[Tensor, Tensor]:
    """Of items by their grids -> valid (B, N) bool and positions (B, N, 3) of all of them as one batch."""
    counts = torch.tensor([math.prod(grid) for grid in grids])
    alone = [MediaSpec(grid=grid, shape=()).positions() for grid in grids]
    return torch.arange(int(counts.max())) < counts[:, None], pad_sequence(alone, batch_first=True)


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

    stop: ends the run when it is set, with a checkpoint. Under torchrun, processes train together, and what torchrun
    starts again goes on. Raises UserError where `out` holds a run already, or none to resume."""
    if resume and start is not None:
        raise UserError("--resume and --from: a run that goes on has its own weights; give one of the two")
    with joined() as ranks:
        resume = resume or (restarts() > 0 and bool(checkpoints(out / "checkpoints")))
        device = torch.device(device)

        def prepare() -> Trainer:
            check_folder(out, resume=resume)
            if resume:
                _check_resumable(find_checkpoint(out), recipe)
            task = DJEPATask(recipe, device=device, start=start)
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


def _check_resumable(checkpoint: Path, recipe: Recipe) -> None:
    check_meaning(checkpoint, recipe, f"--resume {checkpoint}")
    there, here = load_recipe(checkpoint / "recipe.yaml").optim.optimizer, recipe.optim.optimizer
    if there != here:
        raise UserError(f"--resume {checkpoint}: its optim.optimizer is {there}, here {here}; make them agree")
