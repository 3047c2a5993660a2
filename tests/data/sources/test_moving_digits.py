"""Moving digits are files of digits that move as they say."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("av")
pytest.importorskip("sklearn")

from djepa_mm.data.sources.moving_digits import (
    HELD_OUT,
    MovingDigit,
    MovingDigitsConfig,
    bounce,
    centres_of_mass,
    moving_digits,
    write_digits,
)
from djepa_mm.types import UserError


def config(root: Path | None = None, **options: Any) -> MovingDigitsConfig:
    return MovingDigitsConfig(source="moving-digits", root=root and str(root), **{"count": 20, **options})


def ink(digit: MovingDigit) -> torch.Tensor:
    return (digit.clip[0] + 1) / 2


def test_the_ink_is_where_the_path_says_and_never_leaves_the_frame() -> None:
    for digit in moving_digits(config(count=60)):
        assert digit.clip.shape == (1, 16, 32, 32)
        assert digit.clip.min() == -1
        assert 0 < digit.clip.max() <= 1
        assert torch.allclose(centres_of_mass(ink(digit)), digit.centres, atol=1e-3)
        total = ink(digit).sum((1, 2))
        assert torch.allclose(total, total[0].expand(16), rtol=1e-4)


def test_paths_are_straight_between_walls_that_give_the_speed_back() -> None:
    path = bounce(np.array([[8.0], [11.0], [14.0], [17.0], [20.0], [23.0]]), np.array([5.0]), np.array([12.0]))
    assert path[:, 0].tolist() == [8, 11, 10, 7, 6, 9]
    speeds, turned = [], 0
    for digit in moving_digits(config(count=60, min_speed=1.0, max_speed=2.0)):
        steps = digit.centres.diff(dim=0)
        straight = steps.norm(dim=1).max().item()  # between walls
        speeds.append(straight)
        assert (steps.norm(dim=1) <= straight + 1e-4).all()
        turned += bool((steps.sign().diff(dim=0) != 0).any())
    assert 1 - 1e-3 <= min(speeds) < 1.2 < 1.8 < max(speeds) <= 2 + 1e-3
    assert turned > 30


def test_the_first_use_writes_files_and_the_second_reads_them(tmp_path: Path) -> None:
    source = config(tmp_path).build()
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")}
    assert len(source) == len(made) == 20
    again = config(tmp_path).build()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")} == made
    true = {digit.name: digit for digit in moving_digits(config())}
    assert {source.entry(i).name for i in range(20)} == set(true)
    for i in range(20):
        item, digit = source.read(i), true[source.entry(i).name]
        assert torch.equal(item.media, again.read(i).media)
        assert item.entry.label == str(digit.label)
        assert item.media.shape == source.shape(i) == (1, 16, 32, 32)
        assert (item.media - digit.clip).abs().mean() < 0.01  # what H.264 loses
        seen = centres_of_mass((item.media.mean(0) + 1) / 2)
        assert (seen - digit.centres).abs().max() < 0.3
    assert len(list(tmp_path.iterdir())) == 1


def test_all_digits_come_and_held_out_ones_are_others() -> None:
    train, held_out = list(moving_digits(config(count=300))), list(moving_digits(config(), "held-out"))
    counts = Counter(digit.label for digit in train)
    assert sorted(counts) == list(range(10))
    assert max(counts.values()) < 60
    assert len(held_out) == HELD_OUT
    assert len({round(d.centres[0, 0].item(), 5) for d in (*train, *held_out)}) == 300 + HELD_OUT
    again = next(moving_digits(config(count=300)))
    assert torch.equal(again.clip, train[0].clip)
    assert not torch.equal(next(moving_digits(config(seed=1))).centres, train[0].centres)


def test_held_out_clips_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("djepa_mm.data.sources.moving_digits.HELD_OUT", 5)
    corpus, held_out = config(tmp_path, count=5).build(), config(tmp_path, count=5).build_held_out()
    assert len(held_out) == len(corpus) == 5
    assert held_out.root != corpus.root


def test_other_settings_are_another_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: list[dict[str, Any]] = [{}, {"seed": 1}, {"count": 21}, {"size": [32, 40]}, {"max_speed": 2.0}]
    assert len({config(tmp_path, **change).folder for change in changes}) == 5
    assert config(tmp_path, reader="pyav").folder == config(tmp_path).folder
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert config().folder.parent == tmp_path / "djepa-mm"


def test_an_interrupted_corpus_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        assert total == 20
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_digits(config(), "train", tmp_path / "corpus", interrupt)
    assert not list(tmp_path.iterdir())


def test_settings_that_cannot_be() -> None:
    with pytest.raises(UserError, match=r"data\.size: \[16, 32\] is too small"):
        next(moving_digits(config(size=[16, 32])))
    with pytest.raises(UserError, match=r"data\.min_speed: 4 is more"):
        next(moving_digits(config(min_speed=4.0)))
