"""Sounds in files, at their joins, and as pictures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from djepa_mm.errors import UserError
from djepa_mm.media.sounds import Sounds

RATE_HZ = 22050


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # torch.stft crawls on a busy machine otherwise


def test_loud_sound_is_turned_down_and_not_clipped(tmp_path: Path) -> None:
    loud = torch.sin(torch.arange(2000) / 20) * 3
    Sounds(RATE_HZ).save(loud, tmp_path / "loud.wav")
    samples, rate_hz = soundfile.read(tmp_path / "loud.wav", dtype="float32")
    assert rate_hz == RATE_HZ
    assert soundfile.info(tmp_path / "loud.wav").subtype == "PCM_16"
    np.testing.assert_allclose(samples, loud.numpy() / loud.abs().max().item(), atol=1e-4)


@pytest.mark.parametrize("suffix", Sounds.suffixes)
def test_sounds_keep_their_rate_and_16_bits_keep_their_samples(suffix: str, tmp_path: Path) -> None:
    sounds, path = Sounds(16000), tmp_path / f"a{suffix}"
    assert sounds.per_second == sounds.sample_rate_hz == 16000
    samples = torch.randint(-32768, 32768, (500,), generator=torch.Generator().manual_seed(0)) / 32768
    sounds.save(samples, path)
    assert soundfile.info(path).samplerate == 16000
    assert torch.equal(sounds.load(path), samples)
    assert torch.equal(sounds.load(path, (500,)), samples)
    assert Sounds(8000).load(path).shape == (250,)
    with pytest.raises(
        UserError, match=r"a\.[a-z]+: the sound has 500 samples at 16000 Hz, 400 are taken; cut it first$"
    ):
        sounds.load(path, (400,))


@pytest.mark.parametrize("suffix", Sounds.suffixes)
def test_a_full_disk_is_told_as_such(suffix: str, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no such device")
    (tmp_path / f"a{suffix}").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        Sounds(RATE_HZ).save(torch.zeros(20_000), tmp_path / f"a{suffix}")


def test_both_channels_are_mixed(tmp_path: Path) -> None:
    left = np.full(100, 0.5, np.float32)
    soundfile.write(tmp_path / "a.wav", np.stack([left, 0 * left], axis=1), RATE_HZ)
    np.testing.assert_allclose(Sounds(RATE_HZ).load(tmp_path / "a.wav").numpy(), left / 2, atol=1e-4)


def test_files_that_are_no_sounds_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("not a sound\n")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE_HZ)
    soundfile.write(tmp_path / "nan.wav", np.full(9, np.nan, np.float32), RATE_HZ, subtype="FLOAT")
    reasons = {
        "text": "not readable as sound",
        "missing": "no such file",
        "empty": "no samples",
        "nan": "samples that are not numbers",
    }
    for name, reason in reasons.items():
        with pytest.raises(UserError, match=rf"{name}\.wav: [^\n]*{reason}[^\n]*$"):
            Sounds(RATE_HZ).load(tmp_path / f"{name}.wav")


def test_a_header_that_promises_more_than_fits_in_memory_is_one_line(tmp_path: Path) -> None:
    packed = 44_100 << 44 | 7 << 41 | 15 << 36 | 2**36 - 1  # rate, channels, bits and number of samples
    head = b"fLaC\x80\0\0\x22\x10\0\x10\0" + bytes(6) + packed.to_bytes(8, "big") + bytes(16)
    (tmp_path / "endless.flac").write_bytes(head)
    with pytest.raises(UserError, match=r"endless\.flac: not readable as sound[^\n]*$"):
        Sounds(RATE_HZ).load(tmp_path / "endless.flac")


def test_a_blend_is_faded_inside_the_change() -> None:
    fade, kept = 220, torch.ones(3000, dtype=torch.bool)  # a hundredth of a second
    kept[1000:2000] = False
    blended = Sounds(RATE_HZ).blend(torch.zeros(3000), torch.ones(3000), kept)
    assert not blended[kept].any()
    assert (blended[1000 + fade : 2000 - fade] == 1).all()
    rising = blended[1000 : 1000 + fade]
    assert (rising.diff() >= 0).all()
    assert 0 <= rising[0] < 0.01
    torch.testing.assert_close(rising, blended[2000 - fade : 2000].flip(0))


def test_joined_parts_have_a_pause_between_them_and_faded_ends() -> None:
    joined = Sounds(1000).join([torch.ones(100), torch.ones(200)])
    assert joined.shape == (100 + 150 + 200,)
    assert (joined[:90] == 1).all()
    assert not joined[100:250].any()
    assert joined[99] == joined[250] == 0
    assert (joined[260:] == 1).all()


def test_the_preview_has_low_pitch_at_the_bottom() -> None:
    hum = torch.sin(2 * math.pi * 200 * torch.arange(RATE_HZ) / RATE_HZ) * 0.5
    pixels = np.asarray(Sounds(RATE_HZ).preview(hum).convert("L"), dtype=float)
    assert pixels[-40:].mean() > 3 * pixels[:40].mean()
    assert pixels.shape == (240, 86 * 3)
