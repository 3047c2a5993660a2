"""Recipes of whatever kind: a model's, a tokenizer's, a vocoder's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from djepa_mm.recipe.load import Overrides, kind_of, load_as, read_source
from djepa_mm.recipe.schema import Recipe, schema_class
from djepa_mm.recipe.tokenizer import TokenizerRecipe, tokenizer_schema
from djepa_mm.recipe.vocoder import VocoderRecipe, vocoder_schema
from djepa_mm.types import UserError

AnyRecipe = Recipe | TokenizerRecipe | VocoderRecipe
SCHEMAS: Mapping[str | None, Any] = {None: schema_class, "tokenizer": tokenizer_schema, "vocoder": vocoder_schema}


def load_any(source: str | Path | Mapping[str, Any], overrides: Overrides = ()) -> AnyRecipe:
    """As `load_recipe`; its top-level `kind` tells of which kind it is."""
    recipe: AnyRecipe = load_as(SCHEMAS[kind_of(*read_source(source))](), source, overrides)
    return recipe


def with_tokenizer(recipe: AnyRecipe) -> Recipe | TokenizerRecipe:
    """The recipe. Raises UserError for one that says nothing of tokens."""
    if isinstance(recipe, VocoderRecipe):
        raise UserError(f"{recipe.name}: a vocoder's recipe has no tokenizer; take a model's or a tokenizer's recipe")
    return recipe


def forget_schemas() -> None:
    """So that the next recipe may name what is found since the last."""
    for schema in SCHEMAS.values():
        schema.cache_clear()
