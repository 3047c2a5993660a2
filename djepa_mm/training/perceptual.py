"""Distance of what a network sees in two pictures, for a loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from djepa_mm.errors import UserError

LEAST = 32  # pixels on a side that networks can do with; smaller pictures are enlarged


class PerceptualLoss(nn.Module):
    """Mean squared distance of the hidden states of a vision model of transformers, each of unit length over its
    channels, as LPIPS (arXiv 1801.03924) compares them, without its learned weights."""

    mean: Tensor  # (3, 1, 1)
    std: Tensor

    def __init__(self, folder: str, device: torch.device) -> None:
        """Raises UserError where the folder holds no such model with safetensors weights."""
        super().__init__()
        path = Path(folder).expanduser()
        try:
            from transformers import AutoImageProcessor, AutoModel

            self.network: Any = AutoModel.from_pretrained(path, use_safetensors=True, local_files_only=True)
            processor = AutoImageProcessor.from_pretrained(path, local_files_only=True, use_fast=False)
            mean, std = (torch.tensor(getattr(processor, name)) for name in ("image_mean", "image_std"))
        except ImportError:
            raise UserError("loss.perceptual needs transformers: pip install transformers") from None
        except (OSError, ValueError, KeyError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"loss.perceptual_network: no vision model with safetensors weights and preprocessor_config.json in "
                f"{folder!r} ({reason})"
            ) from None
        self.register_buffer("mean", mean[:, None, None])
        self.register_buffer("std", std[:, None, None])
        self.to(device).requires_grad_(False).eval()

    def forward(self, made: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
        """Batches of pictures (B, C, H, W) in [-1, 1], each of both -> a scalar."""
        losses = []
        for ours, theirs in zip(made, real, strict=True):
            with torch.no_grad():
                seen = self._states(theirs)
            pairs = zip(self._states(ours), seen, strict=True)
            losses.append(torch.stack([(a - b).square().sum(1).mean() for a, b in pairs]).mean())
        return torch.stack(losses).mean()

    def _states(self, pictures: Tensor) -> list[Tensor]:
        """Hidden states (B, channels, …), of unit length over their channels."""
        if min(pictures.shape[-2:]) < LEAST:
            scale = LEAST / min(pictures.shape[-2:])
            pictures = functional.interpolate(pictures, scale_factor=scale, mode="bilinear")
        pictures = (pictures.expand(-1, 3, -1, -1).float() + 1) / 2
        states = self.network((pictures - self.mean) / self.std, output_hidden_states=True).hidden_states
        # of a convolutional network (B, channels, h, w), of a transformer (B, tokens, channels)
        laid = [state if state.dim() == 4 else state.transpose(1, 2) for state in states]
        return [functional.normalize(state.float(), dim=1) for state in laid]
