"""Read a whole corpus once and say what is in it and what is broken."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor

from djepa_mm.conditions.none import NoConditionConfig
from djepa_mm.data.reading import KeptCorpus
from djepa_mm.data.streams import open_corpus
from djepa_mm.recipe.kinds import AnyRecipe, with_tokenizer
from djepa_mm.recipe.schema import Recipe
from djepa_mm.types import (
    FOLDERS,
    ConditionKind,
    Entry,
    MediaSpec,
    Progress,
    Source,
    SourceConfig,
    Stream,
    Tokenizer,
    UserError,
)

MOST_BROKEN = 1000  # items named
MOST_NAMED = 20  # classes, kinds of files and sizes
SHOWN = 5  # names of items beside a remark
MUCH = 2.0  # times
SILENCE = 1e-3  # of full scale: a sound whose peak is below -60 dB
LOUD, FLAT = 0.5, 0.999  # of full scale and of the peak: samples that may be cut off
CLIPPED = 1e-4  # share of the samples that may lie inside of cut peaks


def check_media(source: Source | Stream, tokenizer: Tokenizer) -> None:
    """Raises UserError where a corpus' media are not what the tokenizer takes: sound at its rate, or none."""
    gives, takes = (getattr(one, "sample_rate_hz", None) for one in (source, tokenizer.media))
    if gives != takes:
        given, taken = ("no sound" if rate is None else f"sound at {rate} Hz" for rate in (gives, takes))
        advice = "make data.sample_rate_hz and tokenizer.sample_rate_hz agree"
        if None in (gives, takes):
            advice = "choose another data.source or another tokenizer.kind"
        raise UserError(f"data gives {given}, the tokenizer takes {taken}: {advice}")


def held_out_and_learned(data: SourceConfig, learned_from: SourceConfig) -> int:
    """How many of the items that a corpus holds out are in another one, from which something has learned already: as
    their files' places tell, or where items have none, the sides of the same corpus. 0 where neither tells."""
    data, learned_from = (_from_the_root(one.origin) for one in (data, learned_from))
    if data == learned_from or data.made or learned_from.made:
        return 0
    if (held_out := data.build_held_out()) is None:
        return 0
    if places := {held_out.entry(index).path for index in range(len(held_out))} - {None}:
        learned = learned_from.build()
        if isinstance(learned, Stream):
            return 0
        return sum(learned.entry(index).path in places for index in range(len(learned)))
    sides = {"split": getattr(data, "split", None)}
    same = type(data) is type(learned_from) and learned_from.model_copy(update=sides) == data
    return len(held_out) if same and learned_from.build_held_out() is None else 0


def _from_the_root(data: SourceConfig) -> SourceConfig:
    """The same corpus, whatever the current folder is and whichever links lead to it."""
    folders = {name: getattr(data, name, None) for name in FOLDERS}
    return data.model_copy(
        update={name: str(Path(one).expanduser().resolve()) for name, one in folders.items() if isinstance(one, str)}
    )


