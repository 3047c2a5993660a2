"""What many tests share."""

from __future__ import annotations

import contextlib
import io
import subprocess
import unittest.mock
from pathlib import Path
from typing import Any

from djepa_mm.recipe.schema import Recipe
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
