"""Words: scoring them, and the recognisers on speech that espeak-ng makes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from djepa_mm.data.sources.spoken_digits import VOICE, WORDS
from djepa_mm.data.sources.spoken_digits import speak as speak_digits
from djepa_mm.evaluate.words import (
    GrammarRecogniser,
    LanguageModelRecogniser,
    SentenceRecogniser,
    WhisperRecogniser,
    plain_words,
    recogniser,
    word_error_rate,
    word_errors,
)
from djepa_mm.recipe.load import load_recipe
from djepa_mm.speech.espeak import speak
from djepa_mm.types import UserError

RATE_HZ = 22050
SENTENCES = ["The dog is in the house.", "We can go home now.", "The dog can go now."]


def spoken(text: str) -> Tensor:
    ((samples, rate_hz),) = speak([text], VOICE, 150)
    assert rate_hz == RATE_HZ
    return torch.from_numpy(samples).float() / 32768


# --- scoring


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Printing, in the only sense;", "printing in the only sense"),
        ("picture-books — and WELL–known", "picture books and well known"),
        ("\"Don't,\" he said: 'no!'", "don't he said no"),
        ("the dogs’ owner isn’t", "the dogs owner isn't"),
        ("  spaces\n and\ttabs _ ", "spaces and tabs"),
        ("...!", ""),
    ],
)
def test_plain_words(text: str, words: str) -> None:
    assert plain_words(text) == words
    assert plain_words(words) == words


def test_word_error_rate() -> None:
    assert word_error_rate(["one two three", "four"], ["one three", "four five"]) == pytest.approx(2 / 4)
    assert word_error_rate(["one"], [""]) == 1
    assert word_error_rate(["one two"], ["one two"]) == 0
    assert word_error_rate(["one"], ["one two three four"]) == 3  # insertions count, so it can be more than 1
    assert word_error_rate(["", "one"], ["two", "one"]) == 1
    assert word_errors("a b c", "b c d") == 2


def test_a_word_error_rate_needs_words_and_pairs() -> None:
    with pytest.raises(UserError, match="words in them"):
        word_error_rate(["", ""], ["one", ""])
    with pytest.raises(UserError, match="words in them"):
        word_error_rate([], [])
    with pytest.raises(ValueError, match="shorter"):
        word_error_rate(["one", "two"], ["one"])


# --- pocketsphinx


def test_a_grammar_is_heard_through_mel_and_griffin_lim() -> None:
    """The least of every word error rate that is reported for spoken digits."""
    texts = ["three one zero", "nine two seven four", "eight six five"]
    heard_by, mel = GrammarRecogniser(WORDS), load_recipe("spoken-digits").tokenizer.build()
    waves = [torch.from_numpy(samples).float() / 32768 for samples, _ in speak_digits(texts)]
    back = [mel.decode(mel.encode(w[None]), mel.spec_of(tuple(w.shape)))[0] for w in waves]
    assert word_error_rate(texts, [heard_by.hear(w, RATE_HZ) for w in waves]) == 0
    assert word_error_rate(texts, [heard_by.hear(w, RATE_HZ) for w in back]) <= 0.1
    noise = torch.randn(22050, generator=torch.Generator().manual_seed(0))
    assert word_error_rate(texts[:1], [heard_by.hear(0.1 * noise, RATE_HZ)]) > 0.5


def test_sentences_are_told_apart() -> None:
    heard_by = SentenceRecogniser(SENTENCES)
    for sentence in SENTENCES:
        assert heard_by.hear(spoken(sentence), RATE_HZ) == plain_words(sentence)


def test_the_language_model_hears_any_english() -> None:
    text = "I think that the weather is very good today."
    heard = LanguageModelRecogniser().hear(spoken(text), RATE_HZ)
    assert word_error_rate([plain_words(text)], [plain_words(heard)]) < 0.5
    assert set(heard.split()) <= {*heard.lower().split()}


def test_recognisers_by_name() -> None:
    grammar = recogniser("grammar", ["One two.", "Two-three"])
    assert set(grammar.hear(spoken("three one"), RATE_HZ).split()) == {"one", "three"}
    assert isinstance(recogniser("sentences", SENTENCES), SentenceRecogniser)
    assert isinstance(recogniser("language-model", SENTENCES), LanguageModelRecogniser)


def test_grammars_of_unknown_words_or_none() -> None:
    with pytest.raises(UserError, match=r"dictionary: blorptang; use"):
        recogniser("grammar", ["the blorptang dog"])
    with pytest.raises(UserError, match="blorptang"):
        SentenceRecogniser(["the blorptang"])
    with pytest.raises(UserError, match="needs words"):
        recogniser("grammar", ["...", ""])
    with pytest.raises(UserError, match="needs words"):
        recogniser("sentences", [])


@pytest.mark.parametrize(("package", "name"), [("pocketsphinx", "language-model"), ("transformers", "some/whisper")])
def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch, package: str, name: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{package}.*djepa-mm\[evaluate\]"):
        recogniser(name, ["one"])


# --- Whisper


@pytest.fixture(scope="module")
def tiny_whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real, untrained Whisper with its processor, of bytes and the special tokens."""
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizerFast,
    )

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    special = [
        "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|translate|>", "<|notimestamps|>",
    ]  # fmt: skip
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {token: n for n, token in enumerate(letters + special)}
    tokens = Tokenizer(models.BPE(ids, []))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    tokens.add_special_tokens(special)
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    torch.manual_seed(0)
    shape = {f"{side}_{key}": n for side in ("encoder", "decoder") for key, n in
             {"layers": 1, "attention_heads": 2, "ffn_dim": 32}.items()}  # fmt: skip
    config = WhisperConfig(
        vocab_size=len(ids), d_model=16, init_std=1.0, decoder_start_token_id=start,
        pad_token_id=end, bos_token_id=end, eos_token_id=end, **shape,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=start, pad_token_id=end, bos_token_id=end, eos_token_id=end, max_length=12,
        is_multilingual=True, lang_to_id={"<|en|>": ids["<|en|>"]},
        task_to_id={"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
        no_timestamps_token_id=ids["<|notimestamps|>"], suppress_tokens=[n for t, n in ids.items() if len(t) > 1],
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("whisper")
    model.save_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(), WhisperTokenizerFast(tokenizer_object=tokens)).save_pretrained(folder)
    return folder


def test_a_whisper_folder_hears_as_transformers_does(tiny_whisper: Path) -> None:
    """The same text as transformers' own pipeline gives for the same model and sound."""
    from transformers import AutomaticSpeechRecognitionPipeline

    whisper = recogniser(str(tiny_whisper), [])
    assert isinstance(whisper, WhisperRecogniser)
    pipe = AutomaticSpeechRecognitionPipeline(
        model=whisper.model,
        tokenizer=whisper.processor.tokenizer,
        feature_extractor=whisper.processor.feature_extractor,
    )
    sound = spoken("three one")
    asked = {"language": "en", "task": "transcribe", "num_beams": 1}
    expected = pipe({"raw": sound.numpy(), "sampling_rate": RATE_HZ}, generate_kwargs=asked)["text"]
    assert expected.split()
    assert whisper.hear(sound, RATE_HZ) == " ".join(expected.split())


def test_a_whisper_hears_long_sound_in_parts(tiny_whisper: Path) -> None:
    whisper = WhisperRecogniser(tiny_whisper)
    first, second = 0.1 * torch.randn(30 * 16000), 0.1 * torch.randn(8000)
    parts = [whisper.hear(part, 16000) for part in (first, second)]
    assert whisper.hear(torch.cat([first, second]), 16000).split() == " ".join(parts).split()


def test_what_is_no_whisper_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^no recogniser .*known: grammar, sentences, language-model"):
        recogniser(str(tmp_path), [])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="not a Whisper but a model of type 'bert'"):
        recogniser(str(tmp_path), [])
