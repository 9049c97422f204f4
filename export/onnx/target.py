"""The ONNX graphs of a bundle, by precision, each checked against torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from export.onnx.graph.convert import INSIDE_BYTES, OnnxPair, data_file, export_fp32, weight_bytes
from export.onnx.graph.half import convert_fp16
from export.onnx.graph.weight_only import BITS, compress_pair
from export.onnx.int8.quantize import Int8Request, quantize_int8
from export.parity import OTHER_PHOTOS, check_parity, samples
from export.source import STUDENT, Source
from runtime.bundle.entries import Graph, WeightFile
from runtime.bundle.manifest import PRECISIONS
from runtime.errors import SettingError
from runtime.files import sha256_of

Say = Callable[[str], None]

STUDENT_PRECISIONS = ("fp32", "fp16", "int8")
# Least PSNR in dB against torch, over sizes, photos and seeds.
ONNX_FLOOR_DB = {
    "fp32": 100.0,
    "fp16": 50.0,
    "int8": 42.0,
    "w8": 48.0,
    "w4": 44.0,
}
# Target PSNR in dB when choosing bit widths for w4. It is above the floor because other photos measured up to 3.5 dB lower.
W4_TARGET_DB = 48.0
# Side of those photos in LR pixels. It is small because every layer needs a run.
W4_SIDE = 32


def write_onnx(
    source: Source,
    folder: Path,
    precisions: Sequence[str],
    int8: Int8Request | None,
    metadata: Mapping[str, str],
    say: Say,
) -> tuple[dict[str, dict[str, Graph]], dict[str, Any]]:
    """Write the graphs of each precision; returns them and the measurements.

    source: the model.
    folder: for the files.
    precisions: some of `PRECISIONS`.
    int8: how to quantize, if int8 is among the precisions.
    metadata: to store in the graphs.
    say: receives progress messages.

    The measurements are the worst PSNR of each precision. For fp16 there is also the PSNR with values stored in half
    precision, which ONNX Runtime on a CPU does not do, and the nodes kept in fp32."""
    # fp32: from which all others are made
    say("converting to ONNX")
    paths = {"fp32": export_fp32(source, folder, metadata)}
    measured: dict[str, Any] = {"parity_db": {}}
    # fp16: half precision, but for islands that stay in fp32
    if "fp16" in precisions:
        say("converting to half precision")
        feeds = _feeds(source, paths["fp32"], samples(source, 2, seed=3))
        halves = {
            role: convert_fp16(path, folder / f"{role}.fp16.onnx", feeds[role])
            for role, path in paths["fp32"].items()
        }
        paths["fp16"] = {role: half.path for role, half in halves.items()}
        measured["fp16_emulated_db"] = {role: round(half.psnr, 1) for role, half in halves.items()}
        islands = {role: list(half.islands) for role, half in halves.items() if half.islands}
        if islands:
            measured["fp32_islands"] = islands
    # int8: calibrated, within its budget
    if "int8" in precisions:
        if int8 is None:
            raise ValueError("precision int8: expected samples to calibrate with, got none")
        say(f"quantizing to INT8 ({int8.preset})")
        made = quantize_int8(paths["fp32"], folder, source.specs, int8, say)
        paths["int8"] = made.paths
        measured["int8"] = made.to_dict()
        measured["sensitivity"] = {"onnx": [row.to_dict() for row in made.rows]}
    # w8, w4: 8 or 4 bits in weights alone
    for precision in sorted(BITS.keys() & set(precisions)):
        paths[precision] = _weight_only(source, folder, paths["fp32"], precision, measured, say)
    # check: each precision against torch
    kept = {precision: paths[precision] for precision in PRECISIONS if precision in precisions}
    for precision, pair in kept.items():
        say(f"checking {precision} against torch")
        floor = ONNX_FLOOR_DB[precision]
        worst = check_parity(
            source,
            OnnxPair(source.specs, pair),
            precision,
            floor,
            remedy="Leave this precision out with --precision, or calibrate on more photos",
        )
        measured["parity_db"][precision] = round(worst, 1)
        say(f"  at least {worst:.1f} dB (floor {floor:g} dB)")
    # remove the parts that nobody asked for
    if "fp32" not in kept:
        for path in paths["fp32"].values():
            path.unlink()
            data_file(path).unlink(missing_ok=True)
    return {p: {role: _graph(path) for role, path in pair.items()} for p, pair in kept.items()}, measured


def default_precisions(source: Source) -> tuple[str, ...]:
    """Precisions that suit the model. A one-step model gets INT8 on request only, since measuring its layers takes long."""
    return STUDENT_PRECISIONS if source.kind == STUDENT else ("fp32", "fp16")


def check_int8(source: Source) -> None:
    """Raise SettingError for a model too large for INT8, before anything is converted."""
    for role, module in source.modules.items():
        size = weight_bytes(module)
        if size > INSIDE_BYTES:
            raise SettingError(
                f"precision int8: expected at most {INSIDE_BYTES / 1e9:g} GB of weights in a graph, since NNCF holds it several times, "
                f"got {size / 1e9:.1f} GB in the {role}; use w8 or w4, or distil the model (`gdposr distill`)"
            )


def _weight_only(
    source: Source,
    folder: Path,
    graphs: Mapping[str, Path],
    precision: str,
    measured: dict[str, Any],
    say: Say,
) -> dict[str, Path]:
    """Write graphs with weights in 8 or 4 bits; returns the paths by role.

    source: the model.
    folder: for the files.
    graphs: fp32 graphs by role.
    precision: w8 or w4.
    measured: receives the layers of w4 that keep 8 bits and, if it was needed, the measurement behind that.
    say: receives progress messages."""
    say(f"compressing weights ({precision})")
    photos = samples(source, 2, seed=3, size=W4_SIDE, first=OTHER_PHOTOS)
    made = compress_pair(source, graphs, folder, precision, photos, W4_TARGET_DB, say)
    if precision == "w4":
        measured["w4"] = made.to_dict()
    if made.rows:
        # the rows at 8 bits are the reference, not a measurement
        rows = [row.to_dict() for row in made.rows if row.bits < 8]
        measured.setdefault("sensitivity", {})[precision] = rows
    return made.paths


def _feeds(
    source: Source, paths: Mapping[str, Path], photos: Sequence[Any]
) -> dict[str, list[dict[str, np.ndarray]]]:
    """Real inputs of both graphs. Those of the generator contain the encoder's features."""
    pair = OnnxPair(source.specs, paths)
    images = [{source.specs["encoder"].inputs[0].name: photo.lr[None]} for photo in photos]
    noise = source.specs["generator"].inputs[-1].name
    return {
        "encoder": images,
        "generator": [pair.encode(photo.lr[None]) | {noise: photo.noise[None]} for photo in photos],
    }


def _graph(path: Path) -> Graph:
    data = data_file(path)
    weights = WeightFile(data.name, data.stat().st_size, sha256_of(data)) if data.exists() else None
    return Graph(path.name, path.stat().st_size, sha256_of(path), weights)
