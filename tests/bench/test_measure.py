"""The token bench, on clips, pictures and sounds."""

from __future__ import annotations

import io
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file
from support import SHARED

from djepa_mm.bench import saved
from djepa_mm.bench.candidate import Candidate, parse_tokenizer, read_media
from djepa_mm.bench.measure import (
    Row,
    bench,
    difference,
    file_name,
    measure,
    mel_distance_db,
    report,
    table,
    write_comparisons,
)
from djepa_mm.bench.saved import decode_files, load_tokens, save_all, save_tokens
from djepa_mm.evaluate.distance import psnr_db
from djepa_mm.media.clips import probe_clip, read_clip, write_clip
from djepa_mm.recipe.load import load_recipe
from djepa_mm.types import UserError

pytest.importorskip("av")

CLIPS = SHARED / "data" / "video" / "clips"
PATCHES = "clip-patches,patch=[2,8,8]"


def clip(frames: int, height: int, width: int, seed: int) -> torch.Tensor:
    """Smooth colours that drift, and a sharp edge."""
    start = torch.rand(3, 1, 1, 1, generator=torch.Generator().manual_seed(seed))
    t, y, x = torch.meshgrid(*(torch.linspace(0, 1, n) for n in (frames, height, width)), indexing="ij")
    pixels = torch.sin(6 * (start + 0.2 * t + x * start.roll(1, 0) - y))
    return (pixels * 0.6 + 0.3 * (x > y)).clamp(-1, 1)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two clips, of 10 frames of 32 × 48 and of 8 frames of 40 × 48 pixels, and one that is none between them."""
    folder = tmp_path_factory.mktemp("clips")
    files = [folder / name for name in ("long.mp4", "broken.mp4", "high.mp4")]
    write_clip(clip(10, 32, 48, 0), files[0], 12.5)
    files[1].write_text("no clip")
    write_clip(clip(8, 40, 48, 1), files[2], 25.0)
    return files


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, samples = tmp_path_factory.mktemp("sounds"), np.arange(8000) / 8000
    files = [folder / "low.wav", folder / "high.wav"]
    for path, pitch_hz in zip(files, (220, 880), strict=True):
        soundfile.write(path, 0.3 * np.sin(2 * np.pi * pitch_hz * samples) * np.exp(-3 * samples), 8000)
    return files


def printed(rows: list[Row]) -> str:
    out = io.StringIO()
    Console(width=200, file=out).print(table(rows))
    return out.getvalue()


# --- which tokenizer


def test_a_kind_takes_from_the_files_what_they_say(clips: list[Path]) -> None:
    config: Any = parse_tokenizer(PATCHES, clips).config
    assert (config.frames, config.size, config.frame_rate, config.patch) == (8, (32, 48), 12.5, (2, 8, 8))
    config = parse_tokenizer("clip-patches,patch=[1, 4, 4], frames=4,size=[16,16],frame_rate=5", []).config
    assert (config.frames, config.size, config.frame_rate) == (4, (16, 16), 5.0)
    config = parse_tokenizer("clip-patches,patch=[1,4,4],frames=4,size=[16,16],frame_rate=5e-1", []).config
    assert config.frame_rate == 0.5


def test_a_recipe_gives_its_tokenizer(tmp_path: Path) -> None:
    config: Any = parse_tokenizer("digits", []).config
    assert config == load_recipe("digits").tokenizer
    config = parse_tokenizer("digits,patch=2", []).config
    assert config.patch == 2
    config = parse_tokenizer("mel,vocoder={kind: griffin-lim, iterations: 3},frames_per_token=2", []).config
    assert (config.vocoder.iterations, config.frames_per_token) == (3, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clip-patchs", r"--tokenizer clip-patchs: no kind of tokenizer \(.*clip-patches.*no recipe 'clip-patchs'"),
        ("clip-patches", r"tokenizer\.patch: this key is required"),
        ("clip-patches,patch=[2,8", r"'\[2,8' is not plain YAML"),
        (f"{PATCHES},frams=3", r"unknown key .* did you mean 'frames'"),
        ("clip-patches,patch=[3,8,8]", r"8 frames .* do not divide into tokens of 3"),
        ("digits,patch=5", r"do not divide into tokens of 5"),
    ],
)
def test_a_tokenizer_that_makes_no_sense_is_one_line(text: str, message: str, clips: list[Path]) -> None:
    with pytest.raises(UserError, match=message) as error:
        parse_tokenizer(text, clips)
    assert "\n" not in str(error.value)


def test_files_that_say_nothing_are_named(clips: list[Path]) -> None:
    with pytest.raises(UserError, match=r"^none of 1 files can be read; .*broken\.mp4: not readable as a clip"):
        parse_tokenizer(PATCHES, clips[1:2])


# --- measuring


def test_files_are_cut_to_the_tokenizer(clips: list[Path]) -> None:
    candidate = parse_tokenizer(PATCHES, clips)
    media = read_media(clips[2], candidate.tokenizer)
    assert torch.equal(media, read_clip(clips[2])[:, :, 4:36])
    large = parse_tokenizer(f"{PATCHES},size=[40,48]", clips)
    with pytest.raises(UserError, match="too small, 8×32×48 where the tokenizer takes 8×40×48"):
        read_media(clips[0], large.tokenizer)


def test_patches_are_exact_and_what_cannot_be_read_is_named(clips: list[Path]) -> None:
    (row,) = bench([parse_tokenizer(PATCHES, clips)], clips, repeats=1)
    assert row.read == (clips[0], clips[2])
    ((path, reason),) = row.skipped
    assert path == clips[1]
    assert reason.startswith("not readable as a clip")
    measures = row.measures
    assert measures is not None
    assert (measures.spec.grid, measures.token_dim, measures.compression) == ((4, 4, 6), 2 * 8 * 8 * 3, 1)
    assert measures.largest_error < 1e-5
    assert measures.psnr_db == pytest.approx(106, abs=0.1)
    assert measures.ssim == pytest.approx(1)
    tokenizer = row.candidate.tokenizer
    tokens = torch.cat([tokenizer.encode(read_media(path, tokenizer)[None])[0] for path in row.read])
    torch.testing.assert_close(measures.mean, tokens.mean(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(measures.std, tokens.std(0, correction=0), atol=1e-5, rtol=1e-4)
    text = printed([row])
    assert "exact" in text
    assert json.loads(json.dumps(report([row])))[0]["skipped"] == {str(path): reason}


class Worse:
    """Patches of which one channel says nothing and whose decoder is off by 0.1; its first timed run is slow."""

    def __init__(self, tokenizer: Any) -> None:
        self.inner, self.calls = tokenizer, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def encode(self, media: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        time.sleep(0.5 if self.calls <= 2 else 0.02)
        tokens = self.inner.encode(media)
        tokens[..., 0] = 3.0
        return tokens

    def decode(self, tokens: torch.Tensor, spec: Any) -> torch.Tensor:
        return torch.full((1, *spec.shape), 0.1)


def test_channels_that_never_change_are_all_dead() -> None:
    tokenizer = parse_tokenizer("patches,patch=4,channels=1,size=[8,8]").tokenizer
    assert measure(tokenizer, [torch.zeros(1, 8, 8)] * 2).dead_share == 1


def test_files_of_two_tokenizers_never_have_one_name(clips: list[Path]) -> None:
    """Not where a long path comes first, and not for characters that no file's name has."""
    one = parse_tokenizer("clip-patches,patch=[1,2,2],size=[16,16],frames=2", clips)
    first, second, third = (
        Candidate(name=f"path={'a' * 90}{end}", config=one.config, tokenizer=one.tokenizer)
        for end in ("-1", "-2", "/2")
    )
    assert file_name(first) != file_name(second)
    with pytest.raises(UserError, match=r"^--tokenizer .*a/2 and .*a-2: their files would have one name; give one$"):
        bench([first, second, third], clips[:1], repeats=1)


