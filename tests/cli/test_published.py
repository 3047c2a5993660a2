"""The verbs `import` and `export`."""

from __future__ import annotations

from pathlib import Path

import torch
from reference import GAUSS, SIZES, reference
from safetensors.torch import load_file
from support import inside, sets


def test_import_and_export_a_model(tmp_path: Path) -> None:
    found = reference("djepa-gauss")
    found.published(tmp_path / "theirs.pth")
    (tmp_path / "names.txt").write_text("".join(f"class-{n}\n" for n in range(10)))
    sizes = sets(*SIZES, *GAUSS)
    arguments = ("import", "theirs.pth", "--recipe", "imagenet256-b", "--classes", "names.txt", "--out", "run")
    result = inside(*arguments, *sizes, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "generate from it: djepa-mm generate run --class class-0\n"
    result = inside("export", "run", "--to", "djepa", cwd=tmp_path)
    assert result.stdout == "run/djepa.safetensors\n"
    back = load_file(tmp_path / "run" / "djepa.safetensors")
    assert back.keys() == found.weights.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in found.weights.items())
    again = inside(*arguments, *sizes, cwd=tmp_path)
    assert (again.returncode, again.stderr) == (
        2, "djepa-mm: run: holds a run already; choose another folder: --out\n",
    )  # fmt: skip
    result = inside("import", "theirs.pth", "--recipe", "imagenet256-b", "--out", "other", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("djepa-mm: theirs.pth: does not fit imagenet256-b: ")
    assert result.stderr.count("\n") == 1
    result = inside("export", "run", "--to", "mar", cwd=tmp_path)
    assert result.stderr == "djepa-mm: --to mar: run is of djepa's layout; export it: --to djepa\n"


def test_import_and_export_the_vae(tmp_path: Path) -> None:
    found = reference("kl16")
    torch.save({"model": found.weights}, tmp_path / "kl16.ckpt")
    result = inside("import", "kl16.ckpt", "--out", "vae", cwd=tmp_path)
    assert result.stdout == "use it: djepa-mm train imagenet256-b --set tokenizer.model=vae\n"
    result = inside("export", "vae", "--to", "kl16", "--out", "back.safetensors", cwd=tmp_path)
    assert result.stdout == "back.safetensors\n"
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == found.weights.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in found.weights.items())
    result = inside("import", "kl16.ckpt", "--classes", "names.txt", "--out", "other", cwd=tmp_path)
    assert result.stderr.startswith("djepa-mm: --classes and --set belong to a model: give its --recipe")
