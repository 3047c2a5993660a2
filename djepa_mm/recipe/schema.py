"""Recipes: one YAML file is one runnable experiment. Strict, typed, and clear about mistakes.

The `data` and `tokenizer` sections are defined beside the source or tokenizer that they build; they are found by
looking through `djepa_mm.data.sources` and `djepa_mm.tokenizers`, so a new modality needs no change here.
"""

from __future__ import annotations

import difflib
import importlib
import json
import pkgutil
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic_core import ErrorDetails

from djepa_mm.core.masking import Order, Schedule
from djepa_mm.layout import part_folder
from djepa_mm.types import Config, UserError

Schema = TypeVar("Schema", bound=Config)
Probability = Annotated[float, Field(ge=0, le=1)]
FOLDER = part_folder("recipes")


# --- sections ---------------------------------------------------------------------------------------------------------


class NoConditionConfig(Config):
    kind: Literal["none"]
    buffer_tokens: PositiveInt = 64
    """Learned tokens at the head of the context encoder's sequence."""

    @property
    def drop(self) -> float:
        return 0.0


class ClassConditionConfig(Config):
    kind: Literal["class"]
    buffer_tokens: PositiveInt = 64
    """Learned tokens at the head of the context encoder's sequence; each carries the class."""
    classes: PositiveInt | None = None
    """How many classes the corpus has to have; given, the model's size is known without the corpus."""
    drop: Probability = 0.1
    """Probability that the class is dropped in training; guidance needs it above 0."""


class TextConditionConfig(Config):
    kind: Literal["text"]
    units: Literal["characters", "phonemes"] = "characters"
    """What the model reads: the text's own characters, or the phonemes that espeak-ng finds for its English words."""
    characters: Annotated[str, Field(min_length=1)]
    """Every unit that the model knows. Other characters are left out of training texts and refused in generation."""
    normalize: Literal["english", "none"] = "english"
    """Write numbers, years, money, abbreviations and the like out as English words first."""
    lowercase: bool = True
    """Fold texts to lower case."""
    sentences: bool = False
    """Generate long texts sentence by sentence, and join the parts in time."""
    layout: Literal["paced", "stretched", "plain"] = "paced"
    """Lay the symbols along the media's time axis, each as long as it is expected to last or evenly; or count them."""
    buffer_tokens: PositiveInt = 4
    """Learned tokens at the head of the context encoder's sequence."""
    drop: Probability = 0.1
    """Probability that the text is dropped in training; guidance needs it above 0."""


class ModelConfig(Config):
    preset: Literal["tiny", "small", "base", "large", "huge"]
    """Sizes of encoder, predictor and head; what is given beside it wins."""
    width: PositiveInt | None = None
    depth: PositiveInt | None = None
    """Blocks of the context encoder, and as many of the predictor."""
    heads: PositiveInt | None = None
    mlp_ratio: PositiveFloat = 4.0
    dropout: Probability = 0.0
    """In attention, projections and MLPs."""
    streams: Literal["one", "two"] = "one"
    """One set of weights for the whole sequence, or one for the condition and one for the media (for texts)."""
    positions: Literal["learned", "rotary", "both"] = "learned"
    """A learned table over the tokenizer's fixed grid, rotary angles, or both of them."""
    axes: Annotated[tuple[Literal["t", "h", "w"], ...], Field(min_length=1)] = ("t", "h", "w")
    """Axes that rotary positions turn on."""
    rotary_base: Annotated[float, Field(gt=1)] = 10_000.0
    """The slowest frequency turns about so many times more slowly than the fastest; small for a small grid."""

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        width, heads = self.size("width"), self.size("heads")
        if width % heads:
            raise ValueError(f"model.width {width} does not divide into model.heads {heads}: choose a multiple")
        if width // heads % 2 and self.positions != "learned":
            raise ValueError(f"rotary positions need heads of an even width, not {width // heads}")
        return self

    def size(self, name: str) -> int:
        return getattr(self, name, None) or PRESETS[self.preset][name]

    @property
    def fixed_grid(self) -> bool:
        """Whether all media must have one grid of tokens."""
        return self.positions != "rotary"


