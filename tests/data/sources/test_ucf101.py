"""UCF101's published layout, in a small stand-in of real files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("av")

from djepa_mm.data.sources.ucf101 import UCF101Config
from djepa_mm.media.clips import write_clip
from djepa_mm.types import BrokenItem, UserError

CLASSES = ("ApplyEyeMakeup", "Archery", "YoYo")


def config(root: Path, **options: Any) -> UCF101Config:
    return UCF101Config(source="ucf101", root=str(root), reader="pyav", **{"size": [24, 24], **options})


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """3 classes × 4 groups of one clip. The test side of split k is group k; group 4 always trains."""
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    lists.joinpath("classInd.txt").write_text("".join(f"{n} {c}\r\n" for n, c in enumerate(CLASSES, start=1)))
    for label, name in enumerate(CLASSES):
        (tmp_path / "UCF-101" / name).mkdir(parents=True)
        for group in range(1, 5):
            clip = torch.full((3, 20, 24, 32), label - 1.0)
            path = tmp_path / "UCF-101" / name / f"v_{name}_g{group:02}_c01.mp4"
            write_clip(clip, path, 25)
            path.rename(path.with_suffix(".avi"))
    for fold in (1, 2, 3):
        sides: dict[str, list[str]] = {"train": [], "test": []}
        for label, name in enumerate(CLASSES, start=1):
            for group in range(1, 5):
                file = f"{name}/v_{name}_g{group:02}_c01.avi"
                sides["test" if group == fold else "train"].append(file if group == fold else f"{file} {label}")
        for side, rows in sides.items():
            lists.joinpath(f"{side}list0{fold}.txt").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_lists_choose_the_side(stand_in: Path) -> None:
    for fold in (1, 2, 3):
        train = config(stand_in, fold=fold).build()
        test = config(stand_in, fold=fold).build_held_out()
        assert test is not None
        names = [[source.entry(i).name for i in range(len(source))] for source in (train, test)]
        assert (len(names[0]), len(names[1])) == (9, 3)
        assert all((f"_g{fold:02}_" in name) == (side == 1) for side in (0, 1) for name in names[side])
        assert train.classes == test.classes == CLASSES
    assert config(stand_in, split="test").build_held_out() is None


def test_items_have_their_class_and_the_benchmarks_size(stand_in: Path) -> None:
    source = UCF101Config(source="ucf101", root=str(stand_in)).build()
    item = source.read(4)
    assert item.media.shape == source.shape(4) == (3, 16, 128, 128)
    assert item.entry.label == source.entry(4).name.split("/")[0] == "Archery"
    assert item.media.mean().abs() < 0.02


def test_a_listed_video_that_is_not_there_is_broken(stand_in: Path) -> None:
    (stand_in / "UCF-101" / "Archery" / "v_Archery_g02_c01.avi").unlink()
    source = config(stand_in).build()
    assert len(source) == 9
    with pytest.raises(BrokenItem, match="No such file"):
        source.read([source.entry(i).name for i in range(9)].index("Archery/v_Archery_g02_c01.avi"))


def test_what_is_wrong_with_the_layout_is_said(stand_in: Path) -> None:
    with pytest.raises(UserError, match=r"data\.root: no UCF-101/ and ucfTrainTestlist/"):
        config(stand_in / "UCF-101").build()
    lists = stand_in / "ucfTrainTestlist"
    (lists / "trainlist02.txt").write_text("Juggling/v_Juggling_g01_c01.avi 4\n")
    with pytest.raises(UserError, match=r"names Juggling/.*not in classInd\.txt"):
        config(stand_in, fold=2).build()
    (lists / "trainlist02.txt").write_text("\n")
    with pytest.raises(UserError, match=r"trainlist02\.txt is empty"):
        config(stand_in, fold=2).build()
    (lists / "trainlist03.txt").unlink()
    with pytest.raises(UserError, match=r"cannot read the list .*trainlist03\.txt"):
        config(stand_in, fold=3).build()
    (lists / "classInd.txt").write_text("ApplyEyeMakeup\n")
    with pytest.raises(UserError, match=r"classInd\.txt has a line of 1 words, not 2"):
        config(stand_in).build()
