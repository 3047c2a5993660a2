"""Read a whole corpus once and say what is in it and what is broken."""

from __future__ import annotations

from rich.table import Table

from djepa_mm.data.corpus import Corpus
from djepa_mm.recipe.schema import Recipe
from djepa_mm.types import MediaSpec, Progress, Source, Tokenizer, UserError


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
    condition.bind(source)
    lenient = recipe.batch.model_copy(update={"max_broken_share": 1.0})
    corpus = Corpus(source, tokenizer, condition, lenient)
    read: list[tuple[int, MediaSpec]] = []
    for done, index in enumerate(corpus.specs):
        item = corpus.read(index)
        if item is not None:
            read.append((index, tokenizer.spec_of(tuple(item.media.shape))))
        progress(done + 1, len(corpus.specs))

    counts = sorted(spec.num_tokens for _, spec in read)
    table = Table("what", "value", title=f"{recipe.name}: corpus")
    table.add_row("items", f"{len(source):,}")
    for reason, number in getattr(source, "left_out", {}).items():
        table.add_row(f"left out, {reason}", f"{number:,}")
    if counts:
        table.add_row(
            "tokens an item, least / median / most", f"{counts[0]} / {counts[len(counts) // 2]} / {counts[-1]}"
        )
        table.add_row("tokens in all", f"{sum(counts):,}")
    if tokenizer.media.per_second is not None:
        length = sum(spec.shape[-3] if len(spec.shape) > 1 else spec.shape[0] for _, spec in read)
        table.add_row("duration", f"{length / tokenizer.media.per_second / 60:,.1f} min")
    for what, value in condition.summary([source.entry(index) for index, _ in read]).items():
        table.add_row(what, value)
    table.add_row("broken", f"{len(corpus.broken):,}")
    for name, reason in corpus.broken.items():
        table.add_row(f"  {name}", reason)
    return table, not corpus.broken
