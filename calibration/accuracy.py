"""Accuracy of a bundle on pairs of small and large photos: one row per method, measured alike.

Rows: bicubic, folders of pictures made elsewhere, other models given as functions, and the bundle in each
precision. Everything is deterministic: seeds are arguments, pairs are sorted by name, pictures are compared
as 8-bit RGB.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bundle import Bundle
from runtime.errors import ImageError
from runtime.niqe import niqe
from runtime.upscaler import Upscaler

from . import metrics, sqf
from .gates import GateResult, Gates, check_gates
from .methods import Method, bicubic, bicubic_method, folder_method, model_method, peer_method, precision_rank
from .pairs import Pair, find_pairs, read_rgb

Score = Callable[[np.ndarray, np.ndarray], float]
Progress = Callable[[int, int, str], None]  # pictures done, pictures in all, row being measured
Observe = Callable[
    [str, str, np.ndarray], None
]  # row ("LR", "HR" or its name), picture name, (H, W, 3) uint8

DIVERSITY_IMAGES, DIVERSITY_SAMPLES = 8, 4


@dataclass(frozen=True)
class ImageScore:
    """One picture of one method. sqf: None without weights; checkerboard: None for a picture below 128
    pixels.
    """

    name: str
    psnr: float  # dB, infinite for equal pictures
    ssim: float
    sqf: float | None
    niqe: float
    colour_shift: tuple[float, float, float]  # R, G, B against bicubic, 1/255
    checkerboard: float | None  # dB


@dataclass(frozen=True)
class Row:
    """One method: means over all pictures, and the pictures. None: does not apply or was not measured."""

    name: str
    kind: str
    psnr: float
    ssim: float
    sqf: float | None
    niqe: float
    colour_shift: tuple[float, float, float]
    colour_shift_abs: (
        float  # mean over pictures and channels of the shift without sign: tints that cancel out in the mean
    )
    checkerboard: float | None
    diversity: float | None  # mean pairwise RMS distance between samples, 1/255
    parameters: int | None
    bytes: int | None
    device: str | None
    notes: tuple[str, ...]
    images: tuple[ImageScore, ...]


@dataclass(frozen=True)
class AccuracyReport:
    """What was measured, on what, and whether it is good enough."""

    bundle: dict[str, str]  # name, digest
    scale: int
    count: int  # pictures
    seed: int
    diversity_images: int
    diversity_samples: int
    sqf_note: str | None  # why there is no SQF
    hr_niqe: float  # of the large photos themselves, to read the column by
    hr_checkerboard: float | None
    rows: tuple[Row, ...]
    gates: tuple[GateResult, ...] = field(default=())

    @property
    def ok(self) -> bool | None:
        """All gates passed; None where none was set."""
        return all(gate.ok for gate in self.gates) if self.gates else None

    def row(self, name: str) -> Row:
        """The row of that name."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no row {name!r}; there are {', '.join(row.name for row in self.rows)}")

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: a number that is not finite (PSNR of equal pictures) becomes null."""
        plain: dict[str, Any] = _plain(asdict(self) | {"ok": self.ok})
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
    sqf_weights: str | Path | None = None,
    diversity_images: int = DIVERSITY_IMAGES,
    diversity_samples: int = DIVERSITY_SAMPLES,
    gates: Gates | None = None,
    progress: Progress | None = None,
    observe: Observe | None = None,
) -> AccuracyReport:
    """Measure a bundle (None: the built-in one) on all pairs of two folders.

    precisions: None = all the bundle has. folders: name -> pictures already enlarged. peers: name -> function
    from (h, w, 3) uint8 to (H, W, 3) uint8. limit: only the first pairs. observe is handed every picture, for
    a report's crops.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    manifest = opened.manifest
    chosen = list(precisions or sorted(manifest.graphs, key=precision_rank))
    unknown = [name for name in chosen if name not in manifest.graphs]
    if unknown:
        raise ImageError(f"the bundle has no {unknown[0]}: choose from {', '.join(manifest.graphs)}")
    if gates and gates.needs_reference and "fp32" not in chosen:
        raise ImageError("gates against fp32 need it among the precisions: add fp32")
    pairs = find_pairs(lr_dir, hr_dir, limit)
    others = [folder_method(name, Path(folder), pairs) for name, folder in (folders or {}).items()]
    others += [peer_method(name, run) for name, run in (peers or {}).items()]
    reserved = ["bicubic", "LR", "HR", *chosen]
    names = [method.name for method in others]
    clash = [name for name in names if name in reserved or names.count(name) > 1]
    if clash:
        raise ImageError(f"two rows would be called {clash[0]!r}: give the folder or peer another name")
    note = sqf.unavailable(sqf_weights)
    score = None if note or sqf_weights is None else sqf.scorer(sqf_weights)
    total, done = len(pairs) * (1 + len(others) + len(chosen)), 0

    def tick(row: str) -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total, row)

    def measure(method: Method) -> Row:
        return measure_row(
            method, pairs, manifest.scale, score, diversity_images, diversity_samples, tick, observe
        )

    hr_niqe, hr_checkerboard = _measure_originals(pairs, observe)
    rows = [measure(method) for method in (bicubic_method(manifest.scale), *others)]
    for precision in chosen:  # one model in memory at a time
        with Upscaler(
            opened, device=device, precision=precision, threads=threads, color_fix=color_fix
        ) as upscaler:
            rows.append(measure(model_method(precision, upscaler, opened, seed)))
    return AccuracyReport(
        bundle={"name": manifest.name, "digest": opened.digest},
        scale=manifest.scale,
        count=len(pairs),
        seed=seed,
        diversity_images=min(diversity_images, len(pairs)),
        diversity_samples=diversity_samples,
        sqf_note=note,
        hr_niqe=hr_niqe,
        hr_checkerboard=hr_checkerboard,
        rows=tuple(rows),
        gates=check_gates(gates, rows) if gates else (),
    )


