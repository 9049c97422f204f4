"""The shipped student: a plain convolutional generator at the LR resolution or half of it, in two graphs.

`Encoder` runs once per photo and `Generator` once per sample. Both consist of pixel (un)shuffle, convolutions,
(leaky) ReLU, sums and at most one product, so that every phone accelerator can run them. All noise enters as an
explicit input. The output is the bicubic upscale plus a learned residual."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from training.checkpoint import read_json, read_tensors, replace_folder

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


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

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name == "noise_gate":
                if not isinstance(value, bool):
                    raise ValueError(f"student noise_gate must be true or false, got {value!r}")
                continue
            least = 0 if name == "far_blocks" else 1
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"student {name} must be a whole number of at least {least}, got {value!r}")

    @property
    def receptive_radius(self) -> int:
        """Radius of the receptive field of an output pixel, in LR pixels."""
        cells = 1 + 2 * self.encoder_blocks + 2 * self.generator_blocks + 1  # stem, blocks, expansion
        cells += sum(2 * 2 ** (k + 1) for k in range(self.far_blocks))
        # 1 for the last convolution, fold - 1 for an LR pixel's place inside its cell
        return self.fold * cells + 1 + (self.fold - 1)

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


# For tests: a step of training takes moments on a CPU.
TINY_STUDENT = StudentConfig(width=8, encoder_blocks=1, generator_blocks=1, detail=8)


def bicubic_weight(scale: int) -> Tensor:
    """Weights (3 * scale^2, 3, 5, 5) such that pixel_shuffle(conv(x, padding=2), scale) is the bicubic upscale of x.

    Keys' kernel with a = -0.5, half-pixel centres."""

    def keys(t: float) -> float:
        t = abs(t)
        if t < 1:
            return 1.5 * t**3 - 2.5 * t**2 + 1
        return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0

    taps = torch.zeros(scale, 5)
    for phase in range(scale):
        centre = (phase + 0.5) / scale - 0.5  # the output pixel's place in LR pixels from the middle tap
        for k in range(5):
            taps[phase, k] = keys(k - 2 - centre)
    taps /= taps.sum(dim=1, keepdim=True)
    plane = torch.einsum("ai,bj->abij", taps, taps).reshape(scale * scale, 5, 5)
    weight = torch.zeros(3, scale * scale, 3, 5, 5)
    for channel in range(3):
        weight[channel, :, channel] = plane
    return weight.reshape(3 * scale * scale, 3, 5, 5)


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

    The base is the bicubic upscale before its pixel shuffle."""

    bicubic: Tensor

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = nn.Conv2d(3 * config.fold**2, config.width, 3, padding=1)
        dilations = [1] * config.encoder_blocks + [2 ** (k + 1) for k in range(config.far_blocks)]
        self.blocks = nn.Sequential(*(Block(config.width, 0.25, dilation) for dilation in dilations))
        self.register_buffer("bicubic", bicubic_weight(config.scale), persistent=False)

    def base(self, image: Tensor) -> Tensor:
        """The bicubic upscale before its pixel shuffle, (n, 3 * 16, h, w)."""
        return F.conv2d(F.pad(image, (2, 2, 2, 2), mode="replicate"), self.bicubic)

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
    """features (n, width, h/fold, w/fold), base (n, 48, h, w), noise (n, noise_channels, h/fold, w/fold) -> sr (n, 3, 4h, 4w)
    in [0, 1]."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config = config
        self.noise = nn.Conv2d(config.noise_channels, config.width, 3, padding=1)
        self.gate = nn.Conv2d(config.width, config.width, 1) if config.noise_gate else None
        self.blocks = nn.Sequential(*(Block(config.width, 0.25) for _ in range(config.generator_blocks)))
        self.expand = nn.Conv2d(config.width, config.detail * config.fold**2, 3, padding=1)
        self.last = nn.Conv2d(config.detail, 3 * config.scale**2, 3, padding=1)
        with torch.no_grad():  # start close to the bicubic upscale
            self.last.weight.mul_(0.1)
            assert self.last.bias is not None
            self.last.bias.zero_()
            if self.gate is not None:  # open everywhere
                assert self.gate.bias is not None
                self.gate.weight.zero_()
                self.gate.bias.fill_(1.0)

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

    def forward(self, features: Tensor, base: Tensor, noise: Tensor) -> Tensor:
        return F.pixel_shuffle(base + self.residual(features, noise), self.config.scale).clamp(0.0, 1.0)


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


