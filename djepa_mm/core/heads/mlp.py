"""The denoising MLP that both heads share (Li et al. 2024, MAR; method of D-JEPA).

M tokens, C token channels, D width of the features, W width of the MLP.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from djepa_mm.core.nn.blocks import xavier_init

TIME_CHANNELS = 256


class TimeEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_CHANNELS, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time: Tensor) -> Tensor:
        """time (M,), in [0, 1000] or as the head scales it -> (M, W)."""
        half = TIME_CHANNELS // 2
        frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=time.device) / half)
        angles = time.float()[:, None] * frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


class ResidualBlock(nn.Module):
    """LayerNorm modulated by shift, scale and gate from SiLU(time + condition), then Linear-SiLU-Linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(condition).chunk(3, dim=-1)  # each (M, W)
        return x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)


class DenoisingMLP(nn.Module):
    def __init__(self, *, in_channels: int, out_channels: int, condition_width: int, width: int, blocks: int) -> None:
        super().__init__()
        self.time = TimeEmbedding(width)
        self.condition = nn.Linear(condition_width, width)
        self.input = nn.Linear(in_channels, width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(blocks))
        self.final_norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.final_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.output = nn.Linear(width, out_channels)
        self.apply(xavier_init)
        for layer in self.time.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
        # Modulation and output start at zero: every block is the identity, the first prediction is zero.
        zeroed = [*(block.get_submodule("modulation") for block in self.blocks), self.final_modulation, self.output]
        for parameter in nn.ModuleList(zeroed).parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, time: Tensor, z: Tensor) -> Tensor:
        """x (M, C) noisy tokens, time (M,) or (1,), z (M, D) -> (M, out_channels) fp32."""
        y = self.time(time) + self.condition(z)  # (M, W), also with one time for all
        h = self.input(x)
        for block in self.blocks:
            h = block(h, y)
        shift, scale = self.final_modulation(y).chunk(2, dim=-1)
        return self.output(self.final_norm(h) * (1 + scale) + shift).float()
