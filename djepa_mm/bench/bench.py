"""The token bench: what a tokenizer makes of files, measured, looked at, and kept in files of tokens.

B batch, N tokens, C token channels.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
import yaml
from pydantic import create_model
from rich.table import Table
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from djepa_mm.evaluate.distance import EXACT, psnr_db, ssim
from djepa_mm.generation.pipeline import sheet
from djepa_mm.media.files import probe_clip, read_clip, read_picture
from djepa_mm.recipe.schema import find_recipe, load_recipe, parse_recipe, recipe_data, sections
from djepa_mm.tokenizers.mel import Mel, MelConfig
from djepa_mm.types import Config, MediaSpec, Progress, Tokenizer, UserError

FORMAT = "djepa-mm tokens 1"
DEAD = 0.01  # of the root mean square of all channels' deviations: a channel below it says nothing
DIFFERENCE_GAIN = 4.0  # of pictures and clips, so that small errors are seen

Found = TypeVar("Found")


# --- which tokenizer --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A tokenizer to try, and what built it."""

    name: str  # as it was asked for
    config: Config
    tokenizer: Tokenizer


def parse_tokenizer(text: str, files: Sequence[Path]) -> Candidate:
    """`clip-patches,patch=[2,8,8]`: a tokenizer's kind, or a recipe's name or file, and keys with values in YAML.

    Required keys that say what the media are (frames, size, frame_rate) come from the files where they are not given:
    the least of them all, so that every file can be cut to it. Raises UserError, one line.
    """
    name, *pairs = (part.strip() for part in re.split(r",(?=\s*\w[\w.]*=)", text))
    kinds = _kinds()
    if name not in kinds:
        try:
            find_recipe(name)
        except UserError as error:
            raise UserError(f"--tokenizer {name}: no kind of tokenizer ({', '.join(kinds)}), and {error}") from None
        config = load_recipe(name, [f"tokenizer.{pair}" for pair in pairs]).tokenizer
        return Candidate(name=text, config=config, tokenizer=config.build())
    raw: dict[str, Any] = {"kind": name}
    for pair in pairs:
        key, _, value = pair.partition("=")
        try:
            raw[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"--tokenizer {text}: {value!r} is not plain YAML") from None
    required = {key for key, field in kinds[name].model_fields.items() if field.is_required()}
    if missing := required & {"frames", "size", "frame_rate"} - raw.keys():
        found = _format(files, clips="frames" in required)
        raw |= {key: found[key] for key in missing}
    return _candidate(text, raw, f"--tokenizer {text}")


def _candidate(name: str, raw: Mapping[str, Any], origin: str) -> Candidate:
    config = parse_recipe(_section(), {"tokenizer": dict(raw)}, origin).tokenizer  # type: ignore[attr-defined]
    return Candidate(name=name, config=config, tokenizer=config.build())


@cache
def _section() -> type[Config]:
    """A recipe's tokenizer section, alone."""
    return create_model("Section", __base__=Config, tokenizer=(sections("djepa_mm.tokenizers", "kind"), ...))


@cache
def _kinds() -> dict[str, type[Config]]:
    union = _section().model_fields["tokenizer"].annotation
    return {get_args(config.model_fields["kind"].annotation)[0]: config for config in get_args(union)}


def _format(files: Sequence[Path], *, clips: bool) -> dict[str, Any]:
    """The least frames, height and width of the files that can be read, and the first one's frame rate."""

    def probe(path: Path) -> tuple[int, tuple[int, int], float]:
        if clips:
            clip = probe_clip(path)
            return clip.frames, clip.size, clip.frame_rate
        _, height, width = read_picture(path).shape
        return 1, (height, width), 0.0

    found, skipped = _each(files, probe)
    if not found:
        raise _none_readable(skipped)
    frames, sizes, rates = zip(*(value for _, value in found), strict=True)
    size = [min(height for height, _ in sizes), min(width for _, width in sizes)]
    return {"frames": min(frames), "size": size, "frame_rate": rates[0]}


# --- reading ----------------------------------------------------------------------------------------------------------

Skipped = tuple[tuple[Path, str], ...]  # files that cannot be read, and why


