"""Frozen encoders of transformers: T5's encoder, CLIP's text model, any sentence encoder. Safetensors only.

L tokens of a text, E features of one.
"""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveInt
from safetensors import SafetensorError
from torch import Tensor, nn

from djepa_mm.core.nn.blocks import xavier_init
from djepa_mm.text_encoders.encoder import TextEncoder
from djepa_mm.types import Config, UserError
from djepa_mm.weights import hub_reach

INSTALL = 'pip install "djepa-mm[text]"'
KEPT_BYTES = 2**30  # of features in memory, so that a small corpus is encoded once
AT_ONCE, STEP = 8, 16  # texts, and tokens that their lengths are filled up to multiples of
MOST_REASON = 200  # characters
FAILURES = (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, ImportError)  # of transformers


class PretrainedConfig(Config):
    """What recipes say of a frozen encoder."""

    model: str = Field(examples=["google/t5-v1_1-xxl"])
    """A local folder, or the name of a repository on the Hugging Face hub, with safetensors weights and a tokenizer."""
    width: PositiveInt | None = None
    """Features of a token; given, nothing is read before the first text."""
    precision: Literal["bf16", "fp32"] = "fp32"
    """Of its weights and features."""
    sha256: str | None = None
    """Of its weights: others are refused. A run that is trained with them notes it by itself."""

    @abstractmethod
    def build(self, most: int) -> Pretrained: ...

    def pinned(self) -> Self:
        """With the hash of the weights that are there."""
        return self.model_copy(update={"sha256": self.build(1).weights_hash})


class T5Config(PretrainedConfig):
    """The encoder of a T5: what it makes of each token, its end mark among them."""

    kind: Literal["t5"]
    precision: Literal["bf16", "fp32"] = "bf16"
    """Of its weights and features."""

    def build(self, most: int) -> T5:
        return T5(self, most)


class CLIPConfig(PretrainedConfig):
    """CLIP's text model, which reads 77 tokens; its last one, the end mark, stands for the text as a whole."""

    kind: Literal["clip"]

    def build(self, most: int) -> CLIP:
        return CLIP(self, most)


class SentenceConfig(PretrainedConfig):
    """Any encoder of sentences: what it makes of each token, and their mean for the text as a whole."""

    kind: Literal["sentence"]

    def build(self, most: int) -> Sentence:
        return Sentence(self, most)


