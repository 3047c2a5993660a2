"""Editing: tokens outside the edit are given, the sampler fills in the rest, and the media outside the edit stay.

N tokens of the edited item on a grid (t, h, w), C token channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from djepa_mm.core.sampler import Sampler
from djepa_mm.generation.pipeline import Pipeline
from djepa_mm.generation.request import Job, Request, check_numbers
from djepa_mm.types import Extent, MediaSpec, Progress, UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """One item to edit, laid out as it will be: what is given in its place, blanks where the new goes."""

    job: Job
    original: Tensor  # the media; where new ones go, what they replace, or zeros, or a frame held
    kept: Tensor  # bool on the media's axes of time and space


def run_edits(
    pipeline: Pipeline,
    edits: Sequence[Edit],
    *,
    sampler: Sampler | None = None,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> list[Tensor]:
    """The edited media, in their order; what is kept has the original's own samples or pixels."""
    jobs = [edit.job for edit in edits]
    media = pipeline.run_jobs(jobs, sampler=sampler, batch_size=batch_size, progress=progress)
    return [
        pipeline.tokenizer.media.blend(edit.original, new, edit.kept) for edit, new in zip(edits, media, strict=True)
    ]


def replace_span(
    pipeline: Pipeline,
    media: Tensor,
    request: Request,
    *,
    start_s: float | None = None,
    stop_s: float | None = None,
    new_s: float | None = None,
) -> Edit:
    """Replace [start_s, stop_s) of a sound (samples,), whose borders move out to whole tokens, or of a clip of frames,
    which keeps its length.

    start_s: None is the clip's end: it goes on. stop_s: None is the clip's end. new_s: length of what comes in;
    None is as long as what goes out, and at the clip's end as long as the request's text still needs. The request's
    text is that of the whole clip after the edit. Raises UserError for a span that does not fit the clip.
    """
    tokenizer = pipeline.tokenizer
    if tokenizer.media.per_second is None:
        raise UserError("--from and --to: this model's media have no time; edit a picture with --mask")
    rate = tokenizer.media.per_second / tokenizer.span[0]  # tokens a second
    if media.dim() > 1:
        if (start_s is None and stop_s is None) or new_s is not None:
            raise UserError("this model's clips have one length: give --from, --to or --mask, and no --seconds")
        return in_paint(pipeline, media, request, torch.ones(media.shape[-2:]).bool(), start_s=start_s, stop_s=stop_s)
    value = pipeline.condition.parse(request.condition)
    per_token, length = tokenizer.span[0], len(media)
    count, _, _ = tokenizer.spec_of((length,)).grid
    seconds = length / per_token / rate
    _check_times(seconds, start_s, stop_s)
    start = length // per_token if start_s is None else min(length // per_token, math.floor(start_s * rate + 1e-6))
    stop = count if stop_s is None else min(count, math.ceil(stop_s * rate - 1e-6))
    if new_s is not None:
        if not 0 < new_s < math.inf:
            raise UserError(f"--seconds {new_s:g}: the new part needs a length above 0")
        new = max(1, round(new_s * rate))
    elif stop_s is None and (expected := pipeline.condition.length(value)) is not None:
        new = max(1, round(expected) - start)
    elif stop > start:
        new = stop - start
    else:
        raise UserError("the length of what follows the clip is not known: give --seconds")
    if (whole_s := (start + new + count - stop) / rate) > max(seconds, count / rate):
        tokenizer.spec_for(Extent(duration_s=whole_s))  # raises now, and not where it is too long to be kept
    # an end that is replaced by as much stays as long as it was, even where its last token is filled in part
    same_end = stop == count and new == stop - start
    blank_length = length - start * per_token if same_end else new * per_token
    original = torch.cat([media[: start * per_token], torch.zeros(blank_length), media[stop * per_token :]])
    spec = tokenizer.spec_of(tuple(original.shape))
    old = tokenizer.encode(media[None])[0]  # (count, C)
    tokens = torch.cat([old[:start], old.new_zeros(new, old.shape[-1]), old[stop:]])
    known = torch.ones(len(tokens), dtype=torch.bool)
    known[start : start + new] = False
    kept = torch.ones(len(original), dtype=torch.bool)
    kept[start * per_token : start * per_token + blank_length] = False
    assert spec.num_tokens == len(tokens), f"{spec} for {len(tokens)} tokens"
    return Edit(job=pipeline.job(request, value, spec, tokens=tokens, known=known), original=original, kept=kept)


