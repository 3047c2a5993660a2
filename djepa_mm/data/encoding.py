"""Writing the tokens of a corpus, shard by shard: what `djepa-mm encode` does. How they lie is told in `latents`."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file
from torch import Tensor

from djepa_mm import __version__
from djepa_mm.data.batches import Encoded, tokenizer_draws
from djepa_mm.data.cache import made_whole
from djepa_mm.data.check import check_media
from djepa_mm.data.compact import Alike
from djepa_mm.data.corpus import Corpus
from djepa_mm.data.latents import (
    ABOUT,
    FEATURES,
    FEATURES_INDEX,
    FORMAT,
    INDEX,
    NONE,
    STATISTICS,
    checksum,
    difference,
    file_hash,
    read_about,
    read_statistics,
    shard_path,
    text_key,
    weights_hash,
    write_about,
)
from djepa_mm.data.reading import KeptCorpus, draws, every_reading, readings_of
from djepa_mm.recipe.load import recipe_data
from djepa_mm.recipe.schema import Recipe
from djepa_mm.runs.files import check_writable, written_to
from djepa_mm.types import (
    BrokenItem,
    ConditionKind,
    FrozenFeatures,
    MediaSpec,
    Progress,
    Source,
    Stream,
    Tokenizer,
    UserError,
)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHARD_BYTES = 256 * 2**20  # most of a shard, about
SHARD_TEXTS = 256  # most texts of a shard: half a gigabyte of features where texts and network are long and wide
TEXTS_AT_ONCE = 64
# What `latents.json` says from the start; the last two are not compared when encoding goes on
BEGUN = (
    "format", "version", "tokenizer", "weights", "data", "seed", "kept", "corpus", "condition", "statistics", "folder",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """How tokens are kept. What of it changes a file is written down, and has to agree when encoding goes on."""

    dtype: str = "fp32"  # one of DTYPES; the tokens are rounded to it
    drawn: int | None = None  # readings of an item, where there are too many to keep them all
    at_once: int = 16  # items that are encoded together
    shard_items: int = 1000  # most in a shard


USUAL = Keeping()


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How encoding ended."""

    items: int
    broken: int  # of all items; of this process' where others have not finished
    finished: bool  # all shards are there, and the index


