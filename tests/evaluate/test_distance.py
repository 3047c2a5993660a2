"""Distances between sounds."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import Tensor

from djepa_mm.data.sources.spoken_digits import speak
from djepa_mm.evaluate.distance import mel_cepstral_distortion, stft_distance
from djepa_mm.recipe.schema import load_recipe
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
    monkeypatch.setitem(sys.modules, "librosa.sequence", None)
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
