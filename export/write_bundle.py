"""Write a bundle from a checkpoint: convert, quantize, compress, and check every file against torch.

    gdposr export --checkpoint export/weights/pocket --out build/pocket.gdposr --targets onnx,coreml

The checkpoint is a student, a training run, or a one-step model in diffusers layout. The new bundle is built beside
the target and replaces it at the end, so an interrupted export leaves the old bundle intact. The same checkpoint and
tools give the same bytes on the same kind of processor."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from calibration.measure.gates import INT8_GATES, Gates
from calibration.measure.intervals import REFERENCE
from calibration.samples import SampleSets, as_pixels, check_fit, draw_sets, load_sets
from export.coreml.target import CHUNK_BYTES, TILE, default_variants, write_coreml
from export.load import load_source
from export.onnx.int8.quantize import INT8_PRESETS, Int8Request
from export.onnx.target import check_int8, default_precisions, write_onnx
from export.parity import noise_for, samples
from export.source import STUDENT, Source
from runtime.bundle.entries import MANIFEST_NAME, Graph, GraphFile, Probe
from runtime.bundle.manifest import FORMAT_VERSION, NEWEST_VERSION, PRECISIONS, Manifest
from runtime.bundle.packages import PackageList
from runtime.bundle.reader import Bundle
from runtime.errors import GdposrError
from runtime.files import sha256_of
from training.checkpoint import replace_folder
from training.metrics.sqf import scorer

TARGETS = ("onnx", "coreml")
# Least PSNR in dB of the 8-bit probe against torch, on any device.
PROBE_FLOOR_DB = {
    "fp32": 50.0,
    "fp16": 45.0,
    "int8": 32.0,
    "w8": 40.0,
    "w4": 30.0,
}
# Files of the probe in a bundle, and the seed of its noise.
PROBE_INPUT, PROBE_OUTPUT, PROBE_SEED = "probe_lr.png", "probe_sr.png", 7
DEFAULT_PRECISION = {"cpu": "int8", "cuda": "fp16", "ane": "fp16", "openvino": "int8"}
SYSTEMS = ("iOS17", "iOS18")
# Number of INT8 calibration samples, and of noise seeds per crop among them. One-step models get more seeds, since their noise passes
# through the whole network.
CALIBRATION_SAMPLES = 32
STUDENT_SEEDS, ONE_STEP_SEEDS = 2, 4


@dataclass(frozen=True)
class Wanted:
    """What a bundle should contain."""

    targets: tuple[str, ...] = ("onnx",)
    """Some of `TARGETS`."""
    precisions: tuple[str, ...] | None = None
    """Precisions of the ONNX graphs; None for the model's defaults."""
    variants: tuple[str, ...] | None = None
    """Variants of the Core ML packages; None for the model's defaults."""
    system: str = "iOS17"
    """Oldest system that must run the Core ML packages."""
    tile: int = TILE
    """Side in LR pixels of a Core ML package's input."""
    images: bool = False
    """Whether Core ML packages take and return images instead of arrays."""
    sizes: tuple[tuple[int, int], ...] = ()
    """Further heights and widths in LR pixels that a Core ML package takes, from iOS 18 on."""
    chunk_mb: float = CHUNK_BYTES / 1e6
    """Most megabytes of a Core ML package's weights in float16. A larger generator of a one-step model is cut."""
    calibration: Path | None = None
    """Folder of photos, or a file of samples drawn from one; None for scikit-image's photos."""
    int8: str = "avx2"
    """Preset of `export.onnx.int8.quantize`."""
    float_layers: tuple[str, ...] = ()
    """Nodes that stay in floating point in INT8 graphs."""
    sqf_weights: Path | None = None
    """SqueezeNet 1.1 for the SQF gate of INT8; None skips that gate."""
    budget: Gates | None = None
    """Limits of the loss by INT8 that replace the preset's."""

    def __post_init__(self) -> None:
        for name, known in (("targets", TARGETS), ("precisions", PRECISIONS)):
            for value in getattr(self, name) or ():
                if value not in known:
                    raise ValueError(f"{name}: expected some of {', '.join(known)}, got {value!r}")
        if not self.targets or () in (self.precisions, self.variants):
            raise ValueError("expected at least one target, precision and variant, got none")
        if self.int8 not in INT8_PRESETS:
            raise ValueError(f"int8: expected one of {', '.join(INT8_PRESETS)}, got {self.int8!r}")
        if self.system not in SYSTEMS:
            raise ValueError(f"system: expected one of {', '.join(SYSTEMS)}, got {self.system!r}")


