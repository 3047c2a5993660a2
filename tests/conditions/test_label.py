"""The class of an item, and what has none."""

from __future__ import annotations

import pytest

from djepa_mm.conditions.label import ClassConfig
from djepa_mm.types import BrokenItem, Entry, UserError


def test_an_item_without_a_class_is_none_of_the_first() -> None:
    kind = ClassConfig(kind="class").build()
    kind.load_state({"classes": ["cat", "dog"]})
    assert [kind.read(Entry(name="a", label=label)) for label in ("cat", "dog")] == [0, 1]
    with pytest.raises(BrokenItem, match=r"^it has no class, and condition\.kind is class$"):
        kind.read(Entry(name="a"))
    with pytest.raises(BrokenItem, match="its class 'bird' is none that the model knows"):
        kind.read(Entry(name="a", label="bird"))
    with pytest.raises(UserError, match="needs a class: --class one of cat, dog"):
        kind.parse({})


def test_classes_keep_their_numbers() -> None:
    kind = ClassConfig(kind="class").build()
    kind.load_state({"classes": ["cat", "dog"]})
    with pytest.raises(UserError, match="in another order"):
        kind.load_state({"classes": ["dog", "cat"]})