def test_errors_rates_and_dead_channels_are_what_they_are(clips: list[Path]) -> None:
    candidate = parse_tokenizer("clip-patches,patch=[1,2,2],size=[16,16],frames=2", clips)
    worse = Candidate(name="worse", config=candidate.config, tokenizer=Worse(candidate.tokenizer))
    flat = clips[0].with_name("flat.mp4")
    write_clip(torch.zeros(3, 4, 16, 16), flat, 10.0)
    with_noise = clips[0]
    (row,) = bench([worse], [flat, with_noise], repeats=3)
    measures = row.measures
    assert measures is not None
    assert measures.dead_share == pytest.approx(1 / 12)
    assert measures.mean[0] == 3
    assert 15 < measures.encode_per_s < 50  # by the median; the mean would give 10
    (example, _) = measures.examples
    error = 0.1 - example.original
    assert psnr_db(example.original, example.reconstruction) == pytest.approx(
        10 * math.log10(4 / error.square().mean().item()), abs=1e-3
    )
    assert torch.equal(difference(example, 4.0), (4 * error).clamp(-1, 1))


def test_only_where_no_file_can_be_read_is_it_an_error(clips: list[Path], sounds: list[Path]) -> None:
    candidates = [parse_tokenizer(PATCHES, clips), parse_tokenizer("mel", [])]
    first, second = bench(candidates, [clips[0], sounds[0]], repeats=1)
    assert (first.read, second.read) == ((clips[0],), (sounds[0],))
    with pytest.raises(UserError, match=r"^none of 1 files can be read; .*broken\.mp4"):
        bench(candidates, clips[1:2])
    (row,) = bench(candidates[1:], [clips[0], sounds[0]], repeats=1)
    assert len(row.skipped) == 1


