"""What gets installed, and the floors of the house."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from support import PACKAGE, ROOT

# An import goes to the same floor or down.
FLOORS = (
    ("errors", "kinds", "layout", "types", "core", "media", "weights", "moments", "precision", "ranks"),
    ("conditions", "text_encoders", "tokenizers", "speech"),
    ("recipe",),
    ("data", "runs"),
    ("training", "generation"),
    ("evaluate", "bench"),
    ("__init__", "door"),
    ("cli", "__main__"),
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


# --- floors -----------------------------------------------------------------------------------------------------------


def imports(path: Path, *, at_once: bool = False) -> set[str]:
    """Modules that a file imports, by their full names; `at_once`: those inside its functions left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    later = {
        id(node) for function in ast.walk(tree) if isinstance(function, ast.FunctionDef) for node in ast.walk(function)
    }
    found = set()
    for node in ast.walk(tree):
        if at_once and id(node) in later:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module
            whole = node.module == "djepa_mm"  # of a part of the package, or of what its door offers
            found |= {f"djepa_mm.{alias.name}" for alias in node.names} if whole else {node.module}
    return found


def of_package(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] == "djepa_mm"}


def part(name: str) -> str:
    """The part of the package that a module belongs to; of what the door offers, the door."""
    first = name.split(".")[1] if "." in name else "__init__"
    return first if first in FLOOR else "__init__"


def test_imports_go_down_only() -> None:
    files = {path: path.relative_to(PACKAGE).with_suffix("").parts[0] for path in PACKAGE.rglob("*.py")}
    files |= dict.fromkeys((ROOT / "tokenizers").glob("*.py"), "tokenizers")
    for path, own in files.items():
        assert own in FLOOR, f"{path.relative_to(ROOT)} is on no floor"
        for name in of_package(imports(path)) - {"djepa_mm.__version__"}:
            upwards = FLOOR[part(name)] > FLOOR[own]
            assert not upwards, f"{path.relative_to(ROOT)} is on floor {FLOOR[own]} and imports {name}"


def test_the_core_imports_torch_alone() -> None:
    """The paper can be read, and used, without the rest of the house; diffusers only where its solver is asked for."""
    for path in (PACKAGE / "core").rglob("*.py"):
        for name in of_package(imports(path)):
            assert f"{name}.".startswith("djepa_mm.core."), f"{path.relative_to(ROOT)} imports {name}"
        known = {*sys.stdlib_module_names, "djepa_mm", "torch", "einops"}
        assert {name.split(".")[0] for name in imports(path, at_once=True)} <= known, path.relative_to(ROOT)
        assert {name.split(".")[0] for name in imports(path)} <= known | {"diffusers"}, path.relative_to(ROOT)
    code = """
import importlib, pkgutil, sys
import djepa_mm.core
for module in pkgutil.walk_packages(djepa_mm.core.__path__, "djepa_mm.core."):
    importlib.import_module(module.name)
print(*sys.modules)
"""
    shown = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True).stdout
    loaded = set(shown.split())
    own = {name for name in of_package(loaded) if not f"{name}.".startswith("djepa_mm.core.")}
    assert own <= {"djepa_mm", "djepa_mm.errors", "djepa_mm.layout"}
    heavy = {"PIL", "diffusers", "num2words", "pydantic", "rich", "soundfile", "transformers", "typer", "yaml"}
    assert not loaded & heavy


def test_tokenizers_see_no_core() -> None:
    """Only the shared types, the layers of networks, a reader of weights, media files and vocoders."""
    shared = ("types", "errors", "kinds", "weights", "moments", "media", "core.nn", "speech.vocoders")
    allowed = (*shared, "tokenizers.autoencoder")
    for path in (ROOT / "tokenizers").glob("*.py"):
        for name in of_package(imports(path)):
            assert f"{name}.".startswith(tuple(f"djepa_mm.{part}." for part in allowed)), f"{path.name} imports {name}"


def test_doctor_runs_where_libraries_are_missing() -> None:
    """It is there to name them, so it must not import them."""
    missing = ("einops", "pydantic", "safetensors", "diffusers", "torchaudio", "soundfile", "PIL")
    code = f"import sys; sys.modules.update(dict.fromkeys({missing})); import djepa_mm.cli.doctor as d; d.examine()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)


# --- installations ----------------------------------------------------------------------------------------------------


