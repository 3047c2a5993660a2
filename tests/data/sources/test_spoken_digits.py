from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from djepa_mm.data.sources.spoken_digits import WORDS, SpokenDigitsConfig, make_corpus, speak, unseen_strings
from djepa_mm.types import UserError

pytest.importorskip("espeakng_loader")


def config(root: Path | None = None, **options: int) -> SpokenDigitsConfig:
    return SpokenDigitsConfig(source="spoken-digits", root=root and str(root), **{"count": 30, **options})


def test_words_become_sound() -> None:
    (one, rate_hz), (three, _) = speak(["seven", "seven seven seven"])
    assert rate_hz == 22050
    assert one.dtype == np.int16
    assert 0.2 < len(one) / rate_hz < 1.0
    assert 2 < len(three) / len(one) < 3.5
    assert 1_000 < np.abs(one.astype(int)).max() < 32_767  # heard, and not clipped
    assert all(len(samples) for samples, _ in speak(WORDS))


def test_the_first_use_makes_the_corpus_and_the_second_reads_it(tmp_path: Path) -> None:
    source = config(tmp_path).build()
    assert len(source) == 30
    assert not any(source.left_out.values())
    made = [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*.wav"))]
    again = config(tmp_path).build()
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*.wav"))] == made
    for i in range(30):
        item = source.read(i)
        assert item.entry.text == again.entry(i).text
        assert set(item.entry.text.split()) <= set(WORDS)
        assert item.media.shape == source.shape(i)
        assert 0.05 < item.media.abs().max() <= 1
    assert len(list(tmp_path.iterdir())) == 1  # nothing half-made lies about


def test_other_settings_are_another_corpus(tmp_path: Path) -> None:
    folders = {config(tmp_path, **o).folder for o in ({}, {"seed": 1}, {"count": 31}, {"max_words": 4})}
    assert len(folders) == 4


def test_the_cache_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert config().folder.parent == tmp_path / "djepa-mm"


def test_an_interrupted_corpus_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        assert total == 30
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_corpus(["one two"] * 30, tmp_path / "corpus", interrupt)
    assert not list(tmp_path.iterdir())
    make_corpus(["one two"] * 30, tmp_path / "corpus")
    assert len((tmp_path / "corpus" / "metadata.csv").read_text().splitlines()) == 30


def test_lengths_and_digits_are_evenly_drawn() -> None:
    """Through `unseen_strings`, which draws as the corpus does; at 4 to 6 words hardly one comes twice."""
    texts = unseen_strings(config(), 3000, 4, 6, seed=0)
    lengths = Counter(len(text.split()) for text in texts)
    digits = Counter(word for text in texts for word in text.split())
    assert set(lengths) == {4, 5, 6}
    assert all(abs(n / 1000 - 1) < 0.15 for n in lengths.values())
    assert all(abs(digits[word] / 1500 - 1) < 0.15 for word in WORDS)


def test_unseen_strings_are_new_and_different(tmp_path: Path) -> None:
    settings = config(tmp_path, count=60, max_words=2)
    source = settings.build()
    seen = {source.entry(i).text for i in range(len(source))}
    rest = 110 - len(seen)
    unseen = unseen_strings(settings, rest, 1, 2, seed=3)  # every single one that is left
    assert len({*unseen, *seen}) == 110
    assert unseen_strings(settings, 5, 1, 2, seed=3) == unseen[:5]
    with pytest.raises(UserError, match=f"only {rest} strings"):
        unseen_strings(settings, rest + 1, 1, 2, seed=3)


def test_fewest_words_cannot_be_more_than_most() -> None:
    with pytest.raises(UserError, match=r"data\.min_words: 3"):
        config(min_words=3, max_words=2).build()


def test_held_out_strings_are_unseen_and_stay_the_same(tmp_path: Path) -> None:
    settings = SpokenDigitsConfig(source="spoken-digits", root=str(tmp_path), count=20, max_words=3)
    corpus, held_out = settings.build(), settings.build_held_out()
    texts = {held_out.entry(n).text for n in range(len(held_out))}
    assert len(texts) == len(held_out) > 50
    assert not texts & {corpus.entry(n).text for n in range(len(corpus))}
    again = settings.build_held_out()
    assert [again.entry(n).text for n in range(len(again))] == [held_out.entry(n).text for n in range(len(held_out))]
