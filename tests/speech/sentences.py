"""The list of written English in `sentences.tsv`: what a reader says, and where sentences end.

A row has its kind, the text as written (\\n is a new line, ‖ stands before each further sentence) and the words as
said; {a|b} takes either. It was written by what a reader does, before any program was tried on it.
"""

from __future__ import annotations

import csv
import itertools
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

LIST = Path(__file__).with_name("sentences.tsv")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    kind: str
    written: str
    said: frozenset[str]  # ways to read it, each as `words` gives them
    sentences: tuple[str, ...]  # with single spaces


def read_cases() -> list[Case]:
    with LIST.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [_case(row["kind"], row["written"].replace("\\n", "\n"), row["said"]) for row in rows]


def _case(kind: str, marked: str, said: str) -> Case:
    parts = [part.strip("{}").split("|") if part.startswith("{") else [part] for part in re.split(r"(\{.*?\})", said)]
    return Case(
        kind=kind,
        written=re.sub(r"‖ ?", "", marked),
        said=frozenset(words("".join(way)) for way in itertools.product(*parts)),
        sentences=tuple(" ".join(sentence.split()) for sentence in marked.split("‖")),
    )


def words(text: str) -> str:
    """What is said of a text in words: no case, no marks, no accents, letters together ("U.S." is "us"), and no "and"
    within numbers, which some readers say."""
    text = unicodedata.normalize("NFKD", text.lower()).replace("'", "").replace("’", "")
    text = "".join(c if c.isalnum() else "" if unicodedata.combining(c) else " " for c in text)
    text = re.sub(r"\b(hundred|thousand|million|billion) and\b", r"\1", text)
    return re.sub(r"\b(\w) (?=\w\b)", r"\1", " ".join(text.split()))
