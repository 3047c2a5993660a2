"""Pictures as tokens: raw patches, or patches of a VAE's latents.

B batch, C picture channels, H and W pixels, h and w places of the token grid, p and q patch rows and columns, N = h·w.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from einops import rearrange
from PIL import Image
from pydantic import Field, PositiveInt
from safetensors import SafetensorError
from torch import Tensor

from djepa_mm.media.files import read_picture
from djepa_mm.types import Config, MediaSpec, UserError

PREVIEW_PIXELS = 64  # pictures smaller than this are enlarged to be looked at
JPEG_QUALITY = 95  # of 100

Size = Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)]  # a YAML list is a tuple here


class PatchesConfig(Config):
    """Raw pixels, in square patches."""

    kind: Literal["patches"]
    patch: PositiveInt = Field(examples=[4])
    """Side of a token, in pixels."""
    channels: Literal[1, 3] = 3
    size: Size = Field(examples=[(16, 32)])
    """Height and width of a picture, in pixels."""

    def build(self) -> Patches:
        return Patches(self)


class KLVAEConfig(Config):
    """Latents of a pretrained KL autoencoder in diffusers' format (AutoencoderKL)."""

    kind: Literal["kl-vae"]
    model: str = Field(examples=["stabilityai/sd-vae-ft-mse"])
    """A local folder, or the name of a repository on the Hugging Face hub."""
    subfolder: str | None = None
    """Where the VAE lies inside the model, often "vae"."""
    size: Size = Field(examples=[(16, 32)])
    """Height and width of a picture, in pixels."""
    scale: float | None = Field(default=None, gt=0)
    """Tokens are (latent − shift)·scale; by default both come from the VAE's own configuration."""
    shift: float | None = None
    patch: PositiveInt = 1
    """Side of a token, in latents."""
    channels: PositiveInt | None = None
    """Channels of a latent; with `stride`, pixels a side of one, nothing is read before the first picture."""
    stride: PositiveInt | None = None
    sample: bool = False
    """Draw the latent from the VAE's posterior instead of taking its mode."""
    tile: bool = False
    """Encode and decode large pictures in overlapping tiles, to save memory."""
    allow_pickle: bool = False
    """Also load weights from pickle files; these can run code, so only from people you trust."""

    def build(self) -> KLVAE:
        return KLVAE(self)


