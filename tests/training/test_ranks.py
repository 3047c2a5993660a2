"""Several processes under torchrun, on one machine, talking through gloo."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from support import ROOT, SMALL_TOKENIZER

import djepa_mm
from djepa_mm.core.djepa import Draws, Losses
from djepa_mm.data.batches import Share, laid_out
from djepa_mm.data.corpus import Cursor
from djepa_mm.errors import UserError
from djepa_mm.generation.pipeline import Pipeline
from djepa_mm.recipe.load import load_recipe
from djepa_mm.recipe.tokenizer import load_tokenizer_recipe
from djepa_mm.runs.checkpoint import differences
from djepa_mm.training.djepa import DJEPATask
from djepa_mm.training.loop import Trainer
from djepa_mm.training.tokenizer import train_tokenizer
from djepa_mm.weights import find_checkpoint, read_tensors

SMALL = {
    "model.width": 32, "model.depth": 2, "model.heads": 2, "model.dropout": 0.0, "head.width": 16, "head.blocks": 1,
    "head.steps": 2, "batch.size": 10, "batch.cache": False, "sample.steps": 2, "optim.minutes": None,
    "optim.precision": "fp32", "optim.schedule": "constant", "optim.ema_schedule": "constant", "optim.warmup_steps": 2,
    "run.log_every": 1, "run.sample_every": None, "run.samples": 4,
}  # fmt: skip
TOKENIZER = {  # with all that comes in within a run; without the eps, AdamW makes much of gradients of rounding
    **SMALL_TOKENIZER, "batch.size": 10, "optim.steps": 6, "optim.eps": 1e-3, "loss.denoise": {"until": 0.6},
    "loss.verdict": 0.1, "loss.features": 0.1, "loss.adversarial_from": 0.4,
}  # fmt: skip
TOGETHER = """
import errno, json, sys, time
from pathlib import Path
import torch
from torch.distributed.checkpoint import HuggingFaceStorageWriter
import djepa_mm
from djepa_mm.ranks import joined
from djepa_mm.recipe.tokenizer import load_tokenizer_recipe
from djepa_mm.runs import checkpoint
from djepa_mm.training.optimizers import SharedMuon
from djepa_mm.training.tokenizer import train_tokenizer

class Watching(djepa_mm.Callback):
    def __init__(self, pause):
        self.pause, self.said = pause, {"checkpoints": [], "error": None}

    def on_step(self, step, progress):
        self.step = step
        time.sleep(self.pause)

    def on_checkpoint(self, folder):
        self.said["checkpoints"].append([folder.name, self.step])

def late(write, full):
    '''Training takes some steps meanwhile; then the disk may be full.'''
    def written(*what):
        time.sleep(0.2)
        if full:
            raise OSError(errno.ENOSPC, "no space left on device")
        return write(*what)
    return written

save_file, write_data = checkpoint.save_file, HuggingFaceStorageWriter.write_data