PRESETS = {
    "tiny": {"width": 128, "depth": 4, "heads": 4, "head_blocks": 3, "head_width": 256},
    "small": {"width": 256, "depth": 4, "heads": 4, "head_blocks": 3, "head_width": 512},
    # D-JEPA's models for ImageNet 256² (method: table of sizes)
    "base": {"width": 768, "depth": 12, "heads": 12, "head_blocks": 6, "head_width": 1024},
    "large": {"width": 1024, "depth": 24, "heads": 16, "head_blocks": 8, "head_width": 1280},
    "huge": {"width": 1280, "depth": 32, "heads": 16, "head_blocks": 12, "head_width": 1536},
}


class FlowConfig(Config):
    kind: Literal["flow"]
    blocks: PositiveInt | None = None
    width: PositiveInt | None = None
    repeats: PositiveInt = 4
    """How often each masked token is used in a step, with fresh noise and time."""
    time_sampling: Literal["uniform", "logit-normal"] = "logit-normal"
    time_mean: float = 0.0
    """Of the logit-normal times in training; below 0 is nearer to noise, for tokens of many alike channels."""
    steps: PositiveInt = 25
    """Solver steps to sample a token."""
    solver: Literal["euler", "heun"] = "euler"
    predicts: Literal["velocity", "data"] = "velocity"
    """What the MLP gives, with the same loss; data suits tokens of many channels, such as raw pixels."""
    time_shift: PositiveFloat = 1.0
    """s of t ← t / (t + s − s·t) at sampling; above 1 spends more steps near the noise."""


class DiffusionConfig(Config):
    kind: Literal["diffusion"]
    blocks: PositiveInt | None = None
    width: PositiveInt | None = None
    repeats: PositiveInt = 4
    """How often each masked token is used in a step, with fresh noise and time."""
    steps: Annotated[int, Field(ge=2, le=1000)] = 100
    """Respaced steps to sample a token."""
    solver: Literal["ddpm", "dpm-solver++"] = "ddpm"


class MaskConfig(Config):
    mean: PositiveFloat = 1.0
    std: PositiveFloat = 0.25
    low: Annotated[float, Field(gt=0, le=1)] = 0.7
    high: Annotated[float, Field(gt=0, le=1)] = 1.0
    orders: Annotated[tuple[Order, ...], Field(min_length=1, strict=False)] = ("random",)
    """What is hidden is what such an order of sampling would reveal last; of several, one is drawn for each batch."""
    horizon: PositiveInt | None = None
    """Predict only so many of the hidden tokens, those that the order would reveal next, and leave the others out of
    the sequence: for orders that go one frame after the other. All of them where it is not given."""
    start: Probability = 0.0
    """Share of the batches in which less than the horizon is known. The condition shows most at the start, and such
    batches are short."""

    @model_validator(mode="after")
    def _check(self) -> MaskConfig:
        if self.low > self.high:
            raise ValueError(f"mask.low {self.low} is above mask.high {self.high}")
        if self.start and self.horizon is None:
            raise ValueError(f"mask.start {self.start:g} needs mask.horizon, the length of the start")
        return self


class LossConfig(Config):
    generation: NonNegativeFloat = 1.0
    prediction: NonNegativeFloat = 1.0
    """0 gives MAR: no target encoder in the loss."""


class OptimConfig(Config):
    steps: PositiveInt
    minutes: PositiveFloat | None = None
    """End after this much training even if steps are left; the schedule follows whichever is further on."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon moves the blocks' matrices by Muon (Jordan et al. 2024) and the rest by AdamW: fewer steps, each dearer."""
    lr: PositiveFloat = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up; cosine falls to a fiftieth of lr."""
    warmup_steps: NonNegativeInt = 100
    betas: tuple[Probability, Probability] = (0.9, 0.95)
    weight_decay: NonNegativeFloat = 0.02
    """Not on biases, norms, embeddings and the head."""
    clip: PositiveFloat = 3.0
    """Largest norm of the gradient."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    """Of the target encoder and the sampling weights, after their warm-up."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Of the matrix products; losses, averages and solvers are always fp32."""


