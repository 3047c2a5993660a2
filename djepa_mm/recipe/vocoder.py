"""What a vocoder's recipe says: the recordings it learns from, its size, and how it learns."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, create_model, model_validator

from djepa_mm.kinds import sections
from djepa_mm.recipe.load import Overrides, load_as
from djepa_mm.recipe.schema import SOURCES, OptimConfig
from djepa_mm.speech.vocoders.fourier import FourierSize
from djepa_mm.types import Config, Probability


class VocoderLossConfig(Config):
    """Weights of what the vocoder learns from, and when the discriminators come in."""

    spectral: NonNegativeFloat = 1.0
    """Spectral convergence and log-magnitudes at three resolutions."""
    mel: NonNegativeFloat = 1.0
    """L1 distance of log-mels."""
    verdict: NonNegativeFloat = 0.03
    """Passing for real before the discriminators."""
    features: NonNegativeFloat = 0.06
    """Distance of what the discriminators' layers see."""
    adversarial_from: Probability = 0.85
    """Share of the training after which there are discriminators; 1 for never."""
    channels: PositiveInt = 16
    """Of the discriminators' layers."""


class SegmentConfig(Config):
    size: PositiveInt = 16
    """Segments in a batch."""
    frames: Annotated[int, Field(ge=8)] = 32
    """Length of a segment, in hops of 256 samples."""
    max_broken_share: Probability = 0.05
    """Stop when more than this share of the corpus cannot be read."""


class VocoderRunConfig(Config):
    seed: NonNegativeInt = 0
    log_every: PositiveInt = 50
    """Steps between lines in log.jsonl."""
    sample_every: PositiveInt | None = None
    """Steps between samples: the corpus' first clip through the vocoder, to hear and to see."""
    save_every: PositiveInt = 500
    """Steps between checkpoints."""
    keep: PositiveInt = 2
    """Checkpoints kept."""
    tracker: Literal["trackio", "wandb"] | None = None
    """Where the log goes besides log.jsonl and TensorBoard: Trackio, on this machine, or Weights & Biases."""


class VocoderRecipe(Config):
    """One vocoder: the recordings it learns from, its size, and how it learns."""

    kind: Literal["vocoder"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Names the run folder, runs/<name>."""
    data: Any  # a SourceConfig; `vocoder_schema` puts the union of those that are there
    model: FourierSize = FourierSize()
    loss: VocoderLossConfig = VocoderLossConfig()
    optim: OptimConfig
    batch: SegmentConfig = SegmentConfig()
    run: VocoderRunConfig = VocoderRunConfig()

    @model_validator(mode="after")
    def _check(self) -> VocoderRecipe:
        if self.optim.optimizer != "adamw":
            raise ValueError(f"optim.optimizer {self.optim.optimizer} is for D-JEPA's blocks: set it to adamw")
        if self.optim.weight_decay_on != "matrices":
            raise ValueError(f"optim.weight_decay_on {self.optim.weight_decay_on} is for D-JEPA: leave it out")
        return self


@cache
def vocoder_schema() -> type[VocoderRecipe]:
    """The recipe's model with all sources that are there."""
    return create_model(
        "VocoderRecipe",
        __base__=VocoderRecipe,
        __doc__=VocoderRecipe.__doc__,
        data=(sections("source", *SOURCES), ...),
    )


def load_vocoder_recipe(source: str | Path | Mapping[str, Any], overrides: Overrides = ()) -> VocoderRecipe:
    """As `load_recipe`."""
    return load_as(vocoder_schema(), source, overrides)
