"""Many pictures on one sheet."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image


def sheet(cells: Sequence[Image.Image], columns: int | None = None, gap: int = 2) -> Image.Image:
    """Pictures side by side on one white sheet, row by row, each cell as large as the largest."""
    columns = columns or max(1, min(len(cells), round(len(cells) ** 0.5)))
    width, height = max(cell.width for cell in cells) + gap, max(cell.height for cell in cells) + gap
    rows = -(-len(cells) // columns)
    page = Image.new("RGB", (columns * width + gap, rows * height + gap), "white")
    for n, cell in enumerate(cells):
        page.paste(cell.convert("RGB"), (gap + n % columns * width, gap + n // columns * height))
    return page
