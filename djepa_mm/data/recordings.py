"""Recordings whole in memory, and segments of them."""

from __future__ import annotations

import torch
from torch import Tensor

from djepa_mm.types import BrokenItem, Source, UserError

PCM = 32767  # recordings are kept in memory as 16-bit integers: 160 MB an hour at 22,050 Hz


class Recordings:
    """Every clip of a corpus, in memory. `broken` names those that could not be read, with the reason."""

    def __init__(self, source: Source, max_broken_share: float) -> None:
        self.source = source
        self.clips: list[Tensor] = []  # (S,) int16
        self.broken: dict[str, str] = {}
        for index in range(len(source)):
            try:
                sound = source.read(index).media
            except BrokenItem as error:
                self.broken[source.entry(index).name] = str(error)
                continue
            self.clips.append((sound.clamp(-1, 1) * PCM).round().short())
        if not self.clips or len(self.broken) > max_broken_share * len(source):
            name, reason = next(iter(self.broken.items()))
            raise UserError(
                f"{len(self.broken)} of {len(source)} clips cannot be read, such as {name}: {reason}; mend the corpus "
                f"or raise batch.max_broken_share ({max_broken_share:g})"
            )
        self.lengths = torch.tensor([len(clip) for clip in self.clips])

    def segments(self, count: int, samples: int, generator: torch.Generator) -> Tensor:
        """(count, samples) in [-1, 1]: clips as often as they are long, at any place; short ones end in silence."""
        places = (self.lengths - samples).clamp_min(0) + 1
        clips = torch.multinomial(self.lengths.float(), count, replacement=True, generator=generator)
        shares = torch.rand(count, generator=generator)
        batch = torch.zeros(count, samples)
        for row, clip, share in zip(batch, clips.tolist(), shares.tolist(), strict=True):
            start = min(int(share * places[clip]), int(places[clip]) - 1)
            segment = self.clips[clip][start : start + samples]
            row[: len(segment)] = segment.float() / PCM
        return batch

    def first(self) -> Tensor:
        """(1, samples) in [-1, 1]."""
        return (self.clips[0].float() / PCM)[None]
