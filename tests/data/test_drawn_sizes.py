"""Sizes that are drawn at each reading, batches whose count follows them, and tokens that are left out."""

from __future__ import annotations

import io
import json
import math
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

import djepa_mm
from djepa_mm.conditions.none import NoCondition
from djepa_mm.data.batches import Portion, Share
from djepa_mm.data.corpus import Corpus, Cursor, merge
from djepa_mm.data.sizes import SizesConfig, drawn_size, largest_size
from djepa_mm.data.streams import StreamCorpus, open_corpus
from djepa_mm.errors import BrokenItem, UserError
from djepa_mm.recipe.load import load_recipe
from djepa_mm.runs.checkpoint import differences
from djepa_mm.types import Entry
from djepa_mm.weights import find_checkpoint

SMALL = {
    "condition": {"kind": "none", "buffer_tokens": 2}, "model.width": 24, "model.depth": 1, "model.heads": 2,
    "model.positions": "rotary", "model.axes": ["h", "w"], "head.width": 16, "head.blocks": 1, "head.steps": 2,
    "sample.steps": 2, "sample.guidance": 1.0, "optim.steps": 4, "optim.minutes": None, "optim.schedule": "constant",
    "run.sample_every": None,
    "run.save_every": 2, "run.keep": 5, "batch": {"size": 8, "tokens": 96, "item_tokens": 40, "cache": False},
    "tokenizer": {"kind": "patches", "patch": 4, "size": [16, 16], "vary": True},
}  # fmt: skip
FIRST = {"mean": 16, "std": 6, "low": 8, "high": 32}
SECOND = {"mean": 36, "std": 2, "low": 30, "high": 40}


