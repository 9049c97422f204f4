"""The trained one-step model as a function of pictures, with the runtime's noise, so that it can be measured like any other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runtime.noise import noise_field

if TYPE_CHECKING:
    from training.model import OneStepModel


def restore(model: OneStepModel, lr: np.ndarray, seed: int, sample: int = 0) -> np.ndarray:
    """One sample of an LR picture (h, w, 3) uint8 -> (4h, 4w, 3) uint8. Sizes the model cannot take are mirrored up to one it can
    and cut again. The noise is `runtime.noise.noise_field`, the same as the student's bundle gets."""
    import torch

    height, width = lr.shape[:2]
    multiple = model.size_multiple
    padding = [(0, -side % multiple) for side in (height, width)]
    padded = np.pad(lr, (*padding, (0, 0)), mode="symmetric")
    image = torch.from_numpy(padded).permute(2, 0, 1)[None].to(model.device, torch.float32) / 255
    channels, rows, columns = model.latent_shape(*padded.shape[:2])
    noise = torch.from_numpy(noise_field(seed, sample, rows, columns, channels=channels))[None]
    with torch.inference_mode():
        sr = model(image, noise.to(image), None)[0].float().clamp(0, 1)
    pixels = (sr * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return np.ascontiguousarray(pixels[: height * model.scale, : width * model.scale])
