"""Learning against discriminators: what both sides learn from their layers' outputs, and one for pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

SLOPE = 0.1  # of leaky ReLUs
TINY = 1e-4


class PatchDiscriminator(nn.Module):
    """Convolutions over a picture and a verdict for every patch of it (PatchGAN, arXiv 1611.07004), small."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        sizes = ((inputs, channels), (channels, 2 * channels), (2 * channels, 2 * channels))
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(before, after, 4, stride=2, padding=2)) for before, after in sizes
        )
        self.verdict = weight_norm(nn.Conv2d(2 * channels, 1, 3, padding=1))

    def forward(self, pictures: Sequence[Tensor]) -> list[list[Tensor]]:
        """Batches of pictures (B, C, H, W) -> of each, the layers' outputs; the last is the verdict."""
        return [self._outputs(some) for some in pictures]

    def _outputs(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for layer in self.layers:
            x = functional.leaky_relu(layer(x), SLOPE)
            outputs.append(x)
        return [*outputs, self.verdict(x)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deception:
    """What the generator learns from the discriminators."""

    verdict: Tensor  # hinge: how far it is from passing for real
    features: Tensor  # L1 distance of the layers' outputs, relative to the real ones'


def deception(
    generated: Sequence[Sequence[Tensor]], real: Sequence[Sequence[Tensor]], *, apart: bool = False
) -> Deception:
    """Of the layers' outputs, those of several discriminators or batches; the real ones without their gradient.

    apart: a distance is relative to the outputs of its own item, not to those of the batch, so that it makes no
    difference which items are in one."""
    verdict = torch.stack([functional.relu(1 - g[-1]).mean() for g in generated]).mean()
    pairs = [pair for g, r in zip(generated, real, strict=True) for pair in zip(g[:-1], r[:-1], strict=True)]
    features = torch.stack([_distance(g, r, apart) for g, r in pairs]).mean()
    return Deception(verdict=verdict, features=features)


def _distance(generated: Tensor, real: Tensor, apart: bool) -> Tensor:
    axes = tuple(range(1 if apart else 0, real.dim()))
    return ((generated - real).abs().mean(axes) / real.abs().mean(axes).clamp_min(TINY)).mean()


def detection(generated: Sequence[Sequence[Tensor]], real: Sequence[Sequence[Tensor]]) -> Tensor:
    """Hinge loss of the discriminators: real above 1, generated below −1."""
    return torch.stack(
        [
            functional.relu(1 - r[-1]).mean() + functional.relu(1 + g[-1]).mean()
            for g, r in zip(generated, real, strict=True)
        ]
    ).mean()
