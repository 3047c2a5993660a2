"""What all vocoders have in common, whichever log-mels they take.

B batch, F frames, M mel bands.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Protocol

import torch
from torch import Tensor

from djepa_mm.errors import UserError
from djepa_mm.media.mel import MelConvention


class Vocoder(Protocol):
    """Log-mel frames -> sound. One file in `vocoders/` holds one kind, with its config beside it."""

    convention: MelConvention

    def __call__(self, log_mel: Tensor, samples: int) -> Tensor:
        """(B, M, F) -> (B, samples), from F hops to a hop more. The same mel gives the same sound."""
        ...


def check_convention(vocoder: str, theirs: MelConvention, ours: MelConvention, advice: str) -> None:
    """Raise UserError, with what differs side by side, where a vocoder takes other mels than the tokenizer makes."""
    pairs = [(f.name, getattr(theirs, f.name), getattr(ours, f.name)) for f in fields(MelConvention)]
    differing = ", ".join(f"{name} {a} | {b}" for name, a, b in pairs if a != b)
    if differing:
        raise UserError(
            f"{vocoder} takes other mels than the tokenizer makes (its | the tokenizer's): {differing}; {advice}"
        )


def padded_to(log_mel: Tensor, samples: int, hop_samples: int) -> Tensor:
    """(B, M, F) -> (B, M, ⌈samples / hop⌉ or more): the last frame again, for a last hop that is not whole."""
    missing = max(0, -(-samples // hop_samples) - log_mel.shape[-1])
    return torch.cat([log_mel, log_mel[..., -1:].expand(-1, -1, missing)], dim=-1)
