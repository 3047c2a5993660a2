from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from djepa_mm.data.check import check_media
from djepa_mm.tokenizers.mel import MelConfig
from djepa_mm.types import Extent, UserError

RATE_HZ = 22050


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # torch.stft crawls on a busy machine otherwise


@pytest.fixture(scope="module")
def voice() -> torch.Tensor:
    """(1, samples): a second of something like vowels, harmonics of a gliding pitch with a little breath."""
    time_s = torch.arange(RATE_HZ + 100) / RATE_HZ  # 100: not a whole number of hops
    phase = 2 * math.pi * (120 * time_s + 15 * time_s.square())
    sound = sum(torch.sin(k * phase) * math.exp(-k / 8) for k in range(1, 25))
    breath = torch.randn(len(time_s), generator=torch.Generator().manual_seed(0))
    sound = (sound * 0.2 + breath * 0.005) * (0.1 + torch.sin(2 * math.pi * 3 * time_s).square())
    return sound[None].clamp(-1, 1)


def test_every_band_of_the_tokens_has_unit_variance(voice: torch.Tensor) -> None:
    mel = MelConfig(kind="mel", frames_per_token=2).build()
    mel.fit([voice[0]])
    bands = mel.encode(voice).reshape(-1, 80)
    torch.testing.assert_close(bands.mean(0), torch.zeros(80), atol=1e-3, rtol=0)
    torch.testing.assert_close(bands.std(0, correction=0), torch.ones(80), atol=1e-3, rtol=0)


def test_tokens_are_filled_up_with_silence(voice: torch.Tensor) -> None:
    mel = MelConfig(kind="mel", frames_per_token=5).build()
    frames = voice.shape[1] // 256
    assert frames % 5 == 1
    tokens = mel.encode(voice).reshape(-1, 80)
    torch.testing.assert_close(tokens[:frames], mel.log_mel(voice)[0].T)
    assert torch.equal(tokens[frames:], torch.full((4, 80), math.log(1e-5)))


def test_sound_comes_back_at_its_length_its_place_and_with_its_mel(voice: torch.Tensor) -> None:
    mel = MelConfig(kind="mel").build()
    mel.fit([voice[0]])
    back = mel.decode(mel.encode(voice), mel.spec_of(tuple(voice[0].shape)))
    assert back.shape == voice.shape
    assert (mel.log_mel(back) - mel.log_mel(voice)).abs().mean() < 0.25  # natural log; silence to speech is about 10
    assert torch.equal(back, mel.decode(mel.encode(voice), mel.spec_of(tuple(voice[0].shape))))


def test_decoded_sound_is_not_shifted_by_half_a_hop() -> None:
    """Griffin-Lim does not know the phase, so compare envelopes: clicks must come back where they were."""
    mel = MelConfig(kind="mel").build()
    clicks = torch.zeros(1, 80 * 256)
    noise = torch.randn(300, generator=torch.Generator().manual_seed(0))
    for start in range(1500, clicks.shape[1] - 1000, 2900):
        clicks[0, start : start + 300] = 0.3 * noise
    back = mel.decode(mel.encode(clicks), mel.spec_of(tuple(clicks[0].shape)))

    def envelope(sound: torch.Tensor) -> np.ndarray:
        return np.convolve(sound[0].square().numpy(), np.hanning(256), mode="same")

    product = np.correlate(envelope(back), envelope(clicks), mode="full")
    lag = int(product.argmax()) - (clicks.shape[1] - 1)
    assert abs(lag) <= 32


def test_the_shortest_waveform_goes_all_the_way() -> None:
    mel = MelConfig(kind="mel").build()
    for samples in (385, 511, 512, 1023):
        waveform = torch.randn(1, samples) * 0.1
        spec = mel.spec_of((samples,))
        assert mel.decode(mel.encode(waveform), spec).shape == (1, samples)
        assert MelConfig(kind="mel", frames_per_token=1).build().encode(waveform).shape[1] == samples // 256
    with pytest.raises(UserError, match="384 samples is too short"):
        mel.spec_of((384,))


def test_speech_needs_a_length_within_range() -> None:
    mel = MelConfig(kind="mel", max_duration_s=2.0).build()
    assert mel.spec_for(Extent(duration_s=1.0)).shape == (RATE_HZ,)
    assert mel.spec_for(Extent(duration_s=1.0)).grid == (22, 1, 1)  # 86 frames
    assert mel.spec_for(Extent(num_tokens=10)).shape == (10 * 4 * 256,)
    assert mel.spec_for(Extent(num_tokens=10)).num_tokens == 10
    for wrong in (0.0, 0.04, 2.1, float("nan"), float("inf"), -1.0):
        with pytest.raises(UserError, match=r"0\.05 to 2 s"):
            mel.spec_for(Extent(duration_s=wrong))
    with pytest.raises(UserError, match="needs a length"):
        mel.spec_for()
    assert mel.fixed is None


@pytest.mark.parametrize("frames_per_token", [1, 2, 4, 8])
def test_a_text_of_one_token_is_as_long_as_the_shortest_speech(frames_per_token: int) -> None:
    mel = MelConfig(kind="mel", frames_per_token=frames_per_token).build()
    spec = mel.spec_for(Extent(num_tokens=1))
    (samples,) = spec.shape
    assert samples == max(frames_per_token * 256, 1103)  # 1103: 0.05 s
    assert mel.decode(torch.zeros(1, spec.num_tokens, mel.token_dim), spec).shape == (1, samples)


def test_corpora_of_another_rate_and_without_sound_are_refused() -> None:
    mel = MelConfig(kind="mel").build()
    check_media(SimpleNamespace(sample_rate_hz=RATE_HZ), mel)
    with pytest.raises(UserError) as error:
        check_media(SimpleNamespace(sample_rate_hz=16000), mel)
    assert str(error.value) == (
        "data gives sound at 16000 Hz, the tokenizer takes sound at 22050 Hz: make data.sample_rate_hz and "
        "tokenizer.sample_rate_hz agree"
    )
    with pytest.raises(UserError, match=r"no sound, the tokenizer takes sound at 22050 Hz"):
        check_media(SimpleNamespace(), mel)
