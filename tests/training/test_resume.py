"""Going on exactly: random readings, workers, recipes that differ, places that cannot be written."""

from __future__ import annotations

import errno
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import ROOT

import djepa_mm
from djepa_mm.data.corpus import Corpus, Cursor
from djepa_mm.data.pack import pack
from djepa_mm.errors import Notice, UserError
from djepa_mm.generation.pipeline import Pipeline
from djepa_mm.precision import without_slow_bf16
from djepa_mm.recipe.load import load_recipe
from djepa_mm.runs import checkpoint as checkpoint_module
from djepa_mm.runs.checkpoint import FILES, differences, save_checkpoint
from djepa_mm.runs.files import written_to
from djepa_mm.training.djepa import DJEPATask, train
from djepa_mm.training.loop import Trainer
from djepa_mm.training.state import RandomStates
from djepa_mm.training.task import autocast
from djepa_mm.weights import checkpoints, find_checkpoint

SMALL = {
    "model.width": 32, "model.depth": 1, "model.heads": 2, "model.dropout": 0.1, "head.width": 16, "head.blocks": 1,
    "head.steps": 2, "batch.size": 4, "batch.cache": False, "sample.steps": 2, "optim.minutes": None,
    "run.sample_every": None, "tokenizer.channels": 3, "run.save_every": 1000,
}  # fmt: skip


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for n in range(10):
        folder = tmp_path / "pictures" / f"class{n % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(folder / f"{n}.png")
    return tmp_path / "pictures"


def flipping(pictures: Path, **changes: object) -> dict[str, object]:
    data = {"source": "image-folder", "root": str(pictures), "size": [8, 8], "flip": True}
    return {**SMALL, "data": data, "optim.steps": 7, **changes}


def part_and_rest(overrides: dict[str, object], out: Path, at: int) -> Path:
    """A run that stops after `at` steps and then goes on to its end."""
    recipe = load_recipe("digits", overrides)
    task = DJEPATask(recipe, device=torch.device("cpu"))
    trainer = Trainer(task, out)
    task.online.train()
    batches = task.batches(task.state.cursor)
    for _ in range(at):
        trainer.one_step(batches)
    trainer.save()
    left_over = out / "checkpoints" / ".step-00000099.tmp"  # by one that was killed
    left_over.mkdir()
    train(recipe, out, resume=True)
    assert not left_over.exists()
    return out


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_draws_the_same_readings(pictures: Path, tmp_path: Path, workers: int) -> None:
    """Mid-epoch and over an epoch's end, with flips, with and without processes that read."""
    overrides = flipping(pictures, **{"batch.workers": workers})
    train(load_recipe("digits", overrides), tmp_path / "whole")
    cut = part_and_rest(overrides, tmp_path / "cut", at=3)
    assert differences(find_checkpoint(tmp_path / "whole"), find_checkpoint(cut)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_goes_on_in_the_stream(pictures: Path, tmp_path: Path, workers: int) -> None:
    """Mid-epoch, mid-block and over epochs' ends, with flips; where a shard is gone, with a checkpoint of its own."""
    pack(load_recipe("digits", flipping(pictures)), tmp_path / "shards", 600, lambda done, total: None)
    data = {"source": "shards", "urls": str(tmp_path / "shards"), "media": "picture", "size": [8, 8], "flip": True}
    overrides = flipping(pictures, data={**data, "readers": 2, "shuffle": 3}, **{"batch.workers": workers})
    train(load_recipe("digits", overrides), tmp_path / "whole")
    cut = part_and_rest({**overrides, "batch.workers": 0}, tmp_path / "cut", at=3)
    found = differences(find_checkpoint(tmp_path / "whole"), find_checkpoint(cut))
    assert all("workers" in one for one in found)
    next((tmp_path / "shards").glob("*.tar")).unlink()
    with pytest.raises(UserError, match=r"the shard .*\.tar cannot be read"):
        train(load_recipe("digits", overrides), tmp_path / "whole", resume=True)


def test_workers_change_nothing_and_epochs_draw_anew(pictures: Path) -> None:
    read: dict[int, list[torch.Tensor]] = {}
    for workers in (0, 1, 2):
        recipe = load_recipe("digits", flipping(pictures, **{"batch.workers": workers, "batch.size": 10}))
        source, tokenizer, kind = recipe.data.build(), recipe.tokenizer.build(), recipe.condition.build()
        kind.bind(source)
        batches = Corpus(source, tokenizer, kind, recipe.batch).batches(Cursor())
        read[workers] = [next(batches)[0][0].batch.tokens for _ in range(3)]
    for workers in (1, 2):
        assert all(torch.equal(a, b) for a, b in zip(read[0], read[workers], strict=True))
    sums = [{round(float(item.sum()), 3): item for item in epoch} for epoch in read[0]]  # flips keep sums
    flipped = [
        [torch.equal(sums[0][key], other[key]) for key in sums[0] if key in other] for other in (sums[1], sums[2])
    ]
    assert all(0 < sum(row) < len(row) for row in flipped)  # some as in the first epoch, some not


def test_a_cache_of_flips_changes_nothing(pictures: Path, tmp_path: Path) -> None:
    for cache in (False, True):
        train(load_recipe("digits", flipping(pictures, **{"batch.cache": cache})), tmp_path / str(cache))
    assert differences(*(find_checkpoint(tmp_path / str(cache)) for cache in (False, True))) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head.predicts": "data"}, r"head\.predicts is 'velocity', here 'data'"),
        ({"head.time_scale": 1.0}, r"head\.time_scale is 1000\.0, here 1\.0"),
        ({"model.heads": 4}, r"model\.heads is 2, here 4"),
        ({"tokenizer.patch": 2}, r"tokenizer\.patch is 4, here 2"),
    ],
)
def test_a_run_is_not_resumed_as_another(tmp_path: Path, change: dict[str, object], message: str) -> None:
    common = {**SMALL, "tokenizer.channels": 1, "optim.steps": 2}
    train(load_recipe("digits", common), tmp_path / "run")
    with pytest.raises(UserError, match=message):
        train(load_recipe("digits", {**common, "optim.steps": 4, **change}), tmp_path / "run", resume=True)


