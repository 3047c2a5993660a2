"""Clips and pictures are measured: by networks, by classes, and by what follows their first frames."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from djepa_mm.cli.app import main
from djepa_mm.data.sources.digits import Digits, load_digits
from djepa_mm.data.sources.ljspeech import LJSpeechConfig
from djepa_mm.data.sources.moving_digits import MovingDigitsConfig, moving_digits
from djepa_mm.errors import Notice
from djepa_mm.evaluate import report as report_module
from djepa_mm.evaluate import visual
from djepa_mm.evaluate.distance import psnr_db, ssim
from djepa_mm.evaluate.features import (
    FrameClassifier,
    ScriptedExtractor,
    VideoModelExtractor,
    extractor_for,
    features,
    train_classifier,
)
from djepa_mm.evaluate.frechet import frechet_distance
from djepa_mm.evaluate.report import evaluate_run, report
from djepa_mm.evaluate.visual import (
    baseline_items,
    evaluate_visual,
    first_frames,
    learned,
    predict,
    read_items,
    spread,
)
from djepa_mm.generation.edit import Edit
from djepa_mm.generation.pipeline import Pipeline
from djepa_mm.recipe.load import load_recipe
from djepa_mm.tokenizers.video import ClipPatchesConfig, ClipVAEConfig
from djepa_mm.training.djepa import train
from djepa_mm.types import BrokenItem, Entry, Item, UserError

pytest.importorskip("sklearn")

FRAMES = 8
CLASSES = Digits.classes
SMALL = [
    "model.preset=tiny", "model.width=32", "model.depth=1", "model.heads=2", "head.width=32", "head.blocks=1",
    "head.steps=2", "batch.size=16", "sample.steps=3", "run.sample_every=null", "optim.precision=fp32",
    "optim.steps=1", "optim.minutes=null",
]  # fmt: skip
CLIPS = [
    "name=moving", "mask.orders=[random]", "mask.horizon=null", "mask.start=0", "sample.order=random",
    "sample.temperature=1",  # what a model gives that learned nothing is noise then, worse than repeating a frame
    "data={source: moving-digits, count: 120, frames: 8, size: [16, 16], scale: 1, reader: pyav}",
    "tokenizer={kind: clip-patches, patch: [2, 4, 4], channels: 1, frames: 8, size: [16, 16], frame_rate: 10}",
]  # fmt: skip


def moving(count: int, split: Any = "train") -> list[Item]:
    """Grey clips of 8 frames of 16×16 pixels, as they are before they become files."""
    config = MovingDigitsConfig(source="moving-digits", count=count, frames=FRAMES, size=(16, 16), scale=1)
    digits = [digit for digit, _ in zip(moving_digits(config, split), range(count), strict=False)]
    return [Item(entry=Entry(name=digit.name, label=str(digit.label)), media=digit.clip) for digit in digits]


def media(items: list[Item]) -> list[Tensor]:
    return [item.media for item in items]


@pytest.fixture(scope="module")
def classifier() -> FrameClassifier:
    """Of moving digits."""
    return train_classifier(moving(300), moving(60, "held-out"), CLASSES, steps=200)


# --- the embedded classifier


def test_the_classifier_knows_its_classes_and_says_so(classifier: FrameClassifier) -> None:
    held_out = moving(60, "held-out")
    accuracy = classifier.accuracy(media(held_out), [item.entry.label for item in held_out])
    assert accuracy["frame_accuracy"] > 0.7
    assert accuracy["clip_accuracy"] >= accuracy["frame_accuracy"]
    by_hand = [
        (classifier.logits(item.media[None])[0].argmax(-1) == int(item.entry.label or "")).float().mean().item()
        for item in held_out
    ]
    assert accuracy["frame_accuracy"] == pytest.approx(sum(by_hand) / 60)
    shown = f"{accuracy['frame_accuracy']:.1%}"
    expected = f"embedded: frame classifier trained on 300 items for 200 steps, held-out frame accuracy {shown}"
    assert classifier.name == expected
    wrong = classifier.accuracy(media(held_out), [str((int(item.entry.label or "") + 1) % 10) for item in held_out])
    assert wrong["frame_accuracy"] < 0.2
    assert classifier.accuracy(media(held_out), ["ten"] * 60)["frame_accuracy"] == 0


def test_real_clips_are_nearer_than_others(classifier: FrameClassifier) -> None:
    """Training clips it has not learned from are near held-out ones; noise, still clips and one class are not."""
    known, others = media(moving(200, "held-out")), media(moving(500)[300:])
    real = features(classifier, known)
    assert real.shape == (200, 2 * 64)
    near = frechet_distance(features(classifier, others), real)
    noise = [torch.rand(clip.shape) * 2 - 1 for clip in others]
    still = [clip[:, :1].expand_as(clip) for clip in others]
    sevens = [item.media for item in moving(500)[300:] if item.entry.label == "7"]
    assert frechet_distance(features(classifier, noise), real) > 10 * near
    assert frechet_distance(features(classifier, still), real) > 2 * near
    assert frechet_distance(features(classifier, sevens), real) > 2 * near


def test_features_of_time(classifier: FrameClassifier) -> None:
    """The mean over frames, and their mean change: nothing for a still clip or a picture."""
    (item,) = moving(1)
    clip, picture = item.media, item.media[:, 0]
    seen = features(classifier, [picture])[0]
    assert torch.equal(seen[64:], torch.zeros(64))
    assert torch.allclose(features(classifier, [clip[:, :1].expand_as(clip)])[0], seen, atol=1e-6)
    each = features(classifier, [clip[:, t] for t in range(FRAMES)])[:, :64]
    assert torch.allclose(features(classifier, [clip])[0, :64], each.mean(0), atol=1e-5)
    assert torch.allclose(features(classifier, [clip])[0, 64:], each.diff(dim=0).abs().mean(0), atol=1e-5)
    assert features(classifier, [clip])[0, 64:].max() > 0.01


def test_a_seed_makes_the_same_classifier_and_leaves_the_random_state_alone() -> None:
    items = moving(20)
    state = torch.get_rng_state()
    one, same, other = (train_classifier(items, items[:2], CLASSES, steps=3, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(features(one, media(items)), features(same, media(items)))
    assert not torch.equal(features(one, media(items)), features(other, media(items)))


def test_large_frames_are_seen_smaller() -> None:
    """And frames that are not square stay so."""
    wide = [
        Item(entry=Entry(name=f"{n}", label="ab"[n % 2]), media=torch.rand(3, 2, 66, 132) * 2 - 1) for n in range(4)
    ]
    model = train_classifier(wide, wide, "ab", steps=2)
    shapes: list[torch.Size] = []
    model.trunk.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
    features(model, media(wide))
    assert shapes == [torch.Size([8, 3, 32, 64])]


def test_without_classes_pixels_are_compared() -> None:
    """Flat frames of 16×16, each in one of its colours: 8×8 means of them, and how much they change."""
    clips = torch.zeros(2, 3, 4, 16, 16)
    clips[0, 1] = torch.tensor([0.0, 0.4, 0.0, 0.4])[:, None, None]
    extractor = extractor_for("embedded")
    means, changes = features(extractor, clips).reshape(2, 2, 3, 64).unbind(1)
    assert torch.allclose(means[0], torch.tensor([0.0, 0.2, 0.0])[:, None].expand(3, 64), atol=1e-6)
    assert torch.allclose(changes[0], torch.tensor([0.0, 0.4, 0.0])[:, None].expand(3, 64), atol=1e-6)
    assert not means[1].any()
    assert not changes[1].any()
    assert features(extractor, clips[:, :, 0]).shape == (2, 2 * 3 * 64)  # pictures


# --- networks of others


class Plain(nn.Module):
    def forward(self, clips: Tensor) -> Tensor:
        return clips.mean([2, 3, 4])


class Keywords(nn.Module):
    """As the common I3D: pixels from 0 to 255, and features only where they are asked for."""

    def forward(
        self, clips: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> Tensor:
        seen = clips.mean([2, 3, 4])
        if rescale and resize and return_features:
            return seen
        return seen[:, :1]


class Flat(nn.Module):
    def forward(self, clips: Tensor) -> Tensor:
        return clips.mean([1, 2, 3, 4])


class Endless(nn.Module):
    def forward(self, clips: Tensor) -> Tensor:
        return clips.mean([2, 3, 4]) / 0


class Deep(nn.Module):
    """Takes sixteen frames or more."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv3d(3, 4, (16, 1, 1))

    def forward(self, clips: Tensor) -> Tensor:
        return self.layer(clips).mean([2, 3, 4])


