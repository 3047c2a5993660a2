"""One core and one schema for pictures, sounds and clips: nothing on the way through them knows which it is."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from support import PACKAGE, ROOT

from djepa_mm.core.djepa import DJEPA
from djepa_mm.generation.pipeline import Pipeline
from djepa_mm.recipe.load import load_recipe
from djepa_mm.recipe.schema import schema_class
from djepa_mm.training.djepa import train
from djepa_mm.training.loop import Trainer

SMALL = [
    "model.width=64", "model.depth=1", "model.heads=2", "head.width=32", "head.blocks=1", "head.steps=2",
    "batch.size=4", "sample.steps=3", "run.samples=2", "run.sample_every=null", "optim.steps=3", "optim.minutes=null",
]  # fmt: skip
RECIPES = {
    "digits": (),
    "spoken-digits": ("data.count=20",),
    "moving-digits": ("data.count=20",),
}
# every file between a recipe and a trained model, and between that and its tokens
PATH = (
    "core/**/*.py", "data/corpus.py", "generation/pipeline.py", "generation/request.py", "recipe/build.py", "runs/*.py",
    "training/callbacks.py", "training/djepa.py", "training/interrupts.py", "training/loop.py",
    "training/optimizers.py", "training/state.py", "training/task.py", "types.py",
)  # fmt: skip
# of media, and of what only one kind of condition knows
FOREIGN = re.compile(
    r"images?|pictures?|photos?|audio|speech|spoken|speak|speaks|speaker|sounds?|mels?|wav|waves?|waveforms?|vocoder|"
    r"vocoders|videos?|movies?|voices?|phonemes?|vocabulary|sentences?|words?|pace|paces|rates?|captions?",
    re.IGNORECASE,
)
PLAIN = {"learning_rate"}  # names that say nothing of the kind
WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")


@pytest.mark.parametrize("name", RECIPES)
def test_the_same_core_and_schema_train_and_sample(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "spoken-digits":
        pytest.importorskip("espeakng_loader", reason="espeak-ng speaks this corpus")
    if name == "moving-digits":
        pytest.importorskip("av", reason="PyAV writes this corpus")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = load_recipe(name, [*SMALL, *RECIPES[name]])
    built: list[Any] = []
    monkeypatch.setattr(Trainer, "run", keep(Trainer.run, built))
    outcome = train(recipe, tmp_path / "run", resume=False, device=torch.device("cpu"), console=Console(quiet=True))
    assert type(recipe) is schema_class()
    assert [type(trainer) for trainer in built] == [Trainer]
    assert type(built[0].task.model) is DJEPA
    assert outcome.step == 3
    pipeline = Pipeline.load(outcome.run)
    media = pipeline(pipeline.examples(2, recipe.run.texts, 0))
    assert len(media) == 2
    assert all(item.isfinite().all() for item in media)


def keep(run: Any, into: list[Any]) -> Any:
    """The real `run`, which also says whose it is."""

    def kept(trainer: Trainer) -> Any:
        into.append(trainer)
        return run(trainer)

    return kept


def names(path: Path) -> set[str]:
    """Identifiers in a file's code; not what it imports from outside the package, comments and texts."""
    source = path.read_text(encoding="utf-8")
    foreign = {
        alias.asname or alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("djepa_mm")
        for alias in node.names
    }
    found = {t.string for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.NAME}
    return found - foreign - PLAIN


def foreign_names(path: Path) -> list[str]:
    return sorted(name for name in names(path) if any(FOREIGN.fullmatch(word) for word in WORDS.findall(name)))


def test_no_file_on_the_way_names_a_modality_or_what_one_condition_knows() -> None:
    files = [path for pattern in PATH for path in sorted(PACKAGE.glob(pattern))]
    assert len(files) > 25
    assert {path.name: found for path in files if (found := foreign_names(path))} == {}


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("tokenizers/mel.py", "log_mel"),
        ("djepa_mm/conditions/text.py", "pace"),
        ("djepa_mm/conditions/text.py", "words"),
        ("djepa_mm/conditions/text.py", "rate"),
        ("djepa_mm/conditions/text.py", "sentences"),
        ("djepa_mm/training/vocoder.py", "vocoder"),
    ],
)
def test_such_names_would_be_found(file: str, name: str) -> None:
    assert any(name in found for found in foreign_names(ROOT / file))
