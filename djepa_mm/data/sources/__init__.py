"""Corpora, folder by folder: one file holds one source, with its config beside it."""

from pathlib import Path

from djepa_mm.layout import extended

__path__ = extended(Path(__file__).parent, "sources")
