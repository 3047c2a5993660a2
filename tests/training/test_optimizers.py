"""What an optimiser's settings come to over a run."""

from __future__ import annotations

import pytest

from djepa_mm.recipe.schema import OptimConfig
from djepa_mm.training.optimizers import average_decay, weight_decay_share


def test_schedules_are_constant_unless_asked() -> None:
    optim = OptimConfig(steps=10, ema_decay=0.99)
    assert {weight_decay_share(optim, p) for p in (0.0, 0.5, 1.0)} == {1.0}
    assert {average_decay(optim, p) for p in (0.0, 0.5, 1.0)} == {0.99}


def test_weight_decay_and_the_averages_decay_rise_linearly() -> None:
    optim = OptimConfig(steps=10, ema_decay=0.99, ema_schedule="linear", weight_decay_schedule="linear")
    assert [weight_decay_share(optim, p) for p in (0.0, 0.25, 1.0)] == [0.0, 0.25, 1.0]
    assert average_decay(optim, 0.5) == pytest.approx(0.995)
    assert average_decay(optim, 1.0) == 0.9999
