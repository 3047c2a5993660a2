"""The token bench: what a tokenizer makes of files, measured and looked at.

B batch, N tokens, C token channels.
"""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from djepa_mm.bench.candidate import Candidate, Skipped, none_readable, read_each, read_media
from djepa_mm.evaluate.distance import EXACT, psnr_db, ssim
from djepa_mm.media.mel import LogMel
from djepa_mm.media.sheet import sheet
from djepa_mm.media.sounds import Sounds
from djepa_mm.moments import Moments
from djepa_mm.recipe.load import recipe_data
from djepa_mm.types import MediaSpec, Progress

DEAD = 0.01  # of the root mean square of all channels' deviations: a channel below it says nothing
DIFFERENCE_GAIN = 4.0  # of pictures and clips, so that small errors are seen


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
        raise none_readable(rows[0].skipped)
    return rows


def _row(
    candidate: Candidate, files: Sequence[Path], repeats: int, examples: int, device: torch.device, progress: Progress
) -> Row:
    tokenizer = candidate.tokenizer
    shapes, skipped = read_each(files, lambda path: tuple(read_media(path, tokenizer).shape))
    paths = tuple(path for path, _ in shapes)
    if not paths:
        return Row(candidate=candidate, read=(), skipped=skipped, measures=None)
    tokenizer.fit(read_media(path, tokenizer) for path in paths)
    kept: list[Example] = []
    encode_s: list[float] = []
    decode_s: list[float] = []
    errors: list[float] = []
    scores: list[tuple[float, ...]] = []  # of each file: PSNR and SSIM, or the mel distance
    moments, numbers = Moments(), 0
    for done, path in enumerate(paths):
        media = read_media(path, tokenizer)
        spec, batch = tokenizer.spec_of(tuple(media.shape)), media[None].to(device)
        if done == 0:  # warm up: weights are loaded, kernels chosen
            tokenizer.decode(tokenizer.encode(batch), spec)
        for _ in range(repeats):
            tokens = _timed(lambda batch=batch: tokenizer.encode(batch), encode_s, device)  # type: ignore[misc]
            decoded = _timed(lambda tokens=tokens, spec=spec: tokenizer.decode(tokens, spec), decode_s, device)  # type: ignore[misc]
        back = decoded[0].float().cpu()
        errors.append((back - media).abs().max().item())
        if isinstance(tokenizer.media, Sounds):
            scores.append((mel_distance_db(media, back, tokenizer.media.sample_rate_hz),))
        else:
            scores.append((psnr_db(media, back), ssim(media, back)))
        moments.add(tokens[0])
        numbers += media.numel()
        if done < examples:
            kept.append(Example(path=path, original=media, reconstruction=back))
        progress(done + 1, len(paths))
    means = [statistics.fmean(values) for values in zip(*scores, strict=True)]
    sounds = isinstance(tokenizer.media, Sounds)
    measures = Measures(
        spec=tokenizer.spec_of(shapes[0][1]),
        token_dim=tokenizer.token_dim,
        compression=numbers / (moments.count * tokenizer.token_dim),
        largest_error=max(errors),
        psnr_db=None if sounds else means[0],
        ssim=None if sounds else means[1],
        mel_distance_db=means[0] if sounds else None,
        encode_per_s=1 / statistics.median(encode_s),
        decode_per_s=1 / statistics.median(decode_s),
        mean=moments.mean.float(),
        std=moments.std.float(),
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
    mels = [_log_mel(sample_rate_hz)(sound[None]) for sound in (first, second)]
    return 20 / math.log(10) * (mels[0] - mels[1]).abs().mean().item()


@cache
def _log_mel(sample_rate_hz: int) -> LogMel:
    return LogMel(sample_rate_hz)


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
    media, name = row.candidate.tokenizer.media, slug(row.candidate.name)
    sounds = isinstance(media, Sounds)
    previews = []
    for n, example in enumerate(row.measures.examples):
        apart = difference(example, 1.0 if sounds else DIFFERENCE_GAIN)
        three = [example.original, example.reconstruction, apart]
        path = folder / f"{name}-{n:02d}-{slug(example.path.stem)}{media.suffixes[0]}"
        media.save(media.join(three) if sounds else torch.cat(three, dim=-1), path)
        yield path
        previews += [media.preview(item) for item in three]
    path = folder / f"{name}-sheet.png"
    sheet(previews, columns=3).save(path)
    yield path


def difference(example: Example, gain: float) -> Tensor:
    """`gain` times reconstruction minus original, in [-1, 1]."""
    return ((example.reconstruction - example.original) * gain).clamp(-1, 1)


def slug(name: str) -> str:
    """A name for files."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:60] or "tokens"