def scripted(module: nn.Module, folder: Path) -> Path:
    path = folder / "network.pt"
    torch.jit.script(module).save(str(path))
    return path


@pytest.mark.parametrize(("module", "black", "white"), [(Plain(), -1.0, 1.0), (Keywords(), 0.0, 255.0)])
def test_torchscript_gets_the_pixels_and_keywords_that_it_knows(
    module: nn.Module, black: float, white: float, tmp_path: Path
) -> None:
    extractor = extractor_for(str(scripted(module, tmp_path)))
    clips = torch.stack([torch.full((1, 2, 4, 4), value) for value in (-1.0, 0.0, 1.0)])  # grey
    expected = torch.tensor([black, (black + white) / 2, white])[:, None].expand(3, 3)
    assert torch.allclose(extractor(clips), expected)
    assert extractor.name.startswith("TorchScript network.pt, sha256 ")
    coloured = clips.expand(-1, 3, -1, -1, -1).clone()
    coloured[:, 1] = -1
    assert torch.allclose(extractor(coloured)[:, 1], torch.tensor(black))
    assert torch.allclose(extractor(coloured)[:, 2], expected[:, 2])


@pytest.mark.parametrize(
    ("module", "reason"),
    [(Flat(), r"gave \(2,\) for 2 clips"), (Deep(), "cannot take clips of"), (Endless(), "finite")],
)
def test_torchscript_that_does_not_fit(module: nn.Module, reason: str, tmp_path: Path) -> None:
    path = scripted(module, tmp_path)
    with pytest.raises(UserError, match=reason) as caught:
        ScriptedExtractor(path)(torch.zeros(2, 3, 4, 8, 8))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_networks(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no network")
    (tmp_path / "folder").mkdir()
    for name in ("text.pt", "missing.pt", "folder", "missing"):
        with pytest.raises(UserError, match="--extractor") as caught:
            extractor_for(str(tmp_path / name))
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def tiny_videomae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.VideoMAEConfig(
        image_size=16, patch_size=8, num_frames=4, hidden_size=24, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("videomae")
    transformers.VideoMAEModel(config).save_pretrained(folder)
    return folder


def test_a_video_model_sees_frames_evenly_spread_and_normalised(tiny_videomae: Path, tmp_path: Path) -> None:
    from transformers import VideoMAEModel

    model = VideoMAEModel.from_pretrained(tiny_videomae).eval()
    extractor = extractor_for(str(tiny_videomae))
    assert isinstance(extractor, VideoModelExtractor)
    assert extractor.name == f"videomae {tiny_videomae}"
    clips = torch.rand(2, 3, 7, 16, 16) * 2 - 1
    with torch.no_grad():
        expected = model(pixel_values=clips[:, :, [0, 2, 4, 6]].transpose(1, 2)).last_hidden_state.mean(1)
        assert torch.allclose(
            extractor(clips), expected, atol=1e-5
        )  # with mean and deviation ½, pixels stay as they are
        grey = extractor(clips[:, :1])
        assert torch.allclose(grey, extractor(clips[:, :1].expand(-1, 3, -1, -1, -1)))
        large = torch.nn.functional.interpolate(clips.flatten(0, 1), 32).unflatten(0, (2, 3))  # each pixel four times
        assert extractor(large).shape == (2, 24)
        assert not torch.allclose(grey, expected, atol=1e-3)

    folder = tmp_path / "with-processor"
    folder.mkdir()
    for file in tiny_videomae.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean, "image_std": std}))
    with torch.no_grad():
        normal = ((clips + 1) / 2 - torch.tensor(mean).reshape(3, 1, 1, 1)) / torch.tensor(std).reshape(3, 1, 1, 1)
        expected = model(pixel_values=normal[:, :, [0, 2, 4, 6]].transpose(1, 2)).last_hidden_state.mean(1)
        assert torch.allclose(extractor_for(str(folder))(clips), expected, atol=1e-5)


