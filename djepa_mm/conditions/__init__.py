"""Kinds of condition. One file holds one kind, with its config beside it and the network that takes it."""

from pathlib import Path

from djepa_mm.layout import extended

__path__ = extended(Path(__file__).parent, "conditions")
