"""The one generation path: requests -> values and sizes -> sampler -> tokenizer -> media."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from djepa_mm.core.djepa import DJEPA
from djepa_mm.core.masking import never_last
from djepa_mm.core.sampler import Sampler
from djepa_mm.core.types import TokenBatch
from djepa_mm.errors import Notice, UserError
from djepa_mm.generation.request import Job, Request
from djepa_mm.precision import cast_linears, fast_bf16
from djepa_mm.ranks import ElsewhereError, current
from djepa_mm.recipe.build import build_model, build_sampler, check_item
from djepa_mm.recipe.load import Overrides, as_trained, load_recipe
from djepa_mm.recipe.schema import MOST_SWEEPS, Recipe
from djepa_mm.types import ConditionKind, Extent, MediaSpec, Progress, Tokenizer, nearest_size
from djepa_mm.weights import TOKENIZER, find_checkpoint, load_weights, read_state, read_tensors

MOST = 1_000_000  # of steps, guidance and temperature: beyond it, there are no numbers
MOST_SIDE = 16_384  # pixels of what is asked for
MOST_ASPECT = 100  # width / height, or the other way round
Jobs = list[Job]  # of one request: one, or the parts that are joined


class Pipeline:
    """A trained model with what turns requests into media."""

    def __init__(self, recipe: Recipe, model: DJEPA, tokenizer: Tokenizer, condition: ConditionKind[Any]) -> None:
        self.recipe, self.model, self.tokenizer, self.condition = recipe, model, tokenizer, condition
        self.sampler = build_sampler(recipe)
        condition.to(self.device)

    @classmethod
    def load(cls, run: Path, overrides: Overrides = (), device: torch.device | str = "cpu") -> Pipeline:
        """The newest checkpoint of a run folder, or the checkpoint folder itself.

        overrides: of keys of its recipe. Raises UserError where it is missing or damaged."""
        checkpoint = find_checkpoint(run)
        recipe, state = load_recipe(checkpoint / "recipe.yaml", overrides), read_state(checkpoint)
        recipe = as_trained(recipe, checkpoint, overrides)
        weights = read_tensors(checkpoint, "averaged")
        prefix = f"{TOKENIZER}."
        learned = {name.removeprefix(prefix): weights.pop(name) for name in list(weights) if name.startswith(prefix)}
        tokenizer, condition = recipe.tokenizer.build(), recipe.condition.build()
        try:
            tokenizer.load_state(learned)
            condition.load_state(state["condition"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{checkpoint}: not of this recipe's kind, or damaged ({error!r}); train again") from None
        with torch.device("meta"):
            model = build_model(recipe, tokenizer, condition)
        load_weights(model.averaged, weights, str(checkpoint / "averaged.safetensors"), assign=True)
        model.averaged.to(device)  # the online networks stay without memory: nothing here trains
        return cls(recipe, model, tokenizer, condition)

    @property
    def device(self) -> torch.device:
        return next(self.model.averaged.parameters()).device

    # --- requests

    def requests(
        self,
        conditions: Sequence[Mapping[str, Any]] = (),
        *,
        count: int = 1,
        duration_s: float | None = None,
        size: tuple[int, int] | None = None,
        offset: float | tuple[float, float] | None = None,
        seed: int = 0,
    ) -> list[Request]:
        """`count` requests for each condition; with none given, for each of those that are usual, such as all classes.

        Raises UserError where nothing is usual."""
        wanted = conditions or self.condition.usual_requests()
        return [
            Request(
                condition=condition,
                duration_s=duration_s,
                size=size,
                offset=offset,
                seed=(seed, condition_number(condition), k),
            )
            for condition in wanted
            for k in range(count)
        ]

    def examples(self, count: int, texts: Sequence[str], seed: int) -> list[Request]:
        """Requests that show what a run has learned."""
        conditions = self.condition.examples(count, texts)
        return [Request(condition=condition, seed=(seed, n)) for n, condition in enumerate(conditions)]

    def prepare(self, requests: Sequence[Request]) -> list[Jobs]:
        """What the sampler has to do for each request. Raises UserError for one that this model cannot fulfil."""
        return [self._jobs(request) for request in requests]

    def _jobs(self, request: Request) -> Jobs:
        values = self.condition.split(request.condition)
        if len(values) == 1:
            (value,) = values
            return [self.job(request, value, self._spec(request, value, request.duration_s))]
        durations: list[float | None] = [None] * len(values)
        if request.duration_s is not None:
            tokens = 1 + self.tokenizer.spec_for(Extent(num_tokens=1)).grid[0]  # one more than the shortest have
            least = tokens * self.tokenizer.span[0] / (self.tokenizer.media.per_second or 1.0)
            durations = [*share_out(request.duration_s, [self.condition.length(v) or 1.0 for v in values], least)]
        return [
            replace(self.job(request, value, self._spec(request, value, duration_s)), seed=(*request.seed, n))
            for n, (value, duration_s) in enumerate(zip(values, durations, strict=True))
        ]

    def job(self, request: Request, value: Any, spec: MediaSpec, **given: Tensor) -> Job:
        """What the sampler has to do for a request's value. given: its tokens, and which of them are known.

        Raises UserError for what this model cannot do."""
        if request.offset is not None and self.model.field is None:
            kind = self.recipe.model.positions
            raise UserError(f"--offset: this model has no field of view to move in: its model.positions is {kind}")
        negative, offset = self.condition.negative(request.condition), request.moved(spec.grid)
        return Job(value=value, spec=spec, seed=request.seed, negative=negative, offset=offset, **given)

    def _spec(self, request: Request, value: Any, duration_s: float | None) -> MediaSpec:
        """Size of the media to generate: of the given duration, else as long as the condition takes."""
        tokens = self.condition.length(value)
        if tokens is None or duration_s is not None:
            return self.spec_for(Extent(duration_s=duration_s, size=request.size))
        return self.spec_for(Extent(num_tokens=max(1, round(tokens)), size=request.size))

    def spec_for(self, extent: Extent) -> MediaSpec:
        """Size of media that the model can generate. Raises UserError for what it cannot."""
        fixed = self.tokenizer.fixed
        if fixed is not None and self.recipe.model.fixed_grid and extent.size not in (None, fixed.shape[-2:]):
            height, width = fixed.shape[-2:]
            raise UserError(
                f"model.positions is {self.recipe.model.positions}, so this model knows the places of {height}×{width} "
                "pixels alone: leave the size out, or train with rotary positions and tokenizer.vary"
            )
        if extent.size is not None and max(extent.size) > MOST_SIDE:
            height, width = extent.size
            raise UserError(
                f"a size of {height}×{width} pixels (height × width): no side may have more than {MOST_SIDE:,}; ask "
                "for a smaller size"
            )
        spec = self.tokenizer.spec_for(extent)
        check_item(self.recipe, spec, self.device)
        return spec

    def size_of(self, aspect: float) -> tuple[int, int]:
        """Height and width of that aspect, width / height, of about as many pixels as usual media have.

        Raises UserError where media have no aspect."""
        if not isinstance(aspect, Real) or not 1 / MOST_ASPECT <= aspect <= MOST_ASPECT:
            raise UserError(f"--aspect {aspect}: expected width / height, from 1/{MOST_ASPECT} to {MOST_ASPECT}")
        shape, multiples = (() if self.tokenizer.fixed is None else self.tokenizer.fixed.shape), self.tokenizer.span[1:]
        with suppress(UserError):  # of any length, such as sounds
            shape = self.tokenizer.spec_for().shape
        if len(shape) < 3:
            raise UserError("--aspect: this model's media have no width and height; leave it out")
        area = shape[-2] * shape[-1]
        height, _ = nearest_size((round(math.sqrt(area / aspect)), 1), multiples)
        _, width = nearest_size((1, round(area / height)), multiples)
        return height, width

    # --- media

    def __call__(
        self,
        requests: Sequence[Request],
        *,
        sampler: Sampler | None = None,
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> list[Tensor]:
        """Media of every request, in their order, on the CPU. Checks all of them first."""
        return self.run(self.prepare(requests), sampler=sampler, batch_size=batch_size, progress=progress)

    def run(
        self,
        prepared: Sequence[Jobs],
        *,
        sampler: Sampler | None = None,
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> list[Tensor]:
        """Media of requests that were prepared, in their order, on the CPU."""
        jobs = [job for some in prepared for job in some]
        media = iter(self.run_jobs(jobs, sampler=sampler, batch_size=batch_size, progress=progress))
        joined = []
        for some in prepared:
            items = [next(media) for _ in some]
            joined.append(items[0] if len(items) == 1 else self.tokenizer.media.join(items))
        return joined

    def run_jobs(
        self,
        jobs: Sequence[Job],
        *,
        sampler: Sampler | None = None,
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> list[Tensor]:
        """Media of every job, in their order, on the CPU; items of like length are sampled together.

        Processes that have joined share out the work, and all of them get all of it."""
        sampler = sampler or self.sampler
        away = [job.negative is not None for job in jobs]
        if sampler.guidance == 1 and any(away):
            warnings.warn("--negative: guidance 1 leads away from nothing, so it changes nothing", Notice, stacklevel=2)
        if sampler.guidance != 1 and self.recipe.condition.drop == 0 and not all(away):
            raise UserError(
                f"--guidance {sampler.guidance:g}: this model was trained with condition.drop 0, so it has no null "
                "condition to be guided away from: use 1"
            )
        ranks = current()
        by_length = sorted(range(len(jobs)), key=lambda n: jobs[n].spec.num_tokens)
        batch_size = max(1, min(batch_size, -(-len(jobs) // ranks.world)))
        batches = [by_length[start : start + batch_size] for start in range(0, len(jobs), batch_size)]
        mine = batches[ranks.rank :: ranks.world]
        media: dict[int, Tensor] = {}
        steps = sampler.total_steps
        try:
            for number, chosen in enumerate(mine):

                def report(step: int, _: int, done: int = number * steps) -> None:
                    if progress is not None:
                        progress(done + step, len(mine) * steps)

                tokens = self._tokens([jobs[n] for n in chosen], sampler, report)
                for n, row in zip(chosen, tokens, strict=True):
                    spec = jobs[n].spec
                    media[n] = self.tokenizer.decode(row[None, : spec.num_tokens], spec)[0].float().cpu()
        except BaseException:
            ranks.gather(None)  # the others wait for what there is
            raise
        for rank, found in enumerate(ranks.gather(media)):
            if found is None:
                raise ElsewhereError(f"rank {rank} has not finished sampling")
            media |= found
        return [media[n] for n in range(len(jobs))]

    def _tokens(self, jobs: Sequence[Job], sampler: Sampler, progress: Progress) -> Tensor:
        """(B, N, C), padded."""
        device = self.device
        counts = [job.spec.num_tokens for job in jobs]
        places = pad_sequence([job.spec.positions() for job in jobs], batch_first=True).to(device)
        grids = torch.tensor([job.spec.grid for job in jobs], device=device)
        offsets = torch.tensor([job.offset for job in jobs], device=device)
        condition = self.condition.encode([job.value for job in jobs], counts).to(device)
        negative = None
        if sampler.guidance != 1 and any(job.negative is not None for job in jobs):
            values = [job.value if job.negative is None else job.negative for job in jobs]
            null = torch.tensor([job.negative is None for job in jobs], device=device)
            negative = self.condition.encode(values, counts).to(device), null
        blank = torch.zeros(1, self.tokenizer.token_dim)
        tokens = [
            blank.expand(n, -1) if job.tokens is None else job.tokens for job, n in zip(jobs, counts, strict=True)
        ]
        known = [
            torch.zeros(n, dtype=torch.bool) if job.known is None else job.known
            for job, n in zip(jobs, counts, strict=True)
        ]
        bf16 = self.recipe.optim.precision == "bf16" and fast_bf16(device)
        in_bf16 = cast_linears(self.model.averaged, torch.bfloat16) if bf16 else nullcontext()
        with in_bf16, torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return sampler(
                self.model,
                positions=self.model.place(places, grids, offsets),
                valid=(torch.arange(max(counts)) < torch.tensor(counts)[:, None]).to(device),
                condition=condition,
                generators=[job.generator() for job in jobs],
                tokens=pad_sequence(tokens, batch_first=True).to(device),
                known=pad_sequence(known, batch_first=True).to(device),
                places=places,
                negative=negative,
                progress=progress,
            )

    def features(self, tokens: Tensor, spec: MediaSpec, condition: Mapping[str, Any] | None = None) -> Tensor:
        """tokens (N, C) -> the target encoder's features (N, D), all tokens visible; under the null condition where
        none is given. Raises UserError for a condition that this model does not know."""
        asked = self.condition.usual_requests()[0] if condition is None else condition
        batch = TokenBatch(
            tokens=tokens[None],
            positions=self.model.place(spec.positions()[None], torch.tensor([spec.grid])),
            valid=torch.ones(1, spec.num_tokens, dtype=torch.bool),
            condition=self.condition.encode([self.condition.parse(asked)], [spec.num_tokens]),
        )
        dropped = torch.tensor([condition is None], device=self.device)
        return self.model.target_features(batch.to(self.device), dropped)[0]


def condition_number(condition: Mapping[str, Any]) -> int:
    """32 bits that tell one condition from another, wherever it stands among those that are asked for. What guidance
    leads away from is not counted, so that one sees what it changes."""
    counted = {key: value for key, value in condition.items() if key != "negative"}
    said = json.dumps(counted, sort_keys=True, default=str)
    return int.from_bytes(hashlib.sha256(said.encode()).digest()[:4], "big")


def with_sampling(
    sampler: Sampler,
    *,
    ar_steps: int | None = None,
    guidance: float | None = None,
    temperature: float | None = None,
    sweeps: int | None = None,
) -> Sampler:
    """The sampler with those of the settings that are given. Raises UserError where they are out of range."""
    for name, value, least, most, kind in (
        ("steps", ar_steps, 1, MOST, Integral),
        ("sweeps", sweeps, 0, MOST_SWEEPS, Integral),
        ("guidance", guidance, 0, MOST, Real),
        ("temperature", temperature, 0, MOST, Real),
    ):
        if value is not None and not (isinstance(value, kind) and least <= value <= most):
            whole = "a whole number from " if kind is Integral else ""
            raise UserError(f"--{name} {value}: give {whole}{least} to {most:,}")
    if sweeps and (why := never_last(sampler.order, sampler.horizon)):
        raise UserError(f"--sweeps {sweeps}: {why}, so nothing is drawn anew; leave it out")
    changes: dict[str, Any] = {"ar_steps": ar_steps, "sweeps": sweeps, "guidance": guidance, "temperature": temperature}
    return replace(sampler, **{key: value for key, value in changes.items() if value is not None})


def share_out(whole: float, weights: Sequence[float], least: float) -> list[float]:
    """The whole in parts by their weights, none under `least`. Raises UserError where that is impossible."""
    if not weights:
        return []
    if whole < least * len(weights):
        raise UserError(
            f"a duration of {whole:.4g} s is too short for {len(weights)} sentences: give {least * len(weights):.4g} s "
            "or more"
        )
    parts = [whole * weight / sum(weights) for weight in weights]
    short = [part < least for part in parts]
    if not any(short):
        return parts
    rest = [weight for weight, is_short in zip(weights, short, strict=True) if not is_short]
    others = iter(share_out(whole - least * sum(short), rest, least))
    return [least if is_short else next(others) for is_short in short]
