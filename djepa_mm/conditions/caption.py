"""A caption for each item: what is to be seen, in words that go before the media and not along them.

B batch, K buffer tokens, L tokens of a text, E features of one, D model width.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from djepa_mm.core.types import Condition, ConditionTokens
from djepa_mm.errors import Notice
from djepa_mm.text_encoders.encoder import TextEncoder
from djepa_mm.text_encoders.pretrained import CLIPConfig, SentenceConfig, T5Config
from djepa_mm.text_encoders.vocabulary import SymbolsConfig, WordsConfig
from djepa_mm.types import (
    BrokenItem,
    ConditionConfig,
    ConditionKind,
    Entry,
    KeptFeatures,
    Pinned,
    Source,
    Stream,
    UserError,
)

Encoder = WordsConfig | SymbolsConfig | T5Config | CLIPConfig | SentenceConfig
MOST_NAMED = 20  # words, of a corpus


class CaptionConfig(ConditionConfig):
    """A text that says what an item shows; it tells nothing of the item's size."""

    kind: Literal["caption"]
    own_axes: ClassVar[tuple[Literal["t", "h", "w"], ...]] = ("t",)
    encoder: Annotated[Encoder, Field(discriminator="kind")]
    """What reads the text."""
    pooled: bool = True
    """Beside its tokens, the text as a whole is added to each of the buffer tokens."""
    max_tokens: Annotated[int, Field(ge=2, le=4096)] = 256
    """Tokens of a text that are read; what comes after them is cut off, with a notice."""
    buffer_tokens: Annotated[int, Field(gt=0, le=10_000)] = 8
    """Learned tokens at the head of the context encoder's sequence."""

    def build(self) -> CaptionCondition:
        return CaptionCondition(self)

    def pinned(self) -> Self:
        """With the hash of a frozen encoder's weights; one that is learned has none."""
        return self.model_copy(update={"encoder": self.encoder.pinned()}) if isinstance(self.encoder, Pinned) else self


class CaptionCondition(ConditionKind[str]):
    """Values are texts, without what the encoder does not know. Requests may say `text`, and `negative`, what guidance
    leads away from; an empty one is the null condition."""

    keys: ClassVar[tuple[str, ...]] = ("text", "negative")

    def __init__(self, config: CaptionConfig) -> None:
        self.config = config
        self.encoder: TextEncoder = config.encoder.build(config.max_tokens)

    # --- the corpus

    def bind(self, source: Source | Stream) -> None:
        entries = None if isinstance(source, Stream) else (source.entry(index) for index in range(len(source)))
        self.encoder.bind(None if entries is None else (entry.text for entry in entries if entry.text is not None))
        if isinstance(source, KeptFeatures):
            self.encoder.stored = source.kept_features(self.made_by)

    def read(self, entry: Entry) -> str:
        if entry.text is None:
            raise BrokenItem(f"it has no text{entry.untold and f' ({entry.untold})'}, and condition.kind is caption")
        if not (text := _plain(entry.text)):
            raise BrokenItem("its text is empty, and condition.kind is caption")
        if not (known := self.encoder.known(text)):
            raise BrokenItem(f"nothing of its text {text!r} is known to condition.encoder")
        return known

    def summary(self, entries: Sequence[Entry]) -> dict[str, str]:
        """What is left out of captions, and how many are cut."""
        texts = [text for entry in entries if (text := _plain(entry.text or ""))]
        unknown = Counter(unit for text in texts for unit in self.encoder.unknown(text))
        found = {"captions": f"{len(texts):,}, of them {len(set(texts)):,} different"}
        if unknown:
            found["left out of captions"] = " ".join(f"{u!r} in {n}" for u, n in unknown.most_common(MOST_NAMED))
        if cut := sum(len(self.encoder.ids(text)) > self.encoder.most for text in texts):
            found[f"captions cut to {self.encoder.most} tokens"] = f"{cut:,}"
        return found

    # --- what may be kept

    def made_by(self) -> dict[str, Any] | None:
        encoder = self.encoder.made_by()
        return None if encoder is None else {"encoder": encoder, "max_tokens": self.config.max_tokens}

    def features(self, values: Sequence[str]) -> list[Tensor]:
        return self.encoder.encode(values)

    # --- the model

    def module(self, width: int) -> CaptionEmbedder:
        pool = self.encoder.pool if self.config.pooled else None
        return CaptionEmbedder(self.encoder.module(width), width, self.config.buffer_tokens, pool)

    def encode(self, values: Sequence[str], num_tokens: Sequence[int]) -> Condition:
        return caption_condition(self.encoder.encode(values))

    def to(self, device: torch.device) -> None:
        self.encoder.to(device)

    @property
    def usual_length(self) -> int:
        return min(self.encoder.usual_length, self.config.max_tokens)

    # --- requests

    def parse(self, request: Mapping[str, Any]) -> str:
        self.check_keys(request)
        if request.get("text") is None:
            raise UserError("this model needs a text: --text '…' or --prompts FILE")
        return self._said("text", request["text"])

    def negative(self, request: Mapping[str, Any]) -> str | None:
        said = request.get("negative")
        return None if said is None or said == "" else self._said("negative", said)

    def _said(self, key: str, text: object) -> str:
        if not isinstance(text, str):
            raise UserError(f"--{key} {text!r}: expected words, not {type(text).__name__}")
        if not (text := _plain(text)):
            raise UserError(f"--{key}: the text is empty: give at least one word")
        if unknown := self.encoder.unknown(text):
            if not self.encoder.known(text):
                raise UserError(f"--{key} {text!r}: the model knows nothing of it; it was trained on other captions")
            warnings.warn(f"left out of {text!r}, for the model does not know it: {', '.join(unknown)}", Notice, 3)
        self.encoder.told = False
        self.encoder.read(text)  # which says where it is too long
        return self.encoder.known(text)

    def usual_requests(self) -> list[Mapping[str, Any]]:
        raise UserError("this model needs a text: --text '…' or --prompts FILE")

    def examples(self, count: int, texts: Sequence[str]) -> list[Mapping[str, Any]]:
        """The texts in turn."""
        return [{"text": texts[n % len(texts)]} for n in range(count)] if texts else []

    def request(self, entry: Entry) -> Mapping[str, Any]:
        return {"text": entry.text}

    def title(self, request: Mapping[str, Any]) -> str:
        return request["text"]

    # --- the checkpoint

    def state(self) -> dict[str, Any]:
        return self.encoder.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.encoder.load_state(state)


