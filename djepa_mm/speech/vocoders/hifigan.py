"""HiFi-GAN (arXiv 2010.05646) through transformers: pretrained vocoders of text-to-speech systems.

B batch, S samples, F frames, M mel bands.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from safetensors import SafetensorError
from torch import Tensor

from djepa_mm.media.mel import MelConvention
from djepa_mm.speech.vocoders.convention import check_convention, padded_to
from djepa_mm.types import Config, UserError
from djepa_mm.weights import hub_reach


class HifiGanConfig(Config):
    """A `SpeechT5HifiGan` or a `FastSpeech2ConformerHifiGan` of transformers."""

    kind: Literal["hifigan"]
    path: str
    """A folder that `save_pretrained` wrote, or a name on the hub, such as espnet/fastspeech2_conformer_hifigan."""
    trained_on: Literal["published", "tokenizer"] = "published"
    """Its mels, of which its config tells only rate, hop and bands: those of the class' published checkpoint, or this
    tokenizer's own, for a HiFi-GAN that was trained on them."""

    def build(self, convention: MelConvention) -> HifiGan:
        return HifiGan(self, convention)


# What the published checkpoints were trained on. microsoft/speecht5_hifigan: SpeechT5FeatureExtractor's defaults;
# espnet/fastspeech2_conformer_hifigan: those of ESPnet's LogMelFbank, at LJSpeech's rate. Both centre frames on
# multiples of the hop.
SPEECHT5 = MelConvention(
    sample_rate_hz=16000,
    n_fft=1024,
    window_samples=1024,
    window="hann",
    hop_samples=256,
    first_centre_samples=0,
    bands=80,
    f_min_hz=80.0,
    f_max_hz=7600.0,
    scale="slaney",
    norm="slaney",
    log="base 10",
    floor=1e-10,
)
PUBLISHED = {
    "SpeechT5HifiGan": SPEECHT5,
    "FastSpeech2ConformerHifiGan": replace(SPEECHT5, sample_rate_hz=22050),
}


class HifiGan:
    """Raises UserError where the model is not there, is damaged, is of another class, or takes other mels."""

    def __init__(self, config: HifiGanConfig, convention: MelConvention) -> None:
        try:
            import transformers
        except ImportError:
            raise UserError("tokenizer.vocoder.kind hifigan needs transformers: pip install transformers") from None
        where = f"tokenizer.vocoder.path: {config.path}"
        try:
            reach = hub_reach(config.path)
            values, _ = transformers.PreTrainedConfig.get_config_dict(config.path, **reach)
            name = (values.get("architectures") or ["a model of no known class"])[0]
            if name not in PUBLISHED:
                raise UserError(f"{where} holds {name}; a HiFi-GAN is one of {', '.join(PUBLISHED)}")
            kind = getattr(transformers, name)
            sizes = kind.config_class.from_pretrained(config.path, **reach)
            known, advice = convention, "choose one for the tokenizer's mels"
            if config.trained_on == "published":
                known = PUBLISHED[name]
                advice += ", or, if this one was trained on them, set tokenizer.vocoder.trained_on to tokenizer"
            self.convention = replace(
                known,
                sample_rate_hz=getattr(sizes, "sampling_rate", known.sample_rate_hz),
                hop_samples=math.prod(sizes.upsample_rates),
                bands=sizes.model_in_dim,
            )
            check_convention(f"{where} ({name})", self.convention, convention, advice)
            model, report = kind.from_pretrained(config.path, output_loading_info=True, **reach)
        except (OSError, RuntimeError, SafetensorError) as error:
            problem = " ".join(str(error).split())[:150]
            raise UserError(f"{where} cannot be read, from a folder or from the hub: {problem}") from None
        if report["missing_keys"]:
            raise UserError(f"{where} is not whole: without {', '.join(sorted(report['missing_keys'])[:3])}")
        self.model = model.requires_grad_(False).eval()

    def __call__(self, log_mel: Tensor, samples: int) -> Tensor:
        model = self.model.to(log_mel.device)
        log_mel = padded_to(log_mel, samples, self.convention.hop_samples)
        return model(log_mel.transpose(1, 2)).to(log_mel.dtype)[:, :samples]