class BatchConfig(Config):
    size: PositiveInt
    """Most items in a batch."""
    tokens: PositiveInt | None = None
    """Most tokens in a batch, padding counted. Batches hold items of like length."""
    cache: bool = False
    """Tokenize the corpus once, before training, and keep the tokens in memory."""
    workers: NonNegativeInt = 0
    """Processes that read items; they have nothing to do where the corpus is cached."""
    max_broken_share: Probability = 0.05
    """Stop when more than this share of the corpus cannot be read."""


class SampleConfig(Config):
    steps: PositiveInt = 64
    """T, autoregressive steps."""
    guidance: NonNegativeFloat = 1.0
    guidance_schedule: Literal["constant", "linear"] = "linear"
    temperature: NonNegativeFloat = 1.0
    order: Order = "random"
    """In which places are revealed: anywhere, one t after the other, all t of a place together, or as numbered."""
    schedule: Schedule = "cosine"
    """How many places a step reveals: few at first, or always about as many."""


class RunConfig(Config):
    seed: NonNegativeInt = 0
    log_every: PositiveInt = 20
    """Steps between lines in log.jsonl and TensorBoard."""
    sample_every: PositiveInt | None = None
    """Steps between sample sheets; none but the last where it is not given."""
    samples: PositiveInt = 16
    """Items on a sample sheet."""
    texts: tuple[str, ...] = ()
    """What the samples say, for a text condition."""
    save_every: PositiveInt = 1000
    """Steps between checkpoints."""
    keep: PositiveInt = 2
    """Checkpoints kept."""


class Recipe(Config):
    """One experiment: what the data is, how it becomes tokens, which model learns them, and how it samples."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Names the run folder, runs/<name>."""
    data: Any  # a SourceConfig; `schema_class` puts the union of those that are there
    tokenizer: Any  # a TokenizerConfig, likewise
    condition: Annotated[ClassConditionConfig | TextConditionConfig | NoConditionConfig, Field(discriminator="kind")]
    model: ModelConfig
    head: Annotated[FlowConfig | DiffusionConfig, Field(discriminator="kind")]
    mask: MaskConfig = MaskConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig
    batch: BatchConfig
    sample: SampleConfig = SampleConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.condition.kind == "text" and self.model.fixed_grid:
            raise ValueError("a text condition has no fixed grid: set model.positions to rotary")
        if self.condition.kind == "text" and "t" not in self.model.axes:
            raise ValueError("a text condition lies on the time axis: add t to model.axes")
        if self.sample.guidance != 1 and self.condition.drop == 0:
            raise ValueError(
                f"sample.guidance {self.sample.guidance} needs a model trained without its condition too: "
                "set condition.drop above 0, or sample.guidance to 1"
            )
        if self.loss.generation == 0:
            raise ValueError("loss.generation 0 trains no head to sample with: set it above 0")
        return self


