"""Corpora that are made on this machine, once, and kept in the user's cache."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from platformdirs import user_cache_path


def corpus_folder(name: str, settings: str, root: str | None = None) -> Path:
    """Where the corpus of these settings lies, or will: below `root`, by default in the user's cache."""
    caches = user_cache_path("djepa-mm", appauthor=False) if root is None else Path(root).expanduser()
    return caches / f"{name}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"


@contextmanager
def made_whole(out: Path) -> Iterator[Path]:
    """An empty folder to make a corpus in. It becomes `out` when it is complete, and vanishes when making it fails."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as partial:
        corpus = Path(partial) / "corpus"
        corpus.mkdir()
        yield corpus
        try:
            corpus.rename(out)
        except OSError:
            if not out.exists():  # otherwise another process was faster, and its corpus is as good
                raise
