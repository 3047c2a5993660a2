"""Pictures as tokens: raw patches, or patches of a VAE's latents.

B batch, C picture channels, H and W pixels, h and w places of the token grid, p and q patch rows and columns, N = h·w.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

import torch
from einops import rearrange
from pydantic import Field, PositiveInt
from torch import Tensor

from djepa_mm.media.pictures import Pictures
from djepa_mm.moments import UnitVariance
from djepa_mm.types import USUAL, Config, Extent, Media, MediaSpec, UserError
from djepa_mm.weights import PretrainedVAE, VAEConfig, VAETokens

Size = Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)]  # a YAML list is a tuple here


class PatchesConfig(Config):
    """Raw pixels, in square patches."""

    kind: Literal["patches"]
    patch: PositiveInt = Field(examples=[4])
    """Side of a token, in pixels."""
    channels: Literal[1, 3] = 3
    size: Size = Field(examples=[(16, 32)])
    """Height and width of a picture, in pixels."""
    vary: bool = False
    """Take pictures of other sizes too; `size` is then that of generated pictures where none is asked for."""

    def build(self) -> Patches:
        return Patches(self)


class KLVAEConfig(VAEConfig):
    """Latents of a pretrained KL autoencoder in diffusers' format (AutoencoderKL)."""

    kind: Literal["kl-vae"]
    model: str = Field(examples=["stabilityai/sd-vae-ft-mse"])
    """A local folder, or the name of a repository on the Hugging Face hub."""
    size: Size = Field(examples=[(16, 32)])
    """Height and width of a picture, in pixels."""
    vary: bool = False
    """Take pictures of other sizes too; `size` is then that of generated pictures where none is asked for."""
    patch: PositiveInt = 1
    """Side of a token, in latents."""
    stride: PositiveInt | None = None
    """Pixels a side of a latent."""

    def build(self) -> KLVAE:
        return KLVAE(self)


