"""Tokens of a corpus, kept as files: written once by `djepa-mm encode`, then read as a corpus like any other.

A folder holds
    latents.json              what the tokens were made of and by; once all are there, also how many, and every hash
    statistics.safetensors    what the tokenizer had learned of the corpus
    00000.safetensors, …      shards: the tokens of so many items each, of every reading that is kept, one after the
                              other; of tokens that are drawn their mean and deviation
    index.safetensors         names, labels, texts and sizes of all items, and where their tokens lie
and, of a kind of condition with a frozen network that reads texts, see `FrozenFeatures`,
    features-00000.safetensors, …   what that makes of so many texts each, every text once
    features.safetensors      which texts these are, and where their features lie

A shard depends on its items alone, not on who writes it or when: interrupted and gone on, or shared out to several
processes, the files are the same. N tokens, C token channels, R readings of an item that are kept, L tokens of a text,
E features of each, U different texts.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, PositiveInt, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file
from torch import Tensor

from djepa_mm.data.batches import Encoded, tokenizer_draws
from djepa_mm.recipe.schema import TOKENS_FREE, schema_class
from djepa_mm.types import BrokenItem, Entry, Item, MediaSpec, Source, SourceConfig, Tokenizer, UserError, WayTo

FORMAT = 1
ABOUT, STATISTICS, INDEX = "latents.json", "statistics.safetensors", "index.safetensors"
FEATURES, FEATURES_INDEX = "features-", "features.safetensors"
OPEN = 64  # shards held open by a process that reads
MOST_SHOWN = 80  # characters of a text in an error
NONE = -1  # of a broken item's size, and of an item without a class


class _Keeping(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    readings: PositiveInt
    deviation: bool
    shard_items: PositiveInt


class _Begun(BaseModel):
    """What of latents.json is read, from the start."""

    model_config = ConfigDict(strict=True, extra="allow")

    version: str
    corpus: str
    data: dict[str, Any]
    tokenizer: dict[str, Any]
    weights: str | None
    kept: _Keeping
    statistics: str
    folder: WayTo
    condition: dict[str, Any] | None = None


class _Features(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    shard_texts: PositiveInt
    shards: list[PositiveInt]
    index: str


class _Finished(_Begun):
    """Once all shards are there."""

    items: PositiveInt
    classes: list[str]
    labels: list[str]
    sample_rate_hz: PositiveInt | None
    left_out: dict[str, int]
    broken: dict[str, str]
    shards: list[PositiveInt]
    index: str
    features: _Features | None = None


# --- what is written down ---------------------------------------------------------------------------------------------


def write_about(path: Path, about: Mapping[str, Any]) -> None:
    text = json.dumps({**about, "sha256": _hash_of(about)}, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def read_about(folder: Path, field: str) -> dict[str, Any]:
    """latents.json. Raises UserError, which names the option or key that gave the folder."""
    path = folder / ABOUT
    if not folder.is_dir():
        raise UserError(f"{field}: no folder at {folder.absolute()}; make it: djepa-mm encode RECIPE --out {folder}")
    if not path.is_file():
        raise UserError(f"{field}: no latents in {folder.absolute()}; make them: djepa-mm encode RECIPE --out FOLDER")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(about, dict):
            raise ValueError("no mapping")
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, " ".join(str(error).split())) from None
    if (found := about.get("format")) != FORMAT:
        advice = "upgrade djepa-mm" if isinstance(found, int) and found > FORMAT else "encode them again"
        raise UserError(f"{path}: format {found!r}, and this version of djepa-mm reads {FORMAT}: {advice}")
    if about.pop("sha256", None) != _hash_of(about):
        raise _damaged(path, "its text was changed")
    try:
        (_Finished if "index" in about else _Begun).model_validate(about)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise _damaged(path, f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}") from None
    return about


def read_statistics(folder: Path, about: Mapping[str, Any]) -> dict[str, Tensor]:
    path = folder / STATISTICS
    if not path.is_file() or file_hash(path) != about["statistics"]:
        raise _damaged(path, "missing, or not what was written")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise _damaged(path, " ".join(str(error).split())) from None


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_of(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _damaged(path: Path, reason: str) -> UserError:
    advice = "delete it and encode again, which writes what is missing"
    if path.name in (ABOUT, STATISTICS):  # without these nothing tells what the shards are
        advice = "encode again, into another folder"
    return UserError(f"{path}: damaged ({reason}); {advice}")


def difference(name: str, there: Any, here: Any) -> tuple[str, Any, Any] | None:
    """The first key below `name` that differs, with both values."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        keys = [*here, *(key for key in there if key not in here)]
        found = (difference(f"{name}.{key}", there.get(key), here.get(key)) for key in keys)
        return next((one for one in found if one is not None), None)
    return None if there == here else (name, there, here)


