"""The door: what a script or a notebook does with it, and what it says of mistakes."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import ROOT
from torch import nn

import djepa_mm
from djepa_mm import Generated, Model, Results, UserError
from djepa_mm.generation.pipeline import Pipeline
from djepa_mm.recipe.load import dump_recipe, recipe_data

SMALL = {
    "model.width": 32, "model.depth": 1, "model.heads": 2, "head.width": 32, "head.blocks": 1, "head.steps": 2,
    "batch.size": 16, "sample.steps": 2, "run.samples": 4, "run.sample_every": None, "run.log_every": 2,
    "optim.precision": "fp32", "optim.minutes": None, "optim.steps": 6,
}  # fmt: skip
FIGURES = {
    "step", "generation", "prediction", "gradient_norm", "lr", "seconds", "left_out", "steps_per_s", "items_per_s",
    "tokens_per_s", "data_wait", "matrix_share", "memory_mib",
}  # fmt: skip


def model(pipeline: Pipeline) -> Model:
    """With some weight on the layers that begin at zero, so that what is asked for shows."""
    torch.manual_seed(0)
    for module in pipeline.model.averaged.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.1)
    return Model(pipeline, Path("run"))


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("door") / "digits"
    recipe = djepa_mm.load_recipe("digits", SMALL)
    assert djepa_mm.train(recipe, out, device="cpu", progress=False).finished
    return out


# --- the names --------------------------------------------------------------------------------------------------------


def test_importing_it_loads_nothing_heavy() -> None:
    code = """
import sys
import djepa_mm
dir(djepa_mm), djepa_mm.__version__, djepa_mm.__all__
loaded = {name.split(".")[0] for name in sys.modules}
assert not loaded & {"torch", "numpy", "pydantic", "yaml", "rich", "PIL", "diffusers"}, loaded
djepa_mm.UserError
assert "torch" not in sys.modules
djepa_mm.load
assert "torch" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_every_name_is_there() -> None:
    for name in djepa_mm.__all__:
        thing = getattr(djepa_mm, name)
        assert thing.__name__ == name
        assert thing.__doc__, f"{name} says nothing of itself"
    assert set(djepa_mm.__all__) <= set(dir(djepa_mm))
    with pytest.raises(AttributeError, match="no attribute 'paint'"):
        djepa_mm.paint  # noqa: B018


def test_every_method_says_what_it_does() -> None:
    for name, method in vars(Model).items():
        if callable(method) and not name.startswith("_"):
            assert method.__doc__, f"Model.{name}"


# --- generating -------------------------------------------------------------------------------------------------------


def test_a_class_is_asked_for_in_several_ways(painter: Pipeline) -> None:
    door = model(painter)
    (item,) = door.generate(class_=7, seed=3)
    assert isinstance(item, Generated)
    assert item.title == "7"
    assert item.media.shape == (1, 8, 8)
    assert item.media.device.type == "cpu"
    for same in (door.generate(class_="7", seed=3), door.generate({"class": "7"}, seed=3)):
        assert torch.equal(same[0].media, item.media)
    assert not torch.equal(door.generate(class_=7, seed=4)[0].media, item.media)
    assert not torch.equal(door.generate(class_=2, seed=3)[0].media, item.media)


def test_items_come_class_by_class(painter: Pipeline) -> None:
    items = model(painter).generate(class_=["7", 2], count=2)
    assert isinstance(items, Results)
    assert [item.title for item in items] == ["7", "7", "2", "2"]
    one = model(painter).generate(class_="7", count=1)
    torch.testing.assert_close(one[0].media, items[0].media)  # whatever is generated beside it
    assert [item.title for item in model(painter).generate()] == list("0123456789")
    assert len(model(painter).generate([{"class": "1"}, {"class": "2"}])) == 2


def test_sampling_is_the_recipes_or_what_is_asked_for(painter: Pipeline) -> None:
    door = model(painter)
    asked = {"ar_steps": 3, "sweeps": 2, "guidance": 2.0, "temperature": 0.5}
    usual = door.generate(class_=7)[0].media
    for name, value in asked.items():
        assert not torch.equal(door.generate(class_=7, **{name: value})[0].media, usual), name  # type: ignore[arg-type]
    sample = door.recipe.sample
    same = door.generate(class_=7, ar_steps=sample.steps, guidance=sample.guidance, temperature=sample.temperature)
    assert torch.equal(same[0].media, usual)