def test_sounds_are_compared_by_their_mels(sounds: list[Path]) -> None:
    rough = "mel,sample_rate_hz=8000,vocoder={kind: griffin-lim, iterations: 1}"
    rows = bench([parse_tokenizer(text, sounds) for text in ("mel,sample_rate_hz=8000", rough)], sounds, repeats=1)
    fine, coarse = (row.measures for row in rows)
    assert fine is not None
    assert coarse is not None
    assert fine.psnr_db is fine.ssim is None
    assert fine.mel_distance_db is not None
    assert coarse.mel_distance_db is not None
    assert 0 < fine.mel_distance_db < coarse.mel_distance_db
    assert "PSNR" not in printed(rows)
    sound = torch.from_numpy(soundfile.read(sounds[0], dtype="float32")[0])
    assert mel_distance_db(sound, sound, 8000) == 0
    loud = torch.rand(8000) - 0.5
    assert mel_distance_db(loud, loud / 10, 8000) == pytest.approx(20, abs=0.5)  # −20 dB is −20 dB


# --- showing


def test_comparisons_of_clips_stand_side_by_side(clips: list[Path], tmp_path: Path) -> None:
    (row,) = bench([parse_tokenizer(PATCHES, clips)], clips, repeats=1, examples=1)
    movie, picture = write_comparisons(row, tmp_path)
    found = probe_clip(movie)
    assert (found.frames, found.size) == (8, (32, 3 * 48))
    shown, original = read_clip(movie), read_media(clips[0], row.candidate.tokenizer)
    left, middle, right = shown.split(48, dim=-1)
    assert (left - original).abs().mean() < 0.03
    assert (middle - original).abs().mean() < 0.03
    assert right.abs().mean() < 0.03  # nothing differs: grey
    assert Image.open(picture).width > 3 * 4 * 48


