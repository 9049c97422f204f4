"""The device that an option such as `--device cuda` means."""

from __future__ import annotations

import torch


def torch_device(name: str, option: str = "--device") -> str:
    """The device that `name` means here, "auto" being a GPU where there is one; ValueError where it is missing or no device."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise ValueError(f"{option} {name}: no such device; expected auto, cpu, cuda or cuda:N") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"{option} {name}: torch {torch.__version__} finds no CUDA device here; use {option} cpu"
        )
    return name
