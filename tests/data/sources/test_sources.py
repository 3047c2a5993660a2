"""Sources read what is good and name what is broken."""

from __future__ import annotations

import pickle
import shutil
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from support import SHARED

from djepa_mm.data.sources.digits import DigitsConfig, load_digits
from djepa_mm.data.sources.ljspeech import LJSpeech, LJSpeechConfig, fetch_ljspeech
from djepa_mm.data.sources.torchvision_sets import TorchvisionConfig
from djepa_mm.recipe.load import load_recipe
from djepa_mm.types import BrokenItem, UserError

DATA = SHARED / "data"


def real(folder: str) -> str:
    if not (DATA / folder).is_dir():
        pytest.skip(f"the real corpus {DATA / folder} is not on this machine")
    return str(DATA / folder)


# Digits


def test_digits_are_the_packages() -> None:
    digits = DigitsConfig(source="digits", split="all").build()
    assert len(digits) == 1797
    item = digits.read(13)
    assert item.media.shape == digits.shape(13) == (1, 8, 8)
    assert (item.media.min(), item.media.max()) == (-1, 1)
    assert item.entry.label == "3"


def test_train_and_test_digits_share_none() -> None:
    train, test = DigitsConfig(source="digits", split="train").build(), load_digits("test")
    assert (len(train), len(test[0])) == (1437, 360)
    pictures = torch.cat([train.pictures, test[0]]).flatten(1)
    everything = load_digits("all")[0].flatten(1)
    assert torch.equal(pictures.sum(0), everything.sum(0))
    assert not (torch.cdist(test[0].flatten(1), train.pictures.flatten(1)) == 0).any()


def test_digits_come_from_the_cache_and_need_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr("djepa_mm.data.cache.user_cache_path", lambda *_, **__: cache)
    pictures, labels = load_digits("train")
    (kept,) = cache.rglob("*.safetensors")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "sklearn", None)
        assert torch.equal(load_digits("train")[0], pictures)
    whole = kept.read_bytes()
    kept.write_bytes(whole[:1000])
    assert load_digits("train")[1] == labels
    assert kept.read_bytes() == whole
    shutil.rmtree(cache)
    cache.write_text("a file, in which nothing can be kept")
    assert torch.equal(load_digits("train")[0], pictures)


def test_the_packaged_recipe_holds_digits_out() -> None:
    config = load_recipe("digits").data
    held_out = config.build_held_out()
    assert held_out is not None
    assert (len(config.build()), len(held_out)) == (1437, 360)
    assert DigitsConfig(source="digits").split == "all"  # what a checkpoint that does not say it was trained on


# torchvision


def test_torchvision_sets(tmp_path: Path) -> None:
    """CIFAR-10 is missing; a small MNIST is written here, in its own format (torchvision checks no sums there)."""
    with pytest.raises(UserError, match=r"^data\.root: no cifar10 in /[^\n]*data\.download=true$"):
        TorchvisionConfig(source="torchvision", dataset="cifar10", root=str(tmp_path), size=[8, 8]).build()

    def idx(path: Path, values: np.ndarray) -> None:
        shape = struct.pack(f">{values.ndim}I", *values.shape)
        path.write_bytes(bytes([0, 0, 8, values.ndim]) + shape + values.astype(np.uint8).tobytes())

    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        idx(raw / f"{part}-images-idx3-ubyte", np.arange(2 * 28 * 28).reshape(2, 28, 28) % 256)
        idx(raw / f"{part}-labels-idx1-ubyte", np.array([7, 3] if part == "train" else [1, 1]))
    config = TorchvisionConfig(source="torchvision", dataset="mnist", root=str(tmp_path), size=(32, 16))
    source = config.build()
    assert len(source) == 2
    assert source.classes == tuple("0123456789")
    item = source.read(0)
    assert item.media.shape == source.shape(0) == (1, 32, 16)
    assert item.entry.label == "7"
    assert -1 <= item.media.min() < item.media.max() <= 1
    held_out = config.build_held_out()
    assert held_out is not None
    assert [held_out.entry(n).label for n in range(2)] == ["1", "1"]
    assert held_out.entry(0).name != source.entry(0).name
    assert held_out.config.build_held_out() is None


# LJSpeech


def speech(root: Path, **options: Any) -> LJSpeech:
    return LJSpeechConfig(source="ljspeech", root=str(root), **options).build()