def muon(kind):
    '''Four steps: weights, momentum and gradients of seven matrices, one of which has no gradient at first.'''
    torch.manual_seed(0)
    matrices = [torch.nn.Parameter(torch.randn(8 * n, 24)) for n in range(1, 8)]
    optimizer = kind(matrices, lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        for matrix in matrices[step == 0 :]:
            matrix.grad = torch.randn_like(matrix)
        optimizer.step()
    return [(m.detach(), optimizer.state[m]["momentum_buffer"], m.grad) for m in matrices]

def nested(ranks, place):
    '''What is told where one of two has a mistake before, or within, an agreement that is part of another; and what
    is exchanged next.'''
    def part():
        if place == "within" and ranks.rank == 1:
            raise djepa_mm.UserError(place)

    def work():
        if place == "before" and ranks.rank == 1:
            raise djepa_mm.UserError(place)
        ranks.agree(part)

    try:
        ranks.agree(work)
    except djepa_mm.UserError as error:
        return [str(error), ranks.gather(place)]

with joined() as ranks:
    Path(f"nested-{ranks.rank}.json").write_text(json.dumps([nested(ranks, place) for place in ("before", "within")]))
    torch.save([muon(torch.optim.Muon), muon(SharedMuon)], f"muon-{ranks.rank}.pt")
    for out, overrides, full in json.loads(sys.argv[1]):
        checkpoint.save_file = late(save_file, full == ranks.rank)
        HuggingFaceStorageWriter.write_data = late(write_data, full == ranks.rank)
        watching = Watching(0.1 if out == "ddp" else 0)
        try:
            recipe = djepa_mm.load_recipe("digits", overrides)
            djepa_mm.train(recipe, out, device="cpu", progress=False, callbacks=[watching])
        except djepa_mm.UserError as error:
            watching.said["error"] = str(error)
        Path(f"{out}-{ranks.rank}.json").write_text(json.dumps(watching.said))
    checkpoint.save_file = save_file
    train_tokenizer(load_tokenizer_recipe("digits-tokens", json.loads(sys.argv[2])), Path("tokenizer"))
"""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
CLOSE = 1e-5


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def agree(one: Path, other: Path, terms: Sequence[str] = ("generation", "prediction", "gradient_norm")) -> bool:
    """Losses and gradients, at every step."""
    ours, theirs = rows(one), rows(other)
    pairs = [(a[name], b[name]) for a, b in zip(ours, theirs, strict=True) for name in terms]
    return all(a == pytest.approx(b, rel=CLOSE) for a, b in pairs)


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of twelve steps in one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    djepa_mm.train(load_recipe("digits", {**SMALL, "optim.steps": 12}), out, device="cpu", progress=False)
    return out


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two processes: DDP to the end, with tokens kept in memory; FSDP2 to its sixth step, with a batch in
    parts, and to its eighth, with a checkpoint at the sixth; each where the disk of one process is full; and a
    tokenizer's."""
    folder = tmp_path_factory.mktemp("together")
    endless = {"run.save_every": 1, "optim.steps": 5000}
    sharded = {**SMALL, "optim.steps": 6, "compute.shard": True, "compute.accumulate": 2}
    runs = [
        ("ddp", {**SMALL, "optim.steps": 12, "batch.cache": True}, None),
        ("fsdp", sharded, None),
        ("fsdp-beside", {**sharded, "run.save_every": 6, "optim.steps": 8}, None),
        ("ddp-full", {**SMALL, **endless}, 0),
        ("fsdp-full", {**sharded, **endless}, 1),
    ]
    command = [*TORCHRUN, "--no-python", sys.executable, "-c", TOGETHER, json.dumps(runs), json.dumps(TOKENIZER)]
    result = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def test_two_processes_learn_what_one_does(alone: Path, together: Path) -> None:
    assert agree(alone, together / "ddp")
    ours, theirs = (read_tensors(find_checkpoint(run), "averaged") for run in (alone, together / "ddp"))
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-4, atol=1e-6)


def test_the_clock_counts_the_steps(alone: Path, together: Path) -> None:
    """And nothing else, however many processes there are: optim.minutes ends a run by it. At the end of a run several
    have not counted the last step yet."""
    for run, pause in ((alone, 0), (together / "ddp", 0.1), (together / "fsdp", 0)):
        took = [1 / row["steps_per_s"] - pause for row in rows(run)]
        counted = rows(run)[-1]["seconds"] - rows(run)[0]["seconds"]
        assert 0.8 * sum(took[1:-1]) < counted < 1.2 * sum(took)


def test_two_processes_learn_the_tokenizer_that_one_does(together: Path, tmp_path: Path) -> None:
    """Also in parts; and one goes on with what two have learned."""
    recipe = load_tokenizer_recipe("digits-tokens", {**TOKENIZER, "compute.accumulate": 2})
    train_tokenizer(recipe, tmp_path / "alone")
    terms = ("squared", "absolute", "kl", "verdict", "features", "detection", "gradient_norm")
    assert agree(tmp_path / "alone", together / "tokenizer", terms)
    assert rows(together / "tokenizer")[-1]["detection"] > 0
    ours, theirs = (
        read_tensors(find_checkpoint(run), "online") for run in (tmp_path / "alone", together / "tokenizer")
    )
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-4, atol=1e-6)
    further = {**TOKENIZER, "optim.steps": 7}
    assert (
        train_tokenizer(load_tokenizer_recipe("digits-tokens", further), together / "tokenizer", resume=True).step == 7
    )


