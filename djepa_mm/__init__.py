"""djepa-mm: pictures, video and speech from one D-JEPA core.

    model = djepa_mm.load("runs/digits")
    model.generate(class_="7", count=4).save("digits")

What is here is the door for scripts and notebooks; docs/python.md shows around. Nothing heavy is imported until it is
used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from djepa_mm.errors import UserError

if TYPE_CHECKING:
    from djepa_mm.door import Model, Tokens, extend, load, train
    from djepa_mm.generation.files import Generated, Results
    from djepa_mm.recipe.load import load_recipe
    from djepa_mm.training.callbacks import Callback
    from djepa_mm.training.loop import Outcome

__version__ = "0.1.0"
__all__ = [
    "Callback",
    "Generated",
    "Model",
    "Outcome",
    "Results",
    "Tokens",
    "UserError",
    "extend",
    "load",
    "load_recipe",
    "train",
]

_HOMES = {
    **dict.fromkeys(("Model", "Tokens", "extend", "load", "train"), "djepa_mm.door"),
    **dict.fromkeys(("Generated", "Results"), "djepa_mm.generation.files"),
    "load_recipe": "djepa_mm.recipe.load",
    "Callback": "djepa_mm.training.callbacks",
    "Outcome": "djepa_mm.training.loop",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'djepa_mm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
