"""A variational autoencoder of tokens: raw patches of any media <-> fewer numbers each, by two small transformers.

What the patches are cut from makes no difference here: pictures, clips and mels have one network. Its positions are
rotary, so that it takes any size; in time it may be causal, so that a clip's first frames are tokenized alike whatever
follows. B batch, N tokens, P numbers of a raw token, K channels of a latent, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional

from djepa_mm.core.nn.blocks import Transformer
from djepa_mm.core.nn.positions import RotaryPositions
from djepa_mm.types import Config

# Width, blocks of each half, and heads; large is about the size of KL-16's autoencoder
PRESETS = {"tiny": (128, 2, 4), "small": (192, 3, 6), "base": (384, 6, 6), "large": (512, 10, 8)}
NARROWEST = 6  # head: two numbers turn on each of three axes
LOG_VARIANCE = (-20.0, 10.0)  # bounds, as in latent diffusion's code


class AutoencoderConfig(Config):
    """Sizes of the two networks and of what lies between them."""

    preset: Literal["tiny", "small", "base", "large"] = "small"
    """Sizes of encoder and decoder; what is given beside it wins."""
    width: Annotated[int, Field(gt=0, le=65_536)] | None = None
    depth: Annotated[int, Field(ge=0, le=200)] | None = None
    """Blocks of the encoder, and as many of the decoder."""
    heads: PositiveInt | None = None
    channels: Annotated[int, Field(gt=0, le=65_536)]
    """Numbers of a token."""
    bottleneck: Literal["kl", "sphere"] = "kl"
    """kl: a normal distribution for each number, drawn from in training. sphere: tokens of one length, as in SphereAR
    (arXiv 2509.24335), disturbed in training and brought back to that length."""
    disturb: NonNegativeFloat = 0.2
    """Deviation of that disturbance, for tokens of unit variance."""
    causal: bool = False
    """A token does not depend on what comes later in time."""
    window: PositiveInt | None = None
    """How far in time a block looks, in tokens; everywhere where it is not given."""
    rotary_base: Annotated[float, Field(gt=1)] = 100.0
    """The slowest frequency turns about so many times more slowly than the fastest."""

    @model_validator(mode="after")
    def _check(self) -> AutoencoderConfig:
        width, heads = self.size("width"), self.size("heads")
        if width % heads or width // heads % 2 or width // heads < NARROWEST:
            raise ValueError(
                f"model.width {width} does not divide into model.heads {heads} of an even width from {NARROWEST} on: "
                "change either"
            )
        return self

    def size(self, name: str) -> int:
        given = getattr(self, name)
        return PRESETS[self.preset][("width", "depth", "heads").index(name)] if given is None else given


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbance:
    """What chance does to a batch in training, drawn for each of its items."""

    noise: Tensor  # (B, N, K) of the posterior
    hidden: Tensor  # (B, N) bool: raw tokens that the encoder does not see
    share: Tensor  # (B,) in [0, 1]: of the latents' place that other noise takes
    other: Tensor  # (B, N, K): that noise
    settled: bool = False  # the encoder does not learn any more

    def of(self, items: Sequence[int], num_tokens: int) -> Disturbance:
        """For some of the batch's items alone, of which none has more than so many tokens."""
        rows = torch.tensor(items, device=self.share.device)
        noise, hidden, other = (one[rows, :num_tokens] for one in (self.noise, self.hidden, self.other))
        return Disturbance(noise=noise, hidden=hidden, share=self.share[rows], other=other, settled=self.settled)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstruction:
    """tokens (B, N, P), and the posterior that they came from: mean and deviation, (B, N, K) each."""

    tokens: Tensor
    mean: Tensor
    std: Tensor


class Half(nn.Module):
    """Tokens to tokens: a linear map, and what a transformer adds to it."""

    def __init__(self, inputs: int, outputs: int, config: AutoencoderConfig) -> None:
        super().__init__()
        width, heads = config.size("width"), config.size("heads")
        self.linear = nn.Linear(inputs, outputs)
        self.input = nn.Linear(inputs, width)
        self.transformer = Transformer(width=width, depth=config.size("depth"), heads=heads, mlp_ratio=4.0, dropout=0.0)
        self.output = nn.Linear(width, outputs)
        for layer in (self.linear, self.input):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        for tensor in (self.output.weight, self.output.bias):
            nn.init.zeros_(tensor)

    def forward(self, x: Tensor, attended: Tensor | None, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """x (B, N, inputs), attended (B, N) or (B, N, N) bool -> (B, N, outputs)"""
        return self.linear(x) + self.output(self.transformer(self.input(x), 0, attended, rotary))


class Autoencoder(nn.Module):
    """Encoder and decoder, and the bottleneck between them."""

    def __init__(self, token_dim: int, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config, self.token_dim = config, token_dim
        spherical = config.bottleneck == "sphere"
        self.encoder = Half(token_dim, config.channels * (1 if spherical else 2), config)
        self.decoder = Half(config.channels, token_dim, config)
        self.hidden = nn.Parameter(torch.zeros(token_dim))  # stands for raw tokens that are not seen
        axes = ("t", "h", "w")
        self.rotary = RotaryPositions(config.size("width") // config.size("heads"), axes, config.rotary_base)

    def posterior(
        self, tokens: Tensor, positions: Tensor, valid: Tensor | None = None, hidden: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Raw tokens (B, N, P), positions (B, N, 3), valid and hidden (B, N) bool -> mean and deviation, (B, N, K)."""
        if hidden is not None:
            tokens = torch.where(hidden[..., None], self.hidden.to(tokens.dtype), tokens)
        found = self.encoder(tokens, self._attended(positions, valid), self.rotary(positions)).float()
        if self.config.bottleneck == "sphere":
            mean = self._at_length(found)
            return mean, torch.full_like(mean, self.config.disturb)
        mean, log_variance = found.chunk(2, dim=-1)
        return mean, (0.5 * log_variance.clamp(*LOG_VARIANCE)).exp()

    def decode(self, latents: Tensor, positions: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, N, K) -> raw tokens (B, N, P)."""
        if self.config.bottleneck == "sphere":
            latents = self._at_length(latents)
        return self.decoder(latents, self._attended(positions, valid), self.rotary(positions)).float()

    def forward(self, tokens: Tensor, positions: Tensor, valid: Tensor, chance: Disturbance) -> Reconstruction:
        """As in training."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not chance.settled):
            mean, std = self.posterior(tokens, positions, valid, chance.hidden)
        share = chance.share[:, None, None]
        latents = (1 - share) * (mean + std * chance.noise) + share * chance.other
        return Reconstruction(tokens=self.decode(latents, positions, valid), mean=mean, std=std)

    def _at_length(self, latents: Tensor) -> Tensor:
        """On a sphere whose points have unit variance over their channels."""
        return functional.normalize(latents.float(), dim=-1) * latents.shape[-1] ** 0.5

    def _attended(self, positions: Tensor, valid: Tensor | None) -> Tensor | None:
        """(B, N) or (B, N, N) bool, True where attended to; None for everywhere."""
        causal, window = self.config.causal, self.config.window
        if not causal and window is None:
            return valid
        times = positions[..., 0]
        before = times[:, :, None] - times[:, None, :]  # how long before each token another one is
        seen = before >= 0 if causal else torch.ones_like(before, dtype=torch.bool)
        if window is not None:
            seen = seen & (before.abs() < window)
        if valid is not None:
            seen = seen & valid[:, None, :]
            seen = seen | torch.eye(seen.shape[1], dtype=torch.bool, device=seen.device)  # padding sees itself
        return seen
