"""Tables, rotary angles, and the two together."""

from __future__ import annotations

import math
import re

import pytest
import torch
from support import ten_classes

from djepa_mm.core.nn.positions import LearnedPositions, RotaryPositions, in_field, rotate
from djepa_mm.errors import UserError
from djepa_mm.recipe.build import build_model
from djepa_mm.recipe.load import load_recipe
from djepa_mm.types import MediaSpec


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    torch.manual_seed(0)
    rotary = RotaryPositions(12, ("t", "h", "w"))
    q, k = torch.randn(2, 1, 1, 1, 12).unbind(0)
    near, far = torch.tensor([[[1.0, 2.0, 0.0]]]), torch.tensor([[[2.0, 0.0, 3.0]]])

    def score(shift: float) -> float:
        return float((rotate(q, rotary(near + shift)) * rotate(k, rotary(far + shift))).sum())

    assert score(5.0) == pytest.approx(score(0.0), abs=1e-4)
    assert score(0.0) != pytest.approx(float((q * k).sum()), abs=1e-3)


@pytest.mark.parametrize("base", [10_000.0, 8.0])
def test_rotary_frequencies_end_before_their_base(base: float) -> None:
    frequencies = RotaryPositions(24, ("t", "h", "w"), base).frequencies
    own = frequencies[1][frequencies[1] > 0]
    assert own.tolist() == pytest.approx([base ** (-n / 4) for n in range(4)])
    assert frequencies.count_nonzero() == 12


@pytest.mark.parametrize(("positions", "learned", "rotary"), [
    ("learned", True, False), ("rotary", False, True), ("both", True, True),
])  # fmt: skip
def test_a_recipe_builds_the_positions_that_it_names(positions: str, learned: bool, rotary: bool) -> None:
    recipe = load_recipe("moving-digits", [f"model.positions={positions}", "model.width=48", "head.width=32"])
    model = build_model(recipe, recipe.tokenizer.build(), ten_classes(recipe))
    for stack in (model.online.encoder.stack, model.online.predictor.stack):
        assert (stack.learned is not None) == learned
        assert (stack.rotary is not None) == rotary
        if stack.learned is not None:
            assert len(stack.learned.table) == math.prod((4, 4, 4))
        if stack.rotary is not None:
            assert stack.rotary.frequencies[stack.rotary.frequencies > 0].min() >= 1 / recipe.model.rotary_base


def test_texts_have_no_table_of_positions() -> None:
    for positions in ("learned", "both"):
        with pytest.raises(UserError, match=r"set model\.positions to rotary"):
            load_recipe("spoken-digits", [f"model.positions={positions}"])
    with pytest.raises(UserError, match="rotary_base"):
        load_recipe("moving-digits", ["model.rotary_base=1"])


@pytest.mark.parametrize("place", [(0, 0, 5), (0, 2, 0), (1, 0, 0), (0, -1, 0)])
def test_a_place_outside_the_grid_is_named(place: tuple[int, int, int]) -> None:
    table = LearnedPositions((1, 2, 4), 8)
    inside = torch.tensor([[[0.0, 1.0, 3.0], [0.0, 0.0, 0.0]]])
    assert torch.equal(table(inside)[0], table.table[[7, 0]])
    outside = inside.clone()
    outside[0, 1] = torch.tensor(place)
    with pytest.raises(ValueError, match=re.escape(f"the place {place} (t, h, w) is outside the grid (1, 2, 4)")):
        table(outside)


def test_a_table_takes_no_media_of_many_sizes() -> None:
    recipe = load_recipe("digits", ["tokenizer.vary=true"])
    with pytest.raises(UserError, match=r"set it to rotary, or tokenizer\.vary to false"):
        build_model(recipe, recipe.tokenizer.build(), ten_classes(recipe))


# --- a field of view


def fielded(height: int, width: int, field: float, offset: tuple[float, float] | None = None) -> torch.Tensor:
    """(1, N, 3)"""
    grid = (2, height, width)
    offsets = None if offset is None else torch.tensor([offset])
    return in_field(MediaSpec(grid=grid, shape=()).positions()[None], torch.tensor([grid]), field, offsets)


@pytest.mark.parametrize(("height", "width"), [(6, 4), (4, 6), (5, 5), (1, 8)])
def test_an_item_lies_centred_in_the_field_as_the_paper_has_it(height: int, width: int) -> None:
    g, places = 12.0, fielded(height, width, 12.0)[0]
    density, b = max(width, height) / g, abs(width - height) / 2
    for (t, h, w), place in zip(MediaSpec(grid=(2, height, width), shape=()).positions().tolist(), places, strict=True):
        expected = ((w + b) / density, h / density) if width <= height else (w / density, (h + b) / density)
        assert place.tolist() == pytest.approx([t, expected[1], expected[0]])


def test_the_same_place_of_a_finer_picture_has_the_same_position() -> None:
    coarse, fine = (fielded(3 * n, 4 * n, 16.0)[0].view(2, 3 * n, 4 * n, 3) for n in (1, 4))
    assert torch.equal(fine[:, ::4, ::4], coarse)
    assert torch.equal(fielded(16, 16, 16.0)[0], MediaSpec(grid=(2, 16, 16), shape=()).positions())


def test_an_offset_moves_the_item_away_from_the_condition_alone() -> None:
    torch.manual_seed(0)
    rotary, q, k = RotaryPositions(12, ("t", "h", "w")), torch.randn(1, 1, 24, 12), torch.randn(1, 1, 24, 12)
    still, moved = fielded(4, 3, 8.0), fielded(4, 3, 8.0, (0.25, -0.5))
    torch.testing.assert_close(moved - still, torch.tensor([0.0, 2.0, -4.0]).expand(1, 24, 3))
    buffer = rotary(torch.zeros(1, 24, 3))

    def scores(positions: torch.Tensor, others: tuple[torch.Tensor, torch.Tensor] | None = None) -> torch.Tensor:
        return rotate(q, rotary(positions)) @ rotate(k, others or rotary(positions)).mT

    torch.testing.assert_close(scores(still), scores(moved), atol=1e-4, rtol=1e-4)
    assert (scores(still, buffer) - scores(moved, buffer)).abs().max() > 0.1


def test_angles_in_a_field_of_view_are_exact_under_autocast() -> None:
    places = fielded(100, 70, 256.0)
    exact, plain = (RotaryPositions(12, ("t", "h", "w"), exact=exact) for exact in (True, False))
    with torch.autocast("cpu", torch.bfloat16):
        found = exact(places)
    torch.testing.assert_close(found, plain(places), atol=1e-4, rtol=0)


def test_a_field_of_view_goes_with_vope_alone() -> None:
    with pytest.raises(UserError, match=r"model\.field belongs to model\.positions vope, and they are rotary: leave"):
        load_recipe("digits", ["model.positions=rotary", "model.field=8"])
    with pytest.raises(UserError, match=r"model\.positions vope needs model\.field: give the tokens"):
        load_recipe("digits", ["model.positions=vope"])
