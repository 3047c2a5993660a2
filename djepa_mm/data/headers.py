"""What the headers of a corpus' files say, read in parallel and once: an index in the user's cache keeps it.

A row of the index holds for as long as its file has the same size and time of change. Files that cannot be read are in
no index: they are tried again at each start.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from djepa_mm.data.cache import corpus_folder
from djepa_mm.data.compact import Packed
from djepa_mm.errors import BrokenItem, Notice

THREADS = 8
AT_ONCE = 4096  # files handed to the threads together, so that not every file has a task of its own at once

Row = TypeVar("Row", bound=tuple[Any, ...])  # of what JSON gives back as it was
Stamp = tuple[int, int]  # size in bytes and time of change in ns
ReadAll = Callable[[Sequence[Path]], Iterable[Row | str]]


def read_headers(root: Path, files: Sequence[str], read: ReadAll[Row], *, kind: str) -> Packed[Row | str]:
    """Of every file, relative to `root`, the row that `read` gives, or the reason why there is none.

    Rows of other files stay in the index while those stay the same: training reads one side of a folder, evaluation
    the other. read: reads many, in their order. kind: names what is read and in which version; other readings of the
    same files have an index of their own."""
    index = corpus_folder("headers", f"{kind} {root.absolute()}").with_suffix(".jsonl")
    known: dict[str, tuple[Stamp, Row]] = _load(index)
    folder = str(root)
    found: Packed[Row | str] = Packed()
    stamps: list[Stamp | None] = []
    fresh = False
    for start in range(0, len(files), AT_ONCE):
        names = files[start : start + AT_ONCE]
        now = [_stamp(folder, name) for name in names]
        stamps += now
        held = (known.get(name, (None, None)) for name in names)
        rows: list[Row | str | None]
        rows = [row if then == stamp else None for (then, row), stamp in zip(held, now, strict=True)]
        missing = [n for n, row in enumerate(rows) if row is None]
        for n, row in zip(missing, read([root / names[n] for n in missing]), strict=True):
            rows[n] = row
            fresh = fresh or not isinstance(row, str)
        found.extend(row for row in rows if row is not None)  # none of them is by now
    if fresh:
        for name in files:
            known.pop(name, None)
        others = ((name, *one) for name, one in known.items() if _stamp(folder, name) == one[0])
        try:
            _save(index, chain(zip(files, stamps, found, strict=True), others))
        except OSError as error:
            warnings.warn(f"{index}: headers are read anew at each start ({error.strerror})", Notice, stacklevel=2)
    return found


def _save(index: Path, rows: Iterable[tuple[str, Stamp | None, Row | str]]) -> None:
    index.parent.mkdir(parents=True, exist_ok=True)
    partial = index.with_suffix(f".{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(
                f"{json.dumps(row)}\n" for row in rows if row[1] is not None and not isinstance(row[2], str)
            )
        partial.replace(index)
    finally:
        partial.unlink(missing_ok=True)


def _stamp(folder: str, name: str) -> Stamp | None:
    try:
        status = os.stat(os.path.join(folder, name))
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def in_threads(read: Callable[[Path], Row]) -> ReadAll[Row]:
    """Read many files at once, of which `read` reads one, or raises BrokenItem."""

    def row_or_reason(path: Path) -> Row | str:
        try:
            return read(path)
        except BrokenItem as error:
            return str(error)

    def read_all(paths: Sequence[Path]) -> Iterator[Row | str]:
        with ThreadPoolExecutor(THREADS) as threads:
            yield from threads.map(row_or_reason, paths)

    return read_all


def _load(index: Path) -> dict[str, tuple[Stamp, Any]]:
    """Stamp and row by file; nothing where the index is not there or not whole."""

    def rows() -> Iterator[tuple[str, tuple[Stamp, Any]]]:
        with index.open(encoding="utf-8") as lines:
            for line in lines:
                name, (size, time_ns), row = json.loads(line)
                yield name, ((size, time_ns), tuple(row))  # lists would have Python's collector go round and round

    try:
        return dict(rows())
    except (OSError, ValueError, TypeError):
        return {}
