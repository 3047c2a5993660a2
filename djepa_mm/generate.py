"""The one generation path: requests -> specs and conditions -> sampler -> tokenizer -> media."""

from __future__ import annotations

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

from djepa_mm.build import Conditions, build_model, build_sampler, count_classes
from djepa_mm.checkpoint import find_checkpoint, read_state, read_tensors
from djepa_mm.conditions import Pace
from djepa_mm.djepa import DJEPA
from djepa_mm.recipe import Recipe, load_recipe
from djepa_mm.sampler import Sampler
from djepa_mm.types import Item, MediaSpec, Progress, Tokenizer, UserError

TOKENIZER = "tokenizer."  # prefix of the tokenizer's statistics among a checkpoint's averaged weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One item to generate. The same request gives the same item, whatever else is generated beside it."""

    label: int | None = None
    text: str | None = None
    duration_s: float | None = None
    seed: tuple[int, ...] = (0,)

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(int(np.random.SeedSequence(self.seed).generate_state(1)[0]))


class Generation:
    """A trained model with what turns requests into media and media into files."""

    def __init__(
        self, recipe: Recipe, model: DJEPA, tokenizer: Tokenizer, classes: Sequence[str], conditions: Conditions
    ) -> None:
        self.recipe, self.model, self.tokenizer = recipe, model, tokenizer
        self.classes, self.conditions = tuple(classes), conditions
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
        return cls(recipe, model, tokenizer, state["classes"], Conditions(recipe, pace))

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
        vocabulary, pace = self.conditions.vocabulary, self.conditions.pace
        if vocabulary is None or pace is None or request.duration_s is not None:
            return self.tokenizer.spec_for(duration_s=request.duration_s)
        return self.tokenizer.spec_for(num_tokens=round(pace.tokens(vocabulary.encode(request.text or ""))))

    def check(self, request: Request) -> None:
        """Raises UserError for a request that this model cannot fulfil."""
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
        self.spec(request)

    def requests(
        self, classes: Sequence[str], texts: Sequence[str], *, count: int, duration_s: float | None, seed: int
    ) -> list[Request]:
        """`count` requests for each text, or for each class (all of them where none is named)."""
        if texts:
            wanted = [Request(text=text, duration_s=duration_s) for text in texts]
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
        sampler = sampler or self.sampler
        specs = [self.spec(request) for request in requests]
        by_length = sorted(range(len(requests)), key=lambda n: specs[n].num_tokens)
        media: dict[int, Tensor] = {}
        total = -(-len(requests) // batch_size) * sampler.steps
        for start in range(0, len(requests), batch_size):
            chosen = by_length[start : start + batch_size]
            done = start // batch_size * sampler.steps

            def report(step: int, _: int, done: int = done) -> None:
                if progress is not None:
                    progress(done + step, total)

            tokens = self._sample([requests[n] for n in chosen], [specs[n] for n in chosen], sampler, report)
            for n, row in zip(chosen, tokens, strict=True):
                media[n] = self.tokenizer.decode(row[None, : specs[n].num_tokens], specs[n])[0].float().cpu()
        return [media[n] for n in range(len(requests))]

    def _sample(
        self, requests: Sequence[Request], specs: Sequence[MediaSpec], sampler: Sampler, progress: Progress
    ) -> Tensor:
        device = next(self.model.averaged.parameters()).device
        counts = [spec.num_tokens for spec in specs]
        items = [Item(media=torch.empty(0), label=r.label, text=r.text) for r in requests]
        bf16 = self.recipe.optim.precision == "bf16"
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16 and device.type == "cuda"):
            return sampler.sample(
                self.model,
                positions=pad_sequence([spec.positions() for spec in specs], batch_first=True).to(device),
                valid=(torch.arange(max(counts)) < torch.tensor(counts)[:, None]).to(device),
                condition=self.conditions(items, counts).to(device),
                generators=[request.generator() for request in requests],
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
        raise UserError(f"{origin}: the weights do not fit the recipe beside them: {detail}") from None


def write_media(
    generation: Generation, requests: Sequence[Request], media: Sequence[Tensor], folder: Path
) -> Iterator[Path]:
    """Write a file an item, named by number and request, then `sheet.png` of all; yields each path once it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = generation.tokenizer
    for n, (request, item) in enumerate(zip(requests, media, strict=True)):
        title = request.text or (generation.classes[request.label] if request.label is not None else "sample")
        slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40]
        path = folder / f"{n:04d}-{slug}{tokenizer.suffix}"
        tokenizer.save(item, path)
        yield path
    page = folder / "sheet.png"
    sheet([tokenizer.preview(item) for item in media]).save(page)
    yield page


def sheet(pictures: Sequence[Image.Image], columns: int | None = None, gap: int = 2) -> Image.Image:
    """Pictures side by side on one white sheet, row by row, each cell as large as the largest."""
    columns = columns or max(1, min(len(pictures), round(len(pictures) ** 0.5)))
    width, height = max(p.width for p in pictures) + gap, max(p.height for p in pictures) + gap
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (columns * width + gap, rows * height + gap), "white")
    for n, picture in enumerate(pictures):
        page.paste(picture.convert("RGB"), (gap + n % columns * width, gap + n // columns * height))
    return page


def with_sampling(sampler: Sampler, **changes: Any) -> Sampler:
    """The sampler with those of the changes that are not None."""
    return replace(sampler, **{key: value for key, value in changes.items() if value is not None})
