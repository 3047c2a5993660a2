"""Log-mel frames -> sound. One file holds one kind of vocoder, with its config beside it."""

from typing import Annotated

from pydantic import Field

from djepa_mm.speech.vocoders.fourier import FourierConfig
from djepa_mm.speech.vocoders.griffin_lim import GriffinLimConfig
from djepa_mm.speech.vocoders.hifigan import HifiGanConfig

AnyVocoder = Annotated[GriffinLimConfig | HifiGanConfig | FourierConfig, Field(discriminator="kind")]
GRIFFIN_LIM = GriffinLimConfig(kind="griffin-lim")
