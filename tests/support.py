"""What many tests share."""

from __future__ import annotations

import contextlib
import io
import subprocess
import unittest.mock
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from djepa_mm.media.pictures import Pictures
from djepa_mm.recipe.schema import Recipe
from djepa_mm.recipe.tokenizer import TokenizerRecipe, load_tokenizer_recipe
from djepa_mm.types import ConditionKind

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "djepa_mm"
SHARED = ROOT.parent / "shared"


def ten_classes(recipe: Recipe) -> ConditionKind[Any]:
    """The recipe's kind of condition; where it takes classes, it knows the digits."""
    kind = recipe.condition.build()
    if recipe.condition.kind == "class":
        kind.load_state({"classes": list("0123456789")})
    return kind


def inside(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command line in this process: seconds quicker than in one of its own."""
    from djepa_mm.cli import main

    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with (
        contextlib.chdir(cwd or Path.cwd()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        unittest.mock.patch("sys.argv", ["djepa-mm", *arguments]),
        unittest.mock.patch.dict("os.environ", {"COLUMNS": "200"}),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code
    return subprocess.CompletedProcess(arguments, int(str(code or 0)), out.getvalue(), err.getvalue())


def sets(*overrides: str) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


# --- tokenizers of one's own

SMALL_TOKENIZER = {
    "model": {"width": 24, "depth": 1, "heads": 2, "channels": 3}, "batch": {"size": 4}, "optim.minutes": None,
    "optim.steps": 2, "optim.warmup_steps": 1, "optim.schedule": "constant", "optim.precision": "fp32",
    "run.log_every": 1, "run.samples": 2, "loss.discriminator_channels": 4,
}  # fmt: skip


def realistic(shape: tuple[int, ...], seed: int, count: int = 2) -> Tensor:
    """Media as it is in nature: neighbours alike, off-centre, far from unit variance. (count, *shape) in [-1, 1]."""
    noise = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
    for axis in range(1 if len(shape) == 1 else 2, noise.dim()):  # not along the batch, nor along colours
        noise = sum(noise.roll(step, axis) for step in range(4)) / 4  # type: ignore[assignment]
    return (0.3 * noise + 0.2 * (len(shape) > 1)).clamp(-1, 1)


def write_pictures(root: Path, *shapes: tuple[int, int, int]) -> Path:
    """One of each shape (C, H, W), in two classes."""
    for n, shape in enumerate(shapes):
        path = root / f"class{n % 2}" / f"{n:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Pictures(shape[0]).save(realistic(shape, n)[0], path)
    return root


def of_pictures(root: Path, size: tuple[int, int], **changes: Any) -> TokenizerRecipe:
    """A small tokenizer for patches of 4 × 4 pixels of a folder's pictures."""
    data = {"source": "image-folder", "root": str(root), "size": list(size)}
    tokens = {"kind": "patches", "patch": 4, "size": list(size)}
    return load_tokenizer_recipe("digits-tokens", {"data": data, "tokenizer": tokens, **SMALL_TOKENIZER, **changes})
