"""A kind of condition that is neither class nor text: some numbers, in a JSON file beside each item.

B batch, K buffer tokens, E numbers, D model width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from djepa_mm.core.types import Condition, ConditionTokens
from djepa_mm.types import BrokenItem, ConditionConfig, ConditionKind, Entry, UserError


class VectorConfig(ConditionConfig):
    kind: Literal["vector"]
    numbers: PositiveInt
    """How many."""

    def build(self) -> VectorCondition:
        return VectorCondition(self)


class VectorCondition(ConditionKind[Tensor]):
    keys: ClassVar[tuple[str, ...]] = ("vector",)

    def __init__(self, config: VectorConfig) -> None:
        self.config = config
        self.seen: list[list[float]] = []  # a few of the corpus'

    def read(self, entry: Entry) -> Tensor:
        if entry.path is None:
            raise BrokenItem("it is no file, so no numbers lie beside it")
        try:
            return self._checked(json.loads(entry.path.with_suffix(".json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise BrokenItem(f"no numbers beside it ({error})") from error

    def fit(self, values: Sequence[Tensor], num_tokens: Sequence[int]) -> None:
        self.seen = [value.tolist() for value in values[:4]]

    def module(self, width: int) -> VectorEmbedder:
        return VectorEmbedder(self.config.numbers, width, self.config.buffer_tokens)

    def encode(self, values: Sequence[Tensor], num_tokens: Sequence[int]) -> Condition:
        features = torch.stack(list(values))[:, None]  # (B, 1, E)
        valid = torch.ones(features.shape[:2], dtype=torch.bool)
        return Condition(values=features, valid=valid, positions=torch.zeros(len(features), 1, 3))

    @property
    def usual_length(self) -> int:
        return 1

    def parse(self, request: Mapping[str, Any]) -> Tensor:
        self.check_keys(request)
        if "vector" not in request:
            raise UserError("this model needs numbers: --condition vector=[…]")
        try:
            return self._checked(request["vector"])
        except (ValueError, TypeError) as error:
            raise UserError(f"--condition vector={request['vector']}: {error}") from None

    def usual_requests(self) -> list[Mapping[str, Any]]:
        return [{"vector": numbers} for numbers in self.seen]

    def state(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.seen = state["seen"]

    def _checked(self, numbers: Any) -> Tensor:
        vector = torch.tensor(numbers, dtype=torch.float32)
        if vector.shape != (self.config.numbers,):
            raise ValueError(f"expected {self.config.numbers} numbers")
        return vector


class VectorEmbedder(nn.Module):
    """Learned buffer tokens, then one token for the numbers; a learned one where they are dropped."""

    def __init__(self, numbers: int, width: int, buffer_tokens: int) -> None:
        super().__init__()
        self.buffer = nn.Parameter(0.02 * torch.randn(buffer_tokens, width))
        self.null = nn.Parameter(0.02 * torch.randn(width))
        self.input = nn.Linear(numbers, width)

    def forward(self, condition: Condition, dropped: Tensor) -> ConditionTokens:
        token = torch.where(dropped[:, None, None], self.null, self.input(condition.values))  # (B, 1, D)
        buffer = self.buffer.expand(len(token), -1, -1).to(token)
        tokens = torch.cat([buffer, token], dim=1)  # (B, K + 1, D)
        valid = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return ConditionTokens(tokens=tokens, valid=valid, positions=torch.zeros(*tokens.shape[:2], 3).to(tokens))
