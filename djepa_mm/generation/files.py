"""What was generated, as an object to look at or listen to, and as files."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from djepa_mm.errors import UserError
from djepa_mm.media.page import figure, page
from djepa_mm.media.sheet import sheet
from djepa_mm.types import Media

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Generated:
    """One item: a picture (C, H, W), a clip (C, T, H, W) or a sound (samples,), in [-1, 1], on the CPU.

    In a notebook it shows or plays itself."""

    media: Tensor
    title: str
    kind: Media  # how it is written and looked at

    def save(self, path: Path | str) -> Path:
        """Write a file of one of the kind's suffixes. Raises UserError for another one."""
        path = Path(path)
        check_suffix(self.kind, path.suffix, str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        self.kind.save(self.media, path)
        return path

    def preview(self) -> Image.Image:
        """A picture to look at: itself, a contact sheet, a mel picture."""
        return self.kind.preview(self.media)

    def __repr__(self) -> str:
        return f"Generated({self.title!r}, {tuple(self.media.shape)})"

    def _repr_html_(self) -> str:
        with tempfile.TemporaryDirectory() as folder:
            return figure(self.title, self.preview(), self.save(Path(folder) / f"item{self.kind.suffixes[0]}"))


class Results(tuple[Generated, ...]):
    """Several items. In a notebook they show themselves one after the other; pictures on one sheet."""

    __slots__ = ()

    def save(self, folder: Path | str, name: str = "generated", suffix: str | None = None) -> list[Path]:
        """A file an item, named by number and title, then `sheet.png` and `index.html` of all."""
        return list(write_results(self, Path(folder), name, suffix))

    def sheet(self) -> Image.Image:
        """All previews on one sheet."""
        return sheet([item.preview() for item in self])

    def _repr_html_(self) -> str:
        if self and self[0].kind.per_second is None:
            return figure(f"{len(self)} items", self.sheet())
        return "\n".join(item._repr_html_() for item in self)


def check_suffix(kind: Media, suffix: str, option: str) -> str:
    """The suffix, if media of that kind have such files. Raises UserError, naming the option that asked for it."""
    if suffix not in kind.suffixes:
        raise UserError(f"{option}: this model writes {', '.join(kind.suffixes)} files")
    return suffix


def clear_generated(folder: Path) -> None:
    """Delete what `write_results` left in a folder before: files named by number, the sheet and the page."""
    for path in folder.glob("*"):
        if re.match(r"\d{4}-", path.name) or path.name in ("sheet.png", "index.html"):
            path.unlink()


def write_results(items: Sequence[Generated], folder: Path, name: str, suffix: str | None = None) -> Iterator[Path]:
    """Write a file an item, named by number and title, then `sheet.png` and `index.html` of all.

    suffix: one of the kind's; its first where none is given. Yields each path once it is there. Raises UserError for
    another suffix, before anything is written."""
    if suffix is not None and items:
        check_suffix(items[0].kind, suffix, f"suffix {suffix}")
    folder.mkdir(parents=True, exist_ok=True)
    previews, figures = [item.preview() for item in items], []
    for n, item in enumerate(items):
        slug = re.sub(r"[^a-z0-9]+", "-", item.title.lower()).strip("-")[:40]
        path = item.save(folder / f"{n:04d}-{slug}{suffix or item.kind.suffixes[0]}")
        figures.append(figure(item.title, previews[n], path))
        yield path
    sheet(previews).save(folder / "sheet.png")
    yield folder / "sheet.png"
    index = folder / "index.html"
    index.write_text(page(name, f"{len(items)} items generated", figures), encoding="utf-8")
    yield index
