"""What the tests of the one-step model share: a pocket and a miniature model, their inputs, and adapters that say something."""

import copy

import pytest
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from make_miniature_sd21 import make_miniature
from peft import PeftModel

from training.model.loading import load_model
from training.model.one_step import OneStepModel
from training.model.schedule import NoiseSchedule


def pocket(seed: int = 0) -> OneStepModel:
    """Factor 4, a UNet of two levels without attention, no text."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8),
            num_encoder_blocks=(1, 1, 1),
            num_decoder_blocks=(1, 1, 1),
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D",) * 2,
            mid_block_type="UNetMidBlock2D",
            up_block_types=("UpBlock2D",) * 2,
            norm_num_groups=4,
        )
    return OneStepModel(vae, unet, None, NoiseSchedule()).freeze()


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> OneStepModel:
    return load_model(make_miniature(tmp_path_factory.mktemp("sd21")))


@pytest.fixture
def sd21(miniature: OneStepModel) -> OneStepModel:
    """A model of the test's own."""
    return copy.deepcopy(miniature)


@pytest.fixture(params=["sd21", "pocket"])
def model(request: pytest.FixtureRequest) -> OneStepModel:
    return pocket() if request.param == "pocket" else request.getfixturevalue("sd21")


def inputs(
    model: OneStepModel, batch: int = 2, height: int = 8, width: int = 16
) -> tuple["torch.Tensor", "torch.Tensor"]:
    draw = torch.Generator().manual_seed(1)
    noise = torch.randn(batch, *model.latent_shape(height, width), generator=draw)
    return torch.rand(batch, 3, height, width, generator=draw), noise


def stir(adapted: PeftModel, seed: int = 5) -> None:
    """Give every trainable weight a visible value, as training would."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))


def distance(a: "torch.Tensor", b: "torch.Tensor") -> float:
    return float((a - b).detach().abs().max())
