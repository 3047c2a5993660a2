"""Sizes and aspects that are asked for, and what is painted around pictures and clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DIGITS, untrained

from djepa_mm.cli.options import aspect_of, sides_of, size_of
from djepa_mm.door import Model
from djepa_mm.generation.pipeline import Pipeline
from djepa_mm.media.pictures import Pictures
from djepa_mm.types import UserError

VARY = ("model.positions=rotary", "model.axes=[h,w]", "tokenizer.vary=true")


@pytest.fixture
def many() -> Model:
    """Grey pictures of any size in patches of 4 × 4, 16 × 32 where nothing is asked for."""
    tokens = "tokenizer={kind: patches, patch: 4, channels: 1, size: [16, 32], vary: true}"
    return Model(untrained("digits", tokens, *VARY, condition=DIGITS), Path("run"))


@pytest.mark.parametrize(
    ("aspect", "size"), [("16:9", (16, 32)), ("1:1", (24, 20)), ("1:2", (32, 16)), ("9:1", (8, 64))]
)
def test_an_aspect_keeps_about_as_many_pixels(many: Model, aspect: str, size: tuple[int, int]) -> None:
    (item,) = many.generate(class_=3, aspect=aspect_of(aspect))
    assert item.media.shape == (1, *size)


def test_numbers_may_be_numpys(many: Model) -> None:
    numbers: dict[str, Any] = {"count": np.int64(1), "size": tuple(np.array([8, 16])), "guidance": np.float32(1)}
    (item,) = many.generate(class_=3, **numbers)
    assert item.media.shape == (1, 8, 16)


def test_sizes_that_no_model_can_have(
    many: Model, painter: Pipeline, speaker: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"of which 16×32 is the nearest$"):
        many.generate(class_=3, size=(17, 31))
    with pytest.raises(UserError, match=r"of which 4×8 is the nearest$"):
        many.generate(class_=3, size=(0, 7))
    with pytest.raises(UserError, match=r"^a size of 8×16388 pixels .* more than 16,384; ask for a smaller size$"):
        many.generate(class_=3, size=(8, 16_388))
    with monkeypatch.context() as small:
        small.setattr("djepa_mm.recipe.build.memory_of", lambda device: 1e6)
        with pytest.raises(UserError, match=r"^an item of 8,192 tokens takes 0 GB or more .* smaller size$"):
            many.generate(class_=3, size=(8, 16_384))
    with pytest.raises(UserError, match=r"^model\.positions is learned, so this model knows the places of 8×8 pixels"):
        Model(painter, Path("run")).generate(class_=3, size=(16, 8))
    with pytest.raises(UserError, match="--size and --aspect: give one of the two"):
        many.generate(class_=3, size=(16, 16), aspect=1.0)
    with pytest.raises(UserError, match=r"--aspect 0\.0: expected width / height, from 1/100 to 100"):
        many.generate(class_=3, aspect=0.0)
    with pytest.raises(UserError, match="media have no width and height"):
        Model(speaker, Path("run")).generate(text="one", aspect=2.0)


@pytest.mark.parametrize("value", ["16", "16:", "0:9", "a:b", "16:-9", "nan:1", "1e9:1"])
def test_aspects_that_are_none(value: str) -> None:
    with pytest.raises(UserError, match=f"^--aspect {value}: expected width and height, such as 16:9$"):
        aspect_of(value)


def test_options_are_read() -> None:
    assert aspect_of(None) is sides_of(None) is size_of(None) is None
    assert aspect_of("2.39:1") == 2.39
    assert sides_of("left=16, bottom=8") == (16, 0, 0, 8)
    for value in ("16", "left", "left=-1", "up=3", "left=1,,"):
        with pytest.raises(UserError, match=f"^--extend {value}: expected pixels by the side"):
            sides_of(value)
    with pytest.raises(UserError, match=r"^--size 0x8: expected width and height in pixels"):
        size_of("0x8")


# --- painting around


def test_what_lies_around_is_painted_and_the_middle_stays(many: Model, tmp_path: Path) -> None:
    picture = torch.rand(1, 16, 8) * 2 - 1
    edited = many.edit(picture, class_=3, size=(24, 24)).media
    assert edited.shape == (1, 24, 24)
    assert torch.equal(edited[:, 4:20, 8:16], picture)
    edited = many.edit(picture, class_=3, extend=(8, 0, 0, 4)).media
    assert edited.shape == (1, 20, 16)
    assert torch.equal(edited[:, :16, 8:], picture)
    mask = torch.zeros(16, 8, dtype=torch.bool)
    mask[3:5] = True
    both = many.edit(picture, class_=3, size=(16, 12), mask=mask).media
    assert torch.equal(both[:, :16, :8][:, ~mask], picture[:, ~mask])
    assert (both[:, :16, :8][:, mask] != picture[:, mask]).all()
    odd = torch.rand(1, 14, 7) * 2 - 1  # of no whole tokens itself
    Pictures(1).save(odd, tmp_path / "odd.png")
    edited = many.edit(tmp_path / "odd.png", class_=3, size=(16, 16)).media
    assert torch.equal(edited[:, :14, 4:11], Pictures(1).load(tmp_path / "odd.png"))


def test_the_edge_is_held_for_a_tokenizer_that_sees_more_than_one_token(
    many: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    encode = many.pipeline.tokenizer.encode
    monkeypatch.setattr(many.pipeline.tokenizer, "encode", lambda media: (seen.append(media), encode(media))[1])
    picture = torch.rand(1, 16, 8) * 2 - 1
    many.edit(picture, class_=3, extend=(4, 0, 4, 0))
    assert torch.equal(seen[0][0, :, :, :4], picture[:, :, :1].expand(-1, -1, 4))
    assert torch.equal(seen[0][0, :, :, 12:], picture[:, :, -1:].expand(-1, -1, 4))


def test_a_clip_grows_in_all_its_frames(filmer: Pipeline) -> None:
    film = torch.rand(3, 8, 16, 12) * 2 - 1
    edited = Model(filmer, Path("run")).edit(film, class_=3, extend=(4, 0, 0, 0)).media  # to the size that it has
    assert torch.equal(edited[..., 4:], film)
    assert edited.shape == (3, 8, 16, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (8, 32)}, "--size 32x8: what is there has 8×16 pixels, and is not made smaller"),
        ({"size": (18, 32)}, "of which 16×32 is the nearest"),
        (
            {"size": (16, 8)},
            "--size and --extend: 0, 0, 0 and 0 pixels .* more on one",
        ),
        ({"extend": (-4, 4, 0, 0)}, "--size and --extend: -4, 4, 0 and 0 pixels"),
        ({"extend": {"left": 8}}, r"--extend {'left': 8}: expected pixels to the left, .* 4 whole numbers"),
        ({"size": "32x32"}, "--size '32x32': expected height and width in pixels, 2 whole numbers"),
        ({"extend": (4, 0, 0, 0), "size": (16, 16)}, "--size and --extend: give one of the two"),
        ({"extend": (4, 0, 0, 0), "start_s": 1.0}, "keeps its time"),
        ({"extend": (4, 0, 0, 0), "mask": torch.ones(8, 8).bool()}, "--mask: it has"),
        ({"extend": (99_996, 0, 0, 0)}, r"a size of 16×100004 pixels .*: no side may have more than 16,384; ask for a"),
        ({"size": (16, 16_388)}, r"a size of 16×16388 pixels .*: no side may have more than 16,384"),
    ],
)
def test_what_cannot_be_painted_around(many: Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        many.edit(torch.zeros(1, 16, 8), class_=3, **options)


def test_sounds_have_nothing_around_them(speaker: Pipeline) -> None:
    for options in ({"size": (8, 8)}, {"extend": (8, 0, 0, 0)}):
        with pytest.raises(UserError, match="media have no width and height"):
            Model(speaker, Path("run")).edit(torch.zeros(20 * 1024), text="one", **options)  # type: ignore[arg-type]
