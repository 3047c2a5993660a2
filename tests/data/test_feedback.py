"""Data feedback: what is counted, what is thinned, what scores move; the same for all ranks, workers and resumed runs."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_streams import tar

from djepa_mm.data.batches import Share
from djepa_mm.data.corpus import Corpus, Cursor, merge
from djepa_mm.data.feedback import MOST, OTHERS, Feedback, check_classes, measures, merged
from djepa_mm.data.sources.shards import ShardsConfig
from djepa_mm.data.streams import StreamCorpus, open_corpus
from djepa_mm.data.words import Words
from djepa_mm.recipe.load import load_recipe
from djepa_mm.recipe.schema import BatchConfig, FeedbackConfig
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
    for one, next_one in zip(taken, taken[1:], strict=False):
        assert abs(sum(one) / len(one) - 0.5) < 0.05
        assert all(a != b for a, b in zip(one, next_one, strict=True))  # never left out twice running
    assert all(feedback.accepts(["colours/blue", "shapes/circle"], name, 0) for name in names)
    often = Feedback(FeedbackConfig(wanted={"colours": {"red": 0.1}}, visits=4), feedback.state())
    seen = [sum(often.accepts(["colours/red"], name, epoch) for epoch in range(3, 7)) for name in names]
    assert set(seen) == {1}


def test_frequencies_of_a_class() -> None:
    table = Feedback(FeedbackConfig(wanted={"colours": {"red": 0.5, "pink": 0.1}}))
    for name in ("red", "blue", "green"):
        table.observe([f"colours/{name}", "shapes/circle"], taken=False)
    assert table.shares("colours") == pytest.approx({"colours/red": 0.5, "colours/blue": 0.2, "colours/green": 0.2})
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
    assert not feedback.recent and feedback.sampled["colours/red"] == 1
    for _ in range(9):
        feedback.move({"red": 1.0, "blue": 0.0})
    assert (feedback.factors["colours/red"], feedback.factors["colours/blue"]) == (0.25, 4.0)
    again = Feedback(feedback.config, json.loads(json.dumps(feedback.state())))
    assert again.state() == feedback.state() and again.shares("colours") == feedback.shares("colours")


def test_rare_words_become_more_frequent_and_memory_is_bounded() -> None:
    feedback, texts = Feedback(UNIFORM), zipf(8000)
    for n, text in enumerate(texts):
        attributes = feedback.attributes(Entry(name=str(n), text=text, tags=(("source", f"site {n}"),)))
        feedback.observe(attributes, taken=feedback.accepts(attributes, str(n), 0))
    before, after = (
        {name: counts[f"colours/{name}"] / sum(counts[f"colours/{c}"] for c in COLOURS) for name in COLOURS}
        for counts in (feedback.offered, feedback.sampled)
    )
    assert after["red"] < 0.75 * before["red"] and after["pink"] > 1.3 * before["pink"]
    sources = [name for name in feedback.offered if name.startswith("source/")]
    assert len(sources) == MOST + 1 and feedback.offered[f"source/{OTHERS}"] == 8000 - MOST


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


def indexed(texts: list[str], feedback: FeedbackConfig | None = UNIFORM, workers: int = 0) -> Corpus:
    recipe = load_recipe("digits", {"tokenizer.vary": True, "tokenizer.patch": 4})
    kind = recipe.condition.build()
    source = Texts(texts)
    kind.bind(source)
    batch = BatchConfig(size=8, workers=workers)
    return Corpus(source, recipe.tokenizer.build(), kind, batch, feedback=feedback, seed=1)


def indices(corpus: Corpus, epochs: int) -> list[list[int]]:
    """Of each epoch, read through the batches."""
    found: list[list[int]] = [[] for _ in range(epochs)]
    for portions, cursor in corpus.batches(Cursor()):
        if cursor.epoch == epochs:
            return found
        for portion in portions:
            assert portion is not None
            found[cursor.epoch] += [round(len(corpus.source) * float(row[0, 0])) for row in portion.batch.tokens]
    raise AssertionError


def test_a_corpus_by_index_is_thinned_and_each_item_comes_within_two_epochs() -> None:
    texts = zipf(400)
    found = indices(indexed(texts), 4)
    for epoch in range(3):
        assert len(found[epoch]) < 400
        assert set(found[epoch]) | set(found[epoch + 1]) == set(range(400))
    counts = Counter(texts[index] for epoch in found for index in epoch)
    assert counts[texts[0]] / sum(counts.values()) != texts.count(texts[0]) / 400
    red, pink = "a red circle", "a pink circle"
    assert counts[pink] / counts[red] > 1.5 * texts.count(pink) / texts.count(red)
    plain = indices(indexed(texts, FeedbackConfig()), 1)  # statistics alone leave nothing out
    assert sorted(plain[0]) == list(range(400))


def content(portions: Any) -> list[Any]:
    return [None if p is None else (p.places, p.batch.tokens.tolist()) for p in portions]


def test_a_corpus_by_index_goes_on_where_it_stood() -> None:
    texts, scores = zipf(100), {"red": 0.1, "blue": 0.9}
    corpus = indexed(texts)

    def run(stops: set[int], workers: int = 0) -> tuple[list[Any], Cursor]:
        """40 batches, frequencies moved behind the 7th; begun anew from JSON behind each stop."""
        found, cursor = [], Cursor()
        batches = corpus.batches(cursor)
        for n in range(40):
            portions, cursor = next(batches)
            found.append(content(portions))
            if n == 7:
                cursor = corpus.moved(cursor, scores)
            if n in stops or n == 7:
                cursor = Cursor(**json.loads(json.dumps(cursor.state())))
                batches = indexed(texts, workers=workers).batches(cursor)
        return found, cursor

    whole, last = run(set())
    again, same = run({3, 9, 12, 30}, workers=2)
    assert again == whole and same.state() == last.state()
    assert last.feedback[0]["factors"]["colours/red"] > 1 > last.feedback[0]["factors"]["colours/blue"]  # type: ignore[index]
    sampled = merged([state for state in last.feedback if state is not None])["sampled"]
    assert sum(sampled[f"colours/{name}"] for name in COLOURS) == 40 * 8 - 4 * (100 % 8) or sampled["shapes/circle"] > 250
    assert sampled["aspect/1:1"] + sampled["aspect/2:1"] == sampled["shapes/circle"]
    for rank in (0, 1):  # two processes count alike
        parts = list(islice(corpus.batches(Cursor(), Share(rank=rank, world=2)), 30))
        alone = list(islice(corpus.batches(Cursor()), 30))
        assert parts[-1][1].state() == alone[-1][1].state()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four of 40 items each: a number as a shade of grey, a text, and a style."""
    folder, texts = tmp_path_factory.mktemp("shards"), zipf(160)
    for shard in range(4):
        files: dict[str, Any] = {}
        for n in range(40 * shard, 40 * shard + 40):
            out = io.BytesIO()
            Image.fromarray(np.full((8, 8), n, np.uint8)).save(out, "PNG")
            said = {"caption": texts[n], "style": "photo" if n % 4 else "sketch"}
            files |= {f"{n:04d}.png": out.getvalue(), f"{n:04d}.json": json.dumps(said).encode()}
        tar(folder / f"{shard:03d}.tar", files)
    return folder


