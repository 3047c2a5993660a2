"""Read a whole corpus once and say what is in it and what is broken."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from rich.table import Table
from torch import Tensor

from djepa_mm.data.batches import Encoded
from djepa_mm.data.corpus import Corpus
from djepa_mm.data.reading import Kept, KeptCorpus
from djepa_mm.recipe.schema import Recipe
from djepa_mm.types import ConditionKind, MediaSpec, Progress, Source, Tokenizer, UserError

MOST_NAMED = 20  # classes, kinds of files and sizes
SHOWN = 5  # names of items beside a remark
MUCH = 2.0  # times
SILENCE = 1e-3  # of full scale: a sound whose peak is below -60 dB
LOUD, FLAT = 0.5, 0.999  # of full scale and of the peak: samples that may be cut off
CLIPPED = 1e-4  # share of the samples that may lie inside of cut peaks


@runtime_checkable
class KnowsSizes(Protocol):
    """A source of files of many sizes."""

    def file_size(self, index: int) -> tuple[int, int]:
        """Height and width in the file, before anything is cut or resized."""
        ...


def check_media(source: Source, tokenizer: Tokenizer) -> None:
    """Raises UserError where a corpus' media are not what the tokenizer takes: sound at its rate, or none."""
    gives, takes = (getattr(one, "sample_rate_hz", None) for one in (source, tokenizer.media))
    if gives != takes:
        given, taken = ("no sound" if rate is None else f"sound at {rate} Hz" for rate in (gives, takes))
        advice = "make data.sample_rate_hz and tokenizer.sample_rate_hz agree"
        if None in (gives, takes):
            advice = "choose another data.source or another tokenizer.kind"
        raise UserError(f"data gives {given}, the tokenizer takes {taken}: {advice}")


def check_corpus(recipe: Recipe, progress: Progress) -> tuple[Table, bool]:
    """Table to print, and whether every item can be read."""
    source, tokenizer, condition = recipe.data.build(), recipe.tokenizer.build(), recipe.condition.build()
    check_media(source, tokenizer)
    if isinstance(source, KeptCorpus):
        source.check(recipe, tokenizer)
    condition.bind(source)
    lenient = recipe.batch.model_copy(update={"max_broken_share": 1.0})
    corpus = Corpus(source, tokenizer, condition, lenient)
    read: dict[int, MediaSpec] = {}
    remarks: dict[str, list[str]] = defaultdict(list)  # names of items by what there is to say of them
    sizes: Counter[tuple[int, int]] = Counter()
    for done, index in enumerate(corpus.specs):
        content, name = corpus.read(index), source.entry(index).name
        if isinstance(content, Encoded):
            read[index] = content.spec
            for reading in range(source.readings if isinstance(source, Kept) else 0):
                source.tokens(index, reading)  # raises UserError where they are damaged
        if isinstance(content, Tensor):
            read[index] = tokenizer.spec_of(tuple(content.shape))
            if content.dim() == 1:
                for remark in sound_remarks(content):
                    remarks[remark].append(name)
            if isinstance(source, KnowsSizes):
                height, width = source.file_size(index)
                sizes[height, width] += 1
                if height < content.shape[-2] or width < content.shape[-1]:
                    remarks["smaller than data.size, so enlarged"].append(name)
        progress(done + 1, len(corpus.specs))
    for index, remark in _of_length(condition, corpus, read):
        remarks[remark].append(source.entry(index).name)

    counts = sorted(spec.num_tokens for spec in read.values())
    table = Table("what", "value", title=f"{recipe.name}: corpus")
    table.add_row("items", f"{len(source):,}")
    for reason, number in getattr(source, "left_out", {}).items():
        table.add_row(f"left out, {reason}", f"{number:,}")
    entries = [source.entry(index) for index in read]
    _add_counts(table, "class", Counter(entry.label for entry in entries if entry.label is not None))
    _add_counts(table, "file", Counter(entry.path.suffix.lower() for entry in entries if entry.path is not None))
    _add_counts(table, "pixels", Counter({f"{width}×{height}": n for (height, width), n in sizes.items()}))
    if counts:
        table.add_row("tokens an item, least / median / most", _spread(counts))
        table.add_row("tokens in all", f"{sum(counts):,}")
    if tokenizer.media.per_second is not None:
        length = sum(spec.shape[-3] if len(spec.shape) > 1 else spec.shape[0] for spec in read.values())
        table.add_row("duration", f"{length / tokenizer.media.per_second / 60:,.1f} min")
    for what, value in condition.summary(entries).items():
        table.add_row(what, value)
    for what, names in remarks.items():
        more = ", …" if len(names) > SHOWN else ""
        table.add_row(what, f"{len(names):,}: {', '.join(names[:SHOWN])}{more}")
    table.add_row("broken", f"{len(corpus.broken):,}")
    for name, reason in corpus.broken.items():
        table.add_row(f"  {name}", reason)
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
    condition: ConditionKind[Any], corpus: Corpus, read: Mapping[int, MediaSpec]
) -> Iterator[tuple[int, str]]:
    """Items that last much less or more than others of such a condition, and how much."""
    values = {index: corpus.values[index] for index in read}
    if not values:
        return
    condition.fit(list(values.values()), [read[index].num_tokens for index in values])
    for index, value in values.items():
        expected = condition.length(value)
        if expected is None:
            continue
        if read[index].num_tokens * MUCH < expected:
            yield index, f"less than 1/{MUCH:g} as long as such a text usually is"
        elif read[index].num_tokens > expected * MUCH:
            yield index, f"more than {MUCH:g} times as long as such a text usually is"


def _add_counts(table: Table, what: str, counts: Counter[str]) -> None:
    """A row for each of the most frequent."""
    for name, count in counts.most_common(MOST_NAMED):
        table.add_row(f"{what} {name}", f"{count:,}")
    if rest := counts.most_common()[MOST_NAMED:]:
        table.add_row(f"{what}: {len(rest):,} more", f"{sum(n for _, n in rest):,}")


def _spread(ordered: Sequence[int]) -> str:
    return f"{ordered[0]} / {ordered[len(ordered) // 2]} / {ordered[-1]}"
