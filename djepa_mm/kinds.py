"""The kinds of one thing that there are, each a Config with a literal field in its own module: found, not listed."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Annotated, Any, Literal, Union, get_origin

from pydantic import Field

from djepa_mm.types import Config, UserError


def sections(tag: str, *packages: str) -> Any:
    """Union of every Config in the packages' modules that has a literal field `tag`.

    Raises UserError for a module that cannot be imported, such as one of the user's own."""
    found: list[type[Config]] = []
    for package in packages:
        for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
            try:
                module = importlib.import_module(f"{package}.{info.name}")
            except Exception as error:  # a file of the user's own may do anything
                reason = " ".join(str(error).split()) or type(error).__name__
                raise UserError(f"{info.name}.py, a part of {package}, cannot be imported: {reason}") from error
            for value in vars(module).values():
                if isinstance(value, type) and issubclass(value, Config) and value.__module__ == module.__name__:
                    field = value.model_fields.get(tag)
                    if field is not None and get_origin(field.annotation) is Literal:
                        found.append(value)
    if len(found) == 1:
        return found[0]
    return Annotated[Union[tuple(found)], Field(discriminator=tag)]  # noqa: UP007
