"""Items of many sizes in one recipe, and sizes that are drawn anew at each reading."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import ten_classes

import djepa_mm
from djepa_mm.data.corpus import Corpus, Cursor
from djepa_mm.recipe.load import load_recipe
from djepa_mm.types import Entry, Item, UserError

SIZES = [(8, 8), (8, 16), (24, 8)]  # height and width
SMALL = {
    "model.width": 32, "model.depth": 1, "model.heads": 2, "model.positions": "rotary", "model.axes": ["h", "w"],
    "head.width": 16, "head.blocks": 1, "head.steps": 2, "batch.size": 6, "sample.steps": 2, "optim.steps": 3,
    "optim.minutes": None, "run.sample_every": None, "tokenizer.vary": True, "tokenizer.channels": 3,
}  # fmt: skip


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes, pictures of three sizes, some a little larger than whole patches."""
    rng = np.random.default_rng(0)
    for n in range(12):
        height, width = SIZES[n % 3]
        folder = tmp_path / "pictures" / f"class{n % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (height + n % 4, width, 3), np.uint8)).save(folder / f"{n}.png")
    return tmp_path / "pictures"


@pytest.mark.parametrize("positions", [{}, {"model.positions": "vope", "model.field": 6.0}])
def test_pictures_of_three_sizes_train_by_one_recipe_and_each_is_generated(
    positions: dict[str, object], pictures: Path, tmp_path: Path
) -> None:
    data = {"source": "image-folder", "root": str(pictures), "size": None, "multiple_of": [4, 4]}
    exact = {"optim.precision": "fp32"}  # in bf16, after three steps, an offset may round to nothing
    recipe = djepa_mm.load_recipe("digits", {"data": data, **SMALL, **exact, **positions})
    outcome = djepa_mm.train(recipe, tmp_path / "run", progress=False)
    assert outcome.step == 3
    model = djepa_mm.load(outcome.run)
    for height, width in [*SIZES, (16, 32)]:
        items = model.generate(class_="class1", count=2, size=(height, width))
        assert [tuple(item.media.shape) for item in items] == [(3, height, width)] * 2
    assert model.generate(class_="class0")[0].media.shape == (3, 8, 8)  # the recipe's
    picture = items[0]
    mask = torch.zeros(16, 32, dtype=torch.bool)
    mask[:, 20:] = True
    edited = model.edit(picture, class_="class0", mask=mask)
    assert torch.equal(edited.media[..., ~mask], picture.media[..., ~mask])
    with pytest.raises(UserError, match="multiple"):
        model.generate(class_="class0", size=(9, 8))
    if positions:
        still, again, moved = (model.generate(class_="class0", offset=o)[0].media for o in (None, 0.0, (0.1, 0.5)))
        assert torch.equal(still, again)
        assert not torch.equal(still, moved)
        return
    with pytest.raises(UserError, match=r"--offset: this model has no field of view .* model\.positions is rotary"):
        model.generate(class_="class0", offset=0.1)
    with pytest.raises(UserError, match=r"model\.positions is learned"):
        djepa_mm.train(
            djepa_mm.load_recipe("digits", {"data": data, **SMALL, "model.positions": "learned"}), tmp_path / "learned"
        )


class Shrinking:
    """A source that draws the size of an item at each reading, up to the one that its header tells."""

    classes = ("0",)

    def __init__(self) -> None:
        self.drawn: list[int] = []

    def __len__(self) -> int:
        return 6

    def entry(self, index: int) -> Entry:
        return Entry(name=str(index), label="0")

    def shape(self, index: int) -> tuple[int, ...]:
        return (1, 16, 16)

    def read(self, index: int) -> Item:
        self.drawn.append(4 * int(torch.randint(1, 5, ())))
        return Item(entry=self.entry(index), media=torch.zeros(1, 16, self.drawn[-1]))


def test_a_size_may_be_drawn_at_each_reading() -> None:
    recipe = load_recipe("digits", {**SMALL, "tokenizer.channels": 1, "batch.cache": False})
    source, tokenizer = Shrinking(), recipe.tokenizer.build()
    corpus = Corpus(source, tokenizer, ten_classes(recipe), recipe.batch)
    batches = corpus.batches(Cursor())
    for _ in range(3):
        source.drawn.clear()
        ((portion,), _) = next(batches)
        assert portion is not None
        batch = portion.batch
        assert batch.valid.sum(1).tolist() == [4 * width // 4 for width in source.drawn]
        for row, width in zip(batch.positions, source.drawn, strict=True):
            assert row[:, 2].max() == width // 4 - 1
