"""Training our own vocoder on recordings, their log-mels in, their sound out: another task for the one loop."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

from djepa_mm.data.corpus import Cursor
from djepa_mm.data.recordings import Recordings
from djepa_mm.errors import UserError
from djepa_mm.media.mel import HOP_SAMPLES, LogMel
from djepa_mm.media.sounds import Sounds
from djepa_mm.ranks import launched
from djepa_mm.recipe.schema import OptimConfig
from djepa_mm.recipe.vocoder import VocoderRecipe
from djepa_mm.speech.vocoders.fourier import FourierVocoder
from djepa_mm.speech.vocoders.losses import RESOLUTIONS, Discriminators, magnitude, spectral_loss
from djepa_mm.training.adversarial import deception, detection
from djepa_mm.training.callbacks import Callback
from djepa_mm.training.loop import Outcome, Trainer, check_folder
from djepa_mm.training.state import Constant, Section, TrainState
from djepa_mm.training.task import Group, Learned, Report, Update, autocast
from djepa_mm.types import Progress, Stream


class VocoderTask:
    """A vocoder, its discriminators, and the recordings that they learn from."""

    def __init__(self, recipe: VocoderRecipe, *, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        self.optim, self.settings = recipe.optim, recipe.run
        source = recipe.data.build()
        if isinstance(source, Stream):
            raise UserError(f"data.source {recipe.data.source}: a vocoder learns from files, not from shards")
        if (rate_hz := getattr(source, "sample_rate_hz", None)) is None:
            raise UserError(f"data.source {recipe.data.source} holds no sound; a vocoder learns from recordings")
        self.log_mel, self.sounds = LogMel(rate_hz), Sounds(rate_hz)
        torch.manual_seed(recipe.run.seed)
        self.online = FourierVocoder(self.log_mel.convention, recipe.model).to(device)
        averaged = deepcopy(self.online).requires_grad_(False).eval()
        self.discriminators = Discriminators(recipe.loss.channels).to(device)
        networks = nn.ModuleDict({"vocoder": self.online, "discriminators": self.discriminators})
        self.groups = {
            name: Group(module=network, optimizers=[_optimizer(network, recipe.optim)])
            for name, network in networks.items()
        }
        convention = dataclasses.asdict(self.log_mel.convention)
        self.state = TrainState(
            networks=networks,
            averaged=averaged,
            optimizers=[optimizer for group in self.groups.values() for optimizer in group.optimizers],
            generator=torch.Generator().manual_seed(recipe.run.seed),
            device=device,
            facts={"size": Section(recipe.model, "model"), "convention": Constant(convention, "mel")},
        )
        self.recordings = Recordings(source, recipe.batch.max_broken_share)

    def begin(self, progress: Progress) -> None:
        """Nothing is learned before the first step."""

    def prepare(self, progress: Progress) -> None:
        """Everything is in memory already."""

    def batches(self, cursor: Cursor) -> Iterator[tuple[Tensor, Cursor]]:
        """Segments (B, S), drawn by the run's generator: the place in the data is its state."""
        batch = self.recipe.batch
        while True:
            yield self.recordings.segments(batch.size, batch.frames * HOP_SAMPLES, self.state.generator), cursor

    def learn(self, batch: Tensor, update: Update, progress: float) -> Learned:
        loss, real = self.recipe.loss, batch.to(self.device)
        log_mel = self.log_mel(real)
        with autocast(self.optim, self.device):
            generated = self.online(log_mel, real.shape[1])
        theirs = [magnitude(real, n_fft) for n_fft in RESOLUTIONS]
        ours = [magnitude(generated, n_fft) for n_fft in RESOLUTIONS]
        spectral = spectral_loss(ours, theirs)
        mel = functional.l1_loss(self.log_mel(generated), log_mel)
        total = loss.spectral * spectral + loss.mel * mel
        verdict = features = detected = torch.zeros((), device=self.device)
        if progress >= loss.adversarial_from:
            with autocast(self.optim, self.device):
                seen = self.discriminators(theirs)
                detected = detection(self.discriminators([spectrum.detach() for spectrum in ours]), seen)
            update("discriminators", [detected])
            with autocast(self.optim, self.device):
                judged = deception(self.discriminators(ours), [[layer.detach() for layer in layers] for layers in seen])
            verdict, features = judged.verdict, judged.features
            total = total + loss.verdict * verdict + loss.features * features
        norm = update("vocoder", [total])
        terms = {
            "spectral": spectral,
            "mel": mel,
            "verdict": verdict,
            "features": features,
            "detection": detected,
            "gradient_norm": norm,
        }
        return Learned(terms=terms, items=len(real), tokens=len(real) * self.recipe.batch.frames)

    def write_samples(self, folder: Path, stem: str, progress: Progress) -> list[Path]:
        """The corpus' first clip through the vocoder, to hear and to see; once as it is."""
        folder.mkdir(exist_ok=True)
        clip = self.recordings.first().to(self.device)
        with torch.no_grad():
            sounds = {stem: self.state.averaged(self.log_mel(clip), clip.shape[1])[0]}
        if not (folder / "original.wav").exists():
            sounds["original"] = clip[0]
        files = []
        for name, sound in sounds.items():
            self.sounds.save(sound, folder / f"{name}.wav")
            self.sounds.preview(sound).save(folder / f"{name}.png")
            files += [folder / f"{name}.wav", folder / f"{name}.png"]
        return files

    def report(self) -> Report:
        source = self.recordings.source
        left_out = getattr(source, "left_out", {})
        return Report(items=len(source), broken=self.recordings.broken, left_out=left_out)


def _optimizer(network: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    decay = optim.weight_decay
    return torch.optim.AdamW(
        network.parameters(), lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=decay, fused=True
    )


def train_vocoder(
    recipe: VocoderRecipe,
    out: Path,
    *,
    resume: bool = False,
    device: torch.device | str = "cpu",
    console: Console | None = None,
    callbacks: Sequence[Callback] = (),
    stop: threading.Event | None = None,
) -> Outcome:
    """Train a vocoder in the run folder `out`. Raises UserError where it holds a run already, or none to resume."""
    if launched():
        raise UserError("a vocoder is trained in one process: start it without torchrun")
    check_folder(out, resume=resume)
    device = torch.device(device)
    try:
        task = VocoderTask(recipe, device=device)
        return Trainer(task, out, resume=resume, console=console, callbacks=callbacks, stop=stop).run()
    except torch.OutOfMemoryError:
        raise UserError(f"{device} is out of memory: lower batch.size ({recipe.batch.size})") from None
