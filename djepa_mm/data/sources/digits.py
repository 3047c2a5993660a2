"""scikit-learn's 1,797 handwritten digits: real pictures that come inside a package."""

from __future__ import annotations

import shutil
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from djepa_mm.data.cache import corpus_folder, made_whole
from djepa_mm.types import Entry, Item, Progress, SourceConfig, UserError

FILE = "digits.safetensors"


class DigitsConfig(SourceConfig):
    """Handwritten digits, 8×8 pixels, grey, ten classes."""

    source: Literal["digits"]
    split: Literal["all", "train"] = "all"
    """"train" leaves out the fifth that the evaluation compares with."""

    def build(self) -> Digits:
        return Digits(*load_digits(self.split))

    def build_held_out(self) -> Digits | None:
        return Digits(*load_digits("test")) if self.split == "train" else None

    def fetch(self, progress: Progress) -> str:
        return f"nothing to fetch: {len(self.build())} digits come inside scikit-learn"


def load_digits(split: Literal["all", "train", "test"]) -> tuple[Tensor, list[int]]:
    """Pictures (items, 1, 8, 8) in [-1, 1] and their labels. "test" is what "train" leaves of "all".

    scikit-learn takes three seconds to import, so they are kept in the user's cache."""
    try:
        made_by = version("scikit-learn")
    except PackageNotFoundError as error:
        raise UserError('data.source: digits needs scikit-learn: pip install "djepa-mm[demo]"') from error
    cache = corpus_folder("digits", f"{split} {made_by}")
    try:
        digits = load_file(cache / FILE)
    except (OSError, SafetensorError):
        digits = _made(split)
        shutil.rmtree(cache, ignore_errors=True)  # what is damaged
        with suppress(OSError), made_whole(cache) as folder:
            save_file(digits, folder / FILE)
    return digits["pictures"], digits["labels"].tolist()


def _made(split: Literal["all", "train", "test"]) -> dict[str, Tensor]:
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    digits = datasets.load_digits()
    pictures, labels = digits.images, digits.target  # (1797, 8, 8) in [0, 16]
    if split != "all":
        halves = train_test_split(pictures, labels, test_size=0.2, stratify=labels, random_state=0)
        pictures, labels = (halves[0], halves[2]) if split == "train" else (halves[1], halves[3])
    return {"pictures": torch.tensor(pictures, dtype=torch.float32)[:, None] / 8 - 1, "labels": torch.tensor(labels)}


class Digits:
    classes = tuple("0123456789")

    def __init__(self, pictures: Tensor, labels: list[int]) -> None:
        self.pictures = pictures
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def entry(self, index: int) -> Entry:
        return Entry(name=f"digits/{index}", label=self.classes[self.labels[index]])

    def shape(self, index: int) -> tuple[int, ...]:
        return tuple(self.pictures.shape[1:])

    def read(self, index: int) -> Item:
        return Item(entry=self.entry(index), media=self.pictures[index])
