"""Parsing of device options such as `--device cuda`."""

from __future__ import annotations

import torch


def torch_device(name: str, option: str = "--device") -> str:
    """The torch device for an option's value. "auto" is a GPU if there is one. Raises ValueError if the device is
    unknown or missing."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise ValueError(f"{option} {name}: no such device; expected auto, cpu, cuda or cuda:N") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{option} {name}: torch {torch.__version__} finds no CUDA device; use {option} cpu")
    return name