def shard_path(folder: Path, number: int, prefix: str = "") -> Path:
    return folder / f"{prefix}{number:05d}.safetensors"


def checksum(*tensors: Tensor) -> int:
    value = 0
    for one in tensors:
        value = zlib.crc32(one.view(torch.uint8).numpy(), value)  # type: ignore[arg-type]  # it is a buffer
    return value


def text_key(text: str) -> np.uint64:
    """By which a text's features are found: 64 bits of its hash."""
    return np.frombuffer(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest(), "<u8")[0]


def weights_hash(tokenizer: Tokenizer) -> str | None:
    """Of a tokenizer that has weights of its own; None where its settings say all."""
    found: str | None = getattr(tokenizer, "weights_hash", None)
    return found


# --- reading ----------------------------------------------------------------------------------------------------------


class _Shards:
    """Files of tensors that are read in parts; those that were asked for last stay open."""

    def __init__(self, root: Path, sizes: Sequence[int], prefix: str = "") -> None:
        """Raises UserError where one is missing, or has not its size in bytes."""
        self.root, self.prefix = root, prefix
        self.open: dict[int, Any] = {}
        for number, size in enumerate(sizes):
            path = self.path(number)
            found = path.stat().st_size if path.is_file() else 0
            if found != size:
                raise _damaged(path, f"{found:,} of {size:,} bytes" if found else "missing")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "open": {}}  # open files stay with their process

    def path(self, number: int) -> Path:
        return shard_path(self.root, number, self.prefix)

    def read(self, number: int, names: Sequence[str], begin: int, count: int) -> list[Tensor]:
        """So many rows of each of these tensors."""
        try:
            if number not in self.open:
                while len(self.open) >= OPEN:
                    del self.open[next(iter(self.open))]
                self.open[number] = safe_open(self.path(number), "pt")
            shard = self.open[number]
            # copies, for a part of a file that is mapped would go to another process with all of the file
            return [shard.get_slice(name)[begin : begin + count].clone() for name in names]
        except (OSError, SafetensorError, LookupError, ValueError) as error:
            raise _damaged(self.path(number), " ".join(str(error).split())) from None


def _read_index(path: Path, digest: str, check: Callable[[Mapping[str, np.ndarray]], None]) -> dict[str, np.ndarray]:
    """Arrays of a file of that hash. check: raises ValueError, or LookupError, where they do not fit together."""
    if not path.is_file() or file_hash(path) != digest:
        raise _damaged(path, "missing, or not what was written")
    try:
        index = load_arrays(path)
        check(index)
    except (SafetensorError, ValueError, LookupError, TypeError) as error:
        raise _damaged(path, " ".join(str(error).split())) from None
    return index


