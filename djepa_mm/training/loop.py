"""The one training loop."""

from __future__ import annotations

import dataclasses
import math
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from djepa_mm.conditions.text import Pace
from djepa_mm.core.averaging import warmed_decay
from djepa_mm.core.djepa import DJEPA, Losses
from djepa_mm.data.corpus import Corpus, Place
from djepa_mm.generation.pipeline import TOKENIZER, Generation, Request, load_weights, sheet
from djepa_mm.recipe.build import Conditions, build_model, count_classes
from djepa_mm.recipe.schema import OptimConfig, Recipe, dump_recipe, load_recipe
from djepa_mm.runs.checkpoint import Checkpoint, checkpoints, find_checkpoint, read_state, read_tensors, save_checkpoint
from djepa_mm.runs.log import append_log, cut_log, run_bar
from djepa_mm.types import Source, Tokenizer, UserError

FEW_WORDS = 100  # of a corpus; so many a recogniser can be told to listen for
FLOOR = 0.02  # share of the learning rate that a cosine schedule ends at


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a call of `train` ended."""

    run: Path
    step: int
    finished: bool  # False where it was interrupted, with a checkpoint saved


class Trainer:
    """A run: its model, optimiser, data and random states, all of which a checkpoint brings back.

    Resuming continues exactly: the same batches, masks, noise and schedule as if the run had never stopped. Only
    `optim.minutes`, which reads the clock, can make two runs differ.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        *,
        resume: bool,
        device: torch.device,
        console: Console,
        start: Path | None = None,
    ) -> None:
        self.recipe, self.out, self.device, self.console = recipe, out, device, console
        source = recipe.data.build()
        tokenizer = recipe.tokenizer.build()
        self._check_fit(source, tokenizer)
        torch.manual_seed(recipe.run.seed)
        with device:
            self.model = build_model(recipe, tokenizer, count_classes(recipe, len(source.classes)))
        conditions = Conditions(recipe)
        self.corpus = Corpus(source, tokenizer, conditions, recipe.batch, seed=recipe.run.seed, device=device)
        if recipe.model.fixed_grid and len({spec.grid for spec in self.corpus.specs.values()}) > 1:
            kind = recipe.model.positions
            raise UserError(f"model.positions is {kind}, but this corpus' media vary in size: set it to rotary")
        words: set[str] = set()
        if conditions.vocabulary is not None:
            texts, counts = self.corpus.texts()
            words = {word for text in texts for word in re.findall(r"[\w']+", text.lower())}
            encoded = [conditions.vocabulary.encode(text) for text in texts]
            conditions.pace = Pace.fit(encoded, counts, len(conditions.vocabulary.symbols))
        self.generation = Generation(
            recipe,
            self.model,
            tokenizer,
            classes=source.classes if recipe.condition.kind == "class" else (),
            words=sorted(words) if len(words) <= FEW_WORDS else (),
            conditions=conditions,
        )
        self.optimizers = build_optimizers(self.model, recipe.optim)
        self.generator = torch.Generator(device).manual_seed(recipe.run.seed)
        self.step, self.seconds, self.place = 0, 0.0, Place()
        if resume:
            self._load(find_checkpoint(out))
        else:
            if start is not None:
                self._start_from(find_checkpoint(start))
            self.corpus.fit_tokenizer()
        for request in self._examples():  # a text that cannot be sampled is a mistake to hear of now, not after hours
            self.generation.check(request)
        if recipe.batch.cache:
            with run_bar(self.console, "tokenizing") as advance:
                self.corpus.fill_cache(lambda done, total: advance(done / total))

    def _check_fit(self, source: Source, tokenizer: Tokenizer) -> None:
        """The corpus gives what the tokenizer takes; learned positions need media of one size."""
        if source.sample_rate_hz != tokenizer.sample_rate_hz:
            raise UserError(
                f"data gives media at {source.sample_rate_hz} Hz, the tokenizer takes {tokenizer.sample_rate_hz} Hz: "
                "make data.sample_rate_hz and tokenizer.sample_rate_hz agree"
            )
        if self.recipe.model.fixed_grid:
            try:
                tokenizer.spec_for()
            except UserError:
                kind = self.recipe.model.positions
                raise UserError(
                    f"model.positions is {kind}, but this tokenizer's media vary in length: set it to rotary"
                ) from None

    # --- the loop

    def run(self) -> Outcome:
        """Train to the end of the recipe, or to an interrupt; either way a checkpoint is left."""
        from torch.utils.tensorboard import SummaryWriter  # a second to import

        recipe, run = self.recipe, self.recipe.run
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
        cut_log(self.out / "log.jsonl", self.step)
        board = SummaryWriter(str(self.out / "tensorboard"), purge_step=self.step or None)
        batches = self.corpus.batches(self.place)
        interrupted = catch_interrupts()
        self.model.train()
        began = time.monotonic() - self.seconds
        window, window_began = [], time.monotonic()
        with interrupted as stop, run_bar(self.console, "training", self.progress) as advance, board:
            while not self.done and not stop:
                try:
                    losses, norm = self._one_step(batches)
                except UserError:  # too much broken data, or a gradient that is not finite: keep what was learned
                    self.corpus.save_report(self.out / "report.json")
                    if self.step:
                        self.save()
                    raise
                self.seconds = time.monotonic() - began
                advance(self.progress)
                window.append(torch.stack([losses.generation.detach(), losses.prediction.detach(), norm]))
                if self.step % run.log_every == 0 or self.done:
                    rate = len(window) / (time.monotonic() - window_began)
                    self._log(board, torch.stack(window).mean(0).tolist(), rate, advance)
                    window, window_began = [], time.monotonic()
                if run.sample_every and self.step % run.sample_every == 0 and not self.done:
                    self.sample()
                if self.step % run.save_every == 0 and not self.done:
                    self.save()
                began = time.monotonic() - self.seconds  # samples and checkpoints are not training time
        folder = self.save()
        self.corpus.save_report(self.out / "report.json")
        if not stop:
            self.sample()
        self.console.print(f"{'stopped' if stop else 'finished'} at step {self.step}; checkpoint {folder}")
        if self.corpus.broken:
            name, reason = next(iter(self.corpus.broken.items()))
            self.console.print(
                f"skipped {len(self.corpus.broken)} broken of {len(self.corpus.source)} items, such as {name}: "
                f"{reason}; all are named in {self.out / 'report.json'}"
            )
        return Outcome(run=self.out, step=self.step, finished=not stop)

    @property
    def progress(self) -> float:
        """Share of the run that is done, by steps or by minutes, whichever is further."""
        optim = self.recipe.optim
        by_time = self.seconds / 60 / optim.minutes if optim.minutes else 0.0
        return min(1.0, max(self.step / optim.steps, by_time))

    @property
    def done(self) -> bool:
        return self.progress >= 1

    def _one_step(self, batches: Iterator[tuple[Any, Place]]) -> tuple[Losses, Tensor]:
        optim = self.recipe.optim
        batch, place = next(batches)
        rate = learning_rate(optim, self.step, self.progress)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        bf16 = optim.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16) if bf16 else nullcontext():
            losses = self.model.loss(batch.to(self.device), self.generator)
        self.model.online.zero_grad()
        losses.total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.online.parameters(), optim.clip)
        if not bool(norm.isfinite()):
            raise UserError(f"step {self.step}: the gradient is {norm.item()}; lower optim.lr ({optim.lr}) and resume")
        for optimizer in self.optimizers:
            optimizer.step()
        self.model.update_average(warmed_decay(self.step, optim.ema_decay))
        self.step, self.place = self.step + 1, place
        return losses, norm

    # --- what the person at the terminal sees

    def _log(self, board: Any, means: list[float], rate: float, advance: Any) -> None:
        generation, prediction, norm = means
        row = {
            "step": self.step,
            "generation": generation,
            "prediction": prediction,
            "gradient_norm": norm,
            "lr": self.optimizers[0].param_groups[0]["lr"],
            "steps_per_s": rate,
            "seconds": self.seconds,
        }
        append_log(self.out / "log.jsonl", row)
        for key, value in row.items():
            if key != "step":
                board.add_scalar(key, value, self.step)
        steps = f"step {self.step}/{self.recipe.optim.steps}"
        advance(self.progress, f"{steps}  generation {generation:.4f}  prediction {prediction:.4f}  {rate:.2f} steps/s")

    def sample(self) -> None:
        """Write what the averaged weights give now: a sheet, and a file an item where it is not a picture."""
        requests = self._examples()
        if not requests:
            return
        with torch.random.fork_rng(devices=[]):
            media = self.generation(requests)
        folder = self.out / "samples"
        folder.mkdir(exist_ok=True)
        tokenizer, stem = self.generation.tokenizer, f"step-{self.step:08d}"
        sheet([tokenizer.preview(item) for item in media]).save(folder / f"{stem}.png")
        if tokenizer.suffix != ".png":
            for n, item in enumerate(media):
                tokenizer.save(item, folder / f"{stem}-{n:02d}{tokenizer.suffix}")

    def _examples(self) -> list[Request]:
        run = self.recipe.run
        return self.generation.examples(run.samples, run.texts, run.seed)

    # --- checkpoints

    def save(self) -> Path:
        generation = self.generation
        averaged = dict(self.model.averaged.state_dict())
        averaged |= {TOKENIZER + key: value for key, value in generation.tokenizer.statistics().items()}
        training = {
            f"optimizer.{name}.{key}": value
            for name, parameter in self.model.online.named_parameters()
            for optimizer in self.optimizers
            for key, value in optimizer.state.get(parameter, {}).items()
        }
        training["random.generator"] = self.generator.get_state()
        training["random.torch"] = torch.get_rng_state()
        if self.device.type == "cuda":
            training["random.cuda"] = torch.cuda.get_rng_state(self.device)
        checkpoint = Checkpoint(
            recipe=dump_recipe(self.recipe),
            state={
                "step": self.step,
                "seconds": self.seconds,
                "place": dataclasses.asdict(self.place),
                "classes": list(generation.classes),
                "words": list(generation.words),
                "pace": dataclasses.asdict(generation.conditions.pace) if generation.conditions.pace else None,
            },
            averaged=averaged,
            online=self.model.online.state_dict(),
            training=training,
        )
        return save_checkpoint(self.out / "checkpoints", checkpoint, self.recipe.run.keep)

    def _start_from(self, checkpoint: Path) -> None:
        """Take over the averaged weights of another run, for fine-tuning; nothing else of it."""
        theirs = load_recipe(checkpoint / "recipe.yaml")
        keys = ("condition", "characters"), ("head", "kind"), ("head", "predicts"), ("model", "rotary_base")
        for part, key in keys:  # which no shape tells
            there, here = (getattr(getattr(recipe, part), key, None) for recipe in (theirs, self.recipe))
            if there != here:
                raise UserError(f"--from {checkpoint}: its {part}.{key} is {there!r}, here {here!r}; make them agree")
        found = {k: v for k, v in read_tensors(checkpoint, "averaged").items() if not k.startswith(TOKENIZER)}
        for module in (self.model.averaged, self.model.online):
            load_weights(module, found, f"--from {checkpoint}", assign=False)

    def _load(self, checkpoint: Path) -> None:
        there, here = load_recipe(checkpoint / "recipe.yaml").optim.optimizer, self.recipe.optim.optimizer
        if there != here:
            raise UserError(f"--resume {checkpoint}: its optim.optimizer is {there}, here {here}; make them agree")
        state = read_state(checkpoint)
        averaged, online, training = (read_tensors(checkpoint, n) for n in ("averaged", "online", "training"))
        tokenizer = {k.removeprefix(TOKENIZER): averaged.pop(k) for k in list(averaged) if k.startswith(TOKENIZER)}
        self.generation.tokenizer.load_statistics(tokenizer)
        for name, module, weights in (
            ("averaged", self.model.averaged, averaged),
            ("online", self.model.online, online),
        ):
            load_weights(module, weights, f"{checkpoint / name}.safetensors", assign=False)
        names = {parameter: name for name, parameter in self.model.online.named_parameters()}
        for optimizer in self.optimizers:
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                prefix = f"optimizer.{names[parameter]}."
                moments = {k.removeprefix(prefix): v for k, v in training.items() if k.startswith(prefix)}
                optimizer.state[parameter] = {key: value.to(self.device) for key, value in moments.items()}
        self.generator.set_state(training["random.generator"])
        torch.set_rng_state(training["random.torch"])
        if self.device.type == "cuda" and "random.cuda" in training:
            torch.cuda.set_rng_state(training["random.cuda"], self.device)
        self.step, self.seconds, self.place = state["step"], state["seconds"], Place(**state["place"])


