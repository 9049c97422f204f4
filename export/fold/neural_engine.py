"""A one-step model in the form for the Neural Engine: attention by head, and norms whose squares fit half precision.

Weights are shared with the source, whose modules do not change and serve for ONNX."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from calibration.samples import Sample
from export.fold.attention import PromptAttention, SelfAttention
from export.fold.layers import Norm
from export.source import Source


def for_engine(source: Source, photos: Sequence[Sample]) -> tuple[Source, dict[str, float]]:
    """The same model in that form, and for each rescaled norm the factor on its squared values, by name.

    source: a folded one-step model.
    photos: real inputs, on which the norms are measured."""
    modules = {role: shared_copy(module) for role, module in source.modules.items()}
    for part in (part for module in modules.values() for part in module.modules()):
        if isinstance(part, SelfAttention | PromptAttention):
            part.by_head = True
    made = replace(source, modules=modules)
    norms = {
        f"{role}/{name}": part
        for role, module in modules.items()
        for name, part in module.named_modules()
        if isinstance(part, Norm)
    }
    for name, largest in _largest(made, norms, photos).items():
        norms[name].rescale(largest)
    return made, {name: norm.shrink for name, norm in norms.items() if norm.shrink != 1.0}


def shared_copy(module: nn.Module) -> nn.Module:
    """A copy with new modules that share parameters and buffers."""
    kept = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, kept)


def _largest(source: Source, norms: Mapping[str, Norm], photos: Sequence[Sample]) -> dict[str, float]:
    """Largest magnitude of the values that each norm squares, over the photos."""
    found = dict.fromkeys(norms, 0.0)

    def watch(name: str, norm: Norm) -> torch.utils.hooks.RemovableHandle:
        def look(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            found[name] = max(found[name], float(norm.centred(given[0]).abs().max()))

        return norm.register_forward_pre_hook(look)

    handles = [watch(name, norm) for name, norm in norms.items()]
    try:
        for photo in photos:
            source(torch.from_numpy(photo.lr[None]), torch.from_numpy(photo.noise[None]))
    finally:
        for handle in handles:
            handle.remove()
    return found