def encode_corpus(
    recipe: Recipe,
    out: Path,
    keeping: Keeping = USUAL,
    *,
    rank: int = 0,
    world: int = 1,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Encoding:
    """Write the tokens of a recipe's corpus to `out`, and what a frozen network of its condition makes of each of its
    texts, or what is still missing there.

    rank, world: this process writes every world-th shard; the last one that is done writes the index. progress: of the
    items and texts of this process. stopped: asked after each item and before a few texts. Raises UserError where the
    corpus has too many readings of an item, or `out` holds latents of something else."""
    source, tokenizer, condition = recipe.data.build(), recipe.tokenizer.build(), recipe.condition.build()
    device = torch.device(device)
    if isinstance(source, Stream):
        raise UserError(f"data.source {recipe.data.source}: a stream is not encoded; encode what it was packed from")
    if isinstance(source, KeptCorpus):
        raise UserError("data.source: latents are encoded already; encode the corpus that they are of")
    check_media(source, tokenizer)
    readings = _readings(source, keeping)
    condition.bind(source)
    with written_to(out):
        check_writable(out)
        begun = _begin(recipe, source, tokenizer, condition, out, keeping, readings)
        tokenizer.load_state(read_statistics(out, begun))
        writer = _Writer(source, tokenizer, out, begun, device, recipe.batch.workers)
        condition.to(device)
        features, frozen = None, cast(Any, condition)
        if isinstance(frozen, FrozenFeatures) and "condition" in begun:
            features = _FeatureWriter(_texts(source, condition), frozen, out, begun)
        writers = [writer] if features is None else [writer, features]
        if (
            _write([(one, range(rank, one.shards, world)) for one in writers], progress, stopped)
            and writer.is_whole()
            and (features is None or features.is_whole())
        ):
            broken = writer.finish(None if features is None else features.finish())
            return Encoding(items=len(source), broken=broken, finished=True)
    return Encoding(items=len(source), broken=len(writer.broken), finished=False)


def _readings(source: Source, keeping: Keeping) -> int:
    """R. Raises UserError."""
    setting, drawn = draws(source), keeping.drawn
    if setting and drawn is None:
        raise UserError(f"{setting} gives too many readings of an item to keep them all; --draws 8 keeps eight of them")
    if drawn is not None and not setting:
        raise UserError(f"--draws {drawn}: this corpus draws nothing that has to be kept so; leave it out")
    return readings_of(source, drawn or 1)


def _begin(
    recipe: Recipe,
    source: Source,
    tokenizer: Tokenizer,
    condition: ConditionKind[Any],
    out: Path,
    keeping: Keeping,
    readings: int,
) -> dict[str, Any]:
    """What `latents.json` says from the start. Raises UserError where `out` holds latents of something else."""
    shapes = _shapes(source, tokenizer)[0]
    bytes_each = max((spec.num_tokens for spec in shapes.kept), default=1) * tokenizer.token_dim * readings
    bytes_each *= DTYPES[keeping.dtype].itemsize * (2 if tokenizer_draws(tokenizer) else 1)
    about = {
        "format": FORMAT,
        "version": __version__,
        "tokenizer": recipe_data(recipe.tokenizer),
        "weights": weights_hash(tokenizer),
        "data": recipe_data(recipe.data),
        "seed": recipe.run.seed,
        "kept": {
            "readings": readings,
            "drawn": keeping.drawn,
            "deviation": tokenizer_draws(tokenizer),
            "dtype": keeping.dtype,
            "at_once": keeping.at_once,
            "shard_items": max(1, min(keeping.shard_items, SHARD_BYTES // bytes_each)),
        },
        "corpus": _fingerprint(source),
    }
    if isinstance(condition, FrozenFeatures) and (made_by := condition.made_by()) is not None:
        about["condition"] = made_by
    if not (out / ABOUT).exists():
        if out.is_dir() and any(out.iterdir()):
            raise UserError(f"--out {out}: that folder holds something else; choose another one")
        config = recipe.batch.model_copy(update={"cache": False})
        Corpus(source, tokenizer, condition, config, seed=recipe.run.seed).fit_tokenizer()
        with made_whole(out) as folder:
            save_file(_plain(tokenizer.state()), folder / STATISTICS)
            about["statistics"] = file_hash(folder / STATISTICS)
            about["folder"] = _way_back(out)
            write_about(folder / ABOUT, about)
    there = read_about(out, "--out")
    more = "condition" in about and "condition" not in there  # features beside tokens that were written without
    if more:
        there["condition"] = about["condition"]
    for section in BEGUN[:-2]:
        if key := difference(section, there.get(section), about.get(section)):
            name, theirs, ours = key
            raise UserError(
                f"--out {out}: the latents there were begun with {name} {theirs!r}, now it is {ours!r}; make them "
                "agree, or choose another folder"
            )
    if more:
        _replaced(out / ABOUT, lambda path: write_about(path, there))
    return {key: there[key] for key in BEGUN if key in there}


class _Shards(ABC):
    """Files of one kind, which are written each for itself."""

    def __init__(self, out: Path, each: int, count: int, prefix: str = "") -> None:
        """each: most of what is counted, of `count`, in a file."""
        self.out, self.each, self.count, self.prefix = out, each, count, prefix
        self.shards = -(-count // each)

    def path(self, number: int) -> Path:
        return shard_path(self.out, number, self.prefix)

    def within(self, number: int) -> range:
        """What of all belongs to a shard."""
        return range(number * self.each, min(self.count, (number + 1) * self.each))

    def to_do(self, number: int) -> int:
        """How many of them there is work for."""
        return len(self.within(number))

    def is_whole(self) -> bool:
        """Whether every shard is there, whoever wrote it."""
        return all(_is_whole(self.path(number)) for number in range(self.shards))

    @abstractmethod
    def write(self, numbers: Sequence[int], advance: Callable[[int], None], stopped: Callable[[], bool]) -> bool:
        """Shards -> whether that came to its end. advance: called with how many more are done."""


def _write(
    shares: Sequence[tuple[_Shards, Sequence[int]]], progress: Progress | None, stopped: Callable[[], bool]
) -> bool:
    """The shards of these numbers that are not there -> whether that came to its end."""
    missing = [(one, [number for number in numbers if not _is_whole(one.path(number))]) for one, numbers in shares]
    total, left = (sum(one.to_do(n) for one, numbers in some for n in numbers) for some in (shares, missing))
    done = total - left

    def advance(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done, total)

    advance(0)
    return all(one.write(numbers, advance, stopped) for one, numbers in missing)


class _Writer(_Shards):
    """Tokens of a corpus, and the index of them."""

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        out: Path,
        begun: Mapping[str, Any],
        device: torch.device,
        workers: int,
    ) -> None:
        self.source, self.tokenizer, self.begun, self.device, self.workers = source, tokenizer, begun, device, workers
        self.kept = begun["kept"]
        super().__init__(out, self.kept["shard_items"], len(source))
        self.specs, self.broken = _shapes(source, tokenizer)
        self.axes = max((len(spec.shape) for spec in self.specs.kept), default=1)

    def write(self, numbers: Sequence[int], advance: Callable[[int], None], stopped: Callable[[], bool]) -> bool:
        blocks = [
            some[start : start + self.kept["at_once"]]
            for some in map(self._items, numbers)
            for start in range(0, len(some), self.kept["at_once"])
        ]
        reading = every_reading(
            self.source,
            self.tokenizer,
            blocks,
            seed=self.begun["seed"],
            device=self.device,
            drawn=self.kept["drawn"] or 1,
            workers=self.workers,
        )
        for number in numbers:
            found: dict[int, list[Encoded] | str] = {}
            for index in self._items(number):
                read, item = next(reading)
                assert read == index
                found[index] = item
                advance(1)
                if stopped():
                    reading.close()
                    return False
            self._save(number, found)
        return True

    def _items(self, number: int) -> list[int]:
        """Of a shard, without those whose header says already that they cannot be tokenized."""
        return [index for index in self.within(number) if index in self.specs]

    def to_do(self, number: int) -> int:
        return len(self._items(number))

    def _save(self, number: int, found: Mapping[int, list[Encoded] | str]) -> None:
        readings, dtype = self.kept["readings"], DTYPES[self.kept["dtype"]]
        count = len(self.within(number)) * readings
        grids, shapes = torch.zeros(count, 3, dtype=torch.int32), torch.zeros(count, self.axes, dtype=torch.int32)
        sums = torch.zeros(count, dtype=torch.int64)
        tokens, deviations = [torch.empty(0, self.tokenizer.token_dim)], [torch.empty(0, self.tokenizer.token_dim)]
        broken = {}
        for index, item in found.items():
            if isinstance(item, str):
                broken[str(index)] = self.broken[index] = item
                continue
            for n, one in enumerate(item, start=(index - number * self.each) * readings):
                rounded = _rounded(one, dtype)
                grids[n], shapes[n] = torch.tensor(one.spec.grid), torch.tensor(one.spec.shape)
                sums[n] = checksum(*rounded)
                tokens.append(rounded[0])
                deviations += rounded[1:]
        whole = {"tokens": tokens} | ({"deviation": deviations} if self.kept["deviation"] else {})
        tensors = {name: torch.cat([one.to(dtype) for one in rows]) for name, rows in whole.items()}
        tensors |= {"grid": grids, "shape": shapes, "checksum": sums}
        reasons = {"broken": json.dumps(broken)}  # one key, for several would be written in any order
        _replaced(self.path(number), lambda path: save_file(tensors, path, reasons))

    def finish(self, features: Mapping[str, Any] | None) -> int:
        """Write the index of all shards -> how many items are broken. features: what is to be said of them."""
        source, readings = self.source, self.kept["readings"]
        specs: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}

        def code(grid: Sequence[int], shape: Sequence[int]) -> int:
            return specs.setdefault((tuple(grid), tuple(shape)), len(specs))

        header, rows = np.full(len(source), NONE, np.int32), np.full(len(source) * readings, NONE, np.int32)
        for index, spec in self.specs.items():
            header[index] = code(spec.grid, spec.shape)
        begins, sums = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.uint32)
        sizes = []
        for number in range(self.shards):
            path = self.path(number)
            sizes.append(path.stat().st_size)
            with safe_open(path, "pt") as shard:
                self.broken |= {int(index): why for index, why in json.loads(shard.metadata()["broken"]).items()}
                grids, shapes = shard.get_tensor("grid").numpy(), shard.get_tensor("shape").numpy()
                first, counts = number * self.each * readings, grids.prod(1, dtype=np.int64)
                place = slice(first, first + len(grids))
                begins[place] = np.cumsum(counts) - counts
                sums[place] = shard.get_tensor("checksum").numpy()
                for n in np.flatnonzero(counts):
                    rows[first + n] = code(grids[n].tolist(), shapes[n].tolist())
        labels: dict[str, int] = {label: n for n, label in enumerate(source.classes)}
        label, has_text = np.full(len(source), NONE, np.int32), np.zeros(len(source), np.uint8)
        names, texts, more = _Texts(), _Texts(), 0
        for index in range(len(source)):
            entry = source.entry(index)
            names.add(entry.name)
            texts.add(entry.text or "")
            more += len(entry.texts[1:])
            has_text[index] = entry.text is not None
            if entry.label is not None:
                label[index] = labels.setdefault(entry.label, len(labels))
        arrays = {
            "header": header,
            "spec": rows,
            "begin": begins,
            "checksum": sums,
            "grids": np.array([grid for grid, _ in specs], np.int32).reshape(-1, 3),
            "shapes": np.array([shape for _, shape in specs], np.int32).reshape(-1, self.axes),
            "label": label,
            "has_text": has_text,
            **names.arrays("name"),
            **texts.arrays("text"),
        }
        _replaced(self.out / INDEX, lambda path: save_arrays(arrays, path))
        about = {
            **self.begun,
            "items": len(source),
            "classes": list(source.classes),
            "labels": list(labels),
            "sample_rate_hz": getattr(source, "sample_rate_hz", None),
            "left_out": getattr(source, "left_out", {}) | ({"texts beyond the first of an item": more} if more else {}),
            "broken": {str(index): self.broken[index] for index in sorted(self.broken)},
            "shards": sizes,
            "index": file_hash(self.out / INDEX),
        }
        if features is not None:
            about["features"] = features
        _replaced(self.out / ABOUT, lambda path: write_about(path, about))
        for leftover in self.out.glob(".*.part"):  # of processes that were killed
            leftover.unlink(missing_ok=True)
        return len(self.broken)


class _FeatureWriter(_Shards):
    """What a frozen network makes of texts, and the index of them."""

    def __init__(self, texts: Sequence[str], network: FrozenFeatures, out: Path, begun: Mapping[str, Any]) -> None:
        super().__init__(out, min(begun["kept"]["shard_items"], SHARD_TEXTS), len(texts), FEATURES)
        self.texts, self.network = texts, network

    def write(self, numbers: Sequence[int], advance: Callable[[int], None], stopped: Callable[[], bool]) -> bool:
        for number in numbers:
            found: list[Tensor] = []
            texts = [self.texts[n] for n in self.within(number)]
            for start in range(0, len(texts), TEXTS_AT_ONCE):
                if stopped():
                    return False
                some = self.network.features(texts[start : start + TEXTS_AT_ONCE])
                found += some
                advance(len(some))
            self._save(number, found)
        return True

    def _save(self, number: int, found: Sequence[Tensor]) -> None:
        tensors = {
            "features": torch.cat(list(found)),  # (sum of L, E)
            "length": torch.tensor([len(one) for one in found], dtype=torch.int32),
            "checksum": torch.tensor([checksum(one) for one in found]),
        }
        _replaced(self.path(number), lambda path: save_file(tensors, path))

    def finish(self) -> dict[str, Any]:
        """Write the index of all shards -> what is to be said of them."""
        lengths, begins, sums, sizes = ([np.zeros(0, np.int64)] for _ in range(4))
        for number in range(self.shards):
            sizes.append(np.array([self.path(number).stat().st_size]))
            with safe_open(self.path(number), "pt") as shard:
                lengths.append(shard.get_tensor("length").numpy().astype(np.int64))
                begins.append(np.cumsum(lengths[-1]) - lengths[-1])
                sums.append(shard.get_tensor("checksum").numpy())
        keys = np.array([text_key(text) for text in self.texts], np.uint64)
        order = np.argsort(keys)
        arrays: dict[str, np.ndarray] = {
            "key": keys[order],
            "place": order.astype(np.int64),
            "begin": np.concatenate(begins)[order],
            "length": np.concatenate(lengths)[order].astype(np.int32),
            "checksum": np.concatenate(sums)[order].astype(np.uint32),
        }
        _replaced(self.out / FEATURES_INDEX, lambda path: save_arrays(arrays, path))
        return {
            "shard_texts": self.each,
            "shards": np.concatenate(sizes).tolist(),
            "index": file_hash(self.out / FEATURES_INDEX),
        }


def _texts(source: Source, condition: ConditionKind[Any]) -> list[str]:
    """Of the items, each once, in the order that they first come in."""
    found: dict[str, None] = {}
    for index in range(len(source)):
        with suppress(BrokenItem):
            found[condition.read(source.entry(index))] = None
    return list(found)


def _shapes(source: Source, tokenizer: Tokenizer) -> tuple[Alike[MediaSpec], dict[int, str]]:
    """Sizes of the items as their headers say, and why others have none."""
    specs: Alike[MediaSpec] = Alike(len(source))
    broken = {}
    for index in range(len(source)):
        try:
            specs[index] = tokenizer.spec_of(source.shape(index))
        except (BrokenItem, UserError) as error:
            broken[index] = str(error)
    if not specs:
        raise UserError(f"the corpus has no readable item among {len(source)}: {next(iter(broken.values()), 'none')}")
    return specs, broken


def _fingerprint(source: Source) -> str:
    """Of the items' names, classes and texts, in their order."""
    digest = hashlib.sha256()
    for index in range(len(source)):
        entry = source.entry(index)
        digest.update(json.dumps([entry.name, entry.label, entry.text]).encode())
    return digest.hexdigest()


def _rounded(item: Encoded, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The tokens, and their deviation where they have one."""
    both = (item.tokens, item.deviation)
    return tuple(one.to(dtype).contiguous() for one in both if one is not None)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: one.detach().cpu().contiguous() for name, one in tensors.items()}


class _Texts:
    """Texts as one block of UTF-8, and where each ends."""

    def __init__(self) -> None:
        self.block, self.ends = bytearray(), array("q")

    def add(self, text: str) -> None:
        self.block += text.encode()
        self.ends.append(len(self.block))

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        return {f"{name}s": np.frombuffer(self.block, np.uint8), f"{name}_ends": np.array(self.ends, np.int64)}


def _is_whole(shard: Path) -> bool:
    """Whether the file is there and as long as its header says."""
    try:
        with safe_open(shard, "pt"):
            return True
    except (OSError, SafetensorError):
        return False


def _replaced(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file, whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except FileNotFoundError:
        if not path.exists():  # else another process has finished all of it, and swept
            raise
    finally:
        partial.unlink(missing_ok=True)


def _way_back(out: Path) -> str:
    """From the folder to where the corpus' name was given; relative, as both may move together."""
    return os.path.relpath(Path.cwd(), out.resolve())