def test_texts_in_another_alphabet_are_not_resumed(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader", reason="espeak-ng speaks this corpus")
    common = {
        **{key: value for key, value in SMALL.items() if not key.startswith("tokenizer")},
        "data.count": 10, "data.root": str(tmp_path / "corpora"), "optim.steps": 1, "run.texts": ["one"],
    }  # fmt: skip
    train(load_recipe("spoken-digits", common), tmp_path / "run")
    for characters in ("zyxwvutsrqponihgfe ", " zxwvutsronihgfe"):  # the second one's are the same, in another order
        other = {**common, "optim.steps": 2, "condition.characters": characters}
        with pytest.raises(UserError, match=r"condition\.characters is ' efghinorstuvwxz'"):
            train(load_recipe("spoken-digits", other), tmp_path / "run", resume=True)


def test_classes_that_moved_are_named(pictures: Path, tmp_path: Path) -> None:
    train(load_recipe("digits", flipping(pictures, **{"optim.steps": 1})), tmp_path / "run")
    (pictures / "class0").rename(pictures / "later")
    with pytest.raises(UserError, match="class0, later on one side alone"):
        train(load_recipe("digits", flipping(pictures)), tmp_path / "run", resume=True)


def test_fewer_items_and_batches_of_another_size_are_resumed(pictures: Path, tmp_path: Path) -> None:
    """The place in the data may then lie beyond the end of its epoch."""
    train(load_recipe("digits", flipping(pictures, **{"optim.steps": 2})), tmp_path / "run")
    for n in range(4):
        (pictures / f"class{n % 2}" / f"{n}.png").unlink()
    recipe = load_recipe("digits", flipping(pictures, **{"optim.steps": 5, "batch.size": 6}))
    with pytest.warns(Notice, match="the corpus is not what it was .items 10 then, 6 now, names"):
        outcome = train(recipe, tmp_path / "run", resume=True)
    assert (outcome.step, outcome.finished) == (5, True)


def test_a_gradient_that_is_not_finite_ends_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    recipe = load_recipe("digits", {**SMALL, "tokenizer.channels": 1, "optim.steps": 9, "optim.bad_steps": 3})

    class Poison(djepa_mm.Callback):
        def on_step(self, step: int, progress: float) -> None:
            if step == 2:
                torch.nn.init.constant_(next(task.online.parameters()), float("inf"))

    task = DJEPATask(recipe, device=torch.device("cpu"))
    with pytest.raises(
        UserError, match=r"^step 5: loss or gradient .* for 3 steps.*; lower optim\.lr \([\d.e-]+\) and resume$"
    ):
        Trainer(task, tmp_path / "run", callbacks=[Poison()]).run()
    assert find_checkpoint(tmp_path / "run").name == "step-00000005"


def test_a_step_that_is_not_finite_is_left_out(tmp_path: Path) -> None:
    """One batch of many: weights and averages stay, it is counted, and the run goes on."""
    recipe = load_recipe("digits", {**SMALL, "tokenizer.channels": 1, "optim.steps": 4, "run.log_every": 2})
    task = DJEPATask(recipe, device=torch.device("cpu"))
    trainer = Trainer(task, tmp_path / "run")
    batches = task.batches(task.state.cursor)
    states = [{name: tensor.clone() for name, tensor in task.model.state_dict().items()}]
    for step in range(3):
        ((portion,), cursor) = next(batches)
        if step == 1:
            portion.batch.tokens[0, 0, 0] = torch.nan
        found = trainer.one_step(iter([([portion], cursor)]))
        assert found.finite == (step != 1)
        states.append({name: tensor.clone() for name, tensor in task.model.state_dict().items()})
    same = [all(torch.equal(a[name], b[name]) for name in a) for a, b in itertools.pairwise(states)]
    assert same == [False, True, False]
    assert all(tensor.isfinite().all() for tensor in states[-1].values())
    assert task.state.step == 3


def test_a_run_may_be_moved(tmp_path: Path) -> None:
    train(load_recipe("digits", {**SMALL, "tokenizer.channels": 1, "optim.steps": 1}), tmp_path / "run")
    one = djepa_mm.load(tmp_path / "run", device="cpu").generate(class_=7)[0].media
    moved = (tmp_path / "run").rename(tmp_path / "my runs \u6570\u5b57")
    assert torch.equal(djepa_mm.load(moved, device="cpu").generate(class_=7)[0].media, one)


def test_a_run_in_a_thread_ends_by_an_event_and_goes_on(tmp_path: Path) -> None:
    recipe = load_recipe("digits", {**SMALL, "tokenizer.channels": 1, "optim.steps": 100_000})
    stop, outcomes = threading.Event(), []
    thread = threading.Thread(target=lambda: outcomes.append(train(recipe, tmp_path / "run", stop=stop)))
    thread.start()
    for _ in range(300):
        if (tmp_path / "run" / "log.jsonl").exists():
            break
        time.sleep(0.1)
    stop.set()
    thread.join(60)
    assert not outcomes[0].finished
    assert find_checkpoint(tmp_path / "run").name == f"step-{outcomes[0].step:08d}"


def test_an_interrupt_while_processes_read_is_saved(pictures: Path, tmp_path: Path) -> None:
    """SIGUSR1 by torchrun, and SIGTERM, reach the whole group; those that read leave it to the one that trains."""
    overrides = flipping(pictures, **{"batch.workers": 2, "optim.steps": 100_000, "run.log_every": 1})
    script = f"""
import djepa_mm, json
outcome = djepa_mm.train(djepa_mm.load_recipe("digits", {overrides!r}), "run", progress=False)
print(outcome.finished)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    for _ in range(600):
        if (tmp_path / "run" / "log.jsonl").exists():
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGUSR1)
    os.killpg(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out.strip() == "False"
    assert checkpoints(tmp_path / "run" / "checkpoints")


def test_a_process_that_reads_ends_by_the_word_of_the_one_it_reads_for(pictures: Path) -> None:
    task = DJEPATask(load_recipe("digits", flipping(pictures, **{"batch.workers": 1})), device=torch.device("cpu"))
    batches = task.corpus.batches(task.state.cursor)
    next(batches)
    (reader,) = multiprocessing.active_children()
    subprocess.run(["kill", str(reader.pid)], check=True)
    next(batches)
    assert reader.is_alive()
    reader.terminate()
    reader.join(20)
    assert not reader.is_alive()


def test_an_interrupt_while_processes_start_is_saved(pictures: Path, tmp_path: Path) -> None:
    """As other systems start them: by a program of their own, which imports for seconds and hears Ctrl-C meanwhile."""
    overrides = flipping(pictures, **{"batch.workers": 1, "optim.steps": 100_000})
    script = f"""
import multiprocessing, os, signal
import djepa_mm
from torch.utils.data import dataloader
begin = dataloader._MultiProcessingDataLoaderIter.__init__
def begin_and_interrupt(self, loader):
    begin(self, loader)
    os.killpg(0, signal.SIGINT)
dataloader._MultiProcessingDataLoaderIter.__init__ = begin_and_interrupt
multiprocessing.set_start_method("spawn")
outcome = djepa_mm.train(djepa_mm.load_recipe("digits", {overrides!r}), "run", progress=False)
print(outcome.step, outcome.finished)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, start_new_session=True, check=False
    )
    assert result.stdout.split() == ["0", "False"], result.stderr
    assert find_checkpoint(tmp_path / "run").name == "step-00000000"


