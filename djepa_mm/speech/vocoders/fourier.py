"""Our own vocoder: a convolutional network that says each frame's magnitudes and phases; the inverse transform sounds.

The idea is Vocos' (arXiv 2306.00814): all the work is done at the rate of frames, so that it is fast on a CPU.
B batch, S samples, F frames, M mel bands, W width, K = n_fft/2 + 1 bins.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from einops import rearrange
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from djepa_mm.media.mel import MelConvention
from djepa_mm.speech.vocoders.convention import check_convention, padded_to
from djepa_mm.types import Config, UserError
from djepa_mm.weights import find_checkpoint, load_weights, read_state, read_tensors

TRAIN = "djepa-mm vocoder train"
KERNEL = 7
EXPANSION = 3
MAX_LOG_MAGNITUDE = 7.0  # a full-scale sine has log(n_fft / 4), 5.5 for 1024
INIT_STD = 0.02


class FourierConfig(Config):
    """Our own vocoder, trained by `djepa-mm vocoder train`."""

    kind: Literal["fourier"]
    path: str
    """Run folder of the vocoder's training, or one of its checkpoints."""

    def build(self, convention: MelConvention) -> FourierVocoder:
        return load_fourier(Path(self.path).expanduser(), convention)


class FourierSize(Config):
    """Size of the network."""

    width: PositiveInt = 256
    blocks: PositiveInt = 6


class FourierVocoder(nn.Module):
    """Log-mel frames -> log-magnitude and phase of the same frames -> sound."""

    window: Tensor  # (n_fft,)

    def __init__(self, convention: MelConvention, size: FourierSize) -> None:
        super().__init__()
        assert convention.n_fft == convention.window_samples
        assert convention.n_fft % convention.hop_samples == 0
        self.convention, self.size = convention, size
        self.embed = nn.Conv1d(convention.bands, size.width, KERNEL, padding=KERNEL // 2)
        self.norm_in = nn.LayerNorm(size.width)
        self.blocks = nn.ModuleList(Block(size.width, 1 / size.blocks) for _ in range(size.blocks))
        self.norm_out = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, convention.n_fft + 2)
        for module in self.modules():
            if isinstance(module, nn.Conv1d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        self.register_buffer("window", torch.hann_window(convention.n_fft), persistent=False)

    def spectrum(self, log_mel: Tensor) -> Tensor:
        """(B, M, F) -> (B, F, K) complex64."""
        x = self.embed(log_mel).transpose(1, 2)  # (B, F, W)
        x = self.norm_in(x)
        for block in self.blocks:
            x = block(x)
        log_magnitude, phase = self.head(self.norm_out(x)).float().chunk(2, dim=-1)  # (B, F, K)
        magnitude = log_magnitude.clamp_max(MAX_LOG_MAGNITUDE).exp()
        return torch.complex(magnitude * phase.cos(), magnitude * phase.sin())  # torch.polar is slower in training

    def forward(self, log_mel: Tensor, samples: int) -> Tensor:
        mel = self.to(log_mel.device).convention
        log_mel = padded_to(log_mel, samples, mel.hop_samples)
        return overlap_add(self.spectrum(log_mel), self.window, mel.hop_samples, mel.first_centre_samples)[:, :samples]


class Block(nn.Module):
    """ConvNeXt's block in one dimension (arXiv 2201.03545)."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, KERNEL, padding=KERNEL // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, EXPANSION * width)
        self.down = nn.Linear(EXPANSION * width, width)
        self.scale = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor) -> Tensor:  # (B, F, W) -> (B, F, W)
        y = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        return x + self.scale * self.down(functional.gelu(self.up(self.norm(y))))


def overlap_add(spectrum: Tensor, window: Tensor, hop: int, first_centre: int) -> Tensor:
    """(B, F, K) complex -> (B, hop·F), the least-squares inverse of a transform with `window` (Griffin and Lim, 1984).

    Frame i is centred on sample hop·i + first_centre; what lies before sample 0 is cut off. torch.istft knows frames on
    hop·i alone."""
    n_fft = len(window)
    frames = torch.fft.irfft(spectrum, n=n_fft) * window  # (B, F, n_fft)
    weight = window.square().expand(1, frames.shape[1], -1)
    sound, weight = _added(frames, hop), _added(weight, hop)
    start = n_fft // 2 - first_centre
    end = start + hop * frames.shape[1]
    return sound[:, start:end] / weight[:, start:end]


def _added(frames: Tensor, hop: int) -> Tensor:
    """(B, F, n·hop) -> (B, (F + n − 1)·hop): frame i added at hop·i."""
    pieces = rearrange(frames, "b f (n h) -> n b f h", h=hop)
    last = len(pieces) - 1
    shifted = [functional.pad(piece, (0, 0, i, last - i)) for i, piece in enumerate(pieces)]
    return torch.stack(shifted).sum(0).flatten(1)


def load_fourier(path: Path, convention: MelConvention | None = None) -> FourierVocoder:
    """The averaged weights of a run's newest checkpoint, or of the checkpoint that `path` is.

    Raises UserError where there is none, where it is damaged, or where it was trained on other mels than those of the
    tokenizer's `convention`."""
    if not path.exists():
        raise UserError(f"{path}: no such run folder; a vocoder is made by: {TRAIN} vocoder --out {path}")
    checkpoint = find_checkpoint(path)
    state = read_state(checkpoint)
    if "convention" not in state:
        raise UserError(f"{checkpoint}: holds no vocoder; one is made by: {TRAIN} vocoder")
    theirs = MelConvention(**state["convention"])
    if convention is not None:
        advice = f"train one for them: {TRAIN} vocoder --set data.sample_rate_hz={convention.sample_rate_hz}"
        check_convention(str(path), theirs, convention, advice)
    vocoder = FourierVocoder(theirs, FourierSize(**state["size"]))
    load_weights(vocoder, read_tensors(checkpoint, "averaged"), checkpoint / "averaged.safetensors")
    return vocoder.requires_grad_(False).eval()
