"""From a recipe to the objects that it describes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from djepa_mm.conditions.text import (
    ClassConditioner,
    Pace,
    TextConditioner,
    Vocabulary,
    class_condition,
    text_condition,
)
from djepa_mm.core.djepa import DJEPA, Positions, Size
from djepa_mm.core.heads.diffusion import DiffusionHead
from djepa_mm.core.heads.flow import FlowHead
from djepa_mm.core.masking import MaskRatio
from djepa_mm.core.sampler import Sampler
from djepa_mm.recipe.schema import ClassConditionConfig, Recipe, TextConditionConfig
from djepa_mm.types import BrokenItem, Condition, Item, Tokenizer, UserError


def build_model(recipe: Recipe, tokenizer: Tokenizer, num_classes: int) -> DJEPA:
    """The model, on the device and with the random state that are current."""
    model, condition, head = recipe.model, recipe.condition, recipe.head
    width = model.size("width")
    positions = Positions(
        grid=tokenizer.spec_for().grid if model.fixed_grid else None,
        axes=None if model.positions == "learned" else model.axes,
        rotary_base=model.rotary_base,
    )
    conditioner: torch.nn.Module
    if isinstance(condition, TextConditionConfig):
        conditioner = TextConditioner(len(condition.characters), width, condition.buffer_tokens)
    else:
        conditioner = ClassConditioner(num_classes, width, condition.buffer_tokens)
    sizes: dict[str, Any] = {
        "token_dim": tokenizer.token_dim,
        "feature_width": width,
        "width": head.width or model.size("head_width"),
        "blocks": head.blocks or model.size("head_blocks"),
    }
    options = head.model_dump(exclude={"kind", "width", "blocks"})
    return DJEPA(
        token_dim=tokenizer.token_dim,
        size=Size(
            width=width,
            depth=model.size("depth"),
            heads=model.size("heads"),
            mlp_ratio=model.mlp_ratio,
            dropout=model.dropout,
            streams=model.streams,
        ),
        positions=positions,
        conditioner=conditioner,
        head=(FlowHead if head.kind == "flow" else DiffusionHead)(**sizes, **options),
        mask_ratio=MaskRatio(**recipe.mask.model_dump(exclude={"orders", "horizon"})),
        mask_orders=recipe.mask.orders,
        mask_horizon=recipe.mask.horizon,
        condition_drop=condition.drop,
        generation_weight=recipe.loss.generation,
        prediction_weight=recipe.loss.prediction,
    )


def count_classes(recipe: Recipe, found: int | None) -> int:
    """Classes of the condition, 0 for none; `found` is what the corpus has, None where it was not looked at."""
    condition = recipe.condition
    if not isinstance(condition, ClassConditionConfig):
        return 0
    if found == 0:
        raise UserError("condition.kind is class, but the corpus has no classes: set it to none")
    if found is not None and condition.classes not in (None, found):
        raise UserError(f"condition.classes is {condition.classes}, but the corpus has {found} classes")
    count = found or condition.classes
    if count is None:
        raise UserError("the number of classes is not known without the corpus: give condition.classes")
    return count


def build_sampler(recipe: Recipe) -> Sampler:
    return Sampler(**recipe.sample.model_dump(), horizon=recipe.mask.horizon)


class Conditions:
    """Turns items into the recipe's kind of condition."""

    def __init__(self, recipe: Recipe, pace: Pace | None = None) -> None:
        config = recipe.condition
        self.pace = pace  # of texts; `Pace.fit` gives it to a new run
        self.by_class = isinstance(config, ClassConditionConfig)
        self.vocabulary: Vocabulary | None = None
        if isinstance(config, TextConditionConfig):
            self.vocabulary = Vocabulary(
                symbols=config.characters,
                lowercase=config.lowercase,
                english=config.normalize == "english",
                phonemes=config.units == "phonemes",
            )
            self.layout = config.layout

    def __call__(self, items: Sequence[Item], num_tokens: Sequence[int]) -> Condition:
        """For items and the token counts of their media."""
        if self.vocabulary is None:
            return class_condition([(item.label or 0) if self.by_class else 0 for item in items])
        assert self.pace is not None
        return text_condition(
            [self.vocabulary.encode(item.text or "") for item in items], num_tokens, self.layout, self.pace
        )

    def clean(self, text: str | None) -> str | None:
        """A corpus' text without the characters that the model does not know. Raises BrokenItem where none is left."""
        if self.vocabulary is None:
            return text
        if text is None:
            raise BrokenItem("it has no text, and condition.kind is text")
        cleaned = self.vocabulary.clean(text)
        if not any(c.isalnum() for c in cleaned):
            raise BrokenItem(f"no character of its text {text!r} is in condition.characters")
        return cleaned
