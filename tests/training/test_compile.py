"""torch.compile of the blocks, which needs a C++ compiler on a CPU."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import config

from djepa_mm.core.nn.blocks import Transformer
from djepa_mm.ranks import ALONE
from djepa_mm.recipe.schema import ComputeConfig
from djepa_mm.training.wrap import wrap

QUICKLY = {
    "compile_threads": 1,  # no pool of processes, each of which would import torch
    "pattern_matcher": False,
    "cpp.simdlen": 1,
}


def losses(network: torch.nn.Module) -> list[float]:
    """Of two steps, with sequences of different lengths."""
    optimizer, generator, found = torch.optim.SGD(network.parameters(), lr=0.1), torch.Generator().manual_seed(0), []
    for length in (8, 12):
        x = torch.randn(2, length, 16, generator=generator)
        loss = (network(x, 0, None, None) - x.roll(1, dims=1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler (c++) on a CPU")
def test_compiled_blocks_learn_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    plain = Transformer(width=16, depth=1, heads=2, mlp_ratio=2, dropout=0.0, qk_norm=False)
    compiled = wrap(copy.deepcopy(plain), ComputeConfig(compile=True), ALONE, torch.device("cpu"), unused=False)
    expected, before = losses(plain), counters["stats"]["unique_graphs"]
    with config.patch(QUICKLY):
        assert losses(compiled) == pytest.approx(expected, rel=1e-4)
    assert counters["stats"]["unique_graphs"] == before + 1, "one graph for all lengths"
