"""What a log-mel is, in numbers: two ends that agree on all of them understand each other.

B batch, S samples, F frames, M mel bands.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, Protocol

import torch
from torch import Tensor

from djepa_mm.types import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class MelConvention:
    """Magnitudes of a short-time Fourier transform, gathered in mel bands, as logarithms."""

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


class Vocoder(Protocol):
    """Log-mel frames -> sound. One file in `vocoders/` holds one kind, with its config beside it."""

    convention: MelConvention

    def __call__(self, log_mel: Tensor, samples: int) -> Tensor:
        """(B, M, F) -> (B, samples), from F hops to a hop more. The same mel gives the same sound."""
        ...


def check_convention(vocoder: str, theirs: MelConvention, ours: MelConvention, advice: str) -> None:
    """Raise UserError, with what differs side by side, where a vocoder takes other mels than the tokenizer makes."""
    pairs = [(f.name, getattr(theirs, f.name), getattr(ours, f.name)) for f in fields(MelConvention)]
    differing = ", ".join(f"{name} {a} | {b}" for name, a, b in pairs if a != b)
    if differing:
        raise UserError(
            f"{vocoder} takes other mels than the tokenizer makes (its | the tokenizer's): {differing}; {advice}"
        )


def padded_to(log_mel: Tensor, samples: int, hop_samples: int) -> Tensor:
    """(B, M, F) -> (B, M, ⌈samples / hop⌉ or more): the last frame again, for a last hop that is not whole."""
    missing = max(0, -(-samples // hop_samples) - log_mel.shape[-1])
    return torch.cat([log_mel, log_mel[..., -1:].expand(-1, -1, missing)], dim=-1)
