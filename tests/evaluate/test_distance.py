"""Distances between sounds, and between pictures."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import Tensor

from djepa_mm.data.sources.spoken_digits import speak
from djepa_mm.evaluate.distance import mel_cepstral_distortion, psnr_db, ssim, stft_distance
from djepa_mm.recipe.load import load_recipe
from djepa_mm.tokenizers.mel import Mel
from djepa_mm.types import UserError


@pytest.fixture(scope="module")
def mel() -> Mel:
    tokenizer = load_recipe("spoken-digits").tokenizer.build()
    assert isinstance(tokenizer, Mel)
    return tokenizer


@pytest.fixture(scope="module")
def clips() -> list[Tensor]:
    return [torch.from_numpy(samples).float() / 32768 for samples, _ in speak(["three one zero", "nine six"])]


def test_mel_cepstral_distortion_orders_sounds(mel: Mel, clips: list[Tensor]) -> None:
    """Itself 0; a vocoder's way back small; other words larger; loudness does not matter."""
    one, other = clips
    back = mel.decode(mel.encode(one[None]), mel.spec_of(tuple(one.shape)))[0]
    assert mel_cepstral_distortion(one, one, mel.log_mel) == 0
    through = mel_cepstral_distortion(one, back, mel.log_mel)
    assert 0 < through < mel_cepstral_distortion(one, other, mel.log_mel) / 2
    noisy = one + 0.02 * torch.randn(len(one))  # no silence, whose floor loudness does not reach
    assert mel_cepstral_distortion(noisy, noisy / 2, mel.log_mel) < 0.05


def test_mel_cepstral_distortion_of_a_known_ripple() -> None:
    """Log-mels that differ by A·cos(πk(m + ½)/M) are 10/ln 10 · √2 · A apart; beyond k = 13 nothing counts."""
    bands, flat, size = 80, torch.zeros(1, 80, 9), 0.3

    def ripple(k: int) -> Tensor:
        wave = torch.cos(math.pi * k * (torch.arange(bands) + 0.5) / bands)
        return (size * wave)[None, :, None].expand(1, bands, 12)

    mels = {1: flat, 2: ripple(5), 3: ripple(14), 4: torch.full((1, bands, 9), 7.0)}

    def distortion(number: int) -> float:
        return mel_cepstral_distortion(torch.ones(1), torch.full((1,), number), lambda s: mels[int(s[0, 0])])

    assert distortion(2) == pytest.approx(10 / math.log(10) * math.sqrt(2) * size, rel=1e-4)
    assert distortion(3) == pytest.approx(0, abs=1e-4)
    assert distortion(4) == pytest.approx(0, abs=1e-4)


def test_mel_cepstral_distortion_follows_time(mel: Mel, clips: list[Tensor]) -> None:
    """The same sound at half the pace and with a longer middle is no distortion; backwards it is."""
    frames = mel.log_mel(clips[0][None])
    slow = torch.cat([frames.repeat_interleave(2, -1), frames[..., -1:].expand(-1, -1, 9)], -1)
    mels = {1: frames, 2: slow, 3: frames.flip(-1)}

    def distortion(number: int) -> float:
        return mel_cepstral_distortion(torch.ones(1), torch.full((1,), number), lambda s: mels[int(s[0, 0])])

    assert distortion(2) == pytest.approx(0, abs=1e-6)
    assert distortion(3) > 1


def test_mel_cepstral_distortion_names_its_extra(monkeypatch: pytest.MonkeyPatch, mel: Mel) -> None:
    monkeypatch.setitem(sys.modules, "dtw", None)
    with pytest.raises(UserError, match=r"djepa-mm\[evaluate\]"):
        mel_cepstral_distortion(torch.zeros(9000), torch.zeros(9000), mel.log_mel)


