"""Models that the authors' own code has computed: its weights, inputs and outputs, and recipes for their sizes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import SHARED
from torch import Tensor

from djepa_mm.recipe.load import load_recipe
from djepa_mm.recipe.schema import Recipe

FOLDER = SHARED / "reference"
MODELS = ("djepa-flow", "djepa-gauss", "mar")
SIZES = (
    *("model.width=48", "model.depth=2", "model.heads=4", "head.width=64", "head.blocks=2", "condition.classes=10"),
    *("condition.buffer_tokens=8", "tokenizer.size=[128, 128]", "sample.steps=5", "sample.temperature=0.9"),
)
GAUSS = ("head.steps=20",)
# one step fewer than their points on [0, 1]; their sampling has no temperature
FLOW = (
    "head={kind: flow, width: 64, blocks: 2, steps: 19, time_sampling: uniform, time_scale: 1}",
    "sample.temperature=1",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    settings: dict[str, Any]
    weights: dict[str, Tensor]  # by the authors' names
    values: dict[str, Tensor]  # inputs and outputs

    def published(self, path: Path, **beside: Any) -> Path:
        """Write the weights as a .pth, as MAR's code does it. beside: what else is in the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"model": self.weights, **beside}, path)
        return path


def reference(name: str) -> Reference:
    if not FOLDER.is_dir():
        pytest.skip(f"the reference values {FOLDER} are not on this machine")
    found = load_file(FOLDER / f"{name}.safetensors")
    return Reference(
        settings=json.loads((FOLDER / f"{name}.json").read_text()),
        weights={key.removeprefix("weights."): value for key, value in found.items() if key.startswith("weights.")},
        values={key: value for key, value in found.items() if not key.startswith("weights.")},
    )


def recipe_of(name: str, *overrides: str) -> Recipe:
    packaged = "mar256-b" if name == "mar" else "imagenet256-b"
    return load_recipe(packaged, [*SIZES, *(FLOW if name == "djepa-flow" else GAUSS), *overrides])
