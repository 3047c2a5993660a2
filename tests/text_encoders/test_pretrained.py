"""Frozen encoders: real classes of transformers, tiny and never trained."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from safetensors.torch import load_file, save_file

from djepa_mm.errors import Notice
from djepa_mm.text_encoders import pretrained
from djepa_mm.text_encoders.pretrained import CLIPConfig, Pretrained, SentenceConfig, T5Config
from djepa_mm.types import UserError

transformers = pytest.importorskip("transformers")
WORDS = ["a", "red", "blue", "green", "circle", "square", "two", "of", "left"]
END = 11


def write_tokenizer(folder: Path, **options: int) -> None:
    """Words to numbers, and an end mark."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    numbers = {word: n for n, word in enumerate(["<pad>", "<unk>", *WORDS, "</s>"])}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    marks = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks, **options).save_pretrained(folder)


def write_encoder(folder: Path, kind: str, width: int = 16) -> Path:
    """A T5, a CLIP's text model or a sentence encoder (BERT) with its tokenizer."""
    torch.manual_seed(0)
    size = {"vocab_size": 12, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 1}
    if kind == "t5":
        t5 = transformers.T5Config(vocab_size=12, d_model=width, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
        transformers.T5EncoderModel(t5).save_pretrained(folder)
    elif kind == "clip":
        clip = transformers.CLIPTextConfig(**size, hidden_size=width, max_position_embeddings=9, eos_token_id=END)
        transformers.CLIPTextModel(clip).save_pretrained(folder)
    else:
        bert = transformers.BertConfig(**size, hidden_size=width, max_position_embeddings=40)
        transformers.BertModel(bert).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


KINDS = {"t5": T5Config, "clip": CLIPConfig, "sentence": SentenceConfig}


def build(kind: str, folder: Path | str, most: int = 256, **options: object) -> Pretrained:
    return KINDS[kind](kind=kind, model=str(folder), **options).build(most)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_the_networks_own(kind: str, tmp_path: Path) -> None:
    encoder = build(kind, write_encoder(tmp_path, kind), precision="fp32")
    assert encoder.width == 16
    assert "network" not in vars(encoder), "weights are loaded at the first text"
    short, long = encoder.encode(["red circle", "a blue square left of a"])
    assert (short.shape, long.shape) == ((3, 16), (7, 16))
    whole = encoder.network(input_ids=torch.tensor([encoder.ids("red circle")]))
    torch.testing.assert_close(short, whole.last_hidden_state[0], atol=1e-5, rtol=1e-4)
    if kind == "clip":  # its last token is what CLIP pools
        torch.testing.assert_close(short[-1], whole.pooler_output[0], atol=1e-5, rtol=1e-4)
    assert not any(p.requires_grad for p in encoder.network.parameters())
    module = encoder.module(8)
    assert module(short[None]).shape == (1, 3, 8)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_text_is_encoded_once_and_the_same_whatever_is_beside_it(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [" ".join(WORDS[: 1 + n % 8]) for n in range(19)]
    folder = write_encoder(tmp_path, "t5", width=64)
    together, alone = (build("t5", folder, precision=precision) for _ in range(2))
    runs: list[int] = []
    forward = together.network.forward
    monkeypatch.setattr(together.network, "forward", lambda **inputs: runs.append(1) or forward(**inputs))
    found = together.encode(texts)
    assert found[0].dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
    assert len(runs) == 1
    together.encode(texts[::-1])
    assert len(runs) == 1
    for text, features in zip(texts, found, strict=True):
        assert torch.equal(alone.encode([text])[0], features)
    monkeypatch.setattr(pretrained, "KEPT_BYTES", 3000)
    together.encode(["two of", "left of"])
    assert together.kept_bytes == sum(one.nbytes for one in together.kept.values()) <= 3000
    assert list(together.kept)[-1] == "left of"


def test_texts_are_cut_at_what_the_network_or_the_recipe_takes_and_keep_their_end(tmp_path: Path) -> None:
    text = " ".join(WORDS * 3)
    for kind, most, expected in (("clip", 256, 9), ("t5", 5, 5), ("sentence", 256, 28)):
        encoder = build(kind, write_encoder(tmp_path / kind, kind), most)
        encoder.bind(None)
        ids = encoder.ids(text)
        if expected < len(ids):
            with pytest.warns(Notice, match=rf"'a red blue .* has 28 tokens, of which the first {expected} are read"):
                (features,) = encoder.encode([text])
        else:
            (features,) = encoder.encode([text])
        assert len(features) == expected
        assert encoder.shorten(ids)[-1] == ids[-1] == END


def test_the_hash_is_of_the_files_of_weights(tmp_path: Path) -> None:
    whole = write_encoder(tmp_path / "whole", "t5")
    single = hashlib.sha256((whole / "model.safetensors").read_bytes()).hexdigest()
    assert build("t5", whole).weights_hash == single
    assert T5Config(kind="t5", model=str(whole)).pinned().sha256 == single
    cut = write_encoder(tmp_path / "cut", "t5")
    network = transformers.T5EncoderModel.from_pretrained(cut)
    (cut / "model.safetensors").unlink()
    network.save_pretrained(cut, max_shard_size="4KB")
    (cut / "other").mkdir()
    (cut / "other" / "model.safetensors").write_bytes(b"which nobody loads")
    parts = sorted(cut.glob("model-*.safetensors"))
    assert len(parts) > 1
    assert build("t5", cut).weights_hash == hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()
    for part in parts:
        part.unlink()
    (cut / "model.safetensors.index.json").unlink()
    assert build("t5", cut).weights_hash is None
    with pytest.raises(
        UserError, match=r"^condition\.encoder\.sha256: the weights in .* have no safetensors that could be"
    ):
        _ = build("t5", cut, sha256=single).weights_hash
    with pytest.raises(UserError, match=r"^condition\.encoder\.model: cannot load a T5 from '/nowhere/t5'"):
        T5Config(kind="t5", model="/nowhere/t5").pinned()


def test_without_a_network_a_name_on_the_hub_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        def head(self, url: str, timeout: float) -> None:
            asked.append((url, timeout))
            if not there:
                raise OSError("no network")

    def sleep(seconds: float) -> NoReturn:
        raise AssertionError(f"it waits for {seconds} s to try again")

    asked: list[tuple[str, float]] = []
    there = False
    monkeypatch.setattr("huggingface_hub.get_session", Session)
    monkeypatch.setattr(time, "sleep", sleep)
    for ask in (lambda one: one.bind(None), lambda one: one.encode(["red"]), lambda one: one.weights_hash):
        with pytest.raises(
            UserError, match=r"^condition\.encoder\.model: cannot load a T5 from 'nobody/t5' [^\n]*folder or"
        ):
            ask(build("t5", "nobody/t5"))
    assert asked == [("https://huggingface.co", 5.0)] * 3
    there = True
    assert build("t5", "nobody/t5").reach == {}, "with a network all is as transformers has it"


def test_what_is_no_encoder_of_texts_is_one_line(tmp_path: Path) -> None:
    for kind in KINDS:
        write_encoder(tmp_path / kind, kind)
    pickled = write_encoder(tmp_path / "pickled", "t5")
    weights = transformers.T5EncoderModel.from_pretrained(pickled).state_dict()
    (pickled / "model.safetensors").unlink()
    torch.save(weights, pickled / "pytorch_model.bin")
    lacking = write_encoder(tmp_path / "lacking", "sentence")
    kept = {name: t for name, t in load_file(lacking / "model.safetensors").items() if "attention" not in name}
    save_file(kept, lacking / "model.safetensors", {"format": "pt"})
    vision = tmp_path / "vision"
    transformers.ViTConfig(hidden_size=16).save_pretrained(vision)
    write_tokenizer(vision)
    untold = write_encoder(tmp_path / "untold", "t5")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (untold / name).unlink()
    for kind, folder, reason in (
        ("t5", "/nowhere/t5", "a T5 from '/nowhere/t5'"),
        ("t5", pickled, "model.safetensors"),
        ("t5", tmp_path / "sentence", "it is a model of the type 'bert'"),
        ("clip", tmp_path / "t5", "it is a model of the type 't5'"),
        ("sentence", vision, "'vit' is no encoder of texts alone"),
        ("sentence", lacking, "its weights lack encoder.layer.0.attention"),
        ("t5", untold, "its tokenizer knows no words"),
    ):
        encoder = build(kind, folder)
        with pytest.raises(UserError, match=rf"^condition\.encoder\.model: cannot load [^\n]*{reason}[^\n]*$"):
            encoder.encode(["red"])
    with pytest.raises(UserError, match=r"condition\.encoder\.width: '[^\n]*t5' gives 16 features, .* says 32"):
        build("t5", tmp_path / "t5", width=32).encode(["red"])
    assert build("t5", "/nowhere/t5", width=32).module(8)(torch.zeros(1, 2, 32)).shape == (1, 2, 8)
