"""Distances between two sounds (mel-cepstral distortion, multi-resolution STFT) and between two pictures (PSNR, SSIM).

S samples, M mel bands, F frames, K cepstral coefficients; C channels, T frames, H and W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from djepa_mm.speech.vocoders.losses import RESOLUTIONS, magnitude, spectral_loss
from djepa_mm.types import UserError

CEPSTRAL_COEFFICIENTS = 13  # from 1: coefficient 0 is the loudness
DECIBELS = 10 / math.log(10) * math.sqrt(2)
EXACT = 1e-5  # errors of pixels below it are rounding
RANGE = 2.0  # of media in [-1, 1]
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5


def mel_cepstral_distortion(first: Tensor, second: Tensor, log_mel: Callable[[Tensor], Tensor]) -> float:
    """Mean over the warping path of 10/ln 10 · sqrt(2 Σ_k (c_k − c'_k)²), k = 1 … 13, in dB.

    Kubichek, "Mel-cepstral distance measure for objective speech quality assessment" (1993), between sounds that
    dynamic time warping has aligned. c are the cosines' weights in log|mel| = c_0 + Σ c_k cos(πk(m + ½)/M), so the dB
    are those of the smoothed spectrum. Figures compare only with others of the same mel.

    first, second (S,), their lengths may differ; log_mel: waveforms (B, S) to natural logs of mel magnitudes (B, M, F).
    0 for equal sounds. Raises UserError where dtw-python is not installed.
    """
    try:
        from dtw import dtw
    except ImportError as error:
        raise UserError('mel-cepstral distortion needs dtw-python: pip install "djepa-mm[evaluate]"') from error

    ours, theirs = (_cepstrum(log_mel(sound[None].float().cpu())[0]) for sound in (first, second))
    distance = torch.cdist(ours, theirs, compute_mode="donot_use_mm_for_euclid_dist").double().numpy()  # (F, F')
    path = dtw(distance, step_pattern="symmetric1")  # by one in either or both, all steps alike
    return DECIBELS * float(distance[path.index1, path.index2].mean())


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


def psnr_db(first: Tensor, second: Tensor) -> float:
    """10 log10(2² / mean squared error), of media in [-1, 1] of one shape; an error below EXACT counts as EXACT: 106 dB
    at most."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    decibels = peak_signal_noise_ratio(first.double(), second.double(), data_range=RANGE)
    return min(decibels.item(), 20 * math.log10(RANGE / EXACT))


def ssim(first: Tensor, second: Tensor) -> float:
    """Structural similarity of pictures (C, H, W) or of the frames of clips (C, T, H, W) in [-1, 1]; 1 where equal.

    Wang et al., "Image quality assessment: from error visibility to structural similarity" (2004): a Gaussian window
    of 11 pixels with σ 1.5, K1 0.01 and K2 0.03, wherever the whole window fits; mean over channels and frames.
    Pictures smaller than the window are enlarged, each pixel repeated, until it fits.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    height, width = first.shape[-2:]
    times = -(-SSIM_WINDOW // min(height, width, SSIM_WINDOW))
    x, y = (
        media.float().reshape(1, -1, height, width).repeat_interleave(times, -2).repeat_interleave(times, -1)
        for media in (first, second)
    )
    _, places = structural_similarity_index_measure(x, y, sigma=SSIM_SIGMA, data_range=RANGE, return_full_image=True)
    edge = SSIM_WINDOW // 2  # where the window hangs over, torchmetrics fills it with reflections
    return places[..., edge:-edge, edge:-edge].mean().item()


def _cepstrum(log_mel: Tensor) -> Tensor:
    """(M, F) -> (F, K): the weights of the cosines k = 1 … K in each frame, a DCT-II."""
    bands = len(log_mel)
    places = (torch.arange(bands) + 0.5) / bands
    cosines = torch.cos(math.pi * torch.arange(1, CEPSTRAL_COEFFICIENTS + 1)[:, None] * places)  # (K, M)
    return (2 / bands * cosines @ log_mel.cpu()).T
