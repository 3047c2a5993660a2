"""No condition: learned buffer tokens alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from djepa_mm.conditions.label import ClassEmbedder, class_condition
from djepa_mm.core.types import Condition
from djepa_mm.types import ConditionConfig, ConditionKind, Entry


class NoConditionConfig(ConditionConfig):
    """Nothing: the model learns the corpus as a whole."""

    kind: Literal["none"]
    drop: Annotated[float, Field(ge=0, le=0)] = 0.0
    """There is nothing to drop."""

    def build(self) -> NoCondition:
        return NoCondition(self)


class NoCondition(ConditionKind[None]):
    def __init__(self, config: NoConditionConfig) -> None:
        self.config = config

    def read(self, entry: Entry) -> None:
        return None

    def module(self, width: int) -> ClassEmbedder:
        return ClassEmbedder(0, width, self.config.buffer_tokens)

    def encode(self, values: Sequence[None], num_tokens: Sequence[int]) -> Condition:
        return class_condition([0] * len(values))

    def parse(self, request: Mapping[str, Any]) -> None:
        self.check_keys(request)
