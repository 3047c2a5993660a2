"""What networks see in clips: the features that the distance between two sets of clips is taken over.

B clips, C channels, T frames, H and W pixels, d features. A picture is a clip of one frame.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypedDict

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from djepa_mm.types import Item, UserError
from djepa_mm.weights import hub_reach

EMBEDDED = "embedded"
SUFFIXES = (".pt", ".pth", ".ts", ".jit")  # of TorchScript
COARSE = 8  # pixels on a side, of what is seen without a network
AT_ONCE = 16  # clips that an extractor sees together

# Of the embedded classifier
WIDTHS = (32, 64, 64)
SIDE = 64  # pixels; larger frames are made smaller
FRAMES = 8  # of each clip, evenly spread, that it learns from
STEPS, BATCH, RATE, NOISE = 600, 64, 4e-3, 0.05

# Of the I3D that Fréchet video distances are commonly measured with, as TorchScript; its pixels are 0 to 255
KEYWORDS = ("rescale", "resize", "return_features")


class Extractor(Protocol):
    """Sees clips as vectors."""

    name: str  # what it is, for a report

    def __call__(self, clips: Tensor) -> Tensor:
        """(B, C, T, H, W) in [-1, 1] -> (B, d) float, on its own device. Raises UserError where it cannot."""
        ...


def extractor_for(
    name: str, classifier: FrameClassifier | None = None, device: torch.device | str = "cpu"
) -> Extractor:
    """`embedded`, which is the classifier, or where the corpus has no classes, pixels; a TorchScript file; or a video
    model, as a folder or by its name on the hub.

    Raises UserError where it cannot be had."""
    if name == EMBEDDED:
        return PixelExtractor() if classifier is None else classifier
    if name.endswith(SUFFIXES) or Path(name).is_file():
        return ScriptedExtractor(Path(name), device)
    return VideoModelExtractor(name, device)


@torch.inference_mode()
def features(extractor: Extractor, clips: Iterable[Tensor]) -> Tensor:
    """Clips (C, T, H, W) or pictures (C, H, W), all of one shape -> (clips, d) on the CPU."""
    return torch.cat([extractor(batch).cpu() for batch in _batches(clips)])


def _batches(clips: Iterable[Tensor]) -> Iterator[Tensor]:
    """(B, C, T, H, W), AT_ONCE at a time."""
    rest = iter(clips)
    while batch := list(islice(rest, AT_ONCE)):
        yield torch.stack([_clip(media) for media in batch])


def _clip(media: Tensor) -> Tensor:
    """(C, T, H, W), of a picture too."""
    return media if media.dim() == 4 else media[:, None]


def _spread(frames: int, count: int) -> Tensor:
    """`count` frame numbers from the first to the last, at even steps."""
    return torch.linspace(0, frames - 1, count).round().long()


# --- pixels ----------------------------------------------------------------------------------------------------------


class PixelExtractor:
    """For a corpus without classes, which nothing can be learned from: frames of 8×8 pixels, their mean over time and
    their mean absolute change from frame to frame. It sees colours and coarse shapes."""

    name = f"pixels: frames of {COARSE}×{COARSE}, for the corpus has no classes"

    def __call__(self, clips: Tensor) -> Tensor:
        small = rearrange(_resized(clips.float(), (COARSE, COARSE)), "b c t h w -> b t (c h w)")
        change = small.diff(dim=1).abs().sum(1) / max(1, small.shape[1] - 1)
        return torch.cat([small.mean(1), change], dim=1)


# --- the classifier ---------------------------------------------------------------------------------------------------


class Accuracy(TypedDict):
    """Shares that were recognised."""

    frame_accuracy: float
    clip_accuracy: float
    """By the mean over a clip's frames of the logarithms of their probabilities."""


