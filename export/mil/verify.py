"""Compares packages with the float32 ONNX graphs of a bundle in ONNX Runtime on the CPU.

The measure is PSNR over photos with the standard degradation, each with its own noise, at the package's own size. The
worst photo counts. The peak is 1 for images and the reference's largest magnitude for other outputs.

The floor for pictures is the package's own promise (`gdposr.floor_db`) on the device "reference", and at most 40 dB
on real devices, whose arithmetic the promise does not cover. The floor for an encoder's features is at most 40 dB,
and 25 dB with compressed weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from export.mil.cases import Arrays, Case, draw_cases
from export.mil.device import REFERENCE, Open, Runner, open_runner
from export.mil.lint import is_compressed
from export.mil.package.feature import Feature
from export.mil.package.program import Program, read_package
from export.mil.package.tensor import PackageError
from export.mil.pair import CHUNK_KEY, grouped, open_chunks
from export.source import feature_psnr, psnr
from runtime.backends.onnx import OnnxBackend
from runtime.bundle.manifest import Manifest
from runtime.bundle.reader import Bundle
from runtime.errors import GdposrError

ENCODER, GENERATOR, CHAIN = "encoder", "generator", "chain"
FLOOR_KEY: Final = "gdposr.floor_db"
# Least PSNR in dB of a package without a floor of its own, and of one with compressed weights.
FLOOR_DB, COMPRESSED_FLOOR_DB = 40.0, 25.0
# Photos, each with noise of its own, that a package is compared on by default.
SAMPLES = 4
# Side in LR pixels for a package that takes any size.
FREE_SIDE: Final = 64
REFERENCE_PRECISION: Final = "fp32"


class VerifyError(GdposrError):
    """Packages and bundle do not belong together, or the bundle has no graphs to compare with."""


@dataclass(frozen=True)
class Result:
    """The comparison of one package, or of an encoder and a generator in a chain, with the reference."""

    package: str
    """Name of the package or packages."""
    role: str
    """encoder, generator or chain."""
    device: str
    """Device that ran it."""
    size: tuple[int, int]
    """Height and width in LR pixels."""
    outputs: dict[str, float]
    """Worst PSNR of each output, in dB."""
    floor_db: float
    """Least PSNR to pass, in dB."""
    error: str | None = None
    """Reason why there is no PSNR; None without error."""

    @property
    def psnr_db(self) -> float:
        """PSNR of the worst output; minus infinity if there is none."""
        return min(self.outputs.values(), default=-np.inf)

    @property
    def ok(self) -> bool:
        return self.error is None and self.psnr_db >= self.floor_db

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"psnr_db": self.psnr_db, "ok": self.ok}


@dataclass(frozen=True)
class _Opened:
    """A package that was read, and its role in the bundle."""

    programs: tuple[Program, ...]
    """The package, or the chunks of a graph in order."""
    role: str
    """encoder or generator."""
    size: tuple[int, int]
    """Height and width in LR pixels."""
    floor_db: float
    """Floor for its own outputs."""
    picture_db: float
    """Floor for the picture of the whole chain."""

    @property
    def name(self) -> str:
        return " + ".join(program.path.name for program in self.programs)

    @property
    def partner(self) -> tuple[Path, str, tuple[int, int]]:
        """Equal for encoder and generator of one model: folder, rest of the name, size."""
        path = self.programs[0].path
        return path.parent, re.sub(rf"^{self.role}(-\d+)?", "", path.name), self.size


def verify(
    packages: Sequence[Path],
    bundle: Bundle,
    *,
    floor: float | None = None,
    samples: int = SAMPLES,
    device: str = REFERENCE,
    open: Open = open_runner,
    say: Callable[[str], None] = lambda text: None,
) -> list[Result]:
    """Compare each package with the bundle, then each encoder with its generator.

    packages: folders of the packages.
    bundle: the reference.
    floor: least PSNR in dB; None for the packages' own floors.
    samples: number of photos.
    device: that runs the packages.
    open: loads a package on a device.
    say: receives progress messages.

    Raises PackageError for a package that cannot be read, and VerifyError for one that does not belong to this
    bundle. Errors while a package is loaded or run are recorded in its result."""
    manifest = bundle.manifest
    if REFERENCE_PRECISION not in manifest.graphs:
        raise VerifyError(
            f"{bundle.path}: expected {REFERENCE_PRECISION} graphs to compare with, got {sorted(manifest.graphs)}; "
            "compare with a bundle that has them"
        )
    groups = grouped([read_package(path) for path in packages])
    opened = [item for programs in groups for item in _open(programs, manifest, floor, device)]
    backend = OnnxBackend(bundle, "cpu", REFERENCE_PRECISION)
    cases = {size: draw_cases(manifest, backend, size, samples) for size in {item.size for item in opened}}
    results = []
    for item in opened:
        say(
            f"{item.programs[0].path.parent / item.name}: {item.role} on {device}, {item.size[0]}x{item.size[1]}"
        )
        results.append(_compare(item, manifest, cases[item.size], device, open))
    for encoder, generator in _chains(opened):
        name = f"{encoder.name} + {generator.name}"
        say(f"{name}: {CHAIN} on {device}")
        results.append(_compare_chain(encoder, generator, name, manifest, cases[encoder.size], device, open))
    return results


def _open(
    programs: tuple[Program, ...], manifest: Manifest, floor: float | None, device: str
) -> list[_Opened]:
    """A graph's package or chunks, once for each size that they take.

    programs: of the package, or of all chunks in order.
    manifest: of the reference bundle.
    floor: least PSNR in dB; None for the package's own, else the usual one.
    device: that runs them."""
    first = programs[0]
    names = {feature.name for feature in first.inputs}
    specs = {ENCODER: manifest.encoder, GENERATOR: manifest.generator}
    inputs = {role: {tensor.name for tensor in spec.inputs} for role, spec in specs.items()}
    chunked = CHUNK_KEY in first.metadata
    role = next((r for r, all in inputs.items() if all == names or (chunked and names <= all)), None)
    if role is None:
        raise VerifyError(
            f"{first.path}: expected the inputs of an encoder {sorted(inputs[ENCODER])} or of a generator "
            f"{sorted(inputs[GENERATOR])}, got {sorted(names)}; compare with the bundle it was exported with"
        )
    known = set(inputs[role])
    for program in programs:
        missing = {feature.name for feature in program.inputs} - known
        if missing:
            raise VerifyError(
                f"{program.path}: expected a chunk before it that gives {min(missing)!r}, got none; name all chunks"
            )
        known |= {feature.name for feature in program.outputs}
    missing = {tensor.name for tensor in specs[role].outputs} - known
    if chunked and missing:
        raise VerifyError(
            f"{programs[-1].path}: expected a chunk behind it that gives {min(missing)!r}, got none; name all chunks"
        )
    picture = default_floor(first, device) if floor is None else floor
    own = picture
    if floor is None and role == ENCODER:  # the promise is about the picture, not about the features
        own = min(picture, _usual_floor(first))
    return [_Opened(programs, role, size, own, picture) for size in _sizes(first, role, manifest)]


def default_floor(program: Program, device: str = REFERENCE) -> float:
    """Least PSNR of the picture in dB: the package's promise, but at most 40 on a real device.

    Without a promise 40, or 25 with compressed weights."""
    text = program.metadata.get(FLOOR_KEY)
    try:
        own = _usual_floor(program) if text is None else float(text)
        return own if device == REFERENCE else min(own, FLOOR_DB)
    except ValueError as error:
        raise PackageError(
            f"{program.path}: {FLOOR_KEY}: expected a number of dB, got {text!r}; give --floor"
        ) from error


def _usual_floor(program: Program) -> float:
    return COMPRESSED_FLOOR_DB if is_compressed(program) else FLOOR_DB


def _sizes(program: Program, role: str, manifest: Manifest) -> list[tuple[int, int]]:
    """Every height and width of the package in LR pixels, from its image or its noise."""
    spec, cell = (manifest.image, 1) if role == ENCODER else (manifest.noise_input, manifest.noise.downscale)
    feature = next(feature for feature in program.inputs if feature.name == spec.name)
    sizes = []
    for shape in feature.shapes or (feature.type.shape,):
        if len(shape) != 4 or shape[1] not in (None, spec.channels):
            raise VerifyError(
                f"{program.path}: input {spec.name!r}: expected (1, {spec.channels}, h, w), got {feature.type}; "
                "compare with the bundle it was exported with"
            )
        height, width = (_side(feature, axis, shape[axis], cell) for axis in (2, 3))
        sizes.append((height, width))
    return sizes


def _side(feature: Feature, axis: int, size: int | None, cell: int) -> int:
    """One side in LR pixels. For a free size, the usual one as far as the package allows.

    feature: the input.
    axis: of the side.
    size: fixed size in cells; None if it is free.
    cell: LR pixels per cell."""
    if size is not None:
        return size * cell
    low, high = feature.ranges[axis] if len(feature.ranges) > axis else (1, None)
    wanted = max(low, FREE_SIDE // cell)
    return (wanted if high is None else min(wanted, high)) * cell


def _compare(item: _Opened, manifest: Manifest, cases: Sequence[Case], device: str, open: Open) -> Result:
    """Compare one graph's results with the reference's.

    item: the package or its chunks.
    manifest: of the reference bundle.
    cases: inputs and expected results.
    device: that runs it.
    open: loads a package on a device."""
    blank = Result(item.name, item.role, device, item.size, {}, item.floor_db)
    try:
        run = open_chunks(item.programs, device, open)
        outputs = [_outputs(run, item.role, manifest, case) for case in cases]
    except (GdposrError, OSError) as error:
        return replace(blank, error=str(error))
    return replace(blank, outputs=_worst(outputs))


def _outputs(run: Runner, role: str, manifest: Manifest, case: Case) -> dict[str, float]:
    """PSNR of each output for one case.

    run: the package.
    role: encoder or generator.
    manifest: of the reference bundle.
    case: inputs and expected results."""
    if role == ENCODER:
        found = run({manifest.image.name: case.image})
        return {name: feature_psnr(_same(found, name, value), value) for name, value in case.features.items()}
    found = run(_generator_inputs(manifest, case.features, case.noise))
    return {manifest.output.name: psnr(_same(found, manifest.output.name, case.sr), case.sr)}


def _compare_chain(
    encoder: _Opened,
    generator: _Opened,
    name: str,
    manifest: Manifest,
    cases: Sequence[Case],
    device: str,
    open: Open,
) -> Result:
    """Compare the picture that both packages make together with the reference's picture.

    encoder, generator: the packages.
    name: of both, for the result.
    manifest: of the reference bundle.
    cases: inputs and expected results.
    device: that runs the packages.
    open: loads a package on a device."""
    floor = min(encoder.picture_db, generator.picture_db)
    blank = Result(name, CHAIN, device, encoder.size, {}, floor)
    output = manifest.output.name
    try:
        encode, generate = (open_chunks(item.programs, device, open) for item in (encoder, generator))
        outputs = []
        for case in cases:
            found = encode({manifest.image.name: case.image})
            features = {name: _same(found, name, value) for name, value in case.features.items()}
            sr = _same(generate(_generator_inputs(manifest, features, case.noise)), output, case.sr)
            outputs.append({output: psnr(sr, case.sr)})
    except (GdposrError, OSError) as error:
        return replace(blank, error=str(error))
    return replace(blank, outputs=_worst(outputs))


def _generator_inputs(manifest: Manifest, features: Mapping[str, np.ndarray], noise: np.ndarray) -> Arrays:
    given = {**features, manifest.noise_input.name: noise}
    return {tensor.name: given[tensor.name] for tensor in manifest.generator.inputs}


def _same(found: Mapping[str, np.ndarray], name: str, expected: np.ndarray) -> np.ndarray:
    """The named output; VerifyError if it is missing or its shape differs from the reference's."""
    came = found.get(name)
    if came is None or came.shape != expected.shape:
        what = f"outputs {sorted(found)}" if came is None else f"shape {list(came.shape)}"
        raise VerifyError(
            f"expected an output {name!r} of shape {list(expected.shape)}, got {what}; export again"
        )
    return came


def _worst(outputs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: min(found[name] for found in outputs) for name in outputs[0]}


def _chains(opened: Sequence[_Opened]) -> list[tuple[_Opened, _Opened]]:
    """Encoders and generators in the same folder under the same name, or the only two given."""
    encoders, generators = ([item for item in opened if item.role == role] for role in (ENCODER, GENERATOR))
    if len(encoders) == len(generators) == 1 and encoders[0].size == generators[0].size:
        return [(encoders[0], generators[0])]
    return [(e, g) for e in encoders for g in generators if e.partner == g.partner]
