"""The door: what a script or a notebook uses. The verbs of the command line are thin on it.

N tokens of an item on a grid (t, h, w), C token channels, D model width. Media have no batch axis: pictures (C, H, W),
clips (C, T, H, W), sounds (samples,), in [-1, 1]. A user's mistake is a `UserError` of one line.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from djepa_mm.core.sampler import Sampler
from djepa_mm.errors import UserError
from djepa_mm.generation.edit import Edit, around, given_frames, in_paint, out_paint, replace_span, run_edits
from djepa_mm.generation.files import Generated, Results
from djepa_mm.generation.pipeline import Pipeline, with_sampling
from djepa_mm.generation.request import Request
from djepa_mm.layout import EXTENSIONS
from djepa_mm.ranks import launched, local_device
from djepa_mm.recipe.kinds import forget_schemas
from djepa_mm.recipe.load import Overrides, load_recipe
from djepa_mm.recipe.schema import Recipe
from djepa_mm.runs.log import run_console
from djepa_mm.training.callbacks import Callback
from djepa_mm.training.djepa import train as train_djepa
from djepa_mm.training.loop import Outcome
from djepa_mm.types import MediaSpec, Progress

Conditions = Mapping[str, Any] | Sequence[Mapping[str, Any]]
AnyMedia = Tensor | Generated | Path | str  # media, or a file of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The continuous tokens of one item, and its size."""

    values: Tensor  # (N, C), unit variance over the corpus
    spec: MediaSpec


