"""Which number format a run multiplies in, where its settings leave that to the machine."""

from __future__ import annotations

from collections.abc import Mapping

import torch

# Without one of these a CPU emulates bf16: the student's step took 6 s instead of 0.7 s on an EPYC with AVX2 (EXPERIMENTS.md).
CPU_BF16 = ("avx512_bf16", "amx_bf16")


def resolved(precision: str, device: str, full: str) -> str:
    """The precision; for "auto", bf16 where this type of device ("cpu", "cuda", ...) has it, else the name of full precision."""
    if precision != "auto":
        return precision
    return "bf16" if has_bf16(device) else full


def has_bf16(device: str) -> bool:
    """Whether a device of this type is known to multiply bf16 by itself. False for a CPU that torch is too old to tell of, and untried
    for ARM's and for everything but CPU and CUDA."""
    if device == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.9 has none
    return device == "cpu" and any(capabilities.get(name) for name in CPU_BF16)
