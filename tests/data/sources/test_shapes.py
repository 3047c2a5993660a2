"""Shapes are the same whenever they are read, and held-out ones are others."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from djepa_mm.data.scene_scorer import find
from djepa_mm.data.scenes import CATEGORIES, is_unseen, parse
from djepa_mm.data.sources.shapes import HELD_OUT, ShapesConfig
from djepa_mm.types import Judge


def config(**options: Any) -> ShapesConfig:
    return ShapesConfig(source="shapes", **options)


def test_items_are_drawn_from_seed_and_index_alone() -> None:
    source, again, other = config(count=50).build(), config(count=9).build(), config(seed=1).build()
    assert len(source) == 50
    assert source.classes == CATEGORIES
    for index in (7, 3, 8):
        item, same = source.read(index), again.read(index)
        assert torch.equal(item.media, same.media)
        assert item.entry == same.entry == source.entry(index)
        assert item.media.shape == source.shape(index) == (3, 32, 32)
        assert item.entry.label == parse(item.entry.text or "").category
        assert not torch.equal(item.media, other.read(index).media)
    assert len({source.entry(index).name for index in range(50)}) == 50


def test_sizes_of_all_aspects() -> None:
    source = config(count=400, sizes=[24, 40]).build()
    shapes = Counter(source.shape(index) for index in range(400))
    assert {shape[1:] for shape in shapes} == {(h, w) for h in (24, 32, 40) for w in (24, 32, 40)}
    assert min(shapes.values()) > 20
    assert all(source.read(index).media.shape == source.shape(index) for index in range(20))
    narrow = config(sizes=[24, 40], multiple_of=5).build()
    assert {side for index in range(200) for side in narrow.shape(index)[1:]} == {25, 30, 35, 40}


def test_scenes_that_grow_are_the_same_at_every_size() -> None:
    options: dict[str, Any] = {"grow": True, "objects": [9, 13], "categories": ["colours"]}
    small, large = (config(size=[side, side], **options) for side in (32, 96))
    for index in range(30):
        one, same = small.build().read(index), large.build().read(index)
        assert one.entry == same.entry
        (found,), (again,) = find(one.media), find(same.media)
        assert again.kind == found.kind
        assert (again.y, again.x) == pytest.approx((3 * found.y, 3 * found.x), abs=1.0)
        assert again.pixels == pytest.approx(9 * found.pixels, rel=0.1)
    wide = config(size=[24, 64], **options)  # as many pixels as the longer side lets it
    items = [wide.build_held_out().read(index) for index in range(60)]
    assert all(one.fits for one in wide.judge([i.media for i in items], [i.entry.text or "" for i in items]))


def test_a_simpler_grammar() -> None:
    source = config(categories=["colours", "counting"]).build()
    labels = Counter(source.entry(index).label for index in range(300))
    assert set(labels) == {"colours", "counting"}
    assert min(labels.values()) > 100
    assert source.classes == ("colours", "counting")


def test_training_never_has_what_is_held_out() -> None:
    source = config().build()
    for index in range(3000):
        *_, kinds = source._scene(index)
        assert not is_unseen(kinds), source.entry(index)


def test_held_out_scenes_of_seen_and_of_unseen_combinations() -> None:
    one = config(skew=2.0)
    seen, unseen = one.build_held_out(), one.build_unseen()
    assert unseen is not None
    assert len(seen) == len(unseen) == HELD_OUT
    for index in range(120):
        entry = seen.entry(index)
        assert entry.label == CATEGORIES[index % 6]
        assert not is_unseen(parse(entry.text or "").kinds)
        entry = unseen.entry(index)
        assert entry.label == CATEGORIES[1 + index % 5]
        assert is_unseen(parse(entry.text or "").kinds)
    train = one.build()
    assert not torch.equal(seen.read(0).media, train.read(0).media)
    assert config(categories=["single object"]).build_unseen() is None
    words = Counter(word for index in range(600) for word in parse(seen.entry(index).text or "").attributes)
    assert words["red"] < 2 * words["pink"]  # whatever the skew of training


def test_skew_makes_some_rare() -> None:
    source = config(skew=1.5).build()
    words = Counter(word for index in range(1000) for word in parse(source.entry(index).text or "").attributes)
    assert words["red"] > 5 * words["pink"]
    assert words["circle"] > 3 * words["ring"]


def test_the_corpus_judges_its_own() -> None:
    one = config()
    assert isinstance(one, Judge)
    items = [one.build().read(index) for index in range(12)]
    judgements = one.judge([item.media for item in items], [item.entry.text or "" for item in items])
    assert all(judgement.fits for judgement in judgements)
    assert [judgement.kind for judgement in judgements] == [item.entry.label for item in items]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"size": [16, 32]}, "data.size: .* objects of 6 pixels need 17"),
        ({"objects": [9, 8]}, "give the least first"),
        ({"sizes": [33, 39]}, "holds no multiple of data.multiple_of 8"),
        ({"sizes": [8, 40]}, "data.sizes: .* objects of 6 pixels need 17"),
        ({"sizes": [40, 24]}, "holds no multiple"),
        ({"sizes": [24, 64], "grow": True}, "the shortest 12, where objects of 6 need 17; make the sides more alike"),
        (
            {"size": [16, 64], "grow": True, "objects": [9, 9], "categories": ["colours"]},
            "the shortest 8, where objects of 9 need 11",
        ),
        ({"size": [8, 8], "grow": True}, "too few pixels to tell objects of 6; give them 16 or more"),
        ({"sizes": [16, 24], "grow": True, "objects": [7, 9]}, "to tell objects of 7; give them 8 or more"),
        ({"size": [32, 32], "grow": True, "objects": [9, 23]}, "objects of 23 fill more than half of 32×32"),
        ({"categories": []}, "at least 1 item"),
        ({"categories": ["dogs"]}, "single object"),
        ({"skew": -1.0}, "greater than or equal to 0"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        config(**options)
