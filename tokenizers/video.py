"""Clips as tokens: raw space-time patches, or patches of the latents of a VAE, of pictures or of video.

B batch, C clip channels, T frames, H and W pixels, K latent channels, (t, h, w) places of the token grid or of the
latents, p, q and r their patches on the three axes, N = t·h·w with w fastest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

import torch
from einops import rearrange
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from djepa_mm.media.clips import Clips
from djepa_mm.moments import UnitVariance
from djepa_mm.types import USUAL, Config, Extent, Media, MediaSpec, UserError, nearest_size
from djepa_mm.weights import PretrainedVAE, VAEConfig, VAETokens

FRAMES_AT_ONCE = 16  # that a VAE of pictures takes
CLASSES = ("AutoencoderKL", "AutoencoderKLLTXVideo", "AutoencoderKLCogVideoX", "AutoencoderKLWan")

Size = Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)]  # a YAML list is a tuple here
Block = Annotated[tuple[PositiveInt, PositiveInt, PositiveInt], Field(strict=False)]


class ClipPatchesConfig(Config):
    """Raw pixels, in blocks of space and time."""

    kind: Literal["clip-patches"]
    patch: Block = Field(examples=[(2, 4, 4)])
    """Frames, rows and columns of a token."""
    first_alone: bool = False
    """The first frame fills its tokens alone, as in causal video VAEs, so that a picture is a clip of one frame; others
    have 1 + k·patch[0] frames."""
    channels: Literal[1, 3] = 3
    frames: PositiveInt = Field(examples=[8])
    """Of every clip."""
    size: Size = Field(examples=[(16, 32)])
    """Height and width of a clip, in pixels, both even."""
    vary: bool = False
    """Take clips of other lengths and sizes too; `frames` and `size` are then those of generated clips where none are
    asked for."""
    frame_rate: PositiveFloat = Field(examples=[10.0])
    """Frames a second of the files that are written."""

    def build(self) -> ClipPatches:
        return ClipPatches(self)


class ClipVAEConfig(VAEConfig):
    """Latents of a pretrained VAE in diffusers' format; its config.json says which.

    AutoencoderKLLTXVideo, AutoencoderKLCogVideoX and AutoencoderKLWan compress time too; AutoencoderKL takes a clip
    frame by frame.
    """

    kind: Literal["clip-vae"]
    model: str = Field(examples=["Lightricks/LTX-Video"])
    """A local folder, or the name of a repository on the Hugging Face hub."""
    frames: PositiveInt = Field(examples=[9])
    """Of every clip; which counts fit depends on the VAE, often 1 + 4k or 1 + 8k."""
    size: Size = Field(examples=[(16, 32)])
    """Height and width of a clip, in pixels, both even."""
    vary: bool = False
    """Take clips of other sizes too; `size` is then that of generated clips where none is asked for."""
    frame_rate: PositiveFloat = Field(examples=[10.0])
    """Frames a second of the files that are written."""
    patch: Block = (1, 1, 1)
    """Size of a token, in latents."""
    stride: Block | None = None
    """Frames, rows and columns that a latent stands for."""

    def build(self) -> ClipVAE:
        return ClipVAE(self)


class _Clips:
    """What tokenizers of clips share, however the tokens come about."""

    def __init__(self, config: ClipPatchesConfig | ClipVAEConfig, channels: int, stride: tuple[int, int, int]) -> None:
        """stride: frames, rows and columns of what the patches are made of. A first latent may stand for one frame."""
        height, width = config.size
        if height % 2 or width % 2:
            raise UserError(f"tokenizer.size: {height}×{width} pixels are odd, and H.264 files need even sizes")
        span = tuple(s * p for s, p in zip(stride, config.patch, strict=True))
        if height % span[1] or width % span[2]:
            raise UserError(
                f"tokenizer.size: {height}×{width} pixels do not divide into tokens of {span[1]}×{span[2]}; "
                f"make them multiples of {span[1]} and {span[2]}"
            )
        inner = -(-config.frames // stride[0])
        if isinstance(config, ClipPatchesConfig) and config.first_alone:
            inner -= 1
        if inner % config.patch[0]:
            what = "frames" if stride[0] == 1 else "latents in time"
            raise UserError(
                f"tokenizer.frames: {config.frames} frames are {inner} {what}, which do not divide into tokens of "
                f"{config.patch[0]}; change tokenizer.frames or tokenizer.patch"
            )
        self.patch, self.vary = config.patch, config.vary
        self.media: Media = Clips(channels, config.frame_rate)
        self.frame_rate = config.frame_rate
        self.span: tuple[int, int, int] = (span[0], span[1], span[2])
        self.spec = self._spec((channels, config.frames, height, width))  # of all clips, or of usual ones

    @property
    def fixed(self) -> MediaSpec | None:
        return None if self.vary else self.spec

    def spec_of(self, shape: tuple[int, ...]) -> MediaSpec:
        if not self.vary:
            if tuple(shape) != self.spec.shape:
                raise UserError(
                    f"the tokenizer takes clips of (channels, frames, height, width) = {self.spec.shape}, the data has "
                    f"{tuple(shape)}; make tokenizer.frames, tokenizer.size and the data's agree"
                )
            return self.spec
        channels, frames, _, _ = self.spec.shape
        if len(shape) != 4 or tuple(shape[:2]) != (channels, frames) or not self._divides(*shape[2:]):
            raise UserError(
                f"the tokenizer takes clips of {channels} channels and {frames} frames whose height and width are "
                f"multiples of {list(self.span[1:])}, the data has {tuple(shape)}; data.multiple_of cuts clips to them"
            )
        return self._spec(tuple(shape))

    def spec_for(self, extent: Extent = USUAL) -> MediaSpec:
        duration_s = extent.duration_s
        channels, frames, _, _ = self.spec.shape
        if duration_s is not None and not abs(duration_s * self.frame_rate - frames) < 1:
            raise UserError(
                f"every clip lasts {frames / self.frame_rate:.4g} s ({frames} frames, {self.frame_rate:g} a second), "
                f"not {duration_s} s; leave the duration out"
            )
        height, width = self._size(extent.size)
        spec = self._spec((channels, frames, height, width))
        if extent.num_tokens not in (None, spec.num_tokens):
            raise UserError(
                f"a clip of {frames} frames of {height}×{width} pixels has {spec.num_tokens} tokens, not "
                f"{extent.num_tokens}; leave the length out"
            )
        return spec

    def _size(self, size: tuple[int, int] | None) -> tuple[int, int]:
        """Height and width of clips to generate: those asked for, or the usual ones. Raises UserError."""
        _, _, height, width = self.spec.shape
        if size is None or tuple(size) == (height, width):
            return height, width
        if not self.vary:
            raise UserError(
                f"every clip has {height}×{width} pixels (height × width), not {size[0]}×{size[1]}: leave the size "
                "out, or train with tokenizer.vary"
            )
        height, width = size
        if not self._divides(height, width):
            rows, columns = nearest_size((height, width), self.span[1:])
            raise UserError(
                f"a size of {height}×{width} pixels (height × width) does not divide into tokens of {self.span[1]}×"
                f"{self.span[2]}: give multiples of {self.span[1]} and {self.span[2]}, of which {rows}×{columns} is "
                "the nearest"
            )
        if height % 2 or width % 2:
            raise UserError(f"a size of {height}×{width} pixels is odd, and H.264 files need even sizes")
        return height, width

    def _divides(self, height: int, width: int) -> bool:
        _, rows, columns = self.span
        return height >= rows and width >= columns and not height % rows and not width % columns

    def _spec(self, shape: tuple[int, ...]) -> MediaSpec:
        """Of clips (C, T, H, W) that divide into whole tokens."""
        t, h, w = (-(-n // span) for n, span in zip(shape[1:], self.span, strict=True))
        return MediaSpec(grid=(t, h, w), shape=shape)

    def _to_tokens(self, volume: Tensor) -> Tensor:
        """(B, K, t·p, h·q, w·r) -> (B, N, K·p·q·r)"""
        p, q, r = self.patch
        return rearrange(volume, "b k (t p) (h q) (w r) -> b (t h w) (k p q r)", p=p, q=q, r=r)

    def _to_volume(self, tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Back again."""
        (t, h, _), (p, q, r) = grid, self.patch
        return rearrange(tokens, "b (t h w) (k p q r) -> b k (t p) (h q) (w r)", t=t, h=h, p=p, q=q, r=r)