class Latents:
    """A corpus of kept tokens. What it knows of its items takes some tens of bytes for each, in a few blocks."""

    def __init__(self, root: Path) -> None:
        """Raises UserError for what is missing, unfinished or damaged; a shard is read when it is needed."""
        self.root, self.about = root, read_about(root, "data.root")
        if "index" not in self.about or ("condition" in self.about and "features" not in self.about):
            raise UserError(
                f"data.root: the latents in {root.absolute()} are not complete; go on: djepa-mm encode RECIPE "
                f"--out {root}"
            )
        self.statistics: Mapping[str, Tensor] = read_statistics(root, self.about)
        self._shards = _Shards(root, self.about["shards"])
        self.index = _read_index(root / INDEX, self.about["index"], partial(_check_index, about=self.about))
        self.classes: tuple[str, ...] = tuple(self.about["classes"])
        self.sample_rate_hz: int | None = self.about["sample_rate_hz"]
        self.left_out: dict[str, int] = self.about["left_out"]
        self.readings: int = self.about["kept"]["readings"]
        self.specs = [
            MediaSpec(grid=cast(tuple[int, int, int], tuple(grid)), shape=tuple(shape))
            for grid, shape in zip(self.index["grids"].tolist(), self.index["shapes"].tolist(), strict=True)
        ]

    def __len__(self) -> int:
        return len(self.index["header"])

    def entry(self, index: int) -> Entry:
        label = int(self.index["label"][index])
        return Entry(
            name=self._text("name", index),
            label=None if label == NONE else self.about["labels"][label],
            text=self._text("text", index) if self.index["has_text"][index] else None,
        )

    def shape(self, index: int) -> tuple[int, ...]:
        code = self.index["header"][index]
        if code == NONE:
            raise self._broken(index)
        return self.specs[code].shape

    def read(self, index: int) -> Item:
        """The media, from the corpus that was encoded. Raises UserError where that is not there."""
        item = self._encoded_corpus.read(index)
        if item.entry.name != (name := self._text("name", index)):
            raise UserError(f"data.root: item {index} of {self.root} was {name}, and now it is {item.entry.name}")
        return item

    def tokens(self, index: int, reading: int) -> Encoded:
        row, number = index * self.readings + reading, index // self.about["kept"]["shard_items"]
        code = self.index["spec"][row]
        if code == NONE:
            raise self._broken(index)
        spec, begin = self.specs[code], int(self.index["begin"][row])
        names = ("tokens", "deviation") if self.about["kept"]["deviation"] else ("tokens",)
        kept = self._shards.read(number, names, begin, spec.num_tokens)
        if checksum(*kept) != self.index["checksum"][row]:
            raise _damaged(self._shards.path(number), f"the tokens of {self._text('name', index)} were changed")
        tokens, *deviation = (one.float() for one in kept)
        return Encoded(tokens, spec, *deviation)

    @cached_property
    def original(self) -> SourceConfig:
        """The data section by which the corpus was encoded."""
        config: SourceConfig = _section("data", self.about["data"], self.root)
        return config.seen_from((self.root / self.about["folder"]).resolve())

    @cached_property
    def _encoded_corpus(self) -> Source:
        return cast(Source, self.original.build())  # a stream is not encoded

    def check(self, section: Any, tokenizer: Tokenizer) -> None:
        """Raises UserError where the tokenizer, of that section of a recipe, would give other tokens than are kept."""
        there = _section("tokenizer", self.about["tokenizer"], self.root)
        theirs, ours = (one.model_dump(exclude=TOKENS_FREE | {"sample"}) for one in (there, section))
        if found := difference("tokenizer", theirs, ours):
            raise self._stale(*found)
        if tokenizer_draws(tokenizer) and not self.about["kept"]["deviation"]:
            raise self._stale("tokenizer.sample", False, True)
        weights = weights_hash(tokenizer)
        if self.about["weights"] != weights:
            raise self._stale("the tokenizer's weights", _short(self.about["weights"]), _short(weights))

    def kept_features(self, made_by: Callable[[], Mapping[str, Any] | None]) -> Callable[[str], Tensor | None] | None:
        there = self.about.get("condition")
        if there is None or (here := made_by()) is None:
            return None
        if found := difference("condition", there, here):
            name, *both = found
            raise self._stale(name, *map(_short, both) if name.endswith("sha256") else both)
        return Features(self.root, self.about["features"])

    def check_statistics(self, tokenizer: Tokenizer) -> None:
        """Raises UserError where a run that goes on has learned others than those the tokens were made by."""
        ours = tokenizer.state()
        for name in ours.keys() | self.statistics.keys():
            both = ours.get(name), self.statistics.get(name)
            if both[0] is None or both[1] is None or not torch.equal(both[0].cpu(), both[1]):
                raise UserError(
                    f"data.root: the latents in {self.root} were made with another {name} of the tokenizer than this "
                    "run has learned; go on with those that it began with, or train anew"
                )

    def _stale(self, what: str, there: Any, here: Any) -> UserError:
        return UserError(
            f"data.root: the latents in {self.root} were made with {what} {there!r}, here it is {here!r}; make them "
            "agree, or encode again"
        )

    def _broken(self, index: int) -> BrokenItem:
        return BrokenItem(self.about["broken"].get(str(index), "left out when the corpus was encoded"))

    def _text(self, kind: str, index: int) -> str:
        ends = self.index[f"{kind}_ends"]
        block = self.index[f"{kind}s"][ends[index - 1] if index else 0 : ends[index]]
        return block.tobytes().decode()