class _Pictures:
    """What pictures of one size share, however their tokens come about."""

    suffixes: ClassVar[tuple[str, ...]] = (".png", ".webp", ".jpg")
    suffix: ClassVar[str] = suffixes[0]
    sample_rate_hz = None
    tokens_per_s = None

    def __init__(self, channels: int, size: tuple[int, int], token_pixels: int) -> None:
        height, width = size
        self.span: tuple[int, int, int] = (1, token_pixels, token_pixels)
        if height % token_pixels or width % token_pixels:
            raise UserError(
                f"tokenizer.size: {height}×{width} pixels do not divide into tokens of {token_pixels}×{token_pixels}; "
                f"make both multiples of {token_pixels}"
            )
        self.spec = MediaSpec(grid=(1, height // token_pixels, width // token_pixels), shape=(channels, height, width))

    def spec_of(self, shape: tuple[int, ...]) -> MediaSpec:
        if tuple(shape) != self.spec.shape:
            raise UserError(
                f"the tokenizer takes pictures of (channels, height, width) = {self.spec.shape}, the data has "
                f"{tuple(shape)}; make tokenizer.size, tokenizer.channels and the data's agree"
            )
        return self.spec

    def spec_for(self, *, num_tokens: int | None = None, duration_s: float | None = None) -> MediaSpec:
        if duration_s is not None:
            raise UserError(f"a picture has no duration, but {duration_s} s was asked for; leave it out")
        if num_tokens not in (None, self.spec.num_tokens):
            raise UserError(f"every picture has {self.spec.num_tokens} tokens, not {num_tokens}; leave the length out")
        return self.spec

    def save(self, media: Tensor, path: Path) -> None:
        """.png and .webp keep every pixel, .jpg does not."""
        _picture(media).save(path, lossless=True, quality=JPEG_QUALITY)

    def load(self, path: Path) -> Tensor:
        """Any file that Pillow reads; its size has to be the tokenizer's."""
        channels, height, width = self.spec.shape
        picture = read_picture(path, channels=channels)
        if tuple(picture.shape[1:]) != (height, width):
            found, wanted = f"{picture.shape[2]}×{picture.shape[1]}", f"{width}×{height}"
            raise UserError(f"{path}: the picture is {found} pixels, this model takes {wanted}; resize it first")
        return picture

    def blend(self, original: Tensor, new: Tensor, kept: Tensor) -> Tensor:
        return torch.where(kept, original, new)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        raise UserError("pictures do not follow each other in time: generate them one by one")

    def preview(self, media: Tensor) -> Image.Image:
        picture = _picture(media)
        enlarge = -(-PREVIEW_PIXELS // min(picture.size))
        return picture.resize((picture.width * enlarge, picture.height * enlarge), Image.Resampling.NEAREST)


def _picture(media: Tensor) -> Image.Image:
    """(C, H, W) in [-1, 1] -> a grey or RGB picture."""
    pixels = ((media.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(rearrange(pixels, "c h w -> h w c").squeeze(-1).numpy())


class Patches(_Pictures):
    """Raw patches, brought to unit variance.

    One mean for each channel of a token, but one standard deviation for all: a distance between tokens then stays a
    distance between pixels, so the loss weighs every pixel alike, and a channel that hardly ever changes (the corner of
    a big patch) is not blown up until its noise costs as much as the drawing.
    """

    def __init__(self, config: PatchesConfig) -> None:
        super().__init__(config.channels, config.size, config.patch)
        self.patch = config.patch
        self.token_dim = config.channels * config.patch**2
        self.mean = torch.zeros(self.token_dim)
        self.std = torch.ones(())

    def encode(self, media: Tensor) -> Tensor:
        tokens = self._patches(media)
        return (tokens - self.mean.to(tokens)) / self.std.to(tokens)

    def decode(self, tokens: Tensor, spec: MediaSpec) -> Tensor:
        _, h, _ = spec.grid
        pixels = tokens * self.std.to(tokens) + self.mean.to(tokens)
        return rearrange(pixels, "b (h w) (c p q) -> b c (h p) (w q)", h=h, p=self.patch, q=self.patch).clamp(-1, 1)

    def fit(self, media: Iterable[Tensor]) -> None:
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for picture in media:
            tokens = self._patches(picture[None])[0].cpu().double()  # (N, C)
            count += len(tokens)
            total = total + tokens.sum(0)
            squares = squares + tokens.square().sum(0)
        assert count, "fit needs at least one picture"
        mean = total / count
        variance = (squares / count - mean.square()).mean()
        self.mean = mean.float()
        self.std = variance.clamp_min(1e-6).sqrt().float()  # the floor: a corpus of one flat colour still has tokens

    def statistics(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "std": self.std}

    def load_statistics(self, statistics: Mapping[str, Tensor]) -> None:
        self.mean, self.std = statistics["mean"], statistics["std"]

    def _patches(self, media: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, C·p·q)"""
        return rearrange(media, "b c (h p) (w q) -> b (h w) (c p q)", p=self.patch, q=self.patch)


class KLVAE(_Pictures):
    """Latents of a KL autoencoder. Its weights are loaded at the first encode or decode, on the media's device."""

    def __init__(self, config: KLVAEConfig) -> None:
        self.config = config
        if config.channels is not None and config.stride is not None:
            channels, stride = config.channels, config.stride
        else:
            channels, stride = self.pretrained.latent_channels, _stride(self.pretrained)
        super().__init__(3, config.size, stride * config.patch)
        self.token_dim = channels * config.patch**2

    @cached_property
    def pretrained(self) -> Any:
        """The VAE's configuration alone, with diffusers' defaults filled in."""
        from diffusers import AutoencoderKL

        with _loading(self.config), torch.device("meta"):
            resolved = AutoencoderKL.load_config(self.config.model, subfolder=self.config.subfolder)
            if resolved.get("_class_name") != "AutoencoderKL":
                raise ValueError(f"its config.json describes {resolved.get('_class_name')}, not AutoencoderKL")
            return AutoencoderKL.from_config(resolved).config

    @cached_property
    def scale(self) -> float:
        return self.pretrained.scaling_factor if self.config.scale is None else self.config.scale

    @cached_property
    def shift(self) -> float:
        return (self.pretrained.shift_factor or 0.0) if self.config.shift is None else self.config.shift

    @cached_property
    def vae(self) -> Any:  # AutoencoderKL, which hides its methods from type checkers
        from diffusers import AutoencoderKL

        config = self.config
        found = self.pretrained.latent_channels, _stride(self.pretrained)
        expected = config.channels or found[0], config.stride or found[1]
        if found != expected:
            raise UserError(
                f"tokenizer: the VAE {config.model!r} has {found[0]} channels and stride {found[1]}, but "
                f"tokenizer.channels and tokenizer.stride say {expected[0]} and {expected[1]}"
            )
        with _loading(config):
            vae = AutoencoderKL.from_pretrained(
                config.model, subfolder=config.subfolder, use_safetensors=None if config.allow_pickle else True
            )
        if config.tile:
            vae.enable_tiling()
        return vae.eval().requires_grad_(False)

    @torch.no_grad()
    def encode(self, media: Tensor) -> Tensor:
        posterior = self.vae.to(media.device).encode(media).latent_dist
        latents = posterior.sample() if self.config.sample else posterior.mode()
        p = self.config.patch
        return rearrange((latents - self.shift) * self.scale, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)

    @torch.no_grad()
    def decode(self, tokens: Tensor, spec: MediaSpec) -> Tensor:
        _, h, _ = spec.grid
        p = self.config.patch
        latents = rearrange(tokens.float(), "b (h w) (c p q) -> b c (h p) (w q)", h=h, p=p, q=p)
        return self.vae.to(tokens.device).decode(latents / self.scale + self.shift).sample.clamp(-1, 1)

    def fit(self, media: Iterable[Tensor]) -> None:
        """Nothing to learn: scale and shift belong to the VAE."""

    def statistics(self) -> dict[str, Tensor]:
        return {}

    def load_statistics(self, statistics: Mapping[str, Tensor]) -> None:
        """Nothing was learned."""


def _stride(pretrained: Any) -> int:
    return 2 ** (len(pretrained.block_out_channels) - 1)


@contextmanager
def _loading(config: KLVAEConfig) -> Iterator[None]:
    """Turn diffusers' many ways to fail at loading into one line."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        where = config.model if config.subfolder is None else f"{config.model}, subfolder {config.subfolder}"
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise UserError(
            f"tokenizer.model: cannot load a VAE from {where!r} ({reason}); give a folder or a hub repository with "
            "config.json and safetensors weights of diffusers' AutoencoderKL, or set tokenizer.allow_pickle for .bin"
        ) from error
