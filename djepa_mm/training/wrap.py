"""The networks made ready for several processes, for less memory, or for speed: torch's own wrappers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from djepa_mm.core.djepa import DJEPA
from djepa_mm.core.nn.blocks import Transformer, TwoStreamBlock
from djepa_mm.ranks import Ranks, is_split
from djepa_mm.recipe.schema import ComputeConfig


def wrap_djepa(model: DJEPA, compute: ComputeConfig, ranks: Ranks, device: torch.device) -> nn.Module:
    """The online networks as training calls them. Shards the model, where that is asked for, in place."""
    if compute.shard and ranks.world > 1:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method  # a second to import

        prepare(model, compute)
        mesh = init_device_mesh(device.type, (ranks.world,))
        for networks in (model.online, model.averaged):
            for transformer in (module for module in networks.modules() if isinstance(module, Transformer)):
                for block in transformer.blocks:
                    fully_shard(block, mesh=mesh)
            fully_shard(networks, mesh=mesh, reshard_after_forward=networks is model.averaged)
        register_fsdp_forward_method(model.averaged, "encode")
        return model.online
    prepare(model.averaged, compute)
    last = model.online.predictor.stack.transformer.blocks[-1]  # of two streams, nothing comes of the condition's half
    unused = model.prediction_weight == 0 or isinstance(last, TwoStreamBlock)
    return wrap(model.online, compute, ranks, device, unused=unused)


def wrap(network: nn.Module, compute: ComputeConfig, ranks: Ranks, device: torch.device, *, unused: bool) -> nn.Module:
    """A network as training calls it, which each process has whole. unused: whether a loss may leave some out."""
    prepare(network, compute)
    if ranks.world == 1:
        return network
    return DistributedDataParallel(
        network,
        device_ids=[device] if device.type == "cuda" else None,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        find_unused_parameters=unused,
    )


def prepare(network: nn.Module, compute: ComputeConfig) -> None:
    """For less memory, or for speed."""
    if compute.compile:
        import torch._dynamo.config  # a second to import
        import torch._inductor.config

        # else torch 2.11 fails on a GPU where lengths vary (pytorch #181563, mended later)
        if hasattr(torch._inductor.config.triton, "coalesce_tiling_analysis"):
            torch._inductor.config.triton.coalesce_tiling_analysis = False
        graphs = 32  # with and without a mask and a gradient, in fp32 and bf16
        torch._dynamo.config.recompile_limit = max(graphs, torch._dynamo.config.recompile_limit)
    for transformer in (module for module in network.modules() if isinstance(module, Transformer)):
        transformer.recompute = compute.recompute
        if compute.compile:
            for block in transformer.blocks:
                block.compile(dynamic=True)


@contextmanager
def ready_to_sample(networks: nn.Module) -> Iterator[None]:
    """In here every process has all of a sharded network's weights, and may use them as often as it likes. Blocks that
    are compiled for training run as they are: sampled by compiled ones, four trainings on a GPU of four ended with an
    illegal access to memory (torch 2.11; the cause was not found)."""
    compiled = any(module._compiled_call_impl is not None for module in networks.modules())
    with torch.compiler.set_stance("force_eager") if compiled else nullcontext(), _whole_weights(networks):
        yield


@contextmanager
def _whole_weights(networks: nn.Module) -> Iterator[None]:
    if not any(is_split(parameter) for parameter in networks.parameters()):
        yield
        return
    from torch.distributed.fsdp import FSDPModule  # a second to import

    sharded = [module for module in networks.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()
