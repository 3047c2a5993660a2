"""What `djepa-mm info` says of a recipe: parameters, and FLOPs beside what can be counted by hand."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from djepa_mm.core.djepa import Networks, Positions, Size
from djepa_mm.core.heads.flow import FlowHead
from djepa_mm.core.nn.blocks import Streams
from djepa_mm.recipe.build import build_model
from djepa_mm.recipe.describe import Passes, describe, sample_flops, train_flops
from djepa_mm.recipe.load import load_recipe

WIDTH, DEPTH, CHANNELS, CONDITION = 32, 3, 5, 7


def networks(streams: Streams = "one") -> Networks:
    with torch.device("meta"):
        return Networks(
            token_dim=CHANNELS,
            size=Size(width=WIDTH, depth=DEPTH, heads=4, streams=streams),
            positions=Positions(axes=("t",)),
            embedder=torch.nn.Identity(),
            head=FlowHead(token_dim=CHANNELS, feature_width=WIDTH, width=24, blocks=2),
        )


def blocks(tokens: int) -> int:
    """Query, key, value and output take 4 D² multiplications a token, the MLP 8 D², attention 2 S·D."""
    length = CONDITION + tokens
    return 2 * DEPTH * (12 * WIDTH**2 * length + 2 * length**2 * WIDTH)


@pytest.mark.parametrize("streams", ["one", "two"])
def test_a_pass_costs_what_can_be_counted_by_hand(streams: Streams) -> None:
    """Also with weights of their own for condition and media: each token goes through one of the two."""
    passes = Passes(networks(streams), CHANNELS, CONDITION)
    assert passes.encoder(11) == blocks(11) + 2 * 11 * CHANNELS * WIDTH
    assert passes.predictor(4, 20) == blocks(20) + 2 * (CONDITION + 4) * WIDTH**2
    assert passes.projector(3) == 2 * 3 * 8 * WIDTH**2
    width, time = 24, 256
    once = CHANNELS * width + WIDTH * width + 2 * 5 * width**2 + 2 * width**2 + width * CHANNELS
    embedding = time * width + width**2
    assert passes.head(9, 9) == 2 * 9 * (once + embedding)
    assert passes.head(9, 1) == 2 * (9 * once + embedding)


def described(*recipe: str) -> str:
    out = io.StringIO()
    Console(width=150, file=out).print(describe(load_recipe(recipe[0], recipe[1:])))
    return out.getvalue()


def test_parameters_are_those_of_the_model() -> None:
    recipe = load_recipe("spoken-digits")
    online = build_model(recipe, recipe.tokenizer.build(), recipe.condition.build()).online
    shown = described("spoken-digits")
    for parameters in (online.parameters(), online.head.parameters(), online.embedder.parameters()):
        assert f"{sum(p.numel() for p in parameters):,} │" in shown
    assert "an item of 5 s" in shown
    assert "condition tokens of a usual item" in shown
    assert f"{recipe.condition.buffer_tokens + 75} │" in shown


@pytest.mark.parametrize(
    ("name", "train", "sample"),
    # as formulas over the blocks and the denoising MLP gave them
    [("digits", 232.6e6, 2.47e9), ("imagenet256-b", 473e9, 14.65e12), ("moving-digits", 1.40e9, 46.6e9)],
)
def test_recipes_cost_about_what_formulas_say(name: str, train: float, sample: float) -> None:
    recipe = load_recipe(name, ["condition.classes=1000" if name == "imagenet256-b" else "condition.classes=10"])
    tokenizer = recipe.tokenizer.build()
    with torch.device("meta"):
        online = build_model(recipe, tokenizer, recipe.condition.build()).online
    passes = Passes(online, tokenizer.token_dim, recipe.condition.buffer_tokens)
    count = tokenizer.spec_for().num_tokens
    assert train_flops(recipe, passes, count) == pytest.approx(train, rel=0.04)
    assert sample_flops(recipe, passes, count) == pytest.approx(sample, rel=0.07)


def test_what_the_recipe_leaves_open_is_asked_of_the_corpus() -> None:
    """The number of classes; without a condition nothing is asked."""
    pytest.importorskip("sklearn")
    assert described("digits") == described("digits", "condition.classes=10")
    unconditional = ("condition={kind: none}", "sample.guidance=1")
    missing = "data={source: image-folder, root: /nowhere, size: [8, 8]}"
    assert "parameters in all" in described("digits", *unconditional, missing)


def test_the_prediction_loss_costs_a_projector_and_the_target_encoder() -> None:
    passes = Passes(networks(), CHANNELS, CONDITION)
    recipe = load_recipe("digits", ["mask.low=0.5", "mask.high=0.5"])
    without = load_recipe("digits", ["mask.low=0.5", "mask.high=0.5", "loss.prediction=0"])
    more = train_flops(recipe, passes, 20) - train_flops(without, passes, 20)
    assert more == 3 * passes.projector(10) + passes.encoder(20)
