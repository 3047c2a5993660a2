"""The paper, readable alone: D-JEPA's networks, losses, masking and sampling, on torch and einops."""

from djepa_mm.core.djepa import DJEPA, Losses, Positions, Size
from djepa_mm.core.masking import MaskRatio
from djepa_mm.core.sampler import Sampler
from djepa_mm.core.types import Condition, ConditionTokens, TokenBatch

__all__ = [
    "DJEPA",
    "Condition",
    "ConditionTokens",
    "Losses",
    "MaskRatio",
    "Positions",
    "Sampler",
    "Size",
    "TokenBatch",
]
