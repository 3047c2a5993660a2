"""Files of people who mean harm, each given to the command line: what it says, and what it costs.

    python benchmarks/hostile.py
    python benchmarks/hostile.py --only recipe sound

Each input lies in a folder of its own and is given to a verb of `djepa-mm`, which runs in that folder, in a process
that was forked with all imports done. It must end by itself within 30 seconds and with 1 GiB of memory beside what the
process held before, by a line that says what is wrong (exit code 2), or by a report that names the file (exit code 1).
Inputs marked ° are strange but mean no harm: they may be taken, within the same bounds. A traceback, a crash, an input
that is taken without a word, or any file that appears outside of the input's folder makes this script end with code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import re
import resource
import shlex
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from rich.console import Console
from rich.table import Table

from djepa_mm.cli.app import main as command_line
from djepa_mm.media.clips import write_clip

LIMIT_S = 30
MOST_MIB = 1024
BOUND = 4 << 30  # bytes of address space beside what is held; a request for more fails at once
SAID = 110  # characters shown
NAMED = r"hostile|--[a-z]|\btext\b|\b[a-z]+\.[a-z_]+"  # what a message must have: the file's name, an option or a key

Files = Mapping[str, bytes]


@dataclass(frozen=True, kw_only=True)
class Input:
    """files: what is written into its folder. verb: the command line. copies: folders beside the files, by name."""

    name: str
    verb: str
    files: Files = field(default_factory=dict)
    copies: Mapping[str, Path] = field(default_factory=dict)
    fine: bool = False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    code: str
    said: str
    seconds: float
    mib: float
    wrong: str  # why this is a failure; empty where it is none


# --- giving an input to a verb ----------------------------------------------------------------------------------------


def give(one: Input, root: Path) -> Outcome:
    """root: a folder of which only `here` may change, and `cache`."""
    here = root / "here"
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir()
    for name, source in one.copies.items():
        shutil.copytree(source, here / name)
    for name, content in one.files.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(content)
    before = outside(root)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    began = time.monotonic()
    process = multiprocessing.get_context("fork").Process(target=life, args=(one.verb, here, root, sender))
    process.start()
    sender.close()
    process.join(LIMIT_S)
    hung = process.is_alive()
    with contextlib.suppress(ProcessLookupError):  # what it started as well
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.join()
    seconds = time.monotonic() - began
    mib = float("nan")
    with contextlib.suppress(EOFError):  # it did not come to its end
        mib = receiver.recv() if receiver.poll() else mib
    out, err = ((root / name).read_text(errors="replace") for name in ("stdout", "stderr"))
    code, appeared = process.exitcode, sorted(outside(root) ^ before)
    wrong = ""
    if hung:
        wrong = "hangs"
    elif "Traceback (most recent call last)" in err:
        wrong = "traceback"
    elif code not in (0, 1, 2):
        wrong = "crash"
    elif code == 0 and not one.fine:
        wrong = "taken"
    elif mib > MOST_MIB:
        wrong = "memory"
    elif code and not re.search(NAMED, out + err):
        wrong = "not named"
    if appeared:
        wrong = f"{wrong} and writes {appeared[0]}".removeprefix(" and ")
    return Outcome(code="-" if hung else str(code), said=said(out, err, wrong), seconds=seconds, mib=mib, wrong=wrong)


def life(verb: str, here: Path, root: Path, sender: Any) -> None:
    """The process: as `djepa-mm VERB` would be, called in the folder `here`."""
    os.setsid()
    os.chdir(here)
    for handle, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(root / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), handle)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    sys.argv = ["djepa-mm", *shlex.split(verb)]
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory counts from now on
    held = memory("VmRSS")
    bound = memory("VmSize") * 1024 + BOUND
    resource.setrlimit(resource.RLIMIT_AS, (bound, resource.RLIM_INFINITY))
    code = 0
    try:
        command_line()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        code = 1
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    if sender is not None:
        peak = memory("VmHWM") - held, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        sender.send(max(peak) / 1024)
        sender.close()
    os._exit(code)


def memory(what: str) -> int:
    """KiB of this process."""
    return int(re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


def outside(root: Path) -> set[str]:
    """All files that are no input's business."""
    ours = {"here", "cache", "stdout", "stderr"}
    found = (
        path.relative_to(root) for top in root.iterdir() if top.name not in ours for path in (top, *top.rglob("*"))
    )
    return {str(path) for path in found}


def said(out: str, err: str, wrong: str) -> str:
    """One line: the error, or the row of a report that names the input."""
    lines = [" ".join(line.replace("│", " ").split()) for line in (err + "\n" + out).splitlines() if line.strip()]
    if "traceback" in wrong:
        lines.reverse()
    named = [line for line in lines if "hostile" in line or line.startswith("djepa-mm:")]
    return next(iter(lines if "traceback" in wrong else [*named, *lines]), "")


# --- what the inputs are made of --------------------------------------------------------------------------------------

SMALL = {
    "model.width": 32, "model.depth": 1, "model.heads": 2, "head.width": 16, "head.blocks": 1, "head.steps": 2,
    "batch.size": 2, "batch.cache": False, "batch.workers": 0, "sample.steps": 2, "run.samples": 1,
    "optim.minutes": None, "optim.steps": 1, "run.save_every": 1, "run.sample_every": None,
}  # fmt: skip


