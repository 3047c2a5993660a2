"""Our vocoder beside Griffin-Lim, on recordings that it has not learned from.

    python benchmarks/vocoder.py runs/vocoder

The clips are those that the run's recipe held out (data.held_out). Each goes through the mel and back by both; measured
are the multi-resolution STFT distance to the recording, the word error rates of a recogniser that hears one of the
corpus' sentences and of one that hears the held-out sentences' words in any order, and the speed on one core, median
over clips. Beside them: the recordings.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from djepa_mm.evaluate.distance import stft_distance
from djepa_mm.evaluate.words import known_words, plain_words, recogniser, word_error_rate
from djepa_mm.media.mel import LogMel
from djepa_mm.recipe.vocoder import load_vocoder_recipe
from djepa_mm.speech.vocoders.fourier import load_fourier
from djepa_mm.speech.vocoders.griffin_lim import GriffinLimConfig
from djepa_mm.types import Source
from djepa_mm.weights import find_checkpoint, read_state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of the vocoder, or a checkpoint")
    parser.add_argument("--set", action="append", default=[], help="override of its recipe, such as data.root=FOLDER")
    parser.add_argument("--iterations", type=int, default=60, help="of Griffin-Lim")
    parser.add_argument("--recogniser", nargs="*", default=[], help="more of them: language-model, a Whisper's folder")
    parser.add_argument("--out", type=Path, help="JSON file; by default vocoder.json in the run folder")
    args = parser.parse_args()
    torch.set_num_threads(1)

    checkpoint = find_checkpoint(args.run)
    recipe = load_vocoder_recipe(checkpoint / "recipe.yaml", args.set)
    held_out, learned = (recipe.data.model_copy(update={"split": split}).build() for split in ("held-out", "train"))
    clips = [held_out.read(index).media for index in range(len(held_out))]
    texts = known_texts(held_out)
    recognisers = {
        "sentences": recogniser("sentences", [*texts.values(), *known_texts(learned).values()]),
        "words": recogniser("grammar", list(texts.values())),
        **{Path(name).name: recogniser(name, []) for name in args.recogniser},
    }

    rate_hz = held_out.sample_rate_hz
    log_mel = LogMel(rate_hz)
    griffin_lim = GriffinLimConfig(kind="griffin-lim", iterations=args.iterations).build(log_mel.convention)
    ours = load_fourier(checkpoint, log_mel.convention)
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "recordings": lambda clip: clip,
        f"Griffin-Lim, {args.iterations} iterations": lambda clip: griffin_lim(log_mel(clip[None]), len(clip))[0],
        "ours": lambda clip: ours(log_mel(clip[None]), len(clip))[0],
    }
    table = Table(
        "what", "clips", "STFT distance", *(f"word error rate, {name}" for name in recognisers), "times real time"
    )
    rows: list[dict[str, Any]] = []
    for what, way in ways.items():
        sounds, speeds = [], []
        way(clips[0])  # warm
        for clip in clips:
            began = time.perf_counter()
            sounds.append(way(clip))
            speeds.append(len(clip) / rate_hz / (time.perf_counter() - began))
        row: dict[str, Any] = {
            "what": what,
            "clips": len(clips),
            "stft_distance": fmean(stft_distance(clip, sound) for clip, sound in zip(clips, sounds, strict=True)),
            "times_real_time": None if what == "recordings" else median(speeds),
        }
        for name, listener in recognisers.items():
            heard = [plain_words(listener.hear(sounds[index], rate_hz)) for index in texts]
            row[f"word_error_rate_{name}"] = word_error_rate(list(texts.values()), heard)
        rows.append(row)
        rates = [f"{row[f'word_error_rate_{name}']:.1%}" for name in recognisers]
        speed = f"{row['times_real_time']:.0f}" if row["times_real_time"] else ""
        table.add_row(what, str(len(clips)), f"{row['stft_distance']:.3f}", *rates, speed)
    state = read_state(checkpoint)
    Console(width=120).print(table)
    print(f"{len(texts)} clips with {sum(len(text.split()) for text in texts.values())} words were recognised")
    result = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "step": state["step"],
        "minutes": state["seconds"] / 60,
        "rows": rows,
    }
    path = args.out or checkpoint.parent.parent / "vocoder.json"
    path.write_text(json.dumps(result, indent=2) + "\n")


def known_texts(source: Source) -> dict[int, str]:
    """The corpus' texts in plain words, by index, without those that hold a word which pocketsphinx does not know."""
    texts = {index: plain_words(source.entry(index).text or "") for index in range(len(source))}
    known = known_words({word for text in texts.values() for word in text.split()})
    return {index: text for index, text in texts.items() if text and set(text.split()) <= known}


if __name__ == "__main__":
    main()
