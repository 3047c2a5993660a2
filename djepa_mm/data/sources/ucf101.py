"""UCF101 in its published layout: UCF-101/<class>/v_<class>_g<group>_c<clip>.avi, and the lists of its three splits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from djepa_mm.data.compact import Packed
from djepa_mm.data.folders import class_of
from djepa_mm.data.sources.clips import Clips, VideoConfig
from djepa_mm.types import UserError

VIDEOS, LISTS = "UCF-101", "ucfTrainTestlist"


class UCF101Config(VideoConfig):
    """Human actions, 101 classes, 13,320 videos of 320×240 at 25 frames a second."""

    source: Literal["ucf101"]
    root: str
    """Folder that holds UCF-101/ and ucfTrainTestlist/."""
    size: Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)] = (128, 128)
    fold: Annotated[int, Field(ge=1, le=3)] = 1
    """Which of the three published splits."""
    split: Literal["train", "test"] = "train"

    def build(self) -> Clips:
        root = Path(self.root).expanduser()
        if not (root / VIDEOS).is_dir() or not (root / LISTS).is_dir():
            raise UserError(f"data.root: no {VIDEOS}/ and {LISTS}/ in {self.root!r}; unpack UCF101 and its lists there")
        classes = tuple(row[1] for row in _rows(root / LISTS / "classInd.txt", 2))
        files = Packed(row[0] for row in _rows(root / LISTS / f"{self.split}list0{self.fold}.txt", 1))
        for file in files:
            if class_of(file) not in classes:
                raise UserError(f"data.root: {LISTS} names {file}, whose class is not in classInd.txt")
        return Clips(self, root / VIDEOS, files, classes)

    def build_held_out(self) -> Clips | None:
        """The test side of the same split."""
        return self.model_copy(update={"split": "test"}).build() if self.split == "train" else None


def _rows(path: Path, least: int) -> list[list[str]]:
    """A list's rows of words, with `least` words or more. Raises UserError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.root: cannot read the list {path} ({error})") from error
    rows = [line.split() for line in lines if line.strip()]
    for row in rows:
        if len(row) < least:
            raise UserError(f"data.root: {path} has a line of {len(row)} words, not {least}: {row[0]!r}")
    if not rows:
        raise UserError(f"data.root: the list {path} is empty")
    return rows
