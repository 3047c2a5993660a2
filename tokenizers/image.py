"""Pictures as tokens: raw patches, or patches of a VAE's latents.

B batch, C picture channels, H and W pixels, h and w places of the token grid, p and q patch rows and columns, N = h·w.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, Self

import torch
from einops import rearrange
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from djepa_mm.media.pictures import Pictures
from djepa_mm.moments import UnitVariance
from djepa_mm.types import USUAL, Config, Extent, Media, MediaSpec, UserError, nearest_size
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
    tile_above: PositiveInt | None = None
    """Pictures with a longer side than so many pixels go through the VAE in tiles of this side, which overlap by a
    quarter and are blended."""

    @model_validator(mode="after")
    def _check_tiles(self) -> Self:
        if self.tile and self.tile_above is not None:
            raise ValueError("tokenizer.tile and tokenizer.tile_above: give one of the two")
        return self

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
                    f"every picture has {height}×{width} pixels (height × width), not {size[0]}×{size[1]}: leave the "
                    "size out, or train with tokenizer.vary"
                )
            height, width = size
            if not self._divides(height, width):
                rows, columns = nearest_size((height, width), self.span[1:])
                raise UserError(
                    f"a size of {height}×{width} pixels (height × width) does not divide into tokens of {self.span[1]}×"
                    f"{self.span[2]}: give multiples of {self.span[1]}, of which {rows}×{columns} is the nearest"
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
        self.stride, self.tile_latents = stride, 0
        if config.tile_above is not None:
            self.tile_latents = config.tile_above // stride
            if self.tile_latents < 4:
                raise UserError(f"tokenizer.tile_above {config.tile_above}: give {4 * stride} or more, four latents")

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
        mean, std = self._tiled(self._encode, media, self.stride, 1).chunk(2, dim=1)
        return self._to_tokens((mean - self.shift) * self.scale), self._to_tokens(std * self.scale)

    @torch.no_grad()
    def decode(self, tokens: Tensor, spec: MediaSpec) -> Tensor:
        latents = self._to_volume(tokens.float(), spec.grid) / self.scale + self.shift
        return self._tiled(self._decode, latents, 1, self.stride).clamp(-1, 1)

    def _encode(self, media: Tensor) -> Tensor:
        """(B, 3, H, W) -> mean and deviation of the latents, one behind the other."""
        found = self.vae.to(media.device).encode(media).latent_dist
        return torch.cat([found.mean, found.std], dim=1)

    def _decode(self, latents: Tensor) -> Tensor:
        picture: Tensor = self.vae.to(latents.device).decode(latents).sample
        return picture

    def _tiled(self, run: Callable[[Tensor], Tensor], volume: Tensor, before: int, behind: int) -> Tensor:
        side = self.tile_latents
        if not side or max(volume.shape[-2:]) <= side * before:
            return run(volume)
        return in_tiles(run, volume, side=side, overlap=side // 4, before=before, behind=behind)


def in_tiles(
    run: Callable[[Tensor], Tensor], volume: Tensor, *, side: int, overlap: int, before: int, behind: int
) -> Tensor:
    """volume (B, C, H, W) -> what `run` makes of it, (B, C', H', W'), tile by tile in little memory. Where tiles meet,
    one fades into the other, so that neither what each makes of its edges nor its own tone is seen as a seam.

    side, overlap: of the tiles, in units that are `before` places of the volume and `behind` of what comes of them;
    tiles lie evenly, so that none is a sliver and the least overlap is `overlap`."""
    height, width = (length // before for length in volume.shape[-2:])
    found = weights = None
    for top in _starts(height, side, overlap):
        for left in _starts(width, side, overlap):
            rows, columns = slice(top, top + side), slice(left, left + side)
            part = run(volume[..., _times(rows, before), _times(columns, before)])
            fade = _fade(part.shape[-2], overlap * behind)[:, None] * _fade(part.shape[-1], overlap * behind)
            fade = fade.to(part)
            if found is None:
                found = part.new_zeros(*part.shape[:2], height * behind, width * behind)
                weights = part.new_zeros(found.shape[-2:])
            assert weights is not None
            found[..., _times(rows, behind), _times(columns, behind)] += part * fade
            weights[_times(rows, behind), _times(columns, behind)] += fade
    assert found is not None
    assert weights is not None
    return found.div_(weights)


def _starts(length: int, side: int, overlap: int) -> list[int]:
    """Where tiles begin that lie evenly on a length."""
    if length <= side:
        return [0]
    count = -(-(length - overlap) // (side - overlap))
    return [n * (length - side) // (count - 1) for n in range(count)]


def _times(places: slice, factor: int) -> slice:
    return slice(places.start * factor, places.stop * factor)


def _fade(length: int, overlap: int) -> Tensor:
    """(length,): from 0 to 1 along the overlap at its beginning, and back at its end, as the square of a sine, which
    with its mirror image makes 1."""
    if not overlap:
        return torch.ones(length)
    steps = (torch.arange(length) + 0.5).clamp(max=overlap) / overlap
    rise = (steps * torch.pi / 2).sin().square()
    return torch.minimum(rise, rise.flip(0))
