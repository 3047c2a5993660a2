"""Scenes of coloured shapes, and captions of GenEval's six categories that say what is in them: the grammar, the
drawing, and the combinations that training never has.

H and W pixels. Places are (y, x) in pixels from the upper left corner; a pixel's centre is at its half.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from random import Random
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from djepa_mm.errors import UserError

Category = Literal["single object", "two objects", "counting", "colours", "position", "colour attribution"]
CATEGORIES: tuple[Category, ...] = (
    *("single object", "two objects", "counting", "colours", "position", "colour attribution"),
)  # Ghosh et al. 2023, GenEval
Kind = tuple[str, str | None]  # an object's shape, and its colour where that is said

# Whether places of [-1, 1]² are inside, y downwards
SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": lambda y, x: y**2 + x**2 <= 1,
    "square": lambda y, x: np.maximum(abs(y), abs(x)) <= 1,
    "triangle": lambda y, x: (2 * abs(x) <= y + 1) & (y <= 1),
    "cross": lambda y, x: (np.minimum(abs(y), abs(x)) <= 0.36) & (np.maximum(abs(y), abs(x)) <= 1),
    "ring": lambda y, x: abs(y**2 + x**2 - 0.65) <= 0.35,
}
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 40),
    "orange": (255, 140, 20),
    "yellow": (250, 225, 40),
    "green": (40, 165, 60),
    "cyan": (45, 205, 225),
    "blue": (40, 70, 225),
    "purple": (140, 50, 200),
    "pink": (255, 105, 185),
}
NUMBERS = {"two": 2, "three": 3, "four": 4}
RELATIONS = ("left of", "right of", "above", "below")
PLURALS = {shape: f"{shape}es" if shape.endswith("s") else f"{shape}s" for shape in SHAPES}

# What no scene of training has
UNSEEN_COLOURS = frozenset(
    {
        *(("ring", "red"), ("square", "orange"), ("cross", "yellow"), ("triangle", "green")),
        *(("circle", "cyan"), ("cross", "blue"), ("ring", "purple"), ("square", "pink")),
    }
)
UNSEEN_PAIRS = frozenset({frozenset({"circle", "cross"}), frozenset({"square", "ring"})})  # of shapes in one scene
UNSEEN_COUNTS = frozenset({(2, "cross"), (3, "ring"), (4, "triangle")})

MARGIN, GAP = 1.0, 3.0  # pixels that are free beside the edge and between two objects
CLEARLY = 1.2  # times as far along the axis of a relation as across it
SUBPIXELS = 4  # a side, of each pixel


def is_unseen(kinds: Sequence[Kind]) -> bool:
    """Whether training never has these objects together, or one of them at all."""
    shapes = frozenset(shape for shape, _ in kinds)
    return (
        any(kind in UNSEEN_COLOURS for kind in kinds)
        or shapes in UNSEEN_PAIRS
        or (len(shapes) == 1 and (len(kinds), *shapes) in UNSEEN_COUNTS)
    )


# --- captions ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Group:
    """Objects alike: "a circle", "three red squares"."""

    shape: str
    colour: str | None = None
    count: int = 1

    def __str__(self) -> str:
        words = [] if self.colour is None else [self.colour]
        words.append(self.shape if self.count == 1 else PLURALS[self.shape])
        article = "an" if words[0][0] in "aeiou" else "a"
        return " ".join([next((word for word, n in NUMBERS.items() if n == self.count), article), *words])


@dataclass(frozen=True, slots=True)
class Caption:
    """One group of objects or two, and how the first lies to the second."""

    groups: tuple[Group, ...]
    relation: str | None = None

    def __str__(self) -> str:
        return f" {self.relation or 'and'} ".join(map(str, self.groups))

    @property
    def category(self) -> Category:
        coloured = any(group.colour for group in self.groups)
        if len(self.groups) == 2:
            return "position" if self.relation else "colour attribution" if coloured else "two objects"
        if self.groups[0].count > 1:
            return "counting"
        return "colours" if coloured else "single object"

    @property
    def kinds(self) -> list[Kind]:
        """Of each object."""
        return [(group.shape, group.colour) for group in self.groups for _ in range(group.count)]

    @property
    def attributes(self) -> list[str]:
        """Its words that say something of the picture: shapes in the singular, colours, numbers, the relation."""
        words = [word for group in self.groups for word in (group.colour, group.shape) if word]
        words += [word for word, n in NUMBERS.items() if n == self.groups[0].count]
        return list(dict.fromkeys([*words, *([self.relation] if self.relation else [])]))

    def neighbours(self) -> Iterator[Caption]:
        """Every caption that differs in one word and says something else."""
        for n, group in enumerate(self.groups):
            changed = [replace(group, shape=shape) for shape in SHAPES if shape != group.shape]
            if group.colour:
                changed += [replace(group, colour=colour) for colour in COLOURS if colour != group.colour]
            if group.count > 1:
                changed += [replace(group, count=count) for count in NUMBERS.values() if count != group.count]
            for other in changed:
                yield replace(self, groups=(*self.groups[:n], other, *self.groups[n + 1 :]))
        if self.relation:
            opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
            yield replace(self, relation=opposite[self.relation])


_GROUP = rf"(an?|{'|'.join(NUMBERS)}) (?:({'|'.join(COLOURS)}) )?({'|'.join([*PLURALS.values(), *SHAPES])})"
_CAPTION = re.compile(rf"{_GROUP}(?: (and|{'|'.join(RELATIONS)}) {_GROUP})?")


@cache
def parse(text: str) -> Caption:
    """What a caption says. Raises UserError for a text that is none of the grammar."""
    found = _CAPTION.fullmatch(" ".join(text.lower().rstrip(". ").split()))
    if found is None:
        raise UserError(
            f"{text!r}: no caption of the corpus shapes, such as 'two red circles' or 'a blue square left of a ring'"
        )
    first, colour, shape, link, second, *rest = found.groups()
    groups = [_group(text, first, colour, shape)]
    if link is not None:
        groups.append(_group(text, second, *rest))
        if any(group.count > 1 for group in groups):
            raise UserError(f"{text!r}: captions of the corpus shapes say a number of one kind of object alone")
    return Caption(tuple(groups), link if link in RELATIONS else None)


def _group(text: str, number: str, colour: str | None, shape: str) -> Group:
    singular = {plural: shape for shape, plural in PLURALS.items()}.get(shape, shape)
    group = Group(singular, colour, NUMBERS.get(number, 1))
    if (shape in SHAPES) != (group.count == 1):
        raise UserError(f"{text!r}: {number} and {shape} do not go together")
    return group


# --- what is in a scene -----------------------------------------------------------------------------------------------


def imagine(
    random: Random, category: Category, *, skew: float = 0.0, unseen: bool = False
) -> tuple[Caption, list[tuple[str, str]]]:
    """A caption, and shape and colour of each of its objects, also where it does not say them.

    skew: exponent of Zipf's law, by which shapes and colours become rarer in their order. unseen: the caption names a
    combination that training never has; else the scene has none."""
    while True:
        caption, kinds = _imagine(random, category, skew)
        if is_unseen(caption.kinds) if unseen else not is_unseen(kinds):
            return caption, kinds


def _imagine(random: Random, category: Category, skew: float) -> tuple[Caption, list[tuple[str, str]]]:
    (shape,), (colour,) = _drawn(random, SHAPES, skew), _drawn(random, COLOURS, skew)
    said = category in ("colours", "colour attribution")
    if category in ("counting", "position"):
        said = random.random() < 0.5
    if category in ("single object", "colours"):
        return Caption((Group(shape, colour if said else None),)), [(shape, colour)]
    if category == "counting":
        (count,) = random.choices(tuple(NUMBERS.values()))
        colours = [colour] * count if said else _drawn(random, COLOURS, skew, count)
        return Caption((Group(shape, colour if said else None, count),)), [(shape, colour) for colour in colours]
    other, second = shape, colour
    while other == shape:
        (other,) = _drawn(random, SHAPES, skew)
    while second == colour:
        (second,) = _drawn(random, COLOURS, skew)
    relation = random.choices(RELATIONS)[0] if category == "position" else None
    groups = Group(shape, colour if said else None), Group(other, second if said else None)
    return Caption(groups, relation), [(shape, colour), (other, second)]


def _drawn(random: Random, names: dict[str, object] | dict, skew: float, count: int = 1) -> list[str]:
    """Some of the names, the k-th with a probability of about k to the power of -skew."""
    return random.choices(tuple(names), cum_weights=_zipf(len(names), skew), k=count)


@cache
def _zipf(count: int, skew: float) -> tuple[float, ...]:
    return tuple(np.cumsum(np.arange(1, count + 1) ** -skew).tolist())


# --- where it is ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """Of one object."""

    y: float  # of the middle of its height
    x: float
    size: float  # its height and width


@dataclass(frozen=True, slots=True)
class _Box:
    y: float
    x: float
    height: float
    width: float


def least_side(smallest: float, *, alone: bool = False) -> int:
    """The least height and width of a picture in which four objects of the smallest size have room, or one alone."""
    return math.ceil(smallest + 2 * MARGIN if alone else 2 * smallest + GAP + 2 * MARGIN)


def place(
    random: Random, count: int, relation: str | None, size: tuple[float, float], objects: tuple[float, float]
) -> list[Place]:
    """Places for one to four objects, GAP apart. size: (H, W) of the picture; objects: from the smallest to the
    largest. A relation is clear: the first of two lies more along its axis than across."""
    height, width = size
    whole = _Box(MARGIN, MARGIN, height - 2 * MARGIN, width - 2 * MARGIN)
    if relation is None:
        return [_in_box(random, box, objects) for box in _cut(random, whole, count, objects[0])]
    along_x = relation in ("left of", "right of")
    first, second = (_in_box(random, box, objects) for box in _halves(random, whole, objects[0], along_x))
    if along_x:
        second = replace(second, y=_near(random, first.y, second.y, second.x - first.x, second.size, height))
    else:
        second = replace(second, x=_near(random, first.x, second.x, second.y - first.y, second.size, width))
    return [first, second] if relation in ("left of", "above") else [second, first]


def _near(random: Random, first: float, second: float, along: float, size: float, length: float) -> float:
    """The second's place across the axis of a relation, drawn anew where it is too far from the first's."""
    reach, edge = along / CLEARLY, MARGIN + size / 2
    if abs(second - first) <= reach:
        return second
    return random.uniform(max(edge, first - reach), min(length - edge, first + reach))


def _cut(random: Random, box: _Box, count: int, least: float) -> list[_Box]:
    """Boxes for so many objects of at least that size, GAP apart, in random order."""
    if count == 1:
        return [box]
    room = 2 * least + GAP
    ways = [along_x for along_x in (False, True) if (box.width if along_x else box.height) >= room]
    first, second = _halves(random, box, least, random.choices(ways)[0])
    if random.random() < 0.5:
        first, second = second, first
    return [*_cut(random, first, count // 2, least), *_cut(random, second, count - count // 2, least)]


def _halves(random: Random, box: _Box, least: float, along_x: bool) -> tuple[_Box, _Box]:
    """The upper and the lower part of a box, or the left and the right one, each `least` or more; mostly alike."""
    length = box.width if along_x else box.height
    cut = least + (length - GAP - 2 * least) * (random.random() + random.random()) / 2
    rest, start = length - GAP - cut, cut + GAP
    if along_x:
        return replace(box, width=cut), replace(box, x=box.x + start, width=rest)
    return replace(box, height=cut), replace(box, y=box.y + start, height=rest)


def _in_box(random: Random, box: _Box, objects: tuple[float, float]) -> Place:
    least, most = objects
    size = random.uniform(least, min(most, box.height, box.width))
    return Place(
        y=box.y + size / 2 + random.random() * (box.height - size),
        x=box.x + size / 2 + random.random() * (box.width - size),
        size=size,
    )


# --- the picture ------------------------------------------------------------------------------------------------------


def draw(
    random: Random,
    kinds: Sequence[tuple[str, str]],
    places: Sequence[Place],
    size: tuple[int, int],
    scale: float = 1.0,
) -> Tensor:
    """Objects on a ground -> (3, H, W) in [-1, 1]. scale: pixels of the picture to one of the places'."""
    canvas = _ground(random, *size, scale)
    for (shape, colour), at in zip(kinds, places, strict=True):
        covered, rows, columns = coverage(shape, Place(at.y * scale, at.x * scale, at.size * scale), size)
        ink = [min(1.0, max(0.0, value / 255 + 0.08 * random.random() - 0.04)) for value in COLOURS[colour]]
        patch = canvas[rows, columns]
        patch += covered[..., None] * (np.array(ink, dtype=np.float32) - patch)
    canvas *= 2
    canvas -= 1
    return torch.from_numpy(np.ascontiguousarray(canvas.transpose(2, 0, 1)))


