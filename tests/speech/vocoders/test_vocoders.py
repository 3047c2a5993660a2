from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from djepa_mm.media.mel import LogMel, convention_at
from djepa_mm.runs.checkpoint import save_checkpoint
from djepa_mm.speech.vocoders.convention import check_convention
from djepa_mm.speech.vocoders.fourier import FourierSize, FourierVocoder, load_fourier, overlap_add
from djepa_mm.speech.vocoders.hifigan import PUBLISHED
from djepa_mm.tokenizers.mel import Mel, MelConfig
from djepa_mm.types import UserError

RATE_HZ = 22050
SAMPLES = 20 * 256 + 100  # not a whole number of hops


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def mel_with(rate_hz: int = RATE_HZ, **vocoder: Any) -> Mel:
    """The tokenizer whose vocoder is given, as a recipe gives it."""
    section = {"kind": "mel", "sample_rate_hz": rate_hz, "vocoder": vocoder}
    return MelConfig.model_validate_json(json.dumps(section)).build()


def refusal(**vocoder: Any) -> str:
    with pytest.raises(UserError) as error:
        mel_with(**vocoder)
    assert "\n" not in str(error.value)
    return str(error.value)


def log_mel() -> Tensor:
    return LogMel(RATE_HZ)(0.1 * torch.randn(2, SAMPLES))


# --- conventions ------------------------------------------------------------------------------------------------------


def test_a_mismatch_names_what_differs_and_nothing_else() -> None:
    ours = convention_at(RATE_HZ)
    check_convention("it", replace(ours), ours, "do something")
    with pytest.raises(UserError) as error:
        check_convention("it", replace(ours, hop_samples=200, log="base 10"), ours, "do something")
    assert str(error.value) == (
        "it takes other mels than the tokenizer makes (its | the tokenizer's): hop_samples 200 | 256, "
        "log base 10 | natural; do something"
    )


# --- Griffin-Lim ------------------------------------------------------------------------------------------------------


def test_griffin_lim_is_the_default_and_more_iterations_are_nearer() -> None:
    default = MelConfig(kind="mel").vocoder
    assert (default.kind, default.iterations) == ("griffin-lim", 60)
    sound = torch.sin(torch.arange(SAMPLES) ** 1.5 / 3000)[None] * 0.3

    def error(iterations: int) -> float:
        mel = mel_with(kind="griffin-lim", iterations=iterations)
        wanted = mel.log_mel(sound)
        return float((mel.log_mel(mel.waveform(wanted, SAMPLES)) - wanted).abs().mean())

    assert error(40) < 0.9 * error(1)


# --- HiFi-GAN ---------------------------------------------------------------------------------------------------------


def save_hifigan(folder: Path, name: str, **options: Any) -> Any:
    """A small one with random weights, its mean and scale not those of no normalisation."""
    import transformers

    kind = getattr(transformers, name)
    sizes: dict[str, Any] = {
        "upsample_initial_channel": 16,
        "upsample_rates": [8, 8, 4],
        "upsample_kernel_sizes": [16, 16, 8],
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1, 3]],
    }
    model = kind(kind.config_class(**sizes | options)).eval()
    with torch.no_grad():
        model.mean.fill_(-4.0)
        model.scale.fill_(2.0)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_hifi_gan_of_the_tokenizers_mels_speaks(name: str, tmp_path: Path) -> None:
    model = save_hifigan(tmp_path, name, **({"sampling_rate": RATE_HZ} if "T5" in name else {}))
    mel = mel_with(kind="hifigan", path=str(tmp_path), trained_on="tokenizer")
    frames = log_mel()
    sound = mel.waveform(frames, SAMPLES)
    assert sound.shape == (2, SAMPLES)
    # whole hops are what the model gives; its receptive field of the frame that fills the last hop is cut away
    expected = model(frames.transpose(1, 2))
    torch.testing.assert_close(sound[:, : 10 * 256], expected[:, : 10 * 256], atol=1e-5, rtol=1e-4)
    assert torch.equal(sound, mel.waveform(frames, SAMPLES))
    assert mel.waveform(frames).shape == (2, 20 * 256)


@pytest.mark.parametrize(("name", "rate"), [("SpeechT5HifiGan", "16000"), ("FastSpeech2ConformerHifiGan", None)])
def test_a_hifi_gan_of_the_published_mels_is_refused(name: str, rate: str | None, tmp_path: Path) -> None:
    save_hifigan(tmp_path, name)
    message = refusal(kind="hifigan", path=str(tmp_path))
    assert name in message
    assert (f"sample_rate_hz {rate} | 22050" in message) == (rate is not None)
    for differing in ("f_min_hz 80.0 | 0.0", "f_max_hz 7600.0 | 8000.0", "log base 10 | natural", "trained_on"):
        assert differing in message
    assert "n_fft" not in message  # the same on both sides


def test_what_a_hifi_gans_config_says_is_checked_whatever_it_was_trained_on(tmp_path: Path) -> None:
    save_hifigan(tmp_path, "SpeechT5HifiGan", upsample_rates=[8, 4, 4])
    message = refusal(kind="hifigan", path=str(tmp_path), trained_on="tokenizer")
    assert "sample_rate_hz 16000 | 22050, hop_samples 128 | 256;" in message


