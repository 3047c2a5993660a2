"""Speech as tokens: groups of log-mel frames in HiFi-GAN's convention, so that published vocoders understand them.

B batch, S samples, F frames, M mel bands, r frames in a token, N = ceil(F / r) tokens on the t axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional

from djepa_mm.types import Config, MediaSpec, UserError

N_FFT = 1024
HOP_SAMPLES = 256
MEL_BANDS = 80
F_MAX_HZ = 8000.0
FLOOR = 1e-5  # silence
EDGE_SAMPLES = (N_FFT - HOP_SAMPLES) // 2  # reflected at both ends, so that F = S // HOP_SAMPLES
CENTRE_SAMPLES = HOP_SAMPLES // 2  # frame i is centred on sample 256·i + 128, where torch.stft's would be on 256·i
MIN_SAMPLES = EDGE_SAMPLES + 1  # a reflection needs one sample more than it reflects
MIN_DURATION_S = 0.05

GRIFFIN_LIM_MOMENTUM = 0.99
INVERSION_STEPS = 30

# Matplotlib's "magma" at nine even steps.
MAGMA = ("000004", "1d1147", "51127c", "832681", "b73779", "e75263", "fc8961", "fec488", "fcfdbf")
PREVIEW_RANGE = (math.log(FLOOR), 1.0)  # natural log of the mel magnitude that the colours span
PREVIEW_ZOOM = 3
PREVIEW_WIDTH = 1500  # pixels; long clips are zoomed less


class MelConfig(Config):
    """Groups of log-mel frames; sound comes back by Griffin-Lim."""

    kind: Literal["mel"]
    frames_per_token: PositiveInt = 4
    sample_rate_hz: PositiveInt = 22050
    max_duration_s: PositiveFloat = 30.0
    """The longest speech that may be asked for."""
    griffin_lim_iterations: PositiveInt = 60

    def build(self) -> Mel:
        return Mel(self)


class Mel:
    """Log-mel frames, each band brought to zero mean and unit variance."""

    suffix: ClassVar[str] = ".wav"

    def __init__(self, config: MelConfig) -> None:
        from torchaudio.functional import melscale_fbanks

        self.config = config
        self.sample_rate_hz = config.sample_rate_hz
        self.token_dim = config.frames_per_token * MEL_BANDS
        self.filters = melscale_fbanks(
            n_freqs=N_FFT // 2 + 1,
            f_min=0.0,
            f_max=min(F_MAX_HZ, config.sample_rate_hz / 2),
            n_mels=MEL_BANDS,
            sample_rate=config.sample_rate_hz,
            norm="slaney",
            mel_scale="slaney",
        ).T  # (M, N_FFT/2 + 1)
        self.window = torch.hann_window(N_FFT)
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

    def spec_for(self, *, num_tokens: int | None = None, duration_s: float | None = None) -> MediaSpec:
        if num_tokens is not None:
            samples = num_tokens * self.config.frames_per_token * HOP_SAMPLES
            duration_s = samples / self.sample_rate_hz
        elif duration_s is not None:
            samples = round(duration_s * self.sample_rate_hz) if math.isfinite(duration_s) else 0
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

    def fit(self, media: Iterable[Tensor]) -> None:
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for waveform in media:
            log_mel = self._padded(waveform[None])[0].cpu().double()  # (M, F)
            count += log_mel.shape[1]
            total = total + log_mel.sum(1)
            squares = squares + log_mel.square().sum(1)
        assert count, "fit needs at least one waveform"
        mean = total / count
        self.mean = mean.float()
        # A band that is silent throughout (speech that was recorded at 8 kHz) must not be blown up.
        self.std = (squares / count - mean.square()).clamp_min(1e-2).sqrt().float()

    def statistics(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "std": self.std}

    def load_statistics(self, statistics: Mapping[str, Tensor]) -> None:
        self.mean, self.std = statistics["mean"], statistics["std"]

    def save(self, media: Tensor, path: Path) -> None:
        """Write 16-bit PCM; sound beyond [-1, 1] is turned down as a whole, for clipping it would crackle."""
        import soundfile

        media = media.detach().float().cpu()
        soundfile.write(path, (media / media.abs().max().clamp_min(1)).numpy(), self.sample_rate_hz, subtype="PCM_16")

    def preview(self, media: Tensor) -> Image.Image:
        """The log-mel as a picture: time to the right, pitch upwards."""
        log_mel = self.log_mel(media.detach()[None].float())[0].cpu().numpy()
        low, high = PREVIEW_RANGE
        colours = np.array([list(bytes.fromhex(colour)) for colour in MAGMA])
        level = (log_mel[::-1] - low) / (high - low) * (len(MAGMA) - 1)
        pixels = np.stack([np.interp(level, range(len(MAGMA)), colours[:, c]) for c in range(3)], axis=-1)
        picture = Image.fromarray(pixels.round().astype(np.uint8))
        zoom = max(1, min(PREVIEW_ZOOM, PREVIEW_WIDTH // picture.width))
        return picture.resize((picture.width * zoom, picture.height * PREVIEW_ZOOM), Image.Resampling.NEAREST)

    def log_mel(self, waveform: Tensor) -> Tensor:
        """(B, S) in [-1, 1] -> (B, M, S // 256), natural log.

        HiFi-GAN's log(max(W·sqrt(|STFT|² + 1e-9), 1e-5)) without centring (arXiv 2010.05646, its meldataset.py)."""
        padded = functional.pad(waveform[:, None], (EDGE_SAMPLES, EDGE_SAMPLES), mode="reflect")[:, 0]
        window = self.window.to(waveform.device)
        stft = torch.stft(padded, N_FFT, HOP_SAMPLES, N_FFT, window, center=False, return_complex=True)
        magnitude = torch.sqrt(stft.real.square() + stft.imag.square() + 1e-9)
        return torch.log((self.filters.to(waveform.device) @ magnitude).clamp_min(FLOOR))

    def waveform(self, log_mel: Tensor, samples: int | None = None) -> Tensor:
        """(B, M, F) -> (B, samples), by default 256·F, at most 255 more. The same mel gives the same sound."""
        from torchaudio.functional import griffinlim

        if samples is None:
            samples = log_mel.shape[-1] * HOP_SAMPLES
        # Griffin-Lim's frame i is centred on sample 256·i, ours on 256·i + 128. One more frame in front and two behind
        # cover the half hops at both ends; then its sample 128 is our sample 0.
        magnitude = functional.pad(self._magnitude(log_mel), (1, 2), mode="replicate")
        sound = griffinlim(
            magnitude,
            self.window.to(log_mel.device),
            n_fft=N_FFT,
            hop_length=HOP_SAMPLES,
            win_length=N_FFT,
            power=1.0,
            n_iter=self.config.griffin_lim_iterations,
            momentum=GRIFFIN_LIM_MOMENTUM,
            length=None,
            rand_init=False,  # measured: as good as a random phase, and repeatable
        )
        return sound[:, CENTRE_SAMPLES : CENTRE_SAMPLES + samples]

    def _padded(self, waveform: Tensor) -> Tensor:
        """(B, S) -> (B, M, N·r): the log-mel, filled up with silence to whole tokens."""
        log_mel = self.log_mel(waveform)
        missing = -log_mel.shape[-1] % self.config.frames_per_token
        return functional.pad(log_mel, (0, missing), value=math.log(FLOOR))

    def _magnitude(self, log_mel: Tensor) -> Tensor:
        """(B, M, F) -> (B, N_FFT/2 + 1, F): a non-negative spectrum x with W·x near the mels.

        Multiplicative updates x ← x·(Wᵀm) / (WᵀWx) (Lee and Seung, 2001); nearer than the clamped pseudo-inverse."""
        filters = self.filters.to(log_mel.device)
        target = filters.T @ log_mel.exp()
        x = target
        for _ in range(INVERSION_STEPS):
            x = x * target / (filters.T @ (filters @ x)).clamp_min(1e-10)
        return x
