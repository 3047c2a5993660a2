"""Distances between two sounds: mel-cepstral distortion, and the multi-resolution STFT distance.

S samples, M mel bands, F frames, K cepstral coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from djepa_mm.types import UserError
from djepa_mm.vocoders.losses import RESOLUTIONS, magnitude, spectral_loss

CEPSTRAL_COEFFICIENTS = 13  # from 1: coefficient 0 is the loudness
DECIBELS = 10 / math.log(10) * math.sqrt(2)


def mel_cepstral_distortion(first: Tensor, second: Tensor, log_mel: Callable[[Tensor], Tensor]) -> float:
    """Mean over the warping path of 10/ln 10 · sqrt(2 Σ_k (c_k − c'_k)²), k = 1 … 13, in dB.

    Kubichek, "Mel-cepstral distance measure for objective speech quality assessment" (1993), between sounds that
    dynamic time warping has aligned. c are the cosines' weights in log|mel| = c_0 + Σ c_k cos(πk(m + ½)/M), so the dB
    are those of the smoothed spectrum. Figures compare only with others of the same mel.

    first, second (S,), their lengths may differ; log_mel: waveforms (B, S) to natural logs of mel magnitudes (B, M, F).
    0 for equal sounds. Raises UserError where librosa is not installed.
    """
    try:
        from librosa.sequence import dtw
    except ImportError as error:
        raise UserError('mel-cepstral distortion needs librosa: pip install "djepa-mm[evaluate]"') from error

    ours, theirs = (_cepstrum(log_mel(sound[None].float().cpu())[0]) for sound in (first, second))
    distance = torch.cdist(ours, theirs, compute_mode="donot_use_mm_for_euclid_dist").numpy()  # (F, F')
    _, path = dtw(C=distance)  # (steps, 2)
    return DECIBELS * float(distance[path[:, 0], path[:, 1]].mean())


def stft_distance(reference: Tensor, sound: Tensor) -> float:
    """Spectral convergence plus the mean absolute difference of log magnitudes, averaged over three resolutions.

    ‖|X| − |Y|‖ / ‖|X|‖ + mean |ln |X| − ln |Y||, X of the reference: Yamamoto et al. 2020, Parallel WaveGAN (arXiv
    1910.11480, eq. 4–6), with FFTs of 512, 1024 and 2048 samples; what our vocoder learns from. Both (S,), aligned to
    the sample, as a sound and its way through a vocoder are; blind to phase. Raises ValueError for different lengths.
    """
    if reference.shape != sound.shape:
        raise ValueError(f"the sounds must be aligned: {tuple(reference.shape)} and {tuple(sound.shape)} samples")
    ours, theirs = ([magnitude(s[None].float().cpu(), n_fft) for n_fft in RESOLUTIONS] for s in (sound, reference))
    return float(spectral_loss(ours, theirs))


def _cepstrum(log_mel: Tensor) -> Tensor:
    """(M, F) -> (F, K): the weights of the cosines k = 1 … K in each frame, a DCT-II."""
    bands = len(log_mel)
    places = (torch.arange(bands) + 0.5) / bands
    cosines = torch.cos(math.pi * torch.arange(1, CEPSTRAL_COEFFICIENTS + 1)[:, None] * places)  # (K, M)
    return (2 / bands * cosines @ log_mel.cpu()).T