def in_paint(
    pipeline: Pipeline,
    media: Tensor,
    request: Request,
    mask: Tensor,
    *,
    start_s: float | None = None,
    stop_s: float | None = None,
) -> Edit:
    """Paint anew where `mask` is True: bool (H, W), for all frames of a clip, or (T, H, W) on its axes.

    start_s, stop_s: the mask holds in [start_s, stop_s) of a clip alone; None is its start or its end. Every token that
    the mask touches is generated; of it, only what the mask covers is shown. Raises UserError for a mask of another
    size, for one that covers nothing, and for times that do not fit.
    """
    value = pipeline.condition.parse(request.condition)
    tokenizer = pipeline.tokenizer
    axes = tuple(media.shape[1:])
    if len(axes) < 2:
        raise UserError("--mask: this model's media are not pictures; edit a clip with --from and --to")
    mask = _fitting(mask, axes)
    if not mask.any():
        raise UserError("--mask: nothing is white in it; what is white is painted anew")
    if start_s is not None or stop_s is not None:
        if tokenizer.media.per_second is None:
            raise UserError("--from and --to: a picture has no time; edit it with --mask alone")
        frame_rate, start_s = tokenizer.media.per_second, start_s or 0.0
        _check_times(axes[0] / frame_rate, start_s, stop_s)
        mask = mask.clone()
        mask[: math.floor(start_s * frame_rate + 1e-6)] = False
        mask[axes[0] if stop_s is None else math.ceil(stop_s * frame_rate - 1e-6) :] = False
        if not mask.any():
            raise UserError("between --from and --to there is nothing to paint anew")
    spec = tokenizer.spec_of(tuple(media.shape))
    volume = mask.float().reshape(1, -1, *axes[-2:])  # (1, T, H, W)
    short = spec.grid[0] * tokenizer.span[0] - volume.shape[1]  # as in given_frames
    touched = functional.adaptive_max_pool3d(functional.pad(volume, (0, 0, 0, 0, short, 0)), spec.grid)
    known = touched.flatten() == 0
    tokens = tokenizer.encode(_held(media, mask)[None])[0]
    job = pipeline.job(request, value, spec, tokens=tokens * known[:, None], known=known)
    return Edit(job=job, original=media, kept=~mask)


def _held(media: Tensor, mask: Tensor) -> Tensor:
    """Media with the nearest kept pixel where `mask` is True, on all its axes but the first: learned tokens and a
    VAE's see more than their own pixels, and what is painted over must not show in those beside it."""
    from scipy.ndimage import distance_transform_edt  # half a second to import

    if mask.all():
        return torch.zeros_like(media)
    nearest = distance_transform_edt(mask.cpu().numpy(), return_distances=False, return_indices=True)
    return media[(slice(None), *torch.from_numpy(nearest).long().to(media.device))]


def out_paint(
    pipeline: Pipeline, media: Tensor, request: Request, sides: tuple[int, int, int, int], mask: Tensor | None = None
) -> Edit:
    """Paint what lies around a picture or clip (C, …, H, W), of any size itself.

    sides: pixels to the left, at the top, to the right and at the bottom. mask: bool, what is painted anew of the
    middle, as in `in_paint`. Raises UserError for a size that the model cannot have, and where nothing is to be
    painted.
    """
    if media.dim() < 3:
        raise UserError("--size and --extend: this model's media have no width and height; edit with --from and --to")
    check_numbers("extend", sides, "pixels to the left, at the top, to the right and at the bottom", 4)
    left, top, right, bottom = sides
    if min(sides) < 0 or not (any(sides) or mask is not None):
        raise UserError(
            f"--size and --extend: {left}, {top}, {right} and {bottom} pixels come to the left, at the top, to the "
            "right and at the bottom; make it 0 or more on each side, and more on one"
        )
    height, width = media.shape[-2:]
    pipeline.spec_for(Extent(size=(top + height + bottom, left + width + right)))
    canvas = functional.pad(media, (left, right, top, bottom))
    middle = (..., slice(top, top + height), slice(left, left + width))
    painted = torch.ones((*media.shape[1:-2], *canvas.shape[-2:]), dtype=torch.bool)
    painted[middle] = False
    if mask is not None:
        painted[middle] = _fitting(mask, tuple(media.shape[1:]))
    return in_paint(pipeline, canvas, request, painted)


