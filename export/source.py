"""What an export begins with: two modules of torch, and what their tensors mean.

A student and a one-step diffusion model look alike from here on: an encoder that runs once per photo and a generator that runs once
per sample. Converters, checks and the bundle writer know nothing else about a model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from runtime.bundle.manifest import GraphSpec, NoiseSpec, SizeRule, TensorSpec
from runtime.upscale.probe import psnr_db

ROLES = ("encoder", "generator")
IMAGE, FEATURES, BASE, NOISE, SR = "image", "features", "base", "noise", "sr"
STUDENT = "gdposr student"


@dataclass(frozen=True)
class Source:
    """A model ready to be converted: float32, on the CPU, in evaluation mode, free of hidden random numbers.

    Called with image (n, 3, h, w) in [0, 1] and noise (n, c, h', w') it gives one sample, (n, 3, scale h, scale w) in [0, 1].
    """

    kind: str  # for people: STUDENT, or what else it is
    modules: Mapping[str, nn.Module]  # by role; each takes and gives tensors in the order of its spec
    specs: Mapping[str, GraphSpec]  # by role
    scale: int
    size: SizeRule
    noise: NoiseSpec
    parameters: int
    checkpoint_sha256: str
    training: Mapping[str, Any]  # provenance, as the checkpoint tells it
    t_n: int | None = None  # timestep of the added noise; None for a student
    t_d: int | None = None  # timestep the network is told
    prompt: str | None = None  # the text folded in; None: the model takes none
    folded_db: float | None = None  # PSNR against the model before it was folded; None: nothing was folded

    @torch.no_grad()
    def __call__(self, image: Tensor, noise: Tensor) -> Tensor:
        return self.generate(self.encode(image), noise)

    @torch.no_grad()
    def encode(self, image: Tensor) -> tuple[Tensor, ...]:
        """The features of an image, in the order of the encoder's outputs."""
        features = self.modules["encoder"](image)
        return (features,) if isinstance(features, Tensor) else tuple(features)

    @torch.no_grad()
    def generate(self, features: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        sr: Tensor = self.modules["generator"](*features, noise)
        return sr

    def shape(self, tensor: TensorSpec, height: int, width: int, batch: int = 1) -> tuple[int, int, int, int]:
        """Shape of a graph's input or output for an LR image of height x width, multiples of `size.multiple_of`."""
        for side in (height, width):
            if side < 1 or side % self.size.multiple_of:
                raise ValueError(
                    f"LR height and width must be multiples of {self.size.multiple_of}, got {height}x{width}"
                )
        return (batch, tensor.channels, round(height * tensor.scale), round(width * tensor.scale))

    def examples(self, role: str, height: int, width: int, batch: int = 1) -> tuple[Tensor, ...]:
        """Inputs of a graph for an LR image of that size: a random picture, its own features, random noise; always the same."""
        draw = torch.Generator().manual_seed(0)
        image_spec, noise_spec = self.specs["encoder"].inputs[0], self.specs["generator"].inputs[-1]
        image = torch.rand(self.shape(image_spec, height, width, batch), generator=draw)
        if role == "encoder":
            return (image,)
        noise = torch.randn(self.shape(noise_spec, height, width, batch), generator=draw)
        return (*self.encode(image), noise)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hex, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def psnr(came: np.ndarray, expected: np.ndarray) -> float:
    """PSNR in dB for a peak of 1; 200 where both are equal, -inf where one is not finite."""
    return psnr_db(came, expected, peak=1.0, equal=200.0)
