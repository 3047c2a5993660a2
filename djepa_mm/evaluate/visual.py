"""How well a trained model shows: its clips or pictures beside real ones that it has not seen.

C channels, T frames, H and W pixels. A picture is a clip of one frame.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from statistics import fmean
from typing import Any, TypedDict

from djepa_mm.core.sampler import Sampler
from djepa_mm.data.drawing import BEFORE, drawing, item_seed
from djepa_mm.data.reading import ReadsAhead, draws
from djepa_mm.errors import Notice
from djepa_mm.evaluate.distance import psnr_db, ssim
from djepa_mm.evaluate.features import Extractor, FrameClassifier, features
from djepa_mm.evaluate.frechet import frechet_distance
from djepa_mm.generation.edit import given_frames, run_edits
from djepa_mm.generation.pipeline import Pipeline
from djepa_mm.generation.request import Request
from djepa_mm.types import BrokenItem, Item, Progress, Source, UserError


class RealFigures(TypedDict):
    """The same of real items: what a perfect model would give."""

    training_items: int
    """As many as were generated, where the corpus has twice as many; the classifier did not learn from them."""
    held_out_items: int
    """What both are compared with."""
    frechet_distance: float
    """Between these two."""
    frame_accuracy: float | None
    """Of the held-out ones, as the next."""
    clip_accuracy: float | None


class PredictionFigures(TypedDict):
    """How held-out clips go on from their first frames; of the predicted frames alone, means over clips."""

    clips: int
    given_frames: int
    predicted_frames: int
    psnr_db: float
    ssim: float
    repeated_psnr_db: float
    """Of repeating the last given frame instead, as the next."""
    repeated_ssim: float


class VisualFigures(TypedDict):
    """Figures over all items, ready for JSON. Accuracies are shares, None for a model without classes."""

    extractor: str
    items: int
    frames: int
    """Of each item."""
    seconds_per_item: float
    """That sampling and decoding take."""
    frechet_distance: float
    """Between generated and held-out items, over the extractor's features."""
    frame_accuracy: float | None
    """Share of the frames in which the classifier sees the class that was asked for."""
    clip_accuracy: float | None
    real: RealFigures
    prediction: PredictionFigures | None
    """None for pictures, and for clips that are a single token long."""


