"""The trained one-step model as a function of pictures, with the runtime's noise, so that it can be measured like any other; and
what it costs: the files that hold its weights, and how many weights those are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runtime.noise import noise_field

if TYPE_CHECKING:
    from training.model.one_step import OneStepModel

PARTS = ("unet", "vae")  # a text encoder makes one constant out of one prompt, and is left out


def restore(model: OneStepModel, lr: np.ndarray, seed: int, sample: int = 0) -> np.ndarray:
    """One sample of an LR picture (h, w, 3) uint8 -> (4h, 4w, 3) uint8. Sizes the model cannot take are mirrored up to one it can
    and cut again. The noise is `runtime.noise.noise_field`, the same as the student's bundle gets."""
    import torch

    height, width = lr.shape[:2]
    multiple = model.size_multiple
    padding = [(0, -side % multiple) for side in (height, width)]
    padded = np.pad(lr, (*padding, (0, 0)), mode="symmetric")
    image = torch.from_numpy(padded).permute(2, 0, 1)[None].to(model.device, torch.float32) / 255
    channels, rows, columns = model.noise_shape(*padded.shape[:2])
    noise = torch.from_numpy(noise_field(seed, sample, rows, columns, channels=channels))[None]
    with torch.inference_mode():
        sr = model(image, noise.to(image), None)[0].float().clamp(0, 1)
    pixels = (sr * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return np.ascontiguousarray(pixels[: height * model.scale, : width * model.scale])


def count_weights(model: OneStepModel) -> int:
    """Parameters of UNet and VAE together; a merged adapter adds none."""
    parts = model.parts()
    return sum(parameter.numel() for part in PARTS for parameter in parts[part].parameters())


def weight_files(source: str | Path) -> list[Path]:
    """The files that UNet and VAE of `training.model.loading.load_model(source)` are read from: the weights, and for a run of adapters
    those of the adapters after those of its base."""
    from training.model.adapters import ADAPTER_WEIGHTS
    from training.model.loading import ADAPTERS, MODEL_FILE, find_model, read_model_file

    folder = find_model(source)
    if (folder / MODEL_FILE).is_file() and (document := read_model_file(folder))["kind"] == ADAPTERS:
        base = document["base"]  # relative to the folder where it starts with a dot, else a hub name
        below = weight_files(folder.resolve() / base if base.startswith(".") else base)
        return [*below, *(folder / name / ADAPTER_WEIGHTS for name in document["adapters"])]
    return [file for part in PARTS for file in _part_files(folder / part)]


def _part_files(folder: Path) -> Iterator[Path]:
    """The weights in a folder of diffusers: one file, or the pieces that an index names."""
    from training.checkpoint import read_json
    from training.model.loading import WEIGHTS

    index = folder / f"{WEIGHTS}.index.json"
    if not index.is_file():
        yield folder / WEIGHTS
    else:
        yield from (folder / name for name in sorted(set(read_json(index)["weight_map"].values())))
