"""Where the package's parts lie: in an installed wheel, in a checkout, and in folders of the user's own."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).parent
EXTENSIONS = "DJEPA_MM_EXTENSIONS"  # folders with `conditions/`, `tokenizers/` and `sources/` of the user's own


def part_folder(name: str) -> Path:
    """`recipes` or `tokenizers`: inside the package, where the wheel puts them, else at the top of the checkout."""
    inside = PACKAGE / name
    filled = any(path.suffix in (".py", ".yaml") and path.name != "__init__.py" for path in inside.glob("*"))
    return inside if filled else PACKAGE.parent / name


def extended(own: Path, name: str) -> list[str]:
    """A package's `__path__`: its own folder, then those of that name in the folders of the user's own."""
    roots = [Path(root).expanduser() for root in os.environ.get(EXTENSIONS, "").split(os.pathsep) if root]
    return [str(own), *(str(root / name) for root in roots if (root / name).is_dir())]