class Model:
    """A trained model: generates, edits, encodes, and is measured."""

    def __init__(self, pipeline: Pipeline, run: Path) -> None:
        self.pipeline, self.run = pipeline, run

    @property
    def recipe(self) -> Recipe:
        """What it was trained by, every default written out."""
        return self.pipeline.recipe

    def generate(
        self,
        condition: Conditions | None = None,
        *,
        class_: str | int | Sequence[str | int] | None = None,
        text: str | Sequence[str] | None = None,
        count: int = 1,
        seconds: float | None = None,
        size: tuple[int, int] | None = None,
        aspect: float | None = None,
        offset: float | tuple[float, float] | None = None,
        negative: str | None = None,
        first_frames: Tensor | None = None,
        last_frames: Tensor | None = None,
        candidates: int = 1,
        recogniser: str = "auto",
        ar_steps: int | None = None,
        guidance: float | None = None,
        temperature: float | None = None,
        sweeps: int | None = None,
        seed: int = 0,
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> Results:
        """`count` items of each class, text or condition; of each that is usual, such as all classes, with none given.

        condition: by the keys of the model's kind of condition, such as {"class": "7"} or {"text": "…", "rate": 1.2};
        `class_` and `text` are short for those. seconds: duration, where the model lets one choose; by default what
        the condition takes. size: (height, width) in pixels, likewise. aspect: width / height, of about as many pixels
        as usual. offset: how far a picture is moved in the field of view of a model that has one, in sides of the
        field: along its shorter side, or (down, right). negative: a text that guidance leads away from, in the null
        condition's place. first_frames, last_frames: (C, k, H, W), frames that every clip begins or ends with.
        candidates: speak so many times and keep what the recogniser understands best. ar_steps: T. guidance: 1 is
        none. temperature: scale of the noise. sweeps: how often some of what is drawn is drawn anew. These four are the
        recipe's by default. The same seed gives the same items. Raises UserError for what this model cannot fulfil."""
        for name, value, least in (("count", count, 1), ("candidates", candidates, 1), ("batch", batch_size, 1)):
            if not isinstance(value, Integral) or value < least:
                raise UserError(f"--{name} {value}: give {least} or more")
        if aspect is not None:
            if size is not None:
                raise UserError("--size and --aspect: give one of the two")
            size = self.pipeline.size_of(aspect)
        conditions = self._away_from(negative, _conditions(condition, class_, text))
        extent: dict[str, Any] = {"duration_s": seconds, "size": size, "offset": offset}
        requests = self.pipeline.requests(conditions, count=count, seed=seed, **extent)
        sampler = self._sampler(ar_steps, guidance, temperature, sweeps)
        if candidates > 1:
            from djepa_mm.evaluate.candidates import best_of, recogniser_for

            texts = [str(request.condition.get("text", "")) for request in requests]
            listener = recogniser_for(self.pipeline, recogniser, texts)
            options = {"sampler": sampler, "batch_size": batch_size, "progress": progress}
            media = best_of(self.pipeline, requests, candidates, listener, **options)
        elif first_frames is not None or last_frames is not None:
            edits = [given_frames(self.pipeline, request, first=first_frames, last=last_frames) for request in requests]
            media = run_edits(self.pipeline, edits, sampler=sampler, batch_size=batch_size, progress=progress)
        else:
            media = self.pipeline(requests, sampler=sampler, batch_size=batch_size, progress=progress)
        return Results(self._shown(item, request) for item, request in zip(media, requests, strict=True))

    def edit(
        self,
        media: AnyMedia,
        condition: Mapping[str, Any] | None = None,
        *,
        class_: str | int | None = None,
        text: str | None = None,
        mask: Tensor | None = None,
        size: tuple[int, int] | None = None,
        extend: tuple[int, int, int, int] | None = None,
        start_s: float | None = None,
        stop_s: float | None = None,
        seconds: float | None = None,
        negative: str | None = None,
        ar_steps: int | None = None,
        guidance: float | None = None,
        temperature: float | None = None,
        sweeps: int | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Generated:
        """Paint anew what is True in `mask`, paint what lies around, or replace [start_s, stop_s) of a sound or clip;
        the rest stays as it is.

        mask: bool (H, W), or (T, H, W) of a clip. size: (height, width) to grow to on all sides; extend: by so many
        pixels to the left, top, right and bottom. start_s: None is the end of a sound: it goes on. seconds: length of
        what comes in; as long as what goes out by default. condition, class_, text: of the whole item after the edit;
        negative: a text that guidance leads away from. Raises UserError for a mask or times that do not fit, and for
        media that this model cannot take."""
        outward = size is not None or extend is not None
        original = self.read(media, sized=not outward)
        (wanted,) = self._away_from(negative, _conditions(condition, class_, text) or [{}])
        request = Request(condition=wanted, seed=(seed,))
        edit: Edit
        if outward:
            if (start_s, stop_s, seconds) != (None, None, None):
                raise UserError("--size and --extend: what grows in width and height keeps its time; leave times out")
            if size is not None and extend is not None:
                raise UserError("--size and --extend: give one of the two")
            sides = extend or around(self.pipeline, original, size or (0, 0))
            edit = out_paint(self.pipeline, original, request, sides, mask)
        elif mask is not None:
            if seconds is not None:
                raise UserError("--mask and --seconds: what is painted anew keeps its length; leave --seconds out")
            edit = in_paint(self.pipeline, original, request, mask, start_s=start_s, stop_s=stop_s)
        else:
            edit = replace_span(self.pipeline, original, request, start_s=start_s, stop_s=stop_s, new_s=seconds)
        sampler = self._sampler(ar_steps, guidance, temperature, sweeps)
        (edited,) = run_edits(self.pipeline, [edit], sampler=sampler, progress=progress)
        return self._shown(edited, request)

    @torch.no_grad()
    def encode(self, media: AnyMedia) -> Tokens:
        """An item's tokens. Raises UserError for media that this model cannot take."""
        item, tokenizer = self.read(media), self.pipeline.tokenizer
        spec = tokenizer.spec_of(tuple(item.shape))
        return Tokens(values=tokenizer.encode(item[None].to(self.pipeline.device))[0].cpu(), spec=spec)

    @torch.no_grad()
    def decode(self, tokens: Tokens) -> Generated:
        """The way back."""
        tokenizer = self.pipeline.tokenizer
        media = tokenizer.decode(tokens.values[None].to(self.pipeline.device), tokens.spec)[0].float().cpu()
        return Generated(media=media, title="decoded", kind=tokenizer.media)

    @torch.no_grad()
    def features(
        self,
        media: AnyMedia,
        condition: Mapping[str, Any] | None = None,
        *,
        class_: str | int | None = None,
        text: str | None = None,
    ) -> Tensor:
        """(N, D): the target encoder's features of every token of an item, all of them visible.

        Without a condition, where the model needs one, the null condition takes its place."""
        tokens = self.encode(media)
        wanted = _conditions(condition, class_, text)
        return self.pipeline.features(tokens.values, tokens.spec, wanted[0] if wanted else None).cpu()

    def evaluate(
        self,
        *,
        ar_steps: int | None = None,
        guidance: float | None = None,
        temperature: float | None = None,
        sweeps: int | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Figures beside held-out items of the corpus, ready for JSON; options as for `evaluate.report.evaluate_run`.

        Raises UserError where there is nothing to measure with."""
        from djepa_mm.evaluate.report import evaluate_run

        sampler = self._sampler(ar_steps, guidance, temperature, sweeps)
        return evaluate_run(self.run, self.pipeline, sampler=sampler, **options)

    def examples(self) -> Results:
        """What a run's sample sheets show, by its recipe's `run` section."""
        run = self.recipe.run
        requests = self.pipeline.examples(run.samples, run.texts, run.seed)
        media = self.pipeline(requests)
        return Results(self._shown(item, request) for item, request in zip(media, requests, strict=True))

    def read(self, media: AnyMedia, *, sized: bool = True) -> Tensor:
        """A file's media, or media themselves. Raises UserError for what this model cannot take, but for their size
        where they are not `sized` yet."""
        tokenizer = self.pipeline.tokenizer
        if isinstance(media, str | Path):
            shape = tokenizer.fixed.shape if sized and tokenizer.fixed is not None else None
            item = tokenizer.media.load(Path(media), shape)
            try:
                if sized:
                    tokenizer.spec_of(tuple(item.shape))
            except UserError as error:
                raise UserError(f"{media}: {error}") from None
            return item
        item = media.media if isinstance(media, Generated) else media
        if not isinstance(item, Tensor) or not item.is_floating_point():
            kind = item.dtype if isinstance(item, Tensor) else type(item).__name__
            raise UserError(f"expected a file, or media as a tensor of floats in [-1, 1], not {kind}")
        if not item.isfinite().all():
            raise UserError("media: some of the tensor's values are NaN or infinite; they are to be in [-1, 1]")
        if sized:
            tokenizer.spec_of(tuple(item.shape))
        return item

    def _away_from(self, negative: str | None, conditions: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """The conditions, of which guidance leads away from a text where one is given."""
        if negative is None:
            return conditions
        if any("negative" in one for one in conditions):
            raise UserError("--negative: the condition says a negative text too; give one of the two")
        return [{**one, "negative": negative} for one in conditions or self.pipeline.condition.usual_requests()]

    def _sampler(
        self, ar_steps: int | None, guidance: float | None, temperature: float | None, sweeps: int | None
    ) -> Sampler:
        sampler = self.pipeline.sampler
        return with_sampling(sampler, ar_steps=ar_steps, guidance=guidance, temperature=temperature, sweeps=sweeps)

    def _shown(self, media: Tensor, request: Request) -> Generated:
        title = self.pipeline.condition.title(request.condition)
        return Generated(media=media, title=title, kind=self.pipeline.tokenizer.media)


def load(run: Path | str, overrides: Overrides = (), *, device: torch.device | str = "auto") -> Model:
    """The newest checkpoint of a run folder, or the checkpoint folder itself.

    overrides: of keys of its recipe, such as {"sample.guidance": 2.0}. device: auto takes a GPU where there is one.
    Raises UserError where it is missing or damaged."""
    return Model(Pipeline.load(Path(run), overrides, find_device(device)), Path(run))


def train(
    recipe: Recipe | str | Path | Mapping[str, Any],
    out: Path | str | None = None,
    *,
    resume: bool = False,
    start: Path | str | None = None,
    device: torch.device | str = "auto",
    callbacks: Sequence[Callback] = (),
    stop: threading.Event | None = None,
    progress: bool = True,
) -> Outcome:
    """Train a recipe in the run folder `out`, runs/<the recipe's name> by default.

    resume: go on exactly where the run in the folder stopped. start: begin with the weights of that run. stop: an event
    that ends the run, with a checkpoint; in the main thread SIGINT and SIGTERM do so as well. progress: show a bar.
    Raises UserError for mistakes, and where `out` holds a run already."""
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    return train_djepa(
        loaded,
        Path("runs") / loaded.name if out is None else Path(out),
        resume=resume,
        start=None if start is None else Path(start),
        device=find_device(device),
        console=run_console(quiet=not progress),
        callbacks=callbacks,
        stop=stop,
    )


def extend(folder: Path | str) -> None:
    """Find kinds of condition, tokenizers and sources in a folder of one's own: `conditions/*.py`, `tokenizers/*.py`,
    `sources/*.py`. The environment variable DJEPA_MM_EXTENSIONS does the same for the command line.

    The files are programs: only from people you trust. Raises UserError where there is no such folder."""
    root = Path(folder).expanduser().resolve()
    if not root.is_dir():
        raise UserError(f"no folder at {str(folder)!r}; it holds conditions/, tokenizers/ or sources/")
    known = [path for path in os.environ.get(EXTENSIONS, "").split(os.pathsep) if path]
    if str(root) in known:
        return
    os.environ[EXTENSIONS] = os.pathsep.join([*known, str(root)])  # for processes that read data
    for name in ("conditions", "tokenizers", "data.sources"):
        own = root / name.split(".")[-1]
        if own.is_dir():
            importlib.import_module(f"djepa_mm.{name}").__path__.append(str(own))
    forget_schemas()


def find_device(name: torch.device | str) -> torch.device:
    """By name: auto, cpu, cuda or cuda:N; torchrun gives each process its own. Raises UserError where there is none."""
    if name == "auto" or (name == "cuda" and launched()):
        return local_device()
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: no CUDA device is visible here; djepa-mm doctor says more")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    return device


def _conditions(
    condition: Conditions | None,
    class_: str | int | Sequence[str | int] | None,
    text: str | Sequence[str] | None,
) -> list[Mapping[str, Any]]:
    """What is asked for, by keys; empty where nothing is. Raises UserError where it is said in two ways."""
    given = [name for name, value in (("condition", condition), ("class", class_), ("text", text)) if value is not None]
    if len(given) > 1:
        raise UserError(f"--{given[0]} and --{given[1]}: give one of the two")
    wanted: list[Any] = []
    if condition is not None:
        wanted = list(condition) if _several(condition) else [condition]
        for one in wanted:
            if not isinstance(one, Mapping):
                raise UserError(f"{one!r} is no condition: say of which kind it is, such as class_={one!r}")
    if class_ is not None:
        wanted = [{"class": str(name)} for name in (class_ if _several(class_) else [class_])]
    if text is not None:
        wanted = [{"text": one} for one in (text if _several(text) else [text])]
    if given and not wanted:
        raise UserError(f"--{given[0]}: an empty list asks for nothing; leave it out for what is usual")
    return wanted


def _several(value: object) -> TypeGuard[Iterable[Any]]:
    """Whether it is a list of some kind, and no single one."""
    return isinstance(value, Iterable) and not isinstance(value, str | Mapping)
