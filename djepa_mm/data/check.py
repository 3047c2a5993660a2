"""Read a whole corpus once and say what is in it and what is broken."""

from __future__ import annotations

from collections import Counter

from rich.table import Table

from djepa_mm.data.corpus import Corpus
from djepa_mm.recipe.build import Conditions
from djepa_mm.recipe.schema import Recipe
from djepa_mm.types import Progress


def check_corpus(recipe: Recipe, progress: Progress) -> tuple[Table, bool]:
    """Table to print, and whether every item can be read."""
    source, conditions = recipe.data.build(), Conditions(recipe)
    lenient = recipe.batch.model_copy(update={"max_broken_share": 1.0})
    corpus = Corpus(source, recipe.tokenizer.build(), conditions, lenient)
    labels: Counter[int] = Counter()
    unknown: Counter[str] = Counter()
    for done, index in enumerate(corpus.specs):
        item = corpus.read(index)
        if item is not None and item.label is not None:
            labels[item.label] += 1
        if item is not None and item.text is not None and conditions.vocabulary is not None:
            unknown.update(conditions.vocabulary.unknown(item.text))
        progress(done + 1, len(corpus.specs))

    counts = sorted(spec.num_tokens for index, spec in corpus.specs.items() if source.name(index) not in corpus.broken)
    table = Table("what", "value", title=f"{recipe.name}: corpus")
    table.add_row("items", f"{len(source):,}")
    for reason, number in getattr(source, "left_out", {}).items():
        table.add_row(f"left out, {reason}", f"{number:,}")
    if counts:
        table.add_row(
            "tokens an item, least / median / most", f"{counts[0]} / {counts[len(counts) // 2]} / {counts[-1]}"
        )
        table.add_row("tokens in all", f"{sum(counts):,}")
    if source.sample_rate_hz:
        seconds = sum(s.shape[0] for i, s in corpus.specs.items() if source.name(i) not in corpus.broken)
        table.add_row("duration", f"{seconds / source.sample_rate_hz / 60:,.1f} min")
    for label, number in sorted(labels.items())[:20]:
        table.add_row(f"class {source.classes[label]}", f"{number:,}")
    if unknown:
        shown = " ".join(f"{c!r} in {n}" for c, n in unknown.most_common(20))
        table.add_row("characters left out of texts", shown)
    table.add_row("broken", f"{len(corpus.broken):,}")
    for name, reason in corpus.broken.items():
        table.add_row(f"  {name}", reason)
    return table, not corpus.broken
