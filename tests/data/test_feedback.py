"""Data feedback: what is counted and thinned, what scores move; the same for all ranks, workers and resumed runs."""

from __future__ import annotations

import io
import json
import math
import tarfile
from collections import Counter
from functools import cache
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from djepa_mm.data.batches import Share
from djepa_mm.data.corpus import Corpus, Cursor, merge
from djepa_mm.data.feedback import MOST, OTHERS, Feedback, check_classes, measures, merged
from djepa_mm.data.sources.shards import ShardsConfig
from djepa_mm.data.streams import StreamCorpus, open_corpus
from djepa_mm.data.words import Words
from djepa_mm.recipe.load import load_recipe
from djepa_mm.recipe.schema import BatchConfig, FeedbackConfig, Recipe
from djepa_mm.types import Entry, Item, UserError

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
UNIFORM = FeedbackConfig(wanted={"colours": "uniform"})


def zipf(count: int, seed: int = 0) -> list[str]:
    """Texts whose colours become rarer in their order."""
    weights = 1 / np.arange(1, len(COLOURS) + 1)
    drawn = np.random.default_rng(seed).choice(len(COLOURS), count, p=weights / weights.sum())
    return [f"a {COLOURS[n]} circle" for n in drawn]


# --- words


def test_the_longest_word_wins() -> None:
    words = Words({})
    assert words("A dark blue circle left of two Blue squares, black-and-white") == (
        "colours/dark blue", "shapes/circle", "spatial/left of", "numerals/two", "colours/blue", "shapes/square",
        "colours/black and white",
    )  # fmt: skip
    assert words("to the left of the left side, dark") == ("spatial/left of",)
    assert words("") == words("reddish !") == ()


