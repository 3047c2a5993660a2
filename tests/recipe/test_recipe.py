from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support import ROOT, ten_classes

from djepa_mm.recipe.build import build_model, build_sampler, check_memory
from djepa_mm.recipe.kinds import load_any
from djepa_mm.recipe.load import dump_recipe, load_recipe, parse_value
from djepa_mm.recipe.packaged import find_recipe, packaged_recipes
from djepa_mm.recipe.schema import Recipe, schema_class
from djepa_mm.recipe.tokenizer import TokenizerRecipe, load_tokenizer_recipe
from djepa_mm.tokenizers.autoencoder import Autoencoder
from djepa_mm.types import RawTokens, UserError

KINDS = {name: type(load_any(name)) for name in packaged_recipes()}
RECIPES = sorted(name for name, kind in KINDS.items() if issubclass(kind, Recipe))
TOKENIZERS = sorted(name for name, kind in KINDS.items() if issubclass(kind, TokenizerRecipe))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_loads_and_builds(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    tokenizer = recipe.tokenizer.build()
    with torch.device("meta"):
        model = build_model(recipe, tokenizer, ten_classes(recipe))
    assert sum(p.numel() for p in model.online.parameters()) > 1e6
    assert build_sampler(recipe).ar_steps == recipe.sample.steps


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_tokenizer_loads_and_builds(name: str, tmp_path: Path) -> None:
    recipe = load_tokenizer_recipe(name)
    assert recipe.name == name
    raw = recipe.tokenizer.build()
    assert isinstance(raw, RawTokens)
    assert recipe.model.channels < raw.token_dim
    with torch.device("meta"):
        assert sum(p.numel() for p in Autoencoder(raw.token_dim, recipe.model).parameters()) > 1e5
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    assert load_any(tmp_path / "recipe.yaml") == recipe


def test_data_given_in_python_are_left_as_they_were() -> None:
    changes = {"optim": {"steps": 3, "lr": 0.1}, "optim.steps": 4}
    assert load_recipe("digits", changes).optim.steps == 4
    assert changes["optim"] == {"steps": 3, "lr": 0.1}


def test_the_recipes_that_the_readme_names_are_there() -> None:
    assert {"digits", "spoken-digits", "ljspeech", "imagenet256-b", "imagenet256-l", "imagenet256-h"} <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_resolved_recipe_is_the_same_recipe(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


def test_names_and_repository_paths_find_the_packaged_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "digits.yaml", "recipes/digits.yaml"):
        assert find_recipe(name).samefile(ROOT / "recipes" / "digits.yaml")


@pytest.mark.parametrize(
    ("name", "encoder", "mlp", "total"),
    [
        ("imagenet256-b", 85_056_000, 35_749_920, 212_410_656),
        ("imagenet256-l", 302_312_448, 72_230_432, 687_946_272),
        ("imagenet256-h", 629_683_200, 151_206_944, 1_427_386_144),
        ("t2i-256", 2 * 629_683_200, 151_329_856, 2_691_887_936),  # D-JEPA-T2I's 2.6 B, without T5 and VAE
    ],
)
def test_sizes_are_the_papers(name: str, encoder: int, mlp: int, total: int) -> None:
    recipe = load_recipe(name)
    with torch.device("meta"):
        online = build_model(recipe, recipe.tokenizer.build(), recipe.condition.build()).online

    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert count(online.encoder.stack.transformer.blocks) == encoder
    assert count(online.predictor.stack.transformer.blocks) == encoder
    assert count(online.head) == mlp
    assert count(online) == total


def test_overrides(tmp_path: Path) -> None:
    recipe = load_recipe("digits", ["optim.lr=1e-4", "model.width=64", "optim.minutes=null", "run.texts=[a, b]"])
    assert (recipe.optim.lr, recipe.model.width, recipe.optim.minutes, recipe.run.texts) == (1e-4, 64, None, ("a", "b"))


MINE = """
name: digits
data:
  source: digits
tokenizer:
  kind: patches
  patch: 2
  channels: 1
  size: [8, 8]
condition:
  kind: class
  buffer_tokens: 4
model:
  preset: tiny
head:
  kind: flow
optim:
  steps: 1500
  lr: 1e-3
batch:
  size: 64
sample:
  steps: 16
"""


def mistake(tmp_path: Path, old: str, new: str, *overrides: str) -> str:
    path = tmp_path / "mine.yaml"
    assert old in MINE
    path.write_text(MINE.replace(old, new))
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("buffer_tokens: 4", "bufer_tokens: 4", ["mine.yaml", "condition.bufer_tokens", "4", "'buffer_tokens'"]),
        ("optim:", "optimizer:", ["mine.yaml", "optim"]),
        ("size: 64", "size: -64", ["mine.yaml", "batch.size", "-64", "greater than 0"]),
        ("size: 64", "size: many", ["batch.size", "'many'", "integer"]),
        ("size: 64", "size: 6.5", ["batch.size", "6.5", "integer"]),
        ("lr: 1e-3", "lr: yes", ["optim.lr", "True", "number"]),
        ("lr: 1e-3", "lr: .nan", ["optim.lr"]),
        ("kind: flow", "kind: flwo", ["head.kind", "flwo", "'flow'"]),
        ("source: digits", "source: digit", ["data.source", "'digits'"]),
        ("kind: patches", "kind: patch", ["tokenizer.kind", "'patches'"]),
        ("preset: tiny", "preset: tinny", ["model.preset", "'tinny'", "'tiny'"]),
        ("name: digits", "name: ../digits", ["name", "'../digits'"]),
        ("steps: 16", "steps: 16\n  guidance: 2\n  steps: 4", ["line", "'steps'", "twice"]),
        ("name: digits", "name: !!python/object/apply:os.system [ls]", ["line", "python/object"]),
        ("name: digits", "name: [digits", ["line"]),
        ("data:\n", "data: 2020-01-01\ndada:\n", ["data"]),
    ],
)
def test_a_mistake_is_one_line_that_names_it(tmp_path: Path, old: str, new: str, parts: list[str]) -> None:
    message = mistake(tmp_path, old, new)
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("optim.learning_rate=1", ["optim.learning_rate", "unknown key"]),
        ("list[0]=1", ["list[0]", "unknown key"]),
        ("optim.lr", ["optim.lr", "section.key=value"]),
        ("optim.lr=-1", ["optim.lr", "-1", "greater than 0"]),
        ("name.x=1", ["'name'", "holds a value"]),
        ("model.heads=5", ["192", "5"]),
        ("mask.low=0.9 ", ["mask"]),
        ("optim.lr=[", ["optim.lr"]),
    ],
)
def test_mistakes_in_overrides(override: str, parts: list[str]) -> None:
    if override.startswith("mask"):
        parts, overrides = ["mask.low 0.9", "mask.high 0.8"], [override, "mask.high=0.8"]
    else:
        overrides = [override]
    with pytest.raises(UserError) as caught:
        load_recipe("digits", overrides)
    for part in parts:
        assert part in str(caught.value)


