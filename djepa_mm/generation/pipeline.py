"""The one generation path: requests -> specs and conditions -> sampler -> tokenizer -> media."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from djepa_mm.conditions.text import Pace
from djepa_mm.core.djepa import DJEPA
from djepa_mm.core.precision import fast_bf16
from djepa_mm.core.sampler import Sampler
from djepa_mm.media.page import figure, page
from djepa_mm.recipe.build import Conditions, build_model, build_sampler, count_classes
from djepa_mm.recipe.schema import Recipe, load_recipe
from djepa_mm.runs.checkpoint import find_checkpoint, read_state, read_tensors
from djepa_mm.speech.english import pieces
from djepa_mm.types import Item, MediaSpec, Progress, Tokenizer, UserError

SLACK = 1.5  # how much longer than the longest item of the corpus a part of a text may be
TOKENIZER = "tokenizer."  # prefix of the tokenizer's statistics among a checkpoint's averaged weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One item to generate. The same request gives the same item, whatever else is generated beside it."""

    label: int | None = None
    text: str | None = None
    duration_s: float | None = None
    rate: float = 1.0  # of a text: 2 is twice as fast as the corpus
    seed: tuple[int, ...] = (0,)

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(int(np.random.SeedSequence(self.seed).generate_state(1)[0]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the sampler does at once: a request, the size of its item, and the tokens that are given."""

    request: Request
    spec: MediaSpec
    tokens: Tensor | None = None  # (N, C)
    known: Tensor | None = None  # (N,) bool, which of them are given


class Generation:
    """A trained model with what turns requests into media and media into files."""

    def __init__(
        self,
        recipe: Recipe,
        model: DJEPA,
        tokenizer: Tokenizer,
        *,
        classes: Sequence[str],
        words: Sequence[str],
        conditions: Conditions,
    ) -> None:
        """words: of the corpus' texts, where they are few; else none."""
        self.recipe, self.model, self.tokenizer = recipe, model, tokenizer
        self.classes, self.words, self.conditions = tuple(classes), tuple(words), conditions
        self.sampler = build_sampler(recipe)

    @classmethod
    def load(cls, run: Path, overrides: Sequence[str] = (), device: torch.device | str = "cpu") -> Generation:
        """The newest checkpoint of a run folder, or the checkpoint folder itself.

        overrides: `sample.*` and `head.*` keys of its recipe. Raises UserError where it is missing or damaged."""
        checkpoint = find_checkpoint(run)
        recipe, state = load_recipe(checkpoint / "recipe.yaml", overrides), read_state(checkpoint)
        tensors = read_tensors(checkpoint, "averaged")
        tokenizer = recipe.tokenizer.build()
        tokenizer.load_statistics({k.removeprefix(TOKENIZER): v for k, v in tensors.items() if k.startswith(TOKENIZER)})
        with torch.device("meta"):
            model = build_model(recipe, tokenizer, count_classes(recipe, len(state["classes"])))
        weights = {k: v for k, v in tensors.items() if not k.startswith(TOKENIZER)}
        load_weights(model.averaged, weights, f"{checkpoint / 'averaged.safetensors'}", assign=True)
        model.averaged.to(device)  # the online networks stay without memory: nothing here trains
        pace = Pace(**state["pace"]) if state["pace"] else None
        conditions = Conditions(recipe, pace)
        return cls(recipe, model, tokenizer, classes=state["classes"], words=state["words"], conditions=conditions)

    # --- requests

    def label(self, name: str) -> int:
        """Index of a class by its name. Raises UserError for an unknown one."""
        if not self.classes:
            raise UserError(f"--class {name}: this model was trained without classes")
        if name not in self.classes:
            shown = ", ".join(self.classes[:20]) + (", …" if len(self.classes) > 20 else "")
            raise UserError(f"--class {name}: no such class; known are {shown}")
        return self.classes.index(name)

    def spec(self, request: Request) -> MediaSpec:
        """Size of the media to generate: of the given duration, else as long as the text takes. Raises UserError."""
        tokens = self.expected_tokens(request)
        if tokens is None or request.duration_s is not None:
            return self.tokenizer.spec_for(duration_s=request.duration_s)
        return self.tokenizer.spec_for(num_tokens=max(1, round(tokens)))

    def expected_tokens(self, request: Request) -> float | None:
        """How many tokens the request's text is expected to take; None where the model knows no texts."""
        vocabulary, pace = self.conditions.vocabulary, self.conditions.pace
        if vocabulary is None or pace is None:
            return None
        return pace.tokens(vocabulary.encode(request.text or "")) / request.rate

    def check(self, request: Request) -> None:
        """Raises UserError for a request that this model cannot fulfil."""
        if not (math.isfinite(request.rate) and 0.2 <= request.rate <= 5):
            raise UserError(f"a rate of {request.rate} is out of range: give 0.2 to 5; 1 is as the corpus")
        if self.conditions.vocabulary is None:
            if request.text is not None:
                raise UserError(f"--text {request.text!r}: this model was trained without texts")
            if request.label is None and self.classes and self.recipe.condition.kind == "class":
                raise UserError(f"this model needs a class: --class one of {', '.join(self.classes[:20])}")
        elif request.label is not None:
            raise UserError("--class: this model was trained on texts: give --text or --prompts")
        elif request.text is None:
            raise UserError("this model needs a text: --text '…' or --prompts FILE")
        else:
            self.conditions.vocabulary.encode(request.text)
        for part in self.parts(request):
            self.spec(part)

    def parts(self, request: Request) -> list[Request]:
        """The request cut into what is generated at once: sentences, where the recipe has texts cut.

        A sentence that would be longer than SLACK times the longest item of the corpus is cut further."""
        vocabulary, pace = self.conditions.vocabulary, self.conditions.pace
        if not getattr(self.recipe.condition, "sentences", False) or vocabulary is None or pace is None:
            return [request]

        def fits(text: str) -> bool:
            return not any(c.isalnum() for c in text) or pace.tokens(vocabulary.encode(text)) <= SLACK * pace.longest

        texts = [text for text in pieces(request.text or "", fits) if any(c.isalnum() for c in text)]
        if len(texts) < 2:
            return [request]
        parts = [replace(request, text=text, seed=(*request.seed, n)) for n, text in enumerate(texts)]
        if request.duration_s is None:
            return parts
        shares = [self.expected_tokens(part) or 1.0 for part in parts]
        return [
            replace(part, duration_s=request.duration_s * share / sum(shares))
            for part, share in zip(parts, shares, strict=True)
        ]

    def requests(
        self,
        classes: Sequence[str],
        texts: Sequence[str],
        *,
        count: int = 1,
        duration_s: float | None = None,
        rate: float = 1.0,
        seed: int = 0,
    ) -> list[Request]:
        """`count` requests for each text, or for each class (all of them where none is named)."""
        if texts:
            wanted = [Request(text=text, duration_s=duration_s, rate=rate) for text in texts]
        elif self.classes and self.conditions.vocabulary is None:
            wanted = [Request(label=self.label(name), duration_s=duration_s) for name in classes or self.classes]
        else:
            for name in classes:
                self.label(name)
            wanted = [Request(duration_s=duration_s)]
        return [replace(request, seed=(seed, n, k)) for n, request in enumerate(wanted) for k in range(count)]

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
        for request in requests:
            self.check(request)
        parts = [self.parts(request) for request in requests]
        jobs = [Job(request=part, spec=self.spec(part)) for some in parts for part in some]
        media = iter(self.sample(jobs, sampler=sampler, batch_size=batch_size, progress=progress))
        joined = []
        for some in parts:
            items = [next(media) for _ in some]
            joined.append(items[0] if len(items) == 1 else self.tokenizer.join(items))
        return joined

    def sample(
        self,
        jobs: Sequence[Job],
        *,
        sampler: Sampler | None = None,
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> list[Tensor]:
        """Media of every job, in their order, on the CPU; items of like length are sampled together."""
        sampler = sampler or self.sampler
        by_length = sorted(range(len(jobs)), key=lambda n: jobs[n].spec.num_tokens)
        media: dict[int, Tensor] = {}
        total = -(-len(jobs) // batch_size) * sampler.steps
        for start in range(0, len(jobs), batch_size):
            chosen = by_length[start : start + batch_size]
            done = start // batch_size * sampler.steps

            def report(step: int, _: int, done: int = done) -> None:
                if progress is not None:
                    progress(done + step, total)

            for n, row in zip(chosen, self._sample([jobs[n] for n in chosen], sampler, report), strict=True):
                spec = jobs[n].spec
                media[n] = self.tokenizer.decode(row[None, : spec.num_tokens], spec)[0].float().cpu()
        return [media[n] for n in range(len(jobs))]

    def _sample(self, jobs: Sequence[Job], sampler: Sampler, progress: Progress) -> Tensor:
        device = next(self.model.averaged.parameters()).device
        counts = [job.spec.num_tokens for job in jobs]
        items = [Item(media=torch.empty(0), label=job.request.label, text=job.request.text) for job in jobs]
        blank = torch.zeros(1, self.tokenizer.token_dim)
        tokens = [
            blank.expand(n, -1) if job.tokens is None else job.tokens for job, n in zip(jobs, counts, strict=True)
        ]
        known = [
            torch.zeros(n, dtype=torch.bool) if job.known is None else job.known
            for job, n in zip(jobs, counts, strict=True)
        ]
        bf16 = self.recipe.optim.precision == "bf16" and fast_bf16(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return sampler.sample(
                self.model,
                positions=pad_sequence([job.spec.positions() for job in jobs], batch_first=True).to(device),
                valid=(torch.arange(max(counts)) < torch.tensor(counts)[:, None]).to(device),
                condition=self.conditions(items, counts).to(device),
                generators=[job.request.generator() for job in jobs],
                tokens=pad_sequence(tokens, batch_first=True).to(device),
                known=pad_sequence(known, batch_first=True).to(device),
                progress=progress,
            )

    # --- samples of a run

    def examples(self, count: int, texts: Sequence[str], seed: int) -> list[Request]:
        """Requests that show what a run has learned: classes, or the given texts, in turn."""
        if self.conditions.vocabulary is not None:
            return [Request(text=text, seed=(seed, n)) for n, text in enumerate(texts[:count])]
        classes = max(1, len(self.classes))
        return [Request(label=n % classes, seed=(seed, n)) for n in range(count)]


def load_weights(module: torch.nn.Module, weights: dict[str, Any], origin: str, *, assign: bool) -> None:
    """Load a state dict; `assign` puts its tensors in the place of the module's own.

    Raises UserError, naming `origin`, where names or shapes do not fit."""
    try:
        module.load_state_dict(weights, assign=assign)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:300]
        raise UserError(f"{origin}: the weights do not fit the recipe: {detail}") from None


def write_media(
    generation: Generation,
    requests: Sequence[Request],
    media: Sequence[Tensor],
    folder: Path,
    suffix: str | None = None,
) -> Iterator[Path]:
    """Write a file an item, named by number and request, then `sheet.png` and `index.html` of all.

    suffix: one of the tokenizer's; its first where none is given.
    Yields each path once it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = generation.tokenizer
    previews = [tokenizer.preview(item) for item in media]
    figures = []
    for n, (request, item) in enumerate(zip(requests, media, strict=True)):
        title = request.text or (generation.classes[request.label] if request.label is not None else "sample")
        slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40]
        path = folder / f"{n:04d}-{slug}{suffix or tokenizer.suffix}"
        tokenizer.save(item, path)
        figures.append(figure(title, previews[n], path))
        yield path
    sheet(previews).save(folder / "sheet.png")
    yield folder / "sheet.png"
    index = folder / "index.html"
    index.write_text(page(generation.recipe.name, f"{len(media)} items generated", figures), encoding="utf-8")
    yield index


def sheet(cells: Sequence[Image.Image], columns: int | None = None, gap: int = 2) -> Image.Image:
    """Pictures side by side on one white sheet, row by row, each cell as large as the largest."""
    columns = columns or max(1, min(len(cells), round(len(cells) ** 0.5)))
    width, height = max(cell.width for cell in cells) + gap, max(cell.height for cell in cells) + gap
    rows = -(-len(cells) // columns)
    page = Image.new("RGB", (columns * width + gap, rows * height + gap), "white")
    for n, cell in enumerate(cells):
        page.paste(cell.convert("RGB"), (gap + n % columns * width, gap + n // columns * height))
    return page


def with_sampling(sampler: Sampler, **changes: Any) -> Sampler:
    """The sampler with those of the changes that are not None."""
    return replace(sampler, **{key: value for key, value in changes.items() if value is not None})
