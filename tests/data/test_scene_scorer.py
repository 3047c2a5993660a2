"""The rules see what is there, and nothing in rubbish."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from random import Random

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from djepa_mm.data.scene_scorer import components, find, fits, judge, oklab, relation
from djepa_mm.data.scenes import CATEGORIES, Place, draw, parse
from djepa_mm.data.sources.shapes import ShapesConfig
from djepa_mm.errors import UserError
from djepa_mm.types import Item


def scenes(count: int, size: tuple[int, int] = (32, 32)) -> list[Item]:
    """Half of them of combinations that training never has."""
    config = ShapesConfig(source="shapes", size=size)
    sides = config.build_held_out(), config.build_unseen()
    return [side.read(index) for side in sides if side for index in range(count // 2)]


def drawn(*kinds: tuple[str, str], at: tuple[tuple[float, float], ...] = ((9.0, 9.0), (9.0, 23.0))) -> Tensor:
    places = [Place(y, x, 10.0) for y, x in at[: len(kinds)]]
    return draw(Random(0), kinds, places, (32, 32))


@pytest.mark.parametrize(
    ("size", "count"), [((32, 32), 240), ((48, 48), 120), ((64, 64), 120), ((64, 32), 120), ((32, 64), 120)]
)
def test_real_pictures_fit_their_captions_and_not_those_that_differ_in_one_word(
    size: tuple[int, int], count: int
) -> None:
    right, wrong = defaultdict[str, list[bool]](list), defaultdict[str, list[bool]](list)
    for item in scenes(count, size):
        assert item.entry.text is not None
        caption, found = parse(item.entry.text), find(item.media)
        right[caption.category].append(fits(found, caption))
        wrong[caption.category] += [fits(found, other) for other in caption.neighbours()]
    assert list(right) == list(CATEGORIES)
    for category in CATEGORIES:
        assert sum(right[category]) >= 0.98 * len(right[category]), category
        assert sum(wrong[category]) <= 0.02 * len(wrong[category]), category


def blurred(picture: Tensor) -> Tensor:
    weights = torch.exp(-(torch.arange(-3, 4.0) ** 2) / (2 * 0.8**2))
    kernel = (weights[:, None] * weights / weights.sum() ** 2).expand(3, 1, 7, 7)
    return functional.conv2d(functional.pad(picture[None], (3,) * 4, mode="replicate"), kernel, groups=3)[0]


@pytest.mark.parametrize(
    ("change", "least"),
    [
        (blurred, 0.95),
        (lambda p: p + 0.1 * torch.randn_like(p), 0.85),
        (lambda p: 0.7 * p, 0.95),
        (lambda p: functional.interpolate(p[None], scale_factor=2, mode="bicubic")[0], 0.95),
    ],
)
def test_pictures_that_are_a_little_worse(change: Callable[[Tensor], Tensor], least: float) -> None:
    """Out of focus, noisy, pale, twice as large: still what they are."""
    items = scenes(120)
    assert sum(judge(change(item.media), item.entry.text or "").fits for item in items) >= least * len(items)


def test_rubbish_fits_nothing() -> None:
    torch.manual_seed(0)
    texts = [item.entry.text or "" for item in scenes(24)]

    def coarse(side: int) -> Tensor:
        return functional.interpolate(torch.randn(1, 3, side, side), size=(32, 32))[0]

    for make in (
        lambda: torch.rand(3, 32, 32) * 2 - 1,
        lambda: torch.zeros(3, 32, 32) + 0.1 * torch.randn(3, 32, 32),
        lambda: torch.full((3, 32, 32), -1.0),
        lambda: torch.tensor([0.8, -0.8, -0.7])[:, None, None].expand(3, 32, 32),
        lambda: torch.tensor([0.8, -0.8, -0.7])[:, None, None] * (torch.arange(32) < 12),
        lambda: coarse(8),
        lambda: coarse(4),
        lambda: (
            torch.tensor([0.0, 0.0, 0.5])[:, None, None]
            * (torch.arange(32)[:, None] + torch.arange(32)).remainder(3).sub(1)
        ),
        lambda: blurred(blurred(6 * torch.randn(3, 32, 32))),
        lambda: torch.full((3, 32, 32), float("nan")),
    ):
        judgements = [judge(make(), text) for text in texts]
        assert not any(judgement.fits for judgement in judgements)


def test_what_is_found() -> None:
    (first, second) = sorted(find(drawn(("ring", "red"), ("cross", "blue"))), key=lambda found: found.x)
    assert first.kind == ("ring", "red")
    assert second.kind == ("cross", "blue")
    assert (first.y, first.x, second.x) == pytest.approx((9, 9, 23), abs=0.15)
    assert second.pixels == pytest.approx(59, rel=0.1)
    assert relation(first, second) == "left of"
    assert relation(second, first) == "right of"


def test_facts_are_told_one_by_one() -> None:
    picture = drawn(("ring", "red"), ("cross", "blue"))
    judgement = judge(picture, "a red ring left of a green cross")
    assert not judgement.fits
    assert judgement.kind == "position"
    assert judgement.facts == {"red": True, "ring": True, "green": False, "cross": True, "left of": True}
    assert judgement.centre == pytest.approx((9 / 32, 16 / 32), abs=0.01)
    assert judge(picture, "a red ring left of a blue cross").fits
    assert not judge(picture, "a red cross and a blue ring").fits
    assert judge(picture, "a ring above a cross").facts == {"ring": True, "cross": True, "above": False}
    assert judge(picture, "three red rings").facts == {"red": False, "ring": False, "three": False}
    twice = drawn(("ring", "red"), ("ring", "red"))
    assert judge(twice, "two red rings").fits
    assert judge(twice, "two rings").facts == {"ring": True, "two": True}
    assert not judge(twice, "a red ring").fits
    nothing = judge(torch.zeros(3, 32, 32), "a circle")
    assert nothing.centre is None
    assert nothing.facts == {"circle": False}


def test_objects_that_touch_or_fill_the_picture_are_none_of_the_shapes() -> None:
    assert not judge(
        drawn(("square", "red"), ("square", "blue"), at=((9, 9), (9, 19))), "a red square and a blue square"
    ).fits
    assert not judge(draw(Random(0), [("square", "red")], [Place(16, 16, 32)], (32, 32)), "a red square").fits


def test_a_text_that_is_no_caption_is_an_error() -> None:
    with pytest.raises(UserError, match="a dog"):
        judge(torch.zeros(3, 32, 32), "a dog")


def test_components_touch_at_corners() -> None:
    mask = torch.tensor([[1, 0, 0, 0, 1], [0, 1, 0, 0, 0], [0, 0, 0, 1, 1]], dtype=torch.bool)
    numbers = components(mask)
    assert (numbers > 0).equal(mask)
    assert numbers[0, 0] == numbers[1, 1]
    assert len(numbers[mask].unique()) == 3


def test_oklab_of_known_colours() -> None:
    """White, and the sRGB primaries as CSS Color 4 has them."""
    known = {(1, 1, 1): (1, 0, 0), (1, 0, 0): (0.62796, 0.22486, 0.12585), (0, 0, 1): (0.45201, -0.03246, -0.31153)}
    for rgb, expected in known.items():
        assert oklab(torch.tensor(rgb).double().numpy()).tolist() == pytest.approx(expected, abs=1e-3)
