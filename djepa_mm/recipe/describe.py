"""What a recipe builds, counted on the meta device: no memory, no corpus.

B batch, N tokens, C token channels, D model width, L condition tokens, S sequence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from djepa_mm.core.djepa import Networks, Stack
from djepa_mm.media.mel import LogMel
from djepa_mm.recipe.build import build_model, build_sampler
from djepa_mm.recipe.kinds import AnyRecipe
from djepa_mm.recipe.schema import Recipe
from djepa_mm.recipe.tokenizer import TokenizerRecipe
from djepa_mm.recipe.vocoder import VocoderRecipe
from djepa_mm.speech.vocoders.fourier import FourierVocoder
from djepa_mm.tokenizers.autoencoder import Autoencoder
from djepa_mm.types import ConditionKind, Extent, MediaSpec, Tokenizer, UserError

EXAMPLE_S = 5.0  # duration that stands for an item where items vary in length
FP32 = 4  # bytes of a number
USUAL_RATE_HZ = 22_050  # of sounds; a vocoder has as many parameters at any


def describe(recipe: AnyRecipe) -> Table:
    """Parameters by part, tokens, FLOPs and memory, as a table to print."""
    if isinstance(recipe, TokenizerRecipe):
        return _describe_tokenizer(recipe)
    if isinstance(recipe, VocoderRecipe):
        return _describe_vocoder(recipe)
    tokenizer, condition = recipe.tokenizer.build(), _condition(recipe)
    spec, item = _example(tokenizer)
    with torch.device("meta"):
        online = build_model(recipe, tokenizer, condition).online

    parts: dict[str, Iterable[nn.Parameter]] = {
        "context encoder, blocks": online.encoder.stack.transformer.blocks.parameters(),
        "predictor, blocks": online.predictor.stack.transformer.blocks.parameters(),
        "denoising MLP": online.head.parameters(),
        "projector of the prediction loss": online.projector.parameters(),
        "condition": online.embedder.parameters(),
    }
    counts = {name: sum(p.numel() for p in parameters) for name, parameters in parts.items()}
    total = sum(p.numel() for p in online.parameters())
    table = Table("part", "value", title=f"{recipe.name}: {total / 1e6:,.1f} M parameters")
    table.columns[1].justify = "right"
    for name, count in counts.items():
        table.add_row(name, f"{count:,}")
    table.add_row("positions, input and output layers", f"{total - sum(counts.values()):,}")
    table.add_row("parameters in all", f"{total:,}", end_section=True)

    length = recipe.condition.buffer_tokens + condition.usual_length
    _add_tokens(table, spec, item, tokenizer.token_dim)
    table.add_row("condition tokens of a usual item", f"{length:,}", end_section=True)

    passes = Passes(online, tokenizer.token_dim, length)
    table.add_row("FLOPs to train on an item, once", _si(train_flops(recipe, passes, spec.num_tokens), "FLOP"))
    table.add_row(
        f"FLOPs to sample an item (T {recipe.sample.steps}, sweeps {recipe.sample.sweeps}, "
        f"head steps {recipe.head.steps}, guidance {recipe.sample.guidance:g})",
        _si(sample_flops(recipe, passes, spec.num_tokens), "FLOP"),
        end_section=True,
    )
    states = FP32 * total  # bytes of one copy
    items = recipe.batch.size
    tokens = min(spec.num_tokens, recipe.batch.item_tokens or spec.num_tokens)
    if recipe.batch.tokens is not None:
        items = max(1, min(items, recipe.batch.tokens // tokens))
    activations = items * activation_bytes(recipe, tokens, length)
    table.add_row("memory: weights, averages, gradients, AdamW", _si(5 * states, "B"))
    table.add_row(f"memory: activations, batch of {items} (estimate)", _si(activations, "B"))
    table.add_row("memory: weights to sample", _si(states, "B"))
    return table


def _describe_tokenizer(recipe: TokenizerRecipe) -> Table:
    raw, channels = recipe.tokenizer.build(), recipe.model.channels
    spec, item = _example(raw)
    with torch.device("meta"):
        network = Autoencoder(raw.token_dim, recipe.model)
        positions = spec.positions()[None]
    counts = {name: sum(p.numel() for p in network.get_submodule(name).parameters()) for name in ("encoder", "decoder")}
    total = sum(p.numel() for p in network.parameters())
    table = Table("part", "value", title=f"{recipe.name}: {total / 1e6:,.1f} M parameters")
    table.columns[1].justify = "right"
    for name, count in counts.items():
        table.add_row(name, f"{count:,}")
    table.add_row("parameters in all", f"{total:,}", end_section=True)
    table.add_row("numbers of a raw token", f"{raw.token_dim:,}")
    _add_tokens(table, spec, item, channels)
    for what, run, numbers in (("encode", network.posterior, raw.token_dim), ("decode", network.decode, channels)):
        flops = _counted(partial(run, positions=positions), (1, spec.num_tokens, numbers))
        table.add_row(f"FLOPs to {what} an item", _si(flops, "FLOP"))
    table.add_section()
    table.add_row("memory: weights, averages, gradients, AdamW", _si(5 * FP32 * total, "B"))
    return table


def _describe_vocoder(recipe: VocoderRecipe) -> Table:
    convention = LogMel(USUAL_RATE_HZ).convention
    with torch.device("meta"):
        total = sum(p.numel() for p in FourierVocoder(convention, recipe.model).parameters())
    table = Table("part", "value", title=f"{recipe.name}: {total / 1e6:,.1f} M parameters")
    table.columns[1].justify = "right"
    table.add_row("parameters in all", f"{total:,}")
    table.add_row("memory: weights, averages, gradients, AdamW", _si(5 * FP32 * total, "B"))
    return table


def _example(tokenizer: Tokenizer) -> tuple[MediaSpec, str]:
    """Size of a usual item, and what it is called."""
    try:
        return tokenizer.spec_for(), "an item"
    except UserError:
        return tokenizer.spec_for(Extent(duration_s=EXAMPLE_S)), f"an item of {EXAMPLE_S:g} s"


def _add_tokens(table: Table, spec: MediaSpec, item: str, channels: int) -> None:
    t, h, w = spec.grid
    table.add_row(f"tokens in {item} (t × h × w)", f"{spec.num_tokens:,} ({t} × {h} × {w})")
    table.add_row("channels of a token", f"{channels:,}")
    compression = math.prod(spec.shape) / (spec.num_tokens * channels)
    table.add_row("compression, numbers of the media for one of its tokens'", f"{compression:.3g}")


def _condition(recipe: Recipe) -> ConditionKind[Any]:
    """The kind of condition; it looks into the corpus only where the recipe does not say its size."""
    condition = recipe.condition.build()
    try:
        with torch.device("meta"):
            condition.module(recipe.model.size("width"))
    except UserError:
        if recipe.data.made:  # nobody asked for a corpus to be made
            raise
        condition.bind(recipe.data.build())
    return condition


class Passes:
    """FLOPs of forward passes on one item, which torch counts while the modules run on the meta device: products of
    matrices and attention, 2 a multiplication; norms, biases and activations are not counted."""

    def __init__(self, online: Networks, token_dim: int, condition: int) -> None:
        """condition: L."""
        self.online, self.token_dim, self.condition = online, token_dim, condition
        self.width = online.predictor.input.in_features

    def encoder(self, tokens: int) -> int:
        """Of the context encoder on so many visible tokens."""
        encoder = self.online.encoder
        return _counted(encoder.input, (tokens, self.token_dim)) + self._blocks(encoder.stack, tokens)

    def predictor(self, visible: int, tokens: int) -> int:
        """Of the predictor on so many tokens, some of them visible."""
        predictor = self.online.predictor
        inputs = _counted(predictor.input, (self.condition + visible, self.width))
        return inputs + self._blocks(predictor.stack, tokens)

    def projector(self, tokens: int) -> int:
        return _counted(self.online.projector, (tokens, self.width))

    def head(self, tokens: int, times: int) -> int:
        """Of the denoising MLP, once for each token; times: its noise levels, one for all of them or one each."""
        mlp = self.online.head.get_submodule("mlp")
        return _counted(mlp, (tokens, self.token_dim), (times,), (tokens, self.width))

    def _blocks(self, stack: Stack, tokens: int) -> int:
        """Of all blocks on so many tokens behind the condition. They are alike, and one of them runs."""
        length = self.condition + tokens
        rotary = None if stack.rotary is None else stack.rotary(torch.empty(1, length, 3, device="meta"))
        blocks = stack.transformer.blocks
        run = partial(blocks[0], condition_length=self.condition, mask=None, rotary=rotary)
        return len(blocks) * _counted(run, (1, length, self.width))


def _counted(run: Callable[..., Any], *shapes: tuple[int, ...]) -> int:
    """FLOPs of a call with tensors of these shapes."""
    inputs = [torch.empty(shape, device="meta") for shape in shapes]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run(*inputs)
    return counter.get_total_flops()


def train_flops(recipe: Recipe, passes: Passes, num_tokens: int) -> float:
    """To train on one item: forward and twice that backward, and the target encoder forward."""
    share = (recipe.mask.low + recipe.mask.high) / 2  # masked; near enough for an estimate
    visible, predicted = round(num_tokens * (1 - share)), round(num_tokens * share)
    seen = num_tokens
    if recipe.mask.horizon is not None:
        predicted = min(predicted, recipe.mask.horizon)
        seen = visible + predicted
    forward = passes.encoder(visible) + passes.predictor(visible, seen)
    forward += passes.head(predicted, predicted) * recipe.head.repeats
    target = 0
    if recipe.loss.prediction:
        forward += passes.projector(predicted)
        target = passes.encoder(seen)
    return 3 * forward + target


def sample_flops(recipe: Recipe, passes: Passes, num_tokens: int) -> float:
    """To sample one item."""
    guided = 2 if recipe.sample.guidance != 1 else 1
    evaluations = recipe.head.steps * (2 if recipe.head.solver == "heun" else 1)
    planned = build_sampler(recipe).passes
    steps, drawn = sum(steps for _, steps in planned), sum(share for share, _ in planned)
    # the share known grows with the cosine schedule to 1; on average 2/π of what a pass hides is hidden
    hidden = sum(share * steps for share, steps in planned) / steps * 2 / math.pi
    known = round(num_tokens * (1 - hidden))
    step = passes.encoder(known) + passes.predictor(known, num_tokens)
    return guided * (steps * step + evaluations * drawn * passes.head(num_tokens, 1))


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