class Features:
    """What a frozen network has made of texts, read when it is asked for; of each, memory takes some tens of bytes."""

    def __init__(self, root: Path, about: Mapping[str, Any]) -> None:
        """about: what latents.json says of them. Raises UserError for what is missing or damaged."""
        self.shard_texts: int = about["shard_texts"]
        self._shards = _Shards(root, about["shards"], FEATURES)
        self.index = _read_index(root / FEATURES_INDEX, about["index"], _check_features_index)

    def __call__(self, text: str) -> Tensor | None:
        """(L, E), or None of a text that is not among them. Raises UserError where they are damaged."""
        keys, key = self.index["key"], text_key(text)
        row = int(np.searchsorted(keys, key))
        if row == len(keys) or keys[row] != key:
            return None
        place, begin, length = (int(self.index[name][row]) for name in ("place", "begin", "length"))
        number = place // self.shard_texts
        (features,) = self._shards.read(number, ("features",), begin, length)
        if checksum(features) != self.index["checksum"][row]:
            raise _damaged(self._shards.path(number), f"the features of {text[:MOST_SHOWN]!r} were changed")
        return features


def _check_features_index(index: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError, or KeyError, where the arrays do not fit together."""
    texts = len(index["key"])
    for name in ("key", "place", "begin", "length", "checksum"):
        if index[name].shape != (texts,) or index[name].dtype.kind not in "iu":
            raise ValueError(f"{name} is not {texts:,} whole numbers")
    if np.any(index["key"][1:] <= index["key"][:-1]):
        raise ValueError("key does not rise")
    for name, least, beyond in (("place", 0, texts), ("begin", 0, 2**62), ("length", 1, 2**31)):
        if texts and (index[name].min() < least or index[name].max() >= beyond):
            raise ValueError(f"{name} from {index[name].min()} to {index[name].max()}")


def _check_index(index: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Raises ValueError, or KeyError, where the arrays do not fit together: what they point at must be there."""
    items, sizes, labels = about["items"], len(index["grids"]), len(about["labels"])
    rows = items * about["kept"]["readings"]
    lengths = {"header": items, "label": items, "has_text": items, "name_ends": items, "text_ends": items,
               "spec": rows, "begin": rows, "checksum": rows, "grids": sizes, "shapes": sizes}  # fmt: skip
    for name, length in lengths.items():
        if len(index[name]) != length or index[name].dtype.kind not in "iu":
            raise ValueError(f"{name} is not {length:,} whole numbers")
    within = {"header": (NONE, sizes), "spec": (NONE, sizes), "label": (NONE, labels), "begin": (0, None),
              "grids": (1, None), "shapes": (0, None)}  # fmt: skip
    for name, (least, beyond) in within.items():
        values = index[name]
        if values.size and (values.min() < least or (beyond is not None and values.max() >= beyond)):
            raise ValueError(f"{name} from {values.min()} to {values.max()}")
    for name in ("name", "text"):
        ends, block = index[f"{name}_ends"], index[f"{name}s"]
        if np.any(np.diff(ends, prepend=0) < 0) or (items and ends[-1] != len(block)):
            raise ValueError(f"{name}_ends is no list of places in {name}s")
        block.tobytes().decode()


def _section(name: str, value: Any, root: Path) -> Any:
    """A section of a recipe, out of what was written down."""
    field = schema_class().model_fields[name]
    with suppress(ValidationError):
        return TypeAdapter(cast(Any, field.annotation)).validate_json(json.dumps(value))
    raise UserError(f"data.root: the {name} section of {root / ABOUT} is not known here; encode again")


def _short(digest: str | None) -> str | None:
    return digest and digest[:12]
