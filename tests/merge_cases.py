"""What the tests of folding a one-step model share: a miniature Stable Diffusion 2.1. Needs the extra `train`."""

from pathlib import Path

import pytest
from make_miniature_sd21 import make_miniature

from training.model.loading import load_model
from training.model.one_step import OneStepModel


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_miniature(tmp_path_factory.mktemp("sd21"))


@pytest.fixture(scope="module")
def sd21(checkpoint: Path) -> OneStepModel:
    return load_model(checkpoint)
