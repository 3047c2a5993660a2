"""Our core beside what the authors' own code computes, with their weights, imported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from reference import MODELS, Reference, recipe_of, reference
from torch import Tensor

from djepa_mm.conditions.label import class_condition
from djepa_mm.core.djepa import DJEPA, prediction_loss
from djepa_mm.core.masking import reveal_schedule
from djepa_mm.core.sampler import Sampler
from djepa_mm.core.types import TokenBatch
from djepa_mm.generation.pipeline import Pipeline
from djepa_mm.runs.published import import_model

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def imported(name: str, folder: Path, *overrides: str) -> tuple[Reference, Pipeline]:
    found = reference(name)
    import_model(found.published(folder / "theirs.pth"), recipe_of(name, *overrides), folder / "run")
    return found, Pipeline.load(folder / "run")


def inputs(pipeline: Pipeline, values: dict[str, Tensor]) -> TokenBatch:
    tokens = values["tokens"]
    return TokenBatch(
        tokens=tokens,
        positions=pipeline.tokenizer.spec_for().positions().expand(len(tokens), -1, -1),
        valid=torch.ones(tokens.shape[:2], dtype=torch.bool),
        condition=class_condition(values["labels"].tolist()),
    )


@pytest.mark.parametrize("name", MODELS)
def test_features_and_losses_are_the_authors(name: str, tmp_path: Path) -> None:
    found, pipeline = imported(name, tmp_path)
    values, model, batch = found.values, pipeline.model, inputs(pipeline, found.values)
    masked = values["mask"] == 1
    z, z_null = (
        model.features(batch.tokens, batch.positions, ~masked, batch.valid, batch.condition, null=null)
        for null in (False, True)
    )
    torch.testing.assert_close(z, values["z"], **CLOSE)
    torch.testing.assert_close(z_null, values["z_null"], **CLOSE)
    if name != "mar":
        target = model.target_features(batch, torch.zeros(len(z), dtype=torch.bool))
        torch.testing.assert_close(target, values["target"], **CLOSE)
        loss = prediction_loss(model.averaged.projector(z[masked]), target[masked]).mean()
        torch.testing.assert_close(loss, values["prediction_loss"][0], **CLOSE)
    x, features, t, noise = (values[f"head_{key}"] for key in ("x", "z", "t", "noise"))
    if name == "djepa-flow":
        velocity = model.head.velocity(t[:, None] * x + (1 - t[:, None]) * noise, t, features)  # type: ignore[attr-defined]
        torch.testing.assert_close(velocity, values["head_velocity"], **CLOSE)
        loss = model.head.error(features, x, t[:, None], noise)  # type: ignore[attr-defined]
        torch.testing.assert_close(loss, values["head_loss"], **CLOSE)
    else:
        error, bound = model.head.terms(features, x, t, noise)  # type: ignore[attr-defined]
        torch.testing.assert_close(error, values["head_mse"], **CLOSE)
        torch.testing.assert_close(bound, values["head_vb"], **CLOSE)
        torch.testing.assert_close(error + bound, values["head_loss"], **CLOSE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed(Sampler):
    """Reveals and draws what was recorded: the last places of an order first, the places of a step by their number."""

    recorded: Tensor  # (B, N) orders
    drawn: Iterator[Tensor]

    def _orders(self, free: Tensor, positions: Tensor, generators: Sequence[torch.Generator]) -> list[Tensor]:
        known = [0, *reveal_schedule(free.shape[1], self.ar_steps, self.schedule, self.leave_one)]
        return [torch.cat([row[a:b].sort().values for a, b in pairwise(known)]) for row in self.recorded.flip(1)]

    def _noise(
        self, generators: Sequence[torch.Generator], counts: Sequence[int], channels: int, device: torch.device
    ) -> Tensor:
        return next(self.drawn)[: sum(counts)]  # guided, they draw for both halves and use the first


@pytest.mark.parametrize("which", ["plain", "guided"])
@pytest.mark.parametrize("name", MODELS)
def test_whole_sampling_is_the_authors(name: str, which: str, tmp_path: Path) -> None:
    shift = reference(name).settings["time_shift"][which] if name == "djepa-flow" else None
    found, pipeline = imported(name, tmp_path, *([] if shift is None else [f"head.time_shift={shift}"]))
    batch, own = inputs(pipeline, found.values), pipeline.sampler
    assert own.leave_one
    assert own.guidance_schedule == found.settings["guidance"]["schedule"]
    keys = sorted(key for key in found.values if key.startswith(f"noise_{which}."))
    sampler = Replayed(
        ar_steps=own.ar_steps,
        temperature=own.temperature,
        guidance=found.settings["guidance"][which],
        leave_one=True,
        recorded=found.values["orders"],
        drawn=(found.values[key] for key in keys),
    )
    sample = sampler(
        pipeline.model,
        positions=batch.positions,
        valid=batch.valid,
        condition=batch.condition,
        generators=[torch.Generator() for _ in batch.tokens],
    )
    assert next(sampler.drawn, None) is None  # all that was drawn
    expected = found.values[f"sample_{which}"]
    assert float((sample - expected).norm() / expected.norm()) <= 2e-6


def test_the_target_encoder_sees_the_true_class_where_the_recipe_says_so(tmp_path: Path) -> None:
    """The condition is dropped from every item: the context's features change, the target's do not."""
    found, pipeline = imported("djepa-flow", tmp_path, "condition.drop=1.0")
    seen: list[Tensor] = []

    class Watched(DJEPA):
        def target_features(self, batch: TokenBatch, dropped: Tensor) -> Tensor:
            seen.append(dropped)
            return super().target_features(batch, dropped)

    model = pipeline.model
    model.__class__ = Watched
    model.online = model.averaged
    model(inputs(pipeline, found.values), torch.Generator().manual_seed(0))
    model.target_dropped = True
    model(inputs(pipeline, found.values), torch.Generator().manual_seed(0))
    assert [dropped.tolist() for dropped in seen] == [[False] * 3, [True] * 3]
