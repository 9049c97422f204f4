"""Accuracy of a bundle on pairs of small and large photos: one row per method, measured alike.

Rows: bicubic, folders of pictures made elsewhere, other models given as functions or methods, the bundle in each
precision, and its Core ML packages given as methods. Everything is deterministic: seeds are arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from calibration.measure.gates import GateResult, Gates, check_gates
from calibration.measure.intervals import FEW, REFERENCE
from calibration.measure.methods import (
    Method,
    bicubic_method,
    folder_method,
    model_method,
    peer_method,
    precision_rank,
)
from calibration.measure.pairs import find_pairs
from calibration.measure.table import (
    DIVERSITY_IMAGES,
    DIVERSITY_SAMPLES,
    Group,
    ImageScore,
    Observe,
    Row,
    compared,
    measure_originals,
    measure_row,
)
from calibration.sensitivity import LayerNoise, read_rows
from runtime.bundle.reader import Bundle
from runtime.errors import SettingError
from runtime.text import finite
from runtime.upscale.upscaler import Upscaler
from training.metrics import pyiqa as perceptual
from training.metrics import sqf

__all__ = ["AccuracyReport", "ImageScore", "Observe", "Row", "evaluate", "measure_row", "versions"]

# Called with pictures done, pictures in all, and the row being measured.
Progress = Callable[[int, int, str], None]
# Packages whose versions a report states.
PACKAGES = (
    "gdposr", "numpy", "onnxruntime", "onnxruntime-gpu", "torch", "coremltools", "openvino", "pyiqa"
)  # fmt: skip


@dataclass(frozen=True)
class AccuracyReport:
    """The measured rows, the pictures, and the verdict of the gates."""

    bundle: dict[str, str]
    """The bundle's "name" and "digest"."""
    scale: int
    """Scale of the bundle: HR is so many times LR."""
    pictures: str
    """Where the pictures come from."""
    count: int
    """Number of pictures."""
    groups: int
    """Number of independent pictures: of photos, if several pictures are crops of one photo."""
    seed: int
    """Seed of the noise."""
    diversity_images: int
    """Pictures on which diversity was measured."""
    diversity_samples: int
    """Samples of each of them."""
    sqf_note: str | None
    """Why there is no SQF. None: there is SQF."""
    hr_niqe: float
    """NIQE of the HR photos themselves, for comparison."""
    hr_checkerboard: float | None
    """Checkerboard measure of the HR photos in dB."""
    rows: tuple[Row, ...]
    """Bicubic first, then folders and other models, then the bundle's own."""
    gates: tuple[GateResult, ...] = field(default=())
    """Limits that were measured, each with its result; empty: no budgets."""
    extra_metrics: tuple[str, ...] = ()
    """Names of learned metrics."""
    extra_note: str | None = None
    """Why there are no learned metrics. None: there are some."""
    budgets: dict[str, dict[str, float]] = field(default_factory=dict)
    """Row -> gate -> limit that was applied."""
    sensitivity: dict[str, tuple[LayerNoise, ...]] = field(default_factory=dict)
    """Target -> its layers."""
    machine: dict[str, str] = field(default_factory=dict)
    """The machine as text by name: processor, threads, how rows were timed."""
    versions: dict[str, str] = field(default_factory=dict)
    """Package -> version."""

    @property
    def few(self) -> bool:
        """Too few independent pictures to trust the intervals."""
        return self.groups < FEW

    @property
    def caution(self) -> str:
        """How far the intervals can be trusted, in a sentence or two; empty if nothing was compared."""
        if not any(row.differences for row in self.rows):
            return ""
        crops = f", of which the {self.count} pictures are crops" if self.groups < self.count else ""
        noun = "photo" if crops else "picture"
        few = f"The intervals are over {self.groups} {noun}{'s'[: self.groups > 1]}{crops}: too few to trust, take {FEW} or more. "
        return (
            f"{few if self.few else ''}Each difference holds at 95 % by itself: the many comparisons are not corrected for, so about "
            "one in twenty without a true difference still shows one."
        )

    @property
    def ok(self) -> bool | None:
        """Whether all gates passed; None if there are none."""
        return all(gate.ok for gate in self.gates) if self.gates else None

    def row(self, name: str) -> Row:
        """The row of that name."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no row {name!r}; there are {', '.join(row.name for row in self.rows)}")

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: infinite numbers (PSNR of equal pictures) become null. Each difference says whether it is real."""
        values = asdict(self)
        for row, plain_row in zip(self.rows, values["rows"], strict=True):
            for name, difference in row.differences.items():
                plain_row["differences"][name]["real"] = difference.real
        plain: dict[str, Any] = finite(values | {"few": self.few, "caution": self.caution, "ok": self.ok})
        return plain