def around(pipeline: Pipeline, media: Tensor, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Pixels to the left, at the top, to the right and at the bottom of media in the middle of a larger size, at whole
    tokens so that these can be known. Raises UserError where it is not larger."""
    if media.dim() < 3:
        raise UserError("--size: this model's media have no width and height; leave it out")
    check_numbers("size", size, "height and width in pixels", 2)
    (height, width), (_, *multiples) = media.shape[-2:], pipeline.tokenizer.span
    more = size[0] - height, size[1] - width
    if min(more) < 0:
        raise UserError(
            f"--size {size[1]}x{size[0]}: what is there has {width}×{height} pixels, and is not made smaller; give its "
            "size or more"
        )
    top, left = (some // 2 // multiple * multiple for some, multiple in zip(more, multiples, strict=True))
    return left, top, more[1] - left, more[0] - top


def clip_spec(pipeline: Pipeline) -> MediaSpec:
    """Size of the clips that a model makes. Raises UserError for a model of other media."""
    tokenizer = pipeline.tokenizer
    try:
        spec = tokenizer.spec_for()
    except UserError:  # of any length, such as sounds
        spec = None
    if spec is None or len(spec.shape) != 4:
        raise UserError("first and last frames are for models of clips; this model makes none")
    return spec


def given_frames(
    pipeline: Pipeline, request: Request, *, first: Tensor | None = None, last: Tensor | None = None
) -> Edit:
    """Complete a clip from its first frames, from its last ones, or from both: prediction, or what lies between.

    first, last: (C, k, H, W) in [-1, 1], of the model's channels and of the request's size, or the usual one, at least
    one of the two. Raises UserError where they do not fit, do not fill whole tokens or leave nothing to generate, and
    for a model of other media.
    """
    value = pipeline.condition.parse(request.condition)
    tokenizer = pipeline.tokenizer
    clip_spec(pipeline)  # raises for a model of other media
    spec = tokenizer.spec_for(Extent(duration_s=request.duration_s, size=request.size))
    (count, rows, columns), (channels, frames, height, width) = spec.grid, spec.shape
    per_token = tokenizer.span[0]
    short = count * per_token - frames  # of the first token: the first latent of a VAE may stand for one frame
    parts = [(name, part) for name, part in (("first", first), ("last", last)) if part is not None]
    assert parts, "given_frames needs frames"
    for name, part in parts:
        if not isinstance(part, Tensor) or not part.is_floating_point() or part.dim() != 4:
            raise UserError(f"the {name} frames: expected a tensor (C, k, H, W) of floats in [-1, 1]")
        if (part.shape[0], *part.shape[2:]) != (channels, height, width):
            found = f"{part.shape[3]}×{part.shape[2]} pixels in {part.shape[0]} channels"
            raise UserError(
                f"the {name} frames have {found}, this model takes {width}×{height} in {channels}; resize them first"
            )
    if (total := sum(part.shape[1] for _, part in parts)) >= frames:
        raise UserError(f"{total} frames are given and a clip has {frames}: leave at least one to generate")
    for name, part in parts:
        fitting = [n * per_token - (short if name == "first" else 0) for n in range(1, count)]
        if (given := part.shape[1]) not in fitting:
            nearest = sorted(sorted(fitting, key=lambda n: abs(n - given))[:2])
            advice = f"give {' or '.join(map(str, nearest))}" if nearest else "none can be given"
            raise UserError(f"the {name} {given} frames do not fill whole tokens of {per_token}: {advice}")
    kept = torch.zeros(frames, dtype=torch.bool)
    kept[: 0 if first is None else first.shape[1]] = True
    kept[frames if last is None else -last.shape[1] :] = True
    places = kept.nonzero()[:, 0]
    # In between the nearest frame is held, because a VAE sees more than the frames of one latent.
    nearest_place = (torch.arange(frames)[:, None] - places).abs().argmin(dim=1)
    held = torch.cat([part for _, part in parts], dim=1)[:, nearest_place]
    known = torch.zeros(count, dtype=torch.bool)
    known[(places + short) // per_token] = True
    known = known.repeat_interleave(rows * columns)
    job = pipeline.job(request, value, spec, tokens=tokenizer.encode(held[None])[0] * known[:, None], known=known)
    return Edit(job=job, original=held, kept=kept[:, None, None].expand(frames, height, width))


def _fitting(mask: Tensor, axes: tuple[int, ...]) -> Tensor:
    """A mask on the axes (T, H, W) or (H, W) of media. Raises UserError where it is none, or of another size."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise UserError(f"--mask: expected a tensor of bool, True where it is painted anew, not {kind}")
    if tuple(mask.shape) not in (axes, axes[-2:]):
        what = "the picture" if len(axes) == 2 else "the clip, with its frames first,"
        raise UserError(f"--mask: it has {tuple(mask.shape)} pixels (height, width), {what} {axes}")
    return mask.expand(axes)


def _check_times(seconds: float, start_s: float | None, stop_s: float | None) -> None:
    """Raises UserError where the times do not lie in a clip of that length, or not one after the other."""
    for name, value in (("--from", start_s), ("--to", stop_s)):
        if value is not None and not 0 <= value <= seconds + 0.005:  # half a hundredth: as it is shown
            raise UserError(f"{name} {value:g}: the clip is {seconds:.2f} s long; give 0 to {seconds:.2f}")
    if stop_s is not None and start_s is None:
        raise UserError(f"--to {stop_s:g}: the edit has to end after it begins; give --from too")
    if stop_s is not None and start_s is not None and start_s >= stop_s:
        raise UserError(f"--from {start_s:g} --to {stop_s:g}: the edit has to end after it begins")
