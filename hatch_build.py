"""The build's own step: a wheel has `recipes/` and `tokenizers/` inside the package."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Folders(BuildHookInterface[Any]):
    """Not for an editable install, which would freeze a copy of them: `djepa_mm.layout` finds those of the checkout."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":
            for folder in ("recipes", "tokenizers"):
                build_data["force_include"][folder] = f"djepa_mm/{folder}"
