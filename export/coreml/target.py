"""The Core ML packages of a bundle, by variant, each checked against torch by the reference evaluator.

A one-step model is converted in the form for the Neural Engine (`export.fold.neural_engine`), its generator in chunks if it is
large (`export.fold.chunks`). Each chunk is compared with its own torch module, then all packages with the model."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calibration.samples import Sample
from calibration.sensitivity import LayerNoise, plan, predicted_db
from export.parity import OTHER_PHOTOS, ParityError, check_parity, noise_for, samples
from export.source import ROLES, STUDENT, Source, feature_psnr, psnr
from runtime.bundle.manifest import TensorSpec
from runtime.bundle.packages import Package, PackageFile, PackageList
from runtime.errors import SettingError
from runtime.files import sha256_of

Say = Callable[[str], None]

# Fixed side of a package's input in LR pixels.
TILE = 128
# Most bytes of a package's weights in float16. Larger models do not load on phones.
CHUNK_BYTES = 1_000_000_000
# Default variants of a student.
STUDENT_VARIANTS = ("fp16", "w8a8")
ONE_STEP_VARIANTS = ("fp16", "palette6")
# Target PSNR in dB of a mixed plan, for encoder and generator each while the other is uncompressed.
MIXED_ROLE_DB = 51.5
# Floors of one-step models in dB; the pocket one has 71.5, 53.6 and 41.9. Those of a student are in export.coreml.compress.
ONE_STEP_FLOOR_DB = {"fp16": 40.0, "linear8": 40.0, "palette8": 40.0, "palette6": 35.0}
# Least PSNR in dB of the values between chunks, with weights in float16 and with fewer bits.
CHUNK_FLOOR_DB, PACKED_CHUNK_FLOOR_DB = 40.0, 25.0


def write_coreml(
    source: Source,
    folder: Path,
    variants: Sequence[str],
    system: str,
    tile: int,
    images: bool,
    metadata: Mapping[str, str],
    say: Say,
    *,
    calibration: Sequence[Sample] | None = None,
    sizes: Sequence[tuple[int, int]] = (),
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[dict[str, dict[str, PackageList]], dict[str, Any]]:
    """Write the packages of each variant; returns them and the measurements.

    source: the model.
    folder: for the packages.
    variants: keys of `export.coreml.compress.VARIANTS`.
    system: oldest system that must run them, iOS17 or iOS18.
    tile: side of the input in LR pixels.
    images: use pixel buffers for photo and result.
    metadata: to store in the packages.
    say: receives progress messages.
    calibration: samples for w8a8; None for openly licensed photos.
    sizes: further (height, width) that the packages take.
    chunk_bytes: most bytes of a package's weights in float16; a larger generator of a one-step model is cut.

    The measurements are the worst PSNR of each variant, encoder and generator in a chain, that of each chunk, the
    rescaled norms, and for `mixed` the noise and bits of each weight. Raises ParityError if a variant misses its floor."""
    from export.coreml.activations import SAMPLES, W8A8, quantize_activations
    from export.coreml.compress import FP16, MIXED, check_variant, compress
    from export.coreml.convert import IMAGE_FLOOR_DB, convert
    from export.mil.pair import PackagePair

    # floors: of each variant, as the kind of model has them
    floors = {name: check_variant(name, system).floor_db for name in (FP16, *variants)}
    if source.kind != STUDENT:
        unknown = [name for name in floors if name not in ONE_STEP_FLOOR_DB]
        if unknown:
            raise SettingError(
                f"variant: expected one of {', '.join(ONE_STEP_FLOOR_DB)} for a one-step model, got {unknown[0]!r}, which has no "
                "measured floor; distil the model to a student for smaller variants"
            )
        floors = {name: ONE_STEP_FLOOR_DB[name] for name in floors}
    if images:
        floors = {name: min(floor, IMAGE_FLOOR_DB) for name, floor in floors.items()}

    # fold: a one-step model for the Neural Engine, in chunks that fit
    measured: dict[str, Any] = {}
    made = source
    parts: dict[str, tuple[str, ...]] = {role: (role,) for role in ROLES}
    if source.kind != STUDENT:
        from export.fold.chunks import cut  # needs diffusers, which a student does not
        from export.fold.neural_engine import for_engine

        made, factors = for_engine(source, samples(source, 2, seed=3, size=min(tile, 64)))
        if factors:
            measured["rescaled_norms"] = factors
            say(f"rescaled norms: {len(factors)}")
        made, parts["generator"] = cut(made, chunk_bytes)
        if len(parts["generator"]) > 1:
            say(f"generator in {len(parts['generator'])} chunks")

    def converted(source: Source, name: str) -> dict[str, Path]:
        return {
            part: convert(
                source,
                part,
                folder,
                height=tile,
                width=tile,
                sizes=sizes,
                target=system,
                images=images,
                floor_db=floors[name],
                variant=name,
                metadata=metadata,
            )
            for role in ROLES
            for part in parts[role]
        }

    # convert: in half precision, from which most variants are compressed
    say(f"converting to Core ML ({system}, tiles of {tile}x{tile})")
    whole = converted(made, FP16)
    written: dict[str, dict[str, PackageList]] = {}
    parity: dict[str, float] = {}
    measured["coreml_parity_db"] = parity
    # compress or quantize: one variant after the other
    for name in variants:
        pair = whole
        if name == W8A8:
            photos = samples(source, SAMPLES, seed=0) if calibration is None else calibration
            say(f"quantizing: {name}, calibrated on {len(photos)} samples")
            pair = converted(quantize_activations(source, photos), name)
        elif name != FP16:
            say(f"compressing: {name}")
            plans: dict[str, dict[str, int]] = {}
            if name == MIXED:
                plans, rows = mixed_plans(source, whole, tile, say)
                measured["mixed_bits"] = plans
                measured["sensitivity"] = {"coreml": [row.to_dict() for row in rows]}
            pair = {
                part: compress(
                    path,
                    name,
                    folder / f"{part}.{name}.mlpackage",
                    plan=plans.get(part),
                    floor_db=floors[name],
                )
                for part, path in whole.items()
            }
        # evaluate: each chunk, then encoder and generator in a chain
        say(f"evaluating {name} against torch")
        if len(parts["generator"]) > 1:
            floor = CHUNK_FLOOR_DB if name == FP16 else PACKED_CHUNK_FLOOR_DB
            chunks = check_chunks(made, {part: pair[part] for part in parts["generator"]}, tile, name, floor)
            measured.setdefault("coreml_chunks_db", {})[name] = chunks
            say("  " + ", ".join(f"{part} {value:.1f} dB" for part, value in chunks.items()))
        listed = {role: [pair[part] for part in parts[role]] for role in ROLES}
        worst = check_parity(
            source,
            PackagePair(listed, source.specs),
            f"Core ML {name}",
            floors[name],
            sizes=((tile, tile), *sizes),
            remedy="Leave this variant out with --variant",
        )
        parity[name] = round(worst, 1)
        say(f"  at least {worst:.1f} dB (floor {floors[name]:g} dB)")
        # list: the files as the manifest names them
        written[name] = {}
        for role, names in parts.items():
            packages = []
            for part in names:
                package = _package(pair[part], tile, system, floors[name], images)
                package = replace(package, sizes=tuple(sizes))
                if len(names) > 1:
                    spec = made.specs[part]
                    package = replace(package, inputs=_names(spec.inputs), outputs=_names(spec.outputs))
                packages.append(package)
            written[name][role] = PackageList(tuple(packages))
    # remove the parts that nobody asked for
    if FP16 not in variants:
        for path in whole.values():
            shutil.rmtree(path)
    return written, measured


def check_chunks(
    source: Source, packages: Mapping[str, Path], tile: int, variant: str, floor: float
) -> dict[str, float]:
    """PSNR in dB of each chunk against its torch module, on torch's own inputs. The peak is the output's largest magnitude.

    source: a model with the chunks among its modules.
    packages: of the chunks, in order.
    tile: side of the input in LR pixels.
    variant: name of the variant, for errors.
    floor: least PSNR.

    Raises ParityError for a chunk below the floor."""
    from export.mil.device import open_runner
    from export.mil.package.program import read_package

    (photo,) = samples(source, 1, seed=5, size=tile)
    image, noise = photo.lr[None, :, :tile, :tile], noise_for(source, tile, tile, seed=5)
    given = (*source.encode(torch.from_numpy(np.ascontiguousarray(image))), torch.from_numpy(noise))
    values = dict(zip(_names(source.specs["generator"].inputs), given, strict=True))
    found = {}
    for name, path in packages.items():
        spec = source.specs[name]
        inputs = {key: values[key] for key in _names(spec.inputs)}
        with torch.no_grad():
            results = source.modules[name](*inputs.values())
        results = (results,) if isinstance(results, torch.Tensor) else results
        expected = dict(zip(_names(spec.outputs), results, strict=True))
        came = open_runner(read_package(path))({key: value.numpy() for key, value in inputs.items()})
        worst = min(feature_psnr(came[key], value.numpy()) for key, value in expected.items())
        if not worst >= floor:
            raise ParityError(
                f"Core ML {variant}: {name}: expected at least {floor:g} dB against torch, got {worst:.1f} dB; nothing was written. "
                "Leave this variant out with --variant"
            )
        found[name] = round(worst, 1)
        values |= expected
    return found


def mixed_plans(
    source: Source,
    packages: Mapping[str, Path],
    tile: int,
    say: Say,
    floor_db: float = MIXED_ROLE_DB,
) -> tuple[dict[str, dict[str, int]], list[LayerNoise]]:
    """Bits by weight name for each role, and the measurements they are based on.

    source: the model.
    packages: float16 packages by role.
    tile: side of the input in LR pixels.
    say: receives progress messages.
    floor_db: PSNR to plan for.

    Measured is the PSNR of the whole model on one photo, with one weight compressed. Rows are named by role and weight."""
    from export.coreml.mixed import weight_noise
    from export.mil.pair import PackagePair

    (photo,) = samples(source, 1, seed=4, size=tile, first=OTHER_PHOTOS)
    image, noise = photo.lr[None], noise_for(source, tile, tile, seed=4)
    expected = source(torch.from_numpy(image), torch.from_numpy(noise)).numpy()

    def score(pair: Mapping[str, Path]) -> float:
        return psnr(PackagePair(pair, source.specs)(image, noise), expected)

    plans, found, reference = {}, list[LayerNoise](), score(packages)
    for role in ROLES:
        say(f"  measuring each weight of the {role}")

        def alone(path: Path, role: str = role) -> float:
            return score({**packages, role: path})

        rows = weight_noise(
            packages[role], alone, say=lambda done, total: say(f"    weight {done} of {total}")
        )
        plans[role] = plan(rows, floor_db, reference_db=reference)
        found += [replace(row, layer=f"{role}/{row.layer}") for row in rows if math.isfinite(row.psnr)]
        say(
            f"  bits {plans[role]}, expected {predicted_db(rows, plans[role], reference_db=reference):.1f} dB"
        )
    return plans, found


def default_variants(source: Source) -> tuple[str, ...]:
    """Variants that suit the model; `export.coreml.compress` has all."""
    return STUDENT_VARIANTS if source.kind == STUDENT else ONE_STEP_VARIANTS


def _names(tensors: Sequence[TensorSpec]) -> tuple[str, ...]:
    return tuple(tensor.name for tensor in tensors)


def _package(path: Path, tile: int, system: str, floor: float, images: bool) -> Package:
    """The manifest's entry of a package.

    path: of the package, a folder.
    tile: side in LR pixels that it takes.
    system: least system, such as "iOS17".
    floor: least PSNR in dB against the bundle.
    images: whether it takes and gives images instead of arrays."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return Package(
        tuple(
            PackageFile(f"{path.name}/{f.relative_to(path).as_posix()}", f.stat().st_size, sha256_of(f))
            for f in files
        ),
        tile,
        tile,
        system,
        floor,
        images,
    )