def test_impossible_combinations() -> None:
    with pytest.raises(UserError, match=r"condition\.drop"):
        load_recipe("digits", ["sample.guidance=2", "condition.drop=0.0"])
    with pytest.raises(UserError, match=r"sample\.sweeps 3: with sample\.order raster .*: set it to 0"):
        load_recipe("digits", ["sample.sweeps=3", "sample.order=raster"])
    with pytest.raises(UserError, match=r"sample\.sweeps 3: with mask\.horizon 16 "):
        load_recipe("moving-digits", ["sample.sweeps=3", "sample.order=random"])
    with pytest.raises(UserError, match="rotary"):
        load_recipe("spoken-digits", ["model.positions=learned"])
    with pytest.raises(UserError, match=r"rotary positions on 3 axes need heads of a width from 6 on, not 4: change"):
        load_recipe("digits", ["model.positions=rotary", "model.width=16", "model.heads=4"])
    with pytest.raises(UserError, match=r"mask\.start 0\.5 needs mask\.horizon"):
        load_recipe("digits", ["mask.start=0.5"])
    with pytest.raises(UserError, match="lies on the axis t"):
        load_recipe("spoken-digits", ["model.axes=[h, w]"])


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UserError, match="'spoken-digits'"):
        load_recipe("spoken-digit")
    with pytest.raises(UserError, match=r"no recipe 'missing/digits\.yaml'"):
        load_recipe("missing/digits.yaml")


