"""The small classics that torchvision knows how to fetch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from djepa_mm.data.sources.image_folder import to_media
from djepa_mm.types import Entry, Item, Progress, SourceConfig, UserError

CLASS_NAMES = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}


class TorchvisionConfig(SourceConfig):
    """MNIST and Fashion-MNIST (grey), CIFAR-10 and CIFAR-100 (colour)."""

    source: Literal["torchvision"]
    dataset: Literal["mnist", "fashion-mnist", "cifar10", "cifar100"]
    root: str
    size: Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)]
    """Height and width that pictures are resized to."""
    download: bool = False
    split: Literal["train", "test"] = "train"
    """Which of its two published parts."""

    def build(self) -> TorchvisionSet:
        return TorchvisionSet(self)

    def build_held_out(self) -> TorchvisionSet | None:
        """The published test part."""
        return TorchvisionSet(self.model_copy(update={"split": "test"})) if self.split == "train" else None

    def fetch(self, progress: Progress) -> str:
        """Download the data set, with torchvision's own progress bar."""
        count = len(TorchvisionSet(self.model_copy(update={"download": True})))
        return f"{self.dataset} is in {self.root}: {count} pictures"


class TorchvisionSet:
    def __init__(self, config: TorchvisionConfig) -> None:
        from torchvision import datasets

        self.config = config
        kind = getattr(datasets, CLASS_NAMES[config.dataset])
        root = Path(config.root).expanduser()
        try:
            self.dataset: Any = kind(root, train=config.split == "train", download=config.download)
        except (OSError, RuntimeError) as error:
            fix = "check the network and the disk" if config.download else "fetch it with --set data.download=true"
            reason = str(error).strip().split("\n")[0].rstrip(".")
            raise UserError(f"data.root: no {config.dataset} in {root.absolute()} ({reason}); {fix}") from error
        self.channels: Literal[1, 3] = 3 if config.dataset.startswith("cifar") else 1
        self.classes = tuple(name.split(" - ")[0] for name in self.dataset.classes)  # MNIST's are "7 - seven"

    def __len__(self) -> int:
        return len(self.dataset)

    def entry(self, index: int) -> Entry:
        part = "" if self.config.split == "train" else "test/"
        return Entry(name=f"{self.config.dataset}/{part}{index}", label=self.classes[int(self.dataset.targets[index])])

    def shape(self, index: int) -> tuple[int, ...]:
        return (self.channels, *self.config.size)

    def read(self, index: int) -> Item:
        image, _ = self.dataset[index]
        return Item(entry=self.entry(index), media=to_media(image, self.config.size, self.channels))
