"""Distance of what a network sees in two pictures, for a loss."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from djepa_mm.errors import UserError

LEAST = 32  # pixels on a side that networks can do with; smaller pictures are enlarged
ANY_SIZE = "interpolate_pos_encoding"  # of networks that otherwise take one size alone


class PerceptualLoss(nn.Module):
    """Mean squared distance of the hidden states of a vision model of transformers, each of unit length over its
    channels, as LPIPS (arXiv 1801.03924) compares them, without its learned weights."""

    mean: Tensor  # (3, 1, 1)
    std: Tensor

    def __init__(self, folder: str, device: torch.device) -> None:
        """Raises UserError where the folder holds no such model with safetensors weights."""
        super().__init__()
        try:
            from transformers import AutoModel, ImageProcessingMixin
            from transformers.utils import logging
        except ImportError:
            raise UserError("loss.perceptual needs transformers: pip install transformers") from None
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        path, here = Path(folder).expanduser(), {"local_files_only": True}
        try:
            self.network: Any
            self.network, loaded = AutoModel.from_pretrained(
                path, use_safetensors=True, output_loading_info=True, **here
            )
            if missing := sorted(name for name in loaded["missing_keys"] if "pooler" not in name):  # comes behind all
                raise ValueError(f"the weights lack {missing[0]}")
            processor, _ = ImageProcessingMixin.get_image_processor_dict(path, **here)
            for name in ("mean", "std"):
                self.register_buffer(name, torch.tensor(processor[f"image_{name}"])[:, None, None])
            known = inspect.signature(self.network.forward).parameters
            self.options = {ANY_SIZE: True} if ANY_SIZE in known else {}
            self.to(device).requires_grad_(False).eval()
            with torch.no_grad():
                self._states(torch.zeros(1, 1, LEAST, LEAST, device=device))
        except Exception as error:  # a network of others may fail with anything
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            if not path.is_dir():  # for which transformers looks on the hub
                reason = f"no folder at {path.absolute()}"
            raise UserError(
                f"loss.perceptual_network: no vision model with safetensors weights and preprocessor_config.json in "
                f"{folder!r} ({reason})"
            ) from None

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        """Pictures (B, C, H, W) in [-1, 1] -> a scalar."""
        with torch.no_grad():
            seen = self._states(real)
        pairs = zip(self._states(made), seen, strict=True)
        return torch.stack([(a - b).square().sum(1).mean() for a, b in pairs]).mean()

    def _states(self, pictures: Tensor) -> list[Tensor]:
        """Hidden states (B, channels, …), of unit length over their channels."""
        if min(pictures.shape[-2:]) < LEAST:
            scale = LEAST / min(pictures.shape[-2:])
            pictures = functional.interpolate(pictures, scale_factor=scale, mode="bilinear")
        pictures = (pictures.expand(-1, 3, -1, -1).float() + 1) / 2
        pictures = (pictures - self.mean) / self.std
        states = self.network(pictures, output_hidden_states=True, **self.options).hidden_states
        # of a convolutional network (B, channels, h, w), of a transformer (B, tokens, channels)
        laid = [state if state.dim() == 4 else state.transpose(1, 2) for state in states]
        return [functional.normalize(state.float(), dim=1) for state in laid]