class Runs:
    """Three small runs, of pictures, clips and speech, and the latents of the pictures, that hostile input goes to."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.picture, self.sound = png(8, 8), wav(8000)
        write_clip(torch.rand(3, 8, 16, 16) * 2 - 1, root / "clip.mp4", 8)
        self.clip = (root / "clip.mp4").read_bytes()
        good: dict[str, Files] = {
            "pictures": {f"pictures/{label}/{n}.png": self.picture for label in "ab" for n in range(2)},
            "clips": {f"clips/{label}/{n}.mp4": self.clip for label in "ab" for n in range(2)},
            "speech": {
                "speech/metadata.csv": b"0|ab|ab\n1|ba|ba\n",
                "speech/wavs/0.wav": self.sound,
                "speech/wavs/1.wav": self.sound,
            },
        }
        for files in good.values():
            for name, content in files.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(content)
        self.recipes = {"pictures": self._pictures(), "clips": self._clips(), "speech": self._speech()}
        (root / "latents.yaml").write_text(yaml.safe_dump(self.recipes["pictures"]))
        verbs = ["encode latents.yaml --out latents"]
        for name, recipe in self.recipes.items():
            (root / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
            verbs.append(f"train {name}.yaml --out run-{name} --device cpu")
        for verb in verbs:
            done = subprocess_of(verb, root)
            assert done == 0, f"{verb}: {(root / 'stderr').read_text()}"

    def recipe(self, kind: str = "pictures", /, **changes: Any) -> bytes:
        """A recipe's file, with values by key, such as model__width."""
        recipe = json.loads(json.dumps(self.recipes[kind]))
        for key, value in changes.items():
            *sections, last = key.split("__")
            place = recipe
            for section in sections:
                place = place.setdefault(section, {})
            place[last] = value
        return yaml.safe_dump(recipe, sort_keys=False).encode()

    def checkpoint(self, name: str = "pictures") -> Path:
        return self.root / f"run-{name}"

    def _pictures(self) -> dict[str, Any]:
        data = {"source": "image-folder", "root": str(self.root / "pictures"), "size": [8, 8]}
        return self._small("digits", {"data": data, "tokenizer.channels": 3})

    def _clips(self) -> dict[str, Any]:
        sizes = {"data.frames": 4, "data.size": [16, 16], "tokenizer.size": [16, 16], "tokenizer.frames": 4}
        return self._small("clips", {"data.root": str(self.root / "clips"), **sizes, "model.width": 48})

    def _speech(self) -> dict[str, Any]:
        text = {"condition.units": "characters", "condition.characters": "ab ", "run.texts": ["ab"]}
        return self._small("speech-small", {"data.root": str(self.root / "speech"), "data.held_out": 0.0, **text})

    def _small(self, recipe: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        from djepa_mm.recipe.load import load_recipe, recipe_data

        return recipe_data(load_recipe(recipe, {**SMALL, **changes}))


def subprocess_of(verb: str, root: Path) -> int | None:
    process = multiprocessing.get_context("fork").Process(target=life, args=(verb, root, root, None))
    process.start()
    process.join()
    return process.exitcode


def png_of(width: int, height: int, rows: bytes, depth: int = 8, colour: int = 2, more: bytes = b"") -> bytes:
    """rows: the compressed pixels."""
    head = struct.pack(">IIBBBBB", width & 0xFFFF_FFFF, height & 0xFFFF_FFFF, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + more + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int) -> bytes:
    return png_of(width, height, zlib.compress((b"\0" + b"\x80\x40\x20" * width) * height))


def zeros(size: int) -> bytes:
    """So many zero bytes, compressed a piece at a time."""
    packer = zlib.compressobj(1)
    pieces = [packer.compress(bytes(min(1 << 24, size - at))) for at in range(0, size, 1 << 24)]
    return b"".join(pieces) + packer.flush()


def gif(frames: int, side: int) -> bytes:
    """Frames that each change a single pixel of a canvas."""
    head = b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    first = b"\x21\xf9\x04\0\x0a\0\0\0" + b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x4c\x01\0"
    other = first[:-3] + b"\x44\x01\0"
    return head + b"".join(other if n % 2 else first for n in range(frames)) + b"\x3b"


def wav(samples: int, *, channels: int = 1, rate: int = 22050, kind: int = 1, data: bytes | None = None,
        claimed: int | None = None) -> bytes:  # fmt: skip
    """kind: 1 of 16-bit integers, 3 of floats."""
    width = 2 if kind == 1 else 4
    if data is None:
        data = (np.sin(np.arange(samples * max(1, channels)) / 10) * 9999).astype("<i2").tobytes()
    form = struct.pack("<HHIIHH", kind, channels, rate, (rate * channels * width) & 0xFFFF_FFFF,
                       (channels * width) & 0xFFFF, 8 * width)  # fmt: skip
    size = len(data) if claimed is None else claimed
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", size) + data
    return b"RIFF" + struct.pack("<I", min(0xFFFF_FFFF, size + 36)) + body


def flac_head(samples: int, rate: int, channels: int) -> bytes:
    """A header that promises much, and nothing after it."""
    packed = rate << 44 | (channels - 1) << 41 | 15 << 36 | samples
    return b"fLaC\x80\0\0\x22" + struct.pack(">HH", 4096, 4096) + bytes(6) + packed.to_bytes(8, "big") + bytes(16)


def tiff(*tags: tuple[int, int, int, int], next_one: int = 0) -> bytes:
    """One folder of (tag, type, count, value)."""
    rows = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + rows + struct.pack("<I", next_one)


def tensors_file(head: Any, data: bytes = b"", size: int | None = None) -> bytes:
    """A safetensors file. head: its JSON, or what is to be written as that."""
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


class Shell:
    """What a pickle runs when it is read."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch ../ran",)


def archive(members: Mapping[str, bytes | int], way: int = zipfile.ZIP_STORED) -> bytes:
    """A zip; of a number, so many zeros."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", way) as file:
        for name, content in members.items():
            if isinstance(content, bytes):
                file.writestr(name, content)
            else:
                with file.open(name, "w", force_zip64=True) as member:
                    for _ in range(content >> 24):
                        member.write(bytes(1 << 24))
    return whole.getvalue()


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