def test_schema_describes_every_section() -> None:
    schema = schema_class().model_json_schema()
    assert {"data", "tokenizer", "condition", "model", "head", "optim", "batch", "sample", "run"} <= set(
        schema["properties"]
    )
    assert schema["additionalProperties"] is False
    assert "Most items in a batch, of all processes together." in str(schema)


@pytest.mark.parametrize("override", ["optim.clip=.inf", "head.time_mean=.nan", "sample.temperature=.inf"])
def test_numbers_are_finite_for_a_checkpoints_recipe_has_no_others(override: str) -> None:
    with pytest.raises(UserError, match=rf"--set {override.partition('=')[0]}: [^\n]*finite number"):
        load_recipe("digits", [override])


def test_an_empty_folder_is_not_the_current_one() -> None:
    with pytest.raises(UserError, match=r"--set data\.root: expected at least 1 character, got ''"):
        load_recipe("pictures", ["data.root="])


def test_data_built_in_python_is_plain_or_made_plain() -> None:
    recipe = load_recipe("pictures", {"data.root": Path("mine"), "optim.steps": np.int64(3), "optim.lr": np.float64(1)})
    assert (recipe.data.root, recipe.optim.steps, recipe.optim.lr) == ("mine", 3, 1.0)
    for override in ("optim.steps=!!binary aGk=", "optim.steps=!!set {a: null}"):
        with pytest.raises(UserError, match="a recipe is plain data"):
            load_recipe("digits", [override])
    with pytest.raises(UserError, match="a recipe is plain data"):
        load_recipe({"name": object()})


def test_recipes_that_were_made_to_harm_are_one_line(tmp_path: Path) -> None:
    doubled = "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    texts = {
        f"a0: &a0 x\n{doubled}": "line 1, column 1: aliases that stand for too much",
        "name: &name [*name]\n": "line 1, column 7: it holds itself",
        "- " * 2_000: "nested too deeply",
        f"optim: {{steps: {'9' * 5_000}}}\n": "line 1, column 16: a whole number beyond 64 bits",
        f"optim: {{steps: {2**63}}}\n": "line 1, column 16: a whole number beyond 64 bits",
        "#" * 1_000_001: "1,000,001 bytes, and no recipe has more than 1,000,000",
        'name: !!python/object/apply:os.system ["true"]\n': "line 1, column 7: could not determine a constructor",
    }
    for text, reason in texts.items():
        (tmp_path / "mine.yaml").write_text(text)
        with pytest.raises(UserError, match=rf"mine\.yaml: {reason}[^\n]*$"):
            load_recipe(tmp_path / "mine.yaml")


def test_an_alias_is_what_it_stands_for() -> None:
    assert parse_value(f"[&a [1, {2**63 - 1}], *a, *a]") == [[1, 2**63 - 1]] * 3


def test_absurd_sizes_name_their_key() -> None:
    for key, most in (("model.width", 65_536), ("model.depth", 200), ("head.blocks", 200), ("batch.workers", 1_000)):
        with pytest.raises(UserError, match=rf"^--set {key}: expected less than or equal to {most}, got 1000000000$"):
            load_recipe("digits", [f"{key}=1_000_000_000"])
    with pytest.raises(UserError, match=r"^--set data\.root: expected at most 10000 characters, got 'x{199}…$"):
        load_recipe("pictures", [f"data.root={'x' * 10_001}"])


def test_a_model_larger_than_the_memory_is_not_begun() -> None:
    recipe = load_recipe("digits", ["model.width=65536", "model.heads=64"])
    with pytest.raises(
        UserError, match=r"^model and head: the networks and their averages take [\d,]+ GB, and cpu has"
    ):
        check_memory(recipe, recipe.tokenizer.build(), ten_classes(recipe), torch.device("cpu"))
    recipe = load_recipe("digits")
    check_memory(recipe, recipe.tokenizer.build(), ten_classes(recipe), torch.device("cpu"))