class _Pictures:
    """What tokenizers of pictures share, however the tokens come about."""

    def __init__(self, config: PatchesConfig | KLVAEConfig, *, channels: int, depth: int, stride: int) -> None:
        """channels of a picture; depth and stride: channels and pixels a side of what the patches are made of."""
        height, width = config.size
        token_pixels = stride * config.patch
        if height % token_pixels or width % token_pixels:
            raise UserError(
                f"tokenizer.size: {height}×{width} pixels do not divide into tokens of {token_pixels}×{token_pixels}; "
                f"make both multiples of {token_pixels}"
            )
        self.channels, self.patch, self.vary = channels, config.patch, config.vary
        self.token_dim = depth * config.patch**2
        self.media: Media = Pictures(channels)
        self.span: tuple[int, int, int] = (1, token_pixels, token_pixels)
        self.spec = self._spec(height, width)  # of all pictures, or of usual ones where they vary

    @property
    def fixed(self) -> MediaSpec | None:
        return None if self.vary else self.spec

    def spec_of(self, shape: tuple[int, ...]) -> MediaSpec:
        if not self.vary:
            if tuple(shape) != self.spec.shape:
                raise UserError(
                    f"the tokenizer takes pictures of (channels, height, width) = {self.spec.shape}, the data has "
                    f"{tuple(shape)}; make tokenizer.size, tokenizer.channels and the data's agree"
                )
            return self.spec
        if len(shape) != 3 or shape[0] != self.channels or not self._divides(*shape[1:]):
            raise UserError(
                f"the tokenizer takes pictures of {self.channels} channels whose height and width are multiples of "
                f"{self.span[1]}, the data has {tuple(shape)}; data.multiple_of cuts pictures to them"
            )
        return self._spec(*shape[1:])

    def spec_for(self, extent: Extent = USUAL) -> MediaSpec:
        size = extent.size
        if extent.duration_s is not None:
            raise UserError(f"a picture has no duration, but {extent.duration_s} s was asked for; leave it out")
        height, width = usual = self.spec.shape[1:]
        if size is not None and tuple(size) != usual:
            if not self.vary:
                raise UserError(
                    f"every picture has {height}×{width} pixels, not {size[0]}×{size[1]}: leave the size out, or train "
                    "with tokenizer.vary"
                )
            height, width = size
            if not self._divides(height, width):
                raise UserError(
                    f"a size of {height}×{width} pixels does not divide into tokens of {self.span[1]}×{self.span[2]}; "
                    f"give multiples of {self.span[1]}"
                )
        spec = self._spec(height, width)
        if extent.num_tokens not in (None, spec.num_tokens):
            raise UserError(
                f"a picture of {height}×{width} pixels has {spec.num_tokens} tokens, not {extent.num_tokens}; "
                "leave the length out"
            )
        return spec

    def _divides(self, height: int, width: int) -> bool:
        _, rows, columns = self.span
        return height >= rows and width >= columns and not height % rows and not width % columns

    def _spec(self, height: int, width: int) -> MediaSpec:
        _, rows, columns = self.span
        return MediaSpec(grid=(1, height // rows, width // columns), shape=(self.channels, height, width))

    def _to_tokens(self, volume: Tensor) -> Tensor:
        """(B, C, h·p, w·q) -> (B, N, C·p·q)"""
        return rearrange(volume, "b c (h p) (w q) -> b (h w) (c p q)", p=self.patch, q=self.patch)

    def _to_volume(self, tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Back again."""
        _, h, _ = grid
        return rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=h, p=self.patch, q=self.patch)


class Patches(_Pictures):
    """Raw patches, brought to unit variance: see `UnitVariance`."""

    def __init__(self, config: PatchesConfig) -> None:
        super().__init__(config, channels=config.channels, depth=config.channels, stride=1)
        self.unit = UnitVariance(self.token_dim)

    def encode(self, media: Tensor) -> Tensor:
        return self.unit.apply(self._to_tokens(media))

    def decode(self, tokens: Tensor, spec: MediaSpec) -> Tensor:
        return self.views(tokens, spec.grid).clamp(-1, 1)

    def views(self, tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
        return self._to_volume(self.unit.undo(tokens), grid)

    def fit(self, media: Iterable[Tensor]) -> None:
        self.unit.fit(self._to_tokens(picture[None])[0] for picture in media)

    def state(self) -> dict[str, Tensor]:
        return self.unit.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.unit.load_state(state)


class KLVAE(VAETokens, _Pictures):
    """Latents of a KL autoencoder. Its weights are loaded at the first encode or decode, on the media's device."""

    config: KLVAEConfig

    def __init__(self, config: KLVAEConfig) -> None:
        self.config = config
        self.pretrained = PretrainedVAE(
            config.model, config.subfolder, classes=("AutoencoderKL",), allow_pickle=config.allow_pickle
        )
        if config.channels is not None and config.stride is not None:
            depth, stride = config.channels, config.stride
        else:
            depth, stride = self._found
        super().__init__(config, channels=3, depth=depth, stride=stride)

    @cached_property
    def _found(self) -> tuple[int, int]:
        """Channels and stride of the latents, as the VAE's configuration says."""
        return self.pretrained.bare.config.latent_channels, self.pretrained.block_stride

    @cached_property
    def scale(self) -> float:
        return self.pretrained.bare.config.scaling_factor if self.config.scale is None else self.config.scale

    @cached_property
    def shift(self) -> float:
        return (self.pretrained.bare.config.shift_factor or 0.0) if self.config.shift is None else self.config.shift

    @cached_property
    def vae(self) -> Any:  # AutoencoderKL, which hides its methods from type checkers
        said = self.config.channels, self.config.stride
        return self.pretrained.load(found=self._found, said=said, tile=self.config.tile)

    @torch.no_grad()
    def posterior(self, media: Tensor) -> tuple[Tensor, Tensor]:
        latents = self.vae.to(media.device).encode(media).latent_dist
        return self._to_tokens((latents.mean - self.shift) * self.scale), self._to_tokens(latents.std * self.scale)

    @torch.no_grad()
    def decode(self, tokens: Tensor, spec: MediaSpec) -> Tensor:
        latents = self._to_volume(tokens.float(), spec.grid)
        return self.vae.to(tokens.device).decode(latents / self.scale + self.shift).sample.clamp(-1, 1)
