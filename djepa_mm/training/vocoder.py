"""Trains our own vocoder on recordings, their log-mels in, their sound out; and takes recordings through it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from contextlib import nullcontext
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, create_model, model_validator
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

from djepa_mm.core.averaging import update_average, warmed_decay
from djepa_mm.media.page import figure, heading, page
from djepa_mm.recipe.schema import OptimConfig, Probability, dump_recipe, load_as, sections
from djepa_mm.runs.checkpoint import Checkpoint, checkpoints, find_checkpoint, read_state, read_tensors, save_checkpoint
from djepa_mm.runs.log import append_log, cut_log, run_bar
from djepa_mm.speech.vocoders.fourier import FourierSize, FourierVocoder, load_fourier, load_into
from djepa_mm.speech.vocoders.losses import RESOLUTIONS, Discriminators, deception, detection, magnitude, spectral_loss
from djepa_mm.tokenizers.mel import HOP_SAMPLES, Mel, MelConfig
from djepa_mm.training.loop import Outcome, catch_interrupts, learning_rate
from djepa_mm.types import BrokenItem, Config, Source, UserError
from djepa_mm.types import Progress as Count

PCM = 32767  # recordings are kept in memory as 16-bit integers: 160 MB an hour at 22,050 Hz
TERMS = ("spectral", "mel", "verdict", "features", "detection", "gradient_norm")


# --- the recipe -------------------------------------------------------------------------------------------------------


class VocoderLossConfig(Config):
    """Weights of what the vocoder learns from, and when the discriminators come in."""

    spectral: NonNegativeFloat = 1.0
    """Spectral convergence and log-magnitudes at three resolutions."""
    mel: NonNegativeFloat = 1.0
    """L1 distance of log-mels."""
    verdict: NonNegativeFloat = 0.03
    """Passing for real before the discriminators."""
    features: NonNegativeFloat = 0.06
    """Distance of what the discriminators' layers see."""
    adversarial_from: Probability = 0.85
    """Share of the training after which there are discriminators; 1 for never."""
    channels: PositiveInt = 16
    """Of the discriminators' layers."""


class SegmentConfig(Config):
    size: PositiveInt = 16
    """Segments in a batch."""
    frames: Annotated[int, Field(ge=8)] = 32
    """Length of a segment, in hops of 256 samples."""
    max_broken_share: Probability = 0.05
    """Stop when more than this share of the corpus cannot be read."""


class VocoderRunConfig(Config):
    seed: NonNegativeInt = 0
    log_every: PositiveInt = 50
    """Steps between lines in log.jsonl."""
    sample_every: PositiveInt | None = None
    """Steps between samples: the corpus' first clip through the vocoder, to hear and to see."""
    save_every: PositiveInt = 500
    """Steps between checkpoints."""
    keep: PositiveInt = 2
    """Checkpoints kept."""


