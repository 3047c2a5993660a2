"""What a recipe builds."""

from __future__ import annotations

from djepa_mm.cli.options import RecipeArgument, SetOption, console


def info(recipe: RecipeArgument, set_: SetOption = None) -> None:
    """What a recipe builds: parameters by part, tokens, FLOPs and memory. Nothing is allocated or trained."""
    from djepa_mm.recipe.describe import describe
    from djepa_mm.recipe.kinds import load_any

    console().print(describe(load_any(recipe, set_ or [])))
