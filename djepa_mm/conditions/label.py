"""A class for each item: D-JEPA's and MAR's own condition.

B batch, K buffer tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from djepa_mm.core.types import Condition, ConditionTokens
from djepa_mm.types import BrokenItem, ConditionConfig, ConditionKind, Entry, Source, Stream, UserError

MOST_NAMED = 20  # classes, in an error


class ClassConfig(ConditionConfig):
    """The class of an item; each buffer token carries it."""

    kind: Literal["class"]
    classes: PositiveInt | None = None
    """How many classes the corpus has to have; given, the model's size is known without the corpus."""

    def build(self) -> ClassCondition:
        return ClassCondition(self)


class ClassCondition(ConditionKind[int]):
    """Values are the numbers of classes, in the order of the corpus that the run began with."""

    keys: ClassVar[tuple[str, ...]] = ("class",)

    def __init__(self, config: ClassConfig) -> None:
        self.config = config
        self.classes: tuple[str, ...] = ()
        self.numbers: dict[str, int] = {}

    def bind(self, source: Source | Stream) -> None:
        if not source.classes:
            raise UserError(
                "condition.kind is class, but the corpus has no classes, such as class folders: "
                "--set condition.kind=none --set sample.guidance=1 trains without them"
            )
        if self.config.classes not in (None, len(source.classes)):
            raise UserError(
                f"condition.classes is {self.config.classes}, but the corpus has {len(source.classes)} classes"
            )
        self._name(source.classes)

    def read(self, entry: Entry) -> int:
        if entry.label is None:
            raise BrokenItem("it has no class, and condition.kind is class")
        if entry.label not in self.numbers:
            raise BrokenItem(f"its class {entry.label!r} is none that the model knows")
        return self.numbers[entry.label]

    def module(self, width: int) -> ClassEmbedder:
        count = len(self.classes) or self.config.classes
        if count is None:
            raise UserError("the number of classes is not known without the corpus: give condition.classes")
        return ClassEmbedder(count, width, self.config.buffer_tokens)

    def encode(self, values: Sequence[int], num_tokens: Sequence[int]) -> Condition:
        return class_condition(values)

    def parse(self, request: Mapping[str, Any]) -> int:
        self.check_keys(request)
        known = ", ".join(self.classes[:MOST_NAMED]) + (", …" if len(self.classes) > MOST_NAMED else "")
        if "class" not in request:
            raise UserError(f"this model needs a class: --class one of {known}")
        name = str(request["class"])
        if name not in self.numbers:
            raise UserError(f"--class {name}: no such class; known are {known}")
        return self.numbers[name]

    def usual_requests(self) -> list[Mapping[str, Any]]:
        """Each class."""
        return [{"class": name} for name in self.classes]

    def request(self, entry: Entry) -> Mapping[str, Any]:
        return {"class": entry.label}

    def state(self) -> dict[str, Any]:
        return {"classes": list(self.classes)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        if not isinstance(state["classes"], list) or not all(isinstance(name, str) for name in state["classes"]):
            raise TypeError("classes that are no list of names")
        if self.classes and list(self.classes) != state["classes"]:
            differing = sorted(set(self.classes) ^ set(state["classes"]))[:5]
            what = f"{', '.join(differing)} on one side alone" if differing else "in another order"
            raise UserError(f"the corpus has other classes than the run was trained on: {what}; restore its folders")
        self._name(state["classes"])

    def _name(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.numbers = {name: number for number, name in enumerate(classes)}


class ClassEmbedder(nn.Module):
    """K learned buffer tokens, each plus the class embedding (method of MAR and D-JEPA). No classes: unconditional.

    The embedding's last row is the null class, which stands where the condition is dropped.
    """

    def __init__(self, num_classes: int, width: int, buffer_tokens: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.buffer = nn.Parameter(torch.empty(buffer_tokens, width))
        self.classes = nn.Embedding(num_classes + 1, width)
        nn.init.trunc_normal_(self.buffer, std=0.02)
        nn.init.trunc_normal_(self.classes.weight, std=0.02)

    def forward(self, condition: Condition, dropped: Tensor) -> ConditionTokens:
        """dropped (B,) bool: True where the null condition stands in for the class."""
        ids = condition.values[:, 0].masked_fill(dropped, self.num_classes)
        tokens = self.buffer + self.classes(ids).unsqueeze(1)  # (B, K, D)
        return ConditionTokens(
            tokens=tokens,
            valid=torch.ones(tokens.shape[:2], dtype=torch.bool, device=ids.device),
            positions=tokens.new_zeros(*tokens.shape[:2], 3, dtype=torch.float32),
        )


def class_condition(classes: Sequence[int]) -> Condition:
    """Numbers of the classes of a batch."""
    ids = torch.tensor(classes, dtype=torch.int64)[:, None]
    return Condition(
        values=ids, valid=torch.ones_like(ids, dtype=torch.bool), positions=torch.zeros(len(classes), 1, 3)
    )
