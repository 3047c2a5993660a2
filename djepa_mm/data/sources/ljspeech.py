"""Speech in LJSpeech-1.1's layout: metadata.csv with lines `id|text|normalised text`, and wavs/id.wav (or .flac).

Quotes are characters like others. Lines of one bar have no normalised text, blank lines are none. An id may go through
subfolders, and may end in its file's suffix.
"""

from __future__ import annotations

import http.client
import os
import struct
import tempfile
from difflib import SequenceMatcher
from pathlib import Path
from typing import Annotated, BinaryIO, Literal, NamedTuple

import soundfile
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional

from djepa_mm.data.compact import Packed
from djepa_mm.data.folders import is_held_out
from djepa_mm.data.headers import in_threads, read_headers
from djepa_mm.types import BrokenItem, Entry, Item, Progress, SourceConfig, UserError

SUFFIXES = (".wav", ".flac", ".WAV", ".FLAC")
ALIKE = 0.6  # of 1: how alike the letters of a text and of its normalised form are, at least
RIFF = {b"RIFF": "<", b"RIFX": ">", b"RF64": "<"}  # and their order of bytes
ENDLESS = 0x7FFF_0000  # a data chunk of such a size, or of 0, is of a writer that did not know the end
MOST_BARS, MOST_LETTERS = 32, 5000  # of a line whose sides are compared
LOST = 64  # bytes; some writers count their own header


class LJSpeechConfig(SourceConfig):
    """One speaker's clips with their transcripts."""

    source: Literal["ljspeech"]
    root: str
    sample_rate_hz: PositiveInt = 22050
    """Clips of another rate are resampled."""
    min_duration_s: NonNegativeFloat = 0.3
    max_duration_s: PositiveFloat = 12.0
    limit: PositiveInt | None = None
    """Keep only the first clips within the range."""
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the sentences kept for evaluation; by their letters, so that no sentence is on both sides."""
    split: Literal["train", "held-out"] = "train"
    """Which side of `held_out` to read."""

    def build(self) -> LJSpeech:
        return LJSpeech(self)

    def build_held_out(self) -> LJSpeech | None:
        return LJSpeech(self.model_copy(update={"split": "held-out"})) if self.held_out else None

    def fetch(self, progress: Progress) -> str:
        """Download the corpus, with torchaudio's own progress bar."""
        fetch_ljspeech(Path(self.root).expanduser())
        return f"LJSpeech-1.1 is in {self.root}"


class _Clip(NamedTuple):
    """A line of metadata.csv, with its file's header."""

    name: str
    text: str | None = None
    file: str = ""  # in wavs/
    broken: str = ""  # why the clip cannot be used
    frames: int = 0  # in the file, before resampling
    rate_hz: int = 1


