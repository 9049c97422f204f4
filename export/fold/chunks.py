"""A one-step generator cut into chunks, each small enough for a phone, which run one after the other.

The generator is a row of steps with named values between them. A chunk takes the named values that it reads and gives
those that a later chunk, or the caller, needs: in a UNet the map and the skips that are still open."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor, nn

from export.fold.blocks import Level
from export.fold.layers import FoldError
from export.fold.one_step import TeacherGenerator
from export.source import Source
from runtime.bundle.manifest import GraphSpec, TensorSpec

GENERATOR: Final = "generator"
# Bytes of a number in a package.
HALF: Final = 2


@dataclass(frozen=True)
class Step:
    """A part of the generator that is never cut."""

    module: nn.Module
    """Computes it."""
    inputs: tuple[str, ...]
    """Names of the values that it takes, in order."""
    output: str
    """Name of its result."""

    @property
    def bytes(self) -> int:
        """Bytes of its weights in half precision."""
        tensors = (*self.module.parameters(), *self.module.buffers())
        return HALF * sum(tensor.numel() for tensor in tensors)


class Chunk(nn.Module):
    """Consecutive steps as one network.

    steps: in order.
    inputs, outputs: names of the values that it takes and gives."""

    def __init__(self, steps: Sequence[Step], inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(step.module for step in steps)
        self.names = tuple((step.inputs, step.output) for step in steps)
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)

    def forward(self, *given: Tensor) -> Tensor | tuple[Tensor, ...]:
        values = dict(zip(self.inputs, given, strict=True))
        for module, (inputs, output) in zip(self.steps, self.names, strict=True):
            values[output] = module(*(values[name] for name in inputs))
        found = tuple(values[name] for name in self.outputs)
        return found[0] if len(found) == 1 else found


def cut(source: Source, limit: int) -> tuple[Source, tuple[str, ...]]:
    """The source with the chunks of its generator as further modules, and their names in order.

    source: a folded one-step model.
    limit: most bytes of a chunk's weights in half precision.

    There are as few chunks as the limit allows, the largest as small as possible. A generator below the limit is its
    own only chunk, `GENERATOR`."""
    steps = generator_steps(source)
    groups = pack([step.bytes for step in steps], limit)
    if len(groups) == 1:
        return source, (GENERATOR,)
    spec = source.specs[GENERATOR]
    shapes = _shapes(source, steps)
    modules, specs, names = dict(source.modules), dict(source.specs), []
    for number, group in enumerate(groups, start=1):
        own, later = steps[group], steps[group.stop :]
        made = [step.output for step in own]
        inputs = tuple(dict.fromkeys(n for step in own for n in step.inputs if n not in made))
        needed = {name for step in later for name in step.inputs} or {spec.outputs[0].name}
        outputs = tuple(name for name in made if name in needed)
        name = f"{GENERATOR}-{number}"
        modules[name] = Chunk(own, inputs, outputs).eval()
        specs[name] = GraphSpec(tuple(shapes[n] for n in inputs), tuple(shapes[n] for n in outputs))
        names.append(name)
    return replace(source, modules=modules, specs=specs), tuple(names)


def pack(sizes: Sequence[int], limit: int) -> list[slice]:
    """Consecutive groups with sums of at most limit: as few as possible, the largest sum as small as possible."""
    if max(sizes) > limit:
        raise FoldError(
            f"chunk: expected parts of at most {limit / 1e6:g} MB, got one of {max(sizes) / 1e6:.1f} MB that cannot be cut; "
            "allow larger chunks"
        )

    def packed(most: int) -> list[slice]:
        ends, total = [0], 0
        for index, size in enumerate(sizes):
            if total + size > most:
                ends.append(index)
                total = 0
            total += size
        ends.append(len(sizes))
        return [slice(a, b) for a, b in itertools.pairwise(ends)]

    fewest = len(packed(limit))
    low, high = max(sizes), limit
    while low < high:
        middle = (low + high) // 2
        if len(packed(middle)) > fewest:
            low = middle + 1
        else:
            high = middle
    return packed(low)


def generator_steps(source: Source) -> list[Step]:
    """The generator's steps, from features and noise to sr. Raises FoldError for another kind of generator."""
    generator = source.modules[GENERATOR]
    if not isinstance(generator, TeacherGenerator):
        raise FoldError(f"chunk: expected the generator of a one-step model, got {type(generator).__name__}")
    spec = source.specs[GENERATOR]
    features, noise = (tensor.name for tensor in spec.inputs)
    steps: list[Step] = []

    def step(module: nn.Module, *inputs: str, output: str | None = None) -> str:
        steps.append(Step(module, inputs, output or f"map_{len(steps)}"))
        return steps[-1].output

    unet = generator.unet
    noisy = step(_Noisy(generator), features, noise)
    skips = [step(unet.conv_in, noisy)]
    for level in unet.down:
        for part in _parts(level, _Block):
            skips.append(step(part, skips[-1]))
    x = step(unet.middle, skips[-1])
    for level in unet.up:
        for part in _parts(level, _Joined):
            x = step(part, x, skips.pop()) if isinstance(part, _Joined) else step(part, x)
    x = step(_Restored(generator), noisy, x)
    step(_Decoded(generator), x, output=spec.outputs[0].name)
    return steps


