"""What a vocoder learns from: spectra at several resolutions, and discriminators that look at them.

B batch, S samples, K bins, F frames, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

RESOLUTIONS = (512, 1024, 2048)  # n_fft; a quarter of it is the hop
POWER_FLOOR = 1e-7
COMPRESSION = 0.3  # exponent of the magnitudes that discriminators see: quiet parts count too
SLOPE = 0.1  # of leaky ReLUs


def magnitude(sound: Tensor, n_fft: int) -> Tensor:
    """(B, S) -> (B, K, F), Hann window, frames on every quarter of it; never below the root of POWER_FLOOR."""
    window = torch.hann_window(n_fft, device=sound.device)
    stft = torch.stft(sound, n_fft, n_fft // 4, window=window, return_complex=True)
    return (stft.real.square() + stft.imag.square()).clamp_min(POWER_FLOOR).sqrt()


def spectral_loss(generated: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """Spectral convergence plus L1 distance of log-magnitudes, averaged over resolutions (arXiv 1910.11480, eq. 4–6).

    The spectra are `magnitude`'s, one (B, K, F) a resolution."""
    losses = []
    for ours, theirs in zip(generated, real, strict=True):
        convergence = (theirs - ours).norm() / theirs.norm()
        losses.append(convergence + functional.l1_loss(ours.log(), theirs.log()))
    return torch.stack(losses).mean()


class Discriminators(nn.Module):
    """One `SpectrumDiscriminator` a resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(SpectrumDiscriminator(channels) for _ in RESOLUTIONS)

    def forward(self, spectra: Sequence[Tensor]) -> list[list[Tensor]]:
        """Spectra as `magnitude` gives them -> of each resolution, the layers' outputs; the last is the verdict."""
        return [member(spectrum) for member, spectrum in zip(self.members, spectra, strict=True)]


class SpectrumDiscriminator(nn.Module):
    """Convolutions over frequency and time; a verdict for every patch (UnivNet's, arXiv 2106.07889, smaller)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        sizes = ((1, channels), (channels, channels), (channels, channels), (channels, channels))
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(before, after, (7, 3), stride=(3, 1), padding=(3, 1))) for before, after in sizes
        )
        self.verdict = weight_norm(nn.Conv2d(channels, 1, (3, 3), padding=(1, 1)))

    def forward(self, spectrum: Tensor) -> list[Tensor]:
        x = spectrum.pow(COMPRESSION)[:, None]  # (B, 1, K, F)
        outputs = []
        for layer in self.layers:
            x = functional.leaky_relu(layer(x), SLOPE)
            outputs.append(x)
        return [*outputs, self.verdict(x)]