def sections(package: str, tag: str) -> Any:
    """Union of every Config in a package's modules that has a literal field `tag`."""
    found: list[type[Config]] = []
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        module = importlib.import_module(f"{package}.{info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Config) and value.__module__ == module.__name__:
                field = value.model_fields.get(tag)
                if field is not None and get_origin(field.annotation) is Literal:
                    found.append(value)
    if len(found) == 1:
        return found[0]
    return Annotated[Union[tuple(found)], Field(discriminator=tag)]  # noqa: UP007


@cache
def schema_class() -> type[Recipe]:
    """The recipe's model with all sources and tokenizers that are there."""
    return create_model(
        "Recipe",
        __base__=Recipe,
        __doc__=Recipe.__doc__,
        data=(sections("djepa_mm.data.sources", "source"), ...),
        tokenizer=(sections("djepa_mm.tokenizers", "kind"), ...),
    )


# --- reading ----------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML 1.2's idea of numbers (1e-4 is one), no dates, and no key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not a word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def packaged_recipes() -> dict[str, Path]:
    """Recipes that come with the package, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """A file's path, or the name of a packaged recipe (`digits`, `recipes/digits.yaml`)."""
    path = Path(name)
    if path.is_file():
        return path
    packaged = packaged_recipes()
    if path.stem in packaged and path.suffix in ("", ".yaml") and str(path.parent) in (".", "recipes"):
        return packaged[path.stem]
    near = difflib.get_close_matches(path.stem, packaged, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(f"no recipe {name!r}: {hint}A recipe is a YAML file or one of {', '.join(packaged)}")


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override (`a.b=c`, c in YAML) and check a recipe. Raises UserError, one line, for any mistake."""
    return load_as(schema_class(), name, overrides)


def load_as(schema: type[Schema], name: str | Path, overrides: Sequence[str] = ()) -> Schema:
    """As `load_recipe`, for any kind of recipe. A file's top-level `kind` tells those that are not for D-JEPA."""
    path = find_recipe(str(name))
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: {_yaml_problem(error)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a recipe is a mapping of sections, not {type(raw).__name__}")
    if (kind := raw.get("kind")) is not None and "kind" not in schema.model_fields:
        raise UserError(f"{path}: a recipe of the kind {kind}; train it: djepa-mm {kind} train {name}")
    for override in overrides:
        _apply(raw, override)
    return parse_recipe(schema, raw, str(path), overrides)


def parse_recipe(schema: type[Schema], raw: dict[str, Any], origin: str, overrides: Sequence[str] = ()) -> Schema:
    """Check a recipe given as plain data; `origin` is what an error names as its file."""
    try:
        return schema.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        raise UserError(_problem(error.errors()[0], schema, origin, overrides)) from None


def dump_recipe(recipe: Config) -> str:
    """YAML of the resolved recipe, every default written out."""
    return yaml.safe_dump(recipe_data(recipe), sort_keys=False, allow_unicode=True)


def recipe_data(recipe: Config) -> dict[str, Any]:
    return json.loads(recipe.model_dump_json(serialize_as_any=True))


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {override}: write it as section.key=value, e.g. --set optim.lr=1e-4")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override}: {_yaml_problem(error)}") from None
    *parents, last = key.strip().split(".")
    place = raw
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise UserError(f"--set {override}: {parent!r} holds a value, not a section")
    place[last] = value


# --- errors -----------------------------------------------------------------------------------------------------------


def _yaml_problem(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        return f"{where}{error.problem} (plain YAML only)"
    return " ".join(str(error).split())


def _problem(error: ErrorDetails, schema: type[BaseModel], origin: str, overrides: Sequence[str]) -> str:
    """One line: file, key, value, what was expected, nearest valid name."""
    models, keys = [schema], []
    for part in error["loc"]:
        tagged = [m for m in models if part in _tags(m)]
        if tagged and not any(part in m.model_fields for m in models):
            models = tagged  # a union's tag, not a key
            continue
        keys.append(str(part))
        if part != error["loc"][-1]:
            models = [
                n for m in models if part in m.model_fields for n in _models(m.model_fields[str(part)].annotation)
            ]
    key = ".".join(keys)
    by_override = any(o.split("=")[0].strip() == key for o in overrides)
    where = f"--set {key}" if by_override else f"{origin}: {key}" if key else origin
    kind, value = error["type"], error["input"]
    if kind == "extra_forbidden":
        known = sorted({name for m in models for name in m.model_fields})
        near = difflib.get_close_matches(keys[-1], known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{where}: unknown key (value {value!r}); {hint}Known here: {', '.join(known)}"
    if kind == "missing":
        return f"{where}: this key is required and is not there"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag = error["ctx"]["discriminator"].strip("'")
        tags = error["ctx"].get("expected_tags", "")
        given = error["ctx"].get("tag")
        near = difflib.get_close_matches(str(given), tags.replace("'", "").split(", "), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{where}.{tag}: expected {tags or 'one'}, got {given!r}{hint}" if given else f"{where}.{tag}: required"
    if kind == "value_error":
        return f"{origin}: {error['ctx']['error']}"
    if kind == "literal_error":
        near = difflib.get_close_matches(str(value), error["ctx"]["expected"].replace("'", "").split(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{where}: expected {error['ctx']['expected']}, got {value!r}{hint}"
    message = error["msg"].replace("Input should be", "expected").replace("valid ", "")
    return f"{where}: {message}, got {value!r}"


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Every pydantic model in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _tags(model: type[BaseModel]) -> set[str]:
    fields = (model.model_fields.get(name) for name in ("kind", "source"))
    return {tag for f in fields if f is not None for tag in get_args(f.annotation)}