def test_sharded_in_two_and_then_gone_on_alone(alone: Path, together: Path, tmp_path: Path) -> None:
    """Each has a file of the sharded checkpoint, which one process reads, and goes on with."""
    run = shutil.copytree(together / "fsdp", tmp_path / "fsdp")
    checkpoint = find_checkpoint(run)
    assert len(list((checkpoint / "averaged").glob("*.safetensors"))) == 2
    pipeline = Pipeline.load(run)
    assert len(pipeline(pipeline.requests(count=1))) == 10
    recipe = load_recipe("digits", {**SMALL, "optim.steps": 12, "compute.shard": True})
    djepa_mm.train(recipe, run, resume=True, device="cpu", progress=False)
    assert agree(alone, run)
    shard = next((checkpoint / "averaged").glob("*00001*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged checkpoint .*its hash differs"):
        Pipeline.load(checkpoint)


def test_processes_write_beside_training(together: Path) -> None:
    """The state of the step that it names, told to all at one step."""
    beside = together / "fsdp-beside"
    first, second = (json.loads((together / f"fsdp-beside-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert [name for name, _ in first["checkpoints"]] == ["step-00000006", "step-00000008"]
    assert first["checkpoints"][0][1] > 6, "training has waited"
    assert differences(find_checkpoint(together / "fsdp"), beside / "checkpoints" / "step-00000006") == []


@pytest.mark.parametrize(("run", "full"), [("ddp-full", 0), ("fsdp-full", 1)])
def test_what_one_process_cannot_write_ends_all(together: Path, run: str, full: int) -> None:
    said = [json.loads((together / f"{run}-{rank}.json").read_text()) for rank in range(2)]
    assert [one["checkpoints"] for one in said] == [[], []]
    assert all("cannot be written (no space left on device)" in one["error"] for one in said)
    assert list((together / run / "checkpoints").iterdir()) == []


def test_a_killed_process_is_started_again_and_a_signal_saves(alone: Path, tmp_path: Path) -> None:
    """One of two dies by SIGKILL: torchrun starts both again, and they go on. Then SIGTERM to one of them."""
    overrides = {**SMALL, "optim.steps": 100_000, "run.save_every": 2}
    words = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    options = [word for one in words for word in ("--set", one)]
    run = tmp_path / "run"
    command = [*TORCHRUN, "--max-restarts", "1", "-m", "djepa_mm", "train", "digits", "--out", str(run), *options]
    with (tmp_path / "said").open("w") as said:
        agent = subprocess.Popen([*command, "--device", "cpu"], env=environment(), stdout=said, stderr=said)
    try:
        killed = _after_step(3, run, agent)
        os.kill(killed[1], signal.SIGKILL)
        _until(lambda: _workers(agent) not in ([], killed) and len(_workers(agent)) == 2, agent)
        workers = _after_step(12, run, agent)
        os.kill(workers[1], signal.SIGTERM)
        agent.wait(60)
    finally:
        agent.kill()
        for worker in _workers(agent):
            os.kill(worker, signal.SIGKILL)
    last = rows(run)[-1]["step"]
    assert find_checkpoint(run).name == f"step-{last:08d}"
    assert [row["step"] for row in rows(run)] == list(range(1, int(last) + 1))
    for ours, theirs in zip(rows(alone), rows(run), strict=False):
        assert theirs["generation"] == pytest.approx(ours["generation"], rel=CLOSE)
    assert f"stopped at step {last}" in (tmp_path / "said").read_text()


def _workers(agent: subprocess.Popen[bytes]) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(agent.pid)], capture_output=True, text=True, check=False)
    return [int(number) for number in found.stdout.split()]


def _until(condition, agent: subprocess.Popen[bytes]) -> None:
    for _ in range(900):
        if condition():
            return
        assert agent.poll() is None, "the processes have ended"
        time.sleep(0.1)
    raise AssertionError("waited in vain")


def _after_step(step: int, run: Path, agent: subprocess.Popen[bytes]) -> list[int]:
    """The processes, once the run has logged so many steps."""
    _until(lambda: (run / "log.jsonl").exists() and len((run / "log.jsonl").read_text().splitlines()) >= step, agent)
    return _workers(agent)


# --- parts ------------------------------------------------------------------------------------------------------------


def test_parts_are_of_equal_work_and_together_all() -> None:
    lengths = torch.randint(1, 500, (61,), generator=torch.Generator().manual_seed(0)).tolist()
    parts = [part for rank in range(4) for part in Share(rank=rank, world=4, parts=2).deal(lengths)]
    assert sorted(place for part in parts for place in part) == list(range(61))
    assert {len(part) for part in parts} <= {7, 8}
    work = [sum(lengths[place] for place in part) for part in parts]
    assert max(work) < 1.25 * min(work)
    assert Share().deal(lengths) == [list(range(61))]


@pytest.mark.parametrize("changes", [{}, {"mask.horizon": 5, "mask.orders": ["raster", "frames"]}])
def test_parts_losses_add_up_to_the_wholes(changes: dict[str, object]) -> None:
    task = DJEPATask(load_recipe("digits", {**SMALL, **changes}), device=torch.device("cpu"))
    ((whole,), _) = next(task.corpus.batches(task.state.cursor))
    assert whole is not None
    valid, positions = laid_out(whole.grids, whole.some)
    assert torch.equal(positions, whole.batch.positions)
    draws = task.model.draw(valid, positions, torch.Generator().manual_seed(1))
    among = int(draws.mask.masked.sum())
    task.model.eval()

    def losses(portions: Iterator[tuple[object, Draws]]) -> list[Losses]:
        return [task.model.losses(batch, own, among=among) for batch, own in portions]  # type: ignore[arg-type]

    (expected,) = losses(iter([(whole.batch, draws)]))
    cut, _ = next(task.corpus.batches(task.state.cursor, Share(parts=3)))
    found = losses((part.batch, draws.of(part.places, part.batch.valid.shape[1])) for part in cut if part is not None)
    torch.testing.assert_close(sum(one.total for one in found), expected.total)
    torch.testing.assert_close(sum(one.prediction for one in found), expected.prediction)


def test_a_part_of_broken_items_counts_for_nothing(tmp_path: Path) -> None:
    """Also where nothing was read before it."""
    weights = []
    for n, before in enumerate(([], [None])):
        task = DJEPATask(load_recipe("digits", SMALL), device=torch.device("cpu"))
        trainer = Trainer(task, tmp_path / str(n))
        portions, cursor = next(task.corpus.batches(task.state.cursor))
        trainer.one_step(iter([([*before, *portions], cursor)]))
        weights.append(task.online.state_dict())
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor)


def test_an_epoch_of_which_no_process_can_read_anything_ends_the_run(tmp_path: Path) -> None:
    trainer = Trainer(DJEPATask(load_recipe("digits", SMALL), device=torch.device("cpu")), tmp_path)
    nothing = iter([([None], Cursor(epoch, 1)) for epoch in range(3)])
    with pytest.raises(UserError, match="no item of the corpus can be read"):
        trainer.one_step(nothing)
    assert next(nothing, None) is None, "it has ended sooner"


def test_a_process_that_gets_no_items_goes_on_over_the_epochs_end() -> None:
    """Where batches hold fewer items than there are processes."""
    task = DJEPATask(load_recipe("digits", {**SMALL, "batch.size": 2}), device=torch.device("cpu"))
    batches = task.corpus.batches(task.state.cursor, Share(rank=2, world=3))
    for _ in range(len(task.corpus.plan(0)) + 1):
        portions, cursor = next(batches)
        assert portions == [None]
    assert cursor.epoch == 1


def test_recomputing_changes_nothing(alone: Path, tmp_path: Path) -> None:
    recipe = load_recipe("digits", {**SMALL, "optim.steps": 12, "compute.recompute": True, "compute.accumulate": 3})
    djepa_mm.train(recipe, tmp_path / "run", device="cpu", progress=False)
    assert agree(alone, tmp_path / "run")


def test_shared_muon_is_muon_in_every_process(together: Path) -> None:
    """To the bit, momentum of the matrices that another process has moved too."""
    (plain, shared), others = (torch.load(together / f"muon-{rank}.pt") for rank in range(2))
    for of_one in zip(plain, shared, *others, strict=True):
        for first, *rest in zip(*of_one, strict=True):
            assert all(torch.equal(first, other) for other in rest)


def test_agreements_nest(together: Path) -> None:
    """A mistake is told once, and the processes stay in step."""
    first, second = (json.loads((together / f"nested-{rank}.json").read_text()) for rank in range(2))
    assert first == [[f"rank 1: {place}", [place, place]] for place in ("before", "within")]
    assert second == [[place, [place, place]] for place in ("before", "within")]


def test_sharded_muon_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"optim\.optimizer muon needs whole matrices: set compute\.shard to false"):
        load_recipe("digits", {"compute.shard": True, "optim.optimizer": "muon"})


def test_a_second_run_in_a_folder_is_refused(tmp_path: Path) -> None:
    class Second(djepa_mm.Callback):
        def on_step(self, step: int, progress: float) -> None:
            with pytest.raises(UserError, match=r"another run is using this folder; wait for it"):
                djepa_mm.train(recipe, tmp_path / "run", device="cpu", progress=False)

    recipe = load_recipe("digits", {**SMALL, "optim.steps": 1})
    djepa_mm.train(recipe, tmp_path / "run", device="cpu", progress=False, callbacks=[Second()])
    assert not (tmp_path / "run" / ".lock").exists()
