"""Folders are what the official scorers read: each is read here as its own loader does it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import inside

from djepa_mm.cli.generate import Benchmark
from djepa_mm.errors import UserError
from djepa_mm.generation.files import Generated, Results
from djepa_mm.generation.layouts import LAYOUTS, check_layout, read_prompts, write_layout
from djepa_mm.media.pictures import Pictures
from djepa_mm.tokenizers.image import PatchesConfig

TEXTS = ("a photo of a bench", "two dogs, and a cat/kitten.", "a_b")


def pictures(count: int, texts: Sequence[str] = TEXTS) -> list[Generated]:
    """Grey ones, each its own: the n-th has the level 10 + n."""
    total = count * len(texts)
    media = [torch.full((3, 16, 16), (10 + n) / 127.5 - 1) for n in range(total)]
    return [Generated(media=m, title=texts[n // count], kind=Pictures(3)) for n, m in enumerate(media)]


def level(path: Path, box: tuple[int, int, int, int] = (0, 0, 16, 16)) -> int:
    values = np.asarray(Image.open(path).crop(box))
    assert values.shape == (16, 16, 3)
    assert np.ptp(values) == 0
    return int(values[0, 0, 0])


def test_geneval(tmp_path: Path) -> None:
    rows = [
        {"tag": "colors", "include": [{"class": "bench", "count": n}], "prompt": text} for n, text in enumerate(TEXTS)
    ]
    source = tmp_path / "evaluation_metadata.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    prompts = read_prompts("geneval", source)
    assert [prompt.text for prompt in prompts] == list(TEXTS)
    written = list(write_layout("geneval", prompts, pictures(4), tmp_path / "out"))
    assert len(written) == 12
    seen = []
    for folder in sorted(os.listdir(tmp_path / "out")):
        assert folder.isdigit()
        row = json.loads((tmp_path / "out" / folder / "metadata.jsonl").read_text())
        assert row == rows[int(folder)]
        for name in sorted(os.listdir(tmp_path / "out" / folder / "samples")):
            assert re.match(r"\d+\.png", name)
            seen.append(level(tmp_path / "out" / folder / "samples" / name))
    assert seen == list(range(10, 22))


def test_t2i_compbench(tmp_path: Path) -> None:
    source = tmp_path / "color_val.txt"
    source.write_text("\n".join((TEXTS[0], f"{TEXTS[1]}\tunused", "", TEXTS[2])))
    prompts = read_prompts("t2i-compbench", source)
    assert [prompt.text for prompt in prompts] == list(TEXTS)
    list(write_layout("t2i-compbench", prompts, pictures(2), tmp_path / "out"))
    names = os.listdir(tmp_path / "out" / "samples")
    names.sort(key=lambda name: int(name.split("_")[-1].split(".")[0]))
    assert [name.split("_")[0] for name in names] == [
        *[TEXTS[0]] * 2, *["two dogs, and a cat kitten."] * 2, *["a b"] * 2
    ]  # fmt: skip
    assert names[3] == "two dogs, and a cat kitten._000003.png"
    assert [level(tmp_path / "out" / "samples" / name) for name in names] == list(range(10, 16))


def test_genai_bench(tmp_path: Path) -> None:
    source = tmp_path / "genai_image.json"
    rows = {f"{n:05}": {"id": f"{n:05}", "prompt": text, "models": {}} for n, text in enumerate(TEXTS)}
    source.write_text(json.dumps(rows))
    prompts = read_prompts("genai-bench", source)
    list(write_layout("genai-bench", prompts, pictures(1), tmp_path / "out" / "ours"))
    for n, (name, row) in enumerate(rows.items()):
        assert prompts[n].text == row["prompt"]
        assert abs(level(tmp_path / "out" / "ours" / f"{name}.jpeg") - 10 - n) <= 1
    assert len(os.listdir(tmp_path / "out" / "ours")) == 3


def test_prompts_may_have_any_character_that_a_name_may_have(tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text("a\u00a0red caf\u00e9\n", encoding="utf-8")
    (prompt,) = read_prompts("t2i-compbench", tmp_path / "prompts")
    (path,) = write_layout("t2i-compbench", [prompt], pictures(1)[:1], tmp_path / "out")
    assert path.name == "a\u00a0red caf\u00e9_000000.png"


@pytest.mark.parametrize("count", [1, 3, 4])
def test_dpg(count: int, tmp_path: Path) -> None:
    source = tmp_path / "prompts"
    source.mkdir()
    for n, text in enumerate(TEXTS):
        (source / f"midjourney{n}.txt").write_text(f"{text}\n")
    prompts = read_prompts("dpg", source)
    assert [prompt.text for prompt in prompts] == list(TEXTS)
    list(write_layout("dpg", prompts, pictures(count), tmp_path / "out"))
    boxes = [(0, 0, 16, 16), (16, 0, 32, 16), (0, 16, 16, 32), (16, 16, 32, 32)][:count]
    seen = [
        level(tmp_path / "out" / name, box)
        for name in sorted(os.listdir(tmp_path / "out"))
        for box in boxes
        if name.split(".")[0] in {f"midjourney{n}" for n in range(3)}
    ]
    assert seen == list(range(10, 10 + 3 * count))


@pytest.mark.parametrize(
    ("layout", "text", "reason"),
    [
        ("geneval", '{"prompt": "a"}\n{"prompt": ', r"prompts:2: no JSON"),
        ("geneval", '{"prompt": "a"}\n["a"]', r'prompts:2: expected an object with a text "prompt"'),
        ("geneval", "\n", "holds no prompt for --layout geneval"),
        ("t2i-compbench", "a\n" + 60 * "word ", r"prompts:2: '(word ?)+' cannot be the name of a file"),
        ("t2i-compbench", "a\na\0b", r"prompts:2: 'a\\x00b' cannot be the name of a file"),
        ("genai-bench", "[]", "expected prompts by their ids"),
        ("genai-bench", '{"0": {}}', r"prompts: 0: expected an object"),
        ("genai-bench", '{"../0": {"prompt": "a"}}', "cannot be the name of a file"),
        ("genai-bench", '{"": {"prompt": "a"}}', "'' cannot be the name of a file"),
        ("genai-bench", '{"\\ud800": {"prompt": "a"}}', "cannot be the name of a file"),
        ("genai-bench", '{"0": {"prompt": "a"}, "0": {"prompt": "b"}}', "'0' comes twice"),
        ("genai-bench", f'{{"0": {"9" * 5000}}}', "cannot be read for --layout genai-bench"),
        ("genai-bench", "{", "cannot be read for --layout genai-bench"),
        ("dpg", " ", "holds no prompt"),
    ],
)
def test_prompts_that_are_none_of_the_benchmark(layout: str, text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text(text)
    with pytest.raises(UserError, match=reason) as error:
        read_prompts(layout, tmp_path / "prompts")
    assert str(error.value).startswith("--prompts ")
    with pytest.raises(UserError, match="cannot be read"):
        read_prompts(layout, tmp_path / "none")


def test_what_the_scorer_could_not_read(tmp_path: Path) -> None:
    tokenizer = PatchesConfig(kind="patches", patch=4, size=(16, 16), vary=True).build()
    check_layout("dpg", tokenizer, tmp_path / "new", count=4)
    with pytest.raises(UserError, match="--count 5: dpg reads 4"):
        check_layout("dpg", tokenizer, tmp_path / "new", count=5)
    with pytest.raises(UserError, match="squares, not 32×16 pixels"):
        check_layout("dpg", tokenizer, tmp_path / "new", count=4, size=(16, 32))
    check_layout("geneval", tokenizer, tmp_path / "new", count=5, size=(16, 32))
    (tmp_path / "old").write_text("")
    with pytest.raises(UserError, match="something is there"):
        check_layout("geneval", tokenizer, tmp_path, count=4)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each prompt as often as its benchmark wants it, in a folder of its own."""
    asked: list[Any] = []

    class Painter:
        pipeline = SimpleNamespace(tokenizer=PatchesConfig(kind="patches", patch=4, size=(16, 16)).build())

        def generate(self, conditions: Any, *, count: int, **options: Any) -> Results:
            asked.append((conditions, count))
            return Results(pictures(count, [condition["text"] for condition in conditions]))

    monkeypatch.setattr("djepa_mm.door.load", lambda *_, **__: Painter())
    assert set(LAYOUTS) == set(Benchmark)
    source = tmp_path / "metadata.jsonl"
    source.write_text('{"prompt": "a red dog"}\n{"prompt": "a cat"}\n')
    options = ("generate", "run", "--layout", "geneval")
    result = inside(*options, "--prompts", str(source), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert asked == [([{"text": "a red dog"}, {"text": "a cat"}], 4)]
    assert (tmp_path / "run" / "geneval" / "00001" / "samples" / "0003.png").is_file()
    for arguments, reason in (
        (("--prompts", str(source)), "something is there"),
        ((), "give the benchmark's file of prompts"),
        (("--text", "a dog", "--prompts", str(source)), "give one of the two"),
        (("--prompts", str(source), "--format", "jpg"), "the layout says which files there are"),
        (("--prompts", str(source), "--class", "7"), "give one of the two"),
    ):
        result = inside(*options, *arguments, cwd=tmp_path)
        assert result.returncode == 2
        assert reason in result.stderr
        assert result.stderr.count("\n") == 1
