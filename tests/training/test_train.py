"""The training loop: checkpoints, resuming, broken data."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from djepa_mm.core.sampler import Sampler
from djepa_mm.generation.pipeline import Pipeline
from djepa_mm.generation.request import Request
from djepa_mm.media.clips import write_clip
from djepa_mm.recipe.load import load_recipe
from djepa_mm.recipe.schema import Recipe
from djepa_mm.runs.checkpoint import differences
from djepa_mm.training.djepa import DJEPATask, train
from djepa_mm.training.loop import Trainer
from djepa_mm.training.optimizers import build_optimizers, learning_rate
from djepa_mm.types import UserError
from djepa_mm.weights import checkpoints, find_checkpoint, read_tensors

SMALL = [
    "model.width=32", "model.depth=1", "model.heads=2", "model.dropout=0.1", "head.width=32", "head.blocks=1",
    "head.steps=3", "batch.size=16", "sample.steps=3", "run.samples=4", "run.sample_every=null", "run.log_every=2",
    "optim.precision=fp32", "optim.minutes=null",
]  # fmt: skip
QUIET = Console(quiet=True)
CPU = torch.device("cpu")


def small(name: str, *overrides: str) -> Recipe:
    return load_recipe(name, [*SMALL, *overrides])


def run(recipe: Recipe, out: Path, *, resume: bool = False) -> Path:
    train(recipe, out, resume=resume, device=CPU, console=QUIET)
    return out


def trainer(recipe: Recipe, out: Path) -> tuple[Trainer, DJEPATask]:
    task = DJEPATask(recipe, device=CPU)
    return Trainer(task, out), task


def weights(out: Path) -> dict[str, torch.Tensor]:
    checkpoint = find_checkpoint(out)
    return {f"{n}.{k}": v for n in ("averaged", "online", "training") for k, v in read_tensors(checkpoint, n).items()}


def test_fine_tuning_begins_with_the_weights_of_another_run(tmp_path: Path) -> None:
    first = run(small("digits", "optim.steps=2"), tmp_path / "first")
    recipe = small("digits", "optim.steps=1", "optim.lr=1e-30", "run.seed=5")
    train(recipe, tmp_path / "second", resume=False, device=CPU, console=QUIET, start=first)
    expected = read_tensors(find_checkpoint(first), "averaged")
    for name, tensor in read_tensors(find_checkpoint(tmp_path / "second"), "averaged").items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-20)
    assert find_checkpoint(tmp_path / "second").name == "step-00000001"


def test_a_corpus_of_classes_trains_without_them(tmp_path: Path) -> None:
    recipe = small("digits", "condition={kind: none}", "sample.guidance=1", "optim.steps=1")
    out = tmp_path / "run"
    train(recipe, out, resume=False, device=CPU, console=QUIET)
    pipeline = Pipeline.load(out)
    assert len(pipeline(pipeline.requests(count=2))) == 2


def test_clips_of_many_lengths_and_sizes_in_one_batch(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="PyAV writes the clips")
    for n, (frames, height, width) in enumerate([(4, 16, 16), (9, 16, 24), (6, 32, 18), (12, 8, 8)]):
        (tmp_path / "corpus" / f"class{n % 2}").mkdir(parents=True, exist_ok=True)
        write_clip(torch.rand(3, frames, height, width), tmp_path / "corpus" / f"class{n % 2}" / f"{n}.mp4", 10)
    overrides = [
        f"data.root={tmp_path / 'corpus'}", "data.frames=null", "data.size=null", "data.multiple_of=[2,8,8]",
        "tokenizer.vary=true", "tokenizer.size=[16,16]", "model.width=64", "model.heads=2", "optim.steps=2",
        "batch.workers=0", "batch.size=4", "sample.steps=3",
    ]  # fmt: skip
    recipe = small("clips", *overrides)
    run_, task = trainer(recipe, tmp_path / "run")
    assert sorted(spec.grid for spec in task.corpus.specs.values()) == [(2, 2, 2), (3, 4, 2), (4, 2, 3), (6, 1, 1)]
    ((portion,), _) = next(task.batches(task.state.cursor))
    batch = portion.batch
    assert sorted(batch.valid.sum(1).tolist()) == [6, 8, 24, 24]
    run_.run()
    pipeline = Pipeline.load(tmp_path / "run")
    (clip,) = pipeline(pipeline.requests([{"class": "class1"}], duration_s=1.0))
    assert clip.shape == (3, 8, 16, 16)
    with pytest.raises(UserError, match=r"model\.positions is learned"):
        trainer(small("clips", *overrides, "model.positions=learned"), tmp_path / "learned")


def test_fine_tuning_names_a_model_that_does_not_fit(tmp_path: Path) -> None:
    first = run(small("digits", "optim.steps=1"), tmp_path / "first")
    recipe = small("digits", "model.width=64")
    with pytest.raises(UserError, match=f"--from {first}.*do not fit"):
        train(recipe, tmp_path / "second", resume=False, device=CPU, console=QUIET, start=first)
    other = small("digits", "head.predicts=data")  # whose weights would fit
    with pytest.raises(UserError, match=r"its head\.predicts is 'velocity', here 'data'"):
        train(other, tmp_path / "second", resume=False, device=CPU, console=QUIET, start=first)
    with pytest.raises(UserError, match="--resume and --from"):
        train(recipe, tmp_path / "second", resume=True, device=CPU, console=QUIET, start=first)


@pytest.mark.parametrize(
    "way", [("batch.cache=true",), ("batch.cache=false",), ("batch.cache=true", "optim.optimizer=muon")]
)
def test_resuming_equals_never_stopping(tmp_path: Path, way: tuple[str, ...]) -> None:
    """Weights, averages, optimiser and random states agree to the bit, across an epoch's end."""
    common = [*way, "batch.size=400", "run.save_every=3"]
    whole = run(small("digits", *common, "optim.steps=8"), tmp_path / "whole")
    cut, task = trainer(small("digits", *common, "optim.steps=8"), tmp_path / "cut")
    batches = task.batches(task.state.cursor)
    task.online.train()
    for _ in range(5):
        cut.one_step(batches)
    cut.save()
    resumed = run(small("digits", *common, "optim.steps=8"), tmp_path / "cut", resume=True)
    assert differences(find_checkpoint(whole), find_checkpoint(resumed)) == []