def check_corpus(recipe: AnyRecipe, progress: Progress) -> tuple[Table, bool]:
    """Table to print, and whether every item can be read. Raises UserError for a recipe without a tokenizer."""
    recipe = with_tokenizer(recipe)
    source, tokenizer = recipe.data.build(), recipe.tokenizer.build()
    condition = (recipe.condition if isinstance(recipe, Recipe) else NoConditionConfig(kind="none")).build()
    check_media(source, tokenizer)
    if isinstance(source, KeptCorpus):
        source.check(recipe.tokenizer, tokenizer)
    condition.bind(source)
    lenient = recipe.batch.model_copy(update={"max_broken_share": 1.0})
    corpus = open_corpus(source, tokenizer, condition, lenient)
    read: list[tuple[Entry, Any, MediaSpec]] = []
    remarks: dict[str, list[str]] = defaultdict(list)  # names of items by what there is to say of them
    sizes: Counter[tuple[int, int]] = Counter()
    for item in corpus.each(progress):
        read.append((item.entry, item.value, item.spec))
        if item.media is not None and item.media.dim() == 1:
            for remark in sound_remarks(item.media):
                remarks[remark].append(item.entry.name)
        if item.media is not None and item.file_size is not None:
            height, width = item.file_size
            sizes[height, width] += 1
            if height < item.media.shape[-2] or width < item.media.shape[-1]:
                remarks["smaller than data.size, so enlarged"].append(item.entry.name)
    for entry, remark in _of_length(condition, read):
        remarks[remark].append(entry.name)

    counts = sorted(spec.num_tokens for _, _, spec in read)
    table = Table("what", "value", title=f"{recipe.name}: corpus")
    table.add_row("items", f"{corpus.items:,}")
    for reason, number in getattr(source, "left_out", {}).items():
        table.add_row(f"left out, {reason}", f"{number:,}")
    entries = [entry for entry, _, _ in read]
    _add_counts(table, "class", Counter(entry.label for entry in entries if entry.label is not None))
    _add_counts(table, "file", Counter(entry.path.suffix.lower() for entry in entries if entry.path is not None))
    _add_counts(table, "pixels", Counter({f"{width}×{height}": n for (height, width), n in sizes.items()}))
    if counts:
        table.add_row("tokens an item, least / median / most", _spread(counts))
        table.add_row("tokens in all", f"{sum(counts):,}")
    if tokenizer.media.per_second is not None:
        length = sum(spec.shape[-3] if len(spec.shape) > 1 else spec.shape[0] for _, _, spec in read)
        table.add_row("duration", f"{length / tokenizer.media.per_second / 60:,.1f} min")
    for what, value in condition.summary(entries).items():
        table.add_row(what, value)
    for what, names in remarks.items():
        more = ", …" if len(names) > SHOWN else ""
        table.add_row(what, f"{len(names):,}: {', '.join(names[:SHOWN])}{more}")
    table.add_row("broken", f"{len(corpus.broken):,}")
    for name, reason in islice(corpus.broken.items(), MOST_BROKEN):
        table.add_row(f"  {name}", reason)
    if (unnamed := len(corpus.broken) - MOST_BROKEN) > 0:
        table.add_row("  and more", f"{unnamed:,}")
    return table, not corpus.broken


def sound_remarks(sound: Tensor) -> list[str]:
    """What is amiss with a readable sound (samples,) in [-1, 1]."""
    level = sound.abs()
    peak = level.max().item()
    if peak < SILENCE:
        return ["silent"]
    flat = (level >= peak * FLAT) & (level >= LOUD)
    runs = flat[2:] & flat[1:-1] & flat[:-2]  # a peak of a sound that is whole hardly lasts three samples
    return ["clipped"] if runs.sum() > CLIPPED * len(sound) else []


def _of_length(
    condition: ConditionKind[Any], read: Sequence[tuple[Entry, Any, MediaSpec]]
) -> Iterator[tuple[Entry, str]]:
    """Items that last much less or more than others of such a condition, and how much."""
    if not read:
        return
    condition.fit([value for _, value, _ in read], [spec.num_tokens for _, _, spec in read])
    for entry, value, spec in read:
        expected = condition.length(value)
        if expected is None:
            continue
        if spec.num_tokens * MUCH < expected:
            yield entry, f"less than 1/{MUCH:g} as long as such a text usually is"
        elif spec.num_tokens > expected * MUCH:
            yield entry, f"more than {MUCH:g} times as long as such a text usually is"


def _add_counts(table: Table, what: str, counts: Counter[str]) -> None:
    """A row for each of the most frequent."""
    for name, count in counts.most_common(MOST_NAMED):
        table.add_row(f"{what} {name}", f"{count:,}")
    if rest := counts.most_common()[MOST_NAMED:]:
        table.add_row(f"{what}: {len(rest):,} more", f"{sum(n for _, n in rest):,}")


def _spread(ordered: Sequence[int]) -> str:
    return f"{ordered[0]} / {ordered[len(ordered) // 2]} / {ordered[-1]}"
