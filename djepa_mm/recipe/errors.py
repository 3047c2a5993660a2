"""What is wrong with a recipe, in one line: file, key, value, what was expected, the nearest valid name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any, get_args

import yaml
from pydantic import BaseModel
from pydantic_core import ErrorDetails

from djepa_mm.layout import EXTENSIONS

MOST_SHOWN = 200  # characters of a value
TYPE = re.compile(r"(literal|dict|list|tuple)\[.*\]")  # one of a union's, among the keys that pydantic names


def yaml_problem(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        return f"{where}{error.problem} (plain YAML only)"
    return " ".join(str(error).split())


def telling(errors: Sequence[ErrorDetails]) -> ErrorDetails:
    """The first, or, of a value that may be of several types, the one of the type that it is most like."""
    first, *rest = errors
    *place, last = first["loc"] or ("",)
    if not TYPE.fullmatch(str(last)):
        return first
    of_types = [first, *(one for one in rest if list(one["loc"][: len(place)]) == place)]
    return max(of_types, key=lambda one: len(one["loc"]))


def problem(error: ErrorDetails, schema: type[BaseModel], origin: str, overridden: Sequence[str]) -> str:
    """One line: file, key, value, what was expected, nearest valid name."""
    models, keys = [schema], []
    for part in error["loc"]:
        if TYPE.fullmatch(str(part)) and error["type"] != "extra_forbidden":  # which is said of a key
            continue
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
    where = f"--set {key}" if key in overridden else f"{origin}: {key}" if key else origin
    kind, value = error["type"], error["input"]
    shown = repr(value)
    if len(shown) > MOST_SHOWN:
        shown = f"{shown[:MOST_SHOWN]}…"
    if kind == "extra_forbidden":
        known = sorted({name for m in models for name in m.model_fields})
        near = difflib.get_close_matches(keys[-1], known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{where}: unknown key (value {shown}); {hint}Known here: {', '.join(known)}"
    if kind == "missing":
        return f"{where}: this key is required and is not there"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag = error["ctx"]["discriminator"].strip("'")
        tags = error["ctx"].get("expected_tags", "")
        given = error["ctx"].get("tag")
        near = difflib.get_close_matches(str(given), tags.replace("'", "").split(", "), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        if given is None:
            return f"{where}.{tag}: required"
        own = "" if hint else f"; what is in a folder of your own is found by {EXTENSIONS}=FOLDER"
        return f"{where}.{tag}: expected {tags or 'one'}, got {given!r}{hint or own}"
    if kind == "value_error":
        return f"{origin}: {error['ctx']['error']}"
    if kind == "literal_error":
        near = difflib.get_close_matches(str(value), re.findall("'([^']*)'", error["ctx"]["expected"]), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{where}: expected {error['ctx']['expected']}, got {shown}{hint}"
    message = (
        error["msg"]
        .replace("Input should be", "expected")
        .replace("String should have", "expected")
        .replace("a valid integer", "an integer")
        .replace("valid ", "")
    )
    return f"{where}: {message}, got {shown}"


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Every pydantic model in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _tags(model: type[BaseModel]) -> set[str]:
    fields = (model.model_fields.get(name) for name in ("kind", "source"))
    return {tag for f in fields if f is not None for tag in get_args(f.annotation)}