class CaptionEmbedder(nn.Module):
    """K learned buffer tokens, each plus the text as a whole where it is pooled, then one token for each of the text's.

    A dropped text is one learned token, so that the null condition is the same one whatever text it stands for: with
    the text's length, guidance would not lead away from what the length tells.
    """

    def __init__(
        self, inputs: nn.Module, width: int, buffer_tokens: int, pool: Literal["mean", "last"] | None = "mean"
    ) -> None:
        """inputs: from (B, L) numbers or (B, L, E) features to (B, L, D). pool: what stands for the whole text."""
        super().__init__()
        self.inputs, self.pool = inputs, pool
        self.buffer = nn.Parameter(torch.empty(buffer_tokens, width))
        self.null = nn.Parameter(torch.empty(width))
        nn.init.trunc_normal_(self.buffer, std=0.02)
        nn.init.trunc_normal_(self.null, std=0.02)
        self.whole = nn.Sequential()
        if pool is not None:
            linear = nn.Linear(width, width)
            nn.init.normal_(linear.weight, std=0.02 * width**-0.5)  # at first as large as the buffer tokens
            nn.init.zeros_(linear.bias)
            self.whole.extend([nn.LayerNorm(width, eps=1e-6), linear])

    def forward(self, condition: Condition, dropped: Tensor) -> ConditionTokens:
        values, valid = condition.values, condition.valid
        batch, length = valid.shape
        if values.is_floating_point():
            values = values.to(self.null.dtype)
        tokens = torch.where(dropped[:, None, None], self.null, self.inputs(values))  # (B, L, D)
        first = torch.arange(length, device=valid.device) == 0
        valid = torch.where(dropped[:, None], first, valid)
        buffer = self.buffer.expand(batch, -1, -1)
        if self.pool is not None:
            buffer = buffer + self.whole(self._pooled(tokens, valid))[:, None]
        return ConditionTokens(
            tokens=torch.cat([buffer, tokens], dim=1),  # (B, K + L, D)
            valid=torch.cat([valid.new_ones(batch, buffer.shape[1]), valid], dim=1),
            positions=torch.cat([condition.positions.new_zeros(batch, buffer.shape[1], 3), condition.positions], dim=1),
        )

    def _pooled(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """(B, L, D), (B, L) bool -> (B, D)"""
        count = valid.sum(1, keepdim=True)  # (B, 1)
        if self.pool == "last":
            return tokens.gather(1, (count - 1)[..., None].expand(-1, -1, tokens.shape[-1]))[:, 0]
        return (tokens * valid[..., None]).sum(1) / count


def caption_condition(texts: Sequence[Tensor]) -> Condition:
    """Texts of a batch, each (L_b,) numbers or (L_b, E) features, padded.

    Their tokens lie before the media on the time axis, the first at −1, the next at −2, …, and at h = w = 0: one
    dimension of their own, in which pictures, all at t = 0, do not lie, and which clips have only the other side of.
    Each word is thus as far from the media in a short text as in a long one, and the place of a token on h and w, which
    only the condition can tell it (attention sees differences), is measured from one corner by all words alike.
    """
    lengths = torch.tensor([len(text) for text in texts])
    longest = int(lengths.max())
    positions = torch.zeros(len(texts), longest, 3)
    positions[..., 0] = -1 - torch.arange(longest)
    return Condition(
        values=pad_sequence(list(texts), batch_first=True),
        valid=torch.arange(longest) < lengths[:, None],
        positions=positions,
    )


def _plain(text: str) -> str:
    """With one space between words, and none around them."""
    return " ".join(text.split())