def tar(path: Path, files: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w") as shard:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))


def png(n: int) -> bytes:
    picture(n).save(out := io.BytesIO(), "PNG")
    return out.getvalue()


def picture(n: int) -> Image.Image:
    rng = np.random.default_rng(n)
    return Image.fromarray(rng.integers(0, 255, (30 + 7 * (n % 5), 60 - 11 * (n % 4), 3), np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of many sizes."""
    root = tmp_path_factory.mktemp("pictures")
    for n in range(24):
        picture(n).save(root / f"{n:02d}.png")
    return root


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, in shards."""
    root = tmp_path_factory.mktemp("shards")
    for shard in range(4):
        tar(root / f"{shard}.tar", {f"{n:02d}.png": png(n) for n in range(6 * shard, 6 * shard + 6)})
    return root


def data(place: Path, *sizes: Mapping[str, Any]) -> dict[str, Any]:
    if list(place.glob("*.tar")):
        of_kind = {"source": "shards", "urls": str(place), "media": "picture", "readers": 4, "shuffle": 3}
        return {**of_kind, "sizes": list(sizes), "multiple_of": [1, 4, 4]}
    return {"source": "image-folder", "root": str(place), "size": None, "sizes": list(sizes), "multiple_of": [4, 4]}


def corpus(place: Path, *sizes: Mapping[str, Any], **changes: Any) -> Corpus | StreamCorpus:
    recipe = load_recipe("digits", {**SMALL, "data": data(place, *(sizes or (FIRST,))), **changes})
    condition = recipe.condition.build()
    if len(list(place.glob("*.tar"))):
        recipe = recipe.model_copy(update={"batch": recipe.batch.model_copy(update={"tokens": 160})})
    return open_corpus(recipe.data.build(), recipe.tokenizer.build(), condition, recipe.batch, seed=5)


def rows(portions: Sequence[Portion | None]) -> dict[int, torch.Tensor]:
    """Tokens and positions by the item's place in the batch."""
    return {
        place: torch.cat([portion.batch.tokens[n], portion.batch.positions[n]], dim=-1)[portion.batch.valid[n]]
        for portion in portions
        if portion is not None
        for n, place in enumerate(portion.places)
    }


def alike(one: dict[int, torch.Tensor], other: dict[int, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(row, other[place]) for place, row in one.items())


# --- one size ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "std", "low", "high"), [(512, 120, 256, 1024), (1024, 1000, 256, 4096)])
def test_sides_are_of_a_truncated_normal(mean: float, std: float, low: float, high: float) -> None:
    sizes, chances = SizesConfig(mean=mean, std=std, low=low, high=high), (np.arange(2000) + 0.5) / 2000
    for most in (high, 700.0):
        found = [sizes.side(float(chance), most) for chance in chances]
        expected = stats.truncnorm((low - mean) / std, (min(high, most) - mean) / std, mean, std)
        np.testing.assert_allclose(found, expected.ppf(chances), rtol=1e-6)
    assert sizes.side(0.3, 100) == 100
    assert SizesConfig(mean=1, std=1, low=100, high=200).side(0.5, 1000) == 150  # nothing of the normal is there


def test_pictures_keep_their_aspect_and_are_never_enlarged_beyond_the_factor() -> None:
    sizes = SizesConfig(mean=512, std=200, low=256, high=1024)
    for own in ((2000, 3000), (900, 400), (700, 5000), (40, 70), (17, 3000)):
        for chance in (0.0, 0.4, 0.999):
            for enlarge in (0.5, 1.0, 2.0):
                height, width = drawn_size(sizes, own, (16, 16), enlarge, chance) if min(own) * enlarge >= 16 else own
                if min(own) * enlarge < 16:
                    continue
                assert height % 16 == width % 16 == 0
                assert height <= own[0] * enlarge
                assert width <= own[1] * enlarge
                scale = sizes.side(chance, math.sqrt(own[0] * own[1]) * enlarge) / math.sqrt(own[0] * own[1])
                assert height * width <= max((own[0] * scale) * (own[1] * scale), 16 * max(height, width))
                assert abs(min(height, width) - min(own) * scale) < 16
                assert height * width > 0.8 * own[0] * own[1] * scale**2 or min(height, width) < 64
                assert largest_size([sizes], own, (16, 16), enlarge) >= (height, width)
    with pytest.raises(BrokenItem, match=r"15×400 pixels, less than data\.multiple_of"):
        drawn_size(sizes, (400, 15), (16, 16), 1.0, 0.5)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([{**FIRST, "low": 40}], "low 40 is above high 32"),
        ([FIRST, SECOND], "all but the last need steps, and the last has none"),
        ([{**FIRST, "steps": 5}], "all but the last need steps, and the last has none"),
        ([], "at least 1 item"),
    ],
)
def test_sizes_that_make_no_sense(folder: Path, sizes: list[dict[str, Any]], message: str) -> None:
    for place in (folder, folder.parent):
        with pytest.raises(UserError, match=message):
            load_recipe("digits", {**SMALL, "data": data(place, *sizes)})
    with pytest.raises(UserError, match=r"data\.sizes draws what data\.size says"):
        load_recipe("digits", {**SMALL, "data": {**data(folder, FIRST), "size": [8, 8]}})
    with pytest.raises(UserError, match=r"by data\.sizes this corpus has too many of them"):
        corpus(folder, batch={"size": 4, "cache": True})


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["folder", "shards"])
def test_batches_hold_a_budget_of_what_is_drawn(place: str, request: pytest.FixtureRequest) -> None:
    found = corpus(request.getfixturevalue(place))
    sizes, counts = set(), set()
    for portions, _ in islice(found.batches(Cursor()), 20):
        (portion,) = portions
        assert portion is not None
        assert portion.batch.valid.numel() <= (96 if place == "folder" else 160)
        assert all(math.prod(grid) <= 64 for grid in portion.grids)
        sizes |= set(portion.grids)
        counts.add(len(portion.places))
    assert len(sizes) > 10
    assert min(counts) <= 4
    assert max(counts) >= 5
    assert not found.broken


@pytest.mark.parametrize("place", ["folder", "shards"])
def test_whoever_reads_and_wherever_it_goes_on_they_are_the_same(place: str, request: pytest.FixtureRequest) -> None:
    root, phases = request.getfixturevalue(place), ({**FIRST, "steps": 9}, SECOND)
    whole = list(islice(corpus(root, *phases).batches(Cursor()), 16))
    workers = {**SMALL["batch"], "workers": 2}  # type: ignore[dict-item]
    for (portions, _), (others, _) in zip(whole, corpus(root, *phases, batch=workers).batches(Cursor()), strict=False):
        assert alike(rows(portions), rows(others))
    ranks = [corpus(root, *phases).batches(Cursor(), Share(rank=rank, world=2)) for rank in (0, 1)]
    for portions, cursor in whole:
        both = [next(rank) for rank in ranks]
        assert alike(rows(portions), rows(both[0][0]) | rows(both[1][0]))
        assert merge([one for _, one in both]) == cursor
    for n in (0, 4, 9, 12):
        kept = Cursor(**json.loads(json.dumps(asdict(whole[n][1]))))
        again = corpus(root, *phases).batches(kept)
        for (portions, cursor), (others, other) in zip(whole[n + 1 :], again, strict=False):
            assert alike(rows(portions), rows(others))
            assert cursor == other


def test_one_distribution_follows_another(folder: Path, shards: Path) -> None:
    """In a stream at that very batch; by index with the next epoch."""
    for root in (folder, shards):
        sides, cursors = [], [Cursor()]
        for portions, cursor in islice(corpus(root, {**FIRST, "steps": 9}, SECOND).batches(Cursor()), 40):
            (portion,) = portions
            assert portion is not None
            sides.append([4 * math.sqrt(math.prod(grid)) for grid in portion.grids])
            cursors.append(cursor)
        change = 9 if root == shards else next(n for n, one in enumerate(cursors[1:]) if one.before >= 9)
        assert min(side for some in sides[:change] for side in some) < 20
        assert min(side for some in sides[change:] for side in some) > 24
        assert 9 <= change < 25


def test_of_larger_items_some_tokens_are_there(folder: Path) -> None:
    found = corpus(folder, SECOND)
    seen: dict[str, list[list[list[float]]]] = {}
    assert isinstance(found, Corpus)
    tokenizer = found.tokenizer
    for portions, cursor in islice(found.batches(Cursor()), 30):
        (portion,) = portions
        assert portion is not None
        assert portion.batch.valid.sum(1).max() == 40
        whole = found.plan(cursor.epoch, cursor.before)[cursor.batch - 1]
        for place, row in rows([portion]).items():
            positions = row[:, -3:].long()
            rows_, columns = portion.grids[portion.places.index(place)][1:]
            order = positions[:, 1] * columns + positions[:, 2]
            assert order.diff().min() > 0
            assert order.max() < rows_ * columns
            if rows_ * columns > 40:
                seen.setdefault(str(whole[place]), []).append(positions.tolist())
    assert tokenizer.token_dim == 48
    several = [some for some in seen.values() if len(some) > 1]
    assert several
    assert all(some[0] != some[1] for some in several)


def test_training_goes_on_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    recipe = load_recipe("digits", {**SMALL, "data": data(folder, {**FIRST, "steps": 2}, SECOND)})
    djepa_mm.train(recipe, tmp_path / "whole", progress=False)
    short = recipe.model_copy(update={"optim": recipe.optim.model_copy(update={"steps": 2})})
    djepa_mm.train(short, tmp_path / "parts", progress=False)
    djepa_mm.train(recipe, tmp_path / "parts", resume=True, progress=False)
    whole, parts = (find_checkpoint(tmp_path / name) for name in ("whole", "parts"))
    assert whole.name == parts.name
    assert not differences(whole, parts)


# --- several captions -------------------------------------------------------------------------------------------------


class Saying(NoCondition):
    """Takes an item's text for its value."""

    def read(self, entry: Entry) -> Any:
        return entry.text

    def encode(self, values: Sequence[Any], num_tokens: Sequence[int]) -> Any:
        self.said = list(values)
        return super().encode(values, num_tokens)


def test_each_reading_takes_one_of_several_captions(folder: Path, shards: Path, tmp_path: Path) -> None:
    for n in range(4):
        picture(n).save(tmp_path / f"{n}.png")
    lines = [json.dumps({"file": f"{n}.png", "captions": [f"{n}{one}" for one in "abc"]}) for n in range(4)]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    tar(tmp_path / "0.tar", {"0.png": png(0), "0.json": json.dumps({"captions": ["0a", "0b", "0c"]}).encode()})
    for root in ({"root": str(tmp_path)}, {"urls": str(tmp_path / "0.tar")}):
        base = data(shards if "urls" in root else folder, FIRST)
        recipe = load_recipe(
            "digits", {**SMALL, "data": {**base, **root, **({"readers": 1} if "urls" in root else {})}}
        )
        runs = []
        for _ in range(2):
            kind = Saying(recipe.condition)
            found = open_corpus(recipe.data.build(), recipe.tokenizer.build(), kind, recipe.batch)
            said: list[str] = []
            for _ in islice(found.batches(Cursor()), 20):
                said += kind.said
            runs.append(said)
        assert runs[0] == runs[1]
        assert {one for one in runs[0] if one.startswith("0")} == {"0a", "0b", "0c"}
