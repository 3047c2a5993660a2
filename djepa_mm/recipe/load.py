"""From a YAML file, or a packaged recipe's name, to a recipe; and back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
import yaml
from pydantic import ValidationError

from djepa_mm.recipe.errors import problem, telling, yaml_problem
from djepa_mm.recipe.packaged import find_recipe
from djepa_mm.recipe.schema import Recipe, schema_class
from djepa_mm.types import FOLDERS, Config, SourceConfig, UserError
from djepa_mm.weights import trained_in

Schema = TypeVar("Schema", bound=Config)
Overrides = Sequence[str] | Mapping[str, Any]
KINDS = ("tokenizer", "vocoder")  # of recipes that are not a model's
WEIGHTS = ("path", "model")  # keys that name a folder of weights
MOST_BYTES = 1_000_000  # of a recipe's file
MOST_NODES = 1_000_000  # words, lists and mappings of a recipe, with aliases written out
LARGEST = 2**63 - 1  # whole number


class _Loader(yaml.SafeLoader):
    """YAML 1.2's idea of numbers (1e-4 is one), no dates, no key given twice, and no more than a recipe can need."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _size(node, {}) > MOST_NODES:
            raise yaml.constructor.ConstructorError(None, None, "aliases that stand for too much", node.start_mark)
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        try:
            value = super().construct_yaml_int(node)
        except ValueError:  # Python reads no more than thousands of digits
            value = LARGEST + 1
        if abs(value) > LARGEST:
            raise yaml.constructor.ConstructorError(None, None, "a whole number beyond 64 bits", node.start_mark)
        return value

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


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Nodes of a tree, those of an alias counted wherever it stands. known: by id; 0 of those that hold this one."""
    if id(node) not in known:
        known[id(node)] = 0
        value = node.value if isinstance(node, yaml.CollectionNode) else ()
        below = chain.from_iterable(value) if isinstance(node, yaml.MappingNode) else value
        known[id(node)] = 1 + sum(_size(one, known) for one in below)
    elif not known[id(node)]:
        raise yaml.constructor.ConstructorError(None, None, "it holds itself", node.start_mark)
    return known[id(node)]


def load_recipe(source: str | Path | Mapping[str, Any], overrides: Overrides = ()) -> Recipe:
    """Read, override and check a recipe: a file's path, a packaged name, or plain data built in Python.

    overrides: `a.b=c` with c in YAML, or a mapping of `a.b` to values. Raises UserError, one line, for any mistake."""
    return load_as(schema_class(), source, overrides)


def load_as(schema: type[Schema], source: str | Path | Mapping[str, Any], overrides: Overrides = ()) -> Schema:
    """As `load_recipe`, for any kind of recipe. A file's top-level `kind` tells those that are not for D-JEPA."""
    raw, origin = read_source(source)
    wanted = get_args(schema.model_fields["kind"].annotation)[0] if "kind" in schema.model_fields else None
    if (kind := kind_of(raw, origin)) != wanted:
        what, needed = ("a model" if one is None else f"the kind {one}" for one in (kind, wanted))
        if isinstance(source, Path) and (source.parent / "state.json").is_file():
            raise UserError(f"{source.parent}: a checkpoint of a run of {what}; give a run of {needed}")
        verb, name = "train" if kind is None else f"{kind} train", "RECIPE" if isinstance(source, Mapping) else source
        raise UserError(f"{origin}: a recipe of {what}; train it: djepa-mm {verb} {name}")
    if isinstance(overrides, Mapping):
        changes = [(key, deepcopy(value), f"{key}={value!r}") for key, value in overrides.items()]
    else:
        changes = [_parsed(override) for override in overrides]
    for key, value, shown in changes:
        _set(raw, key, value, shown)
    keys = [key for key, _, _ in changes]
    for key, _, shown in changes:
        if not isinstance(overrides, Mapping) and wants_text(schema, raw, key):
            _set(raw, key, shown.partition("=")[2], shown)  # as it was typed: 2024 is a name here
    return parse_recipe(schema, raw, origin, keys)


def as_trained(recipe: Recipe, checkpoint: Path, overrides: Overrides = ()) -> Recipe:
    """A checkpoint's recipe as it is seen from the folder that the run was trained in, where that is known: its corpus,
    and the weights of its tokenizer and its text encoder; but for what overrides give."""
    if (folder := trained_in(checkpoint)) is None:
        return recipe
    given = _given(overrides)
    sections = {
        name: _weights_from(folder, getattr(recipe, name), name, given)
        for name in ("tokenizer", "condition")
        if name not in given
    }
    return recipe.model_copy(update={**sections, "data": trained_on(recipe.data, checkpoint, overrides)})