class FrameClassifier(nn.Module):
    """A small convolutional network that tells the class of a frame. As an extractor it gives the mean over time of
    what its last layer sees (d), and the mean absolute change of that from frame to frame (d more, 0 for a picture).
    """

    def __init__(self, channels: int, classes: Sequence[str], side: int) -> None:
        """side: the shorter one of a frame, in pixels."""
        super().__init__()
        self.name = EMBEDDED
        self.numbers = {name: number for number, name in enumerate(classes)}
        layers: list[nn.Module] = []
        for n, width in enumerate(WIDTHS):
            stride = 1 if n == 0 and side < 16 else 2
            layers += [nn.Conv2d(channels, width, 3, stride, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.last = nn.Linear(channels, len(classes))

    def forward(self, clips: Tensor) -> Tensor:
        seen = self._seen(clips)
        change = seen.diff(dim=1).abs().sum(1) / max(1, seen.shape[1] - 1)
        return torch.cat([seen.mean(1), change], dim=1)

    def logits(self, clips: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, T, classes)."""
        return self.last(self._seen(clips))

    @torch.inference_mode()
    def accuracy(self, clips: Iterable[Tensor], labels: Sequence[str | None]) -> Accuracy:
        """Of clips (C, T, H, W) or pictures (C, H, W) that should be of these classes; unknown ones are never seen."""
        scores = torch.cat([self.logits(batch).log_softmax(-1).cpu() for batch in _batches(clips)])
        wanted = torch.tensor([self.numbers.get(name or "", -1) for name in labels])
        return {
            "frame_accuracy": (scores.argmax(-1) == wanted[:, None]).float().mean().item(),
            "clip_accuracy": (scores.mean(1).argmax(-1) == wanted).float().mean().item(),
        }

    def _seen(self, clips: Tensor) -> Tensor:
        """(B, T, d)"""
        frames = rearrange(_shrunk(clips), "b c t h w -> (b t) c h w").to(self.last.weight)
        return rearrange(self.trunk(frames), "(b t) d -> b t d", b=len(clips))


def train_classifier(
    items: Iterable[Item],
    held_out: Sequence[Item],
    classes: Sequence[str],
    *,
    steps: int = STEPS,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> FrameClassifier:
    """Trained on frames of the items, which it goes through once; all have labels. The same seed gives the same one.

    held_out: what its accuracy is measured on, for its name."""
    frames, labels = [], []
    numbers = {name: number for number, name in enumerate(classes)}
    for item in items:
        assert item.entry.label is not None
        clip = _clip(item.media)
        chosen = clip[:, _spread(clip.shape[1], min(FRAMES, clip.shape[1]))]
        frames.append(_shrunk(chosen[None])[0].transpose(0, 1)[:, :, None])  # frames as clips of one
        labels.append(torch.full((len(frames[-1]),), numbers[item.entry.label]))
    corpus, wanted = torch.cat(frames), torch.cat(labels)  # (frames, C, 1, H, W), (frames,)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FrameClassifier(corpus.shape[1], classes, min(corpus.shape[-2:])).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(corpus), (BATCH,), generator=generator)
        logits = model.logits(_augmented(corpus[rows], generator))[:, 0]
        loss = functional.cross_entropy(logits, wanted[rows].to(device))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    model.eval().requires_grad_(False)
    accuracy = model.accuracy((item.media for item in held_out), [item.entry.label for item in held_out])
    model.name = (
        f"{EMBEDDED}: frame classifier trained on {len(frames)} items for {steps} steps, "
        f"held-out frame accuracy {accuracy['frame_accuracy']:.1%}"
    )
    return model


def _augmented(frames: Tensor, generator: torch.Generator) -> Tensor:
    """(B, C, 1, H, W), each shifted by up to a sixteenth of its side, its edge repeated, and with a little noise."""
    height, width = frames.shape[-2:]
    most = max(1, min(height, width) // 16)
    padded = functional.pad(frames, (most, most, most, most, 0, 0), mode="replicate")
    shifts = torch.randint(2 * most + 1, (len(frames), 2), generator=generator).tolist()
    moved = [frame[..., y : y + height, x : x + width] for frame, (y, x) in zip(padded, shifts, strict=True)]
    return torch.stack(moved) + NOISE * torch.randn(frames.shape, generator=generator)


def _shrunk(clips: Tensor) -> Tensor:
    """Clips of at most SIDE pixels on a side."""
    side = max(clips.shape[-2:])
    if side <= SIDE:
        return clips
    height, width = (max(1, round(n * SIDE / side)) for n in clips.shape[-2:])
    return _resized(clips, (height, width))


def _resized(clips: Tensor, size: tuple[int, int]) -> Tensor:
    """Frames (B, C, T, H, W) of another height and width."""
    frames = rearrange(clips, "b c t h w -> (b t) c h w")
    frames = functional.interpolate(frames, size, mode="bilinear", antialias=True)
    return rearrange(frames, "(b t) c h w -> b c t h w", b=len(clips))


# --- networks of others -----------------------------------------------------------------------------------------------


class ScriptedExtractor:
    """A TorchScript file that takes clips in three channels, such as the common I3D of Fréchet video distances. Such a
    file is a program: only from people you trust.

    Where its forward has the keywords `rescale`, `resize` and `return_features`, they are set, and pixels are 0 to 255
    as it then expects; without `rescale`, pixels are in [-1, 1]. Raises UserError for a file that cannot be used."""

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        self.path, self.device = path, device
        with _one_line(f"--extractor {path}: not usable as TorchScript"):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            self.module: Any = torch.jit.load(str(path), map_location=device).eval()
            known = {argument.name for argument in self.module.forward.schema.arguments}
        self.keywords = {name: True for name in KEYWORDS if name in known}
        self.name = f"TorchScript {path.name}, sha256 {digest}"

    def __call__(self, clips: Tensor) -> Tensor:
        pixels = _coloured(clips.to(self.device, torch.float32))
        if "rescale" in self.keywords:
            pixels = (pixels + 1) * 127.5
        with _one_line(f"--extractor {self.path}: it cannot take clips of {tuple(pixels.shape[1:])}"):
            seen = self.module(pixels, **self.keywords)
        return _checked(seen, len(clips), f"--extractor {self.path}")


class VideoModelExtractor:
    """A video model of transformers, such as VideoMAE: the mean of its last hidden state.

    Clips get its number of frames, evenly spread or repeated, and its size. Raises UserError where it cannot be had."""

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        try:
            from transformers import AutoConfig, AutoModel, ImageProcessingMixin
            from transformers.utils import logging
        except ImportError as error:
            raise UserError('--extractor: a video model needs transformers: pip install "djepa-mm[speech]"') from error
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.origin, self.device = f"--extractor {name}", device
        with _one_line(f"{self.origin}: no TorchScript file, nor a video model of transformers"):
            reach = hub_reach(name)
            config = AutoConfig.from_pretrained(name, **reach)
            size, self.frames = config.image_size, config.num_frames
            self.model: Any = AutoModel.from_pretrained(name, use_safetensors=True, **reach).eval().to(device)
        self.size: tuple[int, int] = (size, size) if isinstance(size, int) else (size[0], size[1])
        try:
            processor, _ = ImageProcessingMixin.get_image_processor_dict(name, **reach)
        except OSError:  # it came without one
            processor = {}
        self.mean, self.std = (
            torch.tensor(processor.get(key, [0.5] * 3), device=device).reshape(3, 1, 1)
            for key in ("image_mean", "image_std")
        )
        self.name = f"{config.model_type} {name}"

    def __call__(self, clips: Tensor) -> Tensor:
        chosen = _coloured(clips.to(self.device, torch.float32))[:, :, _spread(clips.shape[2], self.frames)]
        pixels = (_resized(chosen, self.size).transpose(1, 2) + 1) / 2  # (B, T, 3, H, W)
        with _one_line(f"{self.origin}: it cannot take clips of {tuple(pixels.shape[1:])}"):
            seen = self.model(pixel_values=(pixels - self.mean) / self.std).last_hidden_state.mean(1)
        return _checked(seen, len(clips), self.origin)


def _coloured(clips: Tensor) -> Tensor:
    """In three channels."""
    return clips.expand(-1, 3, -1, -1, -1)


def _checked(seen: Any, count: int, origin: str) -> Tensor:
    """(B, d) float. Raises UserError for anything else, and where a number is not finite."""
    if not isinstance(seen, Tensor) or seen.dim() != 2 or len(seen) != count:
        shape = tuple(seen.shape) if isinstance(seen, Tensor) else type(seen).__name__
        raise UserError(f"{origin}: it gave {shape} for {count} clips, expected ({count}, features)")
    if not torch.isfinite(seen).all():
        raise UserError(f"{origin}: its features are not all finite numbers")
    return seen.float()


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Whatever a network of others fails with, as a UserError of one line."""
    try:
        yield
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        # TorchScript tells its reason last
        reason = next((line for line in lines if re.match(r"[\w.]+Error: ", line)), lines[0])
        raise UserError(f"{what} ({reason[:200]})") from error
