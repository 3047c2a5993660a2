"""Sounds: their files, and how people see them. soundfile and torchaudio are imported when they are needed."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from djepa_mm.errors import UserError
from djepa_mm.media.mel import FLOOR, LogMel

FADE_S = 0.01  # at the joins of clips
PAUSE_S = 0.15  # between joined sentences, beside the silence that they have at their ends

# Matplotlib's "magma" at nine even steps.
MAGMA = ("000004", "1d1147", "51127c", "832681", "b73779", "e75263", "fc8961", "fec488", "fcfdbf")
PREVIEW_RANGE = (math.log(FLOOR), 1.0)  # natural log of the mel magnitude that the colours span
PREVIEW_ZOOM = 3
PREVIEW_WIDTH = 1500  # pixels; long clips are zoomed less


class Sounds:
    """Waveforms (samples,) in [-1, 1]."""

    suffixes: tuple[str, ...] = (".wav", ".flac")

    def __init__(self, sample_rate_hz: int) -> None:
        self.sample_rate_hz = sample_rate_hz
        self.per_second: float | None = sample_rate_hz

    def save(self, media: Tensor, path: Path) -> None:
        """Write 16-bit PCM; sound beyond [-1, 1] is turned down as a whole, for clipping it would crackle.

        What was read from 16-bit PCM is written as the same samples again."""
        import soundfile

        samples = (_within_range(media.detach().float().cpu()) * 32768).round().clamp(-32768, 32767)
        whole = io.BytesIO()  # libsndfile's own errors do not say that a disk is full
        form = path.suffix[1:].upper()
        soundfile.write(whole, samples.to(torch.int16).numpy(), self.sample_rate_hz, subtype="PCM_16", format=form)
        path.write_bytes(whole.getvalue())

    def load(self, path: Path, shape: tuple[int, ...] | None = None) -> Tensor:
        """Any file that libsndfile reads, mixed down to mono and brought to this sample rate."""
        import soundfile
        from torchaudio.functional import resample

        try:
            sound, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
        except (OSError, RuntimeError, MemoryError, ValueError) as error:  # the last two of headers that lie
            reason = " ".join(str(error).split()) if path.exists() else "no such file"
            raise UserError(f"{path}: not readable as sound ({reason})") from None
        if not len(sound) or not np.isfinite(sound).all():
            raise UserError(f"{path}: {'samples that are not numbers' if len(sound) else 'no samples'}")
        waveform = torch.from_numpy(sound).mean(dim=1)
        if rate_hz != self.sample_rate_hz:
            waveform = resample(waveform, rate_hz, self.sample_rate_hz)
        if shape is not None and tuple(waveform.shape) != tuple(shape):
            raise UserError(
                f"{path}: the sound has {len(waveform)} samples at {self.sample_rate_hz} Hz, {shape[0]} are taken; "
                "cut it first"
            )
        return waveform

    def blend(self, original: Tensor, new: Tensor, kept: Tensor) -> Tensor:
        """With a raised cosine of FADE_S on the inner side of each join."""
        new = _within_range(new)
        fade = max(1, round(FADE_S * self.sample_rate_hz))
        changed = (~kept).float()[None, None]
        # 1/2 beside a join, 1 from `fade` samples inside the change on
        near = functional.avg_pool1d(changed, 2 * fade - 1, 1, fade - 1, count_include_pad=False)[0, 0]
        share = torch.sin((2 * near - 1).clamp(0, 1) * math.pi / 2).square() * ~kept  # of the new
        return torch.lerp(original, new, share)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """With a short pause between parts, and their ends faded to silence so that nothing clicks."""
        fade = round(FADE_S * self.sample_rate_hz)
        ramp = torch.sin(torch.linspace(0, math.pi / 2, fade)).square()
        pause = torch.zeros(round(PAUSE_S * self.sample_rate_hz))
        joined: list[Tensor] = []
        for number, part in enumerate(parts):
            part = part.clone()
            if number > 0:
                joined.append(pause)
                part[:fade] *= ramp[: len(part)]
            if number < len(parts) - 1:
                part[-fade:] *= ramp.flip(0)[-len(part) :]
            joined.append(part)
        return torch.cat(joined)

    def preview(self, media: Tensor) -> Image.Image:
        """The log-mel as a picture: time to the right, pitch upwards."""
        log_mel = self._log_mel(media.detach()[None].float())[0].cpu().numpy()
        low, high = PREVIEW_RANGE
        colours = np.array([list(bytes.fromhex(colour)) for colour in MAGMA])
        level = (log_mel[::-1] - low) / (high - low) * (len(MAGMA) - 1)
        pixels = np.stack([np.interp(level, range(len(MAGMA)), colours[:, c]) for c in range(3)], axis=-1)
        picture = Image.fromarray(pixels.round().astype(np.uint8))
        zoom = max(1, min(PREVIEW_ZOOM, PREVIEW_WIDTH // picture.width))
        return picture.resize((picture.width * zoom, picture.height * PREVIEW_ZOOM), Image.Resampling.NEAREST)

    @cached_property
    def _log_mel(self) -> LogMel:
        return LogMel(self.sample_rate_hz)


def _within_range(sound: Tensor) -> Tensor:
    """Turned down as a whole where it goes beyond [-1, 1]."""
    return sound / sound.abs().max().clamp_min(1)
