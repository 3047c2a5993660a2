"""Captions as a condition: their tokens, the null one, what requests may say, and trainings by real encoders."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support import inside
from text_encoders.test_pretrained import KINDS, write_encoder

import djepa_mm
from djepa_mm.conditions.caption import CaptionCondition, CaptionConfig, CaptionEmbedder, caption_condition
from djepa_mm.errors import BrokenItem, Notice
from djepa_mm.recipe.load import recipe_data
from djepa_mm.types import Entry, UserError

WORDS = ("a", "red", "blue", "circle", "square")
CAPTIONS = ["a red circle", "a blue square", "a red square", "a blue circle"]


def captions(**options: Any) -> CaptionCondition:
    encoder = {"kind": "words", "vocabulary": WORDS}
    return CaptionConfig.model_validate({"kind": "caption", "encoder": encoder, **options}).build()


# --- tokens


def test_tokens_lie_before_the_media_as_far_in_short_texts_as_in_long_ones() -> None:
    condition = captions().encode(["red", "a blue circle"], [4, 9])
    assert condition.values.tolist() == [[1, 0, 0], [0, 2, 3]]
    assert condition.valid.tolist() == [[True, False, False], [True] * 3]
    assert condition.positions[0].tolist() == condition.positions[1].tolist() == [[-1, 0, 0], [-2, 0, 0], [-3, 0, 0]]
    features = caption_condition([torch.ones(1, 4), torch.ones(3, 4)])
    assert features.values.shape == (2, 3, 4)
    assert features.valid.tolist() == condition.valid.tolist()


@pytest.mark.parametrize("pool", ["mean", "last", None])
@pytest.mark.parametrize("features", [False, True])
def test_padding_changes_nothing_and_a_dropped_text_is_one_token(pool: Any, features: bool) -> None:
    inputs = torch.nn.Linear(4, 8) if features else torch.nn.Embedding(5, 8)
    embedder = CaptionEmbedder(inputs, 8, 3, pool)
    for parameter in embedder.parameters():
        torch.nn.init.normal_(parameter)
    texts = [torch.randn(n, 4).bfloat16() if features else torch.randint(5, (n,)) for n in (2, 5, 3)]
    together = embedder(caption_condition(texts), torch.tensor([False, False, True]))
    assert together.valid.sum(1).tolist() == [5, 8, 4]
    alone = [embedder(caption_condition([t]), torch.tensor([n == 2])) for n, t in enumerate(texts)]
    for n, one in enumerate(alone):
        torch.testing.assert_close(together.tokens[n][together.valid[n]], one.tokens[0][one.valid[0]])
    assert torch.equal(together.tokens[2, 3], embedder.null)
    other = embedder(caption_condition([texts[1]]), torch.tensor([True]))
    torch.testing.assert_close(other.tokens[0][other.valid[0]], together.tokens[2][together.valid[2]])
    told = (together.tokens[0, :3] - together.tokens[1, :3]).abs().max() > 1e-3
    assert told == (pool is not None), "the buffer tokens know of the text where it is pooled"


# --- the corpus and requests


def test_captions_of_a_corpus() -> None:
    kind = captions()
    assert kind.read(Entry(name="0", text="  A red \n circle, ok?")) == "a red circle"
    for text, reason in (
        (None, "it has no text"),
        (" ", "its text is empty"),
        ("green", "nothing of its text 'green'"),
    ):
        with pytest.raises(BrokenItem, match=reason):
            kind.read(Entry(name="1", text=text))
    with pytest.raises(
        BrokenItem, match=r"^it has no text \(captions\.jsonl, line 3: not UTF-8\), and condition\.kind is"
    ):
        kind.read(Entry(name="1", untold="captions.jsonl, line 3: not UTF-8"))
    entries = [Entry(name=str(n), text=text) for n, text in enumerate(["a red cat", "a cat", "a red cat", "red"])]
    kind = captions(max_tokens=2)
    assert kind.summary([*entries, Entry(name="4", text="a red red")]) == {
        "captions": "5, of them 4 different", "left out of captions": "'cat' in 3", "captions cut to 2 tokens": "1"
    }  # fmt: skip


def test_requests() -> None:
    kind = captions(max_tokens=2)
    assert kind.parse({"text": "red circle"}) == "red circle"
    assert kind.negative({"text": "red"}) is None
    assert kind.negative({"text": "red", "negative": ""}) is None
    assert kind.negative({"text": "red", "negative": "Blue"}) == "blue"
    with pytest.warns(Notice, match=r"left out of 'a green circle', for the model does not know it: green"):
        kind.parse({"text": "a green circle"})
    for _ in range(2):
        with pytest.warns(Notice, match="'a red circle' has 3 tokens, of which the first 2 are read"):
            kind.parse({"text": "a red circle"})
    assert len(kind.encode(["a red circle"], [1]).values[0]) == 2
    for request, reason in (
        ({}, "this model needs a text"),
        ({"text": ""}, "--text: the text is empty: give at least one word"),
        ({"text": 7}, "--text 7: expected words, not int"),
        ({"text": "green"}, "--text 'green': the model knows nothing of it"),
        ({"text": "red", "class": "7"}, "--class: this model takes no class; it knows text, negative"),
    ):
        with pytest.raises(UserError, match=reason):
            kind.parse(request)
    with pytest.raises(UserError, match="--negative 'green': the model knows nothing"):
        kind.negative({"negative": "green"})


def test_recipes_of_captions() -> None:
    caption = "condition={kind: caption, encoder: {kind: words, vocabulary: [red]}}"
    for override, reason in (
        (
            "model={preset: tiny, positions: rotary, axes: [h, w]}",
            "kind caption lies on the axis t: add it to model.axes",
        ),
        (
            "condition={kind: caption, encoder: {kind: t6}}",
            r"condition\.encoder\.kind: expected 'words', .*, got 't6'",
        ),
        ("condition={kind: caption, encoder: {kind: t5}}", r"condition\.encoder\.model: this key is required"),
        ("condition={kind: caption}", r"condition\.encoder: this key is required"),
        ("condition={kind: caption, encoder: {kind: words, vocabularies: [a]}}", r"did you mean .vocabulary."),
    ):
        with pytest.raises(UserError, match=reason):
            djepa_mm.load_recipe("digits", [caption, override])
    for positions in ("learned", "rotary", "both"):
        djepa_mm.load_recipe("digits", [caption, f"model.positions={positions}"])


# --- trainings


def write_shard(path: Path) -> Path:
    """16 pictures with captions."""
    with tarfile.open(path, "w") as tar:
        for n in range(16):
            picture = io.BytesIO()
            colour = (220, 30, 30) if "red" in CAPTIONS[n % 4] else (30, 30, 220)
            Image.new("RGB", (8, 8), colour).save(picture, "png")
            for name, content in ((f"{n:02}.png", picture.getvalue()), (f"{n:02}.txt", CAPTIONS[n % 4].encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


SMALL = {
    "tokenizer": {"kind": "patches", "patch": 4, "size": [8, 8], "vary": True}, "model.streams": "two",
    "model.positions": "vope", "model.field": 4.0, "model.width": 32, "model.depth": 1, "model.heads": 2,
    "head.kind": "flow", "head.width": 16, "head.blocks": 1, "head.steps": 2, "head.time_shift": 4.5,
    "batch.size": 8, "batch.cache": False, "sample.steps": 2, "sample.guidance": 2.0, "optim.steps": 2,
    "optim.minutes": None, "run.sample_every": None, "run.samples": 3, "run.texts": CAPTIONS[:2],
}  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    shard = write_shard(tmp_path_factory.mktemp("shards") / "0.tar")
    return {"source": "shards", "urls": str(shard), "media": "picture", "size": [8, 8], "readers": 2, "shuffle": 4}


@pytest.fixture(scope="module")
def run(corpus: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of words."""
    condition = {"kind": "caption", "encoder": {"kind": "words", "vocabulary": WORDS}, "drop": 0.5}
    recipe = djepa_mm.load_recipe("digits", {"data": corpus, "condition": condition, **SMALL})
    outcome = djepa_mm.train(recipe, tmp_path_factory.mktemp("runs") / "words", progress=False)
    assert (outcome.run / "samples" / "step-00000002.png").is_file()
    return outcome.run


