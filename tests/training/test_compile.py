"""torch.compile of the blocks: how they are wrapped. The C++ that torch makes of their graph is torch's own matter."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from djepa_mm.core.nn.blocks import Transformer
from djepa_mm.ranks import ALONE
from djepa_mm.recipe.schema import ComputeConfig
from djepa_mm.training.wrap import ready_to_sample, wrap


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


def test_compiled_blocks_learn_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph, forwards and backwards, for all lengths."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # traced alike, no C++ made
    plain = Transformer(width=16, depth=1, heads=2, mlp_ratio=2, dropout=0.0, qk_norm=False)
    compiled = wrap(copy.deepcopy(plain), ComputeConfig(compile=True), ALONE, torch.device("cpu"), unused=False)
    expected, before = losses(plain), counters["stats"]["unique_graphs"]
    assert losses(compiled) == pytest.approx(expected, rel=1e-4)
    assert counters["stats"]["unique_graphs"] == before + 1, "one graph for all lengths"


def test_samples_come_of_blocks_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of none to see."""
    made: list[object] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    plain = Transformer(width=16, depth=1, heads=2, mlp_ratio=2, dropout=0.0, qk_norm=False)
    compiled = wrap(copy.deepcopy(plain), ComputeConfig(compile=True), ALONE, torch.device("cpu"), unused=False)
    for x in (torch.zeros(2, 0, 16), torch.randn(2, 5, 16)):
        with ready_to_sample(compiled):
            assert torch.equal(compiled(x, 0, None, None), plain(x, 0, None, None))
    assert not made
    compiled(torch.randn(2, 5, 16), 0, None, None)
    assert made, "compiled again afterwards"
