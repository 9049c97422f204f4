"""SqueezeNet-1.1 features for the perceptual loss and the SQF score.

The weights are ImageNet's in the Caffe layout (BGR, 0-255, mean subtracted). They are read from a safetensors file
given by the user and are not part of this package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.checkpoint import read_tensors
from training.metrics.fidelity import MetricError

# Means of B, G and R in levels of 0..255, which the Caffe network expects to be subtracted.
BGR_MEAN = (104.0, 117.0, 123.0)
# Smallest side in pixels. Smaller pictures have no fire9 map.
MIN_SIDE = 35
LAYERS = ("conv1", "fire3", "fire5", "fire7", "fire9")
# Channels of each fire module: after its 1x1 squeeze, and of each of its two expansions.
_FIRES = {
    2: (16, 64),
    3: (16, 64),
    4: (32, 128),
    5: (32, 128),
    6: (48, 192),
    7: (48, 192),
    8: (64, 256),
    9: (64, 256),
}


class Fire(nn.Module):
    """A squeezing 1x1 convolution, then parallel expanding 1x1 and 3x3 convolutions."""

    def __init__(self, channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze1x1 = nn.Conv2d(channels, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze1x1(x))
        return F.relu(torch.cat([self.expand1x1(x), self.expand3x3(x)], dim=1))


class SqueezeFeatures(nn.Module):
    """Frozen feature extractor: (n, 3, h, w) RGB in [0, 1], h and w >= 35 -> five feature maps (n, c, h', w'), one
    per name in `LAYERS`.

    Maps are scaled to unit length over channels, as in LPIPS (Zhang et al. 2018)."""

    mean: Tensor

    def __init__(self, weights: str | Path) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, stride=2)
        channels = 64
        for index, (squeeze, expand) in _FIRES.items():
            self.add_module(f"fire{index}", Fire(channels, squeeze, expand))
            channels = 2 * expand
        self.register_buffer("mean", torch.tensor(BGR_MEAN)[:, None, None])
        self._load(Path(weights))
        self.requires_grad_(False).eval()

    def _load(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(
                f"SqueezeNet 1.1 weights expected at {path}, no such file. Give a safetensors file in the Caffe layout "
                "(conv1, fire2..fire9), for example with --perceptual-weights FILE"
            )
        weights = {key: value for key, value in read_tensors(path).items() if not key.startswith("conv10")}
        missing = self.load_state_dict(weights, strict=False)
        wrong = [key for key in missing.missing_keys if key != "mean"] + list(missing.unexpected_keys)
        if wrong:
            raise ValueError(
                f"{path} is not a SqueezeNet 1.1 in the Caffe layout: {', '.join(wrong[:4])} missing or unknown"
            )

    def maps(self, x: Tensor) -> list[Tensor]:
        """The five maps before normalisation. The losses normalise inside their inner products, which is much cheaper."""
        maps = []
        x = F.relu(self.conv1(x.flip(1) * 255.0 - self.mean))
        maps.append(x)
        x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        for index in _FIRES:
            x = getattr(self, f"fire{index}")(x)
            if index in (3, 5, 7, 9):
                maps.append(x)
            if index in (3, 5):
                x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        return maps

    def forward(self, x: Tensor) -> list[Tensor]:
        return [F.normalize(m.float(), dim=1, eps=1e-6) for m in self.maps(x)]


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """|a/|a| - b/|b||^2 over channels = 2 - 2 cos: (n, c, h, w) twice -> (n, h, w), from 0 to 4, in fp32."""
    a, b = a.float(), b.float()
    norms = (a.square().sum(1) * b.square().sum(1) + 1e-12).rsqrt()
    return (2.0 - 2.0 * (a * b).sum(1) * norms).clamp_min(0.0)


def squared_feature_distance(
    a: Sequence[Tensor], b: Sequence[Tensor], weights: Sequence[float] | None = None
) -> Tensor:
    """Squared distance of channel-normalised features, mean over places and (weighted) mean over layers: the perceptual loss.

    Without weights it is the batch's mean SQF."""
    weights = weights or [1.0] * len(a)
    terms = [w * squared_distances(x, y).mean() for w, x, y in zip(weights, a, b, strict=True)]
    return torch.stack(terms).sum() / sum(weights)


def sqf(features: SqueezeFeatures, sr: Tensor, hr: Tensor) -> Tensor:
    """SQF, a full-reference perceptual distance: LPIPS (Zhang et al. 2018) without its learned weights. Lower is
    better, 0 for equal pictures.

    Squared distance of unit-length features, summed over channels, averaged over pixels and then over the five
    layers: (N, 3, H, W) in [0, 1], at least 35 pixels a side -> (N,). On RealSR: bicubic 0.563, OSEDiff 0.488."""
    if min(sr.shape[2:]) < MIN_SIDE:
        raise MetricError(
            f"SQF needs at least {MIN_SIDE} pixels a side, got {sr.shape[3]}x{sr.shape[2]}: use larger pictures or crops"
        )
    pairs = zip(features(sr), features(hr), strict=True)
    return torch.stack([(a - b).square().sum(1).flatten(1).mean(1) for a, b in pairs]).mean(0)


# Values of `perceptual_loss`'s parameter net.
NETS = ("auto", "lpips", "squeeze")


class Perceptual(nn.Module):
    """Perceptual distance of two batches (n, 3, h, w) in [0, 1] -> scalar. `name` describes the network."""

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.network, self.name = network.requires_grad_(False).eval(), name

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        if isinstance(self.network, SqueezeFeatures):
            with torch.no_grad():
                target = self.network.maps(hr)
            return squared_feature_distance(self.network.maps(sr), target)
        return self.network(sr * 2 - 1, hr * 2 - 1).float().mean()


def perceptual_loss(weights: Path | None, net: str = "auto") -> Perceptual:
    """LPIPS (VGG) if the package `lpips` is installed, else SqueezeNet features from a weights file.

    net: "lpips" or "squeeze" requires that network; "auto" uses SqueezeNet only if lpips is missing. Raises
        ValueError if neither is available."""
    if net not in NETS:
        raise ValueError(f"the perceptual network must be one of {', '.join(NETS)}, got {net!r}")
    if net != "squeeze":
        try:
            import lpips
        except ModuleNotFoundError as error:
            if net == "lpips":
                raise ValueError(
                    "the package lpips is not installed: pip install lpips, or use SqueezeNet features with "
                    "perceptual_net=squeeze and --perceptual-weights FILE"
                ) from error
        else:
            return Perceptual(lpips.LPIPS(net="vgg", verbose=False), "LPIPS (VGG)")
    if weights is None:
        raise ValueError(
            "no perceptual network: the package lpips is not installed (pip install lpips) and no SqueezeNet 1.1 weights were given "
            "(--perceptual-weights FILE); or leave the term out with --set perceptual=0"
        )
    return Perceptual(SqueezeFeatures(weights), f"SqueezeNet 1.1 features ({Path(weights).name}), not LPIPS")
