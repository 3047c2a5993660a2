"""The command line as a person meets it: in a process of its own."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, inside, sets, write_pictures

SMALL = [
    "model.width=32", "model.depth=1", "model.heads=2", "head.width=32", "head.blocks=1", "head.steps=3",
    "batch.size=16", "sample.steps=3", "run.samples=4", "run.sample_every=null", "run.log_every=2",
    "optim.minutes=null", "optim.steps=2",
]  # fmt: skip


def command(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "djepa_mm", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        check=False,
    )


def mistake(*arguments: str, cwd: Path | None = None) -> str:
    """The one line that a user's mistake gives."""
    result = inside(*arguments, cwd=cwd)
    assert result.returncode == 2, result.stdout + result.stderr
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "digits"
    result = inside("train", "digits", "--out", str(out), *sets(*SMALL))
    assert result.returncode == 0, result.stderr
    assert "djepa-mm generate" in result.stdout
    return out


@pytest.fixture(scope="module")
def clips_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of clips of 8 frames of 16×16 pixels, 10 a second; the corpus lies beside the run in `clips`."""
    import torch

    from djepa_mm.media.clips import write_clip

    root = tmp_path_factory.mktemp("clips")
    for name in ("fall", "walk"):
        (root / "clips" / name).mkdir(parents=True)
        for number in range(2):
            write_clip(torch.rand(3, 8, 16, 16) * 2 - 1, root / "clips" / name / f"{number}.mp4", 10.0)
    data = f"data={{source: clips, root: {root / 'clips'}, frames: 8, size: [16, 16], reader: pyav}}"
    tokenizer = "tokenizer={kind: clip-patches, patch: [2, 4, 4], frames: 8, size: [16, 16], frame_rate: 10}"
    result = inside("train", "digits", "--out", str(root / "run"), *sets(*SMALL, "batch.size=4", data, tokenizer))
    assert result.returncode == 0, result.stderr
    return root / "run"


@pytest.fixture(scope="module")
def speech_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("espeakng_loader")
    root = tmp_path_factory.mktemp("speech")
    corpus = [f"data.root={root / 'corpora'}", "data.count=40", "run.texts=[one two]"]
    result = inside("train", "spoken-digits", "--out", str(root / "run"), *sets(*SMALL, *corpus))
    assert result.returncode == 0, result.stderr
    return root / "run"


@pytest.mark.parametrize(
    ("arguments", "shown", "allowed"),
    [(("--help",), "Usage", set()), (("recipes", "list"), "spoken-digits", {"pydantic"})],  # typer checks options by it
)
def test_what_needs_nothing_heavy_imports_nothing_heavy(
    arguments: tuple[str, ...], shown: str, allowed: set[str]
) -> None:
    """No torch, and none of the rest."""
    code = f"""
import sys
sys.argv = ["djepa-mm", *{arguments!r}]
from djepa_mm.cli import main
try:
    main()
except SystemExit:
    print(sorted({{name.split(".")[0] for name in sys.modules}}))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(result.stdout.strip().splitlines()[-1]))
    assert shown in result.stdout
    assert not loaded & {"torch", "numpy", "pydantic", "yaml", "diffusers", "PIL"} - allowed


def test_verbs() -> None:
    """Frozen: a verb or an option that goes away breaks somebody's script."""
    shown = command("--help").stdout
    for verb in (
        "train",
        "generate",
        "edit",
        "evaluate",
        "tokens",
        "tokenizer",
        "import",
        "export",
        "recipes",
        "data",
        "vocoder",
        "info",
        "doctor",
        "demo",
    ):
        assert f"\n  {verb}" in shown
    shown = command("generate", "--help").stdout
    for option in (
        *("--class", "--text", "--prompts", "--count", "--seconds", "--steps", "--guidance", "--temperature"),
        *("--seed", "--out", "--set", "--rate", "--candidates", "--unknown", "--recogniser"),
        *("--first-frames", "--last-frames", "--format", "--layout"),
    ):
        assert option in shown
    shown = command("edit", "--help").stdout
    for option in ("--from", "--to", "--seconds", "--mask", "--text", "--class", "--seed", "--out"):
        assert option in shown
    shown = inside("tokens", "--help").stdout
    for option in (
        "--tokenizer",
        "--out",
        "--save",
        "--json",
        "--repeats",
        "--generate",
        "--recipe",
        "--count",
        "--seed",
    ):
        assert option in shown
    shown = command("train", "--help").stdout
    for option in ("--out", "--resume", "--set", "--device"):
        assert option in shown


