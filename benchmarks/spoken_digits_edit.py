"""Replace one word in held-out clips of spoken digits, and let a recogniser hear the result.

    python benchmarks/spoken_digits_edit.py runs/spoken-digits

For each of 20 held-out clips: the recogniser says where a word in it lies, another word is generated there, and it then
has to hear the new string, all of it. Outside the edit (in whole tokens) plus three frames the mel of the written file
has to be the clip's own. Beside it, for scale: how often it hears the untouched clips right, and the size of the steps
at the joins against the steps elsewhere in the clips.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from djepa_mm.data.sources.spoken_digits import WORDS
from djepa_mm.evaluate.words import GrammarRecogniser
from djepa_mm.generation.edit import replace_span, run_edits
from djepa_mm.generation.pipeline import Pipeline
from djepa_mm.generation.request import Request
from djepa_mm.media.mel import HOP_SAMPLES, LogMel
from djepa_mm.media.sounds import Sounds

MARGIN_FRAMES = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()

    pipeline = Pipeline.load(args.run)
    sounds, condition = pipeline.tokenizer.media, pipeline.condition
    assert isinstance(sounds, Sounds), "this run is not of speech"
    rate = sounds.sample_rate_hz
    recogniser = GrammarRecogniser(WORDS)
    source = pipeline.recipe.data.build_held_out()
    assert source is not None
    draw = np.random.default_rng(args.seed)
    edits, clips, texts, untouched = [], [], [], 0
    for index in range(len(source)):
        item = source.read(index)
        words = (item.entry.text or "").split()
        heard = recogniser.hear(item.media, rate)
        untouched += heard == item.entry.text
        if heard != item.entry.text or len(edits) == args.count:
            continue  # where a word lies is only known where the clip is understood
        spans = [s for s in recogniser.decoder.seg() if s.word.split("(")[0] in WORDS]  # "zero(2)" too
        place = int(draw.integers(len(words)))
        new = str(draw.choice([w for w in WORDS if w != words[place]]))
        text = " ".join([*words[:place], new, *words[place + 1 :]])
        start_s, stop_s = spans[place].start_frame / 100, (spans[place].end_frame + 1) / 100
        values = [condition.parse({"text": one}) for one in (item.entry.text, text)]
        before, after = (condition.length(value) or 0.0 for value in values)  # in tokens
        new_s = max(0.2, stop_s - start_s + (after - before) * pipeline.tokenizer.span[0] / rate)
        request = Request(condition={"text": text}, seed=(args.seed, index))
        edits.append(replace_span(pipeline, item.media, request, start_s=start_s, stop_s=stop_s, new_s=new_s))
        clips.append(item.media)
        texts.append(text)
    edited = run_edits(pipeline, edits)
    right, differing, steps, ordinary = 0, 0, [], []
    for edit, clip, text, sound in zip(edits, clips, texts, edited, strict=True):
        written = through_file(sounds, sound)
        heard = recogniser.hear(written, rate)
        right += heard == text
        print(f"{'right' if heard == text else 'WRONG':<6} {text:<32} {'' if heard == text else heard}")
        differing += changed_outside(LogMel(rate), edit.kept, through_file(sounds, clip), written)
        joins = edit.kept.long().diff().nonzero()[:, 0]
        jumps = written.diff().abs()
        steps += [float(jumps[j]) for j in joins]
        ordinary.append(float(jumps.quantile(0.99)))
    result = {
        "edits": len(edits),
        "new string heard": right,
        "untouched clips heard right": f"{untouched} of {len(source)}",
        "mel frames outside the edit that differ": differing,
        "largest step at a join": max(steps),
        "median over clips of the 99th percentile of all steps": float(np.median(ordinary)),
    }
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")


def through_file(sounds: Sounds, sound: Tensor) -> Tensor:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "edited.wav"
        sounds.save(sound, path)
        return sounds.load(path)


def changed_outside(log_mel: LogMel, kept: Tensor, before: Tensor, after: Tensor) -> int:
    """Mel frames more than MARGIN_FRAMES from the edit that are not the clip's own."""
    mels = [log_mel(sound[None])[0] for sound in (before, after)]
    edited = (~kept).nonzero()[:, 0]
    first = max(0, int(edited.min()) // HOP_SAMPLES - MARGIN_FRAMES)
    last = -(-(int(edited.max()) + 1) // HOP_SAMPLES) + MARGIN_FRAMES
    left = (mels[0][:, :first] != mels[1][:, :first]).any(0).sum()
    tail = mels[1].shape[1] - last
    right = (mels[0][:, -tail:] != mels[1][:, -tail:]).any(0).sum() if tail > 0 else torch.tensor(0)
    return int(left + right)


if __name__ == "__main__":
    main()
