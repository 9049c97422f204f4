"""Data for a GPU: CPU processes only cut or draw HR pictures, which is cheap, and the device does the rest in batches.

pairs = hr_pairs(photos, CropParams(160), Variety(0.1, 0.1), seed=0)   # for the trainer, instead of a
`PairDataset`
prepare = DevicePreparation(seed=0, prior=Prior.load("x4plus"))        # for the trainer's `prepare`"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from training.data.batches import Batch
from training.data.cards import Variety
from training.data.device.degradation import degrade_batch
from training.data.device.parameters import Mixture
from training.data.photos import CropParams, PairDataset, PhotoSet


def hr_pairs(
    photos: PhotoSet,
    crop: CropParams,
    variety: Variety = Variety(),  # noqa: B008  (frozen)
    seed: int = 0,
) -> PairDataset:
    """Pairs with the HR pictures of a `PairDataset` and empty LR pictures, which `DevicePreparation` fills in.

    photos: to cut from.
    crop: how to cut.
    variety: shares of drawn and recoloured pictures.
    seed: selects photos and crops."""
    return PairDataset(photos, crop, variety=variety, seed=seed, reduce=unreduced)


def unreduced(hr: Tensor, rng: np.random.Generator) -> Tensor:
    """An empty LR picture of the right shape."""
    return hr.new_zeros(hr.shape[0], hr.shape[1] // 4, hr.shape[2] // 4)


class DevicePreparation:
    """Completes a batch on its device: LR pictures from the HR pictures and, with a prior, its pictures as target.

    seed: of the degradations.
    mixture: of the paper's degradation with others; None for the everyday ones.
    prior: the published network, (n, 3, h, w) -> (n, 3, 4h, 4w). A module is moved to the first batch's device.
    half: run the prior in float16, except on a CPU."""

    def __init__(
        self,
        seed: int,
        prior: Callable[[Tensor], Tensor] | None = None,
        *,
        mixture: Mixture | None = None,
        half: bool = True,
    ) -> None:
        self.seed, self.prior, self.mixture, self.half = seed, prior, mixture, half
        self._device: torch.device | None = None

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Batch:
        lr = degrade_batch(batch.hr, self.seed, batch.items, self.mixture)
        if batch.hr.is_contiguous(memory_format=torch.channels_last):
            lr = lr.contiguous(memory_format=torch.channels_last)
        if self.prior is None:
            return replace(batch, lr=lr)
        device = batch.hr.device
        if isinstance(self.prior, nn.Module) and device != self._device:
            self.prior.to(device=device, memory_format=torch.channels_last)
            self._device = device
        with torch.autocast(device.type, torch.float16, enabled=self.half and device.type != "cpu"):
            return replace(batch, lr=lr, target=self.prior(lr).float())