@pytest.mark.parametrize("entry", [["-m", "djepa_mm"], [str(ROOT / "cli.py")]])
def test_every_entry_works_from_everywhere(entry: list[str], tmp_path: Path) -> None:
    for cwd in (ROOT, tmp_path):
        result = subprocess.run(
            [sys.executable, *entry, "recipes", "list"], capture_output=True, text=True, cwd=cwd, check=True
        )
        assert "spoken-digits" in result.stdout


def test_generate_writes_pictures_and_a_sheet(digits_run: Path, tmp_path: Path) -> None:
    arguments = ["generate", str(digits_run), "--class", "7", "--class", "2", "--count", "2", "--seed", "3"]
    first, second = tmp_path / "first", tmp_path / "second"
    for out in (first, second):
        assert inside(*arguments, "--out", str(out), "--guidance", "1.5", "--steps", "2").returncode == 0
    names = ["0000-7.png", "0001-7.png", "0002-2.png", "0003-2.png", "index.html", "sheet.png"]
    assert sorted(p.name for p in first.iterdir()) == names
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)
    assert (first / names[0]).read_bytes() != (first / names[1]).read_bytes()


def test_speech_is_generated_with_a_page_of_players(speech_run: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one two\n\n3, 1. Five! Six seven.\n")
    out = tmp_path / "out"
    result = inside("generate", str(speech_run), "--prompts", str(prompts), "--out", str(out), "--rate", "1.5")
    assert result.returncode == 0, result.stderr
    names = ["0000-one-two.wav", "0001-3-1-five-six-seven.wav", "index.html", "sheet.png"]
    assert sorted(p.name for p in out.iterdir()) == names
    assert (out / "index.html").read_text().count("<audio") == 2
    slow = tmp_path / "slow"
    inside("generate", str(speech_run), "--text", "one two", "--out", str(slow), "--rate", "0.75")
    assert (slow / names[0]).stat().st_size == pytest.approx(2 * (out / names[0]).stat().st_size, rel=0.1)


def test_unknown_characters_are_named_or_dropped(speech_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["generate", str(speech_run), "--text", "one ☃ two", "--out", str(out)]
    assert "'☃'" in mistake(*arguments)
    assert not out.exists()
    result = inside(*arguments, "--unknown", "drop")
    assert result.returncode == 0, result.stderr
    assert "left out" in result.stderr
    assert "☃" in result.stderr
    assert (out / "0000-one-two.wav").exists()


def test_a_clip_is_edited_and_continued(speech_run: Path, tmp_path: Path) -> None:
    import soundfile

    clip = next((speech_run.parent / "corpora").glob("*/wavs/*.wav"))
    before, rate = soundfile.read(clip, dtype="int16")
    content = clip.read_bytes()
    span = ["--from", "0.2", "--to", "0.4", "--text", "one nine", "--out", str(tmp_path / "edited.wav")]
    result = inside("edit", str(speech_run), str(clip), *span)
    assert result.returncode == 0, result.stderr
    after, _ = soundfile.read(tmp_path / "edited.wav", dtype="int16")
    assert len(after) == len(before)
    changed = (after != before).nonzero()[0]
    assert 0.2 - 0.05 < changed.min() / rate < changed.max() / rate < 0.4 + 0.05
    longer = inside("edit", str(speech_run), str(clip), "--seconds", "0.5", "--text", "one nine")
    assert longer.returncode == 0, longer.stderr
    written = clip.with_name(f"{clip.stem}-edited.wav")
    assert soundfile.info(written).frames == pytest.approx(len(before) + 0.5 * rate, abs=1100)
    written.unlink()
    assert clip.read_bytes() == content


def test_evaluate_measures_speech(speech_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("pocketsphinx")
    out = tmp_path / "evaluation.json"
    result = inside("evaluate", str(speech_run), "--count", "2", "--out", str(out))
    assert result.returncode == 0, result.stderr
    assert "word error rate" in result.stdout
    figures = json.loads(out.read_text())
    assert figures["recogniser"] == "GrammarRecogniser"
    assert figures["word_error_rate"] > 0.3  # two steps of training
    assert figures["recordings"]["vocoder_word_error_rate"] < 0.3
    assert len(figures["sha256"]) == 64
    assert "evaluate" in figures["command"]
    out = tmp_path / "best"
    arguments = ["--text", "one two", "--candidates", "2", "--out", str(out)]
    assert inside("generate", str(speech_run), *arguments).returncode == 0
    assert (out / "0000-one-two.wav").exists()


def test_a_part_of_a_picture_is_painted_anew(digits_run: Path, tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    assert inside("generate", str(digits_run), "--class", "7", "--out", str(tmp_path)).returncode == 0
    mask = np.zeros((8, 8), np.uint8)
    mask[2:4, 2:4] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    files = [str(tmp_path / "0000-7.png"), "--mask", str(tmp_path / "mask.png"), "--class", "2"]
    assert inside("edit", str(digits_run), *files, "--out", str(tmp_path / "new.png")).returncode == 0
    old, new = (np.asarray(Image.open(tmp_path / name)) for name in ("0000-7.png", "new.png"))
    assert (old != new)[mask == 0].sum() == 0


def test_clips_go_on_from_given_frames(clips_run: Path, tmp_path: Path) -> None:
    from djepa_mm.media.clips import read_clip

    corpus = clips_run.parent / "clips"
    walk, fall = corpus / "walk" / "0.mp4", corpus / "fall" / "1.mp4"
    ends = ["--first-frames", f"{walk}:2", "--last-frames", f"{fall}:4"]
    arguments = ["--class", "walk", "--count", "2", "--format", "gif", "--out", str(tmp_path)]
    result = inside("generate", str(clips_run), *ends, *arguments)
    assert result.returncode == 0, result.stderr
    names = ["0000-walk.gif", "0001-walk.gif", "index.html", "sheet.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert (tmp_path / "index.html").read_text().count('src="data:image/gif') == 2
    clips = [read_clip(tmp_path / name) for name in names[:2]]
    for clip in clips:
        assert clip.shape == (3, 8, 16, 16)
        assert (clip[:, :2] - read_clip(walk)[:, :2]).abs().mean() < 0.05
        assert (clip[:, 4:] - read_clip(fall)[:, 4:]).abs().mean() < 0.05
        assert (clip[:, 2:4] - read_clip(walk)[:, 2:4]).abs().mean() > 0.1
    assert (clips[0][:, 2:4] - clips[1][:, 2:4]).abs().mean() > 0.1


def test_a_clip_is_painted_anew_in_space_and_time(clips_run: Path, tmp_path: Path) -> None:
    import numpy as np
    import torch
    from PIL import Image

    from djepa_mm.media.clips import read_clip, write_clip

    film = clips_run.parent / "clips" / "walk" / "0.mp4"
    still = torch.zeros(16, 16, dtype=torch.bool)
    still[4:12, 4:12] = True
    Image.fromarray((still * 255).numpy().astype(np.uint8)).save(tmp_path / "still.png")
    moving = torch.zeros(8, 16, 16, dtype=torch.bool)
    moving[:4, :8], moving[4:, 8:] = True, True
    write_clip(moving[None] * 2.0 - 1, tmp_path / "moving.mp4", 10.0)
    early = torch.arange(8)[:, None, None] < 3
    everywhere = torch.ones(8, 16, 16, dtype=torch.bool)
    for options, mask in (
        (["--mask", str(tmp_path / "still.png")], still.expand(8, 16, 16)),
        (["--mask", str(tmp_path / "still.png"), "--to", "0.3"], still & early),
        (["--mask", str(tmp_path / "moving.mp4")], moving),
        (["--from", "0", "--to", "0.3"], everywhere & early),
    ):
        for name in ("new.gif", "new.webp", "new.mp4"):
            out = ["--class", "walk", "--out", str(tmp_path / name)]
            result = inside("edit", str(clips_run), str(film), *options, *out)
            assert result.returncode == 0, result.stderr
        change = (read_clip(tmp_path / "new.gif") - read_clip(film)).abs()
        assert change[:, ~mask].mean() < 0.05
        assert change[:, mask].mean() > 0.3
        assert read_clip(tmp_path / "new.webp").shape == read_clip(tmp_path / "new.mp4").shape == change.shape


def test_mistakes_with_clips(clips_run: Path, digits_run: Path, tmp_path: Path) -> None:
    import torch
    from PIL import Image

    from djepa_mm.media.clips import write_clip

    run, film = str(clips_run), str(clips_run.parent / "clips" / "walk" / "0.mp4")
    write_clip(torch.zeros(3, 8, 12, 16), tmp_path / "flat.gif", 10.0)
    Image.new("L", (16, 12), 255).save(tmp_path / "flat.png")
    Image.new("L", (16, 16)).save(tmp_path / "black.png")
    for value in (film, f"{film}:", f"{film}:two", f"{film}:0", f"{film}:-2", ":2", f"{film}:" + "9" * 5000):
        for option in ("--first-frames", "--last-frames"):
            assert "expected a clip and how many frames" in mistake("generate", run, option, value, cwd=tmp_path)
    first = ["generate", run, "--first-frames"]
    assert "16×12 pixels in 3 channels, this model takes 16×16" in mistake(*first, "flat.gif:1", cwd=tmp_path)
    assert "give 2 or 4" in mistake(*first, f"{film}:3", cwd=tmp_path)
    assert "leave at least one" in mistake(*first, f"{film}:4", "--last-frames", f"{film}:4", cwd=tmp_path)
    assert "this model's clips have 8 frames" in mistake(*first, f"{film}:9", cwd=tmp_path)
    write_clip(torch.arange(3.0).expand(3, 16, 16, 3).movedim(-1, 1) - 1, tmp_path / "short.gif", 10.0)
    assert "short.gif:4: the clip has 3 frames" in mistake(*first, "short.gif:4", cwd=tmp_path)
    assert "not readable as a clip" in mistake(*first, "missing.mp4:2", cwd=tmp_path)
    assert "for models of clips" in mistake("generate", str(digits_run), "--first-frames", f"{film}:2", cwd=tmp_path)
    assert ".mp4, .gif, .webp files" in mistake("generate", run, "--format", "png", cwd=tmp_path)
    edit = ["edit", run, film, "--class", "walk"]
    assert "the clip, with its frames first" in mistake(*edit, "--mask", "flat.png", cwd=tmp_path)
    assert "nothing is white" in mistake(*edit, "--mask", "black.png", cwd=tmp_path)
    assert "after it begins" in mistake(*edit, "--from", "0.5", "--to", "0.2", cwd=tmp_path)
    assert "leave --seconds out" in mistake(*edit, "--mask", "flat.png", "--seconds", "1", cwd=tmp_path)
    assert "one length" in mistake(*edit, "--seconds", "1", cwd=tmp_path)
    assert "not readable" in mistake(*edit, "--mask", "missing.png", cwd=tmp_path)
    assert ".mp4, .gif, .webp files" in mistake(*edit, "--out", "new.avi", cwd=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["black.png", "flat.gif", "flat.png", "short.gif"]


def test_tokens_compares_saves_and_decodes(digits_run: Path, tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    picture = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)).save(picture)
    (tmp_path / "b.png").write_text("no picture")
    kinds = [
        "--tokenizer",
        "patches,patch=2,channels=3,size=[16,16]",
        "--tokenizer",
        "patches,patch=4,channels=3,size=[16,16]",
    ]
    folders = ["--out", str(tmp_path / "out"), "--save", str(tmp_path / "saved"), "--json", str(tmp_path / "t.json")]
    result = inside("tokens", str(picture), str(tmp_path / "b.png"), *kinds, *folders, "--repeats", "1")
    assert result.returncode == 0, result.stderr
    assert "b.png" in result.stderr
    figures = json.loads((tmp_path / "t.json").read_text())
    assert [row["num_tokens"] for row in figures] == [64, 16]
    saved = sorted((tmp_path / "saved").rglob("*.safetensors"))
    assert len(saved) == 2
    assert inside("tokens", str(saved[0]), "--out", str(tmp_path / "back")).returncode == 0
    (back,) = (tmp_path / "back").iterdir()
    assert np.array_equal(np.asarray(Image.open(back)), np.asarray(Image.open(picture)))
    assert "--tokenizer" in mistake("tokens", str(picture), cwd=tmp_path)
    assert "none of 1 files" in mistake("tokens", str(tmp_path / "b.png"), "--tokenizer", "patches,patch=2,channels=3")


def test_mistakes_in_speech_and_editing(speech_run: Path, digits_run: Path, tmp_path: Path) -> None:
    run, clip = str(speech_run), next((speech_run.parent / "corpora").glob("*/wavs/*.wav"))
    one = ["--text", "one"]
    assert "after it begins" in mistake("edit", run, str(clip), "--from", "0.4", "--to", "0.2", *one, cwd=tmp_path)
    assert "s long" in mistake("edit", run, str(clip), "--from", "0.4", "--to", "90", *one, cwd=tmp_path)
    assert "needs a text" in mistake("edit", run, str(clip), "--from", "0.1", "--to", "0.2", cwd=tmp_path)
    assert "missing.wav: not readable as sound (no such" in mistake("edit", run, "missing.wav", *one, cwd=tmp_path)
    assert "stays as it is" in mistake("edit", run, str(clip), "--out", str(clip), *one, cwd=tmp_path)
    assert ".wav, .flac files" in mistake("edit", run, str(clip), "--out", "new.mp3", *one, cwd=tmp_path)
    assert "resize it first" in mistake("edit", str(digits_run), str(ROOT / "docs" / "digits.png"), cwd=tmp_path)
    assert "out of range" in mistake("generate", run, "--rate", "0", *one, cwd=tmp_path)
    assert "out of range" in mistake("generate", run, "--seconds", "180", *one, cwd=tmp_path)
    assert "holds no text" in mistake(
        "generate", run, "--prompts", str(_written(tmp_path / "e.txt", b"\n")), cwd=tmp_path
    )
    binary = _written(tmp_path / "b.txt", b"\xff\xfe\x00")
    assert "cannot be read" in mistake("generate", run, "--prompts", str(binary), cwd=tmp_path)
    assert "for speech" in mistake("evaluate", str(digits_run), "--prompts", "project-page", cwd=tmp_path)
    assert "recogniser" in mistake("evaluate", run, "--recogniser", str(tmp_path / "none"), cwd=tmp_path)
    assert "recogniser" in mistake("generate", str(digits_run), "--candidates", "2", cwd=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.txt", "e.txt"]


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_recipe_verbs(tmp_path: Path) -> None:
    assert "name: digits" in inside("recipes", "show", "digits").stdout
    assert "lr: 0.5" in inside("recipes", "show", "digits", "--set", "optim.lr=0.5").stdout
    assert inside("recipes", "copy", "digits", str(tmp_path / "mine.yaml")).returncode == 0
    assert "is there already" in mistake("recipes", "copy", "digits", str(tmp_path / "mine.yaml"))
    assert "valid" in inside("recipes", "validate", str(tmp_path / "mine.yaml")).stdout
    assert "properties" in json.loads(inside("recipes", "schema").stdout)


def test_info_counts_the_papers_parameters() -> None:
    shown = inside("info", "imagenet256-b").stdout
    for figure in ("85,056,000", "35,749,920", "212.4 M", "256 (1 × 16 × 16)"):
        assert figure in shown


def test_doctor() -> None:
    result = inside("doctor")
    assert result.returncode == 0
    assert "torch" in result.stdout


def test_data_check_names_broken_files(tmp_path: Path) -> None:
    import numpy as np
    import soundfile

    (tmp_path / "wavs").mkdir()
    for name in "abc":
        soundfile.write(tmp_path / "wavs" / f"{name}.wav", np.zeros(22050), 22050)
    (tmp_path / "wavs" / "b.wav").write_text("not sound")
    (tmp_path / "metadata.csv").write_text("a|one|one\nb|two|two\nc|three|three\n")
    result = inside("data", "check", "ljspeech", "--set", f"data.root={tmp_path}")
    assert result.returncode == 1
    assert "not readable" in result.stdout
    (tmp_path / "wavs" / "b.wav").unlink()
    soundfile.write(tmp_path / "wavs" / "b.wav", np.zeros(22050), 22050)
    assert inside("data", "check", "ljspeech", "--set", f"data.root={tmp_path}").returncode == 0


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    write_pictures(tmp_path, (3, 8, 8), (3, 8, 8))
    (tmp_path / "class0").rename(tmp_path / "[old]")
    overrides = sets(f"data.root={tmp_path}", "data.size=[8,8]", "tokenizer.size=[8,8]")
    result = inside("data", "check", "pictures", *overrides)
    assert "[old]" in result.stdout, result


def test_mistakes_are_one_line_and_exit_code_2(tmp_path: Path, digits_run: Path) -> None:
    line = mistake("train", "ljspeech", cwd=tmp_path)
    assert "data fetch ljspeech" in line
    assert "spoken-digits" in line
    assert "did you mean 'steps'" in mistake("train", "digits", "--set", "optim.stepz=3", cwd=tmp_path)
    assert "-3" in mistake("train", "digits", "--set", "model.width=-3", cwd=tmp_path)
    evil = tmp_path / "evil.yaml"
    evil.write_text("name: !!python/object/apply:os.system ['touch pwned']\n")
    assert "python/object" in mistake("train", str(evil), cwd=tmp_path)
    (tmp_path / "empty").mkdir()
    pictures = ["data={source: image-folder, root: empty, size: [8, 8]}"]
    assert "no pictures" in mistake("train", "digits", *sets(*pictures), cwd=tmp_path)
    assert "no checkpoint yet" in mistake("generate", "empty", cwd=tmp_path)
    assert "no checkpoint yet" in mistake("train", "digits", "--out", "empty", "--resume", cwd=tmp_path)
    assert "no such class" in mistake("generate", str(digits_run), "--class", "seven", cwd=tmp_path)
    assert "takes no text; it knows class" in mistake("generate", str(digits_run), "--text", "seven", cwd=tmp_path)
    assert "cannot be read" in mistake("generate", str(digits_run), "--prompts", "missing.txt", cwd=tmp_path)
    assert "finite" in mistake("generate", str(digits_run), "--seconds", "nan", cwd=tmp_path)
    assert "cuda" in mistake("generate", str(digits_run), "--device", "coda", cwd=tmp_path)
    assert "did you mean" in mistake("train", "digit", cwd=tmp_path)
    # nothing was left behind
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "evil.yaml"]
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_killed_run_resumes(tmp_path: Path) -> None:
    """SIGTERM saves a checkpoint and exits with 130; --resume finishes the run."""
    import signal
    import time

    out = tmp_path / "run"
    overrides = sets(*SMALL, "optim.steps=100000", "run.log_every=1")
    arguments = [sys.executable, "-m", "djepa_mm", "train", "digits", "--out", str(out), *overrides]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = out / "log.jsonl"
    for _ in range(1800):
        if log.exists() and log.read_text().count("\n") > 3:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    reached = int(next(iter((out / "checkpoints").iterdir())).name.removeprefix("step-"))
    assert reached > 3
    result = inside("train", "digits", "--out", str(out), "--resume", *sets(*SMALL, f"optim.steps={reached + 2}"))
    assert f"finished at step {reached + 2}" in result.stdout, result.stderr
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == sorted(set(steps))
