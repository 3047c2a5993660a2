"""Does a picture show what its caption says? Rules that find the shapes of a scene by their colours and outlines.

H and W pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from djepa_mm.data.scenes import COLOURS, NUMBERS, RELATIONS, SHAPES, Caption, Kind, Place, coverage, parse
from djepa_mm.types import Judgement

LEAST_CHROMA = 0.15  # of an object, over the ground's; the palest colour has 0.37, and an even mix with the ground half
CORE = 0.8  # of an object's strongest chroma: where nothing of the ground is mixed in
SPECK = 6  # pixels; what is smaller is no object, and forgiven once
MOST = 8  # objects; a picture with more is rubbish
FRINGE, FAINT = 2, 0.15  # pixels around an object that hold something of it, and the least that counts
BLURS = (0.0, 0.7, 1.1)  # deviations in pixels, of pictures that are a little out of focus
LEAST_OVERLAP = 0.75  # intersection over union of an object with the shape that it is
LEAST_SHARE = 0.75  # of an object's core that has its colour


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An object in a picture; None where it has no shape or no colour that there is."""

    shape: str | None
    colour: str | None
    y: float  # of its centre of mass, in pixels
    x: float
    pixels: float  # that it covers

    @property
    def kind(self) -> tuple[str | None, str | None]:
        return self.shape, self.colour


NOTHING = Found(shape=None, colour=None, y=0.0, x=0.0, pixels=0.0)  # that could be told


def judge(picture: Tensor, text: str) -> Judgement:
    """picture (3, H, W) in [-1, 1]. It fits when it has the objects that the caption names, and no others.

    Raises UserError for a text that is no caption."""
    caption, found = parse(text), find(picture)
    return Judgement(
        fits=fits(found, caption),
        facts={word: _holds(word, found, caption) for word in caption.attributes},
        kind=caption.category,
        centre=centre(found, picture.shape[1:]),
    )


def fits(found: Sequence[Found], caption: Caption) -> bool:
    """Whether the objects are those of the caption, each of them one of its own."""
    wanted = caption.kinds
    if len(found) != len(wanted):
        return False
    return any(
        all(map(_is, order, wanted)) and (caption.relation is None or relation(*order) == caption.relation)
        for order in permutations(found)
    )


def _is(found: Found, wanted: Kind) -> bool:
    shape, colour = wanted
    return found.shape == shape and found.colour is not None and colour in (None, found.colour)


def _holds(word: str, found: Sequence[Found], caption: Caption) -> bool:
    """Whether one of the caption's words is right, whatever becomes of the others."""
    if word in NUMBERS:
        return len(found) == NUMBERS[word]
    if word in RELATIONS:
        first, second = (group.shape for group in caption.groups)
        pairs = permutations(found, 2)
        return any((a.shape, b.shape) == (first, second) and relation(a, b) == word for a, b in pairs)
    axis = 0 if word in SHAPES else 1
    there, wanted = (Counter(kind[axis] for kind in kinds)[word] for kinds in ([f.kind for f in found], caption.kinds))
    return there == wanted


def relation(first: Found, second: Found) -> str:
    """How the first lies to the second, along the axis on which they are farther apart."""
    dy, dx = first.y - second.y, first.x - second.x
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def centre(found: Sequence[Found], size: Sequence[int]) -> tuple[float, float] | None:
    """Mean of the objects' centres as shares of height and width; None where there is no object of any shape."""
    places = [(f.y, f.x) for f in found if f.shape is not None]
    if not places:
        return None
    y, x = np.mean(places, axis=0).tolist()
    return y / size[0], x / size[1]


# --- finding ----------------------------------------------------------------------------------------------------------


def find(picture: Tensor) -> list[Found]:
    """picture (3, H, W) in [-1, 1], a grey ground on more than half of it -> its objects; two that touch are one."""
    rgb = (picture.float().clamp(-1, 1) + 1) / 2
    chroma = _chroma(rgb)
    chroma = chroma - chroma.flatten(1).median(dim=1).values[:, None, None]
    strength = _smooth(chroma).norm(dim=0)
    around = functional.max_pool2d(strength[None], 5, stride=1, padding=2)[0]
    labels = components(strength > (around / 2).clamp_min(LEAST_CHROMA)).numpy()
    names, sizes = np.unique(labels[labels > 0], return_counts=True)
    objects = names[sizes >= SPECK]
    if sizes[sizes < SPECK].sum() >= SPECK or len(objects) > MOST:
        return [NOTHING] * (MOST + 1)
    pixels, vectors = rgb.permute(1, 2, 0).numpy(), chroma.permute(1, 2, 0).numpy()
    return [_object(labels, int(name), pixels, vectors) for name in objects]


def _smooth(planes: Tensor) -> Tensor:
    """(C, H, W), each pixel and its neighbours weighed 1 2 1 both ways: less noise."""
    kernel = planes.new_tensor([1.0, 2.0, 1.0])
    kernel = (kernel[:, None] * kernel / 16).expand(1, 1, 3, 3)
    return functional.conv2d(functional.pad(planes[:, None], (1, 1, 1, 1), mode="replicate"), kernel)[:, 0]


def _chroma(rgb: Tensor) -> Tensor:
    """(3, …) in [0, 1] -> (2, …): blue and red less the luma (Rec. 601). Linear, so that a mix with grey is weaker but
    points where its colour does."""
    red, green, blue = rgb
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return torch.stack([blue - luma, red - luma])


