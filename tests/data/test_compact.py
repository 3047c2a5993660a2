from __future__ import annotations

import pickle

import pytest

from djepa_mm.data.compact import Alike, Packed


def test_packed_values_come_back() -> None:
    values = ["a.png", "", "caf\u00e9/x.png", "bad\udce9", (3, [1, 2]), None, {"range": [0, 9, 1]}]
    packed: Packed[object] = Packed(values)
    assert list(packed) == values
    assert packed[-1] == values[-1]
    assert packed[1:4] == values[1:4]
    assert (len(packed), len(Packed())) == (len(values), 0)
    assert list(pickle.loads(pickle.dumps(packed))) == values  # as when a process that reads is spawned
    for index in (len(values), -len(values) - 1):
        with pytest.raises(IndexError):
            packed[index]
    assert packed[-len(values)] == values[0]
    packed.extend(["more", 1])
    packed.append(None)
    assert list(packed) == [*values, "more", 1, None]


def test_packed_names_take_little_more_than_their_letters() -> None:
    names = [f"class{n % 10}/picture-{n:06}.png" for n in range(10_000)]
    packed = Packed(names)
    assert len(packed.block) / len(names) < len(names[0]) + 30


def test_values_that_are_alike_are_kept_once() -> None:
    values: Alike[object] = Alike(6)
    for index, value in ((0, "a"), (1, "b"), (3, "a"), (4, [1]), (5, [1])):
        values[index] = value
    assert dict(values) == {0: "a", 1: "b", 3: "a", 4: [1], 5: [1]}
    assert values.kept == ["a", "b", [1], [1]]  # lists cannot be looked up
    assert 2 not in values
    values[1] = "a"
    del values[0]
    assert list(values) == [1, 3, 4, 5]
    assert len(values) == 4
    for index in (2, 6, -1):
        with pytest.raises(KeyError):
            values[index]
