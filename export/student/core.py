"""The core of the student: what it draws without noise, learnt from a prior's pictures.

A prior's picture is a function of its input, so an L1 to it averages nothing away. What a small network still leaves soft, a perceptual
loss and, later in the run, an adversary that sees the prior's pictures beside the student's ask for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export.student.adversary import Adversary
from export.student.losses import (
    chroma_loss,
    gradient_loss,
    low_pass_loss,
    told_by,
    with_coarse_part_of,
    with_colours_of,
)
from export.student.network import Student, StudentConfig, load_student, save_student, widened
from training.data.batches import Batch
from training.loop.stage import Carry, Losses, RunSettings, Stage
from training.metrics.squeezenet import LAYERS, SqueezeFeatures, squared_feature_distance

SHAPE = StudentConfig(width=48, encoder_blocks=4, detail=48, fold=1)
"""At LR resolution: as much work as 96 channels at half of it, a quarter of the weights, and learnt in less than half the steps, since
what is learnt at one pixel of a cell serves its neighbours (training/EXPERIMENTS.md, "The shape was the brake")."""


GATE_START = 10.0
"""Of the gate's first weights: a core's features deviate by about a tenth, so the gate's values then deviate by one. Weights that begin
at zero stay so small that the gate says the same everywhere."""


@dataclass(frozen=True)
class CoreSettings(RunSettings):
    """Settings of the core beside those of every run. Weights multiply losses of the order 0.01 to 0.1."""

    student: StudentConfig = field(default_factory=lambda: SHAPE)
    batch: int = 4
    crop: int = 128
    lr: float = 1e-3
    final_lr: float = 2e-6
    warmup_steps: int = 100
    clip: float = 0.5
    ema: float = 0.999
    crispness: float = 1.15
    """The target's distance from the bicubic enlargement times this. A small network learns something like the median of what the prior
    might draw, which is softer than any of it."""
    truth: float = 1.0
    """Share of the photo in what is coarse in the target, means over 4x4 pixels, as far as the input tells them; 0: all of it is the
    prior's."""
    truth_error: float = 5.0
    """Levels between an input and those means at which their share is half of `truth`: it is high for clean inputs alone."""
    cards: float = 0.2
    """Part of the pairs that is drawn: letters and patterns as small as an LR picture can hold, which a prior gets wrong."""
    pixel: float = 1.0
    """L1 to the target."""
    gradient: float = 1.0
    """L1 of the differences of neighbours to the target's."""
    chroma: float = 2.0
    """L1 of colours without brightness to the target's: fringes and blotches, which an L1 of pixels hardly sees beside the edges."""
    feature: float = 0.3
    """Squared distance of SqueezeNet features to the target's, where its weights are given."""
    feature_layers: tuple[float, ...] = (1.0, 1.0, 1.0, 0.5, 0.5)
    """Weights of conv1, fire3, fire5, fire7, fire9."""
    adversary: float = 0.5
    """Its gradient at the pixels, relative to that of pixel and gradient together."""
    adversary_from: float = 0.2
    """Part of the run after which the adversary joins."""
    discriminator_width: int = 32
    discriminator_lr: float = 2e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop % 16:
            raise ValueError(f"crop must be a multiple of 16 HR pixels, got {self.crop}")
        for name in ("crispness", "truth_error"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("pixel", "gradient", "chroma", "feature", "adversary"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("adversary_from", "truth", "cards"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        if len(self.feature_layers) != len(LAYERS):
            raise ValueError(f"feature_layers must be {len(LAYERS)} weights, got {len(self.feature_layers)}")


def deepened(student: Student, config: StudentConfig) -> Student:
    """A student of this shape, with more blocks and channels, that gives the same pictures: blocks that are added end in zeros
    (Net2Net, Chen et al. 2016). ValueError where a block or a channel would be lost."""
    have = student.config
    if config.encoder_blocks < have.encoder_blocks or config.generator_blocks < have.generator_blocks:
        raise ValueError(f"a student of shape {have} cannot become one of {config}: it has more blocks")
    same_depth = replace(config, encoder_blocks=have.encoder_blocks, generator_blocks=have.generator_blocks)
    earlier = widened(student, same_depth)
    deeper = Student(config)
    state = earlier.state_dict()
    for part, count in (("encoder", have.encoder_blocks), ("generator", have.generator_blocks)):
        blocks = getattr(deeper, part).blocks
        for block in blocks[count:]:
            nn.init.zeros_(block.conv2.weight)
    deeper.load_state_dict(deeper.state_dict() | state)
    return deeper


def with_noise(student: Student, channels: int, seed: int = 0) -> Student:
    """The same core with noise of so many channels, which has no say yet, and a gate for it: open at some places, others for each
    of its channels, as drawn from seed."""
    fresh = Student(replace(student.config, noise_channels=channels, noise_gate=True))
    core = {name: value for name, value in student.state_dict().items() if ".gate." not in name}
    state = fresh.state_dict() | core
    state["generator.noise.weight"] = torch.zeros_like(fresh.generator.noise.weight)
    # What the core has learnt to add without noise is the features' from now on: a gate is not to take it away.
    last = (
        f"encoder.blocks.{student.config.encoder_blocks - 1}.conv2"
        if student.config.encoder_blocks
        else "encoder.stem"
    )
    state[f"{last}.bias"] = state[f"{last}.bias"] + state["generator.noise.bias"]
    state["generator.noise.bias"] = torch.zeros_like(state["generator.noise.bias"])
    spread = GATE_START / student.config.width**0.5
    state["generator.gate.weight"] = torch.empty_like(state["generator.gate.weight"]).normal_(
        std=spread, generator=torch.Generator().manual_seed(seed)
    )
    state["generator.gate.bias"] = torch.full_like(state["generator.gate.bias"], 0.5)
    fresh.load_state_dict(state)
    return fresh


def started(config: StudentConfig, init: Path | None, seed: int) -> tuple[Student, dict[str, Any]]:
    """A new student, or the one at init in this shape; and where it comes from. What is new in it is a function of seed: also the
    convolution that takes the noise in, where the noise has other channels."""
    torch.manual_seed(seed)
    student = Student(config)
    if init is None:
        return student, {}
    earlier, provenance = load_student(init)
    channels = earlier.config.noise_channels
    try:
        state = deepened(earlier, replace(config, noise_channels=channels)).state_dict()
    except ValueError as error:
        raise ValueError(f"{init}: {error}; set student.* to match") from error
    if channels != config.noise_channels:
        del state["generator.noise.weight"]
    student.load_state_dict(student.state_dict() | state)
    return student, provenance


def stages_before(provenance: dict[str, Any]) -> list[dict[str, Any]]:
    """Provenance of the stages that made a student, the first one first, from that of its checkpoint."""
    last = {name: value for name, value in provenance.items() if name != "history"}
    return [*provenance.get("history", []), *([last] if last else [])]


def silence(student: Student, features: Tensor) -> Tensor:
    """Noise of zeros for features (n, width, h/fold, w/fold): (n, noise channels, h/fold, w/fold)."""
    return features.new_zeros(len(features), student.config.noise_channels, *features.shape[2:])


def photos_in(batch: Batch, start: int, end: int) -> list[int]:
    """Those from start to end - 1 that are no cards."""
    drawn = [False] * len(batch.lr) if batch.drawn is None else batch.drawn.tolist()
    return [k for k in range(start, end) if not drawn[k]]


class StudentStage(Stage):
    """What the student's stages share: validation draws its sample k, and a finished run is a student's checkpoint."""

    student: Student
    history: list[dict[str, Any]]

    def sample(self, lr: Tensor, hr: Tensor, k: int) -> Tensor:
        c = self.student.config
        generator = torch.Generator().manual_seed(k)
        noise = torch.randn(
            len(lr), c.noise_channels, lr.shape[2] // c.fold, lr.shape[3] // c.fold, generator=generator
        )
        return self.student(lr, noise.to(lr))

    def save(self, folder: Path, provenance: dict[str, Any]) -> None:
        save_student(self.student, folder, {**provenance, "history": self.history})


class StudentCore(StudentStage):
    """Phase "student", and "adversary" once it has joined. A batch needs `target`, a prior's pictures."""

    def __init__(
        self,
        student: Student,
        settings: CoreSettings,
        features: SqueezeFeatures | None = None,
        prepare: Callable[[Batch], Batch] | None = None,
        history: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        self.settings, self.student, self.features = settings, student, features
        nn.init.zeros_(student.generator.noise.weight)  # no say for the noise until the next stage
        self.adversary_on = False
        self.adversary = Adversary(settings.discriminator_width).requires_grad_(settings.adversary > 0)
        self.history = history or []
        self._prepare = prepare

    def prepare(self, batch: Batch) -> Batch:
        return batch if self._prepare is None else self._prepare(batch)

    def phases(self, progress: float) -> tuple[str, ...]:
        return ("student", "adversary") if self._joined(progress) else ("student",)

    def _joined(self, progress: float) -> bool:
        self.adversary_on = self.settings.adversary > 0 and progress >= self.settings.adversary_from
        return self.adversary_on

    def sample(self, lr: Tensor, hr: Tensor, k: int) -> Tensor:
        features, base = self.student.encode(lr)
        return self.student.generator(features, base, silence(self.student, features))

    def groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        found = {"student": (list(self.student.parameters()), self.settings.lr)}
        if self.settings.adversary > 0:
            found["adversary"] = (list(self.adversary.parameters()), self.settings.discriminator_lr)
        return found

    def averaged(self) -> tuple[str, ...]:
        return ("student",)

    def forward(self, phase: str, batch: Batch, carry: Carry) -> tuple[Losses, Carry]:
        if phase == "adversary":
            return {"loss": self.adversary.loss(carry["target"], carry["picture"], carry["enlarged"])}, {}
        features, base = self.student.encode(batch.lr)
        residual = self.student.generator.residual(features, silence(self.student, features))
        scale = self.student.config.scale
        picture = torch.pixel_shuffle((base + residual).float(), scale)
        enlarged = torch.pixel_shuffle(base.float(), scale)
        target = self._target(batch, enlarged)
        losses = self._losses(picture, target, enlarged, photos_in(batch, 0, (len(picture) + 1) // 2))
        seen = slice(len(picture) // 2, None)  # by the discriminator, the half that it did not judge just now
        shown = {"picture": picture.detach().clamp(0, 1), "target": target, "enlarged": enlarged.detach()}
        return losses, {name: value[seen] for name, value in shown.items()}

    def _target(self, batch: Batch, enlarged: Tensor) -> Tensor:
        """What the picture is to be, (n, 3, 4h, 4w) in [0, 1]: the prior's in the input's mean colour, made crisper, with what is
        coarse from the photo as far as the input tells it. Without a prior the photo, and a drawn card is its own target."""
        if batch.target is None:
            return batch.hr
        target = with_colours_of(batch.target, batch.lr)
        crisp = torch.lerp(enlarged.detach(), target, self.settings.crispness).clamp(0, 1)
        hr = batch.hr.float()
        share = self.settings.truth * told_by(batch.lr.float(), hr, self.settings.truth_error / 255)
        mixed = with_colours_of(with_coarse_part_of(crisp, hr, share), batch.lr)  # bright parts were clipped
        return (
            mixed if batch.drawn is None else torch.where(batch.drawn[:, None, None, None], batch.hr, mixed)
        )

    def _losses(self, picture: Tensor, target: Tensor, enlarged: Tensor, judged: list[int]) -> Losses:
        """judged: the pictures that features and the adversary look at. Those two cost as much as the student, and make letters crisp
        before they are right."""
        s = self.settings
        losses = {"pixel": (picture - target).abs().mean(), "gradient": gradient_loss(picture, target)}
        losses |= {"structure": low_pass_loss(picture, target), "chroma": chroma_loss(picture, target)}
        anchor = s.pixel * (losses["pixel"] + losses["structure"])
        anchor = anchor + s.gradient * losses["gradient"] + s.chroma * losses["chroma"]
        total = anchor
        if judged and self.features is not None and s.feature > 0:
            with torch.no_grad():
                far = self.features.maps(target[judged])
            near = self.features.maps(picture[judged])
            losses["feature"] = squared_feature_distance(near, far, s.feature_layers)
            total = total + s.feature * losses["feature"]
        if judged and self.adversary_on and torch.is_grad_enabled():
            losses["push"], push = self.adversary.push(picture, enlarged, anchor, judged)
            total = total + s.adversary * push
        return {"loss": total} | {name: value.detach() for name, value in losses.items()}