class Pretrained(TextEncoder):
    """Weights are loaded at the first text. A text's features are the same whatever it is encoded beside: batches have
    few shapes, and a text's own length alone decides in which of them it goes."""

    what: ClassVar[str]
    """What it is, for an error."""

    def __init__(self, config: PretrainedConfig, most: int) -> None:
        super().__init__(most)
        self.config, self.name = config, os.path.expanduser(config.model)
        self.device = torch.device("cpu")
        self.kept: OrderedDict[str, Tensor] = OrderedDict()  # features by text, those that were used last at the end
        self.kept_bytes = 0

    # --- what differs

    @abstractmethod
    def architecture(self) -> Any:
        """The class in transformers."""

    @abstractmethod
    def text_part(self, config: Any) -> Any:
        """Of its config.json, as transformers reads it, what is said of texts. Raises ValueError for another model."""

    # --- loading

    @property
    def weights_hash(self) -> str | None:
        """SHA-256 of the files of its weights, one after the other; None where it has no safetensors of its own.

        Raises UserError where the recipe says another one, or there is no such encoder."""
        _ = self.about
        files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in self._weights()]
        found, said = _hash(tuple(files)) if files else None, self.config.sha256
        if said is not None and said != found:
            there = f"are {found[:12]}…, not" if found else "have no safetensors that could be"
            raise UserError(
                f"condition.encoder.sha256: the weights in {self.config.model!r} {there} {said[:12]}…; name "
                "the encoder that was meant in condition.encoder.model, or set the hash to null to take this one"
            )
        return found

    def _weights(self) -> list[Path]:
        """The safetensors files that transformers would load, from the hub's cache where the name is one of the hub."""
        with self._loading():
            from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
            from transformers.utils.hub import get_checkpoint_shard_files

            for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME):
                found = cached_file(self.name, name, _raise_exceptions_for_missing_entries=False, **self.reach)
                if found is not None and name == SAFE_WEIGHTS_INDEX_NAME:
                    return [Path(part) for part in get_checkpoint_shard_files(self.name, found, **self.reach)[0]]
                if found is not None:
                    return [Path(found)]
        return []

    @cached_property
    def reach(self) -> dict[str, Any]:
        return hub_reach(self.name)

    @cached_property
    def about(self) -> Any:
        """Its configuration."""
        with self._loading() as transformers:
            return self.text_part(transformers.AutoConfig.from_pretrained(self.name, **self.reach))

    @property
    def width(self) -> int:
        return self.config.width or self.about.hidden_size

    @cached_property
    def tokenizer(self) -> Any:
        with self._loading() as transformers:
            tokenizer = transformers.AutoTokenizer.from_pretrained(self.name, **self.reach)
            if tokenizer.unk_token_id in tokenizer("a")["input_ids"]:  # without files, one is made of nothing
                raise ValueError("its tokenizer knows no words; are its files there?")
        places = getattr(self.about, "max_position_embeddings", None) or self.most
        self.most = min(self.most, tokenizer.model_max_length, places)
        return tokenizer

    @cached_property
    def network(self) -> Any:  # transformers hides its methods from type checkers
        if self.width != self.about.hidden_size:
            raise UserError(
                f"condition.encoder.width: {self.config.model!r} gives {self.about.hidden_size} features, and the "
                f"recipe says {self.width}; make them agree"
            )
        if self.config.sha256 is not None:
            _ = self.weights_hash
        dtype = torch.bfloat16 if self.config.precision == "bf16" else torch.float32
        with self._loading():
            network, found = self.architecture().from_pretrained(
                self.name, dtype=dtype, use_safetensors=True, output_loading_info=True, **self.reach
            )
            if lacking := sorted(key for key in found["missing_keys"] if "pooler" not in key):  # which nobody asks
                raise ValueError(f"its weights lack {lacking[0]}")
        return network.eval().requires_grad_(False).to(self.device)

    @contextmanager
    def _loading(self) -> Iterator[Any]:
        """transformers, whose many ways to fail at loading become one line."""
        try:
            import transformers
            from transformers.utils import logging
        except ImportError as error:
            raise UserError(f"condition.encoder: texts are encoded by transformers: {INSTALL}") from error
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            if self.name.startswith((".", "/", "~")) and not os.path.isdir(self.name):
                raise OSError("no such folder")  # else the hub's rules for names are quoted
            yield transformers
        except (*FAILURES, SafetensorError) as error:
            reason = " ".join(str(error).split())[:MOST_REASON] or type(error).__name__
            raise UserError(
                f"condition.encoder.model: cannot load {self.what} from {self.config.model!r} ({reason}); give a "
                "folder or a hub repository with config.json, safetensors weights and a tokenizer"
            ) from error

    # --- texts

    def bind(self, captions: Iterator[str] | None) -> None:
        """Raises UserError now, and not after the corpus was read, where the encoder is not there."""
        _ = self.tokenizer

    def made_by(self) -> dict[str, Any]:
        said = self.config.model_dump()
        return {"kind": said["kind"], "precision": said["precision"], "sha256": self.weights_hash}

    def to(self, device: torch.device) -> None:
        self.device = device
        if "network" in vars(self):
            self.network.to(device)

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"]) or [self.tokenizer.pad_token_id or 0]

    def shorten(self, ids: list[int]) -> list[int]:
        """The end mark stays."""
        return ids if len(ids) <= self.most else [*ids[: self.most - 1], ids[-1]]

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        found: dict[str, Tensor] = {}
        for text in texts:
            if text in self.kept:
                found[text] = self.kept[text]
                self.kept.move_to_end(text)
            elif text not in found and self.stored is not None and (one := self.stored(text)) is not None:
                found[text] = one
        alike: dict[int, dict[str, list[int]]] = defaultdict(dict)  # by length
        for text in texts:
            if text not in found and not any(text in some for some in alike.values()):
                ids = self.read(text)
                alike[min(-(-len(ids) // STEP) * STEP, self.most)][text] = ids
        for length, some in alike.items():
            rows = list(some.items())
            for start in range(0, len(rows), AT_ONCE):
                found |= self._encoded(dict(rows[start : start + AT_ONCE]), length)
        return [found[text] for text in texts]

    @torch.no_grad()
    def _encoded(self, texts: dict[str, list[int]], length: int) -> dict[str, Tensor]:
        """Features of texts by their tokens, on the CPU; they are kept."""
        rows = list(texts.values())
        rows += [rows[0]] * (AT_ONCE - len(rows))
        ids = torch.full((AT_ONCE, length), self.tokenizer.pad_token_id or 0)
        valid = torch.zeros(AT_ONCE, length, dtype=torch.int64)
        for n, row in enumerate(rows):
            ids[n, : len(row)], valid[n, : len(row)] = torch.tensor(row), 1
        inputs = {"input_ids": ids.to(self.device), "attention_mask": valid.to(self.device)}
        with torch.autocast(self.device.type, enabled=False):
            features = self.network(**inputs).last_hidden_state.cpu()  # (AT_ONCE, length, E)
        found = {text: features[n, : len(row)].clone() for n, (text, row) in enumerate(texts.items())}
        for text, one in found.items():
            self.kept[text] = one
            self.kept_bytes += one.nbytes
        while self.kept_bytes > KEPT_BYTES:
            self.kept_bytes -= self.kept.popitem(last=False)[1].nbytes
        return found

    def module(self, width: int) -> nn.Module:
        projection = nn.Linear(self.width, width)
        xavier_init(projection)
        return projection


class T5(Pretrained):
    what: ClassVar[str] = "a T5"

    def architecture(self) -> Any:
        from transformers import T5EncoderModel

        return T5EncoderModel

    def text_part(self, config: Any) -> Any:
        if config.model_type != "t5":
            raise ValueError(f"it is a model of the type {config.model_type!r}")
        return config


class CLIP(Pretrained):
    what: ClassVar[str] = "CLIP's text model"
    pool: ClassVar[Literal["mean", "last"]] = "last"

    def architecture(self) -> Any:
        from transformers import CLIPTextModel

        return CLIPTextModel

    def text_part(self, config: Any) -> Any:
        if config.model_type not in ("clip", "clip_text_model"):
            raise ValueError(f"it is a model of the type {config.model_type!r}")
        return getattr(config, "text_config", config)


class Sentence(Pretrained):
    what: ClassVar[str] = "an encoder of sentences"

    def architecture(self) -> Any:
        from transformers import AutoModel

        return AutoModel

    def text_part(self, config: Any) -> Any:
        if config.is_encoder_decoder or not hasattr(config, "vocab_size") or not hasattr(config, "hidden_size"):
            raise ValueError(f"{config.model_type!r} is no encoder of texts alone")
        return config


@lru_cache(maxsize=8)  # a run asks several times, and a large encoder has tens of gigabytes
def _hash(files: tuple[tuple[str, int, int], ...]) -> str:
    """Of the bytes of files, each with its size and the time of its change."""
    digest = hashlib.sha256()
    for path, *_ in files:
        with open(path, "rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()