def test_samples_and_checkpoints_do_not_change_training(tmp_path: Path) -> None:
    plain = run(small("digits", "optim.steps=4"), tmp_path / "plain")
    busy = run(small("digits", "optim.steps=4", "run.sample_every=1", "run.save_every=1"), tmp_path / "busy")
    expected, found = weights(plain), weights(busy)
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_a_run_leaves_its_files(tmp_path: Path) -> None:
    out = run(
        small("digits", "optim.steps=6", "run.save_every=2", "run.keep=2", "run.sample_every=4"), tmp_path / "run"
    )
    assert [p.name for p in checkpoints(out / "checkpoints")] == ["step-00000004", "step-00000006"]
    assert sorted(p.name for p in (out / "samples").iterdir()) == ["step-00000004.png", "step-00000006.png"]
    assert [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()] == [2, 4, 6]
    assert json.loads((out / "report.json").read_text())["broken"] == 0
    assert load_recipe(out / "recipe.yaml").name == "digits"
    assert list((out / "tensorboard").iterdir())
    assert not list((out / "checkpoints").glob(".*"))


def test_speech_leaves_sound_and_mel(tmp_path: Path, corpus: Path) -> None:
    out = run(
        small("ljspeech", "optim.steps=2", f"data.root={corpus}", "run.texts=[one two]", "optim.warmup_steps=1"),
        tmp_path / "run",
    )
    import soundfile

    sound, rate = soundfile.read(out / "samples" / "step-00000002-00.wav")
    assert rate == 22050
    assert 0.1 < len(sound) / rate < 3
    assert Image.open(out / "samples" / "step-00000002.png").height >= 80


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """20 clips of noise in LJSpeech's layout."""
    import numpy as np
    import soundfile

    root = tmp_path / "corpus"
    (root / "wavs").mkdir(parents=True)
    rng, lines = np.random.default_rng(0), []
    for n in range(20):
        text = "one two three"[: 3 + n % 10].strip()
        soundfile.write(root / "wavs" / f"c{n}.wav", 0.1 * rng.standard_normal(8000 + 1000 * len(text)), 22050)
        lines.append(f"c{n}|{text}|{text}\n")
    (root / "metadata.csv").write_text("".join(lines))
    return root


