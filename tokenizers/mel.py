"""Speech as tokens: groups of log-mel frames in HiFi-GAN's convention, so that published vocoders understand them.

B batch, S samples, F frames, M mel bands, r frames in a token, N = ceil(F / r) tokens on the t axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional

from djepa_mm.speech.vocoders import GRIFFIN_LIM, AnyVocoder
from djepa_mm.speech.vocoders.convention import MelConvention
from djepa_mm.types import Config, MediaSpec, UserError

N_FFT = 1024
HOP_SAMPLES = 256
MEL_BANDS = 80
F_MAX_HZ = 8000.0
FLOOR = 1e-5  # silence
EDGE_SAMPLES = (N_FFT - HOP_SAMPLES) // 2  # reflected at both ends, so that F = S // HOP_SAMPLES
MIN_SAMPLES = EDGE_SAMPLES + 1  # a reflection needs one sample more than it reflects
MIN_DURATION_S = 0.05
FADE_S = 0.01  # at the joins of clips
PAUSE_S = 0.15  # between joined sentences, beside the silence that they have at their ends

# Matplotlib's "magma" at nine even steps.
MAGMA = ("000004", "1d1147", "51127c", "832681", "b73779", "e75263", "fc8961", "fec488", "fcfdbf")
PREVIEW_RANGE = (math.log(FLOOR), 1.0)  # natural log of the mel magnitude that the colours span
PREVIEW_ZOOM = 3
PREVIEW_WIDTH = 1500  # pixels; long clips are zoomed less


def convention_at(sample_rate_hz: int) -> MelConvention:
    """HiFi-GAN's convention; frame i is centred on sample 256·i + 128, where torch.stft's would be on 256·i."""
    return MelConvention(
        sample_rate_hz=sample_rate_hz,
        n_fft=N_FFT,
        window_samples=N_FFT,
        window="hann",
        hop_samples=HOP_SAMPLES,
        first_centre_samples=HOP_SAMPLES // 2,
        bands=MEL_BANDS,
        f_min_hz=0.0,
        f_max_hz=min(F_MAX_HZ, sample_rate_hz / 2),
        scale="slaney",
        norm="slaney",
        log="natural",
        floor=FLOOR,
    )


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

    suffixes: ClassVar[tuple[str, ...]] = (".wav", ".flac")
    suffix: ClassVar[str] = suffixes[0]

    def __init__(self, config: MelConfig) -> None:
        self.config = config
        self.sample_rate_hz = config.sample_rate_hz
        self.token_dim = config.frames_per_token * MEL_BANDS
        self.convention = convention_at(config.sample_rate_hz)
        self.vocoder = config.vocoder.build(self.convention)
        self.filters = self.convention.filters()
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

    @property
    def span(self) -> tuple[int, int, int]:
        return (self.config.frames_per_token * HOP_SAMPLES, 1, 1)

    @property
    def tokens_per_s(self) -> float:
        return self.sample_rate_hz / self.span[0]

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
        """Write 16-bit PCM; sound beyond [-1, 1] is turned down as a whole, for clipping it would crackle.

        What was read from 16-bit PCM is written as the same samples again."""
        import soundfile

        samples = (_within_range(media.detach().float().cpu()) * 32768).round().clamp(-32768, 32767)
        soundfile.write(path, samples.to(torch.int16).numpy(), self.sample_rate_hz, subtype="PCM_16")

    def load(self, path: Path) -> Tensor:
        """Any file that libsndfile reads, mixed down to mono and brought to this sample rate."""
        import soundfile
        from torchaudio.functional import resample

        try:
            sound, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split()) if path.exists() else "no such file"
            raise UserError(f"{path}: not readable as sound ({reason})") from None
        if not len(sound) or not np.isfinite(sound).all():
            raise UserError(f"{path}: {'samples that are not numbers' if len(sound) else 'no samples'}")
        waveform = torch.from_numpy(sound).mean(dim=1)
        return waveform if rate_hz == self.sample_rate_hz else resample(waveform, rate_hz, self.sample_rate_hz)

    def blend(self, original: Tensor, new: Tensor, kept: Tensor) -> Tensor:
        """With a raised cosine of FADE_S on the inner side of each join."""
        new = _within_range(new)
        fade = max(1, round(FADE_S * self.sample_rate_hz))
        changed = (~kept).float()[None, None]
        # 1/2 beside a join, 1 from `fade` samples inside the change on
        near = functional.avg_pool1d(changed, 2 * fade - 1, 1, fade - 1, count_include_pad=False)[0, 0]
        share = torch.sin((2 * near - 1).clamp(0, 1) * math.pi / 2).square() * ~kept  # of the new
        return torch.lerp(original, new, share)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """With a short pause between parts, and their ends faded to silence so that nothing clicks."""
        fade = round(FADE_S * self.sample_rate_hz)
        ramp = torch.sin(torch.linspace(0, math.pi / 2, fade)).square()
        pause = torch.zeros(round(PAUSE_S * self.sample_rate_hz))
        joined: list[Tensor] = []
        for number, part in enumerate(parts):
            part = part.clone()
            if number > 0:
                joined.append(pause)
                part[:fade] *= ramp[: len(part)]
            if number < len(parts) - 1:
                part[-fade:] *= ramp.flip(0)[-len(part) :]
            joined.append(part)
        return torch.cat(joined)

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
        return self.vocoder(log_mel, log_mel.shape[-1] * HOP_SAMPLES if samples is None else samples)

    def _padded(self, waveform: Tensor) -> Tensor:
        """(B, S) -> (B, M, N·r): the log-mel, filled up with silence to whole tokens."""
        log_mel = self.log_mel(waveform)
        missing = -log_mel.shape[-1] % self.config.frames_per_token
        return functional.pad(log_mel, (0, missing), value=math.log(FLOOR))


def _within_range(sound: Tensor) -> Tensor:
    """Turned down as a whole where it goes beyond [-1, 1]."""
    return sound / sound.abs().max().clamp_min(1)