def tone(seconds: float, rate_hz: int) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate_hz)) / rate_hz)


def corpus(root: Path, *lines: str | bytes) -> Path:
    (root / "wavs").mkdir(exist_ok=True)
    (root / "metadata.csv").write_bytes(b"\n".join(x if isinstance(x, bytes) else x.encode() for x in lines) + b"\n")
    return root


def test_the_normalised_text_is_read_and_else_the_other(tmp_path: Path) -> None:
    for name in "ABC":
        soundfile.write(tmp_path / f"{name}.wav", tone(0.5, 22050), 22050)
    corpus(tmp_path, "A|No. 1|Number one", "B|Only this|", "C|Only two")
    for name in "ABC":
        (tmp_path / f"{name}.wav").rename(tmp_path / "wavs" / f"{name}.wav")
    source = speech(tmp_path)
    assert [source.entry(i).text for i in range(3)] == ["Number one", "Only this", "Only two"]
    assert source.entry(0).name == "A"
    assert source.read(0).media.shape == source.shape(0) == (11025,)
    assert len(pickle.loads(pickle.dumps(source))) == 3  # it goes to the loader's workers


@pytest.mark.parametrize("rate_hz", [8000, 16000, 22050, 24000, 44100, 48000, 11025])
def test_shape_knows_the_resampled_length(tmp_path: Path, rate_hz: int) -> None:
    corpus(tmp_path, "A|a|a", "B|b|b")
    soundfile.write(tmp_path / "wavs" / "A.flac", tone(0.7, rate_hz), rate_hz)
    soundfile.write(tmp_path / "wavs" / "B.wav", tone(11.9, rate_hz)[:-7], rate_hz)
    source = speech(tmp_path)
    for i, seconds in enumerate((0.7, 11.9)):
        media = source.read(i).media
        assert media.shape == source.shape(i)
        assert abs(len(media) - seconds * 22050) < 30
        spectrum = torch.fft.rfft(media).abs()
        assert spectrum.argmax() * 22050 / len(media) == pytest.approx(440, abs=1)
        assert media.abs().max() == pytest.approx(0.5, abs=0.1)


def test_stereo_is_averaged(tmp_path: Path) -> None:
    corpus(tmp_path, "A|a|a")
    left = tone(0.5, 22050)
    soundfile.write(tmp_path / "wavs" / "A.wav", np.stack([left, 0 * left], axis=1), 22050)
    media = speech(tmp_path).read(0).media
    np.testing.assert_allclose(media.numpy(), left / 2, atol=1e-4)


def test_broken_clips_stay_and_are_named(tmp_path: Path) -> None:
    lines = ["good|fine|fine", "no bars at all", "silent||", "missing|m|m", "empty|e|e", "text|t|t", "hollow|h|h"]
    corpus(tmp_path, *lines, b"latin|caf\xe9|caf\xe9", "nan|n|n", "folder|f|f", "cut|c|c", "", "nul\0byte|n|n")
    wavs = tmp_path / "wavs"
    soundfile.write(wavs / "good.wav", tone(0.5, 22050), 22050)
    soundfile.write(wavs / "silent.wav", tone(0.5, 22050), 22050)
    (wavs / "empty.wav").write_bytes(b"")
    (wavs / "text.wav").write_text("I am not a sound\n" * 100)
    soundfile.write(wavs / "hollow.wav", np.zeros(0), 22050)
    soundfile.write(wavs / "nan.wav", np.full(22050, np.nan, np.float32), 22050, subtype="FLOAT")
    (wavs / "folder.wav").mkdir()
    soundfile.write(wavs / "cut.flac", np.random.default_rng(0).uniform(-1, 1, 22050), 22050)
    (wavs / "cut.flac").write_bytes((wavs / "cut.flac").read_bytes()[:20_000])
    source = speech(tmp_path)
    reasons = {}
    for i in range(len(source)):
        try:
            source.read(i)
        except BrokenItem as broken:
            reasons[source.entry(i).name] = str(broken)
    assert len(source) == 12  # the blank line is none
    assert set(reasons) == {source.entry(i).name for i in range(12)} - {"good"}
    for name, reason in {
        "metadata.csv line 2": "no bar",
        "silent": "no text",
        "missing": "no missing.wav",
        "empty": "not readable",
        "text": "not readable",
        "hollow": "no samples",
        "metadata.csv line 8": "not UTF-8",
        "nan": "not numbers",
    }.items():
        assert reason in reasons[name]
    with pytest.raises(BrokenItem):
        source.shape(3)  # known before anything is read