def test_a_model_of_something_else(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"nor a video model of transformers \(.*image_size"):
        extractor_for(str(tmp_path))


# --- prediction


def test_psnr_and_ssim_of_the_predicted_frames_alone(painter: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever lies in the given frames does not count: 10 log10(2² / 0.2²) = 20 dB, and a mean over clips."""
    painter.tokenizer = ClipPatchesConfig(
        kind="clip-patches", patch=(2, 4, 4), channels=1, frames=FRAMES, size=(16, 16), frame_rate=10
    ).build()
    begin = torch.rand(1, 2, 16, 16) - 0.5
    clips = [torch.cat([begin, begin[:, 1:].expand(-1, 6, -1, -1) + step], dim=1) for step in (0.0, 0.02)]
    errors = [0.2, 0.02]

    def edited(_: Pipeline, edits: list[Edit], **options: Any) -> list[Tensor]:
        for edit, clip in zip(edits, clips, strict=True):
            assert torch.equal(edit.original[:, :2], clip[:, :2])
        return [torch.cat([clip[:, :2] + 9, clip[:, 2:] + e], dim=1) for clip, e in zip(clips, errors, strict=True)]

    monkeypatch.setattr(visual, "run_edits", edited)
    items = [Item(entry=Entry(name="clip", label="3"), media=clip) for clip in clips]
    figures = predict(painter, items, 2)
    assert (figures["clips"], figures["given_frames"], figures["predicted_frames"]) == (2, 2, 6)
    assert figures["psnr_db"] == pytest.approx((20 + 40) / 2, abs=1e-3)
    assert figures["repeated_psnr_db"] == pytest.approx((psnr_db(begin, begin) + 40) / 2, abs=1e-3)
    expected = [ssim(clip[:, 2:], clip[:, 2:] + e) for clip, e in zip(clips, errors, strict=True)]
    assert figures["ssim"] == pytest.approx(sum(expected) / 2)
    assert figures["ssim"] < figures["repeated_ssim"]


def test_given_frames_move_up_to_whole_tokens(painter: Pipeline) -> None:
    assert first_frames(painter) is None  # pictures
    with pytest.raises(UserError, match="--given 1"):
        first_frames(painter, 1)
    size: dict[str, Any] = {"size": (16, 16), "frame_rate": 10}
    painter.tokenizer = ClipPatchesConfig(kind="clip-patches", patch=(2, 4, 4), frames=12, **size).build()
    assert [first_frames(painter, given) for given in (None, 1, 2, 3, 9, 10)] == [4, 2, 2, 4, 10, 10]
    with pytest.raises(UserError, match=r"--given 11: .* 12 frames long, and tokens 2"):
        first_frames(painter, 11)
    # the first latent of a causal VAE stands for one frame: 1, 5 and 9
    vae = ClipVAEConfig(kind="clip-vae", model="none", channels=4, stride=(4, 8, 8), frames=9, **size)
    painter.tokenizer = vae.build()
    assert [first_frames(painter, given) for given in (None, 1, 2, 5)] == [5, 1, 5, 5]
    painter.tokenizer = ClipPatchesConfig(kind="clip-patches", patch=(4, 4, 4), frames=4, **size).build()
    assert first_frames(painter) is None
    painter.tokenizer = ClipPatchesConfig(kind="clip-patches", patch=(4, 4, 4), frames=8, vary=True, **size).build()
    with pytest.raises(UserError, match=r"many sizes .* --set tokenizer\.vary=false"):
        first_frames(painter)


# --- whole evaluations


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of moving digits, hardly trained."""
    pytest.importorskip("av")
    folder = tmp_path_factory.mktemp("moving")
    noisy = "head.predicts=velocity"  # untrained, it leaves the noise; predicting the data it would give the mean
    recipe = load_recipe("moving-digits", [*CLIPS, *SMALL, noisy, f"data.root={folder}"])
    train(recipe, folder / "run")
    return folder / "run"


def test_a_run_of_clips(run: Path) -> None:
    pipeline = Pipeline.load(run)
    progress: list[tuple[int, int]] = []
    figures = evaluate_run(
        run, pipeline, count=30, given=3, seed=5, command="here", progress=lambda *at: progress.append(at)
    )
    assert json.loads(json.dumps(figures)) == figures
    assert (figures["items"], figures["frames"], figures["seed"], figures["command"]) == (30, 8, 5, "here")
    assert figures["extractor"].startswith("embedded: frame classifier trained on 90 items for ")
    real, prediction = figures["real"], figures["prediction"]
    assert (real["training_items"], real["held_out_items"]) == (30, 30)
    assert real["frame_accuracy"] > 0.5
    assert figures["frame_accuracy"] < real["frame_accuracy"] / 2
    assert figures["frechet_distance"] > 3 * real["frechet_distance"]
    assert figures["seconds_per_item"] > 0
    assert (prediction["clips"], prediction["given_frames"], prediction["predicted_frames"]) == (30, 4, 4)
    assert 0 < prediction["psnr_db"] < prediction["repeated_psnr_db"]
    assert prediction["ssim"] < prediction["repeated_ssim"] < 1
    assert progress == sorted(progress)
    assert progress[-1] == (60, 60)

    held_out = pipeline.recipe.data.build_held_out()
    clips = [held_out.read(n).media for n in spread(30, len(held_out))]
    repeated = [psnr_db(clip[:, 4:], clip[:, 3:4].expand(-1, 4, -1, -1)) for clip in clips]
    assert prediction["repeated_psnr_db"] == pytest.approx(sum(repeated) / 30)

    console = Console(width=100)
    with console.capture() as capture:
        console.print(report(figures))
    shown = re.sub(r"\s+", " ", capture.get())
    assert f"│ real: frame accuracy │ {real['frame_accuracy']:.1%} │" in shown
    assert f"│ prediction: repeated ssim │ {prediction['repeated_ssim']:.3g} │" in shown
    assert "│ prediction: given frames │ 4 │" in shown


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classifier learns for 50 steps only."""
    monkeypatch.setattr("djepa_mm.evaluate.report.train_classifier", partial(train_classifier, steps=50))


@pytest.mark.usefixtures("quickly")
def test_another_extractor(run: Path, tmp_path: Path) -> None:
    """Classes are still told by the classifier; the distance is over the other's features."""
    pipeline = Pipeline.load(run)
    figures = evaluate_run(run, pipeline, count=4, extractor=str(scripted(Plain(), tmp_path)))
    assert figures["extractor"].startswith("TorchScript network.pt")
    assert 0 <= figures["frechet_distance"] < 10  # means of pixels
    assert figures["real"]["frame_accuracy"] > 0.1
    assert figures["prediction"]["given_frames"] == 2


@pytest.mark.usefixtures("quickly")
def test_the_command_line(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def verb(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["djepa-mm", "evaluate", str(run), *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == (2 if "--given" in arguments or "--prompts" in arguments else 0)
        out, err = capsys.readouterr()
        return out + err

    out = tmp_path / "figures.json"
    network = str(scripted(Plain(), tmp_path))
    assert "frechet distance" in verb("--count", "3", "--extractor", network, "--out", str(out))
    figures = json.loads(out.read_text())
    assert (figures["items"], len(figures["sha256"])) == (3, 64)
    assert verb("--given", "7").strip() == (
        "djepa-mm: --given 7: this model's items are 8 frames long, and tokens 2; leave at least one token to predict"
    )
    (tmp_path / "texts.txt").write_text("one\n")
    assert "--prompts are for speech" in verb("--prompts", str(tmp_path / "texts.txt"))


def test_pictures(painter: Pipeline) -> None:
    """Clips of one frame. The same seed gives the same figures; real pictures are far better than untrained ones."""
    held_out, known = Digits(*load_digits("test")), Digits(*load_digits("train"))
    learning = read_items(painter, known, learned(known, 50, 400))
    classifier = train_classifier(learning, [held_out.read(n) for n in range(40)], CLASSES, steps=150)
    first, again = (
        evaluate_visual(painter, held_out, known, classifier, count=50, classifier=classifier) for _ in range(2)
    )
    assert {**again, "seconds_per_item": 0} == {**first, "seconds_per_item": 0}
    assert first["prediction"] is None
    assert first["frames"] == 1
    real = first["real"]
    assert real["frame_accuracy"] == real["clip_accuracy"]
    assert real["frame_accuracy"] is not None
    assert real["frame_accuracy"] > 0.8
    assert first["frame_accuracy"] is not None
    assert first["frame_accuracy"] < 0.4
    assert first["frechet_distance"] > 5 * real["frechet_distance"]


def test_without_classes(painter: Pipeline, tmp_path: Path) -> None:
    unconditional = load_recipe("digits", ["condition={kind: none}", "sample.guidance=1"]).condition
    painter.condition = unconditional.build()
    held_out, known = Digits(*load_digits("test")), Digits(*load_digits("train"))
    extractor = extractor_for(str(scripted(Plain(), tmp_path)))
    figures = evaluate_visual(painter, held_out, known, extractor, count=4)
    assert figures["frame_accuracy"] is figures["clip_accuracy"] is figures["real"]["frame_accuracy"] is None
    judge = train_classifier([known.read(n) for n in range(20)], [held_out.read(0)], CLASSES, steps=2)
    figures = evaluate_visual(painter, held_out, known, extractor, count=4, classifier=judge)
    assert figures["frame_accuracy"] is figures["clip_accuracy"] is None  # no class was asked for
    assert figures["real"]["frame_accuracy"] is not None


def test_mistakes(painter: Pipeline, speaker: Pipeline, tmp_path: Path) -> None:
    held_out, known = Digits(*load_digits("test")), Digits(*load_digits("train"))
    extractor = extractor_for(str(scripted(Plain(), tmp_path)))
    with pytest.raises(UserError, match="two items or more"):
        evaluate_visual(painter, held_out, known, extractor, count=1)
    painter.recipe = load_recipe("digits", ["data.split=all"])
    with pytest.raises(UserError, match=r"nothing is held out: train with data\.split train"):
        evaluate_run(tmp_path, painter)
    with pytest.raises(UserError, match="--given 2: frames are for clips"):
        evaluate_run(tmp_path, speaker, given=2)
    painter.condition = painter.recipe.condition.build()
    painter.condition.load_state({"classes": ["zero", "one"]})
    with pytest.raises(UserError, match=r"measure with: digits/\d+: its class '\d' is none that the model knows"):
        list(read_items(painter, Digits(*load_digits("test")), range(10)))


@pytest.mark.parametrize(
    ("source", "options", "key"),
    [
        ("image-folder", {"root": "x", "size": [8, 8]}, "held_out"),
        ("clips", {"root": "x", "size": [8, 8]}, "held_out"),
        ("ljspeech", {"root": "x"}, "held_out"),
        ("digits", {"split": "all"}, "split"),
        ("torchvision", {"dataset": "mnist", "root": "x", "size": [8, 8], "split": "test"}, "split"),
        ("ucf101", {"root": "x", "split": "test"}, "split"),
    ],
)
def test_a_corpus_that_holds_nothing_out_is_told_its_own_key(
    painter: Pipeline, source: str, options: dict[str, Any], key: str
) -> None:
    painter.recipe = load_recipe("digits", {"data": {"source": source, **options}})
    with pytest.raises(UserError, match=rf"nothing is held out: train with data\.{key} "):
        report_module._held_out(painter)
    assert key in type(painter.recipe.data).model_fields


# --- which items


class Partly(Digits):
    """Pictures of which two cannot be used."""

    def read(self, index: int) -> Item:
        if index == 0:
            raise BrokenItem("torn")
        item = super().read(index)
        return replace(item, media=torch.zeros(1, 9, 9)) if index == 1 else item


def test_items_that_cannot_be_used_are_left_out(painter: Pipeline) -> None:
    source = Partly(torch.zeros(4, 1, 8, 8), [5, 6, 7, 8])
    with pytest.warns(Notice, match="^2 items are left out, such as digits/0: torn$"):
        assert [item.entry.label for item in read_items(painter, source, range(4))] == ["7", "8"]
    with pytest.raises(UserError, match="measure with: digits/1: the tokenizer takes pictures"):
        list(read_items(painter, source, [1, 0]))
    painter.condition = painter.recipe.condition.build()
    painter.condition.load_state({"classes": ["8", "9"]})
    assert [item.entry.label for item in read_items(painter, source, range(4))] == ["8"]


@pytest.mark.parametrize(("total", "count"), [(100, 10), (10, 10), (7, 10), (100, 50)])
def test_the_classifier_does_not_learn_from_what_it_compares(total: int, count: int) -> None:
    source = Digits(torch.zeros(total, 1, 8, 8), [0] * total)
    compared, others = baseline_items(source, count), learned(source, count, 30)
    assert len(compared) == min(count, total // 2)
    assert len(others) == min(30, total - len(compared))
    assert not set(compared) & set(others)
    assert len(set(compared + others)) == len(compared) + len(others)
    assert max(compared + others) < total


def test_items_are_spread_over_a_corpus_that_lies_in_order() -> None:
    assert spread(4, 8) == [0, 2, 4, 6]
    assert spread(9, 3) == [0, 1, 2]
    choose: Callable[[int], int] = lambda n: spread(200, 1000)[n] // 100  # noqa: E731  (a class is a hundred)
    assert [sum(choose(n) == label for n in range(200)) for label in range(10)] == [20] * 10


# --- folders of one's own


def test_a_run_finds_its_pictures_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its data.root is relative to where it was trained, also when all of that moves; without classes, by pixels."""
    home, away = tmp_path / "home", tmp_path / "away"
    (home / "pictures").mkdir(parents=True)
    away.mkdir()
    for n in range(60):
        Image.new("L", (8, 8), 4 * n).save(home / "pictures" / f"{n:02d}.png")
    monkeypatch.chdir(home)
    sets = [
        "data.root=pictures", "data.size=[8, 8]", "data.channels=1", "data.held_out=0.2", "condition.kind=none",
        "tokenizer={kind: patches, patch: 4, channels: 1, size: [8, 8]}", "sample.guidance=1", "run.samples=1", *SMALL,
    ]  # fmt: skip
    train(load_recipe("pictures", sets), Path("runs/mine"))

    def evaluate(run: Path, *words: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["djepa-mm", "evaluate", str(run), "--count", "4", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), (out + err).strip()

    monkeypatch.chdir(away)
    code, told = evaluate(home / "runs" / "mine")
    assert code == 0
    assert "pixels: frames of 8×8" in " ".join(told.split())
    home.rename(tmp_path / "moved")
    assert evaluate(tmp_path / "moved" / "runs" / "mine")[0] == 0
    (tmp_path / "moved" / "pictures").rename(away / "pictures")
    assert evaluate(tmp_path / "moved" / "runs" / "mine")[0] == 0  # here, and not there
    (away / "pictures").rename(away / "others")
    assert evaluate(tmp_path / "moved" / "runs" / "mine", "--set", "data.root=others")[0] == 0
    code, told = evaluate(tmp_path / "moved" / "runs" / "mine")
    wanted = f"djepa-mm: data.root: no folder at {tmp_path / 'moved' / 'pictures'}; give a folder of pictures or of"
    assert (code, told) == (2, f"{wanted} class folders")


def test_a_broken_held_out_recording_is_left_out(
    speaker: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wavs").mkdir()
    texts = [
        " ".join(("one", "two", "three", "four", "five")[int(digit) % 5] for digit in f"{n:03d}") for n in range(40)
    ]
    (tmp_path / "metadata.csv").write_text("".join(f"c{n:02d}|{text}\n" for n, text in enumerate(texts)))
    rate_hz = speaker.tokenizer.media.sample_rate_hz  # type: ignore[attr-defined]
    for n in range(len(texts)):
        soundfile.write(tmp_path / "wavs" / f"c{n:02d}.wav", np.full(rate_hz, n / 100), rate_hz)
    data = LJSpeechConfig(source="ljspeech", root=str(tmp_path), sample_rate_hz=rate_hz, held_out=0.4)
    held_out = data.build_held_out()
    assert held_out is not None
    first, second = held_out.entry(0), held_out.entry(1)
    assert first.path is not None
    first.path.write_bytes(first.path.read_bytes()[:1000])
    speaker.recipe = speaker.recipe.model_copy(update={"data": data})
    asked: list[Any] = []

    def figures(pipeline: Pipeline, texts: list[str], recordings: list[Tensor], *rest: Any) -> dict[str, Any]:
        asked.extend([texts, recordings])
        return {}

    monkeypatch.setattr(report_module, "evaluate_speech", figures)
    monkeypatch.setattr(report_module, "recogniser_for", lambda *_: None)
    with pytest.warns(Notice, match=rf"^1 items are left out, such as {first.name}: cut short"):
        report_module._speech(speaker, (), 3, "auto", speaker.sampler, 0, None)
    assert asked[0] == [held_out.entry(n).text for n in (1, 2, 3)]
    assert asked[1][0].mean().item() == pytest.approx(int(second.name[1:]) / 100, abs=1e-4)
