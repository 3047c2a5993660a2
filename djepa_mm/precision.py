"""What a device is fast at, and how its speed is used."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_CASTING = threading.Lock()


def fast_bf16(device: torch.device) -> bool:
    """Whether products of bf16 matrices are faster there than those of fp32."""
    if device.type != "cpu":
        return True
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


@cache  # a run after another in one process finds what the first one found
def matrix_speed(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs a second that a product of two large matrices reaches there, the best of a few."""
    size = 1024 if device.type == "cpu" else 8192
    one, other = (torch.full((size, size), 0.5, device=device, dtype=dtype) for _ in range(2))  # draws nothing
    best = math.inf
    for _ in range(4):
        began = time.perf_counter()
        product = one @ other
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
        del product
    return 2 * size**3 / best


@contextmanager
def cast_linears(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """In here the linear layers hold their weights in another type, as autocast would cast them for each product.

    Autocast keeps its casts only of weights that require a gradient; those of others it casts anew at every call, a
    quarter of the time of sampling. What is computed is the same to the bit."""
    held = [p for layer in module.modules() if isinstance(layer, nn.Linear) for p in layer.parameters(recurse=False)]
    with _CASTING:  # one thread at a time: another would take the cast weights for the whole ones
        whole = [parameter.data for parameter in held]
        try:
            for parameter in held:
                parameter.data = parameter.data.to(dtype)
            yield
        finally:
            for parameter, data in zip(held, whole, strict=True):
                parameter.data = data


class _StaysFloat(TorchFunctionMode):
    """Where somebody else's code casts a tensor to bf16, it gets a copy in fp32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.bfloat16:
            return args[0].float().clone()
        return func(*args, **(kwargs or {}))


def without_slow_bf16(device: torch.device) -> AbstractContextManager[Any]:
    """For code that computes in bf16 on its own account, such as torch's Muon: fp32 where bf16 is slow, which on a CPU
    that does not know it is 60 times."""
    return nullcontext() if fast_bf16(device) else _StaysFloat()
