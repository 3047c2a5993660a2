"""A text for each item, as symbols that are laid along the time axis of its media.

B batch, K buffer tokens, L symbols, D model width.
"""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from djepa_mm.conditions.pace import Pace
from djepa_mm.conditions.vocabulary import Vocabulary
from djepa_mm.core.types import Condition, ConditionTokens
from djepa_mm.errors import Notice
from djepa_mm.speech.english import pieces
from djepa_mm.types import BrokenItem, ConditionConfig, ConditionKind, Entry, UserError

FEW_WORDS = 100  # of a corpus; so many a recogniser can be told to listen for
SLACK = 1.5  # how much longer than the longest item of the corpus a part of a text may be
SLOWEST, FASTEST = 0.2, 5.0  # rates

TextLayout = Literal["paced", "stretched", "plain"]


class TextConfig(ConditionConfig):
    """A text, symbol by symbol."""

    kind: Literal["text"]
    along: ClassVar[tuple[Literal["t", "h", "w"], ...]] = ("t",)
    units: Literal["characters", "phonemes"] = "characters"
    """What the model reads: the text's own characters, or the phonemes that espeak-ng finds for its English words."""
    characters: Annotated[str, Field(min_length=1)]
    """Every unit that the model knows. Other characters are left out of training texts and refused in generation."""
    normalize: Literal["english", "none"] = "english"
    """Write numbers, years, money, abbreviations and the like out as English words first."""
    lowercase: bool = True
    """Fold texts to lower case."""
    sentences: bool = False
    """Generate long texts sentence by sentence, and join the parts in time."""
    layout: TextLayout = "paced"
    """Lay the symbols along the media's time axis, each as long as it is expected to last or evenly; or count them."""
    buffer_tokens: Annotated[int, Field(gt=0, le=10_000)] = 4
    """Learned tokens at the head of the context encoder's sequence."""

    def build(self) -> TextCondition:
        return TextCondition(self)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Text:
    """A text that was encoded."""

    text: str
    ids: Tensor  # (L,) int64
    rate: float = 1.0  # of what is generated; 2 is twice as fast as the corpus