def test_recipes_give_more_words() -> None:
    words = Words({"animals": ("cat=cats=little tiger", "überhund"), "colours": ("dark=night",)})
    assert words("cats, a little tiger and an Überhund") == ("animals/cat", "animals/überhund")
    assert words("night, dark blue") == ("colours/dark", "colours/dark blue")
    assert words.classes["cat"] == ["animals"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"wanted": {"colors": "uniform"}}, r"^feedback\.wanted\.colors: no such class of attributes; .*colours"),
        ({"wanted": {"colours": {"redd": 0.5}}}, r"^feedback\.wanted\.colours: 'redd' is none of its names"),
        ({"wanted": {"colours": {"red": 0.5, "blue": 0.6}}}, r"add up to 1\.1"),
        ({"wanted": {"size": "uniform"}}, "drawn at each reading"),
        (
            {"wanted": {"colours": {"red": -0.5}}},
            r"wanted\.colours\.red: expected greater than or equal to 0",
        ),
        ({"words": {"aspect": ["1:1"]}}, r"feedback\.words\.aspect: such a class is there"),
        ({"words": {"a/b": ["c"]}}, "a class without /"),
        ({"judged": 4}, "needs frequencies to move"),
    ],
)
def test_mistakes_are_named(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_classes(load_recipe("digits", {"feedback": keys}).feedback)  # type: ignore[arg-type]


# --- one reader


def test_what_is_over_its_frequency_is_taken_at_every_second_visit() -> None:
    feedback = Feedback(FeedbackConfig(wanted={"colours": {"red": 0.1}}))
    for _ in range(5):
        feedback.observe(["colours/red"], taken=True)
        feedback.observe(["colours/blue"], taken=True)
    names = [f"shard/{n}" for n in range(2000)]
    taken = [[feedback.accepts(["colours/red"], name, epoch) for name in names] for epoch in range(4)]
    for one, next_one in pairwise(taken):
        assert abs(sum(one) / len(one) - 0.5) < 0.05
        assert all(a != b for a, b in zip(one, next_one, strict=True))  # never left out twice running
    assert all(feedback.accepts(["colours/blue", "shapes/circle"], name, 0) for name in names)
    often = Feedback(FeedbackConfig(wanted={"colours": {"red": 0.1}}, visits=4), feedback.state())
    seen = [sum(often.accepts(["colours/red"], name, epoch) for epoch in range(3, 7)) for name in names]
    assert set(seen) == {1}


def test_a_rare_word_keeps_a_frequent_one() -> None:
    feedback = Feedback(FeedbackConfig(wanted={"colours": "uniform", "shapes": "uniform"}))
    for colour, shape, count in (
        ("red", "circle", 60),
        ("pink", "circle", 2),
        ("red", "ring", 20),
        ("blue", "ring", 20),
    ):
        for _ in range(count):
            feedback.observe([f"colours/{colour}", f"shapes/{shape}"], taken=True)
    names = [f"shard/{n}" for n in range(20)]

    def taken(*attributes: str) -> int:
        return sum(feedback.accepts(attributes, name, 0) for name in names)

    assert taken("colours/pink", "shapes/circle") == taken("shapes/ring") == 20
    assert 0 < taken("colours/red", "shapes/circle") == taken("shapes/circle", "textures/wooden") < 20


def test_frequencies_of_a_class() -> None:
    table = Feedback(FeedbackConfig(wanted={"colours": {"red": 0.5, "pink": 0.1}}))
    for name in ("red", "blue", "green"):
        table.observe([f"colours/{name}", "shapes/circle"], taken=False)
    expected = {"colours/red": 5 / 9, "colours/blue": 2 / 9, "colours/green": 2 / 9}  # no pink has come
    assert table.shares("colours") == pytest.approx(expected)
    assert table.offered == {"colours/red": 1, "shapes/circle": 3, "colours/blue": 1, "colours/green": 1}
    assert not table.sampled


def test_scores_move_frequencies() -> None:
    feedback = Feedback(FeedbackConfig(wanted={"colours": "uniform", "label": "uniform"}, step=2))
    feedback.observe(["colours/red", "colours/blue", "label/a", "label/b"], taken=True)
    feedback.move({"red": 0.9, "blue": 0.5, "label/a": 0.1, "circle": 0.0, "unheard of": 1.0})
    assert feedback.factors == pytest.approx(
        {"colours/red": math.exp(-0.4), "colours/blue": math.exp(0.4), "label/a": 1.0}
    )
    assert feedback.shares("colours")["colours/blue"] == pytest.approx(1 / (1 + math.exp(-0.8)))
    assert not feedback.recent
    assert feedback.sampled["colours/red"] == 1
    for _ in range(9):
        feedback.move({"red": 1.0, "blue": 0.0})
    assert (feedback.factors["colours/red"], feedback.factors["colours/blue"]) == (0.25, 4.0)
    again = Feedback(feedback.config, json.loads(json.dumps(feedback.state())))
    assert again.state() == feedback.state()
    assert again.shares("colours") == feedback.shares("colours")


def test_rare_words_become_more_frequent_and_memory_is_bounded() -> None:
    feedback, texts = Feedback(UNIFORM), zipf(8000)
    for n, text in enumerate(texts):
        attributes = feedback.attributes(Entry(name=str(n), text=text, tags=(("source", f"site {n}"),)))
        feedback.observe(attributes, taken=feedback.accepts(attributes, str(n), 0))
    before, after = (
        {name: counts[f"colours/{name}"] / sum(counts[f"colours/{c}"] for c in COLOURS) for name in COLOURS}
        for counts in (feedback.offered, feedback.sampled)
    )
    assert after["red"] < 0.75 * before["red"]
    assert after["pink"] > 1.3 * before["pink"]
    sources = [name for name in feedback.offered if name.startswith("source/")]
    assert len(sources) == MOST + 1
    assert feedback.offered[f"source/{OTHERS}"] == 8000 - MOST


def test_sizes_are_counted_in_classes() -> None:
    assert measures((3, 256, 256)) == ("size/256", "aspect/1:1")
    assert measures((3, 8, 144, 256)) == ("size/181", "aspect/16:9")
    assert measures((16000,)) == ()


# --- corpora


class Texts:
    """Grey pictures of 4×4 pixels with texts."""

    classes = ("0",)

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def entry(self, index: int) -> Entry:
        return Entry(name=f"item {index}", label="0", text=self.texts[index])

    def shape(self, index: int) -> tuple[int, ...]:
        return (1, 4, 4 + 4 * (index % 2))

    def read(self, index: int) -> Item:
        return Item(entry=self.entry(index), media=torch.full(self.shape(index), index / len(self)))


@cache
def recipe(condition: str) -> Recipe:
    """Of pictures in one token for 4×4 pixels."""
    vary = {"tokenizer.vary": True, "tokenizer.patch": 4, "model.positions": "rotary", "sample.guidance": 1.0}
    return load_recipe("digits", {**vary, "condition": {"kind": condition}})


def indexed(texts: list[str], feedback: FeedbackConfig | None = UNIFORM, workers: int = 0) -> Corpus:
    kind, source = recipe("class").condition.build(), Texts(texts)
    kind.bind(source)
    batch = BatchConfig(size=8, workers=workers)
    return Corpus(source, recipe("class").tokenizer.build(), kind, batch, feedback=feedback, seed=1)


def test_a_corpus_by_index_is_thinned_and_each_item_comes_within_two_epochs() -> None:
    texts, counted = zipf(400), {}
    corpus = indexed(texts)
    found = []
    for epoch in range(4):
        plan = corpus.plan(epoch, counted=counted)
        found.append(list(chain(*plan)))
        feedback = Feedback(UNIFORM, counted)
        for index in found[-1]:
            feedback.observe(feedback.attributes(corpus.source.entry(index)), taken=True)
        counted = feedback.state()
    for one, other in pairwise(found):
        assert len(one) < 400
        assert set(one) | set(other) == set(range(400))
    counts = Counter(texts[index] for epoch in found for index in epoch)
    red, pink = "a red circle", "a pink circle"
    assert counts[pink] / counts[red] > 1.4 * texts.count(pink) / texts.count(red)
    plain = indexed(texts, FeedbackConfig()).plan(0)  # statistics alone leave nothing out
    assert sorted(chain(*plain)) == list(range(400))


def content(portions: Any) -> list[Any]:
    return [None if p is None else (p.places, p.batch.tokens.tolist()) for p in portions]


def test_a_corpus_by_index_goes_on_where_it_stood() -> None:
    texts, scores = zipf(64), {"red": 0.1, "blue": 0.9}
    corpus = indexed(texts)

    def run(stops: set[int], workers: int = 0) -> tuple[list[Any], Cursor]:
        """20 batches, frequencies moved behind the 4th; begun anew from JSON behind each stop."""
        found, cursor = [], Cursor()
        batches = corpus.batches(cursor)
        for n in range(20):
            portions, cursor = next(batches)
            found.append(content(portions))
            if n == 4:
                cursor = corpus.moved(cursor, scores)
            if n in stops or n == 4:
                cursor = Cursor(**json.loads(json.dumps(cursor.state())))
                batches = indexed(texts, workers=workers).batches(cursor)
        return found, cursor

    whole, last = run(set())
    again, same = run({3, 12}, workers=1)
    assert again == whole
    assert json.dumps(same.state()) == json.dumps(last.state())
    counted = merged([state for state in last.feedback if state is not None])
    assert counted["factors"]["colours/red"] > 1 > counted["factors"]["colours/blue"]
    batches = [batch for portions in whole for _, batch in portions]
    assert counted["sampled"]["shapes/circle"] == sum(map(len, batches))
    assert counted["sampled"]["aspect/1:1"] + counted["sampled"]["aspect/2:1"] == counted["sampled"]["shapes/circle"]
    for rank in (0, 1):  # two processes count alike
        *_, (_, cursor) = islice(corpus.batches(Cursor(), Share(rank=rank, world=2)), 5)
        *_, (_, alone) = islice(corpus.batches(Cursor()), 5)
        assert cursor == alone


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four of 24 items each: a number as a shade of grey, a text, and a style."""
    folder, texts = tmp_path_factory.mktemp("shards"), zipf(96)
    for shard in range(4):
        with tarfile.open(folder / f"{shard:03d}.tar", "w") as out:
            for n in range(24 * shard, 24 * shard + 24):
                png = io.BytesIO()
                Image.fromarray(np.full((4, 4), n, np.uint8)).save(png, "PNG")
                said = {"caption": texts[n], "style": "photo" if n % 4 else "sketch"}
                for suffix, raw in (("png", png.getvalue()), ("json", json.dumps(said).encode())):
                    info = tarfile.TarInfo(f"{n:04d}.{suffix}")
                    info.size = len(raw)
                    out.addfile(info, io.BytesIO(raw))
    return folder


def stream(shards: Path, workers: int = 0, feedback: FeedbackConfig | None = UNIFORM) -> StreamCorpus:
    keys = {"media": "picture", "channels": 1, "readers": 4, "shuffle": 8, "size": (4, 4)}
    source = ShardsConfig(source="shards", urls=str(shards), **keys).build()
    tokenizer, kind = recipe("none").tokenizer.build(), recipe("none").condition.build()
    batch = BatchConfig(size=8, workers=workers)
    found = open_corpus(source, tokenizer, kind, batch, feedback=feedback, seed=3)
    assert isinstance(found, StreamCorpus)
    return found


def test_a_stream_is_the_same_for_all_ranks_workers_and_resumed_runs(shards: Path) -> None:
    scores = {"red": 0.1, "blue": 0.9}

    def run(world: int = 1, workers: int = 0, stops: tuple[int, ...] = ()) -> tuple[list[Any], dict[str, Any]]:
        """24 batches, frequencies moved behind the 6th; begun anew from JSON behind each stop."""
        shares = [Share(rank=rank, world=world) for rank in range(world)]
        corpora, found = [stream(shards, workers) for _ in shares], []
        readers = [corpus.batches(Cursor(), share) for corpus, share in zip(corpora, shares, strict=True)]
        for n in range(24):
            turns = [next(reader) for reader in readers]
            found.append([item for portions, _ in turns for p in portions for item in _items(p)])
            cursors = [cursor for _, cursor in turns]
            if n == 6:
                cursors = [corpora[0].moved(cursor, scores) for cursor in cursors]
            if n == 6 or n in stops:
                whole = Cursor(**json.loads(json.dumps(merge(cursors).state())))
                readers = [corpus.batches(whole, share) for corpus, share in zip(corpora, shares, strict=True)]
        return found, json.loads(json.dumps(merge(cursors).state()))

    alone, state = run()
    assert run(workers=1, stops=(4, 5, 16)) == (alone, state)
    assert run(world=2) == (alone, state)
    together = merged(state["feedback"])
    assert together["sampled"]["style/photo"] + together["sampled"]["style/sketch"] == 24 * 8
    assert together["sampled"]["size/4"] == 24 * 8 < together["offered"]["shapes/circle"]
    assert together["factors"]["colours/red"] > 1
    assert {value for batch in alone for _, value in batch} == set(range(96))


def _items(portion: Any) -> list[tuple[int, int]]:
    """Places and shades."""
    shades = ((portion.batch.tokens[:, 0, 0] + 1) / 2 * 255).round().int().tolist()
    return list(zip(portion.places, shades, strict=True))


def test_without_feedback_nothing_is_counted(shards: Path) -> None:
    _, cursor = next(stream(shards, feedback=None).batches(Cursor()))
    assert "feedback" not in cursor.state()
    _, cursor = next(indexed(zipf(20), None).batches(Cursor()))
    assert "feedback" not in cursor.state()