def coverage(shape: str, at: Place, size: tuple[int, int], beside: int = 0) -> tuple[np.ndarray, slice, slice]:
    """Share of each pixel that an object covers, in the rows and columns around it, `beside` more on each side."""
    sides = []
    for middle, length in zip((at.y, at.x), size, strict=True):
        start = max(0, math.floor(middle - at.size / 2) - beside)
        stop = min(length, math.ceil(middle + at.size / 2) + beside)
        sides.append((start, stop, (np.arange(0.5, (stop - start) * SUBPIXELS) / SUBPIXELS + start - middle)))
    (top, bottom, y), (left, right, x) = sides
    half = at.size / 2
    inside = SHAPES[shape](y[:, None] / half, x[None, :] / half)
    counts = inside.reshape(bottom - top, SUBPIXELS, -1).sum(axis=1, dtype=np.uint8)
    counts = counts.reshape(bottom - top, right - left, SUBPIXELS).sum(axis=2, dtype=np.uint8)
    return counts * np.float32(SUBPIXELS**-2), slice(top, bottom), slice(left, right)


def _ground(random: Random, height: int, width: int, scale: float) -> np.ndarray:
    """Nearly grey, (H, W, 3) in [0, 1]: plain, a gradient, noise or stripes, which are as much wider."""
    base, step = random.uniform(0.1, 0.9), random.uniform(0.1, 0.25)
    greys = base, base + (step if base < 0.5 else -step)
    first, second = (np.array([grey + 0.05 * random.random() - 0.025 for _ in range(3)], np.float32) for grey in greys)
    kind = int(4 * random.random())
    if kind == 0:
        return np.tile(first, (height, width, 1))
    if kind == 1:
        noise = np.random.default_rng(int(2**32 * random.random())).random((height, width, 3), np.float32)
        return first + 0.1 * (noise - 0.5)
    angle = random.uniform(0, 2 * math.pi)
    rows, columns = np.arange(height, dtype=np.float32), np.arange(width, dtype=np.float32)
    along = math.sin(angle) * rows[:, None] + math.cos(angle) * columns
    if kind == 2:
        along -= along.min()
        share = along / along.max()
    else:
        share = (along / (scale * random.uniform(4, 10)) % 1 < 0.5).astype(np.float32)
    return first + share[..., None] * (second - first)