# --- the inputs -------------------------------------------------------------------------------------------------------


def recipes(runs: Runs) -> Iterator[Input]:
    plain = runs.recipe()

    def train(name: str, content: bytes, fine: bool = False, verb: str = "train") -> Input:
        out = " --out run --device cpu" if verb == "train" else ""
        return Input(name=name, verb=f"{verb} hostile.yaml{out}", files={"hostile.yaml": content}, fine=fine)

    bomb = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 11)]
    yield train("alias bomb, 10^10 words", "\n".join(bomb).encode())
    yield train("alias bomb as a text of the run", plain + b"x: &x [y]\nz: {<<: *x}\n")
    yield train("a list that holds itself", plain + b"more: &more [*more]\n")
    yield train("a key twice", plain + b"name: other\n")
    yield train("a Python tag that runs a command", plain + b'more: !!python/object/apply:os.system ["touch ../ran"]\n')
    yield train("nested 10,000 deep", b"name: " + nested(10_000))
    yield train("nested 10,000 deep, in blocks", b"- " * 10_000 + b"x")
    yield train("not UTF-8", b"\xff\xfe\0" + plain)
    yield train("50 MB of keys", b"".join(b"key%07d: 1\n" % n for n in range(3_500_000)))
    yield train("a line of 50 MB", b"name: " + b"x" * 50_000_000)
    yield train("an integer of 10,000 digits", plain.replace(b"seed: 0", b"seed: " + b"9" * 10_000))
    yield train("an integer of 10,000 digits, alone", b"name: " + b"9" * 10_000)
    yield train("name: ../../outside", runs.recipe(name="../../outside"))
    yield train("name with a line break", runs.recipe(name="x\n../../outside"))
    yield train("a folder with a zero byte", runs.recipe(data__root="a\0b"))
    yield train("a folder of 100,000 characters", runs.recipe(data__root="a" * 100_000))
    numbers: tuple[tuple[str, Any], ...] = (
        ("model__width", 10**9), ("model__depth", 10**9), ("model__mlp_ratio", 1e300),
        ("head__width", 10**9), ("head__blocks", 10**9), ("condition__buffer_tokens", 10**12),
        ("tokenizer__patch", 10**30), ("tokenizer__size", [10**9, 10**9]), ("data__size", [10**6, 10**6]),
        ("run__seed", 10**30), ("batch__workers", 10**6), ("model__width", 65_536), ("optim__steps", 10**400),
    )  # fmt: skip
    for key, value in numbers:
        shown = "10^400" if value == 10**400 else f"{value:g}" if not isinstance(value, list) else f"{value[0]:g} twice"
        yield train(f"{key.replace('__', '.')}: {shown}", runs.recipe(**{key: value}))
    yield train("optim.steps: 1e400", plain.replace(b"steps: 1\n", b"steps: 1e400\n"))
    yield train("model.width: 10^9, to be described", runs.recipe(model__width=10**9), verb="info")
    words = ["&a [x, x]"] + [f"&{chr(97 + n)} [{', '.join(['*' + chr(96 + n)] * 10)}]" for n in range(1, 11)]
    for name, value in (("with an alias bomb", f"[{', '.join(words)}]"), ("nested 10,000 deep", "[" * 10_000)):
        verb = f"train hostile.yaml --set 'run.texts={value}'"
        yield Input(name=f"--set {name}", verb=verb, files={"hostile.yaml": plain})


