"""Versions, devices, and what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import typer

import djepa_mm
from djepa_mm.cli.options import console

if TYPE_CHECKING:
    from rich.table import Table

REQUIRED = (
    *("torch", "torchvision", "torchaudio", "diffusers", "einops", "pydantic", "rich", "safetensors", "soundfile"),
    *("tensorboard", "typer", "num2words", "platformdirs", "torchmetrics"),
)
OPTIONAL = {
    "espeakng-loader": ("espeakng_loader", "phonemes and the spoken-digits corpus", "speech"),
    "transformers": ("transformers", "published vocoders and Whisper", "speech"),
    "dtw-python": ("dtw", "mel-cepstral distortion", "evaluate"),
    "pocketsphinx": ("pocketsphinx", "word error rates", "evaluate"),
    "decord": ("decord", "reading video", "video"),
    "av": ("av", "writing video, and reading it a second way", "video"),
    "scikit-learn": ("sklearn", "the digits corpus", "demo"),
}


def doctor() -> None:
    """Versions, devices, and what is missing."""
    table, healthy = examine()
    console().print(table)
    if not healthy:
        raise typer.Exit(1)


def examine() -> tuple[Table, bool]:
    """Table to print, and whether everything that is required is there."""
    import torch
    from rich.table import Table

    from djepa_mm.precision import fast_bf16

    table = Table("what", "state", title=f"djepa-mm {djepa_mm.__version__}")
    healthy = True
    table.add_row("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in REQUIRED:
        try:
            table.add_row(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            table.add_row(name, 'missing: pip install "djepa-mm"')
            healthy = False
    minor = {name: _minor(name) for name in ("torch", "torchaudio")}
    if minor["torch"] != minor["torchaudio"]:
        table.add_row(
            "torch and torchaudio", f"do not match ({minor['torch']}, {minor['torchaudio']}): install equal versions"
        )
        healthy = False
    for name, (module, use, extra) in OPTIONAL.items():
        table.add_row(
            f"{name} (optional)", _state(name, module) or f'missing, for {use}: pip install "djepa-mm[{extra}]"'
        )
    table.add_row("CPU", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads in use")
    bf16 = "fast" if fast_bf16(torch.device("cpu")) else "slow: fp32 is used instead"
    table.add_row("bf16 on the CPU", bf16)
    if torch.cuda.is_available():
        for n in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(n)
            table.add_row(f"cuda:{n}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    else:
        table.add_row("CUDA", "no device; training runs on the CPU")
    table.add_row("disk free here", f"{shutil.disk_usage(Path.cwd()).free / 2**30:.0f} GiB")
    return table, healthy


def _state(name: str, module: str) -> str | None:
    """The version of an optional package; None where it is not there."""
    if importlib.util.find_spec(module) is None:
        return None
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # a module without a package, such as a copied folder
        return "there, of an unknown version"


def _minor(name: str) -> str:
    try:
        return ".".join(importlib.metadata.version(name).split(".")[:2])
    except importlib.metadata.PackageNotFoundError:
        return "missing"
