from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console

from djepa_mm.data.recordings import Recordings
from djepa_mm.recipe.load import load_recipe
from djepa_mm.recipe.vocoder import VocoderRecipe, load_vocoder_recipe
from djepa_mm.runs.checkpoint import differences
from djepa_mm.speech.copy import copy_synthesis
from djepa_mm.speech.vocoders.fourier import load_fourier
from djepa_mm.speech.vocoders.losses import RESOLUTIONS, Discriminators, magnitude, spectral_loss
from djepa_mm.training.adversarial import deception, detection
from djepa_mm.training.loop import Outcome
from djepa_mm.training.vocoder import train_vocoder
from djepa_mm.types import UserError
from djepa_mm.weights import find_checkpoint, read_state, read_tensors

RATE_HZ = 22050
SMALL = [
    "model={width: 16, blocks: 1}",
    "batch={size: 2, frames: 8}",
    "optim.minutes=null",
    "optim.schedule=constant",
    "optim.precision=fp32",
    "loss.channels=2",
    "data.held_out=0.0",
    "run.log_every=1",
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips of gliding hums in LJSpeech's layout; the last is shorter than a segment."""
    root = tmp_path_factory.mktemp("corpus")
    (root / "wavs").mkdir()
    for number, seconds in enumerate((1.0, 0.6, 0.08)):
        time_s = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
        phase = 2 * np.pi * ((100 + 40 * number) * time_s + 30 * time_s**2)
        sound = sum(np.sin(k * phase) / k for k in range(1, 12)) * 0.15
        soundfile.write(root / "wavs" / f"clip{number}.wav", sound, RATE_HZ, subtype="PCM_16")
    (root / "metadata.csv").write_text("".join(f"clip{n}|hum {n}|hum {n}\n" for n in range(3)))
    return root


def recipe(corpus: Path, *overrides: str) -> VocoderRecipe:
    return load_vocoder_recipe("vocoder", [*SMALL, f"data.root={corpus}", "data.min_duration_s=0.05", *overrides])


def run(recipe: VocoderRecipe, out: Path, resume: bool = False) -> Outcome:
    return train_vocoder(recipe, out, resume=resume, device=torch.device("cpu"), console=Console(quiet=True))


def rows(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


# --- losses -----------------------------------------------------------------------------------------------------------


def test_losses_are_those_of_their_definitions() -> None:
    torch.manual_seed(0)
    real = [magnitude(torch.randn(2, 4096), n_fft) for n_fft in RESOLUTIONS]
    assert spectral_loss(real, real) == 0
    half = spectral_loss([spectrum / 2 for spectrum in real], real)
    assert half.item() == pytest.approx(0.5 + np.log(2), rel=1e-4)  # ‖X − X/2‖ / ‖X‖, and |log ½|
    discriminators = Discriminators(2)
    seen = discriminators(real)
    assert len(seen) == len(RESOLUTIONS)
    judged = deception(seen, seen)
    assert judged.features == 0
    ones = [[torch.ones(1)], [torch.ones(1)]]
    assert detection([[-o for o in layers] for layers in ones], ones) == 0
    assert detection(ones, [[-o for o in layers] for layers in ones]) == 4
    fooled = [[torch.zeros(1), torch.ones(1)]]
    assert deception(fooled, [[torch.ones(1), torch.zeros(1)]]).verdict == 0
    assert deception(fooled, [[torch.ones(1), torch.zeros(1)]]).features == 1


# --- recordings -------------------------------------------------------------------------------------------------------


def test_segments_are_cut_from_clips_and_short_clips_end_in_silence(corpus: Path) -> None:
    recordings = Recordings(recipe(corpus).data.build(), 0.0)
    generator = torch.Generator().manual_seed(0)
    batch = recordings.segments(256, 2048, generator)
    assert batch.shape == (256, 2048)
    sources = [clip.float() / 32767 for clip in recordings.clips]
    short = sources[2]
    ended = [row for row in batch if torch.equal(row[: len(short)], short)]
    assert all((row[len(short) :] == 0).all() for row in ended)
    share = len(short) / sum(map(len, sources))
    assert abs(len(ended) / len(batch) - share) < 3 * (share * (1 - share) / len(batch)) ** 0.5
    places = [clip.unfold(0, 2048, 1) for clip in sources[:2]]
    for row in batch[:2]:
        cut = any((windows == row).all(1).any() for windows in places)
        assert cut or torch.equal(row[: len(short)], short)
    again = recordings.segments(256, 2048, torch.Generator().manual_seed(0))
    assert torch.equal(batch, again)


def test_broken_clips_are_skipped_up_to_a_share(corpus: Path, tmp_path: Path) -> None:
    with (tmp_path / "metadata.csv").open("w") as file:
        file.write((corpus / "metadata.csv").read_text() + "gone|nothing|nothing\n")
    (tmp_path / "wavs").symlink_to(corpus / "wavs")
    source = recipe(tmp_path).data.build()
    assert list(Recordings(source, 0.5).broken) == ["gone"]
    with pytest.raises(UserError, match=r"1 of 4 clips cannot be read, such as gone: .*max_broken_share"):
        Recordings(source, 0.05)


# --- training ---------------------------------------------------------------------------------------------------------


def test_a_short_training_lowers_the_losses_and_leaves_what_it_should(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    outcome = run(recipe(corpus, "optim.steps=40", "optim.lr=1e-2", "run.sample_every=30"), out)
    assert outcome == Outcome(run=out, step=40, finished=True)
    log = rows(out)
    assert len(log) == 40
    for term in ("spectral", "mel"):  # a step may hold the short clip, so several steps
        assert fmean(row[term] for row in log[-5:]) < 0.9 * fmean(row[term] for row in log[:5]), term
    assert [row["detection"] > 0 for row in log] == [False] * 34 + [True] * 6  # adversarial_from is 0.85
    assert {path.name for path in (out / "samples").glob("*.wav")} == {
        "original.wav",
        "step-00000030.wav",
        "step-00000040.wav",
    }
    assert load_vocoder_recipe(out / "recipe.yaml").optim.steps == 40
    with pytest.raises(UserError, match="holds a run already; go on with it: --resume"):
        run(recipe(corpus, "optim.steps=50"), out)

    page = copy_synthesis(
        out,
        [corpus / "wavs" / "clip0.wav"],
        tmp_path / "copies",
        device=torch.device("cpu"),
        progress=lambda done, total: None,
    )
    lengths = {path.name: soundfile.info(path).frames for path in (tmp_path / "copies").glob("*.wav")}
    assert lengths == {f"00-clip0-{what}.wav": RATE_HZ for what in ("recording", "ours", "griffin-lim")}
    assert page.read_text().count("<audio") == 3


def test_stop_and_resume_equals_never_stopping(corpus: Path, tmp_path: Path) -> None:
    always = ["loss.adversarial_from=0.0", "optim.precision=bf16"]
    run(recipe(corpus, *always, "optim.steps=4"), tmp_path / "whole")
    run(recipe(corpus, *always, "optim.steps=2"), tmp_path / "parts")
    with (tmp_path / "parts" / "log.jsonl").open("a") as file:
        file.write('{"step": 3, "spectral": 99.0}\n{"step": 4, "spe')  # a killed run's last lines
    run(recipe(corpus, *always, "optim.steps=4"), tmp_path / "parts", resume=True)
    whole, parts = find_checkpoint(tmp_path / "whole"), find_checkpoint(tmp_path / "parts")
    assert read_state(parts)["step"] == 4
    assert differences(whole, parts) == []
    assert [row["spectral"] for row in rows(tmp_path / "whole")] == [
        row["spectral"] for row in rows(tmp_path / "parts")
    ]


def test_the_average_is_what_speaks(corpus: Path, tmp_path: Path) -> None:
    run(recipe(corpus, "optim.steps=3"), tmp_path)
    averaged = load_fourier(tmp_path).state_dict()
    online = read_tensors(find_checkpoint(tmp_path), "online")
    assert not torch.equal(averaged["head.weight"], online["vocoder.head.weight"])
    checkpoint = read_tensors(find_checkpoint(tmp_path), "averaged")
    assert torch.equal(averaged["head.weight"], checkpoint["head.weight"])


def test_the_clock_ends_a_run(corpus: Path, tmp_path: Path) -> None:
    outcome = run(recipe(corpus, "optim.minutes=0.001"), tmp_path)
    assert outcome.finished
    assert 0 < outcome.step < 100


def test_mistakes_are_told_in_one_line(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run folder"):
        run(recipe(corpus), tmp_path / "none", resume=True)
    with pytest.raises(UserError, match="kind vocoder; train it: djepa-mm vocoder train vocoder"):
        load_recipe("vocoder")
    with pytest.raises(UserError, match="digits holds no sound"):
        run(load_vocoder_recipe("vocoder", ["data={source: digits}"]), tmp_path)
    with pytest.raises(UserError, match=r"optim\.optimizer muon is for D-JEPA's blocks: set it to adamw"):
        load_vocoder_recipe("vocoder", ["data.root=.", "optim.optimizer=muon"])
    with pytest.raises(UserError, match=r"--set loss.spectrum: unknown key .*did you mean 'spectral'"):
        recipe(corpus, "loss.spectrum=1")
    run(recipe(corpus, "optim.steps=1"), tmp_path / "run")
    with pytest.raises(UserError, match=r"its model\.width is 16, here 24; make them agree"):
        run(recipe(corpus, "optim.steps=2", "model={width: 24, blocks: 1}"), tmp_path / "run", resume=True)
    (tmp_path / "no.wav").write_text("not sound")
    soundfile.write(tmp_path / "short.wav", np.zeros(100), RATE_HZ)
    for name, message in (("no.wav", "not readable as sound"), ("short.wav", "short.wav: 100 samples are too short")):
        with pytest.raises(UserError, match=message):
            copy_synthesis(
                tmp_path / "run",
                [tmp_path / name],
                tmp_path / "copies",
                device=torch.device("cpu"),
                progress=lambda done, total: None,
            )
    assert not (tmp_path / "copies").exists()