def pictures(runs: Runs) -> Iterator[Input]:
    recipe = runs.recipe(data__root="corpus")

    def check(name: str, content: bytes, suffix: str = "png", fine: bool = False) -> Input:
        files = {"corpus/a/good.png": runs.picture, f"corpus/a/hostile.{suffix}": content, "recipe.yaml": recipe}
        return Input(name=name, verb="data check recipe.yaml", files=files, fine=fine)

    yield check("PNG of 60,000 × 60,000, 0.4 MB", png_of(60_000, 60_000, zeros(60_000 * 7501), 1, 0))
    for side, kind, colour, depth, width in (
        (13_300, "with alpha", 6, 8, 4), (7_990, "with alpha", 6, 8, 4), (7_990, "in 16 bits", 0, 16, 2),
    ):  # fmt: skip
        content = png_of(side, side, zeros((1 + side * width) * side), depth, colour)
        yield check(f"PNG of {side:,} × {side:,} {kind}", content, fine=True)
    yield check("PNG whose header says 2^31 − 1", png_of(2**31 - 1, 2**31 - 1, zlib.compress(b"\0")))
    yield check("PNG whose header says 2^32 − 1 × 1", png_of(2**32 - 1, 1, zlib.compress(b"\0")))
    yield check("PNG of 0 × 0", png_of(0, 0, zlib.compress(b"")))
    yield check("PNG cut short", runs.picture[:50])
    text = chunk(b"zTXt", b"a\0\0" + zeros(200_000_000))
    yield check("PNG with 200 MB of text in it", png_of(8, 8, zlib.compress((b"\0" + bytes(24)) * 8), more=text))
    yield check("a text named .png", b"I am no picture\n" * 1000)
    yield check("a pickle named .png", pickle.dumps(Shell()))
    yield check("GIF of 100,000 frames", gif(100_000, 8), "gif", fine=True)
    yield check("GIF of 65,535 × 65,535", b"GIF89a\xff\xff\xff\xff\x80\0\0" + gif(1, 8)[13:], "gif")
    yield check(
        "TIFF of 2^31 × 2^31", tiff((256, 4, 1, 2**31), (257, 4, 1, 2**31), (259, 3, 1, 1), (273, 4, 1, 8)), "tif"
    )
    endless = tiff((256, 4, 2**32 - 1, 8), (257, 4, 1, 8), (273, 4, 2**32 - 1, 8), (279, 4, 2**32 - 1, 8))
    yield check("TIFF with tags of 4 billion values", endless, "tif")
    yield check("TIFF whose folder is its next one", tiff((256, 4, 1, 8), (257, 4, 1, 8), next_one=8), "tif")
    captions = json.dumps({"file": "a/good.png", "caption": "x" * 100_000_000}).encode()
    for name, content, fine in (
        ("a caption of 100 MB", captions, True),
        ("captions nested 100,000 deep", nested(100_000), True),
        ("captions with a name that leads out", b'{"file": "../../outside.png", "caption": "x"}', True),
    ):
        files = {"corpus/a/hostile.png": runs.picture, "corpus/captions.jsonl": content, "recipe.yaml": recipe}
        yield Input(name=name, verb="data check recipe.yaml", files=files, fine=fine)


def sounds(runs: Runs) -> Iterator[Input]:
    def check(name: str, content: bytes, suffix: str = "wav", fine: bool = False) -> Input:
        files = {
            "corpus/metadata.csv": b"good|ab|ab\nhostile|ab|ab\n",
            "corpus/wavs/good.wav": runs.sound,
            f"corpus/wavs/hostile.{suffix}": content,
            "recipe.yaml": runs.recipe("speech", data__root="corpus"),
        }
        return Input(name=name, verb="data check recipe.yaml", files=files, fine=fine)

    kinds = {
        "WAV of 0 channels": wav(8000, channels=0),
        "WAV of 65,535 channels": wav(8000, channels=65_535, data=bytes(65_535 * 2 * 10)),
        "WAV at 0 Hz": wav(8000, rate=0),
        "WAV at 4 GHz": wav(8000, rate=2**32 - 1),
        "WAV that promises 4 GB": wav(8000, claimed=0xFFFF_FF00),
        "WAV that promises 1.9 GB": wav(8000, claimed=0x7000_0000),
        "WAV of samples that are no numbers": wav(0, kind=3, data=np.full(8000, np.nan, "<f4").tobytes()),
        "WAV of infinite samples": wav(0, kind=3, data=np.full(8000, np.inf, "<f4").tobytes()),
        "WAV of nothing": wav(0, data=b""),
    }
    for name, content in kinds.items():
        yield check(name, content, fine="4 GB" in name)  # so do those of writers that did not know the end
    yield check("FLAC that promises 2^36 samples", flac_head(2**36 - 1, 44_100, 8), "flac", fine=True)  # too long
    yield check("FLAC that promises 6 s at 655,350 Hz", flac_head(6 * 655_350, 655_350, 8), "flac")
    whole = {**kinds, "text": b"x" * 1000}
    for name in ("WAV of 0 channels", "WAV at 0 Hz", "WAV at 4 GHz", "WAV that promises 4 GB", "text"):
        yield Input(name=f"{name}, to be edited", verb="edit run hostile.wav --text ab --device cpu",
                    files={"hostile.wav": whole[name]}, copies={"run": runs.checkpoint("speech")},
                    fine="4 GB" in name)  # fmt: skip
    for name, content in (
        ("2^36 samples", flac_head(2**36 - 1, 44_100, 8)),
        ("2^30 samples", flac_head(2**30, 44_100, 1)),
    ):
        yield Input(name=f"FLAC that promises {name}, to be edited",
                    verb="edit run hostile.flac --text ab --device cpu", files={"hostile.flac": content},
                    copies={"run": runs.checkpoint("speech")})  # fmt: skip
    files = {"corpus/metadata.csv": b"good|ab|ab\n../../hostile|ab|ab\n", "corpus/wavs/good.wav": runs.sound,
             "recipe.yaml": runs.recipe("speech", data__root="corpus")}  # fmt: skip
    yield Input(name="an id that leads out of the corpus", verb="data check recipe.yaml", files=files)
    long = b"good|ab|ab\nhostile" + b"|x" * 100_000 + b"\n"
    yield Input(
        name="a line of 100,000 bars", verb="data check recipe.yaml", files={**files, "corpus/metadata.csv": long}
    )


