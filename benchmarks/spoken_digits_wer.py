"""Word error rate of generated spoken digits, heard by pocketsphinx with a grammar of the ten words.

    python benchmarks/spoken_digits_wer.py                             trains and measures the curve over time
    python benchmarks/spoken_digits_wer.py --runs runs/spoken-digits   measures the checkpoints of runs that are there

100 unseen strings of 3–5 digits for the last checkpoint, 30 for the earlier ones. Beside them: the same strings spoken
by espeak-ng, as they are and through the same mel and Griffin-Lim.
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

from djepa_mm.checkpoint import checkpoints, read_state
from djepa_mm.data.spoken_digits import WORDS, speak, unseen_strings
from djepa_mm.evaluate.words import GrammarRecogniser, word_error_rate
from djepa_mm.generate import Generation, with_sampling
from djepa_mm.recipe import load_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="*", type=Path, help="measure these instead of training")
    parser.add_argument("--set", action="append", default=[], help="override of the recipe, for training")
    parser.add_argument("--sample", action="append", default=[], help="override of the recipe, for sampling")
    parser.add_argument("--guidance", type=float, nargs="*", default=[None], help="several give a row each")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--last", action="store_true", help="only the last checkpoint")
    parser.add_argument("--out", type=Path, default=Path("runs/spoken-digits-wer"))
    args = parser.parse_args()

    recipe = load_recipe("spoken-digits")
    texts = unseen_strings(recipe.data, args.count, 3, 5, seed=1)
    recogniser = GrammarRecogniser(WORDS)
    table = Table("what", "step", "minutes", "guidance", "strings", "word error rate", "times real time")
    rows = []

    def add(what: str, waves: list[torch.Tensor], strings: list[str], **extra: object) -> None:
        rate = recipe.tokenizer.sample_rate_hz
        wer = word_error_rate(strings, [recogniser.hear(wave, rate) for wave in waves])
        row = {"what": what, "strings": len(strings), "wer": wer, **extra}
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        shown = [
            f"{extra[k]:.2f}" if isinstance(extra.get(k), float) else str(extra.get(k, ""))
            for k in ("minutes", "guidance")
        ]
        speed = f"{extra['speed']:.1f}" if "speed" in extra else ""
        table.add_row(what, str(extra.get("step", "")), *shown, str(len(strings)), f"{wer:.1%}", speed)

    recordings = [torch.from_numpy(samples).float() / 32768 for samples, _ in speak(texts)]
    add("espeak-ng", recordings, texts)
    mel = recipe.tokenizer.build()
    waves = [mel.decode(mel.encode(w[None]), mel.spec_of(tuple(w.shape)))[0] for w in recordings]
    add("espeak-ng, mel, Griffin-Lim", waves, texts)

    for run in args.runs or [train(args.out, args.set)]:
        found = checkpoints(run / "checkpoints")
        for checkpoint in found[-1:] if args.last else found:
            generation, state = Generation.load(checkpoint, args.sample), read_state(checkpoint)
            strings = texts if checkpoint == found[-1] else texts[:30]
            for guidance in args.guidance:
                sampler = with_sampling(generation.sampler, guidance=guidance)
                began = time.perf_counter()
                requests = generation.requests([], strings, count=1, duration_s=None, seed=1)
                waves = generation(requests, sampler=sampler, batch_size=32)
                seconds = time.perf_counter() - began
                speed = sum(len(w) for w in waves) / recipe.tokenizer.sample_rate_hz / seconds
                add(run.name, waves, strings, step=state["step"], minutes=state["seconds"] / 60,
                    guidance=sampler.guidance, speed=speed)  # fmt: skip
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
