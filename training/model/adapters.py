"""Low-rank adapters (LoRA, Hu et al. 2021) on the UNet and the VAE's encoder, through peft and in its file format.

W x + (alpha / rank) B A x. A starts random and B at zero, so a new adapter has no effect.

How fast it gains one depends on A: Adam's first step changes each weight of B by the learning rate, so W moves by the
learning rate times alpha / rank * sqrt(rank) * the deviation of A. "gaussian" with rank 4 and alpha 8, as published for
GDPO-SR, moves W by the learning rate itself; "kaiming" with alpha = rank by 2 / sqrt(3 fan_in) of it, 28 times less for
a layer of 1,024 inputs."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import save_file
from torch import Tensor, nn

from training.checkpoint import read_tensors

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PARTS = ("unet", "vae_encoder")
# Name endings of the UNet's layers that get an adapter. The time embedding before all blocks gets none.
UNET_LAYERS = (
    *("to_q", "to_k", "to_v", "to_out.0"),
    *("conv1", "conv2", "conv_shortcut", "conv", "conv_out"),
    *("proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
)
# How each residual block takes the time embedding. With one fixed timestep, a change of it is a change of biases.
TIME_LAYER = "time_emb_proj"
# Distribution of A by name, as peft's init_lora_weights: uniform within 1 / sqrt(fan_in); normal with deviation 1 / rank.
INITS: dict[str, Literal["gaussian"] | bool] = {"kaiming": True, "gaussian": "gaussian"}


@dataclass(frozen=True)
class LoraSpec:
    """Which layers an adapter changes, and how."""

    rank: int = 4
    """Rank of the change. A larger value trains more parameters."""
    alpha: int | None = None
    """Strength is alpha / rank; None for alpha = rank, strength 1."""
    part: str = "unet"
    """One of `PARTS`."""
    train_conv_in: bool = True
    """UNet only: train a full copy of the first convolution instead of a low-rank change."""
    init: str = "kaiming"
    """Distribution of the initial A, one of `INITS`."""
    time_emb: bool = True
    """UNet only: also change the residual blocks' `time_emb_proj`, which the published code leaves alone."""

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"LoRA rank must be a positive whole number, got {self.rank!r}")
        if self.alpha is not None and self.alpha < 1:
            raise ValueError(f"LoRA alpha must be a positive whole number or None, got {self.alpha!r}")
        if self.part not in PARTS:
            raise ValueError(f"LoRA part must be {' or '.join(PARTS)}, got {self.part!r}")
        if self.init not in INITS:
            raise ValueError(f"LoRA init must be {' or '.join(INITS)}, got {self.init!r}")


def add_lora(module: nn.Module, spec: LoraSpec, seed: int = 0) -> PeftModel:
    """Wrap a module with LoRA. The initial A is a function of seed; the global random state does not change."""
    if isinstance(module, PeftModel):
        raise ValueError("this module already has an adapter; merge it first")
    whole = ["conv_in"] if spec.part == "unet" and spec.train_conv_in else None
    alpha = spec.rank if spec.alpha is None else spec.alpha
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=alpha,
        init_lora_weights=INITS[spec.init],
        target_modules=_targets(module, spec),
        modules_to_save=whole,
    )
    with _own_random_state(seed):
        return get_peft_model(module, config)


def _targets(module: nn.Module, spec: LoraSpec) -> str:
    """A regular expression that matches exactly the layers that spec selects in this module."""
    layers = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    if spec.part == "vae_encoder":
        names = [name for name in layers if name.startswith("encoder.") or name == "quant_conv"]
        pattern = "|".join(re.escape(name) for name in names)
    else:
        ends = UNET_LAYERS if spec.train_conv_in else (*UNET_LAYERS, "conv_in")
        ends = (*ends, TIME_LAYER) if spec.time_emb else ends
        present = [end for end in ends if any(f".{name}".endswith(f".{end}") for name in layers)]
        names = present
        pattern = rf"(?:.*\.)?(?:{'|'.join(re.escape(end) for end in present)})"
    if not names:
        raise ValueError(f"found no layer for a {spec.part} adapter in this {type(module).__name__}")
    return pattern


@contextmanager
def _own_random_state(seed: int) -> Iterator[None]:
    """Seed the global CPU generator, from which peft draws A, and restore its state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPU's generator too
        yield


@contextmanager
def disabled(model: PeftModel) -> Iterator[PeftModel]:
    """Inside the block, the model computes what its base does, also for a fully trained conv_in. The reference needs no second copy.

    peft sets requires_grad on all adapters when it enables them again. Here each parameter keeps its flag."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with model.disable_adapter():
            yield model
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def merge(model: PeftModel) -> nn.Module:
    """Add the adapter to its base's weights in float32; returns the base, float32 and frozen. The model cannot be used afterwards."""
    base: nn.Module = model.float().merge_and_unload(safe_merge=True)  # safe: weights with NaN are an error
    return base.requires_grad_(False)


def save_adapter(model: PeftModel, folder: str | Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors, which `PeftModel.from_pretrained` can read too."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in _adapter_tensors(model).items()}
    save_file(tensors, target / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = copy.copy(model.peft_config["default"])
    config.inference_mode = True
    config.save_pretrained(str(target))


def load_adapter(base: nn.Module, folder: str | Path, trainable: bool = False) -> PeftModel:
    """Put a saved adapter on base, which is changed in place. Everything stays frozen unless trainable is set."""
    source = Path(folder)
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (source / name).is_file():
            raise FileNotFoundError(
                f"{source} is not an adapter: {name} is missing (expected {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS})"
            )
    config = PeftConfig.from_pretrained(str(source))
    if not isinstance(config, LoraConfig):
        raise ValueError(f"{source} holds a {config.peft_type} adapter, expected LORA")
    config.inference_mode = not trainable
    model = attach(base, config, read_tensors(source / ADAPTER_WEIGHTS), source)
    if not trainable:
        model.requires_grad_(False)
    return model


def attach(base: nn.Module, config: LoraConfig, saved: dict[str, Tensor], source: str | Path) -> PeftModel:
    """Put an adapter with given weights on base, which is changed in place. Raises ValueError if they do not fit base.

    base: UNet or VAE.
    config: of the adapter.
    saved: its weights with the names of `save_adapter`.
    source: where they came from, for errors."""
    if isinstance(base, PeftModel):
        raise ValueError("this module already has an adapter; merge it first")
    try:
        with _own_random_state(0):
            model = get_peft_model(base, config)
    except ValueError as error:
        raise ValueError(f"{source} does not fit this {type(base).__name__}: {error}") from error
    differences = _differences(saved, _adapter_tensors(model))
    if differences:
        model.unload()
        raise ValueError(
            f"{source} does not fit this {type(base).__name__}: {differences[0]} ({len(differences)} tensors differ). "
            "It was made for another base or with another rank"
        )
    set_peft_model_state_dict(model, saved)
    return model


def _adapter_tensors(model: PeftModel) -> dict[str, Tensor]:
    return get_peft_model_state_dict(model, save_embedding_layers=False)


def _differences(saved: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    found = []
    for name in sorted(saved.keys() | wanted.keys()):
        if name not in wanted:
            found.append(f"the base has no place for {name}")
        elif name not in saved:
            found.append(f"{name} is missing")
        elif saved[name].shape != wanted[name].shape:
            found.append(f"{name} is {tuple(saved[name].shape)}, the base needs {tuple(wanted[name].shape)}")
    return found
