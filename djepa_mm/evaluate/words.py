"""Word error rate, and a recogniser that hears strings from a grammar without a network."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

RECOGNISER_RATE_HZ = 16_000
PEAK = 0.7
WORD_INSERTION_PENALTY = 1e-3  # fewer invented words than pocketsphinx' default gives


def word_error_rate(references: Sequence[str], heard: Sequence[str]) -> float:
    """Word edits over words: (substitutions + deletions + insertions) / words of the references."""
    from torchaudio.functional import edit_distance

    pairs = [(r.split(), h.split()) for r, h in zip(references, heard, strict=True)]
    return sum(edit_distance(r, h) for r, h in pairs) / sum(len(r) for r, _ in pairs)


class GrammarRecogniser:
    """pocketsphinx, listening for one or more of the given words in any order."""

    def __init__(self, words: Sequence[str]) -> None:
        from pocketsphinx import Decoder

        grammar = f"#JSGF V1.0; grammar words; public <words> = ( {' | '.join(words)} )+ ;"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "words.gram"
            path.write_text(grammar)
            self.decoder = Decoder(jsgf=str(path), wip=WORD_INSERTION_PENALTY, loglevel="FATAL")

    def hear(self, waveform: Tensor, sample_rate_hz: int) -> str:
        """(samples,) in [-1, 1] -> the words heard, one space between them."""
        from torchaudio.functional import resample

        sound = resample(waveform.float(), sample_rate_hz, RECOGNISER_RATE_HZ)
        sound = sound * (PEAK / sound.abs().max().clamp_min(1e-5))
        self.decoder.start_utt()
        self.decoder.process_raw((sound * 32767).to(torch.int16).numpy().tobytes(), full_utt=True)
        self.decoder.end_utt()
        hypothesis = self.decoder.hyp()
        return hypothesis.hypstr if hypothesis else ""