def widened(student: Student, config: StudentConfig) -> Student:
    """A student with more channels that gives the same pictures as the given one, up to rounding.

    As in Net2Net (Chen et al. 2016), training continues instead of starting anew. The weights from new channels to
    old ones start at zero; other new weights are random. Raises ValueError if the number of blocks differs or the new
    shape has fewer channels."""
    wider = Student(config)
    more = ("width", "detail")
    same = [name for name in student.config.to_dict() if name not in more]
    if any(getattr(student.config, name) != getattr(config, name) for name in same) or any(
        getattr(student.config, name) > getattr(config, name) for name in more
    ):
        raise ValueError(
            f"a student of shape {student.config} cannot become one of {config}: {', '.join(same)} must be equal, "
            f"{', '.join(more)} at least as large"
        )
    earlier = student.state_dict()
    with torch.no_grad():
        for name, values in wider.state_dict().items():  # these share storage with the parameters
            old = earlier[name]
            values[: len(old)] = 0.0
            values[tuple(slice(0, side) for side in old.shape)] = old
    return wider


def save_student(
    student: Student, folder: str | Path, provenance: dict[str, Any] | None = None, *, half: bool = False
) -> None:
    """Write model.safetensors and config.json.

    student: whose weights and shape are written.
    folder: if it holds only those two files, or does not exist, it is replaced as a whole. Other files are kept, and
        the two are then moved in one after the other.
    provenance: JSON that describes how the student was made. Of an absolute path, which may name its user, only the end is written.
    half: round the weights to float16, which halves the file; they load as float32.

    Both files are first written to a temporary folder, so an error leaves an earlier student intact."""
    target = Path(folder).resolve()
    if target.is_file():
        raise FileExistsError(f"{target} is a file, expected a folder for the student; name another")
    dtype = torch.float16 if half else torch.float32
    state = {key: value.detach().to(dtype).contiguous() for key, value in student.state_dict().items()}
    document = {
        "model": "student",
        "config": student.config.to_dict(),
        "provenance": nameless(provenance or {}),
    }
    text = json.dumps(document, indent=2) + "\n"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        # a folder inside the temporary one, which other users cannot read
        fresh = Path(scratch) / target.name
        fresh.mkdir()
        try:
            save_file(state, fresh / WEIGHTS_FILE, metadata={"format": "pt", "model": "gdposr student"})
            (fresh / CONFIG_FILE).write_text(text)
        except (OSError, SafetensorError) as error:
            raise OSError(
                f"could not write the student to {target} ({error}); its earlier content is unchanged. Free some space and try again"
            ) from error
        if target.is_dir() and {path.name for path in target.iterdir()} - {WEIGHTS_FILE, CONFIG_FILE}:
            for name in (WEIGHTS_FILE, CONFIG_FILE):
                (fresh / name).replace(target / name)
        else:
            replace_folder(fresh, target)


def nameless(value: Any) -> Any:
    """JSON in which absolute paths, wherever they stand, are shortened to their last name. A run's own config.json keeps them whole."""
    if isinstance(value, dict):
        return {key: nameless(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [nameless(below) for below in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def load_student(folder: str | Path) -> tuple[Student, dict[str, Any]]:
    """Load a checkpoint of `save_student`. Returns the student in eval mode and its provenance.

    Raises FileNotFoundError if a file is missing, and ValueError if it is damaged or belongs to another model."""
    source = Path(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (source / name).is_file():
            raise FileNotFoundError(
                f"{source} is not a student checkpoint: {name} is missing (expected {CONFIG_FILE} and {WEIGHTS_FILE})"
            )
    document = read_json(source / CONFIG_FILE)
    if document.get("model") != "student":
        raise ValueError(
            f"{source / CONFIG_FILE} describes a {document.get('model')!r}, expected a 'student'"
        )
    student = Student(StudentConfig.from_dict(document.get("config", {})))
    try:
        student.load_state_dict(read_tensors(source / WEIGHTS_FILE))
    except RuntimeError as error:
        raise ValueError(
            f"{source / WEIGHTS_FILE} does not fit the shape in {CONFIG_FILE}: take both from one checkpoint"
        ) from error
    return student.eval(), document.get("provenance", {})
