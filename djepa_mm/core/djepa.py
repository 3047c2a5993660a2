"""D-JEPA: Denoising with a Joint-Embedding Predictive Architecture (Chen et al. 2024).

A context encoder φ sees the visible tokens and the condition, a predictor γ gives a feature z_i for every masked
place, a head learns p(x_i | z_i); the target encoder φ̄, an EMA of φ, sees everything and gives the targets g_i.

B batch, N tokens, C token channels, D model width, V visible tokens, L condition tokens, M masked tokens of the batch.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from djepa_mm.core.averaging import update_average
from djepa_mm.core.masking import Mask, MaskRatio, Order, draw_mask
from djepa_mm.core.nn.blocks import Streams, Transformer, xavier_init
from djepa_mm.core.nn.positions import LearnedPositions, RotaryPositions, in_field
from djepa_mm.core.types import Condition, ConditionEmbedder, ConditionTokens, Head, Noising, TokenBatch

Projector = Literal["plain", "norm", "none"]  # of the prediction loss, see Networks


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Size of the context encoder, and likewise of the predictor."""

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    streams: Streams = "one"
    qk_norm: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """How tokens know their place: a learned table over `grid`, rotary angles on `axes`, or both.

    field: g, where the angles are of places in a field of view, see `in_field`; None leaves places as they are.
    buffer: so many condition tokens at the head of γ's sequence have learned positions too; those of φ's are the
    buffer tokens themselves. before_head: one more table over `grid` is added to what γ gives. Both are MAR's.
    """

    grid: tuple[int, int, int] | None = None
    axes: tuple[str, ...] | None = None
    rotary_base: float = 10_000.0
    field: float | None = None
    buffer: int = 0
    before_head: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Means over the batch's masked tokens; `total` weighs and adds the two."""

    total: Tensor
    generation: Tensor
    prediction: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """What chance decides in a step of training."""

    mask: Mask
    dropped: Tensor  # (B,) bool: the condition is replaced by the null one
    noising: Noising  # of the masked tokens, item by item

    def of(self, items: Sequence[int], num_tokens: int) -> Draws:
        """For some of the batch's items alone, of which none has more than so many tokens."""
        chosen = torch.tensor(items, device=self.dropped.device)
        counts = self.mask.masked.sum(1).cpu()
        last = counts.cumsum(0)
        tokens = [torch.arange(int(last[n] - counts[n]), int(last[n])) for n in items]
        return Draws(
            mask=Mask(self.mask.visible[chosen, :num_tokens], self.mask.masked[chosen, :num_tokens]),
            dropped=self.dropped[chosen],
            noising=self.noising.of(torch.cat(tokens).to(self.noising.noise.device)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Context features and the places that they belong to."""

    condition: ConditionTokens
    features: Tensor  # (B, L + V, D), condition first
    index: Tensor  # (B, V) places of the visible tokens among the N, visible ones first
    valid: Tensor  # (B, V) bool, False on padding


class Stack(nn.Module):
    """A transformer and its own positions."""

    def __init__(self, size: Size, positions: Positions) -> None:
        super().__init__()
        self.learned = LearnedPositions(positions.grid, size.width) if positions.grid else None
        self.rotary = None
        if positions.axes:
            exact = positions.field is not None  # its places lie close together
            self.rotary = RotaryPositions(size.width // size.heads, positions.axes, positions.rotary_base, exact)
        self.transformer = Transformer(**dataclasses.asdict(size))

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """Add learned positions (B, S, 3) to tokens (B, S, D), where they are learned."""
        return x if self.learned is None else x + self.learned(positions)

    def run(
        self, condition: ConditionTokens, condition_tokens: Tensor, x: Tensor, positions: Tensor, valid: Tensor
    ) -> Tensor:
        """Condition tokens (B, L, D), as they are here, then x (B, S, D), through the blocks -> (B, L + S, D)."""
        valid = torch.cat([condition.valid, valid], dim=1)
        rotary = None
        if self.rotary is not None:
            rotary = self.rotary(torch.cat([condition.positions, positions], dim=1))
        x = torch.cat([condition_tokens, x], dim=1)
        return self.transformer(x, condition_tokens.shape[1], None if bool(valid.all()) else valid, rotary)


class ContextEncoder(nn.Module):
    """φ: Linear(C→D) + positions of the visible tokens, behind the condition tokens; LayerNorm; blocks; LayerNorm."""

    def __init__(self, token_dim: int, size: Size, positions: Positions) -> None:
        super().__init__()
        self.input = nn.Linear(token_dim, size.width)
        self.input_norm = nn.LayerNorm(size.width, eps=1e-6)
        self.stack = Stack(size, positions)
        self.input.apply(xavier_init)

    def forward(self, tokens: Tensor, positions: Tensor, visible: Tensor, condition: ConditionTokens) -> Context:
        """tokens (B, N, C), positions (B, N, 3), visible (B, N) bool; hidden tokens are never looked at."""
        index = compact_index(visible)  # (B, V)
        valid = visible.gather(1, index)
        tokens, positions = gather(tokens, index), gather(positions, index)
        x = self.stack.embed(self.input(tokens * valid[..., None]), positions)  # (B, V, D)
        condition_tokens = self.input_norm(condition.tokens.to(x.dtype))
        features = self.stack.run(condition, condition_tokens, self.input_norm(x), positions, valid)
        return Context(condition=condition, features=features, index=index, valid=valid)


class Predictor(nn.Module):
    """γ: context features at their places, a mask token at all others, + positions; blocks; LayerNorm."""

    def __init__(self, size: Size, positions: Positions) -> None:
        super().__init__()
        self.input = nn.Linear(size.width, size.width)
        self.mask_token = nn.Parameter(torch.empty(size.width))
        self.stack = Stack(size, positions)
        self.input.apply(xavier_init)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.buffer_positions = None
        if positions.buffer:
            self.buffer_positions = nn.Parameter(torch.empty(positions.buffer, size.width))
            nn.init.trunc_normal_(self.buffer_positions, std=0.02)
        self.head_positions = None
        if positions.before_head:
            assert positions.grid is not None, "positions before the head are learned over a grid"
            self.head_positions = LearnedPositions(positions.grid, size.width)

    def forward(self, context: Context, positions: Tensor, valid: Tensor) -> Tensor:
        """positions (B, N, 3), valid (B, N) bool, False on padding -> features of all places (B, N, D)."""
        features = self.input(context.features)  # (B, L + V, D)
        length = context.condition.tokens.shape[1]
        x = scatter(features[:, length:], context, self.mask_token, positions.shape[1])  # (B, N, D)
        x = self.stack.embed(x, positions)
        condition_tokens = features[:, :length]
        if self.buffer_positions is not None:
            rest = length - len(self.buffer_positions)
            condition_tokens = condition_tokens + F.pad(self.buffer_positions, (0, 0, 0, rest))
        z = self.stack.run(context.condition, condition_tokens, x, positions, valid)[:, length:]
        return z if self.head_positions is None else z + self.head_positions(positions)


class Networks(nn.Module):
    """Everything that is trained and averaged.

    projector: the MLP of the prediction loss, `plain`, with a `norm` before its second layer, as in D-JEPA's code, or
    `none`, as in MAR, which has no such loss.
    """

    def __init__(
        self,
        *,
        token_dim: int,
        size: Size,
        positions: Positions,
        embedder: nn.Module,
        head: nn.Module,
        projector: Projector = "plain",
    ) -> None:
        super().__init__()
        self.embedder = embedder
        self.encoder = ContextEncoder(token_dim, size, positions)
        self.predictor = Predictor(size, positions)
        hidden = 4 * size.width
        self.projector = nn.Sequential()
        if projector != "none":
            norm = [nn.LayerNorm(hidden, eps=1e-6)] if projector == "norm" else []
            self.projector.extend([nn.Linear(size.width, hidden), nn.GELU(), *norm, nn.Linear(hidden, size.width)])
        self.projector.apply(xavier_init)
        self.head = head

    def encode(
        self, tokens: Tensor, positions: Tensor, visible: Tensor, condition: Condition, dropped: Tensor
    ) -> Context:
        return self.encoder(tokens, positions, visible, cast(ConditionEmbedder, self.embedder)(condition, dropped))

    def forward(self, batch: TokenBatch, draws: Draws, target: Tensor | None) -> tuple[Tensor, Tensor]:
        """Losses of every masked token, generation and prediction, (M,) each.

        target (M, D): the target encoder's features of these tokens; None where there is no prediction loss."""
        masked = draws.mask.masked
        context = self.encode(batch.tokens, batch.positions, draws.mask.visible, batch.condition, draws.dropped)
        z = self.predictor(context, batch.positions, batch.valid)[masked]  # (M, D)
        generation = cast(Head, self.head).loss(z, batch.tokens[masked], draws.noising)
        if target is None:
            return generation, torch.zeros_like(generation)
        return generation, prediction_loss(self.projector(z), target)


class DJEPA(nn.Module):
    """The online networks, which are trained, and their averages, which give the targets and the samples.

    The method uses one EMA for the target encoder and for the sampling weights, so one copy is kept:
    `averaged.encoder` is the target encoder.

    mask_orders: what is masked is what such an order would reveal last; of several, one is drawn for each batch.
    mask_horizon: only so many tokens, those that the order would reveal next, are predicted at once, and what comes
    after them is not in the sequence at all; None predicts all that is masked, as the paper does.
    embedder: a `ConditionEmbedder`.
    condition_drop: probability that a sample's condition is replaced by the null one, for guidance.
    target_dropped: the target encoder then gets the null one too; else always the true one, as in D-JEPA's code.
    """

    def __init__(
        self,
        *,
        token_dim: int,
        size: Size,
        positions: Positions,
        embedder: nn.Module,
        head: nn.Module,
        mask_ratio: MaskRatio | None = None,
        mask_orders: tuple[Order, ...] = ("random",),
        mask_horizon: int | None = None,
        condition_drop: float = 0.1,
        target_dropped: bool = True,
        generation_weight: float = 1.0,
        prediction_weight: float = 1.0,
        projector: Projector = "plain",
    ) -> None:
        super().__init__()
        self.token_dim, self.field = token_dim, positions.field
        self.online = Networks(
            token_dim=token_dim, size=size, positions=positions, embedder=embedder, head=head, projector=projector
        )
        self.averaged = copy.deepcopy(self.online).requires_grad_(False).eval()
        self.mask_ratio, self.mask_orders = mask_ratio or MaskRatio(), mask_orders
        self.mask_horizon = mask_horizon
        self.condition_drop, self.target_dropped = condition_drop, target_dropped
        self.generation_weight, self.prediction_weight = generation_weight, prediction_weight

    def train(self, mode: bool = True) -> DJEPA:
        """The averages always stay in evaluation mode."""
        super().train(mode)
        self.averaged.eval()
        return self

    @property
    def head(self) -> Head:
        """The averaged head, which samples."""
        return cast(Head, self.averaged.head)

    def place(self, positions: Tensor, grids: Tensor, offsets: Tensor | None = None) -> Tensor:
        """Places (B, N, 3) on the items' grids (B, 3) -> where they are to the networks, (B, N, 3). Whatever goes into
        the networks has gone through here; masks and orders take the places as they were.

        offsets: (B, 2), see `in_field`; without a field of view, there is none to move in."""
        return positions if self.field is None else in_field(positions, grids, self.field, offsets)

    def forward(self, batch: TokenBatch, generator: torch.Generator) -> Losses:
        """Draw a mask, then L = w_d · L_d + w_p · L_p over the masked tokens (D-JEPA eq. 4–6)."""
        return self.losses(batch, self.draw(batch.valid, batch.positions, generator))

    def losses(
        self, batch: TokenBatch, draws: Draws, *, among: int | None = None, online: nn.Module | None = None
    ) -> Losses:
        """among: masked tokens of the whole batch of which this is a part; the parts' losses add up to the whole's.
        online: the online networks as something has wrapped them, such as for training in several processes."""
        if self.mask_horizon is not None:
            batch, mask = within_horizon(batch, draws.mask)
            draws = dataclasses.replace(draws, mask=mask)
        target = None
        if self.prediction_weight:
            known = self.target_features(batch, draws.dropped & self.target_dropped)
            target = known[draws.mask.masked].float()  # (M, D)
        generation, prediction = (online or self.online)(batch, draws, target)
        count = among or len(generation)
        generation, prediction = generation.sum() / count, prediction.sum() / count
        total = self.generation_weight * generation + self.prediction_weight * prediction
        return Losses(total=total, generation=generation, prediction=prediction)

    def draw(self, valid: Tensor, positions: Tensor, generator: torch.Generator) -> Draws:
        """valid (B, N) bool, positions (B, N, 3) -> what chance decides of such a batch, on their device."""
        mask = self._draw_mask(valid, positions, generator)
        dropped = torch.rand(len(valid), generator=generator, device=generator.device) < self.condition_drop
        noising = cast(Head, self.online.head).draw(int(mask.masked.sum()), generator)
        return Draws(mask=mask, dropped=dropped.to(valid.device), noising=noising)

    def _draw_mask(self, valid: Tensor, positions: Tensor, generator: torch.Generator) -> Mask:
        order = self.mask_orders[0]
        if len(self.mask_orders) > 1:
            chosen = torch.randint(len(self.mask_orders), (), generator=generator, device=generator.device)
            order = self.mask_orders[int(chosen)]
        num_tokens = valid.shape[1]
        ratio = self.mask_ratio.draw(generator, min(self.mask_horizon or num_tokens, num_tokens) / num_tokens)
        return draw_mask(valid, ratio, generator, positions, order, self.mask_horizon)

    @torch.no_grad()
    def target_features(self, batch: TokenBatch, dropped: Tensor) -> Tensor:
        """g (B, N, D): the target encoder's features with every token visible."""
        context = self.averaged.encode(batch.tokens, batch.positions, batch.valid, batch.condition, dropped)
        features = context.features[:, context.condition.tokens.shape[1] :]
        return scatter(features, context, features.new_zeros(features.shape[-1]), batch.valid.shape[1])

    @torch.no_grad()
    def features(
        self,
        tokens: Tensor,
        positions: Tensor,
        known: Tensor,
        valid: Tensor,
        condition: Condition,
        *,
        null: bool | Tensor = False,
    ) -> Tensor:
        """z (B, N, D) by the averaged weights, given the known tokens; `null` puts the null condition in place, of all
        items or of some, (B,) bool.

        valid: the places that there are; with a horizon, those that are known or come next."""
        index = compact_index(valid)
        if index.shape[1] < valid.shape[1]:  # what is not there costs nothing
            tokens, positions = gather(tokens, index), gather(positions, index)
            short = self.features(
                tokens, positions, known.gather(1, index), valid.gather(1, index), condition, null=null
            )
            full = short.new_zeros(*valid.shape, short.shape[-1])
            return full.scatter(1, index[..., None].expand_as(short), short)
        dropped = null if isinstance(null, Tensor) else torch.full((len(tokens),), null, device=tokens.device)
        context = self.averaged.encode(tokens, positions, known, condition, dropped)
        return self.averaged.predictor(context, positions, valid)

    def update_average(self, decay: float) -> None:
        """Move the averages (and with them the target encoder) towards the online weights; after each step."""
        update_average(self.averaged, self.online, decay)


def prediction_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """L_p (D-JEPA eq. 4): smooth L1 between projected features and the target encoder's, both (M, D) -> (M,)."""
    return F.smooth_l1_loss(predicted.float(), target, beta=2.0, reduction="none").mean(-1)


def within_horizon(batch: TokenBatch, mask: Mask) -> tuple[TokenBatch, Mask]:
    """The batch and its mask without the tokens that are neither visible nor to be predicted."""
    kept = mask.visible | mask.masked
    index = compact_index(kept)  # (B, K)
    batch = dataclasses.replace(
        batch,
        tokens=gather(batch.tokens, index),
        positions=gather(batch.positions, index),
        valid=kept.gather(1, index),
    )
    return batch, Mask(mask.visible.gather(1, index), mask.masked.gather(1, index))


def compact_index(chosen: Tensor) -> Tensor:
    """(B, N) bool -> (B, V) places of the chosen ones, in their order; V is the most that a row has, and rows with
    fewer are filled up with places that are not chosen."""
    return (~chosen).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(chosen.sum(1).max())]


def gather(x: Tensor, index: Tensor) -> Tensor:
    """x (B, N, E) at places index (B, V) -> (B, V, E)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def scatter(features: Tensor, context: Context, fill: Tensor, num_tokens: int) -> Tensor:
    """Features of visible tokens (B, V, D) back at their places, `fill` (D,) at all others -> (B, N, D)."""
    batch, _, width = features.shape
    # padding among the visible goes to a place behind the last, which is cut off
    index = context.index.masked_fill(~context.valid, num_tokens)[..., None].expand(-1, -1, width)
    full = fill.to(features.dtype).expand(batch, num_tokens + 1, width)
    return full.scatter(1, index, features)[:, :num_tokens]
