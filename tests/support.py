"""What many tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from djepa_mm.recipe.schema import Recipe
from djepa_mm.types import ConditionKind

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "djepa_mm"
SHARED = ROOT.parent / "shared"


def ten_classes(recipe: Recipe) -> ConditionKind[Any]:
    """The recipe's kind of condition; where it takes classes, it knows the digits."""
    kind = recipe.condition.build()
    if recipe.condition.kind == "class":
        kind.load_state({"classes": list("0123456789")})
    return kind
