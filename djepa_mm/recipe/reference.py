"""docs/recipes.md, out of the schema: `python -m djepa_mm.recipe.reference > docs/recipes.md`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from djepa_mm.recipe.packaged import packaged_recipes
from djepa_mm.recipe.schema import schema_class
from djepa_mm.recipe.tokenizer import tokenizer_schema
from djepa_mm.recipe.vocoder import vocoder_schema

Schema = Mapping[str, Any]  # a JSON schema, or a part of one

HEAD = """# Recipes

One YAML file is one experiment. `djepa-mm recipes copy digits mine.yaml` takes one to change, `djepa-mm recipes
validate mine.yaml` checks it, and `--set optim.lr=1e-4` overrides a key without a file; in Python, that is
`load_recipe("digits", {"optim.lr": 1e-4})`. An unknown key, a wrong type or a value out of range is an error of one
line that names it. What is possible with folders of one's own is in [extending.md](extending.md).

Sections that two recipes share are shown once. This page is generated from the schema:
`python -m djepa_mm.recipe.reference > docs/recipes.md`."""


def reference() -> str:
    """The whole page, in Markdown."""
    lines = [HEAD, "", "## Packaged recipes", "", "| name | what |", "|---|---|"]
    for name, path in packaged_recipes().items():
        first = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        lines.append(f"| [`{name}`](../recipes/{name}.yaml) | {first} |")
    shown: set[str] = set()
    recipes = {
        "A recipe": schema_class(),
        "A tokenizer's recipe": tokenizer_schema(),
        "A vocoder's recipe": vocoder_schema(),
    }
    for title, schema in recipes.items():
        whole = schema.model_json_schema()
        lines += ["", f"## {title}", "", whole["description"], *_section("", whole, whole["$defs"], shown)]
    return "\n".join(lines) + "\n"


def _section(path: str, schema: Schema, known: Mapping[str, Schema], shown: set[str]) -> Iterator[str]:
    """A table of the keys, and after it the sections that some of them hold, but for those that were shown before."""
    rows, inner = [], []
    needed = schema.get("required", ())
    for key, value in schema["properties"].items():
        options = _configs(value, known)
        if options:
            inner.append((f"{path}.{key}".lstrip("."), options))
        about = " ".join(value.get("description", "").split()).replace("|", "\\|")
        if "const" in value and path:
            continue  # it is in the heading
        if key in needed:
            default = "needed"
        elif options and value.get("default") is not None:
            default = "its own defaults"
        else:
            default = f"`{json.dumps(value.get('default'), ensure_ascii=False)}`"
        rows.append(f"| `{key}` | {_section_type(value) if options else _type(value)} | {default} | {about} |")
    yield from ("", "| key | type | default | |", "|---|---|---|---|", *rows) if rows else ()
    for name, options in inner:
        for option in options:
            if option["title"] in shown:
                continue
            shown.add(option["title"])
            tag = next((f"{k}: {v['const']}" for k, v in option["properties"].items() if "const" in v), None)
            yield from ("", f"### `{name}`" + (f", `{tag}`" if tag else ""))
            if about := option.get("description", ""):
                yield from ("", about)
            yield from _section(name, option, known, shown)


def _configs(value: Schema, known: Mapping[str, Schema]) -> list[Schema]:
    """The sections that a key may hold, in the order of their names; none where it holds a plain value."""
    parts = [value, *value.get("oneOf", ()), *value.get("anyOf", ())]
    parts += [part["items"] for part in parts if "items" in part]
    names = [part["$ref"].split("/")[-1] for part in parts if "$ref" in part]
    return [known[name] for name in sorted(names) if "properties" in known[name]]


def _section_type(value: Schema) -> str:
    parts = (value, *value.get("anyOf", ()))
    return "a list of sections" if any("items" in part for part in parts) else "a section"


def _type(value: Schema) -> str:
    """What a plain value has to be, in a few words."""
    if "anyOf" in value:
        return " or ".join(_type(option) for option in value["anyOf"])
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{option}`" for option in value["enum"])
    if value["type"] == "array":
        parts = value.get("prefixItems")
        return f"{len(parts)} × {_type(parts[0])}" if parts else f"list of {_type(value['items'])}"
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    limits = [f"{sign} {value[name]:g}" for name, sign in signs.items() if name in value]
    words = {"string": "text", "boolean": "`true`, `false`", "null": "`null`", "object": "values by name"}
    return f"{words.get(value['type'], value['type'])} {' and '.join(limits)}".strip()


if __name__ == "__main__":
    print(reference(), end="")
