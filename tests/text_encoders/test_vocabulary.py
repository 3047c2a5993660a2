"""Words of a corpus and characters, as numbers."""

from __future__ import annotations

import pytest

from djepa_mm.errors import Notice
from djepa_mm.text_encoders.vocabulary import SymbolsConfig, WordsConfig
from djepa_mm.types import UserError

CAPTIONS = ["A red circle", "two red circles.", "a blue square, left of a red circle"]


def test_words_are_those_of_the_captions() -> None:
    words = WordsConfig(kind="words").build(8)
    words.bind(iter(CAPTIONS))
    assert list(words.numbers) == ["a", "blue", "circle", "circles", "left", "of", "red", "square", "two"]
    assert words.encode(["Red, two… unheard circles"])[0].tolist() == [6, 8, 3]
    assert words.unknown("red Cats and dogs and a can't") == ["cats", "and", "dogs", "can't"]
    assert words.known("red Cats and a circle") == "red a circle"
    assert words.module(4).weight.shape == (9, 4)


def test_the_most_frequent_words_are_known_where_there_are_too_many() -> None:
    words = WordsConfig(kind="words", most=3).build(8)
    words.bind(iter(CAPTIONS))
    assert list(words.numbers) == ["a", "circle", "red"]


def test_given_words_need_no_corpus() -> None:
    words = WordsConfig(kind="words", vocabulary=("Red", "blue", "red")).build(8)
    words.bind(None)
    assert words.state() == {"words": ["red", "blue"]}
    bare = WordsConfig(kind="words").build(8)
    with pytest.raises(
        UserError, match=r"^the words are not known without the corpus: give condition\.encoder\.vocabulary$"
    ):
        bare.module(4)
    with pytest.raises(UserError, match=r"^condition\.encoder\.vocabulary: the words of shards are not looked for"):
        bare.bind(None)
    with pytest.raises(UserError, match="the corpus has no texts"):
        bare.bind(iter([]))


def test_words_go_with_the_run() -> None:
    run, later, other = (WordsConfig(kind="words").build(8) for _ in range(3))
    run.bind(iter(CAPTIONS))
    later.load_state(run.state())
    assert later.numbers == run.numbers
    other.bind(iter(CAPTIONS[:2]))
    with pytest.raises(UserError, match="other words than the run was trained on: blue, left, of, square"):
        other.load_state(run.state())
    for state in ({"words": "red"}, {"words": [1]}):
        with pytest.raises(TypeError):
            later.load_state(state)


def test_characters() -> None:
    symbols = SymbolsConfig(kind="symbols", characters="abc ").build(4)
    assert symbols.encode(["Cab"])[0].tolist() == [2, 0, 1]
    assert (symbols.known("a-b xc"), symbols.unknown("a-b-x")) == ("ab c", ["-", "x"])
    with pytest.warns(Notice, match=r"'abc abc' has 7 tokens, of which the first 4 are read") as told:
        assert len(symbols.encode(["abc abc", "ccccc"])[1]) == 4
    assert len(told) == 1
