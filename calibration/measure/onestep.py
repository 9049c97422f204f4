"""The trained one-step model as a function of pictures, with the runtime's noise, so that it is measured like any other method.

Also its files and its number of weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runtime.noise import noise_field
from training.pixels import from_pixels, to_pixels

if TYPE_CHECKING:
    from training.model.one_step import OneStepModel

# Parts that count as the model. The text encoder turns one prompt into a constant, so it is left out.
PARTS = ("unet", "vae")


def restore(
    model: OneStepModel, lr: np.ndarray, seed: int, sample: int = 0, prompt: str | None = None
) -> np.ndarray:
    """One sample of an LR picture: (h, w, 3) uint8 -> (4h, 4w, 3) uint8.

    model: on its device.
    lr: of any size. If the model cannot take it, it is padded by mirroring, and the result is cropped.
    seed: of the noise, `runtime.noise.noise_field`, as in the student's bundle.
    sample: its number.
    prompt: None: the model's default.
    """
    import torch

    height, width = lr.shape[:2]
    multiple = model.size_multiple
    padding = [(0, -side % multiple) for side in (height, width)]
    padded = np.pad(lr, (*padding, (0, 0)), mode="symmetric")
    image = from_pixels(padded)[None].to(model.device)
    channels, rows, columns = model.noise_shape(*padded.shape[:2])
    noise = torch.from_numpy(noise_field(seed, sample, rows, columns, channels=channels))[None]
    with torch.inference_mode():
        sr = model(image, noise.to(image), None if prompt is None else [prompt])[0].float().clamp(0, 1)
    pixels = to_pixels(sr)
    return np.ascontiguousarray(pixels[: height * model.scale, : width * model.scale])


def count_weights(model: OneStepModel) -> int:
    """Parameters of UNet and VAE together; a merged adapter adds none."""
    parts = model.parts()
    return sum(parameter.numel() for part in PARTS for parameter in parts[part].parameters())


def weight_files(source: str | Path) -> list[Path]:
    """The files from which `training.model.loading.load_model` reads UNet and VAE: the base's, then those of adapters, if any."""
    from training.model.adapters import ADAPTER_WEIGHTS
    from training.model.loading import ADAPTERS, MODEL_FILE, find_model, read_model_file

    folder = find_model(source)
    if (folder / MODEL_FILE).is_file() and (document := read_model_file(folder))["kind"] == ADAPTERS:
        # a path relative to the folder if it starts with a dot, else a name on the hub
        base = document["base"]
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