def test_broken_items_are_skipped_and_named(tmp_path: Path, corpus: Path) -> None:
    (corpus / "wavs" / "c3.wav").write_bytes(b"")
    (corpus / "wavs" / "c4.wav").write_text("this is a text file")
    common = [f"data.root={corpus}", "optim.steps=3", "run.texts=[one]"]
    out = run(small("ljspeech", *common, "batch.max_broken_share=0.2"), tmp_path / "run")
    report = json.loads((out / "report.json").read_text())
    assert set(report["reasons"]) == {"c3", "c4"}
    with pytest.raises(UserError, match=r"2 of 20 .*max_broken_share"):
        run(small("ljspeech", *common), tmp_path / "strict")
    assert not (tmp_path / "strict").exists()


def test_a_truncated_picture_is_skipped_and_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for n in range(6):
            noise = torch.randint(256, (8, 8, 3), dtype=torch.uint8).numpy()
            Image.fromarray(noise).save(tmp_path / "pictures" / name / f"{n}.png")
    bad = tmp_path / "pictures" / "a" / "2.png"
    bad.write_bytes(bad.read_bytes()[:60])
    recipe = small(
        "digits", "data={source: image-folder, root: %s, size: [8, 8]}" % (tmp_path / "pictures"),
        "tokenizer.channels=3", "optim.steps=4", "batch.cache=false", "batch.max_broken_share=0.2", "batch.size=6",
    )  # fmt: skip
    out = run(recipe, tmp_path / "run")
    assert list(json.loads((out / "report.json").read_text())["reasons"]) == ["a/2.png"]
    assert Pipeline.load(out).condition.state() == {"classes": ["a", "b"]}


def test_a_run_that_meets_too_much_broken_data_keeps_what_it_learned(tmp_path: Path, corpus: Path) -> None:
    """Files that break after the run has begun."""
    recipe = small("ljspeech", f"data.root={corpus}", "optim.steps=50", "batch.cache=false", "batch.size=4")
    run_, _ = trainer(recipe, tmp_path / "run")
    for n in range(0, 20, 4):
        path = corpus / "wavs" / f"c{n}.wav"
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="max_broken_share"):
        run_.run()
    assert json.loads((tmp_path / "run" / "report.json").read_text())["broken"] == 2
    assert [p.name for p in checkpoints(tmp_path / "run" / "checkpoints")] == [f"step-{run_.state.step:08d}"][
        : run_.state.step
    ]


