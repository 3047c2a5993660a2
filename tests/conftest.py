"""Small real models that many tests share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from djepa_mm.conditions import ClassConditioner, TextConditioner, class_condition, text_condition
from djepa_mm.djepa import DJEPA, Positions, Size
from djepa_mm.heads.flow import FlowHead
from djepa_mm.types import MediaSpec, TokenBatch

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


@pytest.fixture
def picture_model() -> Callable[..., DJEPA]:
    """Class-conditional, learned positions on GRID."""

    def build(**options: object) -> DJEPA:
        model = DJEPA(
            token_dim=CHANNELS,
            size=Size(width=WIDTH, depth=2, heads=4),
            positions=Positions(grid=GRID),
            conditioner=ClassConditioner(3, WIDTH, 2),
            head=FlowHead(token_dim=CHANNELS, feature_width=WIDTH, width=24, blocks=2, steps=4),
            **options,  # type: ignore[arg-type]
        )
        awake(model)
        return model

    return build


@pytest.fixture
def text_model() -> Callable[..., DJEPA]:
    """Text-conditional, rotary positions on t."""

    def build(**options: object) -> DJEPA:
        model = DJEPA(
            token_dim=CHANNELS,
            size=Size(width=WIDTH, depth=2, heads=4),
            positions=Positions(axes=("t",)),
            conditioner=TextConditioner(6, WIDTH, 2),
            head=FlowHead(token_dim=CHANNELS, feature_width=WIDTH, width=24, blocks=2, steps=4),
            **options,  # type: ignore[arg-type]
        )
        awake(model)
        return model

    return build


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
            [torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5, 1, 2]), torch.tensor([5])], counts, "stretched"
        ),
    )
