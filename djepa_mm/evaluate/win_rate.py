"""How often people prefer a model's pictures to another's: the human evaluation of D-JEPA-T2I's paper (supplement, 8).

Raters are shown a picture of each for one prompt, and answer three questions, in the order of their weight.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypedDict

from rich.table import Table

from djepa_mm.errors import UserError

QUESTIONS = ("adherence", "coherence", "realism")
BETTER, SAME, WORSE = ANSWERS = ("better", "same", "worse")
MODEL = "model"  # column that is not needed where all votes are of one
MOST_BYTES = 100_000_000


class WinRate(TypedDict):
    """Of a model against the one that all are compared with."""

    votes: int
    better: int
    same: int
    worse: int
    win_rate: float
    """(better + same / 2) / votes."""
    decided_by: dict[str, int]
    """Votes by the first question whose answer is not "same"."""


def win_rates(path: Path) -> dict[str, WinRate]:
    """Of each model in a CSV file with a vote a row, and a header: `adherence`, `coherence`, `realism`, each of them
    better, same or worse, and `model` where there are several; other columns are free. A question counts only where
    those before it are the same, and may be left empty where they are not.

    Raises UserError, which names the row."""
    results: dict[str, Counter[str]] = {}
    for model, result, question in _votes(path):
        results.setdefault(model, Counter()).update([result, f"by {question}"])
    if not results:
        raise UserError(f"{path}: there are no votes in it")
    return {model: _win_rate(counts) for model, counts in results.items()}


def _win_rate(counts: Counter[str]) -> WinRate:
    better, same, worse = (counts[answer] for answer in ANSWERS)
    votes = better + same + worse
    return {
        "votes": votes,
        "better": better,
        "same": same,
        "worse": worse,
        "win_rate": (better + 0.5 * same) / votes,
        "decided_by": {question: counts[f"by {question}"] for question in QUESTIONS},
    }


def _votes(path: Path) -> Iterator[tuple[str, str, str | None]]:
    """Of each row: the model, what the vote is, and the question that decided it."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path}: more than {MOST_BYTES:,} bytes; give it in parts")
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip().lower() for name in next(reader, [])]
            for name in QUESTIONS:
                if header.count(name) != 1:
                    columns = ", ".join(QUESTIONS)
                    raise UserError(f"{path}:1: expected one column {name!r} in a header with {columns}")
            if header.count(MODEL) > 1:
                raise UserError(f"{path}:1: the column {MODEL!r} comes twice; leave one of them")
            for row in reader:
                if not any(field.strip() for field in row):
                    continue
                where = f"{path}:{reader.line_num}"
                if len(row) != len(header):
                    raise UserError(f"{where}: {len(row)} fields, and the header names {len(header)}")
                answers = {name: field.strip() for name, field in zip(header, row, strict=True)}
                if not (model := answers.get(MODEL, MODEL)):
                    raise UserError(f"{where}: says no {MODEL}; name it, or leave the column out where all are of one")
                yield model, *_decided(where, answers)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV: {error}") from None


def _decided(where: str, answers: Mapping[str, str]) -> tuple[str, str | None]:
    """The first answer that is not "same", and its question."""
    decided: tuple[str, str | None] | None = None
    for question in QUESTIONS:
        answer = answers[question].lower()
        if answer not in ANSWERS and (answer or decided is None):
            raise UserError(f"{where}: {question} {answers[question]!r} is none of {', '.join(ANSWERS)}")
        if decided is None and answer != SAME:
            decided = answer, question
    return decided or (SAME, None)


def win_rate_table(rates: Mapping[str, WinRate], title: str) -> Table:
    """A row a model, the one that wins most first."""
    columns = [f"by {question}" for question in QUESTIONS]
    shown = Table("model", "win rate", "votes", *ANSWERS, *columns, title=title)
    for model, rate in sorted(rates.items(), key=lambda item: -item[1]["win_rate"]):
        counts = (rate["votes"], rate["better"], rate["same"], rate["worse"], *rate["decided_by"].values())
        shown.add_row(model, f"{rate['win_rate']:.1%}", *map(str, counts))
    return shown
