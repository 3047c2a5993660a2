"""Word error rate of generated English sentences that training never saw, over a run's checkpoints.

    python benchmarks/make_speech_corpus.py --voice joe --out corpora/joe
    djepa-mm train ljspeech --set data.root=corpora/joe/train --out runs/joe
    python benchmarks/open_vocabulary.py --corpus corpora/joe --runs runs/joe

Speaks 100 held-out sentences of the corpus and the ten of the D-JEPA project page with the last checkpoint, 30 held-out
ones with the earlier checkpoints. Beside them stand the corpus' own recordings, as they are and through the first run's
mel and vocoder: what a perfect model would reach. pocketsphinx' language model errs much more often than a person;
--recogniser takes a Whisper instead, as a folder or by its name on the hub.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from djepa_mm.data.sources.ljspeech import LJSpeechConfig
from djepa_mm.errors import UserError
from djepa_mm.evaluate.speech import evaluate_recordings, evaluate_speech
from djepa_mm.evaluate.words import recogniser
from djepa_mm.generation.pipeline import Pipeline, with_sampling
from djepa_mm.recipe.load import load_recipe
from djepa_mm.weights import checkpoints, read_state

EARLIER = 30  # sentences for checkpoints that are not the last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="what make_speech_corpus.py wrote")
    parser.add_argument("--runs", nargs="*", type=Path, default=[], help="without, only the recordings are measured")
    parser.add_argument("--recogniser", default="language-model")
    parser.add_argument("--sample", action="append", default=[], help="override of the recipe, for sampling")
    parser.add_argument("--guidance", type=float, nargs="*", default=[None], help="several give a row each")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--last", action="store_true", help="only the last checkpoint")
    parser.add_argument("--steps", type=int, nargs="*", help="only the checkpoints of these steps")
    parser.add_argument("--no-recordings", action="store_true", help="they are measured already")
    parser.add_argument("--out", type=Path, default=Path("runs/open-vocabulary"))
    args = parser.parse_args()
    try:
        rows = measure(args)
    except UserError as error:
        sys.exit(str(error))
    table = Table(
        "what", "step", "minutes", "guidance", "sentences", "words", "word errors", "MCD, dB", "length", "RTF"
    )
    for row in rows:
        table.add_row(
            row["what"],
            *(shown(row.get(key), form) for key, form in (("step", "d"), ("minutes", ".1f"), ("guidance", ".1f"))),
            str(row["sentences"]),
            *(shown(row.get(key), form) for key, form in FIGURES),
        )
    Console(width=140).print(table)
    args.out.mkdir(parents=True, exist_ok=True)
    result = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "recogniser": args.recogniser,
        "rows": rows,
    }
    (args.out / "open_vocabulary.json").write_text(json.dumps(result, indent=2) + "\n")


FIGURES = (
    ("words", "d"),
    ("word_error_rate", ".1%"),
    ("mel_cepstral_distortion_db", ".1f"),
    ("length_error", ".1%"),
    ("real_time_factor", ".2f"),
)


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for the recordings of each set of sentences, then one for each checkpoint and guidance."""
    listener = recogniser(args.recogniser, [])
    sets = {name: read(args.corpus / name, count) for name, count in (("held-out", args.count), ("page", None))}
    if args.runs:
        mel = Pipeline.load(args.runs[0], args.sample).tokenizer
    else:
        mel = load_recipe("ljspeech").tokenizer.build()
    rows: list[dict[str, Any]] = []
    with Progress(console=Console(stderr=True)) as bar:

        def add(what: str, figures: Mapping[str, Any], **extra: object) -> None:
            rows.append({"what": what, **extra, **figures})
            brief = {key: value for key, value in rows[-1].items() if key not in ("each", "recordings")}
            print(json.dumps(brief), file=sys.stderr, flush=True)

        def advance(title: str) -> Callable[[int, int], None]:
            task = bar.add_task(title, total=None)
            return lambda done, total: bar.update(task, completed=done, total=total)

        for name, (texts, recordings) in [] if args.no_recordings else sets.items():
            known = evaluate_recordings(mel, texts, recordings, listener, advance(f"recordings, {name}"))
            counted = {"sentences": len(texts)}
            add(f"recordings, {name}", {**counted, "word_error_rate": known["word_error_rate"]})
            through = {
                key.removeprefix("vocoder_"): value for key, value in known.items() if key.startswith("vocoder_")
            }
            add(f"recordings, {name}, mel and vocoder", {**counted, **through})

        for run in args.runs:
            found = checkpoints(run / "checkpoints")
            wanted = [one for one in found if not args.steps or read_state(one)["step"] in args.steps]
            for checkpoint in wanted[-1:] if args.last else wanted:
                pipeline, state = Pipeline.load(checkpoint, args.sample), read_state(checkpoint)
                last = checkpoint == found[-1]
                for guidance in args.guidance:
                    sampler = with_sampling(pipeline.sampler, guidance=guidance)
                    for name, (texts, recordings) in sets.items() if last else [("held-out", sets["held-out"])]:
                        some = len(texts) if last else EARLIER
                        figures = evaluate_speech(
                            pipeline, texts[:some], recordings[:some], listener, sampler, args.seed,
                            advance(f"{run.name}, step {state['step']}, {name}"), baseline=False,
                        )  # fmt: skip
                        add(f"{run.name}, {name}", figures, step=state["step"], minutes=state["seconds"] / 60,
                            guidance=sampler.guidance)  # fmt: skip
    return rows


def read(folder: Path, count: int | None) -> tuple[list[str], list[Tensor]]:
    """Texts and recordings of a corpus of make_speech_corpus.py, up to `count`."""
    source = LJSpeechConfig(source="ljspeech", root=str(folder), max_duration_s=30.0, limit=count).build()
    items = [source.read(index) for index in range(len(source))]
    return [item.entry.text or "" for item in items], [item.media for item in items]


def shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


if __name__ == "__main__":
    main()
