"""The token bench: what a tokenizer makes of media, measured and looked at.

B batch, N tokens, C token channels.
"""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
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
from djepa_mm.moments import Covariance, Moments
from djepa_mm.recipe.load import recipe_data
from djepa_mm.types import Media, MediaSpec, Progress, Tokenizer, UserError

DEAD = 0.01  # of the root mean square of all channels' deviations: a channel below it says nothing
NOISES = (0.1, 0.2, 0.4)  # deviations that a generator may leave in tokens of unit variance
MOST_LETTERS = 150  # of a tokenizer in the names of files, so that long paths differ
MOST_CHANNELS = 2048  # whose covariance is computed: of more it takes minutes
DIFFERENCE_GAIN = 4.0  # of pictures and clips, so that small errors are seen
PLAIN = (
    *("items", "token_dim", "numbers", "compression", "largest_error", "psnr_db", "ssim", "mel_distance_db"),
    *("encode_per_s", "decode_per_s", "dead_share", "effective_channels"),
)  # measures that are numbers


# --- measuring --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """An item and what came back of it. On the CPU, no batch axis."""

    original: Tensor
    reconstruction: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """Means over items; a token's values as the tokenizer gives them, after `fit`."""

    items: int
    spec: MediaSpec  # of the first one
    token_dim: int
    numbers: float  # of an item's tokens
    compression: float  # numbers of the media for each number of the tokens
    largest_error: float  # of a pixel or sample in [-1, 1]
    psnr_db: float | None  # of pictures and clips
    ssim: float | None
    mel_distance_db: float | None  # of sounds
    noisy_db: Mapping[float, float]  # PSNR or mel distance where noise of such a deviation was added to the tokens
    encode_per_s: float  # items, one at a time: 1 / the median time
    decode_per_s: float
    mean: Tensor  # (C,)
    std: Tensor  # (C,)
    effective_channels: float | None  # None where there are more than MOST_CHANNELS
    examples: tuple[Example, ...]  # the first ones

    @property
    def likeness_db(self) -> float:
        """Of what came back: PSNR, or of sounds the mel distance."""
        found = self.mel_distance_db if self.psnr_db is None else self.psnr_db
        assert found is not None
        return found

    @property
    def dead_share(self) -> float:
        """Share of channels whose deviation is no more than DEAD of the root mean square of all."""
        return (self.std <= DEAD * self.std.square().mean().sqrt()).float().mean().item()


@torch.no_grad()
def measure(
    tokenizer: Tokenizer,
    media: Iterable[Tensor],
    *,
    repeats: int = 1,
    examples: int = 0,
    noises: Sequence[float] = NOISES,
    device: torch.device | str = "cpu",
) -> Measures:
    """What a tokenizer, which is fitted already, makes of media without a batch axis, at least one.

    repeats: of encoding and decoding, to time them. examples: items that are kept. noises: deviations of noise that is
    added to the tokens, which have about unit variance, before they are decoded; the same at each call."""
    device, sounds = torch.device(device), isinstance(tokenizer.media, Sounds)
    generator = torch.Generator().manual_seed(0)
    first: MediaSpec | None = None
    kept: list[Example] = []
    encode_s: list[float] = []
    decode_s: list[float] = []
    errors: list[float] = []
    likeness: list[list[float]] = []  # of each item: PSNR or mel distance, and the same with each noise
    structural: list[float] = []  # SSIM
    moments = Covariance() if tokenizer.token_dim <= MOST_CHANNELS else Moments()
    numbers = 0
    for item in media:
        spec, batch = tokenizer.spec_of(tuple(item.shape)), item[None].to(device)
        if first is None:  # warm up: weights are loaded, kernels chosen
            first = spec
            tokenizer.decode(tokenizer.encode(batch), spec)
        for _ in range(repeats):
            tokens = _timed(partial(tokenizer.encode, batch), encode_s, device)
            decoded = _timed(partial(tokenizer.decode, tokens, spec), decode_s, device)
        noise = torch.randn(tokens.shape, generator=generator).to(tokens)
        noisy = (tokenizer.decode(tokens + deviation * noise, spec) for deviation in noises)  # one after the other
        back = decoded[0].float().cpu()
        errors.append((back - item).abs().max().item())
        others = (one[0].float().cpu() for one in noisy)
        likeness.append([_likeness_db(tokenizer.media, item, one) for one in chain([back], others)])
        structural += [] if sounds else [ssim(item, back)]
        moments.add(tokens[0])
        numbers += item.numel()
        if len(kept) < examples:
            kept.append(Example(original=item, reconstruction=back))
    assert first is not None, "there is nothing to measure"
    plain, *under_noise = (statistics.fmean(values) for values in zip(*likeness, strict=True))
    return Measures(
        items=len(errors),
        spec=first,
        token_dim=tokenizer.token_dim,
        numbers=moments.count * tokenizer.token_dim / len(errors),
        compression=numbers / (moments.count * tokenizer.token_dim),
        largest_error=max(errors),
        psnr_db=None if sounds else plain,
        ssim=None if sounds else statistics.fmean(structural),
        mel_distance_db=plain if sounds else None,
        noisy_db=dict(zip(noises, under_noise, strict=True)),
        encode_per_s=1 / statistics.median(encode_s),
        decode_per_s=1 / statistics.median(decode_s),
        mean=moments.mean.float(),
        std=moments.std.float(),
        effective_channels=moments.effective_channels if isinstance(moments, Covariance) else None,
        examples=tuple(kept),
    )