def evaluate_visual(
    pipeline: Pipeline,
    held_out: Source,
    train: Source,
    extractor: Extractor,
    sampler: Sampler | None = None,
    seed: int = 0,
    count: int = 200,
    progress: Progress | None = None,
    *,
    classifier: FrameClassifier | None = None,
    given: int | None = None,
    batch_size: int = 64,
) -> VisualFigures:
    """Generate `count` items, with conditions in turn as the held-out ones have them, and measure them.

    classifier: may be the extractor, too; for a fair comparison neither has learned from the `baseline_items`. given:
    frames that predictions begin with, moved up to whole tokens; a quarter of the clip by default. progress: counts
    items, generated and predicted. Raises UserError for too few items, and for frames that cannot be given.
    """
    begin = first_frames(pipeline, given)
    items = list(read_items(pipeline, held_out, spread(count, len(held_out))))
    others = list(read_items(pipeline, train, baseline_items(train, count)))
    if min(count, len(items), len(others)) < 2:
        raise UserError(
            f"a distance needs two items or more on each side: there are {len(items)} held-out ones, "
            f"{len(others)} of training and --count {count}"
        )
    total = count + (0 if begin is None else len(items))
    wanted = [items[n * len(items) // count] for n in range(count)]

    began = time.perf_counter()
    requests = [_request(pipeline, item, seed, n) for n, item in enumerate(wanted)]
    sampled = pipeline(requests, sampler=sampler, batch_size=batch_size, progress=_part(progress, 0, count, total))
    elapsed_s = time.perf_counter() - began

    generated = [media.clamp(-1, 1) for media in sampled]
    real = [item.media for item in items]
    seen = {"generated": generated, "real": real, "baseline": [item.media for item in others]}
    vectors = {name: features(extractor, media) for name, media in seen.items()}
    of_generated = of_real = None
    if classifier is not None:
        of_real = classifier.accuracy(real, [item.entry.label for item in items])
        if "class" in pipeline.condition.keys:
            of_generated = classifier.accuracy(generated, [item.entry.label for item in wanted])
    prediction = None
    if begin is not None:
        prediction = predict(pipeline, items, begin, sampler, seed, _part(progress, count, len(items), total))
    return {
        "extractor": extractor.name,
        "items": count,
        "frames": real[0].shape[1] if real[0].dim() == 4 else 1,
        "seconds_per_item": elapsed_s / count,
        "frechet_distance": frechet_distance(vectors["generated"], vectors["real"]),
        "frame_accuracy": of_generated["frame_accuracy"] if of_generated else None,
        "clip_accuracy": of_generated["clip_accuracy"] if of_generated else None,
        "real": {
            "training_items": len(others),
            "held_out_items": len(items),
            "frechet_distance": frechet_distance(vectors["baseline"], vectors["real"]),
            "frame_accuracy": of_real["frame_accuracy"] if of_real else None,
            "clip_accuracy": of_real["clip_accuracy"] if of_real else None,
        },
        "prediction": prediction,
    }


def predict(
    pipeline: Pipeline,
    items: Sequence[Item],
    given: int,
    sampler: Sampler | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> PredictionFigures:
    """Let the model go on from the first `given` frames of clips, which are whole tokens, and compare with the clips.

    Raises UserError for frames that cannot be given."""
    edits = [
        given_frames(pipeline, _request(pipeline, item, seed, n), first=item.media[:, :given])
        for n, item in enumerate(items)
    ]
    predicted = run_edits(pipeline, edits, sampler=sampler, progress=progress)
    real = [item.media[:, given:] for item in items]
    ours = [clip[:, given:].clamp(-1, 1) for clip in predicted]
    still = [item.media[:, given - 1 : given].expand_as(rest) for item, rest in zip(items, real, strict=True)]
    return {
        "clips": len(items),
        "given_frames": given,
        "predicted_frames": real[0].shape[1],
        "psnr_db": fmean(map(psnr_db, real, ours)),
        "ssim": fmean(map(ssim, real, ours)),
        "repeated_psnr_db": fmean(map(psnr_db, real, still)),
        "repeated_ssim": fmean(map(ssim, real, still)),
    }


def first_frames(pipeline: Pipeline, given: int | None = None) -> int | None:
    """Frames that a prediction begins with: `given`, or else a quarter of the clip, moved up to whole tokens.

    None where the model's items have no time to predict. Raises UserError where that leaves none for `given`, and where
    the items vary in size."""
    tokenizer = pipeline.tokenizer
    spec = tokenizer.fixed
    if spec is None:
        raise UserError(
            "items of many sizes cannot be measured together: --set tokenizer.vary=false takes those of tokenizer.size"
        )
    frames = spec.shape[1] if len(spec.shape) == 4 else 1
    per_token = tokenizer.span[0]
    short = spec.grid[0] * per_token - frames  # of the first token: the first latent of a VAE may stand for one frame
    tokens = -(-((given or max(1, frames // 4)) + short) // per_token)
    if tokens < spec.grid[0]:
        return tokens * per_token - short
    if given is not None:
        raise UserError(
            f"--given {given}: this model's items are {frames} frames long, and tokens {per_token}; "
            "leave at least one token to predict"
        )
    return None


# --- which items ------------------------------------------------------------------------------------------------------


def spread(count: int, total: int) -> list[int]:
    """`count` numbers below `total` at even steps, or all of them where there are no more."""
    count = min(count, total)
    return [n * total // count for n in range(count)]


def baseline_items(train: Source, count: int) -> list[int]:
    """Those of the training items that are measured beside the generated ones; at most half of all."""
    return spread(min(count, len(train) // 2), len(train))


def learned(train: Source, count: int, most: int) -> list[int]:
    """Those that the classifier learns from: up to `most`, none of the `baseline_items`."""
    others = sorted(set(range(len(train))) - set(baseline_items(train, count)))
    return [others[n] for n in spread(most, len(others))]


def read_items(pipeline: Pipeline, source: Source, indices: Sequence[int]) -> Iterator[Item]:
    """`usable_items`, but for those that the run's tokenizer or its kind of condition cannot take, such as of a class
    that it does not know."""

    def check(item: Item) -> None:
        pipeline.tokenizer.spec_of(tuple(item.media.shape))
        pipeline.condition.read(item.entry)

    return usable_items(source, indices, check)


def usable_items(source: Source, indices: Sequence[int], check: Callable[[Item], Any]) -> Iterator[Item]:
    """Items one by one. Broken ones, and those for which `check` raises BrokenItem or UserError, are left out with a
    Notice. Raises UserError where none is left."""
    left, broken = 0, {}
    try:
        for index, item in zip(indices, _read(source, indices), strict=True):
            try:
                if isinstance(item, BrokenItem):
                    raise item
                check(item)
            except (BrokenItem, UserError) as error:
                broken[source.entry(index).name] = str(error)
                continue
            left += 1
            yield item
    finally:  # also where no more are wanted
        if left and broken:
            name, reason = next(iter(broken.items()))
            warnings.warn(f"{len(broken)} items are left out, such as {name}: {reason}", Notice, stacklevel=2)
    if not left:
        reason = next((f"{name}: {why}" for name, why in broken.items()), "none is there")
        raise UserError(f"no item of the corpus can be used to measure with: {reason}")


def _read(source: Source, indices: Sequence[int]) -> Iterator[Item | BrokenItem]:
    if isinstance(source, ReadsAhead):
        yield from source.read_all(indices)
        return
    for index in indices:
        try:
            with drawing(item_seed(0, BEFORE, index)) if draws(source) else nullcontext():
                item = source.read(index)
            yield item
        except BrokenItem as error:
            yield error


def _request(pipeline: Pipeline, item: Item, seed: int, number: int) -> Request:
    """For an item with the condition that a real one has."""
    return Request(condition=pipeline.condition.request(item.entry), seed=(seed, number))


def _part(progress: Progress | None, begin: int, items: int, total: int) -> Progress:
    """For sampling `items`: tells of them after `begin` others."""
    return lambda step, steps: progress and progress(begin + step * items // steps, total)
