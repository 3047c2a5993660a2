"""List, show, copy and check recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from djepa_mm.cli.options import RecipeArgument, SetOption
from djepa_mm.errors import UserError

app = typer.Typer(help="The recipes that come with the package, and the checking of yours.", no_args_is_help=True)


@app.command("list")
def list_recipes() -> None:
    """Name and first line of every packaged recipe."""
    from djepa_mm.recipe.packaged import packaged_recipes

    for name, path in packaged_recipes().items():
        typer.echo(f"{name:<16} {path.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}")


@app.command("show")
def show_recipe(
    recipe: RecipeArgument,
    set_: SetOption = None,
    resolved: Annotated[bool, typer.Option("--resolved", help="With every default written out.")] = False,
) -> None:
    """Print a recipe."""
    from djepa_mm.recipe.packaged import find_recipe

    if resolved or set_:
        from djepa_mm.recipe.kinds import load_any
        from djepa_mm.recipe.load import dump_recipe

        typer.echo(dump_recipe(load_any(recipe, set_ or [])), nl=False)
    else:
        path = find_recipe(recipe)
        try:
            typer.echo(path.read_text(encoding="utf-8"), nl=False)
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: cannot be read: {error}") from None


@app.command("copy")
def copy_recipe(
    recipe: RecipeArgument, target: Annotated[Path, typer.Argument(help="File or folder.")] = Path()
) -> None:
    """Copy a packaged recipe, to change it."""
    import shutil

    from djepa_mm.recipe.packaged import find_recipe

    source = find_recipe(recipe)
    path = target / source.name if target.is_dir() else target
    if path.exists():
        raise UserError(f"{path}: is there already; choose another name")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent}: no such folder")
    shutil.copyfile(source, path)
    typer.echo(path)


@app.command("validate")
def validate_recipe(recipe: RecipeArgument, set_: SetOption = None) -> None:
    """Check a recipe without running it."""
    from djepa_mm.recipe.kinds import load_any

    typer.echo(f"{load_any(recipe, set_ or []).name}: valid")


@app.command("schema")
def print_schema() -> None:
    """JSON schema of recipes, for editors."""
    import json

    from djepa_mm.recipe.schema import schema_class

    typer.echo(json.dumps(schema_class().model_json_schema(), indent=2, ensure_ascii=False))