class _Block(nn.Module):
    """A residual block with its attention."""

    def __init__(self, resnet: nn.Module, attention: nn.Module) -> None:
        super().__init__()
        self.resnet, self.attention = resnet, attention

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attention(self.resnet(x))
        return out


class _Joined(_Block):
    """A block of a UNet's decoder, which joins a skip to the map."""

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(torch.cat([x, skip], dim=1))


def _parts(level: Level, kind: type[_Block]) -> list[nn.Module]:
    """A level's blocks, each as an instance of `kind`, and its change of size."""
    blocks: list[nn.Module] = [
        kind(resnet, attention) for resnet, attention in zip(level.resnets, level.attentions, strict=True)
    ]
    return blocks if level.resize is None else [*blocks, level.resize]


@torch.no_grad()
def _shapes(source: Source, steps: Sequence[Step]) -> dict[str, TensorSpec]:
    """Every value between the steps as an input or output of a graph. Nothing is computed: torch follows the shapes alone."""
    spec, side = source.specs[GENERATOR], source.size.minimum
    known = {tensor.name: tensor for tensor in (*spec.inputs, *spec.outputs)}
    values = {t.name: torch.empty(source.shape(t, side, side), device="meta") for t in spec.inputs}
    for step in steps:
        tensors = {**dict(step.module.named_parameters()), **dict(step.module.named_buffers())}
        blank = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
        given = tuple(values[name] for name in step.inputs)
        values[step.output] = torch.func.functional_call(step.module, blank, given)
    return {
        name: known.get(name) or TensorSpec(name, value.shape[1], value.shape[2] / side)
        for name, value in values.items()
    }


class _Noisy(nn.Module):
    """The first line of `TeacherGenerator`."""

    def __init__(self, generator: TeacherGenerator) -> None:
        super().__init__()
        self.signal, self.sigma, self.repeats = generator.signal, generator.sigma, generator.repeats

    def forward(self, features: Tensor, noise: Tensor) -> Tensor:
        spread = torch.cat([noise] * self.repeats, dim=1) if self.repeats > 1 else noise
        return self.signal * features + self.sigma * spread


class _Restored(nn.Module):
    """The end of the UNet, and the restored latent."""

    def __init__(self, generator: TeacherGenerator) -> None:
        super().__init__()
        self.keep, self.out = generator.keep, generator.unet.out

    def forward(self, noisy: Tensor, x: Tensor) -> Tensor:
        restored: Tensor = self.keep * noisy + self.out(x)
        return restored


class _Decoded(nn.Module):
    """The decoder, with a picture in [0, 1]."""

    def __init__(self, generator: TeacherGenerator) -> None:
        super().__init__()
        self.decoder = generator.decoder

    def forward(self, latent: Tensor) -> Tensor:
        out: Tensor = self.decoder(latent)
        return out.clamp(0.0, 1.0)
