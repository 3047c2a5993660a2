"""The one training loop."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from djepa_mm.core.averaging import update_average, warmed_decay
from djepa_mm.data.corpus import Cursor, merge
from djepa_mm.errors import UserError
from djepa_mm.precision import matrix_speed, without_slow_bf16
from djepa_mm.ranks import ElsewhereError, current, is_split, settle
from djepa_mm.recipe.load import dump_recipe
from djepa_mm.runs.checkpoint import remove_unfinished
from djepa_mm.runs.files import check_writable, only_run, written_to
from djepa_mm.runs.log import append_log, cut_log, quiet_board, run_bar, tracker
from djepa_mm.training.callbacks import Callback
from djepa_mm.training.interrupts import Interrupted, Interrupts
from djepa_mm.training.optimizers import average_decay, learning_rate, weight_decay_share
from djepa_mm.training.task import Learned, Steered, Task, product_type
from djepa_mm.weights import checkpoints, find_checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a training ended."""

    run: Path
    step: int
    finished: bool  # False where it was interrupted, with a checkpoint saved


NOT_LOSSES = {
    "gradient_norm", "left_out", "steps_per_s", "items_per_s", "tokens_per_s", "data_wait", "matrix_share",
    "memory_mib",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """learned: with terms in fp32. finite: False where the step was left out. waited, took: seconds for data, and for
    the rest."""

    learned: Learned
    finite: bool
    waited: float
    took: float


class Window:
    """Steps from one line of the log to the next. speed: FLOPs a second that all processes' devices can reach."""

    def __init__(self, speed: float) -> None:
        self.speed = speed
        self.steps: list[Step] = []
        self.began = time.monotonic()

    def row(self) -> dict[str, float]:
        """Means of the terms over the steps that count, and how fast they went."""
        counted = [step.learned.terms for step in self.steps if step.finite] or [self.steps[-1].learned.terms]
        seconds, waited = time.monotonic() - self.began, sum(step.waited for step in self.steps)
        return {
            **{name: torch.stack([terms[name] for terms in counted]).mean().item() for name in counted[0]},
            "left_out": sum(not step.finite for step in self.steps),
            "steps_per_s": len(self.steps) / seconds,
            "items_per_s": sum(step.learned.items for step in self.steps) / seconds,
            "tokens_per_s": sum(step.learned.tokens for step in self.steps) / seconds,
            "data_wait": waited / (waited + sum(step.took for step in self.steps)),
            "matrix_share": sum(step.learned.flops for step in self.steps) / seconds / self.speed,
            "memory_mib": memory_mib(),
        }


def memory_mib() -> float:
    """Most memory that this process has held: of the GPU where one is used, else of the machine, where it tells."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        import resource
    except ImportError:  # as on Windows
        return 0.0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


class Trainer:
    """A run: a task, taken through its recipe's steps or minutes, with all that it leaves in its folder.

    Resuming continues exactly: the same batches, masks, noise and schedule as if the run had never stopped. Only
    `optim.minutes`, which reads the clock, can make two runs differ.
    """

    def __init__(
        self,
        task: Task,
        out: Path,
        *,
        resume: bool = False,
        console: Console | None = None,
        callbacks: Sequence[Callback] = (),
        stop: threading.Event | None = None,
    ) -> None:
        """Loads the newest checkpoint of `out` where it is resumed. stop: ends the run when it is set, as a signal
        does. Raises UserError where `out` holds a run already, or none to resume."""
        self.task, self.state, self.out, self.ranks = task, task.state, out, current()
        self.console = console if console is not None and self.ranks.first else Console(quiet=True)
        self.callbacks, self.interrupts = callbacks, Interrupts(stop)
        self.bad_steps, self._finite = 0, True  # in a row; of this step
        self._writing: Future[Path] | None = None  # a checkpoint that is not known to be whole yet
        check_folder(out, resume=resume)
        if resume:
            self.state.load(find_checkpoint(out))
        with run_bar(self.console, "preparing") as advance:

            def progress(done: int, total: int) -> None:
                advance(done / total)

            if not resume:
                task.begin(progress)
            task.prepare(progress)
        self._began = time.monotonic() - self.state.seconds

    def run(self) -> Outcome:
        """Train to the end of the recipe, or to an interrupt; either way a checkpoint is left."""
        with (
            written_to(self.out),
            only_run(self.out, self.ranks),
            self.interrupts.heard(),
            self.ranks.apart() as self._apart,
            ThreadPoolExecutor(1, "checkpoint") as self._writer,  # is waited for, whatever happens
        ):
            return self._run()

    def _run(self) -> Outcome:
        state, settings = self.state, self.task.settings
        self.ranks.agree(self._begin_files, first_only=True)
        batches = self.task.batches(state.cursor)
        for group in self.task.groups.values():
            group.module.train()
        speed = self.ranks.world * matrix_speed(state.device, product_type(self.task.optim, state.device))
        window, stopped = Window(speed), False
        with run_bar(self.console, "training", self.progress) as advance, self._board() as board:
            while not self.done:
                try:
                    window.steps.append(self.one_step(batches))
                except Interrupted:
                    stopped = True
                    break
                except UserError:  # too much broken data, or no finite gradient any more: keep what was learned
                    self._write_report()
                    if state.step:
                        self.save()
                    raise
                paused = time.monotonic()
                advance(self.progress)
                self._tell("on_step", state.step, self.progress)
                if state.step % settings.log_every == 0 or self.done:
                    advance(self.progress, self._log(board, window.row()))
                    window = Window(speed)
                if settings.sample_every and state.step % settings.sample_every == 0 and not self.done:
                    self.write_samples()
                if state.step % settings.save_every == 0 and not self.done:
                    batches = self._steered(batches)
                    self.save(beside=True)
                self._began += time.monotonic() - paused  # samples and checkpoints are not training time
            folder = self.save()
        self._write_report()
        if not stopped:
            self.write_samples()
        self.console.print(f"{'stopped' if stopped else 'finished'} at step {state.step}; checkpoint {folder}")
        report = self.task.report()
        if report.broken:
            name, reason = next(iter(report.broken.items()))
            self.console.print(
                f"skipped {len(report.broken)} broken of {report.items} items, such as {name}: "
                f"{reason}; all are named in {self.out / 'report.json'}"
            )
        return Outcome(run=self.out, step=state.step, finished=not stopped)

    def _steered(self, batches: Iterator[tuple[Any, Cursor]]) -> Iterator[tuple[Any, Cursor]]:
        """The batches from here on, anew where scores have moved what is sampled: as if the run was resumed here."""
        if not isinstance(self.task, Steered):
            return batches
        with torch.random.fork_rng(devices=[]):
            cursor = self.task.moved(self.state.cursor, [callback.scores for callback in self.callbacks])
        if cursor is self.state.cursor:
            return batches
        self.state.cursor = cursor
        return self.task.batches(cursor)

    def _begin_files(self) -> None:
        with written_to(self.out):
            (self.out / "recipe.yaml").write_text(dump_recipe(self.task.recipe), encoding="utf-8")
            cut_log(self.out / "log.jsonl", self.state.step)
            remove_unfinished(self.out / "checkpoints")

    def _next(self, batches: Iterator[tuple[Any, Cursor]]) -> tuple[Any, Cursor]:
        """The next batch, and its cursor. All processes agree on the clock, on whether the checkpoint before is whole,
        and whether the run shall end: then it raises Interrupted."""
        random = self.state.generator.get_state()
        found, error = None, None
        try:
            with self.interrupts.ending_this():
                found = next(batches)
        except Interrupted:
            pass
        except UserError as mistake:
            error = mistake
        written = self._writing if self._writing is not None and self._writing.done() else None
        failed = written and written.exception()
        error = error or (failed if isinstance(failed, UserError) else None)
        stop, seconds = found is None or bool(self.interrupts), time.monotonic() - self._began
        told = self.ranks.gather((error and str(error), written is not None, stop, seconds))
        errors, wholes, stops, clocks = zip(*told, strict=True)
        settle(error, errors)
        if all(wholes):
            self._written()
        self.state.seconds = clocks[0]
        if found is None or any(stops):
            self.state.generator.set_state(random)  # the batch will be read again
            raise Interrupted
        return found

    def _tell(self, event: str, *what: Any) -> None:
        """Call what waits for it; where that fails, what was learned is kept all the same."""
        try:
            for callback in self.callbacks:
                getattr(callback, event)(*what)
        except Exception:
            if self.ranks.world == 1:  # others would not come to save
                self.save()
            raise

    @property
    def progress(self) -> float:
        """Share of the run that is done, by steps or by minutes, whichever is further."""
        optim = self.task.optim
        by_time = self.state.seconds / 60 / optim.minutes if optim.minutes else 0.0
        return min(1.0, max(self.state.step / optim.steps, by_time))

    @property
    def done(self) -> bool:
        return self.progress >= 1

    def one_step(self, batches: Iterator[tuple[Any, Cursor]]) -> Step:
        """Learn from the next batch in which anything can be used, and move the averages -> what the log shows.

        Raises Interrupted where the run shall end, and UserError."""
        asked, learned, epoch = time.monotonic(), None, self.state.cursor.epoch
        while learned is None:
            batch, cursor = self._next(batches)
            began = time.monotonic()
            learned = self._learn(batch)
            self.state.cursor = cursor
            if learned is None and cursor.epoch > epoch + 1:  # a whole one, of which no process could read anything
                broken = self.task.report().broken
                example = next((f"{name}: {reason}" for name, reason in broken.items()), "none is there")
                raise UserError(f"no item of the corpus can be read: {example}")
        self.state.step += 1
        self.state.seconds = self._clock()
        self.bad_steps = 0 if self._finite else self.bad_steps + 1
        if self.bad_steps >= self.task.optim.bad_steps:
            raise UserError(
                f"step {self.state.step}: loss or gradient have not been finite for {self.bad_steps} steps, which were "
                f"left out; lower optim.lr ({self.task.optim.lr}) and resume"
            )
        terms = {name: value.detach().float() for name, value in learned.terms.items()}
        took, learned = time.monotonic() - began, replace(learned, terms=terms)
        return Step(learned=learned, finite=self._finite, waited=began - asked, took=took)

    def _learn(self, batch: Any) -> Learned | None:
        optim, progress = self.task.optim, self.progress
        lr, share = learning_rate(optim, self.state.step, progress), weight_decay_share(optim, progress)
        for group in (group for optimizer in self.state.optimizers for group in optimizer.param_groups):
            group["lr"] = lr
            group["weight_decay"] = group.setdefault("full_weight_decay", group["weight_decay"]) * share
        self._finite = True
        learned = self.task.learn(batch, self._update, progress)
        if learned is not None and self._finite:
            decay = warmed_decay(self.state.step, average_decay(optim, progress))
            update_average(self.state.averaged, self.task.online, decay)
        return learned

    def _clock(self) -> float:
        """Seconds of training, as the first process counts them: only there is it read between two agreements."""
        return time.monotonic() - self._began if self.ranks.world == 1 else self.state.seconds

    def _update(self, group: str, losses: Iterable[Tensor]) -> Tensor:
        optim, chosen = self.task.optim, self.task.groups[group]
        chosen.module.zero_grad()
        total = torch.zeros((), device=self.state.device)
        for loss in losses:
            loss.backward()
            total += loss.detach()
        self.ranks.add(total)
        norm = nn.utils.clip_grad_norm_(chosen.module.parameters(), optim.clip)
        norm = norm.full_tensor() if is_split(norm) else norm
        if not bool(norm.isfinite() & total.isfinite()):
            self._finite = False
            return norm
        with without_slow_bf16(self.state.device):
            for optimizer in chosen.optimizers:
                optimizer.step()
        return norm

    # --- what the run leaves

    @contextmanager
    def _board(self) -> Iterator[Callable[[Mapping[str, float]], None]]:
        """What takes each row of the log: log.jsonl, TensorBoard, and a tracker; in the first process alone."""
        if not self.ranks.first:
            yield lambda row: None
            return
        from torch.utils.tensorboard import SummaryWriter  # a second to import

        recipe = self.task.recipe
        with (
            quiet_board(),
            SummaryWriter(str(self.out / "tensorboard"), purge_step=self.state.step or None) as writer,
            tracker(self.task.settings.tracker, self.out.name, recipe.model_dump(mode="json")) as track,
        ):

            def write(row: Mapping[str, float]) -> None:
                step = int(row["step"])
                append_log(self.out / "log.jsonl", row)
                figures = {key: value for key, value in row.items() if key != "step"}
                for key, value in figures.items():
                    writer.add_scalar(key, value, step)
                track(figures, step)

            yield write

    def _log(self, board: Callable[[Mapping[str, float]], None], figures: Mapping[str, float]) -> str:
        """Add a line to the log -> what to show of it."""
        lr = self.state.optimizers[0].param_groups[0]["lr"]
        row = {"step": self.state.step, **figures, "lr": lr, "seconds": self.state.seconds}
        board(row)
        self._tell("on_log", row)
        losses = "  ".join(f"{name} {value:.4f}" for name, value in figures.items() if name not in NOT_LOSSES and value)
        left_out = f"  {figures['left_out']:.0f} steps left out: not finite" if figures["left_out"] else ""
        waiting = f"  {figures['data_wait']:.0%} waiting for data" if figures["data_wait"] > 0.1 else ""
        speeds = f"{figures['steps_per_s']:.2f} steps/s  {figures['items_per_s']:.4g} items/s"
        return f"step {self.state.step}/{self.task.optim.steps}  {losses}  {speeds}{waiting}{left_out}"

    def write_samples(self) -> None:
        """What the averaged weights give now, in the folder `samples`; it draws nothing from the run's random state. A
        signal ends it after the sampler's step, here and in all other processes, which have to hear of it."""

        def go_on(done: int, total: int) -> None:
            if self.interrupts:
                raise Interrupted

        files = None
        with torch.random.fork_rng(devices=[]), suppress(Interrupted, ElsewhereError):
            files = self.task.write_samples(self.out / "samples", f"step-{self.state.step:08d}", go_on)
        if files:
            self._tell("on_samples", files)

    def save(self, *, beside: bool = False) -> Path:
        """Write a checkpoint now, or beside the next steps -> its folder, which is whole then, or will be."""
        self._written()
        recipe, keep = dump_recipe(self.task.recipe), self.task.settings.keep
        self.state.cursor = merge(self.ranks.gather(self.state.cursor))
        folder = self.out / "checkpoints"
        write = self.state.saving(folder, recipe, keep, self._apart if beside else None)
        if beside:
            self._writing = self._writer.submit(write)
        else:
            self._whole(write())
        return folder / f"step-{self.state.step:08d}"

    def _written(self) -> None:
        """Wait until the checkpoint before is whole, and tell of it. Raises UserError where it cannot be written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            self.ranks.agree(writing.result)
            self._whole(writing.result())

    def _whole(self, checkpoint: Path) -> None:
        for callback in self.callbacks:
            callback.on_checkpoint(checkpoint)

    def _write_report(self) -> None:
        """JSON: how many items there are, how many were left out and why, and every broken one with its reason."""
        found = self.task.report()
        if not self.ranks.first:
            return
        report = {
            "items": found.items,
            "left_out": dict(found.left_out),
            "broken": len(found.broken),
            "reasons": dict(found.broken),
        }
        text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
        (self.out / "report.json").write_text(text, encoding="utf-8")


def check_folder(out: Path, *, resume: bool) -> None:
    """Raises UserError where a run folder holds a run already, or none to resume."""
    if resume:
        find_checkpoint(out)
        return
    with written_to(out):
        check_writable(out)
    if checkpoints(out / "checkpoints"):
        raise UserError(f"{out}: holds a run already; go on with it: --resume, or choose another folder: --out")