def read_media(path: Path, tokenizer: Tokenizer) -> Tensor:
    """A file as this tokenizer takes it (no batch axis): clips and pictures are cut to its frames and size.

    The first frames are taken, and their middle. Raises UserError for a file that cannot be read or is too small."""
    try:
        channels, *axes = tokenizer.spec_for().shape
    except UserError:  # media of any length
        media = tokenizer.load(path)
    else:
        media = (
            read_clip(path, channels=channels, most=axes[0])
            if len(axes) == 3
            else read_picture(path, channels=channels)
        )
        there = media.shape[1:]
        if any(has < wants for has, wants in zip(there, axes, strict=True)):
            found, wanted = ("×".join(map(str, sizes)) for sizes in (there, axes))
            raise UserError(f"{path}: too small, {found} where the tokenizer takes {wanted} (frames, height, width)")
        top, left = (there[-2] - axes[-2]) // 2, (there[-1] - axes[-1]) // 2
        media = media[..., top : top + axes[-2], left : left + axes[-1]]
    tokenizer.spec_of(tuple(media.shape))
    return media


def _each(files: Iterable[Path], read: Callable[[Path], Found]) -> tuple[list[tuple[Path, Found]], Skipped]:
    """What was read of every file that can be, and the others with their reasons."""
    found, skipped = [], []
    for path in files:
        try:
            found.append((path, read(path)))
        except UserError as error:
            skipped.append((path, str(error).removeprefix(f"{path}: ")))
    return found, tuple(skipped)


def _none_readable(skipped: Skipped) -> UserError:
    path, reason = skipped[0]
    return UserError(f"none of {len(skipped)} files can be read; {path}: {reason}")


# --- measuring --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A file and what came back of it. On the CPU, no batch axis."""

    path: Path
    original: Tensor
    reconstruction: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """Means over the files that could be read; a token's values as the tokenizer gives them, after `fit`."""

    spec: MediaSpec  # of the first file
    token_dim: int
    compression: float  # numbers of the media for each number of the tokens
    largest_error: float  # of a pixel or sample in [-1, 1]
    psnr_db: float | None  # of pictures and clips
    ssim: float | None
    mel_distance_db: float | None  # of sounds
    encode_per_s: float  # files, one at a time: 1 / the median time
    decode_per_s: float
    mean: Tensor  # (C,)
    std: Tensor  # (C,)
    examples: tuple[Example, ...]

    @property
    def dead_share(self) -> float:
        """Share of channels whose deviation is under DEAD of the root mean square of all."""
        return (self.std < DEAD * self.std.square().mean().sqrt()).float().mean().item()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What the bench says of one tokenizer."""

    candidate: Candidate
    read: tuple[Path, ...]
    skipped: Skipped
    measures: Measures | None  # None where no file could be read


@torch.no_grad()
def bench(
    candidates: Sequence[Candidate],
    files: Sequence[Path],
    *,
    repeats: int = 3,
    examples: int = 4,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> list[Row]:
    """Every tokenizer on all files: fitted to them, encoded, decoded, compared. The first `examples` are kept.

    Raises UserError where no tokenizer can read any file."""
    rows = []
    for n, candidate in enumerate(candidates):

        def report(done: int, total: int, n: int = n) -> None:
            if progress is not None:
                progress(n * total + done, len(candidates) * total)

        rows.append(_row(candidate, files, repeats, examples, torch.device(device), report))
    if rows and not any(row.read for row in rows):
        raise _none_readable(rows[0].skipped)
    return rows


def _row(
    candidate: Candidate, files: Sequence[Path], repeats: int, examples: int, device: torch.device, progress: Progress
) -> Row:
    tokenizer = candidate.tokenizer
    shapes, skipped = _each(files, lambda path: tuple(read_media(path, tokenizer).shape))
    paths = tuple(path for path, _ in shapes)
    if not paths:
        return Row(candidate=candidate, read=(), skipped=skipped, measures=None)
    tokenizer.fit(read_media(path, tokenizer) for path in paths)
    kept: list[Example] = []
    encode_s: list[float] = []
    decode_s: list[float] = []
    errors: list[float] = []
    scores: list[tuple[float, ...]] = []  # of each file: PSNR and SSIM, or the mel distance
    count, total, squares, numbers = 0, torch.zeros(()), torch.zeros(()), 0
    for done, path in enumerate(paths):
        media = read_media(path, tokenizer)
        spec, batch = tokenizer.spec_of(tuple(media.shape)), media[None].to(device)
        if done == 0:  # warm up: weights are loaded, kernels chosen
            tokenizer.decode(tokenizer.encode(batch), spec)
        for _ in range(repeats):
            tokens = _timed(lambda batch=batch: tokenizer.encode(batch), encode_s, device)  # type: ignore[misc]
            decoded = _timed(lambda tokens=tokens, spec=spec: tokenizer.decode(tokens, spec), decode_s, device)  # type: ignore[misc]
        back, rows = decoded[0].float().cpu(), tokens[0].cpu().double()  # (N, C)
        errors.append((back - media).abs().max().item())
        if tokenizer.sample_rate_hz is None:
            scores.append((psnr_db(media, back), ssim(media, back)))
        else:
            scores.append((mel_distance_db(media, back, tokenizer.sample_rate_hz),))
        count, total, squares = count + len(rows), total + rows.sum(0), squares + rows.square().sum(0)
        numbers += media.numel()
        if done < examples:
            kept.append(Example(path=path, original=media, reconstruction=back))
        progress(done + 1, len(paths))
    mean = total / count
    means = [statistics.fmean(values) for values in zip(*scores, strict=True)]
    pictures = len(means) == 2
    measures = Measures(
        spec=tokenizer.spec_of(shapes[0][1]),
        token_dim=tokenizer.token_dim,
        compression=numbers / (count * tokenizer.token_dim),
        largest_error=max(errors),
        psnr_db=means[0] if pictures else None,
        ssim=means[1] if pictures else None,
        mel_distance_db=None if pictures else means[0],
        encode_per_s=1 / statistics.median(encode_s),
        decode_per_s=1 / statistics.median(decode_s),
        mean=mean.float(),
        std=(squares / count - mean.square()).clamp_min(0).sqrt().float(),
        examples=tuple(kept),
    )
    return Row(candidate=candidate, read=paths, skipped=skipped, measures=measures)


def _timed(run: Callable[[], Tensor], seconds: list[float], device: torch.device) -> Tensor:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    result = run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds.append(time.perf_counter() - start)
    return result


def mel_distance_db(first: Tensor, second: Tensor, sample_rate_hz: int) -> float:
    """Mean absolute difference of log-mel magnitudes in HiFi-GAN's convention, in dB, of waveforms (samples,)."""
    mels = [_mel(sample_rate_hz).log_mel(sound[None]) for sound in (first, second)]
    return 20 / math.log(10) * (mels[0] - mels[1]).abs().mean().item()