def test_ids_go_through_folders_and_may_have_their_suffix(tmp_path: Path) -> None:
    """And one file that is missing is one broken clip."""
    names = ["anna/one", "anna/two", "three.wav", "four.flac", "five", "dr. six", "anna/gone", "gone.wav"]
    corpus(tmp_path, *(f"{name}|x|x" for name in names))
    files = ["anna/one.wav", "anna/two.FLAC", "three.wav", "four.wav", "five.WAV", "dr. six.wav"]
    (tmp_path / "wavs" / "anna").mkdir()
    for file in files:
        form = "FLAC" if file.endswith("FLAC") else "WAV"
        soundfile.write(tmp_path / "wavs" / file, tone(0.5, 22050), 22050, format=form)
    source = speech(tmp_path)
    assert [source.entry(n).path for n in range(6)] == [tmp_path / "wavs" / file for file in files]
    assert all(source.read(n).media.shape == (11025,) for n in range(6))
    for n in (6, 7):
        with pytest.raises(BrokenItem, match=f"^no {names[n]}.wav or .flac in "):
            source.shape(n)


def test_an_id_that_no_file_can_have_is_one_broken_clip(tmp_path: Path) -> None:
    corpus(tmp_path, "A|a|a", f"{'B' * 300}|b|b")
    soundfile.write(tmp_path / "wavs" / "A.wav", tone(0.5, 22050), 22050)
    source = speech(tmp_path)
    assert source.shape(0) == (11025,)
    with pytest.raises(BrokenItem, match=r"^no B+\.wav or \.flac in "):
        source.shape(1)


def test_a_mark_of_utf_8_is_no_part_of_an_id_and_utf_16_is_named(tmp_path: Path) -> None:
    corpus(tmp_path, b"\xef\xbb\xbfA|caf\xc3\xa9|caf\xc3\xa9\r")
    soundfile.write(tmp_path / "wavs" / "A.wav", tone(0.5, 22050), 22050)
    entry = speech(tmp_path).entry(0)
    assert (entry.name, entry.text) == ("A", "caf\u00e9")
    (tmp_path / "metadata.csv").write_text("A|a|a\nB|b|b\n", encoding="utf-16")
    with pytest.raises(UserError, match=r"^data\.root: no usable clip in [^\n]*\(not UTF-8\)[^\n]*$"):
        speech(tmp_path)


def test_blank_lines_are_none(tmp_path: Path) -> None:
    corpus(tmp_path, "A|a|a", "", "  \t", "B|b|b\r", "\r", "")
    for name in "AB":
        soundfile.write(tmp_path / "wavs" / f"{name}.wav", tone(0.5, 22050), 22050)
    source = speech(tmp_path)
    assert [source.entry(n).name for n in range(len(source))] == ["A", "B"]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("A|plain|normalised", "normalised"),
        ('A|"quoted|"quoted', '"quoted'),
        ("A|one", "one"),
        ("A|one| ", "one"),
        ("A|left | right|left | right", "left | right"),
        ("A|it is 5 | 6 or so|it is five | six or so", "it is five | six or so"),
        ("A|left | right|left right", "left right"),
        ("A|left right|left | right", "left | right"),
        ("A|a bar | and another | in a single text", "a bar | and another | in a single text"),
        ("A|x | y | z|x | y | z", "x | y | z"),
        ("A|" + "|".join("x" * 33), "|".join("x" * 33)),  # too many to be looked at
    ],
)
def test_bars_inside_a_text_stay_in_it(line: str, text: str, tmp_path: Path) -> None:
    corpus(tmp_path, line)
    soundfile.write(tmp_path / "wavs" / "A.wav", tone(0.5, 22050), 22050)
    assert speech(tmp_path).entry(0).text == text


def cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


@pytest.mark.parametrize(
    "subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "MS_ADPCM", "IMA_ADPCM"]
)
@pytest.mark.parametrize("form", ["WAV", "WAVEX", "RF64"])
def test_wavs_that_were_cut_are_broken(form: str, subtype: str, tmp_path: Path) -> None:
    """libsndfile reads them without a word; whole ones stay whole."""
    if not soundfile.check_format(form, subtype):
        pytest.skip("there are no such files")
    corpus(tmp_path, "A|a|a", "B|b|b", "C|c|c")
    for name in "ABC":
        soundfile.write(tmp_path / "wavs" / f"{name}.wav", tone(0.7, 22050), 22050, format=form, subtype=subtype)
    cut(tmp_path / "wavs" / "B.wav", 0.5)
    cut(tmp_path / "wavs" / "C.wav", 0.98)
    source = speech(tmp_path)
    assert source.read(0).media.shape == source.shape(0)
    for n in (1, 2):
        with pytest.raises(BrokenItem, match=r"^cut short: [\d,]+ bytes fewer than its header says$"):
            source.shape(n)


