"""The one training loop."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from djepa_mm.core.averaging import update_average, warmed_decay
from djepa_mm.data.corpus import Cursor
from djepa_mm.errors import UserError
from djepa_mm.precision import without_slow_bf16
from djepa_mm.recipe.load import dump_recipe
from djepa_mm.runs.files import check_writable, written_to
from djepa_mm.runs.log import append_log, cut_log, run_bar
from djepa_mm.training.callbacks import Callback
from djepa_mm.training.interrupts import interruptible
from djepa_mm.training.optimizers import average_decay, learning_rate, weight_decay_share
from djepa_mm.training.task import Task
from djepa_mm.weights import checkpoints, find_checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a training ended."""

    run: Path
    step: int
    finished: bool  # False where it was interrupted, with a checkpoint saved


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
        self.task, self.state, self.out = task, task.state, out
        self.console, self.callbacks, self.stop = console or Console(quiet=True), callbacks, stop
        check_folder(out, resume=resume)
        if resume:
            self.state.load(find_checkpoint(out))
        with run_bar(self.console, "preparing") as advance:

            def progress(done: int, total: int) -> None:
                advance(done / total)

            if not resume:
                task.begin(progress)
            task.prepare(progress)

    def run(self) -> Outcome:
        """Train to the end of the recipe, or to an interrupt; either way a checkpoint is left."""
        with written_to(self.out):
            return self._run()

    def _run(self) -> Outcome:
        from torch.utils.tensorboard import SummaryWriter  # a second to import

        state, settings = self.state, self.task.settings
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "recipe.yaml").write_text(dump_recipe(self.task.recipe), encoding="utf-8")
        cut_log(self.out / "log.jsonl", state.step)
        board = SummaryWriter(str(self.out / "tensorboard"), purge_step=state.step or None)
        batches = self.task.batches(state.cursor)
        for group in self.task.groups.values():
            group.module.train()
        began = time.monotonic() - state.seconds
        window: list[Mapping[str, Tensor]] = []
        window_began = time.monotonic()
        with interruptible(self.stop) as stopped, run_bar(self.console, "training", self.progress) as advance, board:
            while not self.done and not stopped():
                try:
                    window.append(self.one_step(batches))
                except UserError:  # too much broken data, or a gradient that is not finite: keep what was learned
                    self._write_report()
                    if state.step:
                        self.save()
                    raise
                state.seconds = time.monotonic() - began
                advance(self.progress)
                self._tell("on_step", state.step, self.progress)
                if state.step % settings.log_every == 0 or self.done:
                    per_second = len(window) / (time.monotonic() - window_began)
                    advance(self.progress, self._log(board, window, per_second))
                    window, window_began = [], time.monotonic()
                if settings.sample_every and state.step % settings.sample_every == 0 and not self.done:
                    self.write_samples()
                if state.step % settings.save_every == 0 and not self.done:
                    self.save()
                began = time.monotonic() - state.seconds  # samples and checkpoints are not training time
            finished = not stopped()
            folder = self.save()
        self._write_report()
        if finished:
            self.write_samples()
        self.console.print(f"{'finished' if finished else 'stopped'} at step {state.step}; checkpoint {folder}")
        report = self.task.report()
        if report.broken:
            name, reason = next(iter(report.broken.items()))
            self.console.print(
                f"skipped {len(report.broken)} broken of {report.items} items, such as {name}: "
                f"{reason}; all are named in {self.out / 'report.json'}"
            )
        return Outcome(run=self.out, step=state.step, finished=finished)

    def _tell(self, event: str, *what: Any) -> None:
        """Call what waits for it; where that fails, what was learned is kept all the same."""
        try:
            for callback in self.callbacks:
                getattr(callback, event)(*what)
        except Exception:
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

    def one_step(self, batches: Iterator[tuple[Any, Cursor]]) -> Mapping[str, Tensor]:
        """Learn from the next batch and move the averages -> what the log shows, scalars."""
        batch, cursor = next(batches)
        optim, progress = self.task.optim, self.progress
        lr, share = learning_rate(optim, self.state.step, progress), weight_decay_share(optim, progress)
        for group in (group for optimizer in self.state.optimizers for group in optimizer.param_groups):
            group["lr"] = lr
            group["weight_decay"] = group.setdefault("full_weight_decay", group["weight_decay"]) * share
        terms = self.task.learn(batch, self._update, progress)
        decay = warmed_decay(self.state.step, average_decay(optim, progress))
        update_average(self.state.averaged, self.task.online, decay)
        self.state.step, self.state.cursor = self.state.step + 1, cursor
        return {name: value.detach().float() for name, value in terms.items()}

    def _update(self, group: str, loss: Tensor) -> Tensor:
        optim, chosen = self.task.optim, self.task.groups[group]
        chosen.module.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(chosen.module.parameters(), optim.clip)
        if not bool(norm.isfinite()):
            step = self.state.step
            raise UserError(f"step {step}: the gradient is {norm.item()}; lower optim.lr ({optim.lr}) and resume")
        with without_slow_bf16(self.state.device):
            for optimizer in chosen.optimizers:
                optimizer.step()
        return norm

    # --- what the run leaves

    def _log(self, board: Any, window: Sequence[Mapping[str, Tensor]], per_second: float) -> str:
        """Add a line to log.jsonl and TensorBoard's -> what to show of it."""
        means = {name: torch.stack([terms[name] for terms in window]).mean().item() for name in window[0]}
        lr = self.state.optimizers[0].param_groups[0]["lr"]
        row = {"step": self.state.step, **means, "lr": lr, "steps_per_s": per_second, "seconds": self.state.seconds}
        append_log(self.out / "log.jsonl", row)
        for key, value in row.items():
            if key != "step":
                board.add_scalar(key, value, self.state.step)
        self._tell("on_log", row)
        losses = "  ".join(f"{name} {value:.4f}" for name, value in means.items() if name != "gradient_norm" and value)
        return f"step {self.state.step}/{self.task.optim.steps}  {losses}  {per_second:.2f} steps/s"

    def write_samples(self) -> None:
        """What the averaged weights give now, in the folder `samples`; it draws nothing from the run's random state."""
        with torch.random.fork_rng(devices=[]):
            files = self.task.write_samples(self.out / "samples", f"step-{self.state.step:08d}")
        self._tell("on_samples", files)

    def save(self) -> Path:
        """Write a checkpoint now -> its folder."""
        recipe, keep = dump_recipe(self.task.recipe), self.task.settings.keep
        folder = self.state.save(self.out / "checkpoints", recipe, keep)
        for callback in self.callbacks:
            callback.on_checkpoint(folder)
        return folder

    def _write_report(self) -> None:
        """JSON: how many items there are, how many were left out and why, and every broken one with its reason."""
        found = self.task.report()
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
