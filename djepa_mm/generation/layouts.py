"""Pictures in the folders that the official scorers of text to image read, from the prompts as they are published.

Each after its loader, read in November 2026:
geneval: evaluation/evaluate_images.py of github.com/djghosh13/geneval (Ghosh et al. 2023). Folders whose names are
    numbers, with the prompt's line in `metadata.jsonl` and pictures `samples/0000.png` … beside it; four a prompt.
t2i-compbench: BLIPvqa_eval/BLIP_vqa.py and UniDet_eval/2D_spatial_eval.py of github.com/Karine-Huang/T2I-CompBench
    (Huang et al. 2023). `samples/PROMPT_000000.png` …, numbered through; ten a prompt. What comes before the first
    underscore is the prompt, and after the last one the number.
genai-bench: genai_bench/evaluate.py of github.com/linzhiqiu/t2v_metrics (Li et al. 2024). One `ID.jpeg` a prompt, by
    the ids of genai_image.json, in the folder OUTPUT_DIR/GEN_MODEL.
dpg: dpg_bench/compute_dpg_bench.py of github.com/TencentQQGYLab/ELLA (Hu et al. 2024). One `ID.png` a prompt, by the
    names of the files of prompts: four square pictures, two by two.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from djepa_mm.errors import UserError
from djepa_mm.generation.files import Generated
from djepa_mm.media.pictures import JPEG_QUALITY, Pictures, image_of, to_bytes
from djepa_mm.types import Extent, Tokenizer

MOST_BYTES = 100_000_000  # of prompts
LONGEST_NAME = 255  # bytes of a file's name
_Files = Iterator[tuple[Path, Image.Image]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    text: str
    name: str = ""  # as the benchmark calls it
    row: Any = None  # all that it says of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a benchmark keeps its prompts, and how it reads pictures."""

    count: int  # pictures of each prompt that it is meant for
    most: int | None  # that it can read
    read: Callable[[Path], Iterator[Prompt]]
    write: Callable[[Path, int, Prompt, Sequence[Image.Image]], _Files]
    """The files of one prompt, of that number from 0 on."""
    square: bool = False


def read_prompts(layout: str, path: Path) -> list[Prompt]:
    """The prompts of a benchmark, as it publishes them. Raises UserError, which names the file."""
    try:
        prompts = list(LAYOUTS[layout].read(path))
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, a number without end
        raise UserError(f"--prompts {path}: cannot be read for --layout {layout}: {error}") from None
    if not prompts:
        raise UserError(f"--prompts {path}: holds no prompt for --layout {layout}")
    return prompts


def check_layout(
    layout: str, tokenizer: Tokenizer, folder: Path, *, count: int, size: tuple[int, int] | None = None
) -> None:
    """Raises UserError where the scorer could not read what the model would write."""
    wanted = LAYOUTS[layout]
    if not isinstance(tokenizer.media, Pictures):
        raise UserError(f"--layout {layout}: for models of pictures")
    if wanted.most is not None and count > wanted.most:
        raise UserError(f"--count {count}: {layout} reads {wanted.most} of each prompt; give no more")
    height, width = tokenizer.spec_for(Extent(size=size)).shape[-2:]
    if wanted.square and height != width:
        raise UserError(f"--layout {layout}: its scorer cuts out squares, not {width}×{height} pixels: choose --size")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--out {folder}: something is there, which the scorer would read too; choose another folder")


def write_layout(layout: str, prompts: Sequence[Prompt], items: Sequence[Generated], folder: Path) -> Iterator[Path]:
    """items: as many for each prompt as for any other, one prompt after the other. Yields each path once it is
    there."""
    count = len(items) // len(prompts)
    for number, prompt in enumerate(prompts):
        own = items[number * count : (number + 1) * count]
        pictures = [image_of(to_bytes(item.media)).convert("RGB") for item in own]
        for path, picture in LAYOUTS[layout].write(folder, number, prompt, pictures):
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path, quality=JPEG_QUALITY)
            yield path


# --- GenEval ----------------------------------------------------------------------------------------------------------


def _geneval_prompts(path: Path) -> Iterator[Prompt]:
    """evaluation_metadata.jsonl"""
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                raise UserError(f"--prompts {path}:{number}: no JSON") from None
            yield Prompt(text=_prompt(f"{path}:{number}", row), row=row)