class LJSpeech:
    """Headers are read once, here. Broken clips stay in the list and say so when they are asked for; clips outside
    the range of durations are left out and counted in `left_out`."""

    classes: tuple[str, ...] = ()

    def __init__(self, config: LJSpeechConfig) -> None:
        self.config = config
        self.sample_rate_hz = config.sample_rate_hz
        root = Path(config.root).expanduser()
        metadata, self.wavs = root / "metadata.csv", root / "wavs"
        if not metadata.is_file():
            raise UserError(
                f"data.root: no LJSpeech corpus at {root.absolute()}. Fetch it: djepa-mm data fetch ljspeech "
                f"--out {config.root}; or train without it: djepa-mm train spoken-digits"
            )
        lines = enumerate(metadata.read_bytes().splitlines(), start=1)
        clips = [_clip(self.wavs, f"metadata.csv line {number}", line) for number, line in lines if line.strip()]
        clips = [clip for clip in clips if clip.text is None or self._is_wanted(clip.text)]
        files = [clip.file for clip in clips if not clip.broken]
        headers = iter(read_headers(self.wavs, files, in_threads(_header), kind="sounds 1"))
        short, long = f"shorter than {config.min_duration_s:g} s", f"longer than {config.max_duration_s:g} s"
        self.left_out = {short: 0, long: 0}
        self.clips: Packed[_Clip] = Packed()
        for clip in clips:
            if len(self.clips) == config.limit:
                break
            if not clip.broken:
                clip = _with_header(clip, next(headers))
            duration_s = clip.frames / clip.rate_hz
            if not clip.broken and duration_s < config.min_duration_s:
                self.left_out[short] += 1
            elif not clip.broken and duration_s > config.max_duration_s:
                self.left_out[long] += 1
            else:
                self.clips.append(clip)
        if not self.clips and not any(self.left_out.values()):
            raise UserError(
                f"data.root: no clip of {config.root!r} is on the side {config.split!r} "
                f"of data.held_out {config.held_out:g}; choose a larger share"
            )
        if all(clip.broken for clip in self.clips):
            why = self.clips[0].broken if self.clips else ", ".join(f"{n} {what}" for what, n in self.left_out.items())
            raise UserError(f"data.root: no usable clip in {config.root!r} ({why}); check it and data.max_duration_s")

    def __len__(self) -> int:
        return len(self.clips)

    def entry(self, index: int) -> Entry:
        clip = self.clips[index]
        return Entry(name=clip.name, path=None if clip.broken else self.wavs / clip.file, text=clip.text)

    def shape(self, index: int) -> tuple[int, ...]:
        clip = self.clips[index]
        if clip.broken:
            raise BrokenItem(clip.broken)
        return (resampled(clip.frames, clip.rate_hz, self.sample_rate_hz),)

    def read(self, index: int) -> Item:
        self.shape(index)  # raises BrokenItem
        clip = self.clips[index]
        try:
            with (self.wavs / clip.file).open("rb") as file:
                return Item(entry=self.entry(index), media=read_sound(file, clip.frames, self.sample_rate_hz))
        except OSError as error:
            raise BrokenItem(f"not readable ({error})") from error

    def _is_wanted(self, text: str) -> bool:
        """Whether it is on the side of `held_out` that is read."""
        unseen = self.config.held_out > 0 and is_held_out(letters(text), self.config.held_out)
        return unseen == (self.config.split == "held-out")


def sound_header(file: BinaryIO) -> tuple[int, int]:
    """Samples of a WAV or FLAC file, and how many of them are a second. Raises BrokenItem."""
    try:
        with soundfile.SoundFile(file) as sound:
            frames, rate_hz = sound.frames, sound.samplerate
        lost = _lost_bytes(file)
    except (OSError, RuntimeError, struct.error) as error:
        raise BrokenItem(f"not readable ({error})") from error
    if lost > LOST:
        raise BrokenItem(f"cut short: {lost:,} bytes fewer than its header says")
    if not frames:
        raise BrokenItem("no samples")
    return frames, rate_hz


def read_sound(file: BinaryIO, frames: int, sample_rate_hz: int) -> Tensor:
    """A file of so many samples -> (samples,) in [-1, 1], its channels' mean, at this rate. Raises BrokenItem."""
    try:
        file.seek(0)
        sound, rate_hz = soundfile.read(file, dtype="float32", always_2d=True)  # (frames, channels)
    except (OSError, RuntimeError, MemoryError, ValueError) as error:  # the last two of headers that lie
        raise BrokenItem(f"not readable ({error})") from error
    if len(sound) != frames:
        raise BrokenItem(f"cut short, {len(sound)} of {frames} samples")
    waveform = torch.from_numpy(sound).mean(dim=1)
    if not waveform.isfinite().all():
        raise BrokenItem("samples that are not numbers")
    if rate_hz != sample_rate_hz:
        from torchaudio.functional import resample

        waveform = resample(waveform, rate_hz, sample_rate_hz)
        # torchaudio rounds the length in float32, so on long clips it can be a sample off the exact one.
        waveform = functional.pad(waveform, (0, resampled(frames, rate_hz, sample_rate_hz) - len(waveform)))
    return waveform


