"""Pictures with captions that need no download and no files: scenes of coloured shapes, drawn as they are read."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from djepa_mm.data.scene_scorer import judge
from djepa_mm.data.scenes import CATEGORIES, Caption, Category, draw, imagine, least_side, place
from djepa_mm.types import Entry, Item, Judgement, Progress, SourceConfig

HELD_OUT = 1200  # scenes that are kept for evaluation, with combinations that training has, and as many without
REFERENCE = 32  # pixels of the longer side of the pictures that scenes which grow are measured in
LEAST_OBJECT = 4.0  # pixels of the picture, of objects that can be told from each other
Side = Literal["train", "seen", "unseen"]


class ShapesConfig(SourceConfig):
    """Coloured shapes on grey grounds, with captions such as "two red circles" and "a blue square left of a ring"."""

    source: Literal["shapes"]
    count: PositiveInt = 20_000
    size: Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)] = (32, 32)
    """Height and width."""
    sizes: Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)] | None = None
    """In place of `size`: the least and the most pixels, between which each picture draws its height and its width."""
    multiple_of: PositiveInt = 8
    """Of which `sizes` draws multiples: the tokenizer's patch."""
    objects: Annotated[tuple[PositiveFloat, PositiveFloat], Field(strict=False)] = (6.0, 14.0)
    """Height and width of the smallest objects and of the largest, in pixels."""
    grow: bool = False
    """Scenes grow with the picture, but for the grain of noise, as a photograph does that is resized: the pixels of
    `objects` and of the room around them are then those of a picture whose longer side is 32."""
    categories: Annotated[tuple[Category, ...], Field(min_length=1, strict=False)] = CATEGORIES
    """What captions say; fewer are a simpler grammar."""
    skew: NonNegativeFloat = 0.0
    """Exponent of Zipf's law, by which colours and shapes become rarer in their order; held-out scenes have them all
    alike."""
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _check(self) -> ShapesConfig:
        if self.objects[0] > self.objects[1]:
            raise ValueError(
                f"data.objects: {self.objects[0]:g} is more than {self.objects[1]:g}; give the least first"
            )
        name = "size" if self.sizes is None else "sizes"
        said = f"data.{name}: {list(getattr(self, name))}"
        if self.sizes is not None and not self.sides:
            raise ValueError(f"{said} holds no multiple of data.multiple_of {self.multiple_of}; widen it")
        low, high = (min(self.size), max(self.size)) if self.sizes is None else (self.sides[0], self.sides[-1])
        smallest, largest = self.objects
        least = least_side(smallest, alone=self.grow and set(self.categories) <= {"single object", "colours"})
        if not self.grow:
            if low < least:
                raise ValueError(f"{said}: objects of {smallest:g} pixels need {least} or more; make it larger")
            return self
        short, longest = low * self.frame((low, high)), high if self.sizes is None else low  # of the smallest picture
        if short < least:
            raise ValueError(
                f"{said}: of a scene that grows the longest side is {REFERENCE} and the shortest {short:g}, where "
                f"objects of {smallest:g} need {least}; make the sides more alike"
            )
        if smallest * longest < LEAST_OBJECT * REFERENCE:
            needed = LEAST_OBJECT * REFERENCE / longest
            raise ValueError(f"{said}: too few pixels to tell objects of {smallest:g}; give them {needed:.3g} or more")
        if largest**2 > REFERENCE * short / 2:
            raise ValueError(
                f"{said}: objects of {largest:g} fill more than half of {REFERENCE}×{short:g}; make them less"
            )
        return self

    def frame(self, size: tuple[int, int]) -> float:
        """Of a pixel of a picture of that height and width: how many of those that `objects` counts it is."""
        return REFERENCE / max(size) if self.grow else 1.0

    @property
    def sides(self) -> range:
        """Heights and widths that `sizes` draws from."""
        assert self.sizes is not None
        least, most = self.sizes
        return range(-(-least // self.multiple_of) * self.multiple_of, most + 1, self.multiple_of)

    def build(self) -> Shapes:
        return Shapes(self)

    def build_held_out(self) -> Shapes:
        """Other scenes, of combinations that training has."""
        return Shapes(self.model_copy(update={"count": HELD_OUT, "skew": 0.0}), "seen")

    def build_unseen(self) -> Shapes | None:
        """Scenes whose captions name combinations that training never has; None where a single object is all that
        captions name, which has none."""
        categories = tuple(category for category in self.categories if category != "single object")
        changes = {"count": HELD_OUT, "skew": 0.0, "categories": categories}
        return Shapes(self.model_copy(update=changes), "unseen") if categories else None

    def judge(self, media: Sequence[Tensor], texts: Sequence[str]) -> list[Judgement]:
        return [judge(picture, text) for picture, text in zip(media, texts, strict=True)]

    def fetch(self, progress: Progress) -> str:
        return "nothing to fetch: shapes are drawn as they are read"


class Shapes:
    """Held-out scenes have their categories in turn."""

    def __init__(self, config: ShapesConfig, side: Side = "train") -> None:
        self.config, self.side = config, side
        self.classes: tuple[str, ...] = config.categories

    def __len__(self) -> int:
        return self.config.count

    def entry(self, index: int) -> Entry:
        _, _, caption, _ = self._scene(index)
        return Entry(name=f"{self.side}/{index}", label=caption.category, text=str(caption))

    def shape(self, index: int) -> tuple[int, ...]:
        return (3, *self._begin(index)[1])

    def read(self, index: int) -> Item:
        random, size, caption, kinds = self._scene(index)
        frame = self.config.frame(size)
        scene = size[0] * frame, size[1] * frame
        places = place(random, len(kinds), caption.relation, scene, self.config.objects)
        entry = Entry(name=f"{self.side}/{index}", label=caption.category, text=str(caption))
        return Item(entry=entry, media=draw(random, kinds, places, size, 1 / frame))

    def _begin(self, index: int) -> tuple[Random, tuple[int, int]]:
        """What draws all of an item, and its height and width."""
        random = Random(f"{self.config.seed} {self.side} {index}")
        if self.config.sizes is None:
            return random, self.config.size
        height, width = random.choices(self.config.sides, k=2)
        return random, (height, width)

    def _scene(self, index: int) -> tuple[Random, tuple[int, int], Caption, list[tuple[str, str]]]:
        random, size = self._begin(index)
        categories = self.config.categories
        (category,) = random.choices(categories)
        if self.side != "train":
            category = categories[index % len(categories)]
        caption, kinds = imagine(random, category, skew=self.config.skew, unseen=self.side == "unseen")
        return random, size, caption, kinds
