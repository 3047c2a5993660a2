"""Griffin-Lim: sound whose spectrum has the magnitudes that the mels tell of. Needs no training.

B batch, S samples, F frames, M mel bands.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor
from torch.nn import functional

from djepa_mm.media.mel import MelConvention
from djepa_mm.types import Config

MOMENTUM = 0.99
INVERSION_STEPS = 30


class GriffinLimConfig(Config):
    """Phases by iteration (Griffin and Lim, 1984; with momentum: Perraudin et al., 2013)."""

    kind: Literal["griffin-lim"]
    iterations: PositiveInt = 60

    def build(self, convention: MelConvention) -> GriffinLim:
        return GriffinLim(convention, self.iterations)


class GriffinLim:
    """For every convention with a natural logarithm."""

    def __init__(self, convention: MelConvention, iterations: int) -> None:
        assert convention.log == "natural"
        assert convention.window_samples == convention.n_fft
        self.convention, self.iterations = convention, iterations
        self.filters = convention.filters()
        self.window = torch.hann_window(convention.n_fft)

    def __call__(self, log_mel: Tensor, samples: int) -> Tensor:
        from torchaudio.functional import griffinlim

        mel = self.convention
        # Griffin-Lim's frame i is centred on sample hop·i, the convention's on `first` more. One more frame in front
        # and two behind cover both ends; then its sample hop − first is our sample 0.
        magnitude = functional.pad(self._magnitude(log_mel), (1, 2), mode="replicate")
        sound = griffinlim(
            magnitude,
            self.window.to(log_mel.device),
            n_fft=mel.n_fft,
            hop_length=mel.hop_samples,
            win_length=mel.n_fft,
            power=1.0,
            n_iter=self.iterations,
            momentum=MOMENTUM,
            length=None,
            rand_init=False,  # measured: as good as a random phase, and repeatable
        )
        start = mel.hop_samples - mel.first_centre_samples
        return sound[:, start : start + samples]

    def _magnitude(self, log_mel: Tensor) -> Tensor:
        """(B, M, F) -> (B, n_fft/2 + 1, F): a non-negative spectrum x with W·x near the mels.

        Multiplicative updates x ← x·(Wᵀm) / (WᵀWx) (Lee and Seung, 2001); nearer than the clamped pseudo-inverse."""
        filters = self.filters.to(log_mel.device)
        target = filters.T @ log_mel.exp()
        x = target
        for _ in range(INVERSION_STEPS):
            x = x * target / (filters.T @ (filters @ x)).clamp_min(1e-10)
        return x