def clips(runs: Runs) -> Iterator[Input]:
    recipe = runs.recipe("clips", data__root="corpus")

    def check(name: str, content: bytes, suffix: str = "mp4", fine: bool = False) -> Input:
        files = {"corpus/a/good.mp4": runs.clip, f"corpus/a/hostile.{suffix}": content, "recipe.yaml": recipe}
        files["corpus/a/other.mp4"] = runs.clip
        return Input(name=name, verb="data check recipe.yaml", files=files, fine=fine)

    box = struct.pack(">I", 16) + b"ftypisom" + bytes(4)
    yield check("garbage", np.random.default_rng(0).bytes(100_000))
    yield check("nothing", b"")
    yield check("MP4 whose box says 2^63 bytes", box + struct.pack(">I4sQ", 1, b"moov", 2**63))
    yield check(
        "MP4 of boxes 10,000 deep",
        box + b"".join(struct.pack(">I4s", 8 * (10_000 - n), b"moov") for n in range(10_000)),
    )
    y4m = b"YUV4MPEG2 W%d H%d F%d:1 Ip A1:1 C420jpeg\nFRAME\n"
    yield check("Y4M of 30,000 × 30,000, named .avi", y4m % (30_000, 30_000, 25), "avi")
    yield check("Y4M of 2^30 × 2^30, named .avi", y4m % (2**30, 2**30, 25), "avi")
    yield check(
        "Y4M of 10^9 frames a second, named .avi",
        y4m % (16, 16, 10**9) + (bytes(384) + b"FRAME\n") * 20,
        "avi",
        fine=True,
    )
    yield check("GIF of 100,000 frames, named .avi", gif(100_000, 16), "avi", fine=True)
    yield check("GIF of 3,000 frames of 5,000 × 5,000, named .avi", gif(3_000, 5_000), "avi", fine=True)
    listed = b"ffconcat version 1.0\nfile good.mp4\n"
    yield Input(name="a list of other files, as first frames",
                verb="generate run --class a --first-frames hostile.mp4:2 --device cpu",
                files={"hostile.mp4": listed, "good.mp4": runs.clip},
                copies={"run": runs.checkpoint("clips")})  # fmt: skip
    yield check("a list of other files, for FFmpeg's concat", listed + b"file other.mp4\n")
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n%s\n#EXT-X-ENDLIST\n"
    yield check("a playlist of another file", playlist % b"good.mp4")
    yield check("a playlist of a server", playlist % b"http://127.0.0.1:9/x.ts")


def edits(runs: Runs) -> Iterator[Input]:
    bomb = png_of(60_000, 60_000, zeros(60_000 * 7501), 1, 0)
    large = png_of(13_300, 13_300, zeros(13_300 * 13_301), 8, 0)
    still, moving = {"run": runs.checkpoint()}, {"run": runs.checkpoint("clips")}
    for name, content in (("of 60,000 × 60,000", bomb), ("of 13,300 × 13,300", large), ("that is a text", b"x" * 100)):
        yield Input(name=f"a picture {name}", verb="edit run hostile.png --mask mask.png --class a --device cpu",
                    files={"hostile.png": content, "mask.png": runs.picture}, copies=still)  # fmt: skip
        yield Input(name=f"a mask {name}", verb="edit run good.png --mask hostile.png --class a --device cpu",
                    files={"hostile.png": content, "good.png": runs.picture}, copies=still)  # fmt: skip
    for name, content in (
        ("of 100,000 frames", gif(100_000, 16)),
        ("of 3,000 frames of 5,000 × 5,000", gif(3_000, 5_000)),
    ):
        yield Input(
            name=f"a clip {name}",
            verb="edit run hostile.gif --from 0.1 --to 0.2 --class a --device cpu",
            files={"hostile.gif": content},
            copies=moving,
        )
        yield Input(name=f"a mask {name}", verb="edit run good.gif --mask hostile.gif --class a --device cpu",
                    files={"hostile.gif": content, "good.gif": gif(4, 16)}, copies=moving)  # fmt: skip
    yield Input(name="first frames of garbage", verb="generate run --class a --first-frames hostile.mp4:2 --device cpu",
                files={"hostile.mp4": b"\0" * 5000}, copies=moving)  # fmt: skip
    yield Input(name="first frames, 999,999,999 of them",
                verb="generate run --class a --first-frames hostile.gif:999999999 --device cpu",
                files={"hostile.gif": gif(100_000, 500)}, copies=moving)  # fmt: skip
    for name, content in (
        ("that are no text", np.random.default_rng(0).bytes(100_000)),
        ("of 200 MB", b"ab\n" * 66_000_000),
        ("in one line of 200 MB", b"a" * 200_000_000),
        ("of none", b"\n" * 1000),
        ("nested", nested(100_000)),
    ):
        yield Input(name=f"prompts {name}", verb="generate run --prompts hostile.txt --device cpu",
                    files={"hostile.txt": content}, copies={"run": runs.checkpoint("speech")})  # fmt: skip