def train(
    recipe: Recipe, out: Path, *, resume: bool, device: torch.device, console: Console, start: Path | None = None
) -> Outcome:
    """Train a recipe in the run folder `out`, from scratch or from the weights of the run or checkpoint `start`.

    Raises UserError where `out` holds a run already, or none to resume."""
    if resume and start is not None:
        raise UserError("--resume and --from: a run that goes on has its own weights; give one of the two")
    if not resume and checkpoints(out / "checkpoints"):
        raise UserError(f"{out}: holds a run already; go on with it: --resume, or choose another folder: --out")
    try:
        return Trainer(recipe, out, resume=resume, device=device, console=console, start=start).run()
    except torch.OutOfMemoryError:
        raise UserError(
            f"{device} is out of memory: lower batch.size ({recipe.batch.size}) or batch.tokens ({recipe.batch.tokens})"
        ) from None


def build_optimizers(model: DJEPA, optim: OptimConfig) -> list[torch.optim.Optimizer]:
    """AdamW for all, or Muon for the blocks' matrices and AdamW for the rest.

    Weight decay on matrices only; none on biases, norms, embeddings, positions, buffer tokens and the head."""
    blocks: list[Tensor] = []
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    for name, parameter in model.online.named_parameters():
        if parameter.ndim < 2 or name.startswith(("head.", "conditioner.")) or ".learned." in name:
            plain.append(parameter)
        elif optim.optimizer == "muon" and ".blocks." in name:
            blocks.append(parameter)
        else:
            decayed.append(parameter)
    groups = [{"params": decayed, "weight_decay": optim.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=True),
    ]
    if blocks:  # steps of the size that AdamW's have, so that one learning rate serves both
        adjust = "match_rms_adamw"
        optimizers.append(torch.optim.Muon(blocks, lr=optim.lr, weight_decay=optim.weight_decay, adjust_lr_fn=adjust))
    return optimizers


def learning_rate(optim: OptimConfig, step: int, progress: float) -> float:
    """Linear warm-up, then constant or a cosine to FLOOR; `progress` in [0, 1]."""
    warmup = min(1.0, (step + 1) / (optim.warmup_steps + 1))
    if optim.schedule == "constant":
        return optim.lr * warmup
    return optim.lr * warmup * (FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * progress)) / 2)


@contextmanager
def catch_interrupts() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of dying of them; a second SIGINT is the ordinary one."""
    caught: list[int] = []

    def catch(number: int, _: Any) -> None:
        caught.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    old = {number: signal.signal(number, catch) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