def measure_row(
    method: Method,
    pairs: Sequence[Pair],
    scale: int,
    score: Score | None,
    diversity_images: int = DIVERSITY_IMAGES,
    diversity_samples: int = DIVERSITY_SAMPLES,
    tick: Callable[[str], None] | None = None,
    observe: Observe | None = None,
) -> Row:
    """All pictures of one method. score: SQF, None to leave it out. Diversity is taken on the first pictures
    only.
    """
    images, spread = [], []
    for index, pair in enumerate(pairs):
        lr, hr = read_rgb(pair.lr), read_rgb(pair.hr)
        _check_sizes(pair, lr, hr, scale)
        sr = method.upscale(pair.name, lr)
        if sr.shape != hr.shape or sr.dtype != np.uint8:
            raise ImageError(
                f"{method.name}: {pair.name}: expected {hr.shape} uint8 like HR, got {sr.shape} {sr.dtype}"
            )
        images.append(_score_image(pair.name, sr, hr, bicubic(lr, scale), score))
        if method.samples is not None and index < diversity_images and diversity_samples > 1:
            spread.append(metrics.diversity(method.samples(lr, diversity_samples)))
        if observe:
            observe(method.name, pair.name, sr)
        if tick:
            tick(method.name)
    shifts = np.array([image.colour_shift for image in images])
    red, green, blue = shifts.mean(axis=0).tolist()
    return Row(
        name=method.name,
        kind=method.kind,
        psnr=float(np.mean([image.psnr for image in images])),
        ssim=float(np.mean([image.ssim for image in images])),
        sqf=_mean([image.sqf for image in images]),
        niqe=float(np.mean([image.niqe for image in images])),
        colour_shift=(red, green, blue),
        colour_shift_abs=float(np.abs(shifts).mean()),
        checkerboard=_mean([image.checkerboard for image in images]),
        diversity=_mean(spread),
        parameters=method.parameters,
        bytes=method.bytes,
        device=method.device,
        notes=method.notes,
        images=tuple(images),
    )


def _score_image(
    name: str, sr: np.ndarray, hr: np.ndarray, plain: np.ndarray, score: Score | None
) -> ImageScore:
    pattern = metrics.checkerboard_db(sr)
    return ImageScore(
        name=name,
        psnr=metrics.psnr_y(sr, hr),
        ssim=metrics.ssim_y(sr, hr),
        sqf=score(sr, hr) if score else None,
        niqe=niqe(sr),
        colour_shift=metrics.colour_shift(sr, plain),
        checkerboard=None if math.isnan(pattern) else pattern,
    )


def _measure_originals(pairs: Sequence[Pair], observe: Observe | None) -> tuple[float, float | None]:
    natural, patterns = [], []
    for pair in pairs:
        hr = read_rgb(pair.hr)
        natural.append(niqe(hr))
        patterns.append(metrics.checkerboard_db(hr))
        if observe:
            observe("HR", pair.name, hr)
            observe("LR", pair.name, read_rgb(pair.lr))
    return float(np.mean(natural)), _mean([None if math.isnan(value) else value for value in patterns])


def _check_sizes(pair: Pair, lr: np.ndarray, hr: np.ndarray, scale: int) -> None:
    expected = (lr.shape[0] * scale, lr.shape[1] * scale)
    if hr.shape[:2] != expected:
        raise ImageError(
            f"{pair.name}: HR must be {scale} times LR, expected {expected[1]}x{expected[0]}, "
            f"got {hr.shape[1]}x{hr.shape[0]}: crop the HR photo or use a bundle of another scale"
        )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