def test_sweeps_are_for_places_that_may_come_last(painter: Pipeline) -> None:
    pipeline = Pipeline(painter.recipe, painter.model, painter.tokenizer, painter.condition)
    pipeline.sampler = replace(pipeline.sampler, order="raster")
    with pytest.raises(UserError, match=r"--sweeps 2: with sample\.order raster what comes first never comes last"):
        model(pipeline).generate(class_=7, sweeps=2)
    assert len(model(pipeline).generate(class_=7, sweeps=0)) == 1


def test_progress_is_told(painter: Pipeline) -> None:
    told: list[tuple[int, int]] = []
    model(painter).generate(count=1, batch_size=5, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (4, 4)  # two batches of two steps
    assert told == sorted(told)


def test_a_sound_is_as_long_as_asked_for(speaker: Pipeline) -> None:
    door = model(speaker)
    rate = speaker.tokenizer.media.per_second
    assert rate is not None
    (item,) = door.generate(text="one two", seconds=0.6)
    assert len(item.media) / rate == pytest.approx(0.6, abs=0.02)
    usual, slow = door.generate([{"text": "one two"}, {"text": "one two", "rate": 0.5}])
    assert len(slow.media) / len(usual.media) == pytest.approx(2, rel=0.05)
    assert [item.title for item in door.generate(text=["one", "two"])] == ["one", "two"]


def test_clips_begin_with_the_frames_that_are_given(filmer: Pipeline) -> None:
    first, last = torch.rand(3, 2, 16, 16) * 2 - 1, torch.rand(3, 4, 16, 16) * 2 - 1
    clips = model(filmer).generate(class_=["1", "2"], first_frames=first, last_frames=last)
    for clip in clips:
        assert clip.media.shape == (3, 8, 16, 16)
        assert torch.equal(clip.media[:, :2], first)
        assert torch.equal(clip.media[:, 4:], last)
    assert not torch.equal(clips[0].media, clips[1].media)


def test_mistakes_in_what_is_asked_for(painter: Pipeline, speaker: Pipeline) -> None:
    for mistake, message in (
        (lambda: model(painter).generate(class_=7, text="one"), "give one of the two"),
        (lambda: model(painter).generate({"class": "7"}, class_="7"), "give one of the two"),
        (lambda: model(painter).generate(text="one"), "takes no text"),
        (lambda: model(painter).generate(class_="walrus"), "walrus"),
        (lambda: model(painter).generate(class_=7, seconds=2.0), "seconds|duration|time"),
        (lambda: model(painter).generate(class_=7, size=(16, 16)), "size"),
        (lambda: model(painter).generate(first_frames=torch.zeros(1, 1, 8, 8)), "clips"),
        (lambda: model(speaker).generate(class_=7), "takes no class"),
        (lambda: model(speaker).generate(), "text"),
        (lambda: model(painter).encode(torch.zeros(3, 8, 8)), "channels|expected"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            mistake()
        assert "\n" not in str(caught.value)


# --- looking, listening and saving ------------------------------------------------------------------------------------


def test_results_are_saved(painter: Pipeline, tmp_path: Path) -> None:
    items = model(painter).generate(class_=[7, 2])
    paths = items.save(tmp_path / "a" / "b")
    assert [path.name for path in paths] == ["0000-7.png", "0001-2.png", "sheet.png", "index.html"]
    with Image.open(paths[0]) as picture:
        assert picture.size == (8, 8)
    assert items.sheet().width > 8
    assert [path.suffix for path in items.save(tmp_path / "webp", suffix=".webp")[:2]] == [".webp"] * 2


def test_an_item_is_saved_and_read_again(painter: Pipeline, speaker: Pipeline, tmp_path: Path) -> None:
    (picture,) = model(painter).generate(class_=7)
    path = picture.save(tmp_path / "new" / "seven.png")
    assert path == tmp_path / "new" / "seven.png"
    torch.testing.assert_close(model(painter).read(path), picture.media.clamp(-1, 1), rtol=0, atol=1.1 / 127.5)
    (sound,) = model(speaker).generate(text="one")
    read = model(speaker).read(str(sound.save(tmp_path / "one.wav")))
    torch.testing.assert_close(read, sound.media / sound.media.abs().max().clamp_min(1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["seven.gif", "seven", "seven.wav", "seven.mp4"])
def test_a_suffix_of_other_media_is_refused(painter: Pipeline, tmp_path: Path, name: str) -> None:
    (item,) = model(painter).generate(class_=7)
    with pytest.raises(UserError, match=rf"{name}: this model writes \.png"):
        item.save(tmp_path / "new" / name)
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match=r"\.tiff"):
        Results([item]).save(tmp_path / "new", suffix=".tiff")
    assert not (tmp_path / "new").exists()


def test_a_notebook_shows_pictures(painter: Pipeline) -> None:
    items = model(painter).generate()
    assert items._repr_html_().count("<img") == 1, "all of them on one sheet"
    shown = items[0]._repr_html_()
    assert shown.startswith("<figure><figcaption>0</figcaption><img")
    assert "data:image/png;base64," in shown


def test_a_notebook_plays_sounds(speaker: Pipeline) -> None:
    shown = model(speaker).generate(text=["one", "two"])._repr_html_()
    assert shown.count('<audio controls src="data:audio/wav;base64,') == 2
    assert shown.count("<figcaption>") == 2


def test_a_notebook_plays_clips(filmer: Pipeline) -> None:
    pytest.importorskip("av")
    shown = model(filmer).generate(class_=7)._repr_html_()
    assert shown.count('<video controls loop muted src="data:video/mp4;base64,') == 1


def test_items_are_printed_in_short(painter: Pipeline) -> None:
    assert Results()._repr_html_() == ""
    assert repr(model(painter).generate(class_=7)) == "(Generated('7', (1, 8, 8)),)"


# --- editing ----------------------------------------------------------------------------------------------------------


def test_what_the_mask_leaves_stays(painter: Pipeline) -> None:
    picture = torch.rand(1, 8, 8) * 2 - 1
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[3:, 5:] = True
    edited = model(painter).edit(picture, class_=7, mask=mask, seed=1)
    assert edited.title == "7"
    assert torch.equal(edited.media[:, ~mask], picture[:, ~mask])
    assert (edited.media[:, mask] != picture[:, mask]).all()
    assert torch.equal(model(painter).edit(picture, {"class": 7}, mask=mask, seed=1).media, edited.media)
    assert not torch.equal(model(painter).edit(picture, class_=7, mask=mask, seed=2).media, edited.media)


def test_a_span_of_a_sound_is_replaced(speaker: Pipeline) -> None:
    per_second, per_token = speaker.tokenizer.media.per_second, speaker.tokenizer.span[0]
    assert per_second is not None
    sound = 0.1 * torch.randn(per_token * 60)
    edited = model(speaker).edit(sound, text="one two", start_s=0.2, stop_s=0.4).media
    start, stop = int(0.2 * per_second) - per_token, int(0.4 * per_second) + per_token
    assert len(edited) == len(sound)
    assert torch.equal(edited[:start], sound[:start])
    assert torch.equal(edited[stop:], sound[stop:])
    assert not torch.equal(edited[start:stop], sound[start:stop])
    longer = model(speaker).edit(sound, text="one two", seconds=0.3)  # goes on
    assert len(longer.media) > len(sound)
    assert torch.equal(longer.media[: len(sound) - per_token], sound[: len(sound) - per_token])


def test_a_clip_is_painted_anew_between_two_times(filmer: Pipeline) -> None:
    clip = torch.rand(3, 8, 16, 16) * 2 - 1  # 0.8 s
    edited = model(filmer).edit(clip, class_=7, start_s=0.2, stop_s=0.4).media
    assert torch.equal(edited[:, :2], clip[:, :2])
    assert torch.equal(edited[:, 4:], clip[:, 4:])
    assert (edited[:, 2:4] != clip[:, 2:4]).any()


def test_mistakes_in_editing(painter: Pipeline, speaker: Pipeline) -> None:
    picture, mask = torch.zeros(1, 8, 8), torch.ones(8, 8, dtype=torch.bool)
    for mistake, message in (
        (lambda: model(painter).edit(picture, class_=7), "--mask"),
        (lambda: model(painter).edit(picture, class_=7, mask=mask[:4]), "--mask"),
        (lambda: model(painter).edit(picture, class_=7, mask=~mask), "nothing is white"),
        (lambda: model(painter).edit(picture, class_=7, mask=mask, seconds=1.0), "--seconds"),
        (lambda: model(painter).edit("nowhere.png", class_=7, mask=mask), r"nowhere\.png"),
        (lambda: model(speaker).edit(torch.zeros(20_000), text="one", start_s=3.0), "--from 3"),
    ):
        with pytest.raises(UserError, match=message):
            mistake()


# --- tokens and features ----------------------------------------------------------------------------------------------


def test_tokens_go_there_and_back(painter: Pipeline, filmer: Pipeline) -> None:
    for door, media, count in (
        (model(painter), torch.rand(1, 8, 8) * 2 - 1, 4),
        (model(filmer), torch.rand(3, 8, 16, 16) * 2 - 1, 64),
    ):
        tokens = door.encode(media)
        assert tokens.values.shape == (count, door.pipeline.tokenizer.token_dim)
        assert tokens.spec.num_tokens == count
        assert tokens.spec.shape == tuple(media.shape)
        back = door.decode(tokens)
        assert isinstance(back, Generated)
        torch.testing.assert_close(back.media, media, rtol=0, atol=1e-5)
        assert torch.equal(door.encode(Generated(media=media, title="", kind=back.kind)).values, tokens.values)


def test_a_file_is_encoded(painter: Pipeline, tmp_path: Path) -> None:
    media = torch.linspace(-1, 1, 64).reshape(1, 8, 8)
    path = model(painter).decode(model(painter).encode(media)).save(tmp_path / "ramp.png")
    from_file = model(painter).decode(model(painter).encode(path)).media
    torch.testing.assert_close(from_file, media, rtol=0, atol=1 / 127.5)


def test_features_are_the_target_encoders(painter: Pipeline) -> None:
    door, media = model(painter), torch.rand(1, 8, 8) * 2 - 1
    features = door.features(media, class_=7)
    assert features.shape == (4, 32)
    assert not features.requires_grad
    assert torch.equal(features, door.features(media, {"class": "7"}))
    assert not torch.equal(features, door.features(media.flip(-1), class_=7))
    assert not torch.equal(features, door.features(media, class_=2))
    assert door.features(media).shape == (4, 32)  # under the null condition


# --- training ---------------------------------------------------------------------------------------------------------


class Witness(djepa_mm.Callback):
    def __init__(self) -> None:
        self.steps: list[tuple[int, float]] = []
        self.rows: list[Mapping[str, float]] = []
        self.samples: list[list[Path]] = []
        self.checkpoints: list[tuple[Path, bool]] = []
        self.threads: set[int] = set()

    def on_step(self, step: int, progress: float) -> None:
        self.steps.append((step, progress))
        self.threads.add(threading.get_ident())

    def on_log(self, row: Mapping[str, float]) -> None:
        self.rows.append(row)

    def on_samples(self, files: Sequence[Path]) -> None:
        self.samples.append(list(files))

    def on_checkpoint(self, folder: Path) -> None:
        self.checkpoints.append((folder, (folder / "averaged.safetensors").is_file()))


def test_a_callback_that_fails_loses_nothing(tmp_path: Path) -> None:
    class Failing(djepa_mm.Callback):
        def on_step(self, step: int, progress: float) -> None:
            if step == 3:
                raise KeyError("a mistake of one's own")

    with pytest.raises(KeyError, match="one's own"):
        djepa_mm.train(
            djepa_mm.load_recipe("digits", SMALL), tmp_path, device="cpu", callbacks=[Failing()], progress=False
        )
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
    assert djepa_mm.train(djepa_mm.load_recipe("digits", SMALL), tmp_path, resume=True, progress=False).step == 6


def test_callbacks_are_told_what_happens(tmp_path: Path) -> None:
    recipe = djepa_mm.load_recipe("digits", {**SMALL, "run.sample_every": 4, "run.save_every": 4})
    witness, out = Witness(), tmp_path / "run"
    outcome = djepa_mm.train(recipe, out, device="cpu", callbacks=[witness, djepa_mm.Callback()], progress=False)
    assert (outcome.run, outcome.step, outcome.finished) == (out, 6, True)
    assert witness.steps == [(n, pytest.approx(n / 6)) for n in range(1, 7)]
    assert [row["step"] for row in witness.rows] == [2, 4, 6]
    assert all(set(row) == FIGURES for row in witness.rows)
    logged = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [row["generation"] for row in logged] == pytest.approx([row["generation"] for row in witness.rows], abs=1e-5)
    assert witness.samples == [[out / "samples" / f"step-0000000{n}.png"] for n in (4, 6)]
    assert all(file.is_file() for files in witness.samples for file in files)
    assert witness.checkpoints == [(out / "checkpoints" / f"step-0000000{n}", True) for n in (4, 6)]
    assert witness.threads == {threading.get_ident()}


def test_a_thread_trains_and_another_stops_it(tmp_path: Path) -> None:
    class Signal(djepa_mm.Callback):
        def __init__(self) -> None:
            self.reached = threading.Event()

        def on_step(self, step: int, progress: float) -> None:
            if step == 3:
                self.reached.set()

    stop, signal, outcomes = threading.Event(), Signal(), []
    recipe = djepa_mm.load_recipe("digits", {**SMALL, "optim.steps": 100_000})

    def train(*, resume: bool) -> None:
        outcomes.append(
            djepa_mm.train(recipe, tmp_path, resume=resume, device="cpu", callbacks=[signal], stop=stop, progress=False)
        )

    thread = threading.Thread(target=train, kwargs={"resume": False})
    thread.start()
    assert signal.reached.wait(60)
    stop.set()
    thread.join(60)
    assert not thread.is_alive()
    (outcome,) = outcomes
    assert not outcome.finished
    assert 3 <= outcome.step < 100_000
    assert (tmp_path / "checkpoints" / f"step-{outcome.step:08d}").is_dir()
    assert not list((tmp_path / "samples").glob("*")) if (tmp_path / "samples").exists() else True
    assert djepa_mm.load(tmp_path, device="cpu").generate(class_=7)[0].media.shape == (1, 8, 8)
    thread = threading.Thread(target=train, kwargs={"resume": True})  # the event is still set
    thread.start()
    thread.join(60)
    assert outcomes[1].step == outcome.step, "it goes on where it was stopped"


def test_a_thread_trains_as_the_main_thread_does(tmp_path: Path, digits_run: Path) -> None:
    recipe, outcomes = djepa_mm.load_recipe("digits", SMALL), []
    thread = threading.Thread(
        target=lambda: outcomes.append(djepa_mm.train(recipe, tmp_path / "run", device="cpu", progress=False))
    )
    thread.start()
    thread.join(60)
    assert outcomes[0].finished
    one, other = (djepa_mm.load(run, device="cpu") for run in (tmp_path / "run", digits_run))
    assert torch.equal(one.generate(class_=7)[0].media, other.generate(class_=7)[0].media)


def test_recipes_by_name_path_data_and_object(tmp_path: Path) -> None:
    recipe = djepa_mm.load_recipe("digits", {**SMALL, "optim.steps": 1})
    (tmp_path / "mine.yaml").write_text(dump_recipe(recipe))
    ways = {"object": recipe, "path": tmp_path / "mine.yaml", "text": str(tmp_path / "mine.yaml")}
    media = []
    for name, way in {**ways, "data": recipe_data(recipe)}.items():
        assert djepa_mm.train(way, tmp_path / name, device="cpu", progress=False).step == 1
        media.append(djepa_mm.load(tmp_path / name, device="cpu").generate(class_=7)[0].media)
    assert all(torch.equal(one, media[0]) for one in media)
    assert djepa_mm.load_recipe("digits").optim.steps == djepa_mm.load_recipe("recipes/digits.yaml").optim.steps
    with pytest.raises(UserError, match="did you mean 'digits'"):
        djepa_mm.train("digitz")
    with pytest.raises(UserError, match=r"optim\.stepz"):
        djepa_mm.load_recipe("digits", {"optim.stepz": 3})


def test_the_run_folder_is_named_by_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = djepa_mm.load_recipe("digits", {**SMALL, "optim.steps": 1, "name": "mine"})
    assert djepa_mm.train(recipe, device="cpu", progress=False).run == Path("runs/mine")
    with pytest.raises(UserError, match="holds a run already"):
        djepa_mm.train(recipe, device="cpu", progress=False)


def test_a_run_begins_with_the_weights_of_another(digits_run: Path, tmp_path: Path) -> None:
    recipe = djepa_mm.load_recipe("digits", {**SMALL, "optim.steps": 1, "optim.lr": 1e-30})
    djepa_mm.train(recipe, tmp_path / "run", start=digits_run, device="cpu", progress=False)
    one, other = (djepa_mm.load(run, device="cpu") for run in (tmp_path / "run", str(digits_run)))
    torch.testing.assert_close(one.generate(class_=7)[0].media, other.generate(class_=7)[0].media)


def test_progress_is_printed_line_by_line_where_nothing_is_live(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = djepa_mm.load_recipe("digits", {**SMALL, "optim.steps": 4})
    djepa_mm.train(recipe, tmp_path / "loud", device="cpu")
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in shown[:2]] == [["step", "2/4"], ["step", "4/4"]]
    djepa_mm.train(recipe, tmp_path / "quiet", device="cpu", progress=False)
    assert capsys.readouterr().out == ""


# --- loading and measuring --------------------------------------------------------------------------------------------


def test_a_run_is_loaded_with_overrides(digits_run: Path) -> None:
    door = djepa_mm.load(digits_run, {"sample.guidance": 2.0, "sample.steps": 3}, device="cpu")
    assert door.recipe.sample.guidance == 2.0
    assert door.pipeline.sampler.ar_steps == 3
    assert djepa_mm.load(digits_run, ["sample.steps=3"]).pipeline.sampler.ar_steps == 3
    checkpoint = digits_run / "checkpoints" / "step-00000006"
    assert torch.equal(
        djepa_mm.load(checkpoint).generate(class_=1)[0].media, djepa_mm.load(digits_run).generate(class_=1)[0].media
    )
    assert [item.title for item in djepa_mm.load(digits_run).examples()] == ["0", "1", "2", "3"]
    with pytest.raises(UserError, match="nowhere"):
        djepa_mm.load("nowhere")


def test_devices(digits_run: Path) -> None:
    assert djepa_mm.load(digits_run, device=torch.device("cpu")).pipeline.device.type == "cpu"
    for device in ("gpu", "mps", "cpu:x"):
        with pytest.raises(UserError, match=rf"--device {device}: expected auto, cpu, cuda or cuda:N"):
            djepa_mm.load(digits_run, device=device)
        with pytest.raises(UserError, match="--device"):
            djepa_mm.train("digits", digits_run, device=device)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no CUDA device"):
            djepa_mm.load(digits_run, device="cuda")


def test_a_run_is_measured(digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from djepa_mm.evaluate import report

    monkeypatch.setattr(report, "train_classifier", functools.partial(report.train_classifier, steps=20))  # quicker
    told: list[tuple[int, int]] = []
    with pytest.raises(UserError, match="nothing is held out"):
        djepa_mm.load(digits_run, {"data.split": "all"}).evaluate()
    figures = djepa_mm.load(digits_run, device="cpu").evaluate(
        count=20, guidance=1.5, progress=lambda done, total: told.append((done, total))
    )
    assert figures["recipe"] == "digits"
    assert figures["guidance"] == 1.5
    assert figures["checkpoint"] == "step-00000006"
    assert json.loads(json.dumps(figures)) == figures
    assert told


def test_a_folder_of_ones_own_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder at"):
        djepa_mm.extend(tmp_path / "nowhere")


# --- what makes no sense ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ar_steps": 0}, "--steps 0: give a whole number from 1 to 1,000,000"),
        ({"ar_steps": 2.5}, "--steps 2.5: give a whole number from 1 to 1,000,000"),
        ({"sweeps": -1}, "--sweeps -1: give a whole number from 0 to 1,000"),
        ({"guidance": float("nan")}, "--guidance nan: give 0 to 1,000,000"),
        ({"guidance": 1e308}, r"--guidance 1e\+308: give 0 to"),
        ({"temperature": -1.0}, "--temperature -1.0: give 0 to 1,000,000"),
        ({"count": 0}, "--count 0: give 1 or more"),
        ({"candidates": 0}, "--candidates 0: give 1 or more"),
        ({"batch_size": 0}, "--batch 0: give 1 or more"),
        ({"seed": -1}, "--seed -1: expected 0 or more"),
        ({"class_": []}, "--class: an empty list asks for nothing"),
        ({"condition": 7}, "7 is no condition"),
        ({"condition": ["7"]}, "'7' is no condition"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line(painter: Pipeline, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        model(painter).generate(**options)  # type: ignore[arg-type]


def test_classes_come_in_any_kind_of_list(painter: Pipeline) -> None:
    for way in (np.array([7, 2]), range(7, 9), np.int64(7)):
        assert model(painter).generate(class_=way)[0].title == "7"  # type: ignore[arg-type]


def test_media_are_tensors_of_floats(painter: Pipeline) -> None:
    for odd in (torch.zeros(1, 8, 8, dtype=torch.uint8), np.zeros((1, 8, 8)), None):
        with pytest.raises(UserError, match=r"expected a file, or media as a tensor of floats in \[-1, 1\], not "):
            model(painter).encode(odd)  # type: ignore[arg-type]
    for value in (torch.nan, torch.inf):
        with pytest.raises(UserError, match="some of the tensor's values are NaN or infinite"):
            model(painter).encode(torch.full((1, 8, 8), value))