def resampled(frames: int, rate_hz: int, sample_rate_hz: int) -> int:
    """How many samples so many are at another rate."""
    return -(-frames * sample_rate_hz // rate_hz)


def letters(text: str) -> str:
    """What a sentence is known by, wherever it stands."""
    return "".join(filter(str.isalpha, text.lower()))


def _clip(wavs: Path, where: str, line: bytes) -> _Clip:
    """One line of metadata.csv, before its file's header is known."""
    try:
        name, *texts = line.decode("utf-8-sig").split("|")
    except UnicodeDecodeError:
        return _Clip(where, broken="not UTF-8")
    if not texts:
        return _Clip(where, broken="no bar between id and text")
    name = name.strip()
    text = _text(texts)
    if text is None:
        return _Clip(name, broken="no text")
    file = _file(wavs, name)
    if file is None:
        return _Clip(name, text, broken=f"no {name}.wav or .flac in {wavs}")
    return _Clip(name, text, file)


def _header(path: Path) -> tuple[int, int]:
    """Samples of a file, and how many of them are a second. Raises BrokenItem."""
    try:
        with path.open("rb") as file:
            file.peek()  # side by side: libsndfile opens one file at a time
            return sound_header(file)
    except OSError as error:
        raise BrokenItem(f"not readable ({error})") from error


def _with_header(clip: _Clip, header: tuple[int, int] | str) -> _Clip:
    """header: or the reason why there is none."""
    if isinstance(header, str):
        return clip._replace(broken=header)
    return clip._replace(frames=header[0], rate_hz=header[1])


def _text(texts: list[str]) -> str | None:
    """The normalised text, else the other one, of what stands between bars.

    Where there are more bars than the format has, some are inside the texts. They then part where the two sides are
    most alike; where no sides are alike, all of it is one text."""
    if len(texts) > 2 and (len(texts) > MOST_BARS or sum(map(len, texts)) > MOST_LETTERS):  # nobody's sentence
        texts = ["|".join(texts)]
    elif len(texts) > 2:
        sides = [("|".join(texts[:n]), "|".join(texts[n:])) for n in range(1, len(texts))]
        likeness, text = max((SequenceMatcher(None, letters(a), letters(b)).ratio(), b) for a, b in sides)
        texts = [text] if likeness >= ALIKE else ["|".join(texts)]
    return texts[-1].strip() or texts[0].strip() or None


def _file(wavs: Path, name: str) -> str | None:
    """The file of an id, which may have its suffix already; in `wavs`."""
    names = [name + suffix for suffix in SUFFIXES]
    if name.endswith(SUFFIXES):
        names += [name, *(name[: name.rindex(".")] + suffix for suffix in SUFFIXES)]
    return next((file for file in names if os.path.exists(os.path.join(wavs, file))), None)


def _lost_bytes(file: BinaryIO) -> int:
    """How many bytes of sound a WAV file lacks that its header announces; libsndfile reads such files without a word.

    0 for other kinds of files, and where the header does not know."""
    whole = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(12)
    order = RIFF.get(head[:4])
    if order is None or head[8:] != b"WAVE":
        return 0
    long = None  # size of the data in RF64
    while len(head := file.read(8)) == 8:
        (size,) = struct.unpack(order + "I", head[4:])
        if head[:4] == b"data":
            if long is not None and size == 0xFFFF_FFFF:
                size = long
            elif not 0 < size < ENDLESS:
                return 0
            return max(0, file.tell() + size - whole)
        if head[:4] == b"ds64":
            _, long = struct.unpack(order + "QQ", file.read(16))
            file.seek(size - 16, os.SEEK_CUR)
        else:
            file.seek(size, os.SEEK_CUR)
        file.seek(size % 2, os.SEEK_CUR)  # chunks begin at even bytes
    return 0


def fetch_ljspeech(out: Path) -> None:
    """Download LJSpeech-1.1 (2.6 GB) to `out`, which appears only once it is complete."""
    from torchaudio.datasets import LJSPEECH

    if out.exists():
        raise UserError(f"--out: {out} exists already; choose another place, or remove it to fetch it again")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as partial:
            LJSPEECH(partial, download=True)
            os.replace(Path(partial) / "LJSpeech-1.1", out)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise UserError(f"could not fetch LJSpeech to {out}: {error}; check the network and the disk") from error
