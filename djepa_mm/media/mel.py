"""Log-mels, the pictures of sounds: what one is, in numbers, and HiFi-GAN's, which published vocoders understand.

B batch, S samples, F frames, M mel bands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

N_FFT = 1024
HOP_SAMPLES = 256
MEL_BANDS = 80
F_MAX_HZ = 8000.0
FLOOR = 1e-5  # silence
EDGE_SAMPLES = (N_FFT - HOP_SAMPLES) // 2  # reflected at both ends, so that F = S // HOP_SAMPLES
MIN_SAMPLES = EDGE_SAMPLES + 1  # a reflection needs one sample more than it reflects


@dataclass(frozen=True, slots=True, kw_only=True)
class MelConvention:
    """Magnitudes of a short-time Fourier transform, gathered in mel bands, as logarithms.

    Two ends that agree on all of these numbers understand each other."""

    sample_rate_hz: int
    n_fft: int
    window_samples: int
    window: Literal["hann"]  # periodic
    hop_samples: int
    first_centre_samples: int  # the sample that frame 0 is centred on; frame i is centred i hops later
    bands: int
    f_min_hz: float
    f_max_hz: float
    scale: Literal["slaney", "htk"]
    norm: Literal["slaney", "none"]
    log: Literal["natural", "base 10"]
    floor: float  # the least magnitude that the logarithm sees

    def filters(self) -> Tensor:
        """(M, n_fft/2 + 1): what gathers magnitudes into bands."""
        from torchaudio.functional import melscale_fbanks

        return melscale_fbanks(
            n_freqs=self.n_fft // 2 + 1,
            f_min=self.f_min_hz,
            f_max=self.f_max_hz,
            n_mels=self.bands,
            sample_rate=self.sample_rate_hz,
            norm="slaney" if self.norm == "slaney" else None,
            mel_scale=self.scale,
        ).T


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


class LogMel:
    """(B, S) in [-1, 1] -> (B, M, S // 256), natural log, in HiFi-GAN's convention.

    log(max(W·sqrt(|STFT|² + 1e-9), 1e-5)) without centring (arXiv 2010.05646, its meldataset.py)."""

    def __init__(self, sample_rate_hz: int) -> None:
        self.convention = convention_at(sample_rate_hz)
        self.filters = self.convention.filters()  # (M, N_FFT/2 + 1)
        self.window = torch.hann_window(N_FFT)

    def __call__(self, waveform: Tensor) -> Tensor:
        padded = functional.pad(waveform[:, None], (EDGE_SAMPLES, EDGE_SAMPLES), mode="reflect")[:, 0]
        window = self.window.to(waveform.device)
        stft = torch.stft(padded, N_FFT, HOP_SAMPLES, N_FFT, window, center=False, return_complex=True)
        magnitude = torch.sqrt(stft.real.square() + stft.imag.square() + 1e-9)
        return torch.log((self.filters.to(waveform.device) @ magnitude).clamp_min(FLOOR))
