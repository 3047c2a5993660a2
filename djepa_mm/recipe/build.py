"""From a recipe to the objects that it describes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from djepa_mm.core.djepa import DJEPA, Positions, Size
from djepa_mm.core.heads.diffusion import DiffusionHead
from djepa_mm.core.heads.flow import FlowHead
from djepa_mm.core.masking import MaskRatio
from djepa_mm.core.sampler import Sampler
from djepa_mm.recipe.schema import Recipe
from djepa_mm.types import ConditionKind, MediaSpec, Tokenizer, UserError


def build_model(recipe: Recipe, tokenizer: Tokenizer, condition: ConditionKind[Any]) -> DJEPA:
    """The model, on the device and with the random state that are current.

    Raises UserError where a table of positions does not fit media of many sizes."""
    model, head = recipe.model, recipe.head
    if model.fixed_grid and tokenizer.fixed is None:
        raise UserError(
            f"model.positions is {model.positions}, but this tokenizer's media vary in size: set it to rotary, or "
            "tokenizer.vary to false"
        )
    width = model.size("width")
    positions = Positions(
        grid=tokenizer.spec_for().grid if model.fixed_grid else None,
        axes=None if model.positions == "learned" else model.axes,
        rotary_base=model.rotary_base,
        field=model.field,
        buffer=recipe.condition.buffer_tokens if model.buffer_positions else 0,
        before_head=model.head_positions,
    )
    embedder = condition.module(width)
    sizes: dict[str, Any] = {
        "token_dim": tokenizer.token_dim,
        "feature_width": width,
        "width": head.width or model.size("head_width"),
        "blocks": head.blocks or model.size("head_blocks"),
        "solver_steps": head.steps,
    }
    options = head.model_dump(exclude={"kind", "width", "blocks", "steps"})
    return DJEPA(
        token_dim=tokenizer.token_dim,
        size=Size(
            width=width,
            depth=model.size("depth"),
            heads=model.size("heads"),
            mlp_ratio=model.mlp_ratio,
            dropout=model.dropout,
            streams=model.streams,
            qk_norm=model.qk_norm,
        ),
        positions=positions,
        embedder=embedder,
        head=(FlowHead if head.kind == "flow" else DiffusionHead)(**sizes, **options),
        mask_ratio=MaskRatio(**recipe.mask.model_dump(exclude={"orders", "horizon"})),
        mask_orders=recipe.mask.orders,
        mask_horizon=recipe.mask.horizon,
        condition_drop=recipe.condition.drop,
        generation_weight=recipe.loss.generation,
        prediction_weight=recipe.loss.prediction,
        target_dropped=recipe.loss.target_dropped,
        projector=model.projector,
    )


def check_memory(recipe: Recipe, tokenizer: Tokenizer, condition: ConditionKind[Any], device: torch.device) -> None:
    """Raises UserError where the device has less memory, even if nothing else is in it, than the networks take."""
    what = "model and head: the networks and their averages"
    keys = "model.preset, or look at model.width, model.depth, head.width, head.blocks and tokenizer.size"
    check_room(lambda: build_model(recipe, tokenizer, condition), device, what, keys)


def check_room(build: Callable[[], nn.Module], device: torch.device, what: str, keys: str) -> None:
    """As `check_memory`, of any network. what, keys: for the error, of which a smaller one is chosen."""
    there = memory_of(device)
    try:
        with torch.device("meta"):
            model = build()
        needed: float = sum(p.numel() * p.element_size() for p in model.parameters())
    except (RuntimeError, OverflowError):  # sizes that torch cannot count
        needed = math.inf
    if needed > there:
        raise UserError(
            f"{what} take {needed / 1e9:,.0f} GB, and {device} has {there / 1e9:,.0f} GB: choose a smaller {keys} "
            "(djepa-mm info counts)"
        )


def memory_of(device: torch.device) -> float:
    """In bytes, whatever else is in it."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return math.inf  # on Windows


def check_item(recipe: Recipe, spec: MediaSpec, device: torch.device) -> None:
    """Raises UserError where the device has less memory, even if nothing else is in it, than one item of that size
    takes to sample: a block's tokens, queries, keys, values and MLP, and the media."""
    numbers = spec.num_tokens * recipe.model.size("width") * (5 + recipe.model.mlp_ratio) + math.prod(spec.shape)
    needed, there = 4 * numbers, memory_of(device)
    if needed > there:
        raise UserError(
            f"an item of {spec.num_tokens:,} tokens takes {needed / 1e9:,.0f} GB or more to sample, and {device} has "
            f"{there / 1e9:,.0f} GB: ask for a smaller size"
        )


def build_sampler(recipe: Recipe) -> Sampler:
    options = recipe.sample.model_dump(exclude={"steps"})
    return Sampler(ar_steps=recipe.sample.steps, **options, horizon=recipe.mask.horizon)