def tracked() -> dict[str, str]:
    """Files that git tracks, by their paths from the root -> their modes."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone")
    lines = subprocess.run(["git", "ls-files", "-sz"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    pairs = (line.split("\t") for line in lines.split("\0") if line)
    return {name: entry.split()[0] for entry, name in pairs if (ROOT / name).exists()}


def run(*command: str | Path, cwd: Path) -> str:
    """What a command printed, run where nothing of the checkout is found by chance."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What pip can install: an archive of what git tracks, a folder unpacked from it, and what is built from that."""
    root = tmp_path_factory.mktemp("forms")
    archive = root / "djepa-mm-main.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in tracked():
            file.write(ROOT / name, f"{archive.stem}/{name}")
    with zipfile.ZipFile(archive) as file:
        file.extractall(root)
    folder = root / archive.stem
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", root / "dist", folder, cwd=root)
    (wheel,), (sdist,) = ((root / "dist").glob(f"*.{suffix}") for suffix in ("whl", "tar.gz"))
    return {"zip": archive, "editable": folder, "wheel": wheel, "sdist": sdist}


@pytest.fixture(scope="module")
def packaged() -> set[str]:
    """Files of the package as an installation has them."""
    parts = [name.split("/") for name in tracked()]
    inside = {"/".join(part) for part in parts if part[0] == "djepa_mm"}
    return inside | {"/".join(["djepa_mm", *part]) for part in parts if part[0] in ("recipes", "tokenizers")}


def install(form: Path, where: Path, *, editable: bool = False) -> tuple[Path, Path]:
    """(Folder of the commands, site-packages) of a new environment that shares the dependencies of this one."""
    venv.create(where, symlinks=os.name != "nt")
    bare = {"base": str(where), "platbase": str(where)}
    scripts, packages = (Path(sysconfig.get_path(name, "venv", vars=bare)) for name in ("scripts", "purelib"))
    shared = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "shared.pth").write_text("\n".join(shared), encoding="utf-8")
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--no-compile", "--ignore-installed"]
    options += ["--disable-pip-version-check", *(["--editable"] if editable else [])]
    run(scripts / "python", "-m", "pip", "install", *options, form, cwd=where)
    return scripts, packages


BOTH = """
import sys
from djepa_mm.cli import main

for arguments in (["train", "digits", "--out", "run", *sys.argv[1:]], ["generate", "run", "--class", "7"]):
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
"""


@pytest.mark.parametrize("form", ["editable", "wheel", "sdist", "zip"])
def test_installed(form: str, forms: dict[str, Path], packaged: set[str], tmp_path: Path) -> None:
    scripts, packages = install(forms[form], tmp_path / "venv", editable=form == "editable")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert "\nspoken-digits" in run(scripts / "djepa-mm", "recipes", "list", cwd=elsewhere)
    code = "import sys, importlib.util as u; print(u.find_spec('djepa_mm.tokenizers.mel').origin, *sys.path, sep='\\n')"
    mel, *path = run(scripts / "python", "-c", code, cwd=elsewhere).splitlines()
    installed = {file.relative_to(packages) for file in (packages / "djepa_mm").rglob("*") if file.is_file()}
    if form == "editable":
        assert Path(mel).samefile(forms[form] / "tokenizers" / "mel.py")
        assert str(forms[form]) not in path, "tests, benchmarks and cli.py would be importable from everywhere"
        assert not installed, "a second, frozen copy"
    else:
        assert Path(mel).samefile(packages / "djepa_mm" / "tokenizers" / "mel.py")
        assert {file.as_posix() for file in installed if "__pycache__" not in file.parts} == packaged
    if form == "wheel":
        small = ("model.width=32", "model.depth=1", "model.heads=2", "head.width=32", "head.blocks=1", "head.steps=2")
        small += ("batch.size=16", "sample.steps=2", "optim.steps=2", "optim.minutes=null", "run.sample_every=null")
        sets = [word for override in small for word in ("--set", override)]
        (elsewhere / "both.py").write_text(BOTH)
        shown = run(scripts / "python", "both.py", *sets, cwd=elsewhere)
        assert "djepa-mm generate" in shown
        assert (elsewhere / "run" / "generated" / "0000-7.png").is_file()


def test_wheel_and_sdist_hold_only_the_package(forms: dict[str, Path], packaged: set[str]) -> None:
    names = zipfile.ZipFile(forms["wheel"]).namelist()
    assert {name for name in names if ".dist-info/" not in name} == packaged
    assert {"djepa_mm/py.typed", "djepa_mm/tokenizers/mel.py", "djepa_mm/recipes/digits.yaml"} <= packaged
    with tarfile.open(forms["sdist"]) as archive:
        tops = {name.split("/")[1] for name in archive.getnames()}
    around = {".gitignore", "LICENSE", "PKG-INFO", "README.md", "hatch_build.py", "pyproject.toml"}
    assert tops == {"djepa_mm", "recipes", "tokenizers", *around}


def test_no_symbolic_link() -> None:
    """Archives and Windows turn them into files that hold a path."""
    assert not [name for name, mode in tracked().items() if mode == "120000"]


def test_transformers_imports_from_the_root() -> None:
    """The folder `tokenizers/` must not shadow the package that transformers needs."""
    pytest.importorskip("transformers")
    code = "import transformers, tokenizers; tokenizers.Tokenizer; transformers.PreTrainedTokenizerFast"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