@pytest.mark.parametrize("kind", KINDS)
def test_a_real_encoder_trains_and_generates(kind: str, corpus: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    encoder = {"kind": kind, "model": str(write_encoder(tmp_path / kind, kind)), "precision": "bf16"}
    condition = {"kind": "caption", "encoder": encoder}
    exact = {"optim.precision": "fp32"}  # bf16 rounds differently in another batch, where a processor is fast at it
    recipe = djepa_mm.load_recipe("digits", {"data": corpus, "condition": condition, **SMALL, **exact})
    model = djepa_mm.load(djepa_mm.train(recipe, tmp_path / "run", progress=False).run)
    names = {name for name, _ in model.pipeline.model.averaged.named_parameters() if name.startswith("embedder.")}
    assert names == {
        "embedder.buffer", "embedder.null", "embedder.inputs.weight", "embedder.inputs.bias", "embedder.whole.0.weight",
        "embedder.whole.0.bias", "embedder.whole.1.weight", "embedder.whole.1.bias",
    }  # fmt: skip
    for parameter in model.pipeline.model.averaged.parameters():  # a head of two steps gives hardly more than noise
        torch.nn.init.normal_(parameter, std=0.1)
    one, other = model.generate(text=["a red circle", "a blue square"], size=(8, 16))
    assert one.media.shape == (3, 8, 16)
    assert one.title == "a red circle"
    alone = model.generate(text="a red circle", size=(8, 16))[0].media
    torch.testing.assert_close(alone, one.media, atol=1e-3, rtol=1e-3)
    assert not torch.equal(one.media, other.media)


def test_other_weights_at_the_same_place_are_refused(corpus: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = write_encoder(tmp_path / "t5", "t5")
    condition = {"kind": "caption", "encoder": {"kind": "t5", "model": str(folder)}}
    recipe = djepa_mm.load_recipe("digits", {"data": corpus, "condition": condition, **SMALL})
    run = djepa_mm.train(recipe, tmp_path / "run", progress=False).run
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert djepa_mm.load_recipe(run / "recipe.yaml").condition.encoder.sha256 == digest
    painted = djepa_mm.load(run).generate(text="a red circle", size=(8, 8))[0].media

    weights = load_file(folder / "model.safetensors")
    name = "encoder.final_layer_norm.weight"
    save_file({**weights, name: weights[name] * 2}, folder / "model.safetensors", {"format": "pt"})
    said = (
        rf"^condition\.encoder\.sha256: the weights in '[^\n]*t5' are \w{{12}}…, not {digest[:12]}…; name the encoder "
        r"that was meant in condition\.encoder\.model, or set the hash to null to take this one$"
    )
    with pytest.raises(UserError, match=said):
        djepa_mm.load(run).generate(text="a red circle", size=(8, 8))
    other = djepa_mm.load(run, ["condition.encoder.sha256=null"]).generate(text="a red circle", size=(8, 8))[0].media
    assert other.shape == painted.shape
    with pytest.raises(UserError, match=said):
        djepa_mm.train(djepa_mm.load_recipe(run / "recipe.yaml"), tmp_path / "again", progress=False)
    differs = rf"its condition\.encoder\.sha256 is '{digest}', here '\w{{64}}'; make them agree$"
    with pytest.raises(UserError, match=rf"^--resume [^\n]*: {differs}"):
        djepa_mm.train(recipe, run, resume=True, progress=False)
    with pytest.raises(UserError, match=rf"^--from [^\n]*: {differs}"):
        djepa_mm.train(recipe, tmp_path / "from", start=run, progress=False)

    for saved in run.rglob("recipe.yaml"):  # as older runs have it
        saved.write_text("".join(line for line in saved.open() if "sha256" not in line))
    assert torch.equal(djepa_mm.load(run).generate(text="a red circle", size=(8, 8))[0].media, other)
    longer = djepa_mm.load_recipe(recipe_data(recipe), ["optim.steps=3"])
    assert djepa_mm.train(longer, run, resume=True, progress=False).step == 3


def test_a_negative_text_takes_the_place_of_the_null_condition(run: Path) -> None:
    model = djepa_mm.load(run)
    for parameter in model.pipeline.model.averaged.parameters():
        torch.nn.init.normal_(parameter, std=0.1)

    def painted(**options: Any) -> torch.Tensor:
        return model.generate(text="a red circle", **options)[0].media

    plain, away = painted(), painted(negative="blue")
    assert torch.equal(painted(negative=""), plain)
    assert not torch.equal(plain, away)
    torch.testing.assert_close(painted(negative="a red circle"), painted(guidance=1), atol=1e-3, rtol=1e-3)
    with pytest.warns(Notice, match="--negative: guidance 1 leads away from nothing"):
        assert torch.equal(painted(guidance=1, negative="blue"), painted(guidance=1))
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:, 4:] = True
    edits = [model.edit(plain, text="a red circle", mask=mask, negative=text).media for text in (None, "blue")]
    assert torch.equal(edits[0][..., :4], edits[1][..., :4])
    assert not torch.equal(*edits)


def test_what_is_asked_for_on_the_command_line(run: Path, tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "out"))
    done = inside(
        *("generate", str(run), "--text", "a red circle", "--negative", "blue", "--offset", "0.1,-0.2"),
        *("--size", "16x8", *out),
    )
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "out" / "0000-a-red-circle.png") as picture:
        assert picture.size == (16, 8)
    for arguments, reason in (
        (["--text", " "], "--text: the text is empty"),
        ([], "this model needs a text"),
        (["--text", "red", "--offset", "left"], "--offset left: expected a share such as 0.2"),
        (["--text", "red", "--offset", "7"], "--offset 7.0: expected one number, or two, from -1 to 1"),
        (["--text", "red", "--rate", "2"], "--rate: this model takes no rate; it knows text, negative"),
    ):
        failed = inside("generate", str(run), *arguments, *out)
        assert failed.returncode == 2
        assert reason in failed.stderr
        assert "Traceback" not in failed.stderr


def test_a_model_of_classes_takes_no_negative(painter: Any, tmp_path: Path) -> None:
    model = djepa_mm.door.Model(painter, tmp_path)
    for class_ in (None, 7):
        with pytest.raises(UserError, match=r"^--negative: this model takes no negative; it knows class$"):
            model.generate(class_=class_, negative="blurred")


def test_an_encoder_that_is_not_there_is_told_of_before_training(corpus: dict[str, Any], tmp_path: Path) -> None:
    condition = {"kind": "caption", "encoder": {"kind": "t5", "model": str(tmp_path / "t5"), "width": 16}}
    recipe = djepa_mm.load_recipe("digits", {"data": corpus, "condition": condition, **SMALL})
    with pytest.raises(UserError, match=r"^condition\.encoder\.model: cannot load a T5 from '[^\n]*t5'"):
        djepa_mm.train(recipe, tmp_path / "run", progress=False)