def stream(shards: Path, workers: int = 0, feedback: FeedbackConfig | None = UNIFORM) -> StreamCorpus:
    recipe = load_recipe("digits", {"condition": {"kind": "none"}, "sample.guidance": 1.0})
    source = ShardsConfig(
        source="shards", urls=str(shards), media="picture", channels=1, readers=4, shuffle=8, size=(8, 8)
    ).build()
    batch = BatchConfig(size=8, workers=workers)
    found = open_corpus(
        source, recipe.tokenizer.build(), recipe.condition.build(), batch, feedback=feedback, seed=3
    )
    assert isinstance(found, StreamCorpus)
    return found


def test_a_stream_is_the_same_for_all_ranks_workers_and_resumed_runs(shards: Path) -> None:
    scores = {"red": 0.1, "blue": 0.9}

    def run(world: int = 1, workers: int = 0, stops: tuple[int, ...] = ()) -> tuple[list[Any], dict[str, Any]]:
        """30 batches, frequencies moved behind the 11th; begun anew from JSON behind each stop."""
        shares = [Share(rank=rank, world=world) for rank in range(world)]
        cursors, found = [Cursor()] * world, []
        readers = [stream(shards, workers).batches(cursor, share) for cursor, share in zip(cursors, shares, strict=True)]
        for n in range(30):
            turns = [next(reader) for reader in readers]
            found.append([row for portions, _ in turns for row in content(portions)])
            cursors = [cursor for _, cursor in turns]
            if n == 11:
                cursors = [stream(shards).moved(cursor, scores) for cursor in cursors]
            if n == 11 or n in stops:
                whole = Cursor(**json.loads(json.dumps(merge(cursors).state())))
                readers = [stream(shards, workers).batches(whole, share) for share in shares]
        return [sum((list(zip(*part, strict=True)) for part in one), []) for one in found], merge(cursors).state()

    alone, state = run()
    assert run(stops=(4, 5, 20)) == (alone, state)
    assert run(workers=2, stops=(8,)) == (alone, state)
    assert run(world=2) == (alone, state)
    together = merged(state["feedback"])
    assert together["sampled"]["style/photo"] + together["sampled"]["style/sketch"] == 30 * 8
    assert together["sampled"]["size/8"] == 240 < sum(together["offered"][f"colours/{name}"] for name in COLOURS)
    assert together["factors"]["colours/red"] > 1
    values = [round(255 * (row[1][0][0] + 1) / 2) for batch in alone for row in batch]
    assert set(values) == set(range(160))


def test_without_feedback_nothing_is_counted(shards: Path) -> None:
    _, cursor = next(stream(shards, feedback=None).batches(Cursor()))
    assert "feedback" not in cursor.state()
    _, cursor = next(indexed(zipf(20), None).batches(Cursor()))
    assert cursor.state() == {"epoch": 0, "batch": 1, "readers": ()}