@cache
def _mel(sample_rate_hz: int) -> Mel:
    return MelConfig(kind="mel", sample_rate_hz=sample_rate_hz).build()


# --- showing ----------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> Table:
    """A column for every tokenizer."""
    files = len(rows[0].read) + len(rows[0].skipped)
    shown = Table("", *(row.candidate.name for row in rows), title=f"tokens of {files} files")
    for column in shown.columns[1:]:
        column.justify, column.overflow = "right", "fold"
    lines: dict[str, Callable[[Measures], str]] = {
        "grid (t × h × w)": lambda m: " × ".join(map(str, m.spec.grid)),
        "tokens": lambda m: f"{m.spec.num_tokens:,}",
        "channels of a token": lambda m: f"{m.token_dim:,}",
        "compression": lambda m: f"{m.compression:.4g}",
        "PSNR, dB": lambda m: "" if m.psnr_db is None else f"{m.psnr_db:.2f}",
        "SSIM": lambda m: "" if m.ssim is None else f"{m.ssim:.4f}",
        "mel distance, dB": lambda m: "" if m.mel_distance_db is None else f"{m.mel_distance_db:.2f}",
        "largest error": lambda m: f"{m.largest_error:.1e}" + (" (exact)" if m.largest_error < EXACT else ""),
        "encoded, files a second": lambda m: f"{m.encode_per_s:.4g}",
        "decoded, files a second": lambda m: f"{m.decode_per_s:.4g}",
        "mean of a channel": lambda m: f"{m.mean.min():.3f} to {m.mean.max():.3f}",
        "deviation of a channel": lambda m: f"{m.std.min():.3f} to {m.std.max():.3f}",
        "dead channels": lambda m: f"{m.dead_share:.1%}",
    }
    shown.add_row("files read", *(f"{len(row.read)}" for row in rows))
    shown.add_row("files skipped", *(f"{len(row.skipped)}" for row in rows), end_section=True)
    for name, line in lines.items():
        cells = [line(row.measures) if row.measures else "" for row in rows]
        if any(cells):
            shown.add_row(name, *cells)
    return shown


