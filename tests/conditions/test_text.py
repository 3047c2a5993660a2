"""Texts laid along their media, and the pace that lays them."""

from __future__ import annotations

import pytest
import torch

from djepa_mm.conditions.pace import FINAL, Pace
from djepa_mm.conditions.text import TextConfig, TextLayout, text_condition
from djepa_mm.conditions.vocabulary import Vocabulary
from djepa_mm.speech.espeak import PHONEMES
from djepa_mm.types import UserError

PACE = Pace(per_symbol=(1.0, 3.0, 0.0, 2.0), margin=2.0)


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("stretched", [0.5, 2.5, 4.5, 6.5]),
        ("plain", [0.0, 1.0, 2.0, 3.0]),
        ("paced", [1.0, 3.0, 4.5, 5.5]),  # 8 tokens for 8 expected: margin 1, then 1, 3, 0 and 2 wide
    ],
)
def test_layouts(layout: TextLayout, expected: list[float]) -> None:
    assert text_condition([torch.arange(4)], [8], layout, PACE).positions[0, :, 0].tolist() == expected


def test_paced_positions_scale_with_the_media() -> None:
    short, long = (text_condition([torch.arange(4)], [n], "paced", PACE).positions[0, :, 0] for n in (8, 16))
    torch.testing.assert_close(long + 0.5, 2 * (short + 0.5))


def test_texts_are_padded() -> None:
    condition = text_condition([torch.tensor([3]), torch.tensor([1, 2, 0])], [4, 4], "paced", PACE)
    assert condition.valid.tolist() == [[True, False, False], [True, True, True]]
    assert condition.values.tolist() == [[3, 0, 0], [1, 2, 0]]


def test_a_text_of_symbols_that_take_no_time_is_laid_evenly() -> None:
    silent = Pace(per_symbol=(0.0, 0.0))
    assert silent.centres(torch.tensor([0, 1])).tolist() == [0.25, 0.75]
    assert silent.tokens(torch.tensor([0, 1])) == 1


def corpus(per_symbol: list[float], margin: float, count: int, noise: float) -> tuple[list[torch.Tensor], list[int]]:
    texts = [torch.randint(len(per_symbol), (int(n),)) for n in torch.randint(3, 30, (count,))]
    lengths = [margin + sum(per_symbol[i] for i in t) + noise * float(torch.randn(())) for t in texts]
    return texts, [max(1, round(n)) for n in lengths]


def test_the_fit_finds_what_each_symbol_takes() -> None:
    truth, margin = [0.0, 1.0, 2.0, 5.0], 6.0
    pace = Pace.fit(*corpus(truth, margin, 400, 0.5), 4)
    assert pace.per_symbol == pytest.approx(truth, abs=0.15)
    assert pace.margin == pytest.approx(margin, abs=2)


def test_the_fit_finds_what_symbols_take_at_the_end() -> None:
    texts, lengths = corpus([1.0, 2.0, 5.0], 0.0, 400, 0.5)
    ends = [t[-FINAL:] for t in texts]
    lengths = [n + 3 * int((e == 0).sum()) - int((e == 2).sum()) for e, n in zip(ends, lengths, strict=True)]
    pace = Pace.fit(texts, lengths, 3)
    middle, end = torch.tensor([0, 0, 2, 1, 1, 1, 1]), torch.tensor([1, 1, 1, 1, 0, 0, 2])
    assert pace.tokens(end) - pace.tokens(middle) == pytest.approx(3 + 3 - 1, abs=0.3)
    light, heavy = (torch.tensor([1, 1, 1, 1] + [symbol] * FINAL) for symbol in (0, 2))
    assert pace.tokens(light) == pytest.approx(pace.tokens(heavy), abs=0.5)


def test_the_fit_keeps_unseen_symbols_at_the_mean_and_lays_none_before_another() -> None:
    texts, lengths = corpus([0.0, 0.0, 4.0], 0.0, 100, 2.0)
    pace = Pace.fit(texts, lengths, 4)
    assert (pace.centres(torch.tensor([2, 0, 1, 0, 1, 2])).diff() >= 0).all()
    total, symbols = sum(lengths), sum(len(t) for t in texts)
    assert pace.per_symbol[3] == pytest.approx(total / symbols, rel=0.2)


def test_the_fit_of_texts_of_one_length() -> None:
    pace = Pace.fit([torch.tensor([0, 1]), torch.tensor([1, 0])], [8, 10], 2)
    assert pace.tokens(torch.tensor([0, 1])) == pytest.approx(9)


DIGITS = Vocabulary(symbols=" efghinorstuvwxz", english=True)


def test_texts_become_numbers() -> None:
    vocabulary = Vocabulary(symbols="ab c")
    assert vocabulary.encode("A  b").tolist() == [0, 2, 1]
    assert torch.equal(DIGITS.encode("3, 1: zero."), DIGITS.encode("three one zero"))
    assert DIGITS.clean("Three ☃ one") == "three one"


@pytest.mark.parametrize(
    ("text", "message"), [("", "empty"), (" . ", "empty"), ("three ☃ one", "'☃'"), ("twelve", "'l'")]
)
def test_texts_that_cannot_be_encoded(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        DIGITS.encode(text)


def test_phonemes_are_looked_up_from_the_text_as_it_is_written() -> None:
    pytest.importorskip("espeakng_loader")
    vocabulary = Vocabulary(symbols=PHONEMES, lowercase=False, english=True, phonemes=True)
    say = ["".join(PHONEMES[n] for n in vocabulary.encode(text)) for text in ("In 1455.", "the US")]
    assert say[0].endswith("fˈɔːɹtiːn fˈɪftifˈaɪv.")
    assert say[1].endswith("jˌuːˈɛs")
    assert vocabulary.unknown("naïve Ж") == "Ж"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"text": 7}, "--text 7: expected words, not int"),
        ({"text": "one", "rate": "fast"}, "--rate fast: expected a number"),
        ({"text": "one", "rate": None}, "--rate None: expected a number"),
        ({"text": "one", "rate": 9}, "--rate 9 is out of range"),
    ],
)
def test_requests_that_are_none_are_one_line(request_: dict[str, object], message: str) -> None:
    condition = TextConfig(kind="text", characters="abcdefghijklmnopqrstuvwxyz ").build()
    with pytest.raises(UserError, match=message):
        condition.parse(request_)
