"""Folders of files, one subfolder for each class: what is in them, and which of it is kept for evaluation."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator

from djepa_mm.types import SourceConfig, UserError

JUNK = ("__MACOSX",)  # what macOS packs into archives
SHARES = 1000  # of how many parts a share is


class FolderConfig(SourceConfig):
    """What sources of files in class folders have in common."""

    root: str
    """The folder. Its first level of subfolders are the classes; where it has none, there are no classes."""
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the moments kept for evaluation, by their names."""
    moment: str = ".*"
    """Pattern in a file's name (no suffix) whose groups, or else all of it, name its moment: several crops of one
    moment are never on both sides."""
    split: Literal["train", "held-out"] = "train"
    """Which side of `held_out` to read."""

    @field_validator("moment")
    @classmethod
    def _check(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression ({error}): {pattern!r}") from error
        return pattern

    def held_out_side(self) -> Self:
        return self.model_copy(update={"split": "held-out"})

    def kept(self, files: list[Path]) -> list[Path]:
        """Those of this side. Raises UserError where there are none."""
        wanted = self.split == "held-out"
        kept = [file for file in files if is_held_out(moment_of(file, self.moment), self.held_out) == wanted]
        if not kept:
            raise UserError(
                f"data.root: no file of {self.root!r} is on the side {self.split!r} of data.held_out "
                f"{self.held_out:g}; choose {'a larger' if wanted else 'a smaller'} share"
            )
        return kept

    def left_out(self, found: Found, kept: Sequence[Path]) -> dict[str, int]:
        """How much of a folder this side does not read, by the reason."""
        unseen = len(found.files) - len(kept)
        return found.left_out | ({f"on the other side of data.held_out {self.held_out:g}": unseen} if unseen else {})


def is_held_out(name: str, share: float) -> bool:
    """Whether what has this name belongs to the share kept for evaluation: by its SHA-1, so the same everywhere."""
    digest = hashlib.sha1(f"held out? {name}".encode("utf-8", "surrogateescape")).hexdigest()
    return int(digest, 16) % SHARES < share * SHARES


def moment_of(file: Path, pattern: str) -> str:
    """A file's folder, and the groups that the pattern finds in its name, else all that it finds, else its name."""
    found = re.search(pattern, file.stem)
    moment = file.stem if found is None else "/".join(group or "" for group in found.groups()) or found[0]
    return f"{file.parent.as_posix()}/{moment}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a folder holds."""

    files: tuple[Path, ...]  # of the kinds looked for, relative to the folder, in order
    classes: tuple[str, ...]  # empty where the files lie straight in the folder
    left_out: dict[str, int]  # how many other files and folders there are, by the reason

    @property
    def others(self) -> str:
        """For the end of a message."""
        said = "; ".join(f"{count} {reason}" for reason, count in self.left_out.items())
        return said and f", and there are {said}"


def find_files(root: Path, suffixes: tuple[str, ...], known: tuple[str, ...] = ()) -> Found:
    """Files of these kinds below a folder. Where some lie in subfolders, others have no class and are left out.

    Links to folders are followed, but not round in a circle. Hidden files and folders are left out. known: names of
    files in `root` that are no items, and not to be counted."""
    files: list[Path] = []
    left_out: Counter[str] = Counter()
    for path, reason in _walk(root, Path(), ()):
        if reason is None and path.suffix.lower() not in suffixes:
            if path.as_posix() in known:
                continue
            reason = f"files that end in {path.suffix.lower()}" if path.suffix else "files without a suffix"
        if reason is None:
            files.append(path)
        else:
            left_out[reason] += 1
    files.sort()
    classes = tuple(sorted({file.parts[0] for file in files if len(file.parts) > 1}))
    if classes:
        inside = [file for file in files if len(file.parts) > 1]
        if len(inside) < len(files):
            left_out["outside of the class folders"] = len(files) - len(inside)
        files = inside
    return Found(files=tuple(files), classes=classes, left_out=dict(left_out))


def printable(name: str) -> str:
    """A file's name as text that can be written anywhere, whatever bytes it is of."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _walk(root: Path, folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[Path, str | None]]:
    """Files below `root`/`folder`, relative to `root`, each with the reason why it is left out, or None; likewise
    folders that are not entered. above: identities of the folders on the way."""
    try:
        place = os.stat(root / folder)
        entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
    except OSError as error:
        yield folder, f"folders that cannot be read ({error.strerror})"
        return
    identity = (place.st_dev, place.st_ino)
    if identity in above:
        yield folder, "links to a folder that they lie in"
        return
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith(".") or entry.name in JUNK:
            yield path, "hidden files and folders"
        elif (root / path).is_dir():  # also through a link; False where that leads nowhere, or to itself
            yield from _walk(root, path, (*above, identity))
        elif (root / path).is_file() or entry.is_symlink():  # a link to nowhere is a broken item
            yield path, None
        else:
            yield path, "neither files nor folders"
