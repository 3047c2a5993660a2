"""Where recipes lie: those that come with the package, and a user's own. Nothing heavy is imported to find them."""

from __future__ import annotations

import difflib
from pathlib import Path

from djepa_mm.errors import UserError
from djepa_mm.layout import part_folder

FOLDER = part_folder("recipes")


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