class VocoderRecipe(Config):
    """One vocoder: the recordings it learns from, its size, and how it learns."""

    kind: Literal["vocoder"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Names the run folder, runs/<name>."""
    data: Any  # a SourceConfig; `vocoder_schema` puts the union of those that are there
    model: FourierSize = FourierSize()
    loss: VocoderLossConfig = VocoderLossConfig()
    optim: OptimConfig
    batch: SegmentConfig = SegmentConfig()
    run: VocoderRunConfig = VocoderRunConfig()

    @model_validator(mode="after")
    def _check(self) -> VocoderRecipe:
        if self.optim.optimizer != "adamw":
            raise ValueError(f"optim.optimizer {self.optim.optimizer} is for D-JEPA's blocks: set it to adamw")
        return self


@cache
def vocoder_schema() -> type[VocoderRecipe]:
    """The recipe's model with all sources that are there."""
    return create_model(
        "VocoderRecipe",
        __base__=VocoderRecipe,
        __doc__=VocoderRecipe.__doc__,
        data=(sections("djepa_mm.data.sources", "source"), ...),
    )


def load_vocoder_recipe(name: str | Path, overrides: Sequence[str] = ()) -> VocoderRecipe:
    """As `load_recipe`."""
    return load_as(vocoder_schema(), name, overrides)


# --- recordings -------------------------------------------------------------------------------------------------------


class Recordings:
    """Every clip of a corpus, in memory. `broken` names those that could not be read, with the reason."""

    def __init__(self, source: Source, max_broken_share: float) -> None:
        self.clips: list[Tensor] = []  # (S,) int16
        self.broken: dict[str, str] = {}
        for index in range(len(source)):
            try:
                sound = source.read(index).media
            except BrokenItem as error:
                self.broken[source.name(index)] = str(error)
                continue
            self.clips.append((sound.clamp(-1, 1) * PCM).round().short())
        if not self.clips or len(self.broken) > max_broken_share * len(source):
            name, reason = next(iter(self.broken.items()))
            raise UserError(
                f"{len(self.broken)} of {len(source)} clips cannot be read, such as {name}: {reason}; mend the corpus "
                f"or raise batch.max_broken_share ({max_broken_share:g})"
            )
        self.lengths = torch.tensor([len(clip) for clip in self.clips])

    def segments(self, count: int, samples: int, generator: torch.Generator) -> Tensor:
        """(count, samples) in [-1, 1]: clips as often as they are long, at any place; short ones end in silence."""
        places = (self.lengths - samples).clamp_min(0) + 1
        clips = torch.multinomial(self.lengths.float(), count, replacement=True, generator=generator)
        shares = torch.rand(count, generator=generator)
        batch = torch.zeros(count, samples)
        for row, clip, share in zip(batch, clips.tolist(), shares.tolist(), strict=True):
            start = min(int(share * places[clip]), int(places[clip]) - 1)
            segment = self.clips[clip][start : start + samples]
            row[: len(segment)] = segment.float() / PCM
        return batch


# --- training ---------------------------------------------------------------------------------------------------------


class VocoderTrainer:
    """A run: vocoder, discriminators, optimisers and random state, all of which a checkpoint brings back."""

    def __init__(
        self, recipe: VocoderRecipe, out: Path, *, resume: bool, device: torch.device, console: Console
    ) -> None:
        self.recipe, self.out, self.device, self.console = recipe, out, device, console
        source = recipe.data.build()
        if source.sample_rate_hz is None:
            raise UserError(f"data.source {recipe.data.source} holds no sound; a vocoder learns from recordings")
        self.mel: Mel = MelConfig(kind="mel", sample_rate_hz=source.sample_rate_hz).build()
        torch.manual_seed(recipe.run.seed)
        self.vocoder = FourierVocoder(self.mel.convention, recipe.model).to(device)
        self.averaged = deepcopy(self.vocoder).requires_grad_(False).eval()
        self.discriminators = Discriminators(recipe.loss.channels).to(device)
        self.networks = nn.ModuleDict({"vocoder": self.vocoder, "discriminators": self.discriminators})
        self.optimizers = {name: _optimizer(network, recipe.optim) for name, network in self.networks.items()}
        self.generator = torch.Generator().manual_seed(recipe.run.seed)
        self.step, self.seconds = 0, 0.0
        if resume:
            self._load(find_checkpoint(out))
        self.recordings = Recordings(source, recipe.batch.max_broken_share)

    def run(self) -> Outcome:
        """Train to the end of the recipe, or to an interrupt; either way a checkpoint is left."""
        recipe, run = self.recipe, self.recipe.run
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
        cut_log(self.out / "log.jsonl", self.step)
        if run.sample_every and not self.step:
            self._write_sample(self._sample_clip(), "original")
        window: list[Tensor] = []
        began, window_began = time.monotonic() - self.seconds, time.monotonic()
        with catch_interrupts() as stop, run_bar(self.console, "training", self.progress) as advance:
            while not self.done and not stop:
                try:
                    window.append(self._one_step())
                except UserError:  # a gradient that is not finite: keep what was learned
                    if self.step:
                        self.save()
                    raise
                self.seconds = time.monotonic() - began
                advance(self.progress)
                if self.step % run.log_every == 0 or self.done:
                    rate = len(window) / (time.monotonic() - window_began)
                    advance(self.progress, self._log(torch.stack(window).mean(0).tolist(), rate))
                    window, window_began = [], time.monotonic()
                if run.sample_every and self.step % run.sample_every == 0 and not self.done:
                    self.sample()
                if self.step % run.save_every == 0 and not self.done:
                    self.save()
                began = time.monotonic() - self.seconds  # samples and checkpoints are not training time
        folder = self.save()
        if run.sample_every:
            self.sample()
        self.console.print(f"{'stopped' if stop else 'finished'} at step {self.step}; checkpoint {folder}")
        if self.recordings.broken:
            name, reason = next(iter(self.recordings.broken.items()))
            self.console.print(f"skipped {len(self.recordings.broken)} broken clips, such as {name}: {reason}")
        return Outcome(run=self.out, step=self.step, finished=not stop)

    @property
    def progress(self) -> float:
        """Share of the run that is done, by steps or by minutes, whichever is further."""
        optim = self.recipe.optim
        by_time = self.seconds / 60 / optim.minutes if optim.minutes else 0.0
        return min(1.0, max(self.step / optim.steps, by_time))

    @property
    def done(self) -> bool:
        return self.progress >= 1

    def _one_step(self) -> Tensor:
        """-> (6,), the TERMS."""
        loss, optim, batch = self.recipe.loss, self.recipe.optim, self.recipe.batch
        real = self.recordings.segments(batch.size, batch.frames * HOP_SAMPLES, self.generator).to(self.device)
        log_mel = self.mel.log_mel(real)
        with self._autocast():
            generated = self.vocoder(log_mel, real.shape[1])
        theirs = [magnitude(real, n_fft) for n_fft in RESOLUTIONS]
        ours = [magnitude(generated, n_fft) for n_fft in RESOLUTIONS]
        spectral = spectral_loss(ours, theirs)
        mel = functional.l1_loss(self.mel.log_mel(generated), log_mel)
        total = loss.spectral * spectral + loss.mel * mel
        verdict = features = detected = torch.zeros((), device=self.device)
        if self.progress >= loss.adversarial_from:
            with self._autocast():
                seen = self.discriminators(theirs)
                detected = detection(self.discriminators([spectrum.detach() for spectrum in ours]), seen)
            self._update("discriminators", detected)
            with self._autocast():
                judged = deception(self.discriminators(ours), [[layer.detach() for layer in layers] for layers in seen])
            verdict, features = judged.verdict, judged.features
            total = total + loss.verdict * verdict + loss.features * features
        norm = self._update("vocoder", total)
        update_average(self.averaged, self.vocoder, warmed_decay(self.step, optim.ema_decay))
        self.step += 1
        return torch.stack([spectral, mel, verdict, features, detected, norm]).detach().float()

    def _update(self, name: str, loss: Tensor) -> Tensor:
        """One step of one network's optimiser -> norm of its gradient."""
        optim, optimizer = self.recipe.optim, self.optimizers[name]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(optim, self.step, self.progress)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.networks[name].parameters(), optim.clip)
        if not bool(norm.isfinite()):
            raise UserError(f"step {self.step}: the gradient is {norm.item()}; lower optim.lr ({optim.lr}) and resume")
        optimizer.step()
        return norm

    def _autocast(self) -> Any:
        bf16 = self.recipe.optim.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16) if bf16 else nullcontext()

    # --- what the person at the terminal sees

    def _log(self, means: Sequence[float], rate: float) -> str:
        """Add a line to log.jsonl -> what to show of it."""
        row = dict(zip(TERMS, means, strict=True))
        row["lr"] = self.optimizers["vocoder"].param_groups[0]["lr"]
        row |= {"steps_per_s": rate, "seconds": self.seconds}
        append_log(self.out / "log.jsonl", {"step": self.step, **row})
        shown = "  ".join(f"{name} {row[name]:.3f}" for name in TERMS[:-1] if row[name])
        return f"step {self.step}/{self.recipe.optim.steps}  {shown}  {rate:.2f} steps/s"

    def sample(self) -> None:
        clip = self._sample_clip()
        with torch.no_grad():
            sound = self.averaged(self.mel.log_mel(clip), clip.shape[1])
        self._write_sample(sound, f"step-{self.step:08d}")

    def _sample_clip(self) -> Tensor:
        return (self.recordings.clips[0].float() / PCM)[None].to(self.device)

    def _write_sample(self, sound: Tensor, stem: str) -> None:
        folder = self.out / "samples"
        folder.mkdir(exist_ok=True)
        self.mel.save(sound[0], folder / f"{stem}.wav")
        self.mel.preview(sound[0]).save(folder / f"{stem}.png")

    # --- checkpoints

    def save(self) -> Path:
        training = {
            f"{network}.{name}.{key}": value
            for network, optimizer in self.optimizers.items()
            for name, parameter in self.networks[network].named_parameters()
            for key, value in optimizer.state.get(parameter, {}).items()
        }
        training["random.generator"] = self.generator.get_state()
        checkpoint = Checkpoint(
            recipe=dump_recipe(self.recipe),
            state={
                "step": self.step,
                "seconds": self.seconds,
                "size": self.recipe.model.model_dump(),
                "convention": dataclasses.asdict(self.mel.convention),
            },
            averaged=self.averaged.state_dict(),
            online=self.networks.state_dict(),
            training=training,
        )
        return save_checkpoint(self.out / "checkpoints", checkpoint, self.recipe.run.keep)

    def _load(self, checkpoint: Path) -> None:
        state = read_state(checkpoint)
        averaged, online, training = (read_tensors(checkpoint, n) for n in ("averaged", "online", "training"))
        load_into(self.averaged, averaged, checkpoint / "averaged.safetensors")
        load_into(self.networks, online, checkpoint / "online.safetensors")
        for network, optimizer in self.optimizers.items():
            for name, parameter in self.networks[network].named_parameters():
                prefix = f"{network}.{name}."
                moments = {k.removeprefix(prefix): v for k, v in training.items() if k.startswith(prefix)}
                if moments:
                    optimizer.state[parameter] = {key: value.to(self.device) for key, value in moments.items()}
        self.generator.set_state(training["random.generator"])
        self.step, self.seconds = state["step"], state["seconds"]


