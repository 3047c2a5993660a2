"""Small real models that many tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from djepa_mm.conditions.label import ClassEmbedder, class_condition
from djepa_mm.conditions.pace import Pace
from djepa_mm.conditions.text import TextEmbedder, text_condition
from djepa_mm.core.djepa import DJEPA, Positions, Size
from djepa_mm.core.heads.flow import FlowHead
from djepa_mm.core.nn.blocks import Streams
from djepa_mm.core.types import TokenBatch
from djepa_mm.generation.pipeline import Pipeline
from djepa_mm.recipe.build import build_model
from djepa_mm.recipe.load import load_recipe
from djepa_mm.types import MediaSpec

SLOW = ("test_ranks", "test_docs", "test_extensions", "test_packaging", "test_latents", "test_resume", "test_cli")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of few, long tests come first, so that no process is left with them at the end."""
    items.sort(key=lambda item: item.path.stem not in SLOW)


if "PYTEST_XDIST_WORKER" in os.environ:  # tests run side by side, each with a core of its own, in its processes too
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

GRID = (1, 3, 4)
CHANNELS = 5
WIDTH = 32


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    torch.manual_seed(0)


def awake(model: torch.nn.Module) -> None:
    """Give zero-initialised layers some weight, so that a test sees what flows through them."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))


def build(embedder: torch.nn.Module, positions: Positions, streams: Streams = "one", **options: Any) -> DJEPA:
    model = DJEPA(
        token_dim=CHANNELS,
        size=Size(width=WIDTH, depth=2, heads=4, streams=streams),
        positions=positions,
        embedder=embedder,
        head=FlowHead(token_dim=CHANNELS, feature_width=WIDTH, width=24, blocks=2, solver_steps=4),
        **options,
    )
    awake(model)
    return model


@pytest.fixture
def picture_model() -> Callable[..., DJEPA]:
    """Class-conditional, learned positions on GRID."""
    return lambda **options: build(ClassEmbedder(3, WIDTH, 2), Positions(grid=GRID), **options)


@pytest.fixture
def text_model() -> Callable[..., DJEPA]:
    """Text-conditional, rotary positions on t."""
    return lambda **options: build(TextEmbedder(6, WIDTH, 2), Positions(axes=("t",)), **options)


@pytest.fixture
def picture_batch() -> TokenBatch:
    """4 pictures of 12 tokens."""
    positions = MediaSpec(grid=GRID, shape=(1, 3, 4)).positions()
    return TokenBatch(
        tokens=torch.randn(4, len(positions), CHANNELS),
        positions=positions.expand(4, -1, -1),
        valid=torch.ones(4, len(positions), dtype=torch.bool),
        condition=class_condition([0, 1, 2, 0]),
    )


@pytest.fixture
def text_batch() -> TokenBatch:
    """3 clips of 7, 4 and 10 tokens, padded."""
    counts = [7, 4, 10]
    valid = torch.arange(10) < torch.tensor(counts)[:, None]
    positions = MediaSpec(grid=(10, 1, 1), shape=(10,)).positions().expand(3, -1, -1)
    return TokenBatch(
        tokens=torch.randn(3, 10, CHANNELS) * valid[..., None],
        positions=positions * valid[..., None],
        valid=valid,
        condition=text_condition(
            [torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5, 1, 2]), torch.tensor([5])],
            counts,
            "paced",
            Pace(per_symbol=(1.0, 2.0, 0.5, 3.0, 0.0, 1.0), margin=1.0),
        ),
    )


SMALL = (
    *("model.width=32", "model.depth=1", "model.heads=2", "head.width=32", "head.blocks=1", "head.steps=2"),
    "sample.steps=2",
)


def untrained(recipe: str, *overrides: str, condition: dict[str, Any]) -> Pipeline:
    """A small untrained model of a packaged recipe, ready to generate. condition: what its kind has learned."""
    loaded = load_recipe(recipe, [*SMALL, *overrides])
    tokenizer, kind = loaded.tokenizer.build(), loaded.condition.build()
    kind.load_state(condition)
    return Pipeline(loaded, build_model(loaded, tokenizer, kind), tokenizer, kind)


DIGITS = {"classes": list("0123456789")}


@pytest.fixture
def speaker() -> Pipeline:
    """Of spoken digits; 1 token a character, and 30 at the ends."""
    return untrained(
        "spoken-digits",
        condition={"pace": {"per_symbol": [1.0] * 16, "margin": 30.0, "longest": 60}, "words": []},
    )


@pytest.fixture
def painter() -> Pipeline:
    return untrained("digits", condition=DIGITS)


@pytest.fixture
def filmer() -> Pipeline:
    """Clips of 8 frames of 16×16 pixels, 10 frames a second, in 4×4×4 tokens of two frames each."""
    tokenizer = "{kind: clip-patches, patch: [2, 4, 4], frames: 8, size: [16, 16], frame_rate: 10}"
    filmer = untrained("digits", f"tokenizer={tokenizer}", condition=DIGITS)
    filmer.tokenizer.load_state({"mean": torch.full((96,), 0.1), "std": torch.tensor(0.3)})  # rounds when decoding
    return filmer


@pytest.fixture
def latent_filmer(tmp_path: Path) -> Pipeline:
    """Clips of 9 frames of 16×16 pixels in 3×2×2 tokens, latents of a causal VAE: of 1, 4 and 4 frames."""
    import diffusers

    moments = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    vae = diffusers.AutoencoderKLWan(base_dim=4, z_dim=4, dim_mult=[1] * 4, num_res_blocks=1, **moments)
    vae.save_pretrained(tmp_path / "vae")
    tokenizer = f"{{kind: clip-vae, model: {tmp_path / 'vae'}, frames: 9, size: [16, 16], frame_rate: 10}}"
    return untrained("digits", f"tokenizer={tokenizer}", condition=DIGITS)
