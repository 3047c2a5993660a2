"""Folders of files, one subfolder for each class: what is in them, and which of it is kept for evaluation."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator

from djepa_mm.data.compact import Packed
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

    def kept(self, files: Packed[str]) -> Packed[str]:
        """Those of this side. Raises UserError where there are none."""
        wanted = self.split == "held-out"
        if not self.held_out and not wanted:
            return files
        kept = Packed(file for file in files if is_held_out(moment_of(file, self.moment), self.held_out) == wanted)
        if not kept:
            raise UserError(
                f"data.root: no file of {self.root!r} is on the side {self.split!r} of data.held_out "
                f"{self.held_out:g}; choose {'a larger' if wanted else 'a smaller'} share"
            )
        return kept

    def left_out(self, found: Found, kept: Sequence[str]) -> dict[str, int]:
        """How much of a folder this side does not read, by the reason."""
        unseen = len(found.files) - len(kept)
        return found.left_out | ({f"on the other side of data.held_out {self.held_out:g}": unseen} if unseen else {})


def is_held_out(name: str, share: float) -> bool:
    """Whether what has this name belongs to the share kept for evaluation: by its SHA-1, so the same everywhere."""
    digest = hashlib.sha1(f"held out? {name}".encode("utf-8", "surrogateescape")).hexdigest()
    return int(digest, 16) % SHARES < share * SHARES


def moment_of(file: str, pattern: str) -> str:
    """A file's folder, and the groups that the pattern finds in its name, else all that it finds, else its name."""
    folder, _, name = file.rpartition("/")
    stem = os.path.splitext(name)[0]
    found = re.search(pattern, stem)
    moment = stem if found is None else "/".join(group or "" for group in found.groups()) or found[0]
    return f"{folder or '.'}/{moment}"


def class_of(file: str) -> str:
    """Name of the class folder that a file lies in."""
    return printable(file.partition("/")[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a folder holds."""

    files: Packed[str]  # of the kinds looked for, relative to the folder, in order, with slashes
    classes: tuple[str, ...]  # empty where the files lie straight in the folder
    left_out: dict[str, int]  # how many other files and folders there are, by the reason
    beside: frozenset[str] = frozenset()  # files that say something of others

    @property
    def others(self) -> str:
        """For the end of a message."""
        said = "; ".join(f"{count} {reason}" for reason, count in self.left_out.items())
        return said and f", and there are {said}"


def find_files(root: Path, suffixes: tuple[str, ...], known: tuple[str, ...] = (), beside: str | None = None) -> Found:
    """Files of these kinds below a folder. Where some lie in subfolders, others have no class and are left out.

    Links to folders are followed, but not round in a circle. Hidden files and folders are left out. known: names of
    files in `root` that are no items, and not to be counted. beside: suffix of files that belong to those of the same
    name but for theirs."""
    files: list[str] = []
    others: list[str] = []
    left_out: Counter[str] = Counter()
    for file, reason in _walk(str(root), "", ()):
        if reason is None and not file.lower().endswith(suffixes):
            if file in known:
                continue
            if beside is not None and file.lower().endswith(beside):
                others.append(file)
                continue
            suffix = os.path.splitext(file)[1].lower()
            reason = f"files that end in {suffix}" if suffix else "files without a suffix"
        if reason is None:
            files.append(file)
        else:
            left_out[reason] += 1
    classes = sorted({file.partition("/")[0] for file in files if "/" in file})
    if classes:
        inside = [file for file in files if "/" in file]
        if len(inside) < len(files):
            left_out["outside of the class folders"] = len(files) - len(inside)
        files = inside
    names = {os.path.splitext(file)[0] for file in files} if others else set()
    belong = frozenset(file for file in others if os.path.splitext(file)[0] in names)
    if len(belong) < len(others):
        left_out[f"files that end in {beside} and belong to no other"] = len(others) - len(belong)
    return Found(files=Packed(files), classes=tuple(classes), left_out=dict(left_out), beside=belong)


def printable(name: str) -> str:
    """A file's name as text that can be written anywhere, whatever bytes it is of."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _walk(root: str, folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, str | None]]:
    """Files below `root`/`folder`, relative to `root` and in order, each with the reason why it is left out, or None;
    likewise folders that are not entered. folder: "" or ends in a slash. above: identities of the folders on the way.
    """
    try:
        place = os.stat(os.path.join(root, folder))
        entries = sorted(os.scandir(os.path.join(root, folder)), key=lambda entry: entry.name)
    except OSError as error:
        yield folder, f"folders that cannot be read ({error.strerror})"
        return
    identity = (place.st_dev, place.st_ino)
    if identity in above:
        yield folder, "links to a folder that they lie in"
        return
    for entry in entries:
        file = folder + entry.name
        if entry.name.startswith(".") or entry.name in JUNK:
            yield file, "hidden files and folders"
        elif _is(entry.is_dir):  # also through a link; False where that leads nowhere, or to itself
            yield from _walk(root, f"{file}/", (*above, identity))
        elif entry.is_symlink() or _is(entry.is_file):  # a link to nowhere is a broken item
            yield file, None
        else:
            yield file, "neither files nor folders"


def _is(ask: Callable[[], bool]) -> bool:
    try:
        return ask()
    except OSError:
        return False
