from __future__ import annotations

import multiprocessing
import string
import sys
import threading

import numpy as np
import pytest

from djepa_mm.speech import espeak
from djepa_mm.speech.espeak import PHONEMES, phonemes, speak, spoken
from djepa_mm.types import UserError

pytest.importorskip("espeakng_loader")

# Words that have, among them, every symbol of the alphabet.
PANGRAM = (
    "The quick brown fox jumps over the lazy dog; why, measure the things: joy, church, boys! A button, Bologna? "
    "Utrecht, Ahmed, Cthulhu, Arrhenius and the birds of a pretty, cute, roses, hello."
)


@pytest.mark.parametrize(
    ("text", "ipa"),
    [
        ("hello world", "həlˈoʊ wˈɜːld"),
        ("Hello, world!", "həlˈoʊ, wˈɜːld!"),
        ("forty-two lines of about fourteen fifty-five", "fˈɔːɹɾitˈuː lˈaɪnz ʌv ɐbˌaʊt fˈɔːɹtiːn fˈɪftifˈaɪv"),
        ("read; books: now?", "ɹˈiːd; bˈʊks: nˈaʊ?"),
        ("read -- books - now — fine", "ɹˈiːd, bˈʊks, nˈaʊ, fˈaɪn"),
        ("“Stop!” he said (why?)... yes", "stˈɑːp! hiː sˈɛd wˈaɪ. jˈɛs"),
        ("the end of the line", "ðɪ ˈɛnd ʌvðə lˈaɪn"),
        ("ten a.m. in the U.S. army.", "tˈɛn ˌeɪˈɛm ɪnðə jˌuːˈɛs ˈɑːɹmi."),
        ("ten a.m.", "tˈɛn ˌeɪˈɛm."),
        ("yes,no", "jˈɛs, nˈoʊ"),
        ("button croissant", "bˈʌʔn kwˈɑːsɑ"),
        (" \n ", ""),
        ("-- ... !", ""),
    ],
)
def test_phonemes_are_these(text: str, ipa: str) -> None:
    assert phonemes([text]) == [ipa]


def test_the_alphabet_is_exactly_what_comes_out() -> None:
    assert len(set(PHONEMES)) == len(PHONEMES)
    assert set(phonemes([PANGRAM])[0]) == set(PHONEMES)
    signs = [f"a{c}b {c} a{c} {c}b" for c in string.printable]
    assert set("".join(phonemes([*signs, " ".join(string.ascii_letters), "naïve São Ångström Łódź"]))) <= set(PHONEMES)


def test_one_text_has_one_reading_whatever_went_before() -> None:
    texts = ["read the record", "a record, read", "nation"]
    first = phonemes(texts)
    espeak._phonemes.cache_clear()
    french = phonemes(["nation"], "fr")
    speak(["seven"], "en-us+klatt4", 130)
    assert phonemes(texts[::-1])[::-1] == first
    assert french[0] != first[2]


def test_speaking_and_phonemes_take_turns() -> None:
    sounds = spoken(iter(["seven", "seven"]), "en-us", 130)
    one, rate_hz = next(sounds)
    espeak._phonemes.cache_clear()
    assert phonemes(["seven"]) == ["sˈɛvən"]
    slow = speak(["seven"], "en-us", 80)[0][0]
    two, _ = next(sounds)
    assert rate_hz == 22050
    assert one.dtype == np.int16
    assert abs(len(two) / len(one) - 1) < 0.05  # the same speed again
    assert len(slow) > 1.2 * len(one)
    assert len(speak([""], "en-us", 130)[0][0]) < 0.1 * rate_hz


def _read(text: str) -> str:
    return phonemes([text])[0]


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_forked_worker_reads_as_its_parent_does() -> None:
    phonemes(["hello"])
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.map(_read, ["forked child"]) == phonemes(["forked child"])


def test_threads_keep_out_of_each_others_way() -> None:
    espeak._phonemes.cache_clear()
    words = [f"{a} {b}" for a in ("one", "two", "three", "four", "five") for b in ("lines", "books", "roses")]
    found: dict[str, list[str]] = {}

    def work(voice: str) -> None:
        found[voice] = phonemes(words, voice)

    threads = [threading.Thread(target=work, args=(voice,)) for voice in ("en-us", "fr", "de")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    espeak._phonemes.cache_clear()
    for voice, readings in found.items():
        assert phonemes(words, voice) == readings


def test_an_unknown_voice_is_named() -> None:
    with pytest.raises(UserError, match="no voice 'klingon-x'"):
        phonemes(["hello"], "klingon-x")
    with pytest.raises(UserError, match="no voice 'klingon-x'"):
        speak(["hello"], "klingon-x", 130)


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    espeak._machine.cache_clear()
    espeak._phonemes.cache_clear()
    with pytest.raises(UserError, match=r'pip install "djepa-mm\[speech\]"'):
        phonemes(["hello"])
    monkeypatch.undo()
    espeak._machine.cache_clear()
    assert phonemes(["hello"]) == ["həlˈoʊ"]
