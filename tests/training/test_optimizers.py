"""What an optimiser's settings come to over a run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from djepa_mm.core.djepa import DJEPA
from djepa_mm.recipe.schema import OptimConfig
from djepa_mm.training.optimizers import average_decay, build_optimizers, weight_decay_share


def test_schedules_are_constant_unless_asked() -> None:
    optim = OptimConfig(steps=10, ema_decay=0.99)
    assert {weight_decay_share(optim, p) for p in (0.0, 0.5, 1.0)} == {1.0}
    assert {average_decay(optim, p) for p in (0.0, 0.5, 1.0)} == {0.99}


def test_weight_decay_and_the_averages_decay_rise_linearly() -> None:
    optim = OptimConfig(steps=10, ema_decay=0.99, ema_schedule="linear", weight_decay_schedule="linear")
    assert [weight_decay_share(optim, p) for p in (0.0, 0.25, 1.0)] == [0.0, 0.25, 1.0]
    assert average_decay(optim, 0.5) == pytest.approx(0.995)
    assert average_decay(optim, 1.0) == 0.9999


WEIGHTS = {f"{name}.weight" for name in ("encoder.input", "predictor.input", "projector.0", "projector.2")}
TABLES = {"embedder.buffer", "embedder.classes.weight", "encoder.stack.learned.table", "predictor.stack.learned.table"}


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("blocks", {"blocks"}),
        ("matrices", {"blocks", *WEIGHTS}),
        ("all", {"blocks", *WEIGHTS, *TABLES, "predictor.mask_token"}),
    ],
)
def test_what_decays(picture_model: Callable[..., DJEPA], which: str, expected: set[str]) -> None:
    """Of the paper's networks; biases, norms and the head never."""
    online = picture_model().online
    optimizers = build_optimizers(online, OptimConfig(steps=10, weight_decay=0.1, weight_decay_on=which))
    decayed = {
        id(p) for one in optimizers for group in one.param_groups if group["weight_decay"] for p in group["params"]
    }
    names = [name for name, parameter in online.named_parameters() if id(parameter) in decayed]
    assert not [name for name in names if name.startswith("head.") or name.endswith("bias") or "norm" in name]
    found = {"blocks" if ".blocks." in name else name for name in names}
    assert found == expected
    matrices = [name for name, p in online.named_parameters() if ".blocks." in name and p.ndim == 2]
    assert {name for name in matrices if not name.startswith("head.")} == {n for n in names if ".blocks." in n}
