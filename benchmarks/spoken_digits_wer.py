"""Word error rate of generated spoken digits, heard by pocketsphinx with a grammar of the ten words.

    python benchmarks/spoken_digits_wer.py                             trains and measures the curve over time
    python benchmarks/spoken_digits_wer.py --runs runs/spoken-digits   measures the checkpoints of runs that are there

100 unseen strings of 3–5 digits for the last checkpoint, 30 for the earlier ones. For the last one also 100 strings of
7 digits, longer than any in the corpus, and 50 of 15 digits as three sentences; with --table the settings of sampling,
one changed at a time. Beside them: the strings spoken by espeak-ng, as they are and through the same mel and
Griffin-Lim.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from djepa_mm.data.sources.spoken_digits import WORDS, speak, unseen_strings
from djepa_mm.evaluate.words import GrammarRecogniser, plain_words, word_error_rate
from djepa_mm.generation.pipeline import Pipeline
from djepa_mm.recipe.load import load_recipe
from djepa_mm.weights import checkpoints, read_state

TABLE = (
    *("sample.steps=8", "sample.steps=32", "head.steps=8", "head.steps=32"),
    *("sample.guidance=1", "sample.guidance=1.5", "sample.guidance=4"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="*", type=Path, help="measure these instead of training")
    parser.add_argument("--set", action="append", default=[], help="override of the recipe, for training")
    parser.add_argument("--sample", action="append", default=[], help="override of the recipe, for sampling")
    parser.add_argument("--table", action="store_true", help="the settings of sampling too")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--last", action="store_true", help="only the last checkpoint")
    parser.add_argument("--at", type=int, help="only the checkpoint of this step, with strings of 3-5 digits")
    parser.add_argument("--out", type=Path, default=Path("runs/spoken-digits-wer"))
    args = parser.parse_args()

    recipe = load_recipe("spoken-digits")
    sets = {
        "3-5 digits": unseen_strings(recipe.data, args.count, 3, 5, seed=1),
        "7 digits": unseen_strings(recipe.data, args.count, 7, 7, seed=2),
        "15 digits, 3 sentences": [
            ". ".join(" ".join(words[n : n + 5]) for n in (0, 5, 10))
            for words in (text.split() for text in unseen_strings(recipe.data, args.count // 2, 15, 15, seed=3))
        ],
    }
    texts = sets["3-5 digits"]
    recogniser = GrammarRecogniser(WORDS)
    columns = ("what", "texts", "step", "minutes", "T", "head steps", "guidance", "strings", "word error rate", "speed")
    table = Table(*columns, caption="speed: times real time, sampling and vocoder")
    rows: list[dict[str, object]] = []

    def add(what: str, kind: str, waves: list[torch.Tensor], strings: list[str], **extra: object) -> None:
        rate = recipe.tokenizer.sample_rate_hz
        words = [plain_words(text) for text in strings]
        wer = word_error_rate(words, [recogniser.hear(wave, rate) for wave in waves])
        row = {"what": what, "texts": kind, "strings": len(strings), "wer": wer, **extra}
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        shown = [extra.get(key, "") for key in ("step", "minutes", "T", "head_steps", "guidance")]
        speed = f"{extra['speed']:.1f}" if "speed" in extra else ""
        table.add_row(
            what,
            kind,
            *(f"{v:.2f}" if isinstance(v, float) else str(v) for v in shown),
            str(len(strings)),
            f"{wer:.1%}",
            speed,
        )

    for kind, strings in sets.items() if args.at is None else []:
        recordings = [torch.from_numpy(samples).float() / 32768 for samples, _ in speak(strings)]
        add("espeak-ng", kind, recordings, strings)
        mel = recipe.tokenizer.build()
        waves = [mel.decode(mel.encode(w[None]), mel.spec_of(tuple(w.shape)))[0] for w in recordings]
        add("espeak-ng, mel, Griffin-Lim", kind, waves, strings)

    def measure(checkpoint: Path, kind: str, strings: list[str], *overrides: str) -> None:
        pipeline, state = Pipeline.load(checkpoint, [*args.sample, *overrides]), read_state(checkpoint)
        began = time.perf_counter()
        waves = pipeline(pipeline.requests([{"text": text} for text in strings], seed=args.seed), batch_size=32)
        seconds = time.perf_counter() - began
        sample, head = pipeline.recipe.sample, pipeline.recipe.head
        add(checkpoint.parents[1].name, kind, waves, strings, step=state["step"], minutes=state["seconds"] / 60,
            T=sample.steps, head_steps=head.steps, guidance=sample.guidance,
            speed=sum(len(w) for w in waves) / recipe.tokenizer.sample_rate_hz / seconds)  # fmt: skip

    for run in args.runs or [train(args.out, args.set)]:
        found = checkpoints(run / "checkpoints")
        if args.at is not None:
            measure(run / "checkpoints" / f"step-{args.at:08d}", "3-5 digits", texts)
            continue
        for checkpoint in [] if args.last else found[:-1]:
            measure(checkpoint, "3-5 digits", texts[:30])
        for kind, strings in sets.items():
            measure(found[-1], kind, strings)
        for override in TABLE if args.table else ():
            measure(found[-1], "3-5 digits", texts, override)
    Console(width=120).print(table)
    args.out.mkdir(parents=True, exist_ok=True)
    result = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__, "rows": rows}
    (args.out / "spoken_digits_wer.json").write_text(json.dumps(result, indent=2) + "\n")


def train(out: Path, overrides: list[str]) -> Path:
    run = out / "spoken-digits"
    if not (run / "checkpoints").exists():
        sets = ["run.keep=100", *overrides]
        command = [sys.executable, "-m", "djepa_mm", "train", "spoken-digits", "--out", str(run)]
        subprocess.run([*command, *(word for s in sets for word in ("--set", s))], check=True)
    return run


if __name__ == "__main__":
    main()
