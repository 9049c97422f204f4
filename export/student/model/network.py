"""The shipped student: a plain convolutional generator at the LR resolution or half of it, in two graphs.

`Encoder` runs once per photo and `Generator` once per sample. Both consist of pixel (un)shuffle, convolutions,
(leaky) ReLU, sums, a mean and at most two products, so that every phone accelerator can run them. All noise enters as
an explicit input. The output is the bicubic upscale plus a learned residual. A consistent student adds a step of
back-projection, where it finds its input clean."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.student.model.kernels import bicubic_weight, spreading_weight


@dataclass(frozen=True)
class StudentConfig:
    """Shape of the student. A cell is a square of `fold` x `fold` LR pixels."""

    width: int = 96
    """Channels of the trunk. Weights and run time grow with its square."""
    encoder_blocks: int = 3
    """Residual blocks that run once per photo."""
    far_blocks: int = 0
    """Residual blocks after those, also once per photo, with convolutions dilated by 2, 4, 8, ...: they see further at the
    cost of any other block."""
    generator_blocks: int = 2
    """Residual blocks that run once per sample."""
    detail: int = 32
    """Channels at LR resolution, before the last convolution."""
    noise_channels: int = 4
    """Noise channels per cell."""
    fold: int = 2
    """Side of a cell in LR pixels: 1 works at LR resolution, 2 at half of it."""
    scale: int = 4
    """Upscaling factor."""
    noise_gate: bool = False
    """Whether the noise is multiplied by a gate computed from the features, which adapts its strength to the place."""
    consistent: bool = False
    """Whether the output, reduced again, is drawn to the input where a map computed from the features trusts the input.
    Asks for fold 1."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name in ("noise_gate", "consistent"):
                if not isinstance(value, bool):
                    raise ValueError(f"student {name} must be true or false, got {value!r}")
                continue
            least = 0 if name == "far_blocks" else 1
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"student {name} must be a whole number of at least {least}, got {value!r}")
        if self.consistent and self.fold != 1:
            raise ValueError(f"a consistent student works at LR resolution: expected fold 1, got {self.fold}")

    @property
    def base_channels(self) -> int:
        """Channels of the encoder's base: the bicubic upscale before its pixel shuffle, then the image where it is needed again."""
        return 3 * self.scale**2 + 3 * self.consistent

    @property
    def receptive_radius(self) -> int:
        """Radius of the receptive field of an output pixel, in LR pixels."""
        seen = (
            1 + 2 * self.encoder_blocks + sum(2 * 2 ** (k + 1) for k in range(self.far_blocks))
        )  # stem, blocks
        drawn = 2 * self.generator_blocks + 1  # blocks, expansion
        # 1 for the last convolution, fold - 1 for an LR pixel's place inside its cell
        radius = self.fold * (seen + drawn) + 1 + (self.fold - 1)
        if not self.consistent:
            return radius
        return max(radius, seen + TRUST_WINDOW // 2) + 2  # 2 for the kernel that spreads the correction

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StudentConfig:
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            raise ValueError(
                f"unknown student setting {', '.join(unknown)}; known: {', '.join(cls.__dataclass_fields__)}"
            )
        return cls(**values)


# Side in LR pixels of the window whose mean tells how far the input is trusted. A degradation is alike over a neighbourhood, and
# a map of single pixels would show in the picture as a grid.
TRUST_WINDOW: Final = 13
# Factor on the trust's logit. Features deviate by about 0.1, so that weights of a usual size would give logits near 0.
TRUST_SCALE: Final = 30.0

# For tests: a step of training takes moments on a CPU.
TINY_STUDENT = StudentConfig(width=8, encoder_blocks=1, generator_blocks=1, detail=8)


class Block(nn.Module):
    """x + conv(relu(conv(x))), as in EDSR (Lim et al. 2017): no normalisation and no activation after the sum.

    dilation: distance between the taps of both convolutions (Yu and Koltun 2016), 1 for neighbouring pixels."""

    def __init__(self, width: int, residual_scale: float, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)
        self.conv2 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)
        nn.init.kaiming_normal_(self.conv1.weight)
        nn.init.kaiming_normal_(self.conv2.weight)
        with torch.no_grad():
            self.conv2.weight.mul_(residual_scale)
            self.conv1.bias.zero_()
            self.conv2.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))


class Encoder(nn.Module):
    """image (n, 3, h, w) in [0, 1] -> features (n, width, h/fold, w/fold) and base (n, 48, h, w). h and w are multiples of fold.

    The base is the bicubic upscale before its pixel shuffle. A consistent student's has the image behind it, (n, 51, h, w)."""

    bicubic: Tensor

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = nn.Conv2d(3 * config.fold**2, config.width, 3, padding=1)
        dilations = [1] * config.encoder_blocks + [2 ** (k + 1) for k in range(config.far_blocks)]
        self.blocks = nn.Sequential(*(Block(config.width, 0.25, dilation) for dilation in dilations))
        self.register_buffer("bicubic", bicubic_weight(config.scale), persistent=False)

    def base(self, image: Tensor) -> Tensor:
        """The bicubic upscale before its pixel shuffle, and the image if the student is consistent: (n, 48 or 51, h, w)."""
        bicubic = F.conv2d(F.pad(image, (2, 2, 2, 2), mode="replicate"), self.bicubic, groups=3)
        return torch.cat([bicubic, image], dim=1) if self.config.consistent else bicubic

    def features(self, image: Tensor) -> Tensor:
        """The generator's input from the picture, (n, width, h/fold, w/fold)."""
        fold, centred = self.config.fold, image - 0.5
        return self.blocks(self.stem(F.pixel_unshuffle(centred, fold) if fold > 1 else centred))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        base = self.base(image)
        return self.features(image), base