def test_stft_distance(mel: Mel, clips: list[Tensor]) -> None:
    one, _ = clips
    back = mel.decode(mel.encode(one[None]), mel.spec_of(tuple(one.shape)))[0]
    assert stft_distance(one, one) == 0
    assert stft_distance(one, -one) == 0
    assert 0 < stft_distance(one, back) < stft_distance(one, one.flip(0))
    # ‖X − X/2‖ / ‖X‖ = ½ and |ln 2|, at every resolution, above the floor
    noise = torch.randn(20000)
    assert stft_distance(noise, noise / 2) == pytest.approx(0.5 + math.log(2), rel=1e-4)
    with pytest.raises(ValueError, match="aligned"):
        stft_distance(one, one[:-1])


# --- pictures and clips


def plain_ssim(first: Tensor, second: Tensor) -> float:
    """Wang et al. (2004), equation 13, window by window."""
    bell = torch.tensor([math.exp(-((n - 5) ** 2) / (2 * 1.5**2)) for n in range(11)], dtype=torch.float64)
    window = torch.outer(bell, bell) / bell.sum() ** 2
    x, y = ((s.double().unfold(-2, 11, 1).unfold(-2, 11, 1)) for s in (first, second))  # (…, places, places, 11, 11)

    def mean(values: Tensor) -> Tensor:
        return (values * window).sum((-2, -1))

    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y = (mean((s - m[..., None, None]) ** 2) for s, m in ((x, mean_x), (y, mean_y)))
    cov = mean((x - mean_x[..., None, None]) * (y - mean_y[..., None, None]))
    c1, c2 = 0.02**2, 0.06**2
    similar = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return similar.mean().item()


@pytest.mark.parametrize("shape", [(1, 11, 11), (3, 24, 32), (1, 40, 11), (3, 5, 16, 20)])
def test_psnr_and_ssim_are_their_formulas(shape: tuple[int, ...]) -> None:
    first = torch.rand(shape) * 2 - 1
    second = (first + 0.3 * torch.randn(shape)).clamp(-1, 1)
    assert ssim(first, second) == pytest.approx(plain_ssim(first, second), abs=1e-5)
    error = sum((a - b) ** 2 for a, b in zip(first.flatten().tolist(), second.flatten().tolist(), strict=True))
    assert psnr_db(first, second) == pytest.approx(10 * math.log10(4 * first.numel() / error), abs=1e-5)


def test_psnr_ends_at_what_is_exact() -> None:
    picture = torch.rand(3, 8, 8) * 2 - 1
    assert psnr_db(picture, picture) == psnr_db(picture, picture + 1e-6) == pytest.approx(106.0206, abs=1e-4)
    assert psnr_db(picture, picture + 1e-4) == pytest.approx(86.02, abs=0.05)


def test_structural_similarity_is_scikit_images() -> None:
    ramp = torch.linspace(-1, 1, 24)[:, None] * torch.linspace(0, 1, 32)
    first = ramp.expand(3, 24, 32)
    second = (first + 0.2 * torch.sin(torch.arange(24 * 32 * 3).float() * 1.7).reshape(3, 24, 32)).clamp(-1, 1)
    # structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=2) of 0.26
    assert ssim(first, second) == pytest.approx(0.389857, abs=1e-5)
    assert ssim(first, first) == pytest.approx(1)
    assert ssim(first[:, None], second[:, None]) == pytest.approx(ssim(first, second))  # a clip of one frame


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 5), (8, 64), (10, 10)])
def test_structural_similarity_of_pictures_smaller_than_its_window(size: tuple[int, int]) -> None:
    """Flat ones differ in their light alone; others are compared enlarged."""
    dark, bright = torch.full((1, *size), -0.5), torch.full((1, *size), 0.25)
    assert ssim(dark, bright) == pytest.approx((2 * -0.125 + 4e-4) / (0.25 + 0.0625 + 4e-4), abs=1e-4)
    first, second = torch.rand(2, 3, *size) * 2 - 1
    times = math.ceil(11 / min(size))
    enlarged = (media.repeat_interleave(times, 1).repeat_interleave(times, 2) for media in (first, second))
    assert ssim(first, second) == pytest.approx(plain_ssim(*enlarged), abs=1e-4)
    assert ssim(first, first) == pytest.approx(1)
