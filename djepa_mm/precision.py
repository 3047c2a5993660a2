"""What a device is fast at."""

from __future__ import annotations

import torch


def fast_bf16(device: torch.device) -> bool:
    """Whether products of bf16 matrices are faster there than those of fp32."""
    if device.type != "cpu":
        return True
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