def components(mask: Tensor) -> Tensor:
    """(H, W) bool -> a number for each connected part, corners counted; 0 outside."""
    numbers = torch.arange(1, mask.numel() + 1, dtype=torch.float32).view(mask.shape) * mask
    for _ in range(mask.numel()):
        spread = functional.max_pool2d(numbers[None], 3, stride=1, padding=1)[0] * mask
        if torch.equal(spread, numbers):
            break
        numbers = spread
    return numbers.long()


def _object(labels: np.ndarray, name: int, pixels: np.ndarray, vectors: np.ndarray) -> Found:
    own = labels == name
    strength = np.linalg.norm(vectors, axis=-1) * own
    core = strength >= CORE * strength.max()
    direction = vectors[core].mean(axis=0)
    share = vectors @ direction / max(float(direction @ direction), 1e-9)  # that the object has of each pixel
    near = functional.max_pool2d(
        torch.from_numpy(np.stack([own, (labels > 0) & ~own])).float(), 2 * FRINGE + 1, 1, FRINGE
    )
    fringe, others = near.numpy() > 0
    share = np.where((share > FAINT) & fringe & (own | ~others), share.clip(0, 1), 0)
    if not (area := float(share.sum())):  # colours that cancel
        return NOTHING
    y = float(share.sum(axis=1) @ np.arange(0.5, len(share))) / area
    x = float(share.sum(axis=0) @ np.arange(0.5, share.shape[1])) / area
    across = own.any(axis=0).all() or own.any(axis=1).all() or own.sum() > own.size / 2
    return Found(shape=None if across else _shape(share, y, x), colour=_colour(pixels[core]), y=y, x=x, pixels=area)


def _shape(share: np.ndarray, y: float, x: float) -> str | None:
    """The shape that overlaps most with an object of that centre of mass and as far around it, when it is as blurred;
    None where all overlap little. Only where the object is counts, not how much of it: a thin one that is blurred has
    no pixel to itself."""
    share = share / share.sum()
    across = [(np.arange(0.5, length) - middle) ** 2 for length, middle in zip(share.shape, (y, x), strict=True)]
    spread = float(share.sum(axis=1) @ across[0] + share.sum(axis=0) @ across[1])
    overlaps = {}
    for shape in SHAPES:
        lower, own_spread = _moments(shape)
        for blur in BLURS:
            size = max(1.0, (spread - 2 * blur**2 - 1 / 6) / own_spread) ** 0.5  # 1/6: of a pixel itself
            sharp, rows, columns = coverage(shape, Place(y - lower * size, x, size), share.shape, beside=2)
            covered = _blur(len(sharp), blur) @ sharp @ _blur(sharp.shape[1], blur)
            common = float(np.minimum(share[rows, columns], covered / covered.sum()).sum())
            overlaps[shape, blur] = common / (2 - common)
    best = max(overlaps, key=overlaps.__getitem__)
    return best[0] if overlaps[best] >= LEAST_OVERLAP else None


@cache
def _blur(length: int, deviation: float) -> np.ndarray:
    """What a row of pixels is multiplied with to be blurred by a Gaussian."""
    if deviation == 0:
        return np.eye(length, dtype=np.float32)
    steps = np.arange(length)[:, None] - np.arange(length)
    weights = np.exp(-(steps**2) / (2 * deviation**2))
    return (weights / weights.sum(axis=1).max()).astype(np.float32)


@cache
def _moments(shape: str) -> tuple[float, float]:
    """How far the centre of mass of a shape of size 1 lies below its middle, and its mean square distance from it."""
    middle = np.arange(-0.4995, 0.5, 0.001)
    inside = SHAPES[shape](2 * middle[:, None], 2 * middle[None, :])
    y, x = (np.broadcast_to(axis, inside.shape)[inside] for axis in (middle[:, None], middle[None, :]))
    return float(y.mean()), float(y.var() + x.var())


def _colour(core: np.ndarray) -> str | None:
    """The colour whose hue is nearest for most of an object's pixels (…, 3), None where they disagree."""
    hues, vectors = _hues()
    found = np.argmax(oklab(core)[:, 1:] @ vectors.T, axis=1)
    number, count = Counter(found.tolist()).most_common(1)[0]
    return hues[number] if count >= LEAST_SHARE * len(core) else None


@cache
def _hues() -> tuple[tuple[str, ...], np.ndarray]:
    """Names of the colours, and the directions of their hues (colours, 2)."""
    vectors = oklab(np.array(list(COLOURS.values())) / 255)[:, 1:]
    return tuple(COLOURS), vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def oklab(srgb: np.ndarray) -> np.ndarray:
    """(…, 3) in [0, 1] -> lightness and two axes of hue that are even to the eye (Ottosson 2020)."""
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    cones = linear @ np.array(
        [[0.4122214708, 0.2119034982, 0.0883024619], [0.5363325363, 0.6806995451, 0.2817188376],
         [0.0514459929, 0.1073969566, 0.6299787005]]
    )  # fmt: skip
    return np.cbrt(cones) @ np.array(
        [[0.2104542553, 1.9779984951, 0.0259040371], [0.7936177850, -2.4285922050, 0.7827717662],
         [-0.0040720468, 0.4505937099, -0.8086757660]]
    )  # fmt: skip
