"""The wheel, and the floors of the house."""

from __future__ import annotations

import ast
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from support import PACKAGE, ROOT

# An import goes to the same floor or down. `data`, `tokenizers` and `vocoders` hold one floor each.
FLOORS = (
    ("errors", "types", "nn", "espeak", "page", "media", "runlog", "precision"),
    ("text", "masking", "conditions", "heads", "averaging", "checkpoint", "vocoders", "tokenizers"),
    ("djepa",),
    ("sampler", "recipe"),
    ("build",),
    ("data",),
    ("generate", "edit", "info", "doctor", "evaluate", "tokens"),
    ("train",),
    ("train_vocoder",),
    ("demo",),
    ("cli", "__main__"),
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, at its top or inside its functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "djepa_mm" else [node.module]
            )
        found |= {name for name in names if name.startswith("djepa_mm.")}
    return found


def test_imports_go_down_only() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        own = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if own == "__init__":
            continue
        for name in imports(path):
            other = name.split(".")[1]
            assert FLOOR[other] <= FLOOR[own], f"{path.name} is on floor {FLOOR[own]} and imports {name}"


def test_doctor_runs_where_libraries_are_missing() -> None:
    """It is there to name them, so it must not import them."""
    missing = ("einops", "pydantic", "safetensors", "diffusers", "torchaudio", "soundfile", "PIL")
    code = f"import sys; sys.modules.update(dict.fromkeys({missing})); import djepa_mm.cli.doctor as d; d.examine()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)


def test_tokenizers_see_only_types_media_files_and_vocoders() -> None:
    for path in sorted((ROOT / "tokenizers").glob("*.py")):
        seen = {name for name in imports(path) if not name.startswith("djepa_mm.speech.vocoders")}
        assert seen <= {"djepa_mm.types", "djepa_mm.media.files"}, path.name


def test_core_names_no_modality() -> None:
    words = ("speech", "audio", "mel", "image", "picture", "video", "waveform")
    names = ("djepa", "sampler", "masking", "averaging", "conditions", "checkpoint", "train", "build", "recipe")
    for path in [
        *(PACKAGE / f"{n}.py" for n in names),
        *(PACKAGE / "nn").glob("*.py"),
        *(PACKAGE / "heads").glob("*.py"),
    ]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        identifiers = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        identifiers |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
        identifiers |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        parts = {part for name in identifiers for part in name.lower().split("_")}
        assert not parts & set(words), path.name


def test_wheel_and_sdist_hold_only_the_package(tmp_path: Path) -> None:
    """Built without isolation from a copy of what git tracks."""
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    source = tmp_path / "source"
    for name in filter(None, files.split("\0")):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            target.symlink_to((ROOT / name).readlink())
        elif (ROOT / name).exists():
            target.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"djepa_mm"}
    for name in ("tokenizers/mel.py", "recipes/digits.yaml", "cli.py", "nn/blocks.py", "data/digits.py", "py.typed"):
        assert f"djepa_mm/{name}" in names
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        tops = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    allowed = {
        "djepa_mm",
        "djepa_mm.egg-info",
        "pyproject.toml",
        "setup.cfg",
        "README.md",
        "LICENSE",
        "PKG-INFO",
        "MANIFEST.in",
    }
    assert tops <= allowed
