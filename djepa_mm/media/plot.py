"""Plots of few numbers with names: points, and shares."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

SIZE, MARGIN = (960, 640), (90, 70, 40, 80)  # pixels; left, top, right, bottom
TEXT, DOT = 16, 5  # height of the letters, radius of a point
LINE, NAMES = 20, 300  # height of a bar's line and width of its name, in pixels
MOST = 44  # letters of a name
GREY, COLOUR = (205, 205, 205), (31, 84, 158)


def scatter(
    points: Mapping[str, tuple[float, float]], *, title: str, x: str, y: str, log_y: bool = False
) -> Image.Image:
    """Points by name, on axes that are named x and y. log_y: where all of them are above 0."""
    image = Image.new("RGB", SIZE, "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(TEXT)
    left, top, right, bottom = MARGIN[0], MARGIN[1], SIZE[0] - MARGIN[2], SIZE[1] - MARGIN[3]
    across = ticks([point[0] for point in points.values()])
    up = ticks([point[1] for point in points.values()], log=log_y)

    def place(point: tuple[float, float]) -> tuple[float, float]:
        """In pixels."""
        right_share, up_share = share(point[0], across), share(point[1], up, log=log_y)
        return left + right_share * (right - left), bottom - up_share * (bottom - top)

    for value in across:
        at, _ = place((value, up[0]))
        draw.line((at, top, at, bottom), GREY)
        draw.text((at, bottom + 10), f"{value:g}", "black", font, anchor="ma")
    for value in up:
        _, at = place((across[0], value))
        draw.line((left, at, right, at), GREY)
        draw.text((left - 10, at), f"{value:g}", "black", font, anchor="rm")
    draw.text((SIZE[0] / 2, 14), plain(title), "black", font, anchor="ma")
    draw.text((left, top - 12), plain(y), "black", font, anchor="lb")
    draw.text((right, SIZE[1] - 16), plain(x), "black", font, anchor="rb")

    lowest = -math.inf  # of the names so far: none lies on another
    for name, point in sorted(points.items(), key=lambda item: -item[1][1]):
        at, height = place(point)
        lowest = max(height, lowest + TEXT + 4)
        side, anchor = (2 * DOT, "lm") if at < (left + right) / 2 else (-2 * DOT, "rm")
        known = plain(name)
        shown = known if len(known) <= MOST else f"{known[: MOST // 2]}...{known[-MOST // 2 :]}"
        draw.text((at + side, lowest), shown, COLOUR, font, anchor=anchor)
        draw.ellipse((at - DOT, height - DOT, at + DOT, height + DOT), COLOUR)
    return image


def plain(text: str) -> str:
    """In the letters that Pillow's own font has."""
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def ticks(values: Sequence[float], *, log: bool = False) -> list[float]:
    """Round numbers, two or more, from one that is not above the least value to one that is not below the largest."""
    low, high = min(values), max(values)
    if log:
        marks = [float(f"{digit}e{power}") for power in range(-9, 10) for digit in (1, 2, 5)]
        first, last = (sum(mark <= low for mark in marks) - 1, sum(mark < high for mark in marks))
        return marks[max(first, 0) : max(last, first + 1) + 1]
    span = (high - low) or abs(high) or 1.0
    unit = 10.0 ** math.floor(math.log10(span / 4))
    step = next(digit * unit for digit in (1, 2, 5, 10) if digit * unit >= span / 4)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def share(value: float, marks: Sequence[float], *, log: bool = False) -> float:
    """Of the way from the first mark to the last."""
    low, value, high = (math.log(one) if log else one for one in (marks[0], value, marks[-1]))
    return (value - low) / (high - low)


def bars(rows: Sequence[tuple[str, float, float | None]], *, title: str, bar: str, mark: str) -> Image.Image:
    """Shares in [0, 1] below each other: a name, a bar, and where there is one a mark beside it; a row whose name is
    empty is a gap. bar, mark: what they are called."""
    height = MARGIN[1] + LINE * len(rows) + MARGIN[3]
    image = Image.new("RGB", (SIZE[0], height), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(TEXT)
    left, right, end = NAMES, SIZE[0] - MARGIN[2], height - MARGIN[3]
    marks = ticks([0.0, *(value for _, share_, wanted in rows for value in (share_, wanted or 0.0))])

    def across(value: float) -> float:
        return left + share(value, marks) * (right - left)

    for value in marks:
        draw.line((across(value), MARGIN[1], across(value), end), GREY)
        draw.text((across(value), end + 10), f"{value:g}", "black", font, anchor="ma")
    draw.text((SIZE[0] / 2, 14), plain(title), "black", font, anchor="ma")
    draw.text((left, MARGIN[1] - 12), f"bar: {plain(bar)}, line: {plain(mark)}", "black", font, anchor="lb")
    for n, (name, value, wanted) in enumerate(rows):
        at = MARGIN[1] + LINE * n
        if name:
            draw.text((left - 10, at + LINE / 2), plain(name)[:MOST], "black", font, anchor="rm")
            draw.rectangle((left, at + 3, across(value), at + LINE - 4), COLOUR)
        if wanted is not None:
            draw.rectangle((across(wanted) - 1, at, across(wanted) + 1, at + LINE - 1), "black")
    return image
