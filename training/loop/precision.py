"""Chooses the number format of a run, if its settings leave that to the machine."""

from __future__ import annotations

from collections.abc import Mapping

import torch

# CPU features for bf16. Without them it is emulated: on an EPYC with AVX2 a step took 6 s instead of 0.7 s (EXPERIMENTS.md).
CPU_BF16 = ("avx512_bf16", "amx_bf16")


def resolved(precision: str, device: str, full: str) -> str:
    """The precision to use.

    precision: a setting's value. "auto" becomes "bf16" if the device supports it, else `full`.
    device: type of the device, such as "cpu" or "cuda".
    full: name of full precision."""
    if precision != "auto":
        return precision
    return "bf16" if has_bf16(device) else full


def has_bf16(device: str) -> bool:
    """Whether a device of this type is known to compute bf16 in hardware.

    False for a CPU that this torch version cannot describe, for ARM CPUs, and for devices other than CPU and CUDA: all untested."""
    if device == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.9 has none
    return device == "cpu" and any(capabilities.get(name) for name in CPU_BF16)