def test_what_is_no_whole_hifi_gan_is_refused_in_one_line(tmp_path: Path) -> None:
    assert "holds a model of no known class" in refusal(kind="hifigan", path=str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    assert "cannot be read" in refusal(kind="hifigan", path=str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    assert "holds BertModel; a HiFi-GAN is one of SpeechT5HifiGan, Fast" in refusal(kind="hifigan", path=str(tmp_path))
    save_hifigan(tmp_path, "FastSpeech2ConformerHifiGan")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    assert "cannot be read" in refusal(kind="hifigan", path=str(tmp_path), trained_on="tokenizer")


def test_a_hifi_gan_without_some_of_its_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_hifigan(tmp_path, "FastSpeech2ConformerHifiGan")
    weights = load_file(tmp_path / "model.safetensors")
    del weights["conv_pre.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    message = refusal(kind="hifigan", path=str(tmp_path), trained_on="tokenizer")
    assert "is not whole: without conv_pre.weight" in message


# --- our own ----------------------------------------------------------------------------------------------------------


def spectrum_of(sound: Tensor) -> Tensor:
    """(B, S) -> (B, F, K): the transform behind the tokenizer's mels, in its frames."""
    padded = torch.nn.functional.pad(sound[:, None], (384, 384), mode="reflect")[:, 0]
    frames = torch.stft(padded, 1024, 256, window=torch.hann_window(1024), center=False, return_complex=True)
    return frames.transpose(1, 2)


def test_the_magnitudes_and_phases_of_a_sound_give_the_sound_back() -> None:
    sound = torch.randn(2, 9 * 256)
    spectrum = spectrum_of(sound)
    assert spectrum.shape == (2, 9, 513)
    torch.testing.assert_close(overlap_add(spectrum, torch.hann_window(1024), 256, 128), sound, atol=1e-4, rtol=1e-4)
    short = sound[:, :512]
    torch.testing.assert_close(
        overlap_add(spectrum_of(short), torch.hann_window(1024), 256, 128), short, atol=1e-4, rtol=1e-4
    )


def test_the_head_says_log_magnitude_and_phase() -> None:
    """A network whose head ignores its input gives the spectrum that the head's biases name."""
    vocoder = FourierVocoder(convention_at(RATE_HZ), FourierSize(width=8, blocks=1))
    wanted = spectrum_of(torch.randn(1, 4096))[0, 5]
    with torch.no_grad():
        vocoder.head.weight.zero_()
        vocoder.head.bias.copy_(torch.cat([wanted.abs().log(), wanted.angle()]))
        spectrum = vocoder.spectrum(torch.randn(1, 80, 3))
    torch.testing.assert_close(spectrum, wanted.expand(1, 3, -1), atol=1e-3, rtol=1e-4)


def save_vocoder(run: Path) -> FourierVocoder:
    """A run folder with a checkpoint of a small vocoder with random weights."""
    vocoder = FourierVocoder(convention_at(RATE_HZ), FourierSize(width=16, blocks=2))
    state = {
        "step": 7,
        "seconds": 1.0,
        "size": vocoder.size.model_dump(),
        "convention": {f: getattr(vocoder.convention, f) for f in vocoder.convention.__dataclass_fields__},
    }
    tensors = {"averaged": vocoder.state_dict(), "online": {}, "training": {}}
    save_checkpoint(run / "checkpoints", "", state, tensors, keep=1)
    return vocoder.eval()


def test_our_vocoder_speaks_through_the_tokenizer(tmp_path: Path) -> None:
    vocoder = save_vocoder(tmp_path)
    mel = mel_with(kind="fourier", path=str(tmp_path))
    frames = log_mel()
    sound = mel.waveform(frames, SAMPLES)
    assert sound.shape == (2, SAMPLES)
    assert not sound.requires_grad
    assert torch.equal(sound, mel.waveform(frames, SAMPLES))
    torch.testing.assert_close(sound, vocoder(frames, SAMPLES))
    assert mel.waveform(frames).shape == (2, 20 * 256)
    assert mel.waveform(frames, 1000).shape == (2, 1000)


def test_our_vocoder_of_another_rate_is_refused(tmp_path: Path) -> None:
    save_vocoder(tmp_path)
    message = refusal(rate_hz=16000, kind="fourier", path=str(tmp_path))
    assert "sample_rate_hz 22050 | 16000; train one for them: djepa-mm vocoder train" in message


def test_what_is_no_vocoder_of_ours_is_refused_in_one_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert "no such run folder; a vocoder is made by: djepa-mm vocoder train" in refusal(kind="fourier", path=str(run))
    run.mkdir()
    assert "no checkpoint yet" in refusal(kind="fourier", path=str(run))
    save_checkpoint(run / "checkpoints", "", {"step": 1}, {"averaged": {}, "online": {}, "training": {}}, keep=1)
    assert "holds no vocoder" in refusal(kind="fourier", path=str(run))
    save_vocoder(run)
    weights = run / "checkpoints" / "step-00000007" / "averaged.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "averaged.safetensors: damaged checkpoint" in refusal(kind="fourier", path=str(run))


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    save_vocoder(tmp_path)
    state = tmp_path / "checkpoints" / "step-00000007" / "state.json"
    state.write_text(state.read_text().replace('"width": 16', '"width": 24'))
    with pytest.raises(
        UserError, match=r"averaged\.safetensors: the weights do not fit the recipe: [^\n]*size mismatch"
    ):
        load_fourier(tmp_path)


def test_a_new_vocoder_is_not_deaf() -> None:
    """Random weights already tell mels apart, and nothing in the output is not a number at the extremes."""
    vocoder = FourierVocoder(convention_at(RATE_HZ), FourierSize(width=32, blocks=2))
    silence = torch.full((1, 80, 12), math.log(1e-5))
    loud = torch.full((1, 80, 12), 3.0)
    quiet_sound, loud_sound = vocoder(silence, 3000), vocoder(loud, 3000)
    assert quiet_sound.isfinite().all()
    assert loud_sound.isfinite().all()
    assert not torch.allclose(quiet_sound, loud_sound)
