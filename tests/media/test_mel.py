from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.audio_utils import mel_filter_bank

from djepa_mm.media.mel import LogMel

RATE_HZ = 22050


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # torch.stft crawls on a busy machine otherwise


@pytest.fixture(scope="module")
def filters() -> np.ndarray:
    """librosa.filters.mel(sr=22050, n_fft=1024, n_mels=80, fmax=8000), as transformers has it. (80, 513)"""
    return mel_filter_bank(513, 80, 0.0, 8000.0, RATE_HZ, norm="slaney", mel_scale="slaney").T


def test_the_filters_are_librosas(filters: np.ndarray) -> None:
    np.testing.assert_allclose(LogMel(RATE_HZ).filters.numpy(), filters, atol=1e-6)
    tops = [(2, 0.022651389), (36, 0.021929631), (80, 0.014895469), (358, 0.003265993)]  # of librosa 0.11 itself
    assert [(row.argmax(), row.max()) for row in filters[[0, 20, 40, 79]]] == [
        (place, pytest.approx(top, rel=1e-6)) for place, top in tops
    ]


def test_the_mel_is_hifi_gans(filters: np.ndarray) -> None:
    """As its meldataset.py computes it, with librosa's filters and NumPy in float64."""
    voice = (
        torch.randn(1, RATE_HZ + 100, generator=torch.Generator().manual_seed(0)) * 0.1
    )  # not a whole number of hops
    voice[:, 5000:9000] = 0
    padded = np.pad(voice[0].double().numpy(), (1024 - 256) // 2, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)  # periodic Hann
    frames = np.stack([padded[start : start + 1024] for start in range(0, len(padded) - 1023, 256)])
    magnitude = np.sqrt(np.abs(np.fft.rfft(frames * window)) ** 2 + 1e-9)
    expected = np.log(np.clip(filters @ magnitude.T, 1e-5, None))
    ours = LogMel(RATE_HZ)(voice)[0].numpy()
    assert ours.shape == (80, voice.shape[1] // 256)
    np.testing.assert_allclose(ours, expected, atol=2e-3)
