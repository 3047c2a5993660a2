"""Trained tokenizers: on files, on their own corpus, and by what a small core makes of their tokens."""

from __future__ import annotations

import functools
import io
import json
import re
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from support import inside, sets

from djepa_mm.bench.candidate import Candidate, candidate_of, parse_tokenizer
from djepa_mm.bench.compare import Result, Trial, plan, plot, table, train_core
from djepa_mm.bench.measure import Measures, bench, measure, report
from djepa_mm.bench.reconstruction import reconstruct, summary
from djepa_mm.bench.saved import load_tokens, save_all
from djepa_mm.evaluate import report as figures
from djepa_mm.media.plot import scatter, ticks
from djepa_mm.recipe.load import load_recipe
from djepa_mm.training.djepa import train
from djepa_mm.types import UserError

pytest.importorskip("sklearn")

TOKENIZER = [
    *("model.width=16", "model.depth=1", "model.heads=2", "model.channels=4", "batch.size=16"),
    *("batch.cache=false", "optim.steps=3", "optim.minutes=null", "run.samples=2"),
]
CORE = [
    *("model.width=16", "model.depth=1", "model.heads=2", "head.width=16", "head.blocks=1", "head.steps=2"),
    *("batch.size=16", "batch.cache=false", "sample.steps=2", "run.samples=2", "run.sample_every=null"),
    "optim.steps=2",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of digits, in a folder whose name is a number."""
    out = tmp_path_factory.mktemp("tokenizers") / "2024"
    result = inside("tokenizer", "train", "digits-tokens", "--out", str(out), *sets(*TOKENIZER))
    assert result.returncode == 0, result.stderr
    assert re.search(r"^PSNR: held-out -?\d+\.\d dB, training -?\d+\.\d dB; more of it: ", result.stdout, re.MULTILINE)
    return out


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    files = [tmp_path / f"{n}.png" for n in range(2)]
    for n, path in enumerate(files):
        Image.linear_gradient("L").rotate(90 * n).resize((8, 8)).save(path)
    return files


def mistake(*arguments: str, cwd: Path | None = None) -> str:
    result = inside(*arguments, cwd=cwd)
    assert result.returncode == 2, result.stdout + result.stderr
    (line,) = (line for line in result.stderr.splitlines() if line)
    return line


# --- measures


def test_noise_of_patches_is_noise_of_their_pixels() -> None:
    """PSNR = 20 log10(2 / (deviation of the noise · deviation of the pixels)); the same noise each time."""
    tokenizer = parse_tokenizer("patches,patch=4,channels=1,size=[16,16]").tokenizer
    pixels = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0)) - 0.5
    tokenizer.fit(pixels)
    found, again = (measure(tokenizer, iter(pixels), noises=(0.1, 0.4)) for _ in range(2))
    for deviation, decibels in found.noisy_db.items():
        expected = 20 * torch.log10(2 / (deviation * pixels.std())).item()
        assert decibels == pytest.approx(expected, abs=0.3)
    assert found.noisy_db == again.noisy_db
    assert (found.items, found.numbers, found.compression, found.examples) == (4, 256, 1, ())
    assert found.effective_channels == pytest.approx(14.5, abs=1)  # 64 tokens of 16 channels that nothing binds


def test_a_trained_tokenizer_is_compared_on_files(run: Path, pictures: list[Path], tmp_path: Path) -> None:
    candidates = [parse_tokenizer(text, pictures) for text in ("digits", f"trained,path={run},sample=true")]
    rows = bench(candidates, pictures, repeats=1)
    raw, learned = (row.measures for row in rows)
    assert raw is not None
    assert learned is not None
    assert (raw.numbers, learned.numbers, learned.compression) == (64, 16, 4)
    assert report(rows)[1]["config"]["sha256"] == candidates[1].tokenizer.weights_hash
    file, _ = save_all(rows[1], tmp_path / "saved")
    assert torch.equal(load_tokens(file).media(), learned.examples[0].reconstruction)


def test_a_folder_of_digits_stays_a_text(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    config: Any = parse_tokenizer("trained,path=2024,media={size: [8, 8]}").config
    assert (config.path, config.media) == ("2024", {"size": [8, 8]})
    with pytest.raises(UserError, match=r"tokenizer\.path: no run at .*2025"):
        parse_tokenizer("trained,path=2025")


def test_what_the_media_are_may_come_from_another_tokenizer() -> None:
    films, speech = (candidate_of(name, load_recipe(name).tokenizer) for name in ("moving-digits", "spoken-digits"))
    config: Any = parse_tokenizer("clip-patches,patch=[1,8,8],frames=4", like=films).config
    assert (config.channels, config.frames, config.size) == (1, 4, films.tokenizer.fixed.shape[-2:])
    assert config.frame_rate == films.tokenizer.media.per_second
    config = parse_tokenizer("mel,frames_per_token=2", like=speech).config
    assert (config.max_duration_s, config.vocoder) == (speech.config.max_duration_s, speech.config.vocoder)
    with pytest.raises(UserError, match=r"tokenizer\.frames: this key is required"):
        parse_tokenizer("clip-patches,patch=[1,8,8]", like=speech)


def test_held_out_items_beside_those_of_training(run: Path, tmp_path: Path) -> None:
    result = inside("tokenizer", "evaluate", str(run), "--count", "5", "--json", str(tmp_path / "e.json"))
    assert result.returncode == 0, result.stderr
    assert "held-out" in result.stdout
    assert "PSNR with noise of 0.2" in result.stdout
    found = json.loads((tmp_path / "e.json").read_text())
    assert [found[side]["items"] for side in ("held_out", "training")] == [5, 5]
    assert found["held_out"]["psnr_db"] != found["training"]["psnr_db"]
    assert "no checkpoint yet" in mistake("tokenizer", "evaluate", str(tmp_path))
    result = inside("tokenizer", "evaluate", str(run), "--count", "2", "--set", "data.split=all")
    assert "the corpus keeps nothing back" in result.stdout
    expected = "--set model.depth=2: the tokenizer is as it was trained; set keys of data alone"
    assert expected in mistake("tokenizer", "evaluate", str(run), "--set", "model.depth=2")
    whole = tmp_path / "whole"
    shutil.copytree(run, whole)
    (recipe,) = whole.glob("checkpoints/*/recipe.yaml")
    recipe.write_text(recipe.read_text().replace("split: train", "split: all"))
    result = inside("tokenizer", "evaluate", str(whole), "--count", "2")
    assert "the corpus keeps nothing back" in result.stdout
    assert "held-out" not in result.stdout
    assert summary(reconstruct(whole, count=2, noises=())).endswith("(the corpus keeps nothing back)")


# --- a core on each


def test_generation_beside_reconstruction(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = functools.partial(figures.train_classifier, steps=5)
    monkeypatch.setattr(figures, "train_classifier", quick)
    out = tmp_path / "out"
    names = ["--tokenizer", f"trained,path={run}", "--tokenizer", "patches,patch=2"]
    command = ["tokens", "--generate", "5", "--recipe", "digits", *names, "--out", str(out), "--count", "20"]
    result = inside(*command, *sets(*CORE), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for words in ("recognised, of real ones", "Fréchet distance over real's", "minutes of the core", "compression"):
        assert words in result.stdout
    found = json.loads((out / "generation.json").read_text())["tokenizers"]
    assert [one["reconstruction"]["num_tokens"] for one in found] == [4, 16]
    assert [one["reconstruction"]["token_dim"] for one in found] == [4, 4]
    assert all(one["steps"] == 2 and one["generation"]["items"] == 20 for one in found)
    assert all(one["reconstruction"]["items"] == 20 and one["frechet_ratio"] > 1 for one in found)
    assert [one["own_minutes"] > 0 for one in found] == [True, False]
    assert len(Image.open(out / "generation.png").getcolors(1 << 20)) > 2

    made = {path: path.stat().st_mtime_ns for path in out.glob("*/checkpoints/*/state.json")}
    assert len(made) == 2
    again = inside(*command, *sets(*CORE), cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "finished at step" not in again.stdout  # none is trained again
    assert made == {path: path.stat().st_mtime_ns for path in out.glob("*/checkpoints/*/state.json")}
    known = json.loads((out / "generation.json").read_text())["tokenizers"]
    same = [[row["generation"]["frechet_distance"] for row in rows] for rows in (found, known)]
    assert same[0] == same[1]
    assert "run.seed is 0, here 1; choose another folder: --out" in mistake(
        *command, "--seed", "1", *sets(*CORE), cwd=tmp_path
    )


def test_time_is_shared_out_and_an_unfinished_core_goes_on(run: Path, tmp_path: Path) -> None:
    older = tmp_path / "older"
    shutil.copytree(run, older)
    (path,) = older.glob("checkpoints/*/state.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "seconds": 90.0}))
    recipe = load_recipe("digits", CORE)
    own, trained = plan(recipe, ["recipe", f"trained,path={older}"], 2.0, tmp_path)
    assert (own.own_minutes, own.recipe.optim.minutes) == (0, 2)
    assert (trained.own_minutes, trained.recipe.optim.minutes) == (1.5, 0.5)
    assert own.recipe.optim.steps > 1e6  # the clock ends it
    with pytest.raises(UserError, match=r"trained for 1\.5 minutes itself, so that of --generate 1\.5 nothing is left"):
        plan(recipe, [f"trained,path={older}"], 1.5, tmp_path)

    (trial,) = plan(recipe, ["recipe"], 2.0, tmp_path, endless=False)
    stop = threading.Event()
    stop.set()
    assert not train(trial.recipe, trial.run, stop=stop).finished
    assert not trial.complete
    assert train_core(trial)
    assert trial.complete


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--generate", "0", "--recipe", "digits"), "--generate 0: give the minutes"),
        (("--generate", "inf", "--recipe", "digits"), "--generate inf: expected a finite number"),
        (("--generate", "1"), "--recipe: name the recipe"),
        (("--generate", "1", "--recipe", "digits", "a.png"), "leave FILE out"),
        (("--generate", "1", "--recipe", "digits", "--save", "x"), "leave --save out"),
        (("--generate", "1", "--recipe", "digits-tokens"), "a recipe of the kind tokenizer"),
        (("--generate", "1", "--recipe", "digits", "--set", "data.split=all"), "data.split train"),
        (("--generate", "1", "--recipe", "digits", "--set", "optim.minutes=3"), "--set optim.minutes: --generate says"),
        (("--generate", "1", "--recipe", "digits", "--tokenizer", "recipe"), "both would be kept in tokens/recipe"),
        (("--generate", "1", "--recipe", "digits", "--tokenizer", "mel"), "--tokenizer mel: data gives no sound"),
        (("--generate", "1", "--recipe", "digits", "--tokenizer", "patches,patch=2,size=[4,4]"), "size=[4,4]: "),
        (("--generate", "1", "--recipe", "digits", "--tokenizer", "patches,patch=2,vary=true"), "model.positions is"),
        (("--recipe", "digits"), "--recipe goes with --generate MINUTES"),
        (("--count", "9", "a.png"), "--count goes with --generate MINUTES"),
        (("a.png", "--tokenizer", "."), "--tokenizer .: a folder; of a run that trained one: trained,path=."),
        ((), "FILE: give clips, pictures, sounds"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    assert message in mistake("tokens", *arguments, "--tokenizer", "recipe", cwd=tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_a_tokenizer_there_is_nothing_to_compare(tmp_path: Path) -> None:
    assert "--tokenizer: give at least one" in mistake("tokens", "--generate", "1", "--recipe", "digits", cwd=tmp_path)


# --- showing


def spoken(name: str, measures: Measures, figures: Mapping[str, Any]) -> Result:
    """As of a run that speaks."""
    recipe = load_recipe("spoken-digits")
    candidate: Any = Candidate(name=name, config=recipe.tokenizer, tokenizer=None)  # type: ignore[arg-type]
    trial = Trial(candidate=candidate, recipe=recipe, run=Path(name), own_minutes=0.0)
    return Result(trial=trial, step=5, core_minutes=1.0, measures=measures, figures=figures)


def test_speech_is_shown_by_its_words() -> None:
    tokenizer = parse_tokenizer("mel,sample_rate_hz=8000,vocoder={kind: griffin-lim, iterations: 1}").tokenizer
    sound = torch.sin(torch.arange(4000) / 5)
    tokenizer.fit([sound])
    measures = measure(tokenizer, [sound], noises=())
    heard = {"word_error_rate": 0.25, "recordings": {"word_error_rate": 0.0, "vocoder_word_error_rate": 0.1}}
    results = [spoken("mel", measures, heard), spoken("other", measures, {"word_error_rate": 0.0, "recordings": None})]
    out = io.StringIO()
    Console(width=120, file=out).print(table(results, "title"))
    assert "word error rate through tokens" in out.getvalue()
    assert "25.0%" in out.getvalue()
    assert "Fréchet" not in out.getvalue()
    assert plot(results, "title") is not None


@pytest.mark.parametrize(
    ("values", "log", "expected"),
    [
        ([0.2, 3.9], False, [0, 1, 2, 3, 4]),
        ([31.2, 31.2], False, [30, 40]),
        ([0.0], False, [0, 0.5]),
        ([2.3, 31.0], True, [2, 5, 10, 20, 50]),
        ([2.0, 2.0], True, [2, 5]),
    ],
)
def test_axes_have_round_numbers(values: list[float], log: bool, expected: list[float]) -> None:
    assert ticks(values, log=log) == pytest.approx(expected)


def test_a_point_lies_where_its_numbers_are() -> None:
    one = scatter({"a": (10.0, 1.0), "b": (20.0, 2.0)}, title="é", x="x", y="y")
    other = scatter({"a": (10.0, 2.0), "b": (20.0, 1.0)}, title="é", x="x", y="y")
    white = (255, 255, 255)
    assert one.size == other.size
    corners = [(90, 560), (920, 70), (90, 70), (920, 560)]  # of the axes: below left, above right, and the others
    full = [[image.getpixel(corner) == (31, 84, 158) for corner in corners] for image in (one, other)]
    assert full == [[True, True, False, False], [False, False, True, True]]
    assert one.getpixel((2, 2)) == white
