"""Save one-step models for `training.model.loading.load_model`: adapters with a reference to their base, or the whole model merged."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from training.checkpoint import read_json, swapped_in
from training.model.adapters import merge, save_adapter
from training.model.loading import (
    ADAPTERS,
    FORMAT_VERSION,
    MERGED,
    MODEL_FILE,
    PART_CLASSES,
    SCHEDULER_FILE,
    UNET_ADAPTER,
    VAE_ADAPTER,
)
from training.model.one_step import OneStepModel


def save_run_model(
    folder: str | Path,
    *,
    base: str | Path,
    noise_timestep: int,
    denoise_timestep: int,
    unet_adapter: nn.Module | None,
    vae_adapter: nn.Module | None,
    provenance: Mapping[str, Any],
    text_base: str | Path | None = None,
    noise_channels: int | None = None,
) -> None:
    """Write RUN/model at once: model.json and the adapters.

    folder: to write.
    base, text_base: source and base as given to `load_model`. Local paths are stored relative to folder, so that both
        can be moved together.
    noise_timestep, denoise_timestep: of the model.
    unet_adapter, vae_adapter: PeftModels; None for none.
    provenance: how the model was made.
    noise_channels: of the model; None for the base's."""
    target = Path(folder)
    adapters = {VAE_ADAPTER: vae_adapter, UNET_ADAPTER: unet_adapter}
    present = {name: adapter for name, adapter in adapters.items() if adapter is not None}
    if not present:
        raise ValueError(
            "a run's model consists of adapters, got none; use save_merged for a fully trained model"
        )
    document = {
        "format_version": FORMAT_VERSION,
        "kind": ADAPTERS,
        "base": _portable(base, target),
        "text_base": None if text_base is None else _portable(text_base, target),
        "noise_timestep": noise_timestep,
        "denoise_timestep": denoise_timestep,
        **({} if noise_channels is None else {"noise_channels": noise_channels}),
        "adapters": list(present),
        "provenance": dict(provenance),
    }
    with _model_folder(target) as fresh:
        for name, adapter in present.items():
            save_adapter(adapter, fresh / name)
        _write_json(fresh / MODEL_FILE, document)


def save_merged(
    model: OneStepModel,
    folder: str | Path,
    provenance: Mapping[str, Any] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write the whole model at once as a diffusers folder with model.json. Adapters are merged into a copy in float32.

    model: to save.
    folder: to write.
    provenance: how the model was made.
    dtype: of the stored VAE and UNet. `load_model` returns float32 in any case.

    Raises ValueError if a weight exceeds the range of dtype."""
    document = {
        "format_version": FORMAT_VERSION,
        "kind": MERGED,
        "noise_timestep": model.noise_timestep,
        "denoise_timestep": model.denoise_timestep,
        "noise_channels": model.noise_channels,
        "provenance": dict(provenance or {}),
    }
    with _model_folder(Path(folder)) as fresh:
        for name in PART_CLASSES:
            part: Any = model.parts()[name]
            if hasattr(part, "merge_and_unload"):
                part = merge(copy.deepcopy(part))
            if dtype != torch.float32:
                part = _narrowed(copy.deepcopy(part), dtype)
            part.to(memory_format=torch.contiguous_format)  # the only memory format in safetensors
            part.save_pretrained(str(fresh / name), safe_serialization=True)
            config = read_json(fresh / name / "config.json")
            config.pop("_name_or_path", None)  # a local path
            if config["_class_name"] == "AutoencoderTiny":
                config.pop("block_out_channels", None)  # diffusers adds this key and then warns about it
            _write_json(fresh / name / "config.json", config)
        if model.text is not None:
            model.text.save(fresh)
        _write_json(fresh / SCHEDULER_FILE, model.schedule.to_config())
        _write_json(fresh / MODEL_FILE, document)


def _narrowed(part: nn.Module, dtype: torch.dtype) -> nn.Module:
    largest = torch.finfo(dtype).max
    for name, value in part.state_dict().items():
        if value.is_floating_point() and value.numel() and not value.abs().max() <= largest:
            raise ValueError(
                f"{name} holds values beyond {largest:g}, the largest of {dtype}: save it in float32"
            )
    for values in (*part.parameters(), *part.buffers()):
        if values.is_floating_point():
            values.data = values.data.to(dtype)
    return part


@contextmanager
def _model_folder(target: Path) -> Iterator[Path]:
    """`swapped_in` for a model. Files beside it, such as its card, are copied."""
    if target.is_file():
        raise ValueError(f"{target} is a file, expected the name of a folder for the model")
    if target.is_dir() and any(target.iterdir()) and not (target / MODEL_FILE).is_file():
        raise ValueError(f"{target} holds other files and would be replaced: name a new or empty folder")
    target = target.absolute()
    try:
        with swapped_in(target) as fresh:
            yield fresh
            for beside in target.iterdir() if target.is_dir() else ():
                if beside.is_file() and not (fresh / beside.name).exists():
                    shutil.copy2(beside, fresh)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"could not write the model to {target} ({error}): free some space and try again"
        ) from error


def _portable(source: str | Path, folder: Path) -> str:
    """A source as stored in model.json: a path relative to folder, starting with a dot, or a hub name."""
    path = Path(source)
    if not path.exists():
        return str(source)
    relative = Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    return relative if relative.startswith(".") else f"./{relative}"


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