def checkpoints(runs: Runs) -> Iterator[Input]:
    there = "hostile/checkpoints/step-00000001/"
    state = json.loads((runs.checkpoint() / "checkpoints/step-00000001/state.json").read_text())
    own = {"format": state.pop("format"), **state}
    bare = {key: value for key, value in own.items() if key != "sha256"}  # hashes would tell that a file was changed

    def generate(name: str, files: Files, verb: str = "generate hostile --class a") -> Input:
        placed = {there + key: value for key, value in files.items()}
        if "state.json" not in files:
            placed[there + "state.json"] = json.dumps(bare).encode()
        return Input(name=name, verb=f"{verb} --device cpu", files=placed, copies={"hostile": runs.checkpoint()})

    def changed(**changes: Any) -> Files:
        return {"state.json": json.dumps({**bare, **changes}).encode()}

    one = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    weights = {
        "a header of 2^60 bytes": tensors_file({}, size=2**60),
        "a header of 90 MB": tensors_file(b'{"a": "' + b"x" * 90_000_000 + b'"}'),
        "a header nested 100,000 deep": tensors_file(b'{"a":' * 100_000),
        "a shape of 2^62": tensors_file({"a": {**one, "shape": [2**62]}}, bytes(8)),
        "a shape whose product wraps to 2": tensors_file({"a": {**one, "shape": [2**63, 2, 2]}}, bytes(8)),
        "tensors that overlap": tensors_file({"a": one, "b": {**one, "data_offsets": [4, 12]}}, bytes(12)),
        "offsets beyond the end": tensors_file({"a": {**one, "data_offsets": [2**40, 2**40 + 8]}}, bytes(8)),
        "a name twice": tensors_file(b'{"a": %b, "a": %b}' % ((json.dumps(one).encode(),) * 2), bytes(8)),
        "other tensors": tensors_file({"a": one}, bytes(8)),
        "a pickle": pickle.dumps(Shell()),
        "nothing": b"",
    }
    for name, content in weights.items():
        yield generate(f"weights: {name}", {"averaged.safetensors": content})
    true = (runs.checkpoint() / "checkpoints/step-00000001/averaged.safetensors").read_bytes()
    yield generate(
        "weights: one byte changed, with hashes",
        {"averaged.safetensors": true[:-1] + b"!", "state.json": json.dumps(own).encode()},
    )
    yield generate("state: nested 100,000 deep", {"state.json": nested(100_000)})
    yield generate("state: an integer of 10,000 digits", {"state.json": b"9" * 10_000})
    yield generate("state: a list", {"state.json": b"[]"})
    yield generate("state: not UTF-8", {"state.json": b"\xff\xfe"})
    yield generate("state: folder 5", changed(folder=5))
    yield generate("state: folder with a zero byte", changed(folder="a\0b"))
    yield generate("state: folder of 100,000 characters", changed(folder="a/" * 50_000))
    yield generate("state: sha256 5", changed(sha256=5))
    yield generate("state: sha256 of numbers", changed(sha256={"averaged.safetensors": 5}))
    yield generate("state: condition 5", changed(condition=5))
    yield generate("state: classes 5", changed(condition={"classes": 5}))
    yield generate("state: classes of numbers", changed(condition={"classes": [1, [2], {}]}))
    yield generate("state: 10 million classes", changed(condition={"classes": ["x"] * 10_000_000}))
    go_on = "train recipe.yaml --out hostile --resume"
    for key, value in (
        ("step", -1),
        ("step", "x"),
        ("step", 10**30),
        ("seconds", "x"),
        ("seconds", -5),
        ("cursor", 5),
        ("cursor", {"epoch": -1, "batch": -1}),
        ("cursor", {"epoch": "x", "batch": None}),
        ("corpus", 5),
        ("folder", []),
    ):
        more = generate(f"to go on from, {key} {json.dumps(value)}", {**changed(**{key: value})}, go_on)
        yield Input(
            name=more.name,
            verb=more.verb,
            copies=more.copies,
            files={**more.files, "recipe.yaml": runs.recipe(optim__steps=2)},
        )
    for key in ("cursor", "seconds", "step"):
        less = {"state.json": json.dumps({k: v for k, v in bare.items() if k != key}).encode()}
        more = generate(f"to go on from, no {key}", less, go_on)
        yield Input(
            name=more.name,
            verb=more.verb,
            copies=more.copies,
            files={**more.files, "recipe.yaml": runs.recipe(optim__steps=2)},
        )
    training = generate(
        "to go on from, other tensors of the optimiser",
        {"training.safetensors": tensors_file({"a": one}, bytes(8))},
        go_on,
    )
    yield Input(
        name=training.name,
        verb=training.verb,
        copies=training.copies,
        files={**training.files, "recipe.yaml": runs.recipe(optim__steps=2)},
    )
    yield generate("recipe: a Python tag", {"recipe.yaml": b'name: !!python/object/apply:os.system ["touch ../ran"]\n'})
    yield generate("recipe: nothing", {"recipe.yaml": b""})
    yield generate("recipe: model.width 10^9", {"recipe.yaml": runs.recipe(model__width=10**9)})
    vae = runs.recipe(tokenizer={"kind": "kl-vae", "model": "vae", "size": [8, 8], "allow_pickle": True})
    config = {"_class_name": "AutoencoderKL", "block_out_channels": [32], "layers_per_block": 1,
              "down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"]}  # fmt: skip
    torch_pickle = pickle.dumps({"x": Shell()})
    for name, key in (
        ("a VAE whose weights are a pickle", "diffusion_pytorch_model.bin"),
        ("a VAE with code of its own", "evil.py"),
    ):
        code = config | ({"auto_map": {"AutoModel": "evil.Evil"}, "_class_name": "Evil"} if key == "evil.py" else {})
        more = generate(f"recipe: {name}", {"recipe.yaml": vae})
        payload = torch_pickle if key != "evil.py" else b"import os\nos.system('touch ../ran')\nclass Evil: pass\n"
        yield Input(
            name=more.name,
            verb=more.verb,
            copies=more.copies,
            files={**more.files, "vae/config.json": json.dumps(code).encode(), f"vae/{key}": payload},
        )