def test_a_sample_text_that_cannot_be_said_is_refused_before_training(tmp_path: Path, corpus: Path) -> None:
    recipe = small("ljspeech", f"data.root={corpus}", "optim.steps=50", "run.texts=['one ☃']")
    with pytest.raises(UserError, match="☃"):
        run(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    out = run(small("digits", "optim.steps=1"), tmp_path / "run")
    with pytest.raises(UserError, match="--resume"):
        run(small("digits", "optim.steps=1"), out)


def test_minutes_end_a_run_and_its_schedule(tmp_path: Path) -> None:
    outcome = train(
        small("digits", "optim.steps=100000", "optim.minutes=0.02"),
        tmp_path / "run",
        resume=False,
        device=CPU,
        console=QUIET,
    )
    assert outcome.finished
    assert 0 < outcome.step < 100000
    last = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert last["lr"] < 0.2 * load_recipe("digits").optim.lr


def test_learning_rate_warms_up_and_falls() -> None:
    optim = load_recipe("digits", ["optim.lr=1.0", "optim.warmup_steps=9"]).optim
    assert learning_rate(optim, 0, 0.0) == pytest.approx(0.1)
    assert learning_rate(optim, 9, 0.0) == pytest.approx(1.0)
    assert learning_rate(optim, 500, 0.5) == pytest.approx(0.51)
    assert learning_rate(optim, 1000, 1.0) == pytest.approx(0.02)


def test_weight_decay_spares_biases_norms_embeddings_and_head(tmp_path: Path) -> None:
    _, task = trainer(small("digits"), tmp_path / "run")
    (adamw,) = build_optimizers(task.online, task.optim)
    decayed = {id(p) for p in adamw.param_groups[0]["params"]}
    names = {name for name, p in task.online.named_parameters() if id(p) in decayed}
    assert "encoder.stack.transformer.blocks.0.attention.qkv.weight" in names
    assert not any(
        word in name for name in names for word in ("bias", "norm", "head.", "embedder", "learned", "mask_token")
    )


def test_muon_moves_the_matrices_of_the_blocks_and_adamw_the_rest(tmp_path: Path) -> None:
    recipe = small("digits", "optim.optimizer=muon", "optim.steps=2")
    run_, task = trainer(recipe, tmp_path / "run")
    named = dict(task.online.named_parameters())
    held = [{id(p) for group in optimizer.param_groups for p in group["params"]} for optimizer in task.state.optimizers]
    assert sum(map(len, held)) == len(named)
    assert not held[0] & held[1]
    by_muon = {name for name, p in named.items() if id(p) in held[1]}
    assert "encoder.stack.transformer.blocks.0.attention.qkv.weight" in by_muon
    assert "predictor.stack.transformer.blocks.0.mlp.0.weight" in by_muon
    assert not any(name.startswith(("head.", "embedder.")) or named[name].ndim < 2 for name in by_muon)
    before = {name: p.detach().clone() for name, p in named.items()}
    run_.one_step(task.batches(task.state.cursor))
    assert all(not torch.equal(before[name], named[name]) for name in by_muon)


def test_resuming_with_another_optimizer_is_refused(tmp_path: Path) -> None:
    out = run(small("digits", "optim.steps=2"), tmp_path / "run")
    with pytest.raises(UserError, match=r"optim\.optimizer is adamw, here muon"):
        run(small("digits", "optim.steps=4", "optim.optimizer=muon"), out, resume=True)


# --- checkpoints


def test_an_interrupted_save_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_, task = trainer(small("digits"), tmp_path / "run")
    run_.save()
    import djepa_mm.runs.checkpoint as module

    real, calls = module.save_file, []

    def fail_at_second(*args: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise OSError("no space left on device")
        real(*args)

    monkeypatch.setattr(module, "save_file", fail_at_second)
    task.state.step = 7
    with pytest.raises(OSError, match="no space"):
        run_.save()
    assert [p.name for p in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-00000000"]
    Pipeline.load(tmp_path / "run")


@pytest.mark.parametrize("name", ["averaged.safetensors", "state.json"])
def test_a_checkpoint_cut_in_half_is_named(tmp_path: Path, name: str) -> None:
    out = run(small("digits", "optim.steps=2", "run.save_every=1"), tmp_path / "run")
    path = find_checkpoint(out) / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(
        UserError, match=rf"{name}: damaged checkpoint .*delete step-00000002 to go on from step-00000001"
    ) as caught:
        Pipeline.load(out)
    assert "\n" not in str(caught.value)


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run folder"):
        Pipeline.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no checkpoint yet"):
        Pipeline.load(tmp_path)


# --- generation


def test_generation_is_repeatable_and_independent_of_the_batch(tmp_path: Path) -> None:
    pipeline = Pipeline.load(run(small("digits", "optim.steps=3"), tmp_path / "run"))
    requests = [Request(condition={"class": n}, seed=(5, n)) for n in range(4)]
    together, alone = pipeline(requests), [pipeline([request])[0] for request in requests]
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert together[0].shape == (1, 8, 8)
    assert together[0].abs().max() <= 1


def test_guidance_and_temperature_change_samples(tmp_path: Path) -> None:
    pipeline = Pipeline.load(run(small("digits", "optim.steps=30"), tmp_path / "run"))
    plain, guided, cold = (
        pipeline([Request(condition={"class": 1})], sampler=Sampler(ar_steps=3, guidance=g, temperature=t))[0]
        for g, t in ((1.0, 1.0), (4.0, 1.0), (1.0, 0.1))
    )
    assert not torch.allclose(plain, guided)
    assert not torch.allclose(plain, cold)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(condition={"text": "one"}), "takes no text; it knows class"),
        (Request(), "needs a class"),
        (Request(condition={"class": 1}, duration_s=2.0), "no duration"),
    ],
)
def test_requests_that_pictures_cannot_fulfil(tmp_path: Path, request_: Request, message: str) -> None:
    pipeline = Pipeline.load(run(small("digits", "optim.steps=1"), tmp_path / "run"))
    with pytest.raises(UserError, match=message):
        pipeline([request_])


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(condition={"class": "1"}), "takes no class; it knows text"),
        (Request(), "needs a text"),
        (Request(condition={"text": "  "}), "empty"),
        (Request(condition={"text": "one ☃ two"}), "☃"),
        (Request(condition={"text": "one"}, duration_s=-1.0), "out of range"),
        (Request(condition={"text": "one"}, duration_s=1e6), "out of range"),
    ],
)
def test_requests_that_speech_cannot_fulfil(tmp_path: Path, corpus: Path, request_: Request, message: str) -> None:
    recipe = small("ljspeech", "optim.steps=1", f"data.root={corpus}", "run.texts=[one]")
    pipeline = Pipeline.load(run(recipe, tmp_path / "run"))
    with pytest.raises(UserError, match=message):
        pipeline([request_])


