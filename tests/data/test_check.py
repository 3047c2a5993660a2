"""What a corpus is said to hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from rich.table import Table
from support import write_pictures

from djepa_mm.data.check import check_corpus, held_out_and_learned, sound_remarks
from djepa_mm.recipe.load import load_recipe
from djepa_mm.types import UserError

RATE_HZ = 22050


def rows(table: Table) -> dict[str, str]:
    """What it says, by what it says it of."""
    what, values = ([str(cell) for cell in column.cells] for column in table.columns)
    return dict(zip(what, values, strict=True))


def checked(recipe: str, *overrides: str) -> tuple[dict[str, str], bool]:
    table, healthy = check_corpus(load_recipe(recipe, overrides), lambda done, total: None)
    return rows(table), healthy


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    for n, (name, size) in enumerate(
        {"cat/a.png": (80, 70), "cat/b.JPG": (80, 70), "dog/c.png": (20, 90), "dog/d.png": (64, 64)}.items()
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", size, (60 * n, 0, 0)).save(tmp_path / name)
    (tmp_path / "dog" / "notes.txt").write_text("hello")
    (tmp_path / "dog" / ".hidden.png").write_bytes(b"")
    (tmp_path / "dog" / "torn.png").write_bytes((tmp_path / "dog" / "c.png").read_bytes()[:60])
    found, healthy = checked("pictures", f"data.root={tmp_path}", "data.held_out=0")
    assert not healthy
    assert (
        found
        | {
            "items": "5",
            "class cat": "2",
            "class dog": "2",
            "file .png": "3",
            "file .jpg": "1",
            "pixels 80×70": "2",
            "pixels 20×90": "1",
            "pixels 64×64": "1",
            "left out, files that end in .txt": "1",
            "left out, hidden files and folders": "1",
            "smaller than data.size, so enlarged": "1: dog/c.png",
            "broken": "1",
        }
        == found
    )
    assert "not readable as a picture" in found["  dog/torn.png"]

    with pytest.raises(UserError, match=r"no classes[^\n]*--set condition\.kind=none --set sample\.guidance=1"):
        checked("pictures", f"data.root={tmp_path / 'cat'}", "data.held_out=0")
    found, healthy = checked(
        "pictures", f"data.root={tmp_path / 'cat'}", "data.held_out=0", "condition.kind=none", "sample.guidance=1"
    )
    assert healthy
    assert found["items"] == "2"


def test_sounds_that_are_silent_or_clipped() -> None:
    sine = torch.sin(torch.arange(RATE_HZ) * 0.06)
    assert sound_remarks(0.9 * sine) == sound_remarks(sine) == []
    assert sound_remarks((1.02 * sine).clamp(-1, 1)) == ["clipped"]
    assert sound_remarks((3 * sine).clamp(-0.7, 0.7)) == ["clipped"]  # turned down afterwards
    assert sound_remarks(torch.zeros(RATE_HZ)) == sound_remarks(5e-4 * sine) == ["silent"]


def test_recordings_that_do_not_fit_their_text(tmp_path: Path) -> None:
    """One with twelve times the sound of such texts, and one with an eighth; the others last as their texts do."""
    words = ["one two three four five six", "seven eight", "nine ten eleven twelve", "a b c d e f g h i j k l m n"]
    texts = [f"{word} number {n}" for n, word in enumerate(words * 10)]
    seconds = [0.07 * len(text) for text in texts]
    seconds[5], seconds[8] = 8.0, 0.3
    (tmp_path / "wavs").mkdir()
    (tmp_path / "metadata.csv").write_text("".join(f"c{n:02d}|{text}\n" for n, text in enumerate(texts)))
    rng = np.random.default_rng(0)
    for n, duration_s in enumerate(seconds):
        level = 0.0 if n == 3 else 0.1
        samples = level * rng.standard_normal(int(duration_s * RATE_HZ))
        soundfile.write(tmp_path / "wavs" / f"c{n:02d}.wav", samples, RATE_HZ)
    found, healthy = checked("ljspeech", f"data.root={tmp_path}", "data.held_out=0")
    assert healthy
    assert found["silent"] == "1: c03"
    assert found["more than 2 times as long as such a text usually is"] == "1: c05"
    assert found["less than 1/2 as long as such a text usually is"] == "1: c08"
    assert found["file .wav"] == "40"


def test_of_very_many_broken_items_the_first_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("djepa_mm.data.check.MOST_BROKEN", 2)
    good = Image.new("RGB", (8, 8))
    for n in range(5):
        path = tmp_path / "a" / f"{n}.png"
        path.parent.mkdir(exist_ok=True)
        good.save(path) if n == 4 else path.write_bytes(b"no picture")
    data = {"source": "image-folder", "root": str(tmp_path), "size": [8, 8]}
    table, healthy = check_corpus(load_recipe("digits", {"data": data, "tokenizer.channels": 3}), lambda *_: None)
    rows = dict(zip(*(column.cells for column in table.columns), strict=True))
    assert (healthy, rows["broken"], rows["  and more"]) == (False, "4", "2")
    assert [name for name in rows if "png" in str(name) and "/" in str(name)] == ["  a/0.png", "  a/1.png"]


def test_what_is_held_out_may_have_been_learned_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the files' places, and of corpora without files by their sides; never by a guess."""
    root, others = (write_pictures(tmp_path / name, *[(3, 8, 8)] * 20) for name in ("root", "others"))

    def seen(held_out: dict[str, Any], learned: dict[str, Any]) -> int:
        return held_out_and_learned(*(load_recipe("digits", {"data": one}).data for one in (held_out, learned)))

    folder = {"source": "image-folder", "size": [8, 8], "root": str(root)}
    half = {**folder, "held_out": 0.5}
    count = len(load_recipe("digits", {"data": half}).data.build_held_out())
    assert 0 < count < 20
    assert seen(half, folder) == seen(half, {**folder, "flip": True}) == count
    assert seen(half, {**half, "split": "held-out"}) == count
    assert 0 < seen(half, {**folder, "held_out": 0.2}) < count
    assert seen({**folder, "held_out_root": str(others)}, {**folder, "root": str(others)}) == 20
    monkeypatch.chdir(tmp_path)
    assert seen(half, {**folder, "root": "root"}) == count
    for learned in (half, {**half, "flip": True}, {**folder, "held_out": 0.8}, {**folder, "root": str(others)}):
        assert seen(half, learned) == 0
    assert seen(folder, half) == seen({**folder, "held_out_root": str(others)}, folder) == 0

    digits = {"source": "digits"}
    assert seen({**digits, "split": "train"}, digits) == 360
    assert seen({**digits, "split": "train"}, {**digits, "split": "train"}) == seen(digits, digits) == 0
    assert seen({**digits, "split": "train"}, folder) == seen(half, digits) == 0
