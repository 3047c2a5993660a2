"""What captions say, in classes of words that can be counted: numbers, colours, shapes, textures, and where things are.

Of a class, names are separated by commas; a name's other forms follow it behind an equals sign. Recipes give more in
the same way, in `feedback.words`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

WORDS: Mapping[str, str] = {
    "numerals": """
        one=1=single, two=2=pair=couple, three=3=trio, four=4, five=5, six=6, seven=7, eight=8, nine=9, ten=10,
        eleven=11, twelve=12=dozen, several=some, many=numerous=countless, both, multiple
    """,
    "colours": """
        red=crimson=scarlet, orange, yellow, green, cyan, blue, purple, pink, black, white, grey=gray, brown, violet,
        magenta, turquoise=teal, gold=golden, silver, beige, maroon, navy=navy blue, indigo, ivory, olive=olive green,
        lime=lime green, lavender, peach, tan, dark red, dark green, dark blue, dark brown, dark grey=dark gray,
        light red, light green, light blue=sky blue, light brown, light grey=light gray, light pink, bright red,
        bright green, bright blue, bright yellow, hot pink, black and white,
        multicoloured=multicolored=colourful=colorful
    """,
    "shapes": """
        circle=circles=circular=round, square=squares, triangle=triangles=triangular, cross=crosses, ring=rings,
        rectangle=rectangles=rectangular, oval=ovals=ellipse=ellipses, star=stars, heart=hearts, diamond=diamonds,
        pentagon=pentagons, hexagon=hexagons=hexagonal, octagon=octagons=octagonal, crescent=crescents,
        sphere=spheres=spherical, cube=cubes=cubic, cone=cones=conical, cylinder=cylinders=cylindrical,
        pyramid=pyramids, spiral=spirals, arrow=arrows
    """,
    "textures": """
        wooden=wood, metallic=metal, glass, plastic, leather, rubber, fabric=cloth, stone, brick=bricks, concrete,
        fluffy, furry, smooth, rough, shiny=glossy, matte, striped=stripes, dotted=spotted=polka dot=polka dots,
        checkered=plaid, woven=knitted, rusty, wet, transparent, velvet, paper, ceramic=porcelain, marble
    """,
    "spatial": """
        left of=to the left of=on the left of, right of=to the right of=on the right of, above=over,
        below=under=beneath, on top of, next to=beside, near=close to, in front of, behind, between,
        inside=inside of, outside=outside of, on the left=on the left side, on the right=on the right side,
        in the middle=in the center=in the centre, in the background, in the foreground, around=surrounded by,
        far from, opposite, at the top, at the bottom
    """,
}

_TOKEN = re.compile(r"\w+")


class Words:
    """Finds the words of all classes in a text, the longest first: in "dark blue" no "blue" is counted.

    classes: those that a name belongs to."""

    def __init__(self, more: Mapping[str, Sequence[str]]) -> None:
        """more: names by class, each with its other forms, as above; they win over those that are there."""
        self.classes: dict[str, list[str]] = defaultdict(list)
        forms: dict[tuple[str, ...], dict[str, None]] = {}  # token by token -> attributes, as an ordered set
        for kind, names in _lists(more):
            for name, *others in (entry.split("=") for entry in names):
                self.classes[name.strip()].append(kind)
                for form in (name, *others):
                    forms.setdefault(tuple(_TOKEN.findall(form.lower())), {})[f"{kind}/{name.strip()}"] = None
        self._forms: dict[str, list[tuple[tuple[str, ...], tuple[str, ...]]]] = defaultdict(list)  # by the first token
        for tokens in sorted(filter(None, forms), key=len, reverse=True):
            self._forms[tokens[0]].append((tokens, tuple(forms[tokens])))

    def __call__(self, text: str) -> tuple[str, ...]:
        """Attributes, such as "colours/dark blue", each once and in the order of the text."""
        tokens, known = _TOKEN.findall(text.lower()), self._forms
        found: dict[str, None] = {}
        place, end = 0, len(tokens)
        while place < end:
            step = 1
            for form, attributes in known.get(tokens[place], ()):
                length = len(form)
                if length == 1 or tuple(tokens[place : place + length]) == form:
                    found.update(dict.fromkeys(attributes))
                    step = length
                    break
            place += step
        return tuple(found)


def _lists(more: Mapping[str, Sequence[str]]) -> Iterable[tuple[str, Sequence[str]]]:
    for kind in dict.fromkeys((*WORDS, *more)):
        yield kind, [entry for entry in WORDS.get(kind, "").split(",") if entry.strip()]
        yield kind, more.get(kind, ())