def test_an_interrupt_does_not_break_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = checkpoint_module.save_file, []

    def interrupted(*arguments: Any) -> None:
        if not asked:
            asked.append(True)
            os.kill(os.getpid(), signal.SIGINT)
        real(*arguments)

    monkeypatch.setattr(checkpoint_module, "save_file", interrupted)
    train(load_recipe("digits", {**SMALL, "tokenizer.channels": 1, "optim.steps": 1}), tmp_path / "run")
    assert asked
    djepa_mm.load(tmp_path / "run")


def test_checkpoints_are_written_where_folders_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, where a file is brought to the disk by a handle that may write."""

    class Windows:
        name = "nt"

        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def open(self, path: Path, flags: int) -> int:
            if path.is_dir() or not flags & os.O_RDWR:
                raise PermissionError(errno.EACCES, "permission denied", str(path))
            return os.open(path, flags)

    monkeypatch.setattr(checkpoint_module, "os", Windows())
    tensors = {file: {"a": torch.ones(2)} for file in FILES}
    for step in (1, 2):
        save_checkpoint(tmp_path, "name: x\n", {"step": step}, tensors, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


# --- beside training --------------------------------------------------------------------------------------------------


def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints are written while training takes some steps."""
    real = checkpoint_module.save_file

    def late(*arguments: Any) -> None:
        time.sleep(0.1)
        real(*arguments)

    monkeypatch.setattr(checkpoint_module, "save_file", late)


