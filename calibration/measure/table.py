"""The rows of an accuracy table: every method measured in the same way on all pairs, with intervals and differences.

Pictures are compared as 8-bit RGB. Pairs are sorted by name, so picture k is the same in every row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from calibration.measure.intervals import REFERENCE, Difference, Interval, differences, intervals
from calibration.measure.methods import Method, bicubic
from calibration.measure.pairs import Pair, read_rgb
from runtime.errors import ImageError
from training.metrics import artefacts
from training.metrics.fidelity import psnr_y, ssim_y
from training.metrics.niqe import niqe

Score = Callable[[np.ndarray, np.ndarray], float]
# Name of a picture -> the photo that it is a crop of.
Group = Callable[[str], str]
# Called with the row ("LR", "HR" or its name), the picture's name, and its pixels, (H, W, 3) uint8.
Observe = Callable[[str, str, np.ndarray], None]

# Pictures on which diversity is measured, and samples of each.
DIVERSITY_IMAGES, DIVERSITY_SAMPLES = 8, 4


@dataclass(frozen=True)
class ImageScore:
    """One picture of one method."""

    name: str
    """Name of its `Pair`."""
    psnr: float
    """PSNR of luma in dB; infinite for equal pictures."""
    ssim: float
    """SSIM of luma, at most 1."""
    sqf: float | None
    """SQF; None: without weights."""
    niqe: float
    """NIQE, of the picture alone; lower is better."""
    colour_shift: tuple[float, float, float]
    """Shift of red, green and blue against bicubic, in 1/255."""
    checkerboard: float | None
    """Checkerboard measure in dB; None for a picture below 128 pixels."""
    extra: dict[str, float] = field(default_factory=dict)
    """Name of a learned metric -> value."""
    group: str = ""
    """The photo that it is a crop of; empty: a photo of its own."""


@dataclass(frozen=True)
class Row:
    """One method: means over all pictures, and the pictures. None: does not apply or was not measured. Units as in `ImageScore`."""

    name: str
    """Name of the method."""
    kind: str
    """Kind of the method, as in `Method`."""
    psnr: float
    """Mean PSNR in dB; infinite if one picture equals its HR."""
    ssim: float
    """Mean SSIM."""
    sqf: float | None
    """Mean SQF; None: without weights."""
    niqe: float
    """Mean NIQE."""
    colour_shift: tuple[float, float, float]
    """Mean shift of red, green and blue."""
    colour_shift_abs: float
    """Mean of the absolute shift over pictures and channels, so that tints of opposite sign do not cancel out."""
    checkerboard: float | None
    """Mean checkerboard measure of the pictures of at least 128 pixels; None: there are none."""
    diversity: float | None
    """Mean RMS distance between two samples, in 1/255."""
    parameters: int | None
    """Number of weights."""
    bytes: int | None
    """Size of the files with graphs or weights."""
    device: str | None
    """Device that ran it."""
    notes: tuple[str, ...]
    """Notes on the method, for reports."""
    images: tuple[ImageScore, ...]
    """One for each pair, sorted by name."""
    target: str = ""
    """"onnx", "coreml", "torch", or empty."""
    seam: float | None = None
    """Step across the borders of small tiles over the steps beside them; 1: no seam."""
    extra: dict[str, float] = field(default_factory=dict)
    """Name of a learned metric -> mean."""
    intervals: dict[str, Interval] = field(default_factory=dict)
    """Metric ("psnr", "ssim", "sqf", "niqe", "diversity", learned ones) -> interval of its mean; only what was measured."""
    differences: dict[str, Difference] = field(default_factory=dict)
    """Metric -> this row minus fp32."""
    milliseconds: float | None = None
    """Median wall time of one whole picture."""

    @property
    def groups(self) -> list[str]:
        """The photo that each picture is a crop of, for the bootstrap."""
        return [image.group or image.name for image in self.images]

    @property
    def columns(self) -> dict[str, list[float]]:
        """Metric -> its value for each picture; only what was measured of all of them."""
        found: dict[str, list[float | None]] = {
            "psnr": [image.psnr for image in self.images],
            "ssim": [image.ssim for image in self.images],
            "sqf": [image.sqf for image in self.images],
            "niqe": [image.niqe for image in self.images],
            **{name: [image.extra.get(name) for image in self.images] for name in self.extra},
        }
        known = {name: [v for v in values if v is not None] for name, values in found.items()}
        return {name: values for name, values in known.items() if 0 < len(values) == len(self.images)}


def measure_row(
    method: Method,
    pairs: Sequence[Pair],
    scale: int,
    score: Score | None,
    diversity_images: int = DIVERSITY_IMAGES,
    diversity_samples: int = DIVERSITY_SAMPLES,
    tick: Callable[[str], None] | None = None,
    observe: Observe | None = None,
    extra: Mapping[str, Score] | None = None,
    group: Group | None = None,
) -> Row:
    """All pictures of one method.

    method: makes the pictures.
    pairs: LR and HR.
    scale: HR over LR.
    score: SQF; None: leave it out.
    diversity_images: pictures, spread evenly over the list, on which diversity and seam are measured.
    diversity_samples: samples of each of them.
    tick: called with the method's name after each picture.
    observe: called with each picture.
    extra: further metrics by name.
    group: as in `evaluate`.
    """
    # score: every picture, and some of them for diversity and seams
    images, seams = [], []
    spread: dict[int, float] = {}  # picture -> its diversity
    some = evenly(len(pairs), diversity_images)
    for index, pair in enumerate(pairs):
        lr, hr = read_rgb(pair.lr), read_rgb(pair.hr)
        check_sizes(pair, lr, hr, scale)
        sr = method.upscale(pair.name, lr)
        if sr.shape != hr.shape or sr.dtype != np.uint8:
            raise ImageError(
                f"{method.name}: {pair.name}: expected {hr.shape} uint8 like HR, got {sr.shape} {sr.dtype}"
            )
        image = _score_image(pair.name, sr, hr, bicubic(lr, scale), score, extra or {})
        images.append(replace(image, group=group(pair.name)) if group else image)
        if index in some:
            if method.samples is not None and diversity_samples > 1:
                spread[index] = artefacts.diversity(method.samples(lr, diversity_samples))
            if method.tiled is not None:
                cut = method.tiled(lr)
                seams.append(_known(artefacts.seam(cut.picture, cut.rows, cut.columns)))
        if observe:
            observe(method.name, pair.name, sr)
        if tick:
            tick(method.name)
    # mean: over pictures
    shifts = np.array([image.colour_shift for image in images])
    red, green, blue = shifts.mean(axis=0).tolist()
    row = Row(
        name=method.name,
        kind=method.kind,
        psnr=float(np.mean([image.psnr for image in images])),
        ssim=float(np.mean([image.ssim for image in images])),
        sqf=mean([image.sqf for image in images]),
        niqe=float(np.mean([image.niqe for image in images])),
        colour_shift=(red, green, blue),
        colour_shift_abs=float(np.abs(shifts).mean()),
        checkerboard=mean([image.checkerboard for image in images]),
        diversity=mean(list(spread.values())),
        parameters=method.parameters,
        bytes=method.bytes,
        device=method.device,
        notes=method.notes,
        images=tuple(images),
        target=method.target,
        seam=mean(seams),
        extra={name: float(np.mean([image.extra[name] for image in images])) for name in extra or {}},
    )
    # interval: of each mean
    found = intervals(row.columns, groups=row.groups)
    if spread:
        theirs = [row.groups[index] for index in spread]
        found |= intervals({"diversity": list(spread.values())}, groups=theirs)
    return replace(row, intervals=found)


def evenly(count: int, wanted: int) -> list[int]:
    """At most `wanted` indices of a list of that length, spread evenly from the first to the last."""
    places: list[int] = np.linspace(0, count - 1, min(wanted, count)).round().astype(int).tolist()
    return places


def compared(rows: Sequence[Row]) -> list[Row]:
    """The rows with their differences from fp32; unchanged without fp32.

    A metric is left out if one picture differs by +infinity and another by -infinity: such differences have no mean.
    """
    reference = next((row for row in rows if row.kind == "model" and row.name == REFERENCE), None)
    if reference is None:
        return list(rows)
    base = reference.columns
    return [
        row
        if row is reference
        else replace(row, differences=differences(_with_mean(row.columns, base), base, groups=row.groups))
        for row in rows
    ]


def measure_originals(pairs: Sequence[Pair], observe: Observe | None) -> tuple[float, float | None]:
    """NIQE and checkerboard of the HR photos themselves. observe: called with LR and HR."""
    natural, patterns = [], []
    for pair in pairs:
        hr = read_rgb(pair.hr)
        natural.append(niqe(hr))
        patterns.append(_known(artefacts.checkerboard_db(hr)))
        if observe:
            observe("HR", pair.name, hr)
            observe("LR", pair.name, read_rgb(pair.lr))
    return float(np.mean(natural)), mean(patterns)


def check_sizes(pair: Pair, lr: np.ndarray, hr: np.ndarray, scale: int) -> None:
    """ImageError unless HR is exactly scale times LR.

    pair: named in the message.
    lr: (h, w, 3).
    hr: (H, W, 3).
    scale: the model's.
    """
    expected = (lr.shape[0] * scale, lr.shape[1] * scale)
    if hr.shape[:2] != expected:
        raise ImageError(
            f"{pair.name}: HR must be {scale} times LR, expected {expected[1]}x{expected[0]}, "
            f"got {hr.shape[1]}x{hr.shape[0]}: crop the HR photo or use a bundle of another scale"
        )


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of the known values; None if there are none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _score_image(
    name: str,
    sr: np.ndarray,
    hr: np.ndarray,
    plain: np.ndarray,
    score: Score | None,
    extra: Mapping[str, Score],
) -> ImageScore:
    """All metrics of one picture.

    name: of its pair.
    sr, hr: the method's picture and the photo, (H, W, 3) uint8.
    plain: LR by bicubic, (H, W, 3) uint8, for the colour shift.
    score: SQF; None: leave it out.
    extra: further metrics by name.
    """
    return ImageScore(
        name=name,
        psnr=psnr_y(sr, hr),
        ssim=ssim_y(sr, hr),
        sqf=score(sr, hr) if score else None,
        niqe=niqe(sr),
        colour_shift=artefacts.colour_shift(sr, plain),
        checkerboard=_known(artefacts.checkerboard_db(sr)),
        extra={metric: judge(sr, hr) for metric, judge in extra.items()},
    )


def _with_mean(
    columns: Mapping[str, Sequence[float]], base: Mapping[str, Sequence[float]]
) -> dict[str, Sequence[float]]:
    """The columns whose differences from base are not infinite in both directions."""

    def torn(ours: Sequence[float], theirs: Sequence[float]) -> bool:
        signs = {math.isinf(a) - math.isinf(b) for a, b in zip(ours, theirs, strict=True)}
        return {-1, 1} <= signs

    return {name: values for name, values in columns.items() if name in base and not torn(values, base[name])}


def _known(value: float) -> float | None:
    """None for NaN."""
    return None if math.isnan(value) else value