def _optimizer(network: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        network.parameters(), lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay, fused=True
    )


def train_vocoder(recipe: VocoderRecipe, out: Path, *, resume: bool, device: torch.device, console: Console) -> Outcome:
    """Train a vocoder in the run folder `out`. Raises UserError where it holds a run already, or none to resume."""
    if not resume and checkpoints(out / "checkpoints"):
        raise UserError(f"{out}: holds a run already; go on with it: --resume, or choose another folder: --out")
    try:
        return VocoderTrainer(recipe, out, resume=resume, device=device, console=console).run()
    except torch.OutOfMemoryError:
        raise UserError(f"{device} is out of memory: lower batch.size ({recipe.batch.size})") from None


# --- listening --------------------------------------------------------------------------------------------------------


def copy_synthesis(run: Path, files: Sequence[Path], out: Path, *, device: torch.device, progress: Count) -> Path:
    """Take recordings to log-mels and back, by the vocoder of `run` and by Griffin-Lim: sounds and a page in `out`.

    -> the page's path. Raises UserError for a file that is no sound, before any work."""
    ours = load_fourier(run)
    mel = MelConfig(kind="mel", sample_rate_hz=ours.convention.sample_rate_hz).build()
    recordings = [mel.load(path) for path in files]
    for path, recording in zip(files, recordings, strict=True):
        try:
            mel.spec_of(tuple(recording.shape))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    ours.to(device)
    out.mkdir(parents=True, exist_ok=True)
    sections = []
    for number, (path, recording) in enumerate(zip(files, recordings, strict=True)):
        log_mel, samples = mel.log_mel(recording[None].to(device)), len(recording)
        sounds = {
            "recording": recording,
            "ours": ours(log_mel, samples)[0],
            "griffin-lim": mel.waveform(log_mel, samples)[0],
        }
        sections.append(heading(path.name))
        for what, sound in sounds.items():
            file = out / f"{number:02d}-{path.stem}-{what}.wav"
            mel.save(sound, file)
            sections.append(figure(what, mel.preview(sound), file))
        progress(number + 1, len(files))
    index = out / "index.html"
    index.write_text(page("Recordings, to log-mels and back", f"The vocoder is {run}", sections), encoding="utf-8")
    return index