def _likeness_db(media: Media, item: Tensor, back: Tensor) -> float:
    """PSNR, or of sounds the mel distance."""
    return mel_distance_db(item, back, media.sample_rate_hz) if isinstance(media, Sounds) else psnr_db(item, back)


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


# --- files ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What the bench says of one tokenizer."""

    candidate: Candidate
    read: tuple[Path, ...]
    skipped: Skipped
    measures: Measures | None  # None where no file could be read


def bench(
    candidates: Sequence[Candidate],
    files: Sequence[Path],
    *,
    repeats: int = 3,
    examples: int = 4,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> list[Row]:
    """Every tokenizer on all files: fitted to them, and measured. The first `examples` are kept.

    Raises UserError where no tokenizer can read any file, and where what is written of two would have one name."""
    names: dict[str, str] = {}
    for candidate in candidates:
        if (other := names.setdefault(file_name(candidate), candidate.name)) != candidate.name:
            raise UserError(f"--tokenizer {candidate.name} and {other}: their files would have one name; give one")
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

    def media() -> Iterator[Tensor]:
        for done, path in enumerate(paths):
            yield read_media(path, tokenizer)
            progress(done + 1, len(paths))

    measures = measure(tokenizer, media(), repeats=repeats, examples=examples, device=device)
    return Row(candidate=candidate, read=paths, skipped=skipped, measures=measures)


# --- showing ----------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> Table:
    """A column for every tokenizer."""
    files = len(rows[0].read) + len(rows[0].skipped)
    shown = blank_table(f"tokens of {files} files", [row.candidate.name for row in rows])
    shown.add_row("files read", *(f"{len(row.read)}" for row in rows))
    shown.add_row("files skipped", *(f"{len(row.skipped)}" for row in rows), end_section=True)
    add_measures(shown, [row.measures for row in rows])
    return shown


def blank_table(title: str, names: Sequence[str]) -> Table:
    """For a column of figures under each name."""
    shown = Table("", *names, title=title)
    for column in shown.columns[1:]:
        column.justify, column.overflow = "right", "fold"
    return shown


def add_measures(shown: Table, columns: Sequence[Measures | None], leave_out: Collection[str] = ()) -> None:
    """A row for each figure that any column has."""
    for name, line in LINES.items():
        cells = [line(measures) if measures else "" for measures in columns]
        if any(cells) and name not in leave_out:
            shown.add_row(name, *cells)


def _decibels(name: str, deviation: float | None = None) -> Callable[[Measures], str]:
    """Of the field of that name, or of the same measure with noise; empty for media that are measured otherwise."""

    def line(measures: Measures) -> str:
        plain = getattr(measures, name)
        value = plain if plain is None or deviation is None else measures.noisy_db.get(deviation)
        return "" if value is None else f"{value:.2f}"

    return line


LINES: dict[str, Callable[[Measures], str]] = {
    "grid (t × h × w)": lambda m: " × ".join(map(str, m.spec.grid)),
    "tokens": lambda m: f"{m.spec.num_tokens:,}",
    "channels of a token": lambda m: f"{m.token_dim:,}",
    "numbers of an item": lambda m: f"{m.numbers:,.0f}",
    "compression": lambda m: f"{m.compression:.4g}",
    "PSNR, dB": _decibels("psnr_db"),
    **{f"PSNR with noise of {noise:g}, dB": _decibels("psnr_db", noise) for noise in NOISES},
    "SSIM": lambda m: "" if m.ssim is None else f"{m.ssim:.4f}",
    "mel distance, dB": _decibels("mel_distance_db"),
    **{f"mel distance with noise of {noise:g}, dB": _decibels("mel_distance_db", noise) for noise in NOISES},
    "largest error": lambda m: f"{m.largest_error:.1e}" + (" (exact)" if m.largest_error < EXACT else ""),
    "encoded, items a second": lambda m: f"{m.encode_per_s:.4g}",
    "decoded, items a second": lambda m: f"{m.decode_per_s:.4g}",
    "mean of a channel": lambda m: f"{m.mean.min():.3f} to {m.mean.max():.3f}",
    "deviation of a channel": lambda m: f"{m.std.min():.3f} to {m.std.max():.3f}",
    "dead channels": lambda m: f"{m.dead_share:.1%}",
    "effective channels": lambda m: "" if m.effective_channels is None else f"{m.effective_channels:.1f}",
}


def report(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Everything measured as plain data, with the mean and the deviation of each channel."""
    return [
        {
            "tokenizer": row.candidate.name,
            "config": recipe_data(row.candidate.config),
            "read": [str(path) for path in row.read],
            "skipped": {str(path): reason for path, reason in row.skipped},
            **(measured(row.measures) if row.measures else {}),
        }
        for row in rows
    ]


def measured(measures: Measures) -> dict[str, Any]:
    """As plain data."""
    return {
        "grid": list(measures.spec.grid),
        "num_tokens": measures.spec.num_tokens,
        **{name: getattr(measures, name) for name in PLAIN},
        "noisy_db": {f"{deviation:g}": value for deviation, value in measures.noisy_db.items()},
        "mean": measures.mean.tolist(),
        "std": measures.std.tolist(),
    }


def write_comparisons(row: Row, folder: Path) -> Iterator[Path]:
    """Original, reconstruction and difference: a media file for every example, and a sheet of all. Yields their paths.

    Pictures and clips stand side by side, the difference is DIFFERENCE_GAIN times itself around grey; sounds follow
    each other. A tokenizer that read no file has nothing to show."""
    if row.measures is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    media, name = row.candidate.tokenizer.media, file_name(row.candidate)
    sounds = isinstance(media, Sounds)
    previews = []
    for n, (source, example) in enumerate(zip(row.read, row.measures.examples, strict=False)):
        apart = difference(example, 1.0 if sounds else DIFFERENCE_GAIN)
        three = [example.original, example.reconstruction, apart]
        path = folder / f"{name}-{n:02d}-{slug(source.stem)}{media.suffixes[0]}"
        media.save(media.join(three) if sounds else torch.cat(three, dim=-1), path)
        yield path
        previews += [media.preview(item) for item in three]
    path = folder / f"{name}-sheet.png"
    sheet(previews, columns=3).save(path)
    yield path


def difference(example: Example, gain: float) -> Tensor:
    """`gain` times reconstruction minus original, in [-1, 1]."""
    return ((example.reconstruction - example.original) * gain).clamp(-1, 1)


def file_name(candidate: Candidate) -> str:
    """How the names of all files begin that are written of a tokenizer."""
    return slug(candidate.name, MOST_LETTERS)


def slug(name: str, most: int = 60) -> str:
    """A name for files, of so many letters at most."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:most] or "tokens"
