"""Tokens of another corpus, kept in files by `djepa-mm encode`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from djepa_mm.data.latents import Latents
from djepa_mm.types import Source, SourceConfig


class LatentsConfig(SourceConfig):
    """Tokens that `djepa-mm encode` has written, and features of texts where a frozen network reads these; the recipe's
    tokenizer and that network must be those that made them."""

    source: Literal["latents"]
    root: str
    """The folder."""

    @property
    def origin(self) -> SourceConfig:
        return self.build().original

    def build(self) -> Latents:
        return Latents(Path(self.root).expanduser())

    def build_held_out(self) -> Source | None:
        """Media of the corpus that was encoded, as its own data section says."""
        return self.build().original.build_held_out()