def evaluate(
    bundle: str | Path | Bundle | None,
    lr_dir: str | Path,
    hr_dir: str | Path,
    *,
    precisions: Sequence[str] | None = None,
    device: str = "auto",
    threads: int | None = None,
    seed: int = 0,
    color_fix: str | None = None,
    limit: int | None = None,
    folders: Mapping[str, str | Path] | None = None,
    peers: Mapping[str, Callable[[np.ndarray], np.ndarray]] | None = None,
    methods: Sequence[Method] = (),
    sqf_weights: str | Path | None = None,
    extra_metrics: Sequence[str] = (),
    diversity_images: int = DIVERSITY_IMAGES,
    diversity_samples: int = DIVERSITY_SAMPLES,
    budgets: Mapping[str, Gates] | None = None,
    pictures: str | None = None,
    group: Group | None = None,
    machine: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    observe: Observe | None = None,
) -> AccuracyReport:
    """Measure a bundle on all pairs of two folders.

    bundle: None: the built-in one.
    lr_dir, hr_dir: folders of photos with the same names.
    precisions: rows of the bundle; None: all that it has.
    device, threads, color_fix: as for `Upscaler`.
    seed: of the noise.
    limit: number of pairs, the first by name; None: all.
    folders: name -> folder of pictures that are already enlarged.
    peers: name -> function from (h, w, 3) uint8 to (H, W, 3) uint8.
    methods: further rows. Those of kind "model", such as Core ML packages, come last and take part in gates.
    sqf_weights: SqueezeNet 1.1 as safetensors; None: no SQF.
    extra_metrics: names of metrics in `training.metrics.pyiqa`.
    diversity_images, diversity_samples: how many pictures diversity is measured on, and samples of each.
    budgets: row -> its limits.
    pictures, machine: texts for the report; pictures None: the names of both folders.
    group: picture name -> the photo that it is a crop of; None: each picture is a photo of its own.
    progress: called after every picture of every row.
    observe: called with every picture, for a report's crops.

    SettingError for impossible rows, budgets or precisions; ImageError for unusable pictures.
    """
    # rows: those of the bundle, then everything it is compared with
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    manifest = opened.manifest
    chosen = measured_precisions(opened, precisions)
    sensitivity = read_rows(manifest.accuracy.get("sensitivity", {}))
    packages = [method for method in methods if method.kind == "model"]
    models = [*chosen, *(method.name for method in packages)]
    _check_budgets(budgets or {}, models)
    pairs = find_pairs(lr_dir, hr_dir, limit)
    others = [folder_method(name, Path(folder), pairs) for name, folder in (folders or {}).items()]
    others += [peer_method(name, run) for name, run in (peers or {}).items()]
    others += [method for method in methods if method.kind != "model"]
    # names: each row needs its own
    reserved = ["bicubic", "LR", "HR", *chosen]
    names = [method.name for method in (*others, *packages)]
    clash = [name for name in names if name in reserved or names.count(name) > 1]
    if clash:
        raise SettingError(
            f"two rows would be called {clash[0]!r}: give the folder or other model another name"
        )
    # metrics: those whose weights or packages are there
    note = sqf.unavailable(sqf_weights)
    score = None if note or sqf_weights is None else sqf.scorer(sqf_weights)
    extra = perceptual.scorers(extra_metrics)
    total, done = len(pairs) * (1 + len(names) + len(chosen)), 0

    # measure: row by row, each on all pairs
    def tick(row: str) -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total, row)

    def measure(method: Method) -> Row:
        return measure_row(
            method, pairs, manifest.scale, score, diversity_images, diversity_samples, tick, observe, extra, group
        )  # fmt: skip

    hr_niqe, hr_checkerboard = measure_originals(pairs, observe)
    rows = [measure(method) for method in (bicubic_method(manifest.scale), *others)]
    for precision in chosen:  # one model in memory at a time
        with Upscaler(
            opened, device=device, precision=precision, threads=threads, color_fix=color_fix
        ) as upscaler:
            rows.append(measure(model_method(precision, upscaler, opened, seed)))
    rows = compared([*rows, *(measure(method) for method in packages)])
    # report: with budgets applied
    return AccuracyReport(
        bundle={"name": manifest.name, "digest": opened.digest},
        scale=manifest.scale,
        pictures=pictures or f"{lr_dir} and {hr_dir}",
        count=len(pairs),
        groups=len({group(pair.name) for pair in pairs}) if group else len(pairs),
        seed=seed,
        diversity_images=min(diversity_images, len(pairs)),
        diversity_samples=diversity_samples,
        sqf_note=note,
        hr_niqe=hr_niqe,
        hr_checkerboard=hr_checkerboard,
        rows=tuple(rows),
        gates=check_gates(budgets or {}, rows),
        extra_metrics=tuple(extra),
        extra_note=None if extra else perceptual.available()[1] or "none was asked for",
        budgets={row: gates.to_dict() for row, gates in (budgets or {}).items()},
        sensitivity=sensitivity,
        machine=dict(machine or {}),
        versions=versions(),
    )


def measured_precisions(bundle: Bundle, precisions: Sequence[str] | None = None) -> list[str]:
    """The ONNX rows, fp32 first. precisions: those asked for; None or empty: all. SettingError for one that the bundle lacks."""
    graphs = bundle.manifest.graphs
    chosen = list(precisions or sorted(graphs, key=precision_rank))
    unknown = [name for name in chosen if name not in graphs]
    if unknown:
        raise SettingError(f"the bundle has no {unknown[0]}: choose from {', '.join(graphs)}")
    return chosen


def versions() -> dict[str, str]:
    """Versions of those of `PACKAGES` that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _check_budgets(budgets: Mapping[str, Gates], models: Sequence[str]) -> None:
    unknown = [row for row in budgets if row not in models]
    if unknown:
        raise SettingError(
            f"expected budgets of rows that are measured ({', '.join(models)}), got {unknown[0]!r}: correct or measure it"
        )
    relative = any(gates.needs_reference for row, gates in budgets.items() if row != REFERENCE)
    if relative and REFERENCE not in models:
        raise SettingError("gates against fp32 need it among the precisions: add fp32")
