"""Recordings to log-mels and back, to listen to what a vocoder does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from djepa_mm.media.mel import MIN_SAMPLES, LogMel
from djepa_mm.media.page import figure, heading, page
from djepa_mm.media.sounds import Sounds
from djepa_mm.speech.vocoders import GRIFFIN_LIM
from djepa_mm.speech.vocoders.fourier import load_fourier
from djepa_mm.types import Progress, UserError


def copy_synthesis(run: Path, files: Sequence[Path], out: Path, *, device: torch.device, progress: Progress) -> Path:
    """Take recordings to log-mels and back, by the vocoder of `run` and by Griffin-Lim: sounds and a page in `out`.

    -> the page's path. Raises UserError for a file that is no sound, before any work."""
    ours = load_fourier(run)
    rate_hz = ours.convention.sample_rate_hz
    sounds, mel = Sounds(rate_hz), LogMel(rate_hz)
    griffin_lim = GRIFFIN_LIM.build(mel.convention)
    recordings = [sounds.load(path) for path in files]
    for path, recording in zip(files, recordings, strict=True):
        if len(recording) < MIN_SAMPLES:
            raise UserError(
                f"{path}: {len(recording)} samples are too short for a mel frame; give {MIN_SAMPLES} or more"
            )
    ours.to(device)
    out.mkdir(parents=True, exist_ok=True)
    sections = []
    for number, (path, recording) in enumerate(zip(files, recordings, strict=True)):
        log_mel, samples = mel(recording[None].to(device)), len(recording)
        ways = {
            "recording": recording,
            "ours": ours(log_mel, samples)[0],
            "griffin-lim": griffin_lim(log_mel, samples)[0],
        }
        sections.append(heading(path.name))
        for what, sound in ways.items():
            file = out / f"{number:02d}-{path.stem}-{what}.wav"
            sounds.save(sound, file)
            sections.append(figure(what, sounds.preview(sound), file))
        progress(number + 1, len(files))
    index = out / "index.html"
    index.write_text(page("Recordings, to log-mels and back", f"The vocoder is {run}", sections), encoding="utf-8")
    return index