def test_comparisons_of_sounds_follow_each_other(sounds: list[Path], tmp_path: Path) -> None:
    (row,) = bench([parse_tokenizer("mel,sample_rate_hz=8000", sounds)], sounds, repeats=1, examples=2)
    *files, _ = write_comparisons(row, tmp_path)
    assert [soundfile.info(path).duration for path in files] == pytest.approx([3 * 1 + 2 * 0.15] * 2)


def test_comparisons_of_pictures(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray((torch.rand(20, 24, 3) * 255).byte().numpy()).save(path)
    (row,) = bench([parse_tokenizer("patches,patch=4", [path])], [path], repeats=1)
    assert row.measures is not None
    assert row.measures.spec.grid == (1, 5, 6)
    picture, picture_sheet = write_comparisons(row, tmp_path / "out")
    assert Image.open(picture).size == (3 * 24, 20)
    assert Image.open(picture_sheet).width > 3 * 64


# --- files of tokens


def test_tokens_come_back_from_their_files_as_the_same_pixels(clips: list[Path], tmp_path: Path) -> None:
    (row,) = bench([parse_tokenizer(PATCHES, clips)], clips, repeats=1)
    assert row.measures is not None
    files = list(save_all(row, tmp_path))
    for path, example in zip(files, row.measures.examples, strict=True):
        found = load_tokens(path)
        assert torch.equal(found.media(), example.reconstruction)
        torch.testing.assert_close(found.media(), example.original, atol=1e-5, rtol=0)
    written = list(decode_files(files, tmp_path / "out"))
    assert [probe_clip(path).frame_rate for path in written] == [12.5, 12.5]


def test_tokens_of_a_real_clip_come_back(tmp_path: Path) -> None:
    if not CLIPS.is_dir():
        pytest.skip("the real clips are not on this machine")
    path = sorted(CLIPS.glob("city_bikes/*.mp4"))[0]
    (row,) = bench([parse_tokenizer(PATCHES, [path])], [path], repeats=1)
    assert row.measures is not None
    (file,) = save_all(row, tmp_path)
    assert torch.equal(load_tokens(file).media(), row.measures.examples[0].reconstruction)
    torch.testing.assert_close(load_tokens(file).media(), read_clip(path), atol=1e-5, rtol=0)


def test_tokens_of_sounds_keep_their_length(sounds: list[Path], tmp_path: Path) -> None:
    (row,) = bench([parse_tokenizer("mel,sample_rate_hz=8000", sounds)], sounds, repeats=1)
    assert row.measures is not None
    file, _ = save_all(row, tmp_path)
    assert torch.equal(load_tokens(file).media(), row.measures.examples[0].reconstruction)


def test_files_that_are_no_tokens_are_one_line(clips: list[Path], tmp_path: Path) -> None:
    candidate = parse_tokenizer(PATCHES, clips)
    media = read_media(clips[0], candidate.tokenizer)
    spec, path = candidate.tokenizer.spec_of(tuple(media.shape)), tmp_path / "a.safetensors"
    save_tokens(path, candidate.tokenizer.encode(media[None])[0], spec, candidate)
    tensors = load_file(path)
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-100])
    save_file(tensors, tmp_path / "foreign.safetensors")
    save_file(tensors, tmp_path / "bare.safetensors", {"format": saved.FORMAT})
    save_tokens(tmp_path / "fewer.safetensors", tensors["tokens"][1:], spec, candidate)
    for name, message in {
        "cut": "not readable as tokens",
        "missing": "not readable as tokens",
        "foreign": "not a file of tokens",
        "bare": "damaged file of tokens",
        "fewer": "do not fit",
    }.items():
        with pytest.raises(UserError, match=message) as error:
            load_tokens(tmp_path / f"{name}.safetensors")
        assert "\n" not in str(error.value)


def test_tokens_of_one_name_do_not_replace_each_other(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="several files are named a"):
        list(decode_files([tmp_path / "1" / "a.safetensors", tmp_path / "2" / "a.safetensors"], tmp_path / "out"))
    assert not (tmp_path / "out").exists()
