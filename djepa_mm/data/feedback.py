"""Data feedback (D-JEPA-T2I, section 2.3): statistics of what is really sampled steer what is sampled next.

An item whose attributes are over their frequencies is thinned: it is taken at one in so many visits. Which one, its
name says and nothing else, so that no item has to be remembered, and none is left out twice running of two visits.
What each reader of a corpus has counted goes with its place in the data, so that batches depend on the recipe alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b

from djepa_mm.data.words import Words
from djepa_mm.recipe.schema import FeedbackConfig
from djepa_mm.types import Entry, UserError

State = Mapping[str, Mapping[str, float]]

LIMIT = 4.0  # times that scores can raise or lower a frequency against the others of its class
MOST = 1000  # attributes of a class that are counted apart, so that memory is bounded; the rest are OTHERS
OTHERS = "(others)"
SAID = ("label", "style", "source")  # classes of what entries say besides their texts
ASPECTS = ("1:4", "1:3", "9:21", "1:2", "9:16", "2:3", "3:4", "4:5", "1:1", "5:4", "4:3", "3:2", "16:9", "2:1", "21:9",
           "3:1", "4:1")  # fmt: skip
SIZES_AN_OCTAVE = 4


class Feedback:
    """What one reader has counted, and what it takes accordingly.

    offered: items by attribute, those that were left out counted. sampled: of those that were taken. recent: the same
    since frequencies were last moved, of the classes that are steered. factors: by which scores have moved frequencies.
    """

    def __init__(self, config: FeedbackConfig, state: State | None = None) -> None:
        """state: as `state` gives it; of none, nothing has been counted."""
        state = state or {}
        self.config, self.words = config, _words(config.model_dump_json(include={"words"}))
        self.offered, self.sampled, self.recent = (
            {name: int(count) for name, count in state.get(part, {}).items()}
            for part in ("offered", "sampled", "recent")
        )
        self.factors = dict(state.get("factors", {}))
        self._totals = dict.fromkeys(config.wanted, 0)  # of `recent`, by class
        for name, count in self.recent.items():
            self._totals[kind_of(name)] = self._totals.get(kind_of(name), 0) + count
        self._kinds: dict[str, str] = {}  # of the attributes that are steered, and have been met
        self._shares: dict[str, dict[str, float]] = {}  # by class; none of a class that has met a new one since
        self._met: dict[str, int] = {}  # attributes by class
        for name in self.offered:
            self._meet(name)

    def state(self) -> dict[str, dict[str, float]]:
        """Ready for JSON."""
        parts: dict[str, Mapping[str, float]] = {
            "offered": self.offered,
            "sampled": self.sampled,
            "recent": self.recent,
            "factors": self.factors,
        }
        return {name: dict(part) for name, part in parts.items()}

    # --- items

    def attributes(self, entry: Entry) -> tuple[str, ...]:
        """What is known of an item before its media are read, such as "colours/dark blue" or "style/photo"."""
        found = self.words(entry.text) if entry.text else ()
        if entry.label is not None:
            found += (f"label/{entry.label}",)
        return found + tuple(f"{kind}/{name}" for kind, name in entry.tags) if entry.tags else found

    def accepts(self, attributes: Iterable[str], name: str, epoch: int) -> bool:
        """Whether an item of that name is to be taken at its visit of that epoch."""
        return not self._is_over(attributes) or self._is_due(name, epoch)

    def observe(self, attributes: Iterable[str], *, taken: bool) -> None:
        for name in attributes:
            if name not in self.offered:
                if self._met.get(kind := kind_of(name), 0) >= MOST:
                    name = f"{kind}/{OTHERS}"
                self.offered.setdefault(name, 0)
                self._meet(name)
            self.offered[name] += 1
            if taken:
                self.sampled[name] = self.sampled.get(name, 0) + 1
                if (steered := self._kinds.get(name)) is not None:
                    self.recent[name] = self.recent.get(name, 0) + 1
                    self._totals[steered] += 1

    def _is_over(self, attributes: Iterable[str]) -> bool:
        """Whether what is steered of an item, taken together, has been sampled more often than is wanted: the shares
        multiplied. If one such attribute were enough, rare ones would go with the frequent ones beside them."""
        sampled = wanted = 1.0
        for name in attributes:
            if (kind := self._kinds.get(name)) is not None:
                if (shares := self._shares.get(kind)) is None:
                    shares = self._shares[kind] = self.shares(kind)
                sampled *= self.recent.get(name, 0) / (self._totals[kind] or 1)
                wanted *= shares[name]
        return sampled > wanted

    def _is_due(self, name: str, epoch: int) -> bool:
        """At one of `visits` epochs that follow each other, wherever they begin; for one item in so many it is this."""
        number = int.from_bytes(blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")
        return (number + epoch) % self.config.visits == 0

    # --- frequencies

    def _meet(self, name: str) -> None:
        kind = kind_of(name)
        self._met[kind] = self._met.get(kind, 0) + 1
        if kind in self.config.wanted:
            self._kinds[name] = kind
            self._shares.pop(kind, None)

    def shares(self, kind: str) -> dict[str, float]:
        """The frequencies that are wanted in a class, of its attributes that have been met so far."""
        table = self.config.wanted[kind]
        names = [name for name, of in self._kinds.items() if of == kind]
        given = {} if table == "uniform" else {f"{kind}/{name}": share for name, share in table.items()}
        others = [name for name in names if name not in given]
        rest = max(0.0, 1 - sum(given.values())) / max(1, len(others))
        weights = {name: given.get(name, rest) * self.factors.get(name, 1.0) for name in names}
        total = sum(weights.values())
        return {name: weights[name] / total if total else 0.0 for name in names}

    def move(self, scores: Mapping[str, float]) -> None:
        """Multiplicative weights: what scores less than the mean of its class is wanted more often, and counting of
        what is over begins anew. scores: by attribute, "red" or "colours/red"; of others than are steered, nothing."""
        found: dict[str, dict[str, float]] = {}
        for key, score in scores.items():
            for name in [key] if "/" in key else [f"{kind}/{key}" for kind in self.words.classes.get(key, ())]:
                if (kind := kind_of(name)) in self.config.wanted:
                    found.setdefault(kind, {})[name] = score
        for of_class in found.values():
            mean = sum(of_class.values()) / len(of_class)
            for name, score in of_class.items():
                factor = self.factors.get(name, 1.0) * math.exp(self.config.step * (mean - score))
                self.factors[name] = min(LIMIT, max(1 / LIMIT, factor))
        self.recent, self._totals, self._shares = {}, dict.fromkeys(self.config.wanted, 0), {}


def check_classes(config: FeedbackConfig) -> None:
    """Raises UserError where a recipe wants what no item has."""
    words = Feedback(config).words
    of_words = {kind for kinds in words.classes.values() for kind in kinds}
    for kind, table in config.wanted.items():
        if kind not in of_words | set(SAID):
            known = ", ".join(sorted(of_words | set(SAID)))
            raise UserError(f"feedback.wanted.{kind}: no such class of attributes; there are {known}")
        for name in () if table == "uniform" or kind not in of_words else table:
            if kind not in words.classes.get(name, ()):
                raise UserError(
                    f"feedback.wanted.{kind}: {name!r} is none of its names; add it to feedback.words.{kind}"
                )


def moved(config: FeedbackConfig | None, state: State | None, scores: Mapping[str, float]) -> State | None:
    """What a reader has counted, with its frequencies moved by scores; None of one that another process has."""
    if config is None or state is None:
        return state
    feedback = Feedback(config, state)
    feedback.move(scores)
    return feedback.state()


def merged(states: Sequence[State]) -> State:
    """What several have counted, or one after the other: as the last has it, where frequencies were moved."""
    last = states[-1].get("factors", {})
    together: dict[str, dict[str, float]] = {"offered": {}, "sampled": {}, "recent": {}, "factors": dict(last)}
    for state in states:
        for part in ("offered", "sampled", "recent"):
            if part != "recent" or state.get("factors", {}) == last:
                for name, count in state.get(part, {}).items():
                    together[part][name] = together[part].get(name, 0) + count
    return together


@lru_cache
def _words(more: str) -> Words:
    """Of the words that a recipe gives, as JSON."""
    return Words(FeedbackConfig.model_validate_json(more).words)


def kind_of(attribute: str) -> str:
    return attribute.partition("/")[0]


@lru_cache
def measures(shape: tuple[int, ...]) -> tuple[str, ...]:
    """Size and aspect of media (…, H, W) as attributes: the side of a square of as many pixels, four to an octave, and
    the nearest of some usual ratios of width to height. None of media without a height."""
    if len(shape) < 3:
        return ()
    height, width = shape[-2:]
    return f"size/{side_of(math.sqrt(height * width))}", f"aspect/{min(ASPECTS, key=_distance_to(width / height))}"


def _distance_to(ratio: float) -> Callable[[str], float]:
    def distance(name: str) -> float:
        width, height = map(int, name.split(":"))
        return abs(math.log(ratio * height / width))

    return distance


def side_of(side: float) -> int:
    """The middle of the class of sizes that a side in pixels is in."""
    return round(2 ** (round(math.log2(side) * SIZES_AN_OCTAVE) / SIZES_AN_OCTAVE))