def imports(runs: Runs) -> Iterator[Input]:
    def published(name: str, content: bytes, suffix: str = "pth", fine: bool = False) -> Input:
        verb = f"import hostile.{suffix} --recipe imagenet256-b --out run"
        return Input(name=name, verb=verb, files={f"hostile.{suffix}": content}, fine=fine)

    yield published("a pickle that runs a command", pickle.dumps({"model": Shell()}))
    yield published(
        "the same in torch's archive",
        archive({"x/data.pkl": pickle.dumps({"model": Shell()}), "x/version": b"3", "x/byteorder": b"little"}),
    )
    yield published("a pickle that grows to 2^40 items", b"\x80\x04" + b"](]" + b"2" * 40 + b".")
    yield published("a pickle nested 1,000,000 deep", b"\x80\x04" + b"]" * 1_000_000 + b"a" * 999_999 + b".")
    yield published("a pickle of a text of 2^62 bytes", b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x.")
    yield published(
        "an archive that unpacks to 4 GB",
        archive({"x/data.pkl": 1 << 32, "x/version": b"3"}, zipfile.ZIP_DEFLATED),
    )
    yield published("an archive of 100,000 members", archive({f"../../outside/{n}": b"" for n in range(100_000)}))
    yield published("a text", b"no weights\n" * 1000)
    tensor = io.BytesIO()
    torch.save({"model": {"a": torch.zeros(1).expand(1 << 40)}}, tensor)
    yield published("a tensor of 4 TB in 4 bytes", tensor.getvalue())
    yield published("safetensors: a header of 2^60 bytes", tensors_file({}, size=2**60), "safetensors")
    yield published(
        "safetensors: a shape of 2^62",
        tensors_file({"a": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 8]}}, bytes(8)),
        "safetensors",
    )
    yield Input(
        name="a pickle as a VAE",
        verb="import hostile.ckpt --out vae",
        files={"hostile.ckpt": pickle.dumps({"model": Shell()})},
    )


def latents(runs: Runs) -> Iterator[Input]:
    from safetensors.numpy import load_file, save

    folder = runs.root / "latents"
    about = json.loads((folder / "latents.json").read_text())
    del about["sha256"]
    index = load_file(folder / "index.safetensors")
    shard = (folder / "00000.safetensors").read_bytes()
    recipe = runs.recipe(data={"source": "latents", "root": "hostile"})

    def signed(about: Any) -> bytes:
        """With the hash that whoever changes it would put in."""
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        return json.dumps({**about, "sha256": digest}).encode()

    def check(name: str, files: Files, verb: str = "data check recipe.yaml") -> Input:
        placed = {f"hostile/{key}": value for key, value in files.items()}
        return Input(name=name, verb=verb, files={**placed, "recipe.yaml": recipe}, copies={"hostile": folder})

    def indexed(name: str, **changes: Any) -> Input:
        new = save({**index, **changes})
        return check(
            name,
            {"index.safetensors": new, "latents.json": signed({**about, "index": hashlib.sha256(new).hexdigest()})},
        )

    yield check("latents.json nested 100,000 deep", {"latents.json": nested(100_000)})
    yield check("latents.json a list", {"latents.json": b"[]"})
    for key in about:
        if key not in ("format", "index", "seed"):
            yield check(
                f"latents.json: {key} is 5", {"latents.json": signed({**about, key: 5 if about[key] != 5 else "x"})}
            )
    yield check("latents.json: kept without keys", {"latents.json": signed({**about, "kept": {}})})
    yield check(
        "latents.json: 2^62 readings", {"latents.json": signed({**about, "kept": {**about["kept"], "readings": 2**62}})}
    )
    yield check(
        "latents.json: 0 items a shard",
        {"latents.json": signed({**about, "kept": {**about["kept"], "shard_items": 0}})},
    )
    yield check("latents.json: shards of −1 bytes", {"latents.json": signed({**about, "shards": [-1]})})
    yield check("latents.json: folder with a zero byte", {"latents.json": signed({**about, "folder": "a\0b"})})
    other = tensors_file({"tokens": {"dtype": "F32", "shape": [2**61], "data_offsets": [0, 8]}}, bytes(8))
    yield check(
        "a shard whose shape lies",
        {"00000.safetensors": other, "latents.json": signed({**about, "shards": [len(other)]})},
    )
    yield check("a shard with a header of 2^60 bytes", {"00000.safetensors": struct.pack("<Q", 2**60) + shard[8:]})
    yield check("a shard that is cut short", {"00000.safetensors": shard[:-10]})
    bad = tensors_file({"a": {"dtype": "F32", "shape": [2**61], "data_offsets": [0, 8]}}, bytes(8))
    yield check(
        "an index whose shapes lie",
        {"index.safetensors": bad, "latents.json": signed({**about, "index": hashlib.sha256(bad).hexdigest()})},
    )
    yield indexed("index: grids of 2^31", grids=np.full_like(index["grids"], 2**31 - 1))
    yield indexed("index: grids of −1", grids=np.full_like(index["grids"], -1))
    yield indexed(
        "index: begins at 2^40",
        begin=np.full_like(index["begin"], 2**40 if index["begin"].dtype.itemsize == 8 else 2**31 - 1),
    )
    yield indexed("index: begins at −1", begin=np.full_like(index["begin"], -1))
    yield indexed(
        "index: sizes that are not there",
        spec=np.full_like(index["spec"], 99),
        header=np.full_like(index["header"], 99),
    )
    yield indexed("index: labels that are not there", label=np.full_like(index["label"], 99))
    yield indexed("index: names that end beyond the end", name_ends=np.full_like(index["name_ends"], 2**31 - 1))
    yield indexed("index: names that are not UTF-8", names=np.full_like(index["names"], 255))
    yield indexed("index: fewer begins than items", begin=index["begin"][:1])
    yield indexed("index: all is floats", **{key: value.astype(np.float32) for key, value in index.items()})