class TextCondition(ConditionKind[Text]):
    """Requests may say `text`; `rate`, 2 for twice as fast as the corpus; and `unknown`: "drop" leaves characters out
    that the model does not know, and warns."""

    keys: ClassVar[tuple[str, ...]] = ("text", "rate", "unknown")

    def __init__(self, config: TextConfig) -> None:
        self.config = config
        self.vocabulary = Vocabulary(
            symbols=config.characters,
            lowercase=config.lowercase,
            english=config.normalize == "english",
            phonemes=config.units == "phonemes",
        )
        self.pace: Pace | None = None  # until `fit`
        self.words: tuple[str, ...] = ()  # of the corpus, where they are few

    def read(self, entry: Entry) -> Text:
        if entry.text is None:
            raise BrokenItem("it has no text, and condition.kind is text")
        cleaned = self.vocabulary.clean(entry.text)
        if not any(c.isalnum() for c in cleaned):
            raise BrokenItem(f"no character of its text {entry.text!r} is in condition.characters")
        try:
            return Text(text=cleaned, ids=self.vocabulary.encode(cleaned))
        except UserError as error:
            raise BrokenItem(str(error)) from None

    def fit(self, values: Sequence[Text], num_tokens: Sequence[int]) -> None:
        self.pace = Pace.fit([value.ids for value in values], num_tokens, len(self.vocabulary.symbols))
        words = {word for value in values for word in re.findall(r"[\w']+", value.text.lower())}
        self.words = tuple(sorted(words)) if len(words) <= FEW_WORDS else ()

    def summary(self, entries: Sequence[Entry]) -> dict[str, str]:
        """Which characters are left out, and in how many texts."""
        unknown = Counter(c for entry in entries for c in self.vocabulary.unknown(entry.text or ""))
        shown = " ".join(f"{c!r} in {n}" for c, n in unknown.most_common(20))
        return {"characters left out of texts": shown} if shown else {}

    def module(self, width: int) -> TextEmbedder:
        return TextEmbedder(len(self.vocabulary.symbols), width, self.config.buffer_tokens)

    def encode(self, values: Sequence[Text], num_tokens: Sequence[int]) -> Condition:
        return text_condition([value.ids for value in values], num_tokens, self.config.layout, self._pace)

    @property
    def usual_length(self) -> int:
        return 75

    def parse(self, request: Mapping[str, Any]) -> Text:
        text, rate = self._said(request)
        return Text(text=text, ids=self.vocabulary.encode(text), rate=rate)

    def split(self, request: Mapping[str, Any]) -> list[Text]:
        """Sentence by sentence, where `condition.sentences` has texts cut. A sentence that would be longer than SLACK
        times the longest item of the corpus is cut further."""
        if not self.config.sentences:
            return [self.parse(request)]
        text, rate = self._said(request)
        known: dict[str, Tensor] = {}  # no text is encoded twice

        def encode(text: str) -> Tensor:
            if text not in known:
                known[text] = self.vocabulary.encode(text)
            return known[text]

        def fits(text: str) -> bool:
            return not any(c.isalnum() for c in text) or self._pace.tokens(encode(text)) <= SLACK * self._pace.longest

        parts = [part for part in pieces(text, fits) if any(c.isalnum() for c in part)]
        if len(parts) < 2:
            parts = [text]
        return [Text(text=part, ids=encode(part), rate=rate) for part in parts]

    def _said(self, request: Mapping[str, Any]) -> tuple[str, float]:
        """A request's text, all of whose characters are known, and its rate."""
        self.check_keys(request)
        if (text := request.get("text")) is None:
            raise UserError("this model needs a text: --text '…' or --prompts FILE")
        if not isinstance(text, str):
            raise UserError(f"--text {text!r}: expected words, not {type(text).__name__}")
        rate = request.get("rate", 1.0)
        if not isinstance(rate, int | float):
            raise UserError(f"--rate {rate}: expected a number; 1 is as the corpus")
        if not (math.isfinite(rate) and SLOWEST <= rate <= FASTEST):
            raise UserError(f"--rate {rate:g} is out of range: give {SLOWEST:g} to {FASTEST:g}; 1 is as the corpus")
        if unknown := self.vocabulary.unknown(text):
            if request.get("unknown") != "drop":
                raise self.vocabulary.unknown_error(text, unknown)
            warnings.warn(f"left out of {text!r}: {unknown!r}", Notice, stacklevel=4)
            text = self.vocabulary.clean(text)
        return text, rate

    def length(self, value: Text) -> float:
        return self._pace.tokens(value.ids) / value.rate

    def usual_requests(self) -> list[Mapping[str, Any]]:
        raise UserError("this model needs a text: --text '…' or --prompts FILE")

    def examples(self, count: int, texts: Sequence[str]) -> list[Mapping[str, Any]]:
        return [{"text": text} for text in texts[:count]]

    def request(self, entry: Entry) -> Mapping[str, Any]:
        return {"text": self.vocabulary.clean(entry.text or "")}

    def title(self, request: Mapping[str, Any]) -> str:
        return request["text"]

    def state(self) -> dict[str, Any]:
        return {"pace": dataclasses.asdict(self._pace), "words": list(self.words)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.pace, self.words = Pace(**state["pace"]), tuple(state["words"])

    @property
    def _pace(self) -> Pace:
        assert self.pace is not None, "fit or load_state comes first"
        return self.pace


class TextEmbedder(nn.Module):
    """K learned buffer tokens, then one token a symbol. A dropped text keeps its length, not its letters."""

    def __init__(self, vocabulary_size: int, width: int, buffer_tokens: int) -> None:
        super().__init__()
        self.vocabulary_size = vocabulary_size
        self.buffer = nn.Parameter(torch.empty(buffer_tokens, width))
        self.characters = nn.Embedding(vocabulary_size + 1, width)
        nn.init.trunc_normal_(self.buffer, std=0.02)
        nn.init.trunc_normal_(self.characters.weight, std=0.02)

    def forward(self, condition: Condition, dropped: Tensor) -> ConditionTokens:
        ids = condition.values.masked_fill(dropped[:, None], self.vocabulary_size)
        batch, buffer = len(ids), len(self.buffer)
        return ConditionTokens(
            tokens=torch.cat([self.buffer.expand(batch, -1, -1), self.characters(ids)], dim=1),  # (B, K + L, D)
            valid=torch.cat([condition.valid.new_ones(batch, buffer), condition.valid], dim=1),
            positions=torch.cat([condition.positions.new_zeros(batch, buffer, 3), condition.positions], dim=1),
        )


def text_condition(texts: Sequence[Tensor], num_tokens: Sequence[int], layout: TextLayout, pace: Pace) -> Condition:
    """Texts of a batch, each (L_b,) int64, padded.

    Layout `paced` lays the symbols along the time axis of their media's tokens, each as far as it is expected to last;
    `stretched` lays them there evenly; `plain` counts 0, 1, 2, … The first two give the alignment a good start.
    """
    positions = []
    for text, tokens in zip(texts, num_tokens, strict=True):
        place = torch.arange(len(text), dtype=torch.float32)
        if layout == "paced":
            place = pace.centres(text) * tokens - 0.5
        elif layout == "stretched":
            place = (place + 0.5) * tokens / len(text) - 0.5
        positions.append(torch.stack([place, torch.zeros_like(place), torch.zeros_like(place)], dim=-1))
    lengths = torch.tensor([len(text) for text in texts])
    return Condition(
        values=pad_sequence(list(texts), batch_first=True),
        valid=torch.arange(int(lengths.max())) < lengths[:, None],
        positions=pad_sequence(positions, batch_first=True),
    )
