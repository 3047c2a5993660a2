"""What a recipe builds, counted on the meta device: no memory, no corpus.

B batch, N tokens, D model width, L condition tokens, P parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from rich.table import Table
from torch import nn

from djepa_mm.recipe.build import build_model, count_classes
from djepa_mm.recipe.schema import Recipe, TextConditionConfig
from djepa_mm.types import UserError

EXAMPLE_S = 5.0  # duration that stands for an item where items vary in length
EXAMPLE_CHARACTERS = 75


def describe(recipe: Recipe) -> Table:
    """Parameters by part, tokens, FLOPs and memory, as a table to print."""
    tokenizer = recipe.tokenizer.build()
    try:
        spec, item = tokenizer.spec_for(), "an item"
    except UserError:
        spec, item = tokenizer.spec_for(duration_s=EXAMPLE_S), f"an item of {EXAMPLE_S:g} s"
    try:
        classes = count_classes(recipe, None)
    except UserError:
        classes = len(recipe.data.build().classes)
    with torch.device("meta"):
        online = build_model(recipe, tokenizer, classes).online

    parts: dict[str, Iterable[nn.Parameter]] = {
        "context encoder, blocks": online.encoder.stack.transformer.blocks.parameters(),
        "predictor, blocks": online.predictor.stack.transformer.blocks.parameters(),
        "denoising MLP": online.head.parameters(),
        "projector of the prediction loss": online.projector.parameters(),
        "condition": online.conditioner.parameters(),
    }
    counts = {name: sum(p.numel() for p in parameters) for name, parameters in parts.items()}
    total = sum(p.numel() for p in online.parameters())
    table = Table("part", "value", title=f"{recipe.name}: {total / 1e6:,.1f} M parameters")
    table.columns[1].justify = "right"
    for name, count in counts.items():
        table.add_row(name, f"{count:,}")
    table.add_row("positions, input and output layers", f"{total - sum(counts.values()):,}")
    table.add_row("parameters in all", f"{total:,}", end_section=True)

    t, h, w = spec.grid
    text = isinstance(recipe.condition, TextConditionConfig)
    condition = recipe.condition.buffer_tokens + (EXAMPLE_CHARACTERS if text else 0)
    table.add_row(f"tokens in {item} (t × h × w)", f"{spec.num_tokens:,} ({t} × {h} × {w})")
    table.add_row("channels of a token", f"{tokenizer.token_dim:,}")
    numbers = spec.num_tokens * tokenizer.token_dim
    table.add_row("compression, numbers of the media for one of its tokens'", f"{math.prod(spec.shape) / numbers:.3g}")
    table.add_row(
        "condition tokens" + (f", text of {EXAMPLE_CHARACTERS}" if text else ""), f"{condition:,}", end_section=True
    )

    step, sample = flops(recipe, counts, spec.num_tokens, condition)
    table.add_row("FLOPs to train on an item, once", _si(step, "FLOP"))
    table.add_row(
        f"FLOPs to sample an item (T {recipe.sample.steps}, head steps {recipe.head.steps}, "
        f"guidance {recipe.sample.guidance:g})",
        _si(sample, "FLOP"),
        end_section=True,
    )
    states = 4 * total  # bytes of one fp32 copy
    items = recipe.batch.size
    if recipe.batch.tokens is not None:
        items = max(1, min(items, recipe.batch.tokens // spec.num_tokens))
    activations = items * activation_bytes(recipe, spec.num_tokens, condition)
    table.add_row("memory: weights, averages, gradients, AdamW", _si(5 * states, "B"))
    table.add_row(f"memory: activations, batch of {items} (estimate)", _si(activations, "B"))
    table.add_row("memory: weights to sample", _si(states, "B"))
    return table


def flops(recipe: Recipe, counts: dict[str, int], num_tokens: int, condition: int) -> tuple[float, float]:
    """(to train on one item, to sample one), 2 FLOPs a multiplication; attention counted, norms and biases not."""
    encoder, predictor, head = (
        counts[name] for name in ("context encoder, blocks", "predictor, blocks", "denoising MLP")
    )
    layers = 2 * recipe.model.size("depth") * recipe.model.size("width")  # times S² is QK and AV, a multiplication each

    def transformer(parameters: int, tokens: float) -> float:
        length = tokens + condition
        return 2 * parameters * length + 2 * layers * length**2

    share = (recipe.mask.low + recipe.mask.high) / 2  # masked; near enough for an estimate
    predicted = min(num_tokens * share, recipe.mask.horizon or num_tokens)
    everything = transformer(predictor, num_tokens)
    visible = num_tokens * (1 - share)
    seen = num_tokens if recipe.mask.horizon is None else visible + predicted
    forward = transformer(encoder, visible) + transformer(predictor, seen) + 2 * head * predicted * recipe.head.repeats
    train = 3 * forward + (transformer(encoder, seen) if recipe.loss.prediction else 0)

    steps, passes = recipe.sample.steps, 2 if recipe.sample.guidance != 1 else 1
    evaluations = recipe.head.steps * (2 if recipe.head.solver == "heun" else 1)
    # the share known grows with the cosine schedule, from 0 to 1; on average 1 − 2/π of the tokens
    sample = passes * steps * (transformer(encoder, num_tokens * (1 - 2 / torch.pi)) + everything)
    sample += passes * 2 * head * num_tokens * evaluations
    return train, sample


def activation_bytes(recipe: Recipe, num_tokens: int, condition: int) -> float:
    """Of one item, kept for the backward pass: per block and token about 34 bytes a channel in bf16 without dropout
    masks (Korthikanti et al. 2022, eq. 2, attention matrices not kept), doubled in fp32."""
    width = 2 if recipe.optim.precision == "bf16" else 4
    model = recipe.model
    share = 1 + (1 - recipe.mask.low)  # predictor on all tokens (at most, with a horizon), encoder on the visible ones
    blocks = 17 * width * model.size("depth") * model.size("width") * (num_tokens + condition) * share
    head_blocks = recipe.head.blocks or model.size("head_blocks")
    head_width = recipe.head.width or model.size("head_width")
    return blocks + 9 * width * head_blocks * head_width * num_tokens * recipe.head.repeats


def _si(value: float, unit: str) -> str:
    for scale, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= scale:
            return f"{value / scale:,.2f} {prefix}{unit}"
    return f"{value:,.0f} {unit}"