def _geneval_files(folder: Path, number: int, prompt: Prompt, pictures: Sequence[Image.Image]) -> _Files:
    own = folder / f"{number:05}"
    own.mkdir(parents=True)
    (own / "metadata.jsonl").write_text(json.dumps(prompt.row), encoding="utf-8")
    for n, picture in enumerate(pictures):
        yield own / "samples" / f"{n:04}.png", picture


# --- T2I-CompBench ----------------------------------------------------------------------------------------------------


def _compbench_prompts(path: Path) -> Iterator[Prompt]:
    """examples/dataset/*_val.txt: a prompt a line, up to the first tabulator. Names cannot hold every character."""
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if text := line.split("\t")[0].strip():
            name = text.replace("/", " ").replace("_", " ")
            yield Prompt(text=text, name=_plain(f"{path}:{number}", name))


def _compbench_files(folder: Path, number: int, prompt: Prompt, pictures: Sequence[Image.Image]) -> _Files:
    for n, picture in enumerate(pictures, start=number * len(pictures)):
        yield folder / "samples" / f"{prompt.name}_{n:06}.png", picture


# --- GenAI-Bench ------------------------------------------------------------------------------------------------------


def _genai_prompts(path: Path) -> Iterator[Prompt]:
    """genai_image.json"""
    rows = json.loads(_text(path), object_pairs_hook=partial(_each_once, path))
    if not isinstance(rows, dict):
        raise UserError(f"--prompts {path}: expected prompts by their ids, as in genai_image.json")
    for name, row in rows.items():
        yield Prompt(text=_prompt(f"{path}: {name}", row), name=_plain(str(path), name))


def _genai_files(folder: Path, number: int, prompt: Prompt, pictures: Sequence[Image.Image]) -> _Files:
    yield folder / f"{prompt.name}.jpeg", pictures[0]


# --- DPG-Bench --------------------------------------------------------------------------------------------------------


def _dpg_prompts(path: Path) -> Iterator[Prompt]:
    """dpg_bench/prompts, a folder of texts."""
    for file in sorted(path.glob("*.txt")) if path.is_dir() else [path]:
        if not (text := " ".join(_text(file).split())):
            raise UserError(f"--prompts {file}: holds no prompt")
        yield Prompt(text=text, name=file.stem)


def _dpg_files(folder: Path, number: int, prompt: Prompt, pictures: Sequence[Image.Image]) -> _Files:
    width, height = pictures[0].size
    columns, rows = (1, 1) if len(pictures) == 1 else (2, 2)
    grid = Image.new("RGB", (columns * width, rows * height))
    for n, picture in enumerate(pictures):
        grid.paste(picture, (n % 2 * width, n // 2 * height))
    yield folder / f"{prompt.name}.png", grid


# --- all of them ------------------------------------------------------------------------------------------------------

LAYOUTS = {
    "geneval": Layout(count=4, most=None, read=_geneval_prompts, write=_geneval_files),
    "t2i-compbench": Layout(count=10, most=None, read=_compbench_prompts, write=_compbench_files),
    "genai-bench": Layout(count=1, most=1, read=_genai_prompts, write=_genai_files),
    "dpg": Layout(count=4, most=4, read=_dpg_prompts, write=_dpg_files, square=True),
}


def _text(path: Path) -> str:
    if (size := path.stat().st_size) > MOST_BYTES:
        raise UserError(f"--prompts {path}: {size:,} bytes; {MOST_BYTES:,} are read at most")
    return path.read_text(encoding="utf-8-sig")


def _prompt(where: str, row: Any) -> str:
    text = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise UserError(f'--prompts {where}: expected an object with a text "prompt"')
    return text


def _each_once(path: Path, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Of a name that comes twice, one would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise UserError(f"--prompts {path}: {twice!r} comes twice")
    return found


def _plain(where: str, name: str) -> str:
    """What a file can be called by."""
    try:
        length = len(f"{name}_000000.png".encode())
    except UnicodeEncodeError:  # half a character
        length = LONGEST_NAME + 1
    if not name or Path(name).name != name or "\0" in name or length > LONGEST_NAME:
        raise UserError(f"--prompts {where}: {name[:100]!r} cannot be the name of a file, by which its scorer knows it")
    return name
