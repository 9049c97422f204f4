"""The model that an export starts from: two torch modules and the meaning of their tensors.

Students and one-step diffusion models share this interface: an encoder that runs once per photo and a generator that
runs once per sample. Converters, checks and the bundle writer use nothing else of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    """A model ready for conversion: float32, on the CPU, in eval mode, without internal randomness.

    A call takes an image (n, 3, h, w) in [0, 1] and noise (n, c, h', w') and returns one sample, (n, 3, scale h, scale w) in [0, 1]."""

    kind: str
    """Kind of model as shown to users, such as `STUDENT`."""
    modules: Mapping[str, nn.Module]
    """Encoder and generator by role. Each takes and returns tensors in the order of its spec."""
    specs: Mapping[str, GraphSpec]
    """Inputs and outputs of the graphs by role."""
    scale: int
    """Upscaling factor."""
    size: SizeRule
    """Rule for the image sizes that the model takes, and for tiles of larger images."""
    noise: NoiseSpec
    """Version and shape of the noise."""
    parameters: int
    """Number of parameters."""
    checkpoint_sha256: str
    """Hash of the weights that the model was loaded from."""
    training: Mapping[str, Any]
    """Provenance from the checkpoint."""
    t_n: int | None = None
    """Timestep of the added noise; None for a student."""
    t_d: int | None = None
    """Timestep that the network is given; None for a student."""
    prompt: str | None = None
    """Prompt that was folded in; None if the model takes none."""
    folded_db: float | None = None
    """PSNR in dB against the model before folding; None if nothing was folded."""
    color_fix: str = "none"
    """Colour fix that the bundle asks for: none, adain or wavelet."""

    @torch.no_grad()
    def __call__(self, image: Tensor, noise: Tensor) -> Tensor:
        return self.generate(self.encode(image), noise)

    @torch.no_grad()
    def encode(self, image: Tensor) -> tuple[Tensor, ...]:
        """The features of an image (n, 3, h, w), in the order of the encoder's outputs."""
        features = self.modules["encoder"](image)
        return (features,) if isinstance(features, Tensor) else tuple(features)

    @torch.no_grad()
    def generate(self, features: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        """A sample (n, 3, scale h, scale w) from the encoder's features and noise."""
        sr: Tensor = self.modules["generator"](*features, noise)
        return sr

    def shape(self, tensor: TensorSpec, height: int, width: int, batch: int = 1) -> tuple[int, int, int, int]:
        """Shape of a graph's input or output.

        tensor: the input or output.
        height, width: of the LR image, multiples of `size.multiple_of`.
        batch: number of images."""
        for side in (height, width):
            if side < 1 or side % self.size.multiple_of:
                raise ValueError(
                    f"LR height and width must be multiples of {self.size.multiple_of}, got {height}x{width}"
                )
        return (batch, tensor.channels, round(height * tensor.scale), round(width * tensor.scale))

    def examples(self, role: str, height: int, width: int, batch: int = 1) -> tuple[Tensor, ...]:
        """Example inputs of a graph, always the same: a random image, its features, random noise.

        role: encoder or generator.
        height, width: of the LR image.
        batch: number of images."""
        draw = torch.Generator().manual_seed(0)
        image_spec, noise_spec = self.specs["encoder"].inputs[0], self.specs["generator"].inputs[-1]
        image = torch.rand(self.shape(image_spec, height, width, batch), generator=draw)
        if role == "encoder":
            return (image,)
        noise = torch.randn(self.shape(noise_spec, height, width, batch), generator=draw)
        return (*self.encode(image), noise)


def psnr(came: np.ndarray, expected: np.ndarray) -> float:
    """PSNR in dB for a peak of 1: 200 if both are equal, -inf if a value is not finite."""
    return psnr_db(came, expected, peak=1.0, equal=200.0)


def feature_psnr(came: np.ndarray, expected: np.ndarray) -> float:
    """PSNR in dB. The peak is the largest expected magnitude; for an image that is about 1."""
    peak = float(np.abs(expected).max()) or 1.0
    return psnr(came / peak, expected / peak)