def test_what_is_written_beside_training_is_of_its_own_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {**SMALL, "tokenizer.channels": 1, "run.keep": 20, "optim.steps": 20, "run.save_every": 4}
    recipe, stop = load_recipe("digits", changes), threading.Event()

    class Ending(djepa_mm.Callback):
        def on_step(self, step: int, progress: float) -> None:
            if step == 4:
                stop.set()

    with torch.random.fork_rng():
        train(recipe, tmp_path / "stopped", callbacks=[Ending()], stop=stop)
    slowly(monkeypatch)
    steps: list[tuple[str, int]] = []

    class Watching(djepa_mm.Callback):
        def on_step(self, step: int, progress: float) -> None:
            self.step = step

        def on_checkpoint(self, folder: Path) -> None:
            assert (folder / "state.json").is_file()
            steps.append((folder.name, self.step))

    train(recipe, tmp_path / "gone-on", callbacks=[Watching()])
    assert [name for name, _ in steps] == [f"step-{n:08d}" for n in range(4, 21, 4)]
    assert any(step > int(name.split("-")[1]) for name, step in steps), "training has waited for every one"
    assert differences(find_checkpoint(tmp_path / "stopped"), tmp_path / "gone-on/checkpoints/step-00000004") == []


def test_a_checkpoint_that_cannot_be_written_beside_training_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowly(monkeypatch)
    real = checkpoint_module.save_file

    def full(tensors: Any, path: Path) -> None:
        if "step-00000002" not in str(path):
            raise OSError(errno.ENOSPC, "no space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoint_module, "save_file", full)
    recipe = load_recipe("digits", {**SMALL, "tokenizer.channels": 1, "optim.steps": 5000, "run.save_every": 2})
    with pytest.raises(UserError, match=r"cannot be written \(no space left on device\)"):
        train(recipe, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000002"]
    Pipeline.load(tmp_path / "run")


def test_a_run_that_breaks_waits_for_what_is_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signals are caught until then: one that comes meanwhile does not end the writing."""
    slowly(monkeypatch)
    learn = DJEPATask.learn

    def broken(self: DJEPATask, *arguments: Any) -> Any:
        if self.state.step == 2:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
            raise RuntimeError("broken")
        return learn(self, *arguments)

    monkeypatch.setattr(DJEPATask, "learn", broken)
    with pytest.raises(RuntimeError, match="broken"):
        train(load_recipe("digits", {**SMALL, "tokenizer.channels": 1, "run.save_every": 2}), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000002"]
    Pipeline.load(tmp_path / "run")


# --- places that cannot be written ------------------------------------------------------------------------------------


def test_a_file_in_the_way_of_the_run_folder_is_one_line(tmp_path: Path) -> None:
    recipe = load_recipe("digits", {**SMALL, "tokenizer.channels": 1})
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "under" / "it"):
        with pytest.raises(UserError, match="file: cannot be written"):
            train(recipe, out)
    assert (tmp_path / "file").read_text() == ""


def test_a_folder_that_may_not_be_written_to_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before training; and where a disk becomes read-only meanwhile, then."""
    with (
        pytest.raises(UserError, match=r"^/elsewhere: cannot be written \(read-only file system\)"),
        written_to(tmp_path),
    ):
        raise OSError(errno.EROFS, "Read-only file system", "/elsewhere")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may do anything
    with pytest.raises(UserError, match=r"cannot be written \(permission denied\)"):
        train(load_recipe("digits", {**SMALL, "tokenizer.channels": 1}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_disk_that_fills_up_leaves_the_checkpoint_before_whole(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk; Python hears of it as of an error."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Full(djepa_mm.Callback):
        def on_checkpoint(self, folder: Path) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))

    recipe = load_recipe("digits", {**SMALL, "tokenizer.channels": 1, "optim.steps": 6, "run.save_every": 2})
    try:
        with pytest.raises(UserError, match="cannot be written") as caught:
            djepa_mm.train(recipe, tmp_path / "run", callbacks=[Full()], progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    djepa_mm.load(tmp_path / "run")


def test_small_learning_rates_are_not_logged_as_nothing(tmp_path: Path) -> None:
    changes = {"tokenizer.channels": 1, "optim.lr": 3.3e-8, "optim.warmup_steps": 0, "optim.schedule": "constant"}
    train(load_recipe("digits", {**SMALL, **changes, "optim.steps": 1}), tmp_path / "run")
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert row["lr"] == 3.3e-8
    assert row["step"] == 1


def test_training_is_in_fp32_where_bf16_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    optim = load_recipe("digits", {"optim.precision": "bf16"}).optim
    for fast in (True, False):
        monkeypatch.setattr("djepa_mm.training.task.fast_bf16", lambda _, fast=fast: fast)
        with autocast(optim, torch.device("cpu")):
            assert torch.is_autocast_enabled("cpu") == fast


def test_muon_computes_in_fp32_where_bf16_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same direction, nearer to an orthogonal one than bf16 rounding allows."""
    weight = torch.nn.Parameter(torch.zeros(16, 32))
    steps = []
    for fast in (True, False):
        monkeypatch.setattr("djepa_mm.precision.fast_bf16", lambda _, fast=fast: fast)
        torch.manual_seed(0)
        weight.data.zero_()
        weight.grad = torch.randn(16, 32)
        with without_slow_bf16(torch.device("cpu")):
            torch.optim.Muon([weight], lr=1.0, weight_decay=0.0).step()
        steps.append(weight.detach().clone())
    assert steps[0].bfloat16().float().equal(steps[0])
    assert not steps[1].bfloat16().float().equal(steps[1])
    torch.testing.assert_close(steps[0], steps[1], atol=0.05, rtol=0.05)


def test_random_numbers_go_on_from_another_kind_of_device() -> None:
    """A GPU's generator has a state of 16 bytes, which a CPU's does not take: as when an imported run is resumed."""
    drawn = []
    for state in (1, 1, 2):
        generator = torch.Generator()
        with pytest.warns(Notice, match="another kind of device"):
            RandomStates(generator, torch.device("cpu")).load_state({"generator": torch.full((16,), state).byte()})
        drawn.append(torch.rand(4, generator=generator).tolist())
    assert drawn[0] == drawn[1] != drawn[2]