def report(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Everything measured as plain data, with the mean and the deviation of each channel."""
    return [
        {
            "tokenizer": row.candidate.name,
            "config": recipe_data(row.candidate.config),
            "read": [str(path) for path in row.read],
            "skipped": {str(path): reason for path, reason in row.skipped},
            **(_measured(row.measures) if row.measures else {}),
        }
        for row in rows
    ]


def _measured(measures: Measures) -> dict[str, Any]:
    names = ("token_dim", "compression", "largest_error", "psnr_db", "ssim", "mel_distance_db")
    plain = {name: getattr(measures, name) for name in (*names, "encode_per_s", "decode_per_s", "dead_share")}
    channels = {"mean": measures.mean.tolist(), "std": measures.std.tolist()}
    return {"grid": list(measures.spec.grid), "num_tokens": measures.spec.num_tokens, **plain, **channels}


def write_comparisons(row: Row, folder: Path) -> Iterator[Path]:
    """Original, reconstruction and difference: a media file for every example, and a sheet of all. Yields their paths.

    Pictures and clips stand side by side, the difference is DIFFERENCE_GAIN times itself around grey; sounds follow
    each other. A tokenizer that read no file has nothing to show."""
    if row.measures is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, name = row.candidate.tokenizer, slug(row.candidate.name)
    previews = []
    for n, example in enumerate(row.measures.examples):
        three = [example.original, example.reconstruction, difference(example)]
        path = folder / f"{name}-{n:02d}-{slug(example.path.stem)}{tokenizer.suffix}"
        tokenizer.save(tokenizer.join(three) if three[0].dim() == 1 else torch.cat(three, dim=-1), path)
        yield path
        previews += [tokenizer.preview(media) for media in three]
    path = folder / f"{name}-sheet.png"
    sheet(previews, columns=3).save(path)
    yield path


def difference(example: Example) -> Tensor:
    """Reconstruction minus original, in [-1, 1]."""
    gain = 1.0 if example.original.dim() == 1 else DIFFERENCE_GAIN
    return ((example.reconstruction - example.original) * gain).clamp(-1, 1)


def slug(name: str) -> str:
    """A name for files."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:60] or "tokens"


# --- files of tokens --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedTokens:
    """The tokens of one item with the tokenizer that made them, fitted as it was."""

    candidate: Candidate
    tokens: Tensor  # (N, C)
    spec: MediaSpec

    @torch.no_grad()
    def media(self, device: torch.device | str = "cpu") -> Tensor:
        """What the tokens stand for (no batch axis), on the CPU."""
        return self.candidate.tokenizer.decode(self.tokens[None].to(device), self.spec)[0].float().cpu()


def save_tokens(path: Path, tokens: Tensor, spec: MediaSpec, candidate: Candidate) -> None:
    """(N, C) -> a safetensors file that can be decoded alone: the tokenizer's config and statistics lie beside.

    The weights of a pretrained VAE do not; the config names them."""
    fitted = {f"statistics.{name}": value for name, value in candidate.tokenizer.statistics().items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in {"tokens": tokens, **fitted}.items()}
    config = {"name": candidate.name, "tokenizer": recipe_data(candidate.config)}
    metadata = {"format": FORMAT, **{key: json.dumps(value) for key, value in config.items()}}
    save_file(tensors, path, {**metadata, "grid": json.dumps(spec.grid), "shape": json.dumps(spec.shape)})


def load_tokens(path: Path) -> SavedTokens:
    """Raises UserError for a file that `save_tokens` did not write, or that is damaged."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not readable as tokens ({' '.join(str(error).split())})") from None
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path}: not a file of tokens that djepa-mm tokens --save wrote")
    try:
        tokens = tensors.pop("tokens")
        name, raw, grid, shape = (json.loads(metadata[key]) for key in ("name", "tokenizer", "grid", "shape"))
        candidate = _candidate(name, raw, str(path))
        candidate.tokenizer.load_statistics({key.removeprefix("statistics."): value for key, value in tensors.items()})
    except (KeyError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: damaged file of tokens ({error})") from None
    spec = candidate.tokenizer.spec_of(tuple(shape))
    if tuple(grid) != spec.grid or tuple(tokens.shape) != (spec.num_tokens, candidate.tokenizer.token_dim):
        raise UserError(f"{path}: {tuple(tokens.shape)} tokens on the grid {grid} do not fit their tokenizer's {spec}")
    return SavedTokens(candidate=candidate, tokens=tokens, spec=spec)


@torch.no_grad()
def save_all(row: Row, folder: Path, device: torch.device | str = "cpu") -> Iterator[Path]:
    """A file of tokens for every file that the bench could read. Yields their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = row.candidate.tokenizer
    for n, path in enumerate(row.read):
        media = read_media(path, tokenizer)
        target = folder / f"{slug(row.candidate.name)}-{n:04d}-{slug(path.stem)}.safetensors"
        tokens = tokenizer.encode(media[None].to(device))[0]
        save_tokens(target, tokens, tokenizer.spec_of(tuple(media.shape)), row.candidate)
        yield target


def decode_files(files: Sequence[Path], folder: Path, device: torch.device | str = "cpu") -> Iterator[Path]:
    """The way back: a media file for every file of tokens. Yields their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in files:
        saved = load_tokens(path)
        target = folder / f"{path.stem}{saved.candidate.tokenizer.suffix}"
        saved.candidate.tokenizer.save(saved.media(device), target)
        yield target
