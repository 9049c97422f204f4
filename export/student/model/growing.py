"""Students of a larger shape that give the pictures of a smaller one, so that training continues instead of starting anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from export.student.model.checkpoint import load_student
from export.student.model.network import Student, StudentConfig

# Scale of the gate's initial weights. The features have a standard deviation of about 0.1, so the gate's values have about 1. Gate
# weights that start at zero stay small, and the gate is then the same everywhere.
GATE_START = 10.0


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


def deepened(student: Student, config: StudentConfig) -> Student:
    """A student of a larger shape that gives the same pictures (Net2Net, Chen et al. 2016).

    The last convolution of every added block starts at zero. Raises ValueError if the new shape has fewer blocks or channels,
    or more blocks before the dilated ones."""
    have = student.config
    counts = ("encoder_blocks", "far_blocks", "generator_blocks")
    if any(getattr(config, name) < getattr(have, name) for name in counts):
        raise ValueError(f"a student of shape {have} cannot become one of {config}: it has more blocks")
    if have.far_blocks and config.encoder_blocks > have.encoder_blocks:
        raise ValueError(
            f"a student of shape {have} cannot become one of {config}: blocks cannot be added in front of its far_blocks; "
            f"leave encoder_blocks at {have.encoder_blocks}"
        )
    earlier = widened(student, replace(config, **{name: getattr(have, name) for name in counts}))
    deeper = Student(config)
    for part, count in (
        ("encoder", have.encoder_blocks + have.far_blocks),
        ("generator", have.generator_blocks),
    ):
        for block in getattr(deeper, part).blocks[count:]:
            nn.init.zeros_(block.conv2.weight)
    deeper.load_state_dict(deeper.state_dict() | earlier.state_dict())
    return deeper


def with_noise(student: Student, channels: int, seed: int = 0) -> Student:
    """The same core with another number of noise channels and a gate on the noise.

    channels: noise channels per cell. Their weights start at zero, so the noise has no effect yet.
    seed: of the gate's initial weights. The gate's values then differ between channels and places."""
    fresh = Student(replace(student.config, noise_channels=channels, noise_gate=True))
    core = {name: value for name, value in student.state_dict().items() if ".gate." not in name}
    state = fresh.state_dict() | core
    state["generator.noise.weight"] = torch.zeros_like(fresh.generator.noise.weight)
    # The core used the bias of the noise convolution without a gate. Move it to the features, which the gate does not scale.
    last = (
        f"encoder.blocks.{len(student.encoder.blocks) - 1}.conv2"
        if len(student.encoder.blocks)
        else "encoder.stem"
    )
    state[f"{last}.bias"] = state[f"{last}.bias"] + state["generator.noise.bias"]
    if student.generator.trust is not None:  # reads the features, too, and must not see what was moved
        seen = student.generator.trust.weight[:, :, 0, 0] @ student.generator.noise.bias
        state["generator.trust.bias"] = state["generator.trust.bias"] - seen.detach()
    state["generator.noise.bias"] = torch.zeros_like(state["generator.noise.bias"])
    spread = GATE_START / student.config.width**0.5
    state["generator.gate.weight"] = torch.empty_like(state["generator.gate.weight"]).normal_(
        std=spread, generator=torch.Generator().manual_seed(seed)
    )
    state["generator.gate.bias"] = torch.full_like(state["generator.gate.bias"], 0.5)
    fresh.load_state_dict(state)
    return fresh


def started(config: StudentConfig, init: Path | None, seed: int) -> tuple[Student, dict[str, Any]]:
    """A new student, or the one at `init` brought to this shape, and its provenance.

    New weights depend on seed only. If the number of noise channels differs from that at `init`, the noise
    convolution starts anew; if it is not consistent and this shape is, so does the trust. Raises ValueError if the
    checkpoint does not fit into the shape."""
    torch.manual_seed(seed)
    student = Student(config)
    if init is None:
        return student, {}
    earlier, provenance = load_student(init)
    channels = earlier.config.noise_channels
    same = replace(
        config, noise_channels=channels, consistent=config.consistent and earlier.config.consistent
    )
    try:
        state = deepened(earlier, same).state_dict()
    except ValueError as error:
        raise ValueError(f"{init}: {error}; set student.* to match") from error
    if channels != config.noise_channels:
        del state["generator.noise.weight"]
    student.load_state_dict(student.state_dict() | state)
    return student, provenance
