"""Word error rate of a model of real speech, with a closed grammar: its own sentences, and new ones of its words.

    djepa-mm train speech-small --set data.root=FOLDER --set data.max_duration_s=15 --out runs/real-speech
    python benchmarks/real_speech.py runs/real-speech

The recogniser listens for one of all the sentences, whole: those of the corpus and the new ones. Spoken are --count
sentences that training saw, those that it held out, and --count new ones, each of the corpus' words drawn at random.
Beside them stand the recordings, as they are and through the run's mel and vocoder. Only sentences of three words or
more: single words tell the recogniser too little.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch import Tensor

from djepa_mm.evaluate.speech import evaluate_recordings, evaluate_speech, spoken_words
from djepa_mm.evaluate.words import SentenceRecogniser, known_words
from djepa_mm.generation.pipeline import Pipeline
from djepa_mm.types import Source
from djepa_mm.weights import find_checkpoint, read_state

FEWEST_WORDS, MOST_WORDS = 3, 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sample", action="append", default=[], help="override of the recipe, for sampling")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()

    pipeline = Pipeline.load(args.run, args.sample)
    mel, data = pipeline.tokenizer, pipeline.recipe.data
    draw = random.Random(args.seed)
    learned, held_out = data.build(), data.build_held_out()
    sets = {"its own sentences": read(learned, args.count, draw)}
    if held_out is not None:
        sets["held-out sentences"] = read(held_out, args.count, draw)
    sources = [source for source in (learned, held_out) if source is not None]
    everything = [spoken_words(source.entry(n).text or "") for source in sources for n in range(len(source))]
    known = known_words({word for text in everything for word in text.split()})
    new = [" ".join(draw.choices(sorted(known), k=draw.randint(FEWEST_WORDS, 6))) for _ in range(args.count)]
    speakable = [text for text in everything if set(text.split()) <= known]
    recogniser = SentenceRecogniser([*speakable, *new])

    table = Table("what", "sentences", "word error rate")
    rows = []

    def add(what: str, sentences: int, rate: float) -> None:
        rows.append({"what": what, "sentences": sentences, "word_error_rate": rate})
        table.add_row(what, str(sentences), f"{rate:.1%}")

    for what, (texts, recordings) in sets.items():
        keep = [n for n, text in enumerate(texts) if set(spoken_words(text).split()) <= known]
        texts, recordings = [texts[n] for n in keep], [recordings[n] for n in keep]
        real = evaluate_recordings(mel, texts, recordings, recogniser)
        add(f"recordings, {what}", len(texts), real["word_error_rate"])
        add(f"recordings, {what}, mel and vocoder", len(texts), real["vocoder_word_error_rate"])
        ours = evaluate_speech(pipeline, texts, recordings, recogniser, seed=args.seed, baseline=False)
        add(f"generated, {what}", len(texts), ours["word_error_rate"])
    ours = evaluate_speech(pipeline, new, None, recogniser, seed=args.seed)
    add("generated, new sentences of its words", len(new), ours["word_error_rate"])
    Console().print(table)
    state = read_state(find_checkpoint(args.run))
    result = {"step": state["step"], "minutes": state["seconds"] / 60, "rows": rows}
    (args.out or args.run / "real_speech.json").write_text(json.dumps(result, indent=2) + "\n")


def read(source: Source, count: int, draw: random.Random) -> tuple[list[str], list[Tensor]]:
    """Up to `count` sentences of a speakable length, with their recordings."""
    lengths = {n: len(spoken_words(source.entry(n).text or "").split()) for n in range(len(source))}
    fitting = [n for n, length in lengths.items() if FEWEST_WORDS <= length <= MOST_WORDS]
    items = [source.read(n) for n in sorted(draw.sample(fitting, min(count, len(fitting))))]
    return [item.entry.text or "" for item in items], [item.media for item in items]


if __name__ == "__main__":
    main()