def write_bundle(
    checkpoint: Path,
    out: Path,
    wanted: Wanted | None = None,
    *,
    base: str | Path | None = None,
    prompt: str | None = None,
    name: str | None = None,
    accuracy: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Manifest:
    """Export a checkpoint folder to a bundle folder; returns the manifest. Raises ParityError if a file misses its floor.

    checkpoint: folder of the model.
    out: bundle folder to write.
    wanted: its content; None for the defaults.
    base: source of the text encoder and scheduler of a one-step model that lacks them.
    prompt: to fold into a one-step model; None for the default.
    name: of the bundle; None takes it from `out`.
    accuracy: report of `gdposr accuracy` to store in the bundle.
    say: receives progress messages."""
    # load, and check the request before any long work
    _check_place(out)
    wanted = wanted or Wanted()
    source = load_source(checkpoint, base=base, prompt=prompt)
    precisions = wanted.precisions or default_precisions(source)
    variants = wanted.variants or default_variants(source)
    with_int8 = "onnx" in wanted.targets and "int8" in precisions
    if with_int8:
        check_int8(source)
    with_w8a8 = "coreml" in wanted.targets and "w8a8" in variants
    sets = _sets(source, wanted) if with_int8 or with_w8a8 else None
    int8 = _int8_request(source, sets, wanted) if sets and with_int8 else None
    if not with_int8 and (wanted.float_layers or wanted.sqf_weights or wanted.budget):
        raise ValueError(
            "float layers, SQF weights and a budget apply to INT8 graphs only, and none are wanted: leave them out"
        )
    # tell how the model was folded
    if source.folded_db is not None:
        say(f"folded: {source.folded_db:.1f} dB against the original model")
    if source.prompt is not None:
        say(f"folded for one prompt, the same for every photo: {source.prompt!r}")
    # write the graphs: beside the old bundle, which stays until the new one is whole
    metadata = {"model": source.kind, "checkpoint_sha256": source.checkpoint_sha256}
    fresh = out.with_name(f"{out.name}.{os.getpid()}.new")
    fresh.mkdir(parents=True)
    try:
        graphs: dict[str, dict[str, Graph]] = {}
        packages: dict[str, dict[str, PackageList]] = {}
        measured: dict[str, Any] = {} if source.folded_db is None else {"folded_db": source.folded_db}
        if "coreml" in wanted.targets:  # first, since it rejects a wrong variant or tile quickly
            packages, found = write_coreml(
                source,
                fresh,
                variants,
                wanted.system,
                wanted.tile,
                wanted.images,
                metadata,
                say,
                calibration=sets.calibration if sets else None,
                sizes=wanted.sizes,
                chunk_bytes=round(wanted.chunk_mb * 1e6),
            )
            measured |= found
        if "onnx" in wanted.targets:
            graphs, found = write_onnx(source, fresh, precisions, int8, metadata, say)
            layers = {**measured.pop("sensitivity", {}), **found.pop("sensitivity", {})}
            measured |= found | ({"sensitivity": layers} if layers else {})
        # describe them in the manifest
        newest = any(chunks.needs_newest for pair in packages.values() for chunks in pair.values())
        manifest = Manifest(
            format_version=NEWEST_VERSION if newest else FORMAT_VERSION,
            name=name or out.name.removesuffix(".gdposr"),
            scale=source.scale,
            encoder=source.specs["encoder"],
            generator=source.specs["generator"],
            graphs=graphs,
            coreml=packages,
            size=source.size,
            noise=source.noise,
            t_n=source.t_n,
            t_d=source.t_d,
            color_fix=source.color_fix,
            default_precision={
                d: p if p in graphs else next(iter(graphs)) for d, p in DEFAULT_PRECISION.items()
            }
            if graphs
            else {},
            probe=_write_probe(source, fresh, tuple(graphs)),
            provenance={
                "training": dict(source.training),
                "parameters": source.parameters,
                "tools": _tools(wanted.targets),
                **({"prompt": source.prompt} if source.prompt is not None else {}),
                **metadata,
            },
            accuracy={**(accuracy or {}), **measured},  # export's own values replace older copies in a report
            budgets={row: gates.to_dict() for row, gates in _budgets(graphs, packages, int8).items()},
        )
        # verify every hash, then put the folder into its place
        (fresh / MANIFEST_NAME).write_text(json.dumps(manifest.to_dict(), indent=2, sort_keys=True) + "\n")
        Bundle.open(fresh).verify()
        replace_folder(fresh, out)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return manifest


def _sets(source: Source, wanted: Wanted) -> SampleSets:
    """Calibration and validation samples, drawn or read."""
    noise = source.noise
    if wanted.calibration is not None and wanted.calibration.is_file():
        sets = load_sets(wanted.calibration)
        check_fit(sets, multiple=source.size.multiple_of, channels=noise.channels, downscale=noise.downscale)
        return sets
    seeds = STUDENT_SEEDS if source.kind == STUDENT else ONE_STEP_SEEDS
    return draw_sets(
        wanted.calibration,
        crops=CALIBRATION_SAMPLES // seeds,
        seeds=seeds,
        channels=noise.channels,
        downscale=noise.downscale,
    )


def _int8_request(source: Source, sets: SampleSets, wanted: Wanted) -> Int8Request:
    score = None if wanted.sqf_weights is None else scorer(wanted.sqf_weights)
    own = INT8_PRESETS[wanted.int8].budget
    budget = own if wanted.budget is None else own.overridden(wanted.budget)
    hybrid = source.kind != STUDENT
    return Int8Request(sets, wanted.int8, budget, wanted.float_layers, score, hybrid)


def _budgets(
    graphs: Mapping[str, Any], packages: Mapping[str, Any], int8: Int8Request | None
) -> dict[str, Gates]:
    """The limits of each row of an accuracy table against fp32.

    INT8 was judged by its own limits at export; `gdposr accuracy` judges all rows."""
    rows = [name for name in graphs if name != REFERENCE] + [f"coreml {name}" for name in packages]
    return {row: int8.limits if row == "int8" and int8 else INT8_GATES for row in rows}


def _check_place(out: Path) -> None:
    """`out` must not exist, or hold a bundle and nothing else, since it is replaced as a whole."""
    if not out.exists():
        return
    try:
        manifest = Bundle.open(out).manifest if out.is_dir() else None
    except GdposrError:
        manifest = None
    if manifest is None:
        raise FileExistsError(f"{out} exists and is not a bundle; choose another --out")
    named = {file.file for file in manifest.files} | {MANIFEST_NAME}
    strangers = sorted(
        name
        for path in out.rglob("*")
        if path.is_file() and (name := path.relative_to(out).as_posix()) not in named
    )
    if strangers:
        raise FileExistsError(
            f"{out} holds {strangers[0]}, which is not part of the bundle and would be lost; move it, or choose another --out"
        )


def _write_probe(source: Source, folder: Path, precisions: Sequence[str]) -> Probe:
    """Write a degraded photo and torch's result for it as 8-bit PNG files."""
    (sample,) = samples(source, 1, seed=2)
    Image.fromarray(as_pixels(sample.lr)).save(folder / PROBE_INPUT)
    height, width = sample.lr.shape[1:]
    noise = noise_for(source, height, width, seed=PROBE_SEED)
    sr = source(torch.from_numpy(sample.lr[None]), torch.from_numpy(noise))[0].numpy()
    Image.fromarray(as_pixels(sr)).save(folder / PROBE_OUTPUT)
    floors = {precision: PROBE_FLOOR_DB[precision] for precision in precisions}
    return Probe(_entry(folder / PROBE_INPUT), _entry(folder / PROBE_OUTPUT), PROBE_SEED, floors)


def _entry(path: Path) -> GraphFile:
    return GraphFile(path.name, path.stat().st_size, sha256_of(path))


def _tools(targets: Sequence[str]) -> dict[str, str]:
    """Versions of the packages that write the files."""
    names = ["torch"]
    names += ["onnx", "onnxruntime", "onnxscript", "nncf"] if "onnx" in targets else []
    names += ["coremltools"] if "coreml" in targets else []
    return {name: importlib.metadata.version(name) for name in names}