@pytest.mark.parametrize("size", [0, 0x7FFF_FFDB, 0xFFFF_FFFF])
def test_wavs_whose_writer_did_not_know_the_end_are_whole(size: int, tmp_path: Path) -> None:
    corpus(tmp_path, "A|a|a")
    path = tmp_path / "wavs" / "A.wav"
    soundfile.write(path, tone(0.7, 22050), 22050)
    whole = bytearray(path.read_bytes())
    assert whole[36:40] == b"data"
    whole[40:44] = struct.pack("<I", size)
    path.write_bytes(whole)
    with soundfile.SoundFile(path) as file:
        if not file.frames:
            pytest.skip("libsndfile takes it at its word")
    assert speech(tmp_path).read(0).media.shape == (15435,)


def test_headers_that_count_themselves_and_chunks_behind_the_sound_are_fine(tmp_path: Path) -> None:
    corpus(tmp_path, "A|a|a", "B|b|b", "C|c|c", "D|d|d")
    wavs = tmp_path / "wavs"
    soundfile.write(wavs / "A.wav", tone(0.7, 22050), 22050)
    whole = bytearray((wavs / "A.wav").read_bytes())
    (wavs / "B.wav").write_bytes(bytes(whole) + b"LIST" + struct.pack("<I", 4) + b"INFO")
    whole[40:44] = struct.pack("<I", len(whole))
    (wavs / "A.wav").write_bytes(whole)
    soundfile.write(wavs / "C.wav", tone(0.7, 22050), 22050, format="OGG")
    if "MP3" in soundfile.available_formats():
        soundfile.write(wavs / "D.wav", tone(0.7, 22050), 22050, format="MP3")
    source = speech(tmp_path)
    assert [source.read(n).media.shape for n in range(3)] == [(15435,)] * 3
    if "MP3" in soundfile.available_formats():
        assert abs(len(source.read(3).media) - 15435) < 2500  # of whole frames


def test_clips_outside_the_range_are_counted(tmp_path: Path) -> None:
    corpus(tmp_path, *(f"{name}|x|x" for name in "ABCDE"))
    for name, seconds in zip("ABCDE", (0.1, 0.5, 1.5, 2.5, 1.0), strict=True):
        soundfile.write(tmp_path / "wavs" / f"{name}.wav", tone(seconds, 8000), 8000)
    source = speech(tmp_path, max_duration_s=2.0)
    assert [source.entry(i).name for i in range(len(source))] == ["B", "C", "E"]
    assert source.left_out == {"shorter than 0.3 s": 1, "longer than 2 s": 1}
    assert len(speech(tmp_path, limit=2, max_duration_s=2.0)) == 2
    with pytest.raises(UserError, match=r"no usable clip.*5 shorter than 5 s"):
        speech(tmp_path, min_duration_s=5.0)


def test_no_corpus_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"^data\.root: no LJSpeech corpus at /[^\n]*fetch ljspeech --out [^\n]*train spoken-digits$",
    ):
        speech(tmp_path)
    with pytest.raises(UserError, match=f"corpus at {tmp_path}/data/x.* --out {tmp_path}/data/x;"):  # of a run there
        LJSpeechConfig(source="ljspeech", root="data/x").seen_from(tmp_path).build()


def test_a_failed_download_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(UserError, match=r"^could not fetch LJSpeech [^\n]*$"):
        fetch_ljspeech(tmp_path / "LJSpeech-1.1")
    assert not list(tmp_path.iterdir())
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="exists already"):
        fetch_ljspeech(tmp_path / "there")


def test_real_speech() -> None:
    source = speech(Path(real("speech/LJSpeech-1.1")))
    assert len(source) + sum(source.left_out.values()) == 495
    assert source.left_out["longer than 12 s"] > 0
    item = source.read(0)
    assert item.entry.text == "Activated."
    assert item.media.shape == source.shape(0)
