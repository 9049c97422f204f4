"""The packages of encoder and generator as one model: image and noise in, picture out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from export.mil.device import REFERENCE, Arrays, Open, Runner, open_runner
from export.mil.package.program import Program, read_package
from runtime.bundle.manifest import GraphSpec

Floats = np.ndarray
# Entry of a package that is one of several chunks: its number.
CHUNK_KEY = "gdposr.chunk"


def grouped(programs: Sequence[Program]) -> list[tuple[Program, ...]]:
    """Packages by graph: the chunks of a graph together and in order, every other package alone."""
    groups: dict[tuple[Path, str], list[Program]] = {}
    for program in programs:
        path, number = program.path, program.metadata.get(CHUNK_KEY)
        name = path.name if number is None else path.name.replace(f"-{number}.", ".", 1)
        groups.setdefault((path.parent, name), []).append(program)
    return [
        tuple(sorted(group, key=lambda program: int(program.metadata.get(CHUNK_KEY, 0))))
        for group in groups.values()
    ]


def open_chunks(programs: Sequence[Program], device: str = REFERENCE, open: Open = open_runner) -> Runner:
    """The packages of one graph as one runner: one package, or chunks that run one after the other.

    programs: in order.
    device: key of `export.mil.device.DEVICES`.
    open: loads a package on a device."""
    runners = [open(program, device) for program in programs]
    takes = [[feature.name for feature in program.inputs] for program in programs]
    if len(runners) == 1:
        return runners[0]

    def run(inputs: Arrays) -> dict[str, np.ndarray]:
        values = dict(inputs)
        for index, runner in enumerate(runners):
            values |= runner({name: values[name] for name in takes[index]})
            later = {name for names in takes[index + 1 :] for name in names}
            ends = {feature.name for feature in programs[-1].outputs}
            values = {name: value for name, value in values.items() if name in later | ends}
        return values

    return run


class PackagePair:
    """Both graphs' packages on one device."""

    def __init__(
        self,
        paths: Mapping[str, Path | Sequence[Path]],
        specs: Mapping[str, GraphSpec],
        device: str = REFERENCE,
        open: Open = open_runner,
    ) -> None:
        """paths: package or chunks by role.
        specs: inputs and outputs by role.
        device: key of `export.mil.device.DEVICES`.
        open: loads a package on a device."""
        self._encoder, self._generator = (
            open_chunks([read_package(path) for path in _listed(paths[role])], device, open)
            for role in ("encoder", "generator")
        )
        self._image = specs["encoder"].inputs[0].name
        self._features = [tensor.name for tensor in specs["encoder"].outputs]
        self._inputs = [tensor.name for tensor in specs["generator"].inputs]
        self._output = specs["generator"].outputs[0].name

    def __call__(self, image: Floats, noise: Floats) -> Floats:
        """image (1, 3, h, w) in [0, 1], noise (1, c, h', w') -> (1, 3, scale h, scale w), nominally in [0, 1]."""
        return self.generate(self.encode(image), noise)

    def encode(self, image: Floats) -> dict[str, Floats]:
        """Features by name."""
        found = self._encoder({self._image: image})
        return {name: found[name] for name in self._features}

    def generate(self, features: Mapping[str, Floats], noise: Floats) -> Floats:
        """One sample, (1, 3, scale h, scale w)."""
        (noise_name,) = [name for name in self._inputs if name not in features]
        given = {name: noise if name == noise_name else features[name] for name in self._inputs}
        return self._generator(given)[self._output]


def _listed(paths: Path | Sequence[Path]) -> Sequence[Path]:
    return [paths] if isinstance(paths, Path) else paths
