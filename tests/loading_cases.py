"""What the tests of loading share: a miniature, its public layout, and runs of adapters on them. Needs the extra `train`."""

from pathlib import Path

import pytest
import torch
from lora import unet_lora, vae_encoder_lora
from make_miniature_sd21 import make_miniature, make_public_layout

from training.model.loading import load_model
from training.model.one_step import OneStepModel
from training.model.saving import save_run_model

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def sd21(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Only to read."""
    return make_miniature(tmp_path_factory.mktemp("models") / "sd21")


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Only to read."""
    return make_public_layout(tmp_path_factory.mktemp("models") / "gdpo")


def run(model: OneStepModel, prompts: tuple[str, ...] = ("a cat", "the photo")) -> "torch.Tensor":
    draw = torch.Generator().manual_seed(1)
    noise = torch.randn(2, *model.latent_shape(8, 8), generator=draw)
    with torch.no_grad():
        return model(torch.rand(2, 3, 8, 8, generator=draw), noise, prompts)


def adapted(source: Path, rank: int = 4, seed: int = 5, **arguments: object) -> OneStepModel:
    """The model at source with adapters on UNet and VAE encoder that say something."""
    model = load_model(source, **arguments)
    model.unet, model.vae = unet_lora(model.unet, rank), vae_encoder_lora(model.vae, rank)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    return model


def save_run(model: OneStepModel, folder: Path, base: Path, **arguments: object) -> Path:
    settings = {
        "noise_timestep": 300,
        "denoise_timestep": 90,
        "unet_adapter": model.unet,
        "vae_adapter": model.vae,
        "provenance": {"steps": 7},
        **arguments,
    }
    save_run_model(folder, base=base, **settings)
    return folder