def shards(runs: Runs) -> Iterator[Input]:
    data = {"source": "shards", "urls": "hostile.tar", "media": "picture", "size": [8, 8], "readers": 1}
    recipe = runs.recipe(data=data, condition__kind="class")

    def member(
        name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "", size: int | None = None
    ) -> bytes:
        head = tarfile.TarInfo(name)
        head.type, head.linkname, head.size = kind, link, len(content) if size is None else size
        return head.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)

    good = member("good.png", runs.picture) + member("good.cls", b"a")

    def check(name: str, members: bytes, fine: bool = False, end: bytes = bytes(1024), **files: bytes) -> Input:
        placed = {"hostile.tar": good + members + end, "recipe.yaml": recipe, **files}
        return Input(name=name, verb="data check recipe.yaml", files=placed, fine=fine)

    picture = runs.picture
    yield check("names with ../", member("../../outside.png", picture) + member("../../outside.cls", b"a"))
    yield check("absolute names", member("/outside.png", picture) + member("/outside.cls", b"a"))
    yield check("a link out of the shard", member("x.png", kind=tarfile.SYMTYPE, link="../../../etc/passwd"))
    yield check("a hard link to the recipe", member("x.png", kind=tarfile.LNKTYPE, link="recipe.yaml"))
    yield check("a device", member("x.png", kind=tarfile.CHRTYPE) + member("y.png", kind=tarfile.FIFOTYPE))
    yield check("cut short", member("x.png", picture)[:700], end=b"")
    yield check("a member of 8 EB", member("x.png", size=2**63 - 1))
    yield check("a member of less than nothing", member("x.png", size=-512))
    yield check("a name of 4 GB", member("././@LongLink", kind=tarfile.GNUTYPE_LONGNAME, size=2**32))
    yield check("100,000 empty members", b"".join(member(f"{n}.png") for n in range(100_000)))
    yield check("pickles", member("x.pkl", pickle.dumps(Shell())) + member("y.pyd", pickle.dumps(Shell())))
    yield check("a pickle named .png", member("x.png", pickle.dumps(Shell())) + member("x.cls", b"a"))
    yield check("JSON nested 100,000 deep", member("x.png", picture) + member("x.json", nested(100_000)))
    number = member("x.png", picture) + member("x.json", b'{"label": ' + b"9" * 10_000 + b"}")
    yield check("a label of 10,000 digits", number)
    bomb = member("x.png", png_of(60_000, 60_000, zeros(60_000 * 7501), 1, 0)) + member("x.cls", b"a")
    yield check("a picture of 60,000 × 60,000", bomb)
    wrong = tensors_file({"media": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 8]}}, bytes(8))
    yield check("safetensors whose shape lies", member("x.safetensors", wrong) + member("x.cls", b"a"))
    yield check("no tar at all", b"", end=b"")
    whole = {"hostile.tar": np.random.default_rng(0).bytes(100_000), "recipe.yaml": recipe}
    yield Input(name="garbage", verb="data check recipe.yaml", files=whole)
    index = {"hostile.tar": good + bytes(1024), "recipe.yaml": recipe}
    yield Input(
        name="an index nested 100,000 deep",
        verb="data check recipe.yaml",
        files={**index, "index.json": nested(100_000)},
    )
    for name, urls in (
        ("a program", "pipe:touch ../ran"),
        ("10^12 names", "hostile{0..999999999999}.tar"),
        ("a file://", "file:///etc/passwd"),
    ):
        named = runs.recipe(data={**data, "urls": urls}, condition__kind="class")
        yield Input(name=f"urls: {name}", verb="data check hostile.yaml", files={**index, "hostile.yaml": named})


KINDS: dict[str, Callable[[Runs], Iterator[Input]]] = {
    "recipe": recipes, "picture": pictures, "sound": sounds, "clip": clips, "edit": edits, "checkpoint": checkpoints,
    "import": imports, "latents": latents, "shard": shards,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=KINDS)
    args = parser.parse_args()
    import_all()
    torch.set_num_threads(1)
    table = Table("input", "verb", "code", "what was said", "s", "MiB", "wrong")
    count, wrong = 0, 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["XDG_CACHE_HOME"], os.environ["HF_HUB_OFFLINE"] = str(root / "cache"), "1"
        (root / "made").mkdir()
        runs = Runs(root / "made")
        for kind in args.only or KINDS:
            for one in KINDS[kind](runs):
                found = give(one, root)
                count, wrong = count + 1, wrong + bool(found.wrong)
                verb = " ".join(
                    word for word in one.verb.split()[:2] if "." not in word and word not in ("run", "hostile")
                )
                name = f"{kind}: {one.name}{'°' if one.fine else ''}"
                row = (
                    name,
                    verb,
                    found.code,
                    found.said[:SAID],
                    f"{found.seconds:.1f}",
                    f"{found.mib:.0f}",
                    found.wrong,
                )
                table.add_row(*row)
                print(" | ".join(row), flush=True)
    Console(width=240).print(table)
    print(f"{count} inputs, {wrong} of them with a wrong outcome")
    sys.exit(bool(wrong))


def import_all() -> None:
    """All that the verbs import when they need it, before any process is forked."""
    import av  # noqa: F401
    import diffusers  # noqa: F401
    import soundfile  # noqa: F401
    import torchaudio.functional  # noqa: F401
    import torchvision.transforms.functional  # noqa: F401

    import djepa_mm.data.check
    import djepa_mm.data.encoding
    import djepa_mm.door
    import djepa_mm.runs.published  # noqa: F401


if __name__ == "__main__":
    main()
