"""How fast pictures of 256x256 come out of a folder, beside torchvision's ImageFolder and torch's DataLoader.

    python benchmarks/folder_rate.py
    python benchmarks/folder_rate.py --workers 2

The same JPEG files in class folders, whole epochs in random order, in batches of 64 tensors in [-1, 1], half of the
pictures mirrored at random; by turns, --repeats times. Ours is the reading that training does, each item by its own
seed. Figures: medians of pictures a second, and of the turns' ratios.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from djepa_mm.data.drawing import item_seed
from djepa_mm.data.reading import Reading
from djepa_mm.data.sources.image_folder import ImageFolderConfig

BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rates: dict[str, list[float]] = {"ImageFolder and DataLoader": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), args.pictures)
        ways = (plain(Path(folder), args.workers), ours(Path(folder), args.workers))
        for _ in range(args.repeats):
            for name, read in zip(rates, ways, strict=True):
                began = time.perf_counter()
                count = read()
                rates[name].append(count / (time.perf_counter() - began))
    table = Table("way", "pictures a second", "ratio", title=f"{args.workers} workers")
    first = rates["ImageFolder and DataLoader"]
    for name, found in rates.items():
        ratio = median(one / other for one, other in zip(found, first, strict=True))
        table.add_row(name, f"{median(found):.0f} ({min(found):.0f} to {max(found):.0f})", f"{ratio:.3f}")
    Console().print(table)


def make(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for n in range(count):
        noise = Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8))
        place = folder / f"class{n % 4}"
        place.mkdir(exist_ok=True)
        noise.resize((256, 256), Image.Resampling.BICUBIC).save(place / f"{n:05d}.jpg", quality=90)


def plain(folder: Path, workers: int) -> Callable[[], int]:
    steps = [
        transforms.Resize(256, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(256),
        transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(0.5, 0.5),
    ]  # fmt: skip
    loader = DataLoader(ImageFolder(folder, transforms.Compose(steps)), BATCH, shuffle=True, num_workers=workers)
    return lambda: sum(len(media) for media, _ in loader)


def ours(folder: Path, workers: int) -> Callable[[], int]:
    source = ImageFolderConfig(source="image-folder", root=str(folder), size=(256, 256), flip=True).build()

    def read() -> int:
        order = torch.randperm(len(source)).tolist()
        batches = [
            [(index, item_seed(0, 0, index)) for index in order[start : start + BATCH]]
            for start in range(0, len(order), BATCH)
        ]
        loader = DataLoader(Reading(source), batch_sampler=batches, num_workers=workers, collate_fn=list)
        return sum(len(torch.stack([row.content for row in rows])) for rows in loader)

    return read


if __name__ == "__main__":
    main()
