"""Speech as tokens: groups of log-mel frames in HiFi-GAN's convention, so that published vocoders understand them.

B batch, S samples, F frames, M mel bands, r frames in a token, N = ceil(F / r) tokens on the t axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from einops import rearrange
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional

from djepa_mm.media.mel import FLOOR, HOP_SAMPLES, MEL_BANDS, MIN_SAMPLES, LogMel
from djepa_mm.media.sounds import Sounds
from djepa_mm.moments import Moments
from djepa_mm.speech.vocoders import GRIFFIN_LIM, AnyVocoder
from djepa_mm.types import USUAL, Config, Extent, Media, MediaSpec, UserError

MIN_DURATION_S = 0.05


class MelConfig(Config):
    """Groups of log-mel frames; sound comes back by a vocoder."""

    kind: Literal["mel"]
    frames_per_token: PositiveInt = 4
    sample_rate_hz: PositiveInt = 22050
    max_duration_s: PositiveFloat = 30.0
    """The longest speech that may be asked for."""
    vocoder: AnyVocoder = GRIFFIN_LIM
    """What turns frames into sound."""

    def build(self) -> Mel:
        return Mel(self)


class Mel:
    """Log-mel frames, each band brought to zero mean and unit variance."""

    fixed: MediaSpec | None = None

    def __init__(self, config: MelConfig) -> None:
        self.config = config
        self.media: Media = Sounds(config.sample_rate_hz)
        self.token_dim = config.frames_per_token * MEL_BANDS
        self.span: tuple[int, int, int] = (config.frames_per_token * HOP_SAMPLES, 1, 1)
        self.log_mel = LogMel(config.sample_rate_hz)
        self.vocoder = config.vocoder.build(self.log_mel.convention)
        self.mean = torch.zeros(MEL_BANDS)
        self.std = torch.ones(MEL_BANDS)

    def spec_of(self, shape: tuple[int, ...]) -> MediaSpec:
        if len(shape) != 1:
            raise UserError(f"the mel tokenizer takes waveforms (samples,), the data has {tuple(shape)}")
        (samples,) = shape
        if samples < MIN_SAMPLES:
            raise UserError(f"a waveform of {samples} samples is too short for a mel frame; give {MIN_SAMPLES} or more")
        frames = samples // HOP_SAMPLES
        return MediaSpec(grid=(-(-frames // self.config.frames_per_token), 1, 1), shape=(samples,))

    def spec_for(self, extent: Extent = USUAL) -> MediaSpec:
        num_tokens, duration_s, size = extent.num_tokens, extent.duration_s, extent.size
        rate_hz = self.config.sample_rate_hz
        if size is not None:
            raise UserError(
                f"speech has no height and width, but {size[0]}×{size[1]} was asked for; leave the size out"
            )
        if num_tokens is not None:
            # Not an error of the one who asks: the length of a short text, such as "I", is an estimate.
            samples = max(num_tokens * self.span[0], math.ceil(MIN_DURATION_S * rate_hz))
            duration_s = samples / rate_hz
        elif duration_s is not None:
            samples = round(duration_s * rate_hz) if math.isfinite(duration_s) else 0
        else:
            raise UserError("speech needs a length: give a duration in seconds")
        if not MIN_DURATION_S <= duration_s <= self.config.max_duration_s:
            raise UserError(
                f"a duration of {duration_s:.4g} s is out of range: give {MIN_DURATION_S} to "
                f"{self.config.max_duration_s:g} s (tokenizer.max_duration_s)"
            )
        return self.spec_of((samples,))

    def encode(self, media: Tensor) -> Tensor:
        log_mel = (self._padded(media) - self.mean.to(media)[:, None]) / self.std.to(media)[:, None]
        return rearrange(log_mel, "b m (n r) -> b n (r m)", r=self.config.frames_per_token)

    def decode(self, tokens: Tensor, spec: MediaSpec) -> Tensor:
        tokens = tokens.float()
        log_mel = rearrange(tokens, "b n (r m) -> b m (n r)", r=self.config.frames_per_token)
        log_mel = log_mel * self.std.to(tokens)[:, None] + self.mean.to(tokens)[:, None]
        (samples,) = spec.shape
        return self.waveform(log_mel, samples)

    def views(self, tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """The log-mels (B, 1, M, F), a third of their unit variance."""
        return rearrange(tokens, "b n (r m) -> b 1 m (n r)", r=self.config.frames_per_token) / 3

    def fit(self, media: Iterable[Tensor]) -> None:
        moments = Moments()
        for waveform in media:
            moments.add(self._padded(waveform[None])[0].T)
        self.mean = moments.mean.float()
        # A band that is silent throughout (speech that was recorded at 8 kHz) must not be blown up.
        self.std = moments.variance.clamp_min(1e-2).sqrt().float()

    def state(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "std": self.std}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.mean, self.std = state["mean"], state["std"]

    def waveform(self, log_mel: Tensor, samples: int | None = None) -> Tensor:
        """(B, M, F) -> (B, samples), by default 256·F, at most 255 more. The same mel gives the same sound."""
        return self.vocoder(log_mel, log_mel.shape[-1] * HOP_SAMPLES if samples is None else samples)

    def _padded(self, waveform: Tensor) -> Tensor:
        """(B, S) -> (B, M, N·r): the log-mel, filled up with silence to whole tokens."""
        log_mel = self.log_mel(waveform)
        missing = -log_mel.shape[-1] % self.config.frames_per_token
        return functional.pad(log_mel, (0, missing), value=math.log(FLOOR))
