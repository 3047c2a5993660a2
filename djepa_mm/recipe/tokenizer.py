"""What the recipe of a tokenizer says: the media it learns from, their raw tokens, its size, and how it learns."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, create_model, model_validator

from djepa_mm.kinds import sections
from djepa_mm.recipe.load import Overrides, load_as
from djepa_mm.recipe.schema import SOURCES, BatchConfig, ComputeConfig, OptimConfig
from djepa_mm.tokenizers.autoencoder import AutoencoderConfig
from djepa_mm.types import Config, Probability


class DenoiseConfig(Config):
    """l-DeTok's objective (arXiv 2507.15856): the decoder gets latents that are noisy or missing in part, as those are
    that a generator makes."""

    noise: NonNegativeFloat = 3.0
    """Deviation of the noise that takes a share of each latent's place, a share drawn for each item from 0 to 1."""
    hidden: Annotated[float, Field(ge=0, lt=1)] = 0.7
    """Largest share of an item's raw tokens that are hidden; it is drawn from −0.1 on, and below 0 none is."""
    until: Probability = 0.8
    """Share of the training after which the decoder alone learns on, from latents as they are."""


class ReconstructionLossConfig(Config):
    """Weights of what the autoencoder learns from. Raw tokens have unit variance."""

    squared: NonNegativeFloat = 1.0
    """Mean squared error."""
    absolute: NonNegativeFloat = 1.0
    """Mean absolute error."""
    kl: NonNegativeFloat = 1e-3
    """Divergence of a latent's distribution from the standard normal one, for each of its numbers."""
    denoise: DenoiseConfig | None = None
    perceptual: NonNegativeFloat = 0.0
    """Distance of the features that a network sees in pictures, frames or mels, relative to their size."""
    perceptual_network: str | None = None
    """Folder of that network, a vision model of transformers with safetensors weights."""
    verdict: NonNegativeFloat = 0.0
    """Passing for real before a discriminator of patches."""
    features: NonNegativeFloat = 0.0
    """Distance of what the discriminator's layers see, relative to its size."""
    adversarial_from: Probability = 0.5
    """Share of the training after which there is a discriminator."""
    discriminator_channels: Annotated[int, Field(gt=0, le=65_536)] = 32

    @model_validator(mode="after")
    def _check(self) -> ReconstructionLossConfig:
        if not self.squared + self.absolute:
            raise ValueError("loss.squared and loss.absolute are 0: one of them must be above it")
        if (self.perceptual > 0) != (self.perceptual_network is not None):
            raise ValueError("loss.perceptual and loss.perceptual_network go together: give both or none")
        return self

    @property
    def adversarial(self) -> bool:
        return self.verdict > 0 or self.features > 0


class TokenizerRunConfig(Config):
    seed: NonNegativeInt = 0
    log_every: PositiveInt = 50
    """Steps between lines in log.jsonl and TensorBoard."""
    sample_every: PositiveInt | None = None
    """Steps between sheets of reconstructions; none but the last where it is not given."""
    samples: PositiveInt = 8
    """Items on a sheet, each above what came back of it; held-out ones, where the corpus keeps some back."""
    save_every: PositiveInt = 1000
    """Steps between checkpoints."""
    keep: PositiveInt = 2
    """Checkpoints kept."""
    tracker: Literal["trackio", "wandb"] | None = None
    """Where the log goes besides log.jsonl and TensorBoard: Trackio, on this machine, or Weights & Biases."""


class TokenizerRecipe(Config):
    """One tokenizer: the media it learns from, their raw tokens, its size, and how it learns."""

    kind: Literal["tokenizer"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Names the run folder, runs/<name>."""
    data: Any  # a SourceConfig; `tokenizer_schema` puts the union of those that are there
    tokenizer: Any  # a TokenizerConfig of raw tokens, likewise
    model: AutoencoderConfig
    loss: ReconstructionLossConfig = ReconstructionLossConfig()
    optim: OptimConfig
    batch: BatchConfig
    compute: ComputeConfig = ComputeConfig()
    run: TokenizerRunConfig = TokenizerRunConfig()

    @model_validator(mode="after")
    def _check(self) -> TokenizerRecipe:
        if self.batch.item_tokens is not None:
            raise ValueError("batch.item_tokens is for D-JEPA: a tokenizer learns of whole items, leave it out")
        if self.compute.shard:
            raise ValueError("compute.shard is for D-JEPA: a tokenizer is small, set it to false")
        return self


@cache
def tokenizer_schema() -> type[TokenizerRecipe]:
    """The recipe's model with all sources and tokenizers that are there."""
    return create_model(
        "TokenizerRecipe",
        __base__=TokenizerRecipe,
        __doc__=TokenizerRecipe.__doc__,
        data=(sections("source", *SOURCES), ...),
        tokenizer=(sections("kind", "djepa_mm.tokenizers"), ...),
    )


def load_tokenizer_recipe(source: str | Path | Mapping[str, Any], overrides: Overrides = ()) -> TokenizerRecipe:
    """As `load_recipe`."""
    return load_as(tokenizer_schema(), source, overrides)