# Parameters of a generator that only noise passes, while the noise's convolution has no bias. A bias belongs to the picture without
# noise, and the gate scales it, too.
NOISE_PATH: Final = ("noise.weight", "gate.weight", "gate.bias")


class Generator(nn.Module):
    """features (n, width, h/fold, w/fold), base (n, 48 or 51, h, w), noise (n, noise_channels, h/fold, w/fold) -> sr (n, 3, 4h, 4w)
    in [0, 1]."""

    spreading: Tensor

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config = config
        self.noise = nn.Conv2d(config.noise_channels, config.width, 3, padding=1)
        self.gate = nn.Conv2d(config.width, config.width, 1) if config.noise_gate else None
        self.blocks = nn.Sequential(*(Block(config.width, 0.25) for _ in range(config.generator_blocks)))
        self.expand = nn.Conv2d(config.width, config.detail * config.fold**2, 3, padding=1)
        self.last = nn.Conv2d(config.detail, 3 * config.scale**2, 3, padding=1)
        self.trust = nn.Conv2d(config.width, 1, 1) if config.consistent else None
        if config.consistent:
            self.register_buffer("spreading", spreading_weight(config.scale), persistent=False)
        with torch.no_grad():  # start close to the bicubic upscale
            self.last.weight.mul_(0.1)
            assert self.last.bias is not None
            self.last.bias.zero_()
            if self.gate is not None:  # open everywhere
                assert self.gate.bias is not None
                self.gate.weight.zero_()
                self.gate.bias.fill_(1.0)
            if self.trust is not None:  # next to none anywhere
                assert self.trust.bias is not None
                self.trust.weight.zero_()
                self.trust.bias.fill_(-4.0 / TRUST_SCALE)

    def residual(self, features: Tensor, noise: Tensor) -> Tensor:
        """The residual, which is added to the base, (n, 48, h, w)."""
        entering = self.noise(noise)
        if self.gate is not None:  # a sum alone cannot suppress the noise in flat places
            entering = entering * F.relu(self.gate(features))
        x = self.blocks(features + entering)
        detail, fold = self.expand(x), self.config.fold
        if fold > 1:
            detail = F.pixel_shuffle(detail, fold)
        # leaky: without a skip connection here, dead units would stop the residual from learning
        return self.last(F.leaky_relu(detail, 0.1))

    def picture(self, features: Tensor, base: Tensor, noise: Tensor, trust: Tensor | None = None) -> Tensor:
        """The picture before it is limited to [0, 1], (n, 3, 4h, 4w) float32.

        trust: of a consistent student, (n, 1, h, w) in [0, 1]; None: what its features tell."""
        scale = self.config.scale
        if self.trust is None:
            return F.pixel_shuffle((base + self.residual(features, noise)).float(), scale)
        # One step of back-projection (Irani & Peleg 1991): what the picture, reduced by means, lacks of the image is spread over it.
        bicubic, image = base[:, :-3], base[:, -3:]
        cells = (bicubic + self.residual(features, noise)).float()
        means = cells.flatten(0, 1).unflatten(0, (-1, scale**2)).mean(1).unflatten(0, (-1, 3))
        missing = image - means
        trusted = missing * (torch.sigmoid(self.trust_logit(features)) if trust is None else trust)
        spread = F.conv2d(F.pad(trusted, (2, 2, 2, 2), mode="replicate"), self.spreading, groups=3)
        return F.pixel_shuffle(cells + spread, scale)

    def trust_logit(self, features: Tensor) -> Tensor:
        """Logit of how far a consistent student trusts the image, (n, 1, h, w), a mean over what a window finds."""
        assert self.trust is not None
        places = TRUST_SCALE * self.trust(features)
        return F.avg_pool2d(places, TRUST_WINDOW, 1, TRUST_WINDOW // 2, count_include_pad=False)

    def forward(self, features: Tensor, base: Tensor, noise: Tensor) -> Tensor:
        return self.picture(features, base, noise).clamp(0.0, 1.0)


class Student(nn.Module):
    """Encoder and generator. A call gives one sample: (n, 3, h, w), (n, noise_channels, h/fold, w/fold) -> (n, 3, 4h, 4w)."""

    def __init__(self, config: StudentConfig | None = None) -> None:
        super().__init__()
        self.config = config or StudentConfig()
        self.encoder = Encoder(self.config)
        self.generator = Generator(self.config)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder's features and base.

        The base keeps the weights' precision under autocast: in bfloat16 its steps would be as large as a level of 1/255."""
        with torch.autocast(image.device.type, enabled=False):
            base = self.encoder.base(image.to(self.encoder.bicubic.dtype))
        return self.encoder.features(image), base

    def forward(self, image: Tensor, noise: Tensor) -> Tensor:
        features, base = self.encode(image)
        return self.generator(features, base, noise)

    @property
    def parameters_total(self) -> int:
        return sum(p.numel() for p in self.parameters())
