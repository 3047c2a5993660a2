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
ReadAll = Callable[[Sequence[Path]], Iterable[Row | str]]


def read_headers(root: Path, files: Sequence[str], read: ReadAll[Row], *, kind: str) -> Packed[Row | str]:
    """Of every file, relative to `root`, the row that `read` gives, or the reason why there is none.

    Rows of other files stay in the index while those stay the same: training reads one side of a folder, evaluation
    the other. read: reads many, in their order. kind: names what is read and in which version; other readings of the
    same files have an index of their own."""
    index = corpus_folder("headers", f"{kind} {root.absolute()}").with_suffix(".jsonl")
    known = _load(index)
    found: Packed[Row | str] = Packed()
    stamps: list[list[int] | None] = []
    fresh = False
    for start in range(0, len(files), AT_ONCE):
        names = files[start : start + AT_ONCE]
        now = [_stamp(f"{root}/{name}") for name in names]
        held = [known.get(name) for name in names]
        missing = [n for n, one in enumerate(held) if one is None or one[0] != now[n]]
        stamps += now
        read_now = dict(zip(missing, read([root / names[n] for n in missing]), strict=True))
        fresh = fresh or any(not isinstance(row, str) for row in read_now.values())
        for n, one in enumerate(held):
            found.append(read_now[n] if n in read_now else tuple(one[1]))  # type: ignore[arg-type,index]  # held
    if fresh:
        for name in files:
            known.pop(name, None)
        others = ((name, *one) for name, one in known.items() if _stamp(f"{root}/{name}") == one[0])
        try:
            _save(index, chain(zip(files, stamps, found, strict=True), others))
        except OSError as error:
            warnings.warn(f"{index}: headers are read anew at each start ({error.strerror})", Notice, stacklevel=2)
    return found


def _save(index: Path, rows: Iterable[tuple[str, list[int] | None, Row | str]]) -> None:
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


def _stamp(path: str) -> list[int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


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


def _load(index: Path) -> dict[str, tuple[list[int], Any]]:
    """Stamp and row by file; nothing where the index is not there or not whole."""

    def rows() -> Iterator[tuple[str, tuple[list[int], Any]]]:
        with index.open(encoding="utf-8") as lines:
            for line in lines:
                name, stamp, row = json.loads(line)
                yield name, (stamp, row)

    try:
        return dict(rows())
    except (OSError, ValueError, TypeError):
        return {}
