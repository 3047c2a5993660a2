"""Captions say what scenes hold, and scenes are drawn as they are said."""

from __future__ import annotations

from collections import Counter
from random import Random

import numpy as np
import pytest
import torch

from djepa_mm.data.scenes import (
    CATEGORIES,
    CLEARLY,
    COLOURS,
    GAP,
    MARGIN,
    RELATIONS,
    SHAPES,
    UNSEEN_COLOURS,
    UNSEEN_COUNTS,
    UNSEEN_PAIRS,
    Caption,
    Group,
    Place,
    coverage,
    draw,
    imagine,
    is_unseen,
    least_side,
    parse,
    place,
)
from djepa_mm.errors import UserError


def test_captions_of_the_six_categories() -> None:
    said = {
        "a circle": "single object",
        "an orange triangle": "colours",
        "two red circles": "counting",
        "four crosses": "counting",
        "a circle and a square": "two objects",
        "a red circle and a blue square": "colour attribution",
        "a blue square left of a green triangle": "position",
        "a ring above a cross": "position",
    }
    assert {text: parse(text).category for text in said} == said
    assert all(str(parse(text)) == text for text in said)
    assert parse("  A blue square LEFT of a green triangle. ") == Caption(
        (Group("square", "blue"), Group("triangle", "green")), "left of"
    )
    assert parse("two red circles").kinds == [("circle", "red")] * 2
    assert parse("three red rings").attributes == ["red", "ring", "three"]
    assert parse("a red ring below a red square").attributes == ["red", "ring", "square", "below"]


@pytest.mark.parametrize(
    "text",
    ["", "a dog", "a circles", "two circle", "one circle", "a red", "two circles and a square", "a circle a ring"],
)
def test_other_texts_are_no_captions(text: str) -> None:
    with pytest.raises(UserError, match=r"shapes|go together"):
        parse(text)


def test_neighbours_differ_in_one_word() -> None:
    random = Random(0)
    for category in CATEGORIES:
        for _ in range(20):
            caption, _ = imagine(random, category)
            words = str(caption).split()
            neighbours = list(caption.neighbours())
            assert len(set(map(str, neighbours))) == len(neighbours) >= 4
            for other in neighbours:
                pairs = zip(words, str(other).split(), strict=True)
                assert sum(a != b for a, b in pairs if {a, b} != {"a", "an"}) == 1
    assert len(list(parse("two red circles").neighbours())) == 4 + 7 + 2


def test_scenes_are_what_captions_say_and_never_what_training_must_not_have() -> None:
    random, seen = Random(0), Counter[str]()
    for n in range(3000):
        caption, kinds = imagine(random, CATEGORIES[n % 6])
        assert caption.category == CATEGORIES[n % 6]
        assert not is_unseen(kinds)
        assert not is_unseen(caption.kinds)
        assert all(said in (None, colour) for (_, said), (_, colour) in zip(caption.kinds, kinds, strict=True))
        assert [shape for shape, _ in caption.kinds] == [shape for shape, _ in kinds]
        assert parse(str(caption)) == caption
        seen.update([str(caption), *caption.attributes])
    assert all(seen[name] > 100 for name in (*SHAPES, *COLOURS, *RELATIONS, "two", "three", "four"))
    assert len(seen) > 600
    for n in range(500):
        caption, _ = imagine(random, CATEGORIES[1 + n % 5], unseen=True)
        assert is_unseen(caption.kinds)


def test_what_training_never_has_leaves_every_word_seen() -> None:
    assert {colour for _, colour in UNSEEN_COLOURS} == set(COLOURS)
    assert max(Counter(shape for shape, _ in UNSEEN_COLOURS).values()) <= len(COLOURS) / 4
    for shape in SHAPES:
        assert sum(shape in pair for pair in UNSEEN_PAIRS) <= 1
        assert sum(shape == name for _, name in UNSEEN_COUNTS) <= 1
    assert is_unseen([("ring", "red")])
    assert is_unseen([("circle", None), ("cross", None)])
    assert is_unseen([("triangle", None)] * 4)
    assert not is_unseen([("triangle", None)] * 3)
    assert not is_unseen([("cross", "red"), ("ring", "blue")])


def test_skew_is_zipfs_law() -> None:
    random = Random(0)
    counts = Counter(kinds[0][1] for _ in range(4000) for _, kinds in [imagine(random, "colours", skew=1.0)])
    assert [name for name, _ in counts.most_common(3)] == list(COLOURS)[:3]
    assert counts["red"] / counts["pink"] == pytest.approx(8, rel=0.35)


@pytest.mark.parametrize("size", [(32, 32), (17, 17), (64, 32), (24, 40)])
def test_objects_lie_apart_and_as_they_are_said(size: tuple[int, int]) -> None:
    random = Random(0)
    for n in range(300):
        places = place(random, 1 + n % 4, None, size, (6.0, 14.0))
        assert len(places) == 1 + n % 4
        for k, a in enumerate(places):
            assert 6 <= a.size <= 14
            for middle, length in zip((a.y, a.x), size, strict=True):
                assert middle - a.size / 2 >= MARGIN - 1e-6
                assert middle + a.size / 2 <= length - MARGIN + 1e-6
            for b in places[:k]:
                free = max(abs(a.y - b.y), abs(a.x - b.x)) - (a.size + b.size) / 2
                assert free >= GAP - 1e-6
        relation = RELATIONS[n % 4]
        first, second = place(random, 2, relation, size, (6.0, 14.0))
        dy, dx = second.y - first.y, second.x - first.x
        along, across = {"left of": (dx, dy), "right of": (-dx, dy), "above": (dy, dx), "below": (-dy, dx)}[relation]
        assert along >= CLEARLY * abs(across) - 1e-6
    assert least_side(6.0) == 17


def test_coverage_is_the_share_of_each_pixel() -> None:
    areas = {"circle": np.pi / 4, "square": 1, "triangle": 0.5, "cross": 4 * 0.18 * (1 - 0.18), "ring": np.pi / 4 * 0.7}
    for shape, area in areas.items():
        covered, rows, columns = coverage(shape, Place(15.3, 16.8, 12.0), (32, 32))
        assert covered.shape == (rows.stop - rows.start, columns.stop - columns.start) == (13, 13)
        assert covered.sum() == pytest.approx(area * 144, rel=0.03)
        middle = (covered.sum(0) @ np.arange(columns.start + 0.5, columns.stop)) / covered.sum()
        assert middle == pytest.approx(16.8, abs=0.1)
    sharp, rows, columns = coverage("square", Place(4.0, 5.0, 4.0), (32, 32))
    assert (sharp == 1).all()
    assert (rows, columns) == (slice(2, 6), slice(3, 7))


def test_pictures_have_the_colours_on_grey() -> None:
    random = Random(0)
    for colour, value in COLOURS.items():
        picture = draw(random, [("square", colour)], [Place(10.0, 20.0, 8.0)], (32, 40))
        assert picture.shape == (3, 32, 40)
        assert picture.is_contiguous()
        assert picture.abs().max() <= 1
        ink = (picture[:, 7:13, 17:23] + 1) / 2
        assert (ink - torch.tensor(value)[:, None, None] / 255).abs().max() <= 0.04 + 1e-6
        picture[:, 6:14, 16:24] = 0
        assert (picture.max(0).values - picture.min(0).values).max() < 0.4