class ClipPatches(_Clips):
    """Raw patches, brought to unit variance: see `UnitVariance`."""

    def __init__(self, config: ClipPatchesConfig) -> None:
        super().__init__(config, config.channels, (1, 1, 1))
        p, q, r = config.patch
        self.token_dim = config.channels * p * q * r
        self.held = p - 1 if config.first_alone else 0  # times that the first frame is repeated in its tokens
        self.unit = UnitVariance(self.token_dim)

    def spec_of(self, shape: tuple[int, ...]) -> MediaSpec:
        if not self.vary:
            return super().spec_of(shape)
        channels = self.spec.shape[0]
        whole = len(shape) == 4 and shape[1] > 0 and not (shape[1] + self.held) % self.patch[0]
        if not whole or not self._divides(*shape[2:]) or shape[0] != channels:
            frames = "frames" if not self.held else f"frames but for the first {self.patch[0] - self.held}"
            raise UserError(
                f"the tokenizer takes clips of {channels} channels whose {frames}, height and width are multiples of "
                f"{list(self.patch)}, the data has {tuple(shape)}; data.multiple_of cuts clips to them"
            )
        return self._spec(tuple(shape))

    def spec_for(self, extent: Extent = USUAL) -> MediaSpec:
        duration_s = extent.duration_s
        if not self.vary or duration_s is None:
            return super().spec_for(extent)
        if not (math.isfinite(duration_s) and duration_s > 0):
            raise UserError(f"a duration of {duration_s} s: give more than 0")
        tokens = max(1, round((duration_s * self.frame_rate + self.held) / self.span[0]))
        return self._spec((self.spec.shape[0], tokens * self.patch[0] - self.held, *self._size(extent.size)))

    def encode(self, media: Tensor) -> Tensor:
        return self.unit.apply(self._raw(media))

    def decode(self, tokens: Tensor, spec: MediaSpec) -> Tensor:
        return self._frames(tokens, spec.grid).clamp(-1, 1)

    def views(self, tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
        return rearrange(self._frames(tokens, grid), "b c t h w -> (b t) c h w")

    def _raw(self, media: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, N, numbers of a token), as they are."""
        held = media[:, :, :1].expand(-1, -1, self.held, -1, -1)
        return self._to_tokens(torch.cat([held, media], dim=2) if self.held else media)

    def _frames(self, tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
        return self._to_volume(self.unit.undo(tokens), grid)[:, :, self.held :]

    def fit(self, media: Iterable[Tensor]) -> None:
        self.unit.fit(self._raw(clip[None])[0] for clip in media)

    def state(self) -> dict[str, Tensor]:
        return self.unit.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.unit.load_state(state)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fits:
    """Frame counts that a VAE gives back as it got them: n with n mod `period` among `rests`."""

    period: int
    rests: tuple[int, ...]

    def __contains__(self, frames: int) -> bool:
        return frames % self.period in self.rests

    def check(self, frames: int, name: str) -> None:
        if frames not in self:
            below = next((n for n in range(frames, 0, -1) if n in self), None)
            above = next(n for n in range(frames, frames + self.period + 1) if n in self)
            rule = " or ".join(f"{rest} + {self.period}k" if rest else f"{self.period}k" for rest in self.rests)
            raise UserError(
                f"tokenizer.frames: {frames} frames do not fit {name}, which takes {rule}; the next that do are "
                f"{above if below is None else f'{below} and {above}'}"
            )


class ClipVAE(VAETokens, _Clips):
    """Latents of a VAE. Its weights are loaded at the first encode or decode, on the media's device."""

    config: ClipVAEConfig

    def __init__(self, config: ClipVAEConfig) -> None:
        self.config = config
        self.pretrained = PretrainedVAE(
            config.model, config.subfolder, classes=CLASSES, allow_pickle=config.allow_pickle
        )
        if config.channels is not None and config.stride is not None:
            channels, stride = config.channels, config.stride
        else:
            channels, stride = self._found
        super().__init__(config, 3, stride)
        p, q, r = config.patch
        self.token_dim = channels * p * q * r

    @cached_property
    def _found(self) -> tuple[int, tuple[int, int, int]]:
        """Channels and stride of the latents, as the VAE's configuration says. Raises UserError where clips of the
        recipe's length do not fit it."""
        vae = self.pretrained.bare
        config, name = vae.config, type(vae).__name__
        if name == "AutoencoderKL":
            time, space, fits = 1, self.pretrained.block_stride, _Fits(period=1, rests=(0,))
        elif name == "AutoencoderKLLTXVideo":
            time, space = vae.temporal_compression_ratio, vae.spatial_compression_ratio
            fits = _Fits(period=time, rests=(1 % time,))
        elif name == "AutoencoderKLWan":
            time = 2 ** sum(config.temperal_downsample)
            space = 2 ** (len(config.dim_mult) - 1) * (config.patch_size or 1)
            fits = _Fits(period=4, rests=(1,))  # it goes through a clip by one frame and then by fours
        else:
            time, space = int(config.temporal_compression_ratio), self.pretrained.block_stride
            fits = _Fits(period=2 * time, rests=(0, 1))  # it decodes latents by twos, the first time maybe three
        fits.check(self.config.frames, name)
        return (config.z_dim if name == "AutoencoderKLWan" else config.latent_channels), (time, space, space)

    @cached_property
    def vae(self) -> Any:
        channels, stride = self._found
        said = self.config.channels, self.config.stride and list(self.config.stride)
        return self.pretrained.load(found=(channels, list(stride)), said=said, tile=self.config.tile)

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents, each (1, K, 1, 1, 1), as the VAE came with them.

        A token is (latent − mean)·scaling_factor / std, as in diffusers' pipelines; LTX keeps mean and std among its
        weights, the others in their configuration, where what is missing is 0 or 1."""
        config, buffers = self.vae.config, dict(self.vae.named_buffers())
        scale = config.get("scaling_factor", 1.0) if self.config.scale is None else self.config.scale
        mean, std = (buffers.get(name, config.get(name)) for name in ("latents_mean", "latents_std"))
        if mean is None or self.config.shift is not None:
            mean = (config.get("shift_factor") or 0.0) if self.config.shift is None else self.config.shift
        if std is None or self.config.scale is not None:
            std = 1.0
        channels = self._found[0]
        moments = []
        for name, value in (("latents_mean", mean), ("latents_std", torch.as_tensor(std) / scale)):
            tensor = torch.as_tensor(value, dtype=torch.float32)
            if tensor.numel() not in (1, channels):
                raise UserError(
                    f"tokenizer.model: {name} of the VAE has {tensor.numel()} values for {channels} channels"
                )
            moments.append(tensor.cpu().expand(channels).reshape(1, -1, 1, 1, 1))
        return moments[0], moments[1]

    @torch.no_grad()
    def posterior(self, media: Tensor) -> tuple[Tensor, Tensor]:
        vae = self.vae.to(media.device)
        if type(vae).__name__ == "AutoencoderKL":
            frames = rearrange(media, "b c t h w -> (b t) c h w").split(FRAMES_AT_ONCE)
            parts = [_moments(vae, part) for part in frames]
            mean, std = (
                rearrange(torch.cat(side), "(b t) k h w -> b k t h w", b=len(media))
                for side in zip(*parts, strict=True)
            )
        else:
            mean, std = _moments(vae, media)
        shift, unit = (side.to(mean) for side in self.moments)
        return self._to_tokens((mean - shift) / unit), self._to_tokens(std / unit)

    @torch.no_grad()
    def decode(self, tokens: Tensor, spec: MediaSpec) -> Tensor:
        vae = self.vae.to(tokens.device)
        mean, std = self.moments
        latents = self._to_volume(tokens.float(), spec.grid) * std.to(tokens.device) + mean.to(tokens.device)
        if type(vae).__name__ == "AutoencoderKL":
            images = rearrange(latents, "b k t h w -> (b t) k h w").split(FRAMES_AT_ONCE)
            decoded = torch.cat([vae.decode(part).sample for part in images])
            return rearrange(decoded, "(b t) c h w -> b c t h w", b=len(tokens)).clamp(-1, 1)
        if type(vae).__name__ == "AutoencoderKLLTXVideo":
            # Some LTX decoders take the time of a last denoising step, 0 in diffusers' pipeline, and draw noise of
            # their own: always the same here, so that the same tokens are the same clip.
            with torch.random.fork_rng([tokens.device] if tokens.device.type == "cuda" else []):
                torch.manual_seed(0)
                time = tokens.new_zeros(len(tokens)).float() if vae.config.timestep_conditioning else None
                return vae.decode(latents, time).sample.clamp(-1, 1)
        return vae.decode(latents).sample.clamp(-1, 1)


def _moments(vae: Any, media: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the latents' posterior."""
    latents = vae.encode(media).latent_dist
    return latents.mean, latents.std