def test_length_follows_the_text(tmp_path: Path, corpus: Path) -> None:
    """In this corpus a clip has 8000 + 1000 samples a character."""
    recipe = small("ljspeech", "optim.steps=1", f"data.root={corpus}", "run.texts=[one]")
    pipeline = Pipeline.load(run(recipe, tmp_path / "run"))
    for text in ("one", "one two three"):
        expected = 8000 + 1000 * len(text)
        assert abs(pipeline.prepare([Request(condition={"text": text})])[0][0].spec.shape[0] - expected) < 2000
    assert pipeline.prepare([Request(condition={"text": "one"}, duration_s=2.0)])[0][0].spec.shape == (44100,)


@pytest.mark.parametrize("kind", ["trackio", "wandb"])
def test_a_tracker_gets_the_log_or_is_asked_for_by_name(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in with the interface that both have; then none."""
    rows: dict[int, dict[str, float]] = {}
    ended: list[str] = []

    class Run:
        def log(self, figures: dict[str, float], step: int) -> None:
            rows[step] = figures

        def finish(self) -> None:
            ended.append("finished")

    module = types.ModuleType(kind)
    module.init = lambda project, name, config, resume: Run() if config["name"] == "digits" else None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, kind, module)
    recipe = small("digits", "optim.steps=3", "run.log_every=1", f"run.tracker={kind}")
    run(recipe, tmp_path / "run")
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [rows[row["step"]]["generation"] for row in logged] == pytest.approx([row["generation"] for row in logged])
    assert len(logged) == 3
    assert ended == ["finished"]
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(UserError, match=rf"run\.tracker {kind}: it is not installed; pip install {kind}"):
        run(recipe, tmp_path / "other")