def trained_on(data: SourceConfig, checkpoint: Path, overrides: Overrides = ()) -> SourceConfig:
    """The same of a corpus alone."""
    if (folder := trained_in(checkpoint)) is None:
        return data
    given = _given(overrides)
    return data.seen_from(folder, [field for field in FOLDERS if not {f"data.{field}", "data"} & given])


def _given(overrides: Overrides) -> set[str]:
    return {override.partition("=")[0].strip() for override in overrides}  # of text or of keys


def _weights_from(folder: Path, section: Config, name: str, given: set[str]) -> Config:
    """Names of weights that are no folders there, such as those of a hub, stay as they are."""
    places: dict[str, Any] = {}
    for key in type(section).model_fields:
        value, place = getattr(section, key), f"{name}.{key}"
        if place in given:
            continue
        if isinstance(value, Config):
            places[key] = _weights_from(folder, value, place, given)
        elif key in WEIGHTS and isinstance(value, str) and (folder / value).exists():
            places[key] = str(folder / value)
    return section.model_copy(update=places) if places else section


def wants_text(schema: type[Config], raw: Mapping[str, Any], key: str) -> bool:
    """Whether what stands at a key is no text, and has to be one."""
    try:
        schema.model_validate_json(_json(raw))
    except ValidationError as error:
        places = (".".join(str(part) for part in one["loc"]) for one in error.errors() if one["type"] == "string_type")
        names = key.split(".")
        return any([part for part in place.split(".") if part in names] == names for place in places)
    return False


def kind_of(raw: Mapping[str, Any], origin: str) -> str | None:
    """What a recipe's top-level `kind` says; None for a model's. Raises UserError for one that there is not."""
    kind = raw.get("kind")
    if kind is not None and kind not in KINDS:
        raise UserError(f"{origin}: kind: expected {' or '.join(KINDS)}, or none for a model, got {kind!r}")
    return kind


def read_source(source: str | Path | Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """A recipe as plain data, and what an error names as its file."""
    if isinstance(source, Mapping):
        return json.loads(_json(source)), "recipe"
    path = find_recipe(str(source))
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise UserError(f"{path}: {size:,} bytes, and no recipe has more than {MOST_BYTES:,}; is it another file?")
        raw = parse_value(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: {yaml_problem(error)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a recipe is a mapping of sections, not {type(raw).__name__}")
    return raw, str(path)


def parse_recipe(schema: type[Schema], raw: Mapping[str, Any], origin: str, overridden: Sequence[str] = ()) -> Schema:
    """Check a recipe given as plain data; `origin` is what an error names as its file, but for overridden keys."""
    try:
        return schema.model_validate_json(_json(raw))
    except ValidationError as error:
        raise UserError(problem(telling(error.errors()), schema, origin, overridden)) from None


def dump_recipe(recipe: Config) -> str:
    """YAML of the resolved recipe, every default written out."""
    return yaml.safe_dump(recipe_data(recipe), sort_keys=False, allow_unicode=True)


def recipe_data(recipe: Config) -> dict[str, Any]:
    return json.loads(recipe.model_dump_json(serialize_as_any=True))


def _parsed(override: str) -> tuple[str, Any, str]:
    """`a.b=c` -> key, value and how it was written."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {override}: write it as section.key=value, e.g. --set optim.lr=1e-4")
    try:
        return key.strip(), parse_override(text), override
    except yaml.YAMLError as error:
        raise UserError(f"--set {override}: {yaml_problem(error)}") from None


def parse_override(text: str) -> Any:
    """As `parse_value`; but nobody writes a comment on the command line, so a # is part of a text."""
    value = parse_value(text)
    return text.strip() if isinstance(value, str) and " #" in text and text.strip()[:1] not in "'\"" else value


def parse_value(text: str) -> Any:
    """A value as recipes have it. Raises yaml.YAMLError."""
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None


def _json(raw: Mapping[str, Any]) -> str:
    """Of a recipe as plain data, with paths as their text and NumPy's numbers as Python's. Raises UserError for what
    else is not plain."""

    def plain(value: object) -> Any:
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, np.generic):
            return value.item()
        raise UserError(f"a recipe is plain data, words, numbers and lists of them, and not {value!r}")

    try:
        return json.dumps(raw, default=plain)
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError("a recipe is plain data, and this one holds itself") from None


def _set(raw: dict[str, Any], key: str, value: Any, shown: str) -> None:
    *parents, last = key.split(".")
    place = raw
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise UserError(f"--set {shown}: {parent!r} holds a value, not a section")
    place[last] = value
