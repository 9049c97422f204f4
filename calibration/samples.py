"""Pictures and noise for calibration and parity checks: degraded photos at fixed seeds.

The degradation is that of training, the noise is the runtime's own field. Without a folder, the openly licensed photographs inside
scikit-image are used, so that an export gives the same bytes on every machine. Sets can be drawn once, saved and used again:

    python -m calibration.samples --photos DIR --out sets.safetensors
    gdposr export --checkpoint CHECKPOINT --out NAME.gdposr --calibration sets.safetensors
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from runtime.errors import GdposrError
from runtime.files import atomic_file
from runtime.noise import noise_field
from runtime.text import print_error
from training.data.degradation import MILD, PAPER, degrade
from training.data.photos import CropParams, PhotoSet, find_images, random_crop
from training.pixels import from_pixels

OPEN_PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "motorcycle_left", "grass", "brick", "camera")
# Photographs that no calibration sees, to measure on if a user gives no pairs.
HELD_OUT_PHOTOS = ("chelsea", "grass", "gravel", "moon", "hubble_deep_field", "retina")
# One photo in four is for validation.
VALIDATION_EVERY: Final = 4
# Photos that both sets need together, since one in four is for validation.
LEAST_PHOTOS: Final = 4
# Samples of a set.
LEAST_SAMPLES: Final = 4
FORMAT: Final = "gdposr samples 1"


class SampleError(GdposrError):
    """No samples can be drawn from a folder or file."""


@dataclass(frozen=True)
class Sample:
    """One picture with its noise."""

    lr: np.ndarray
    """The LR picture, (3, h, w) float32 in [0, 1]."""
    noise: np.ndarray
    """Its noise, (c, h / downscale, w / downscale) float32."""
    hr: np.ndarray
    """The HR picture, (3, 4h, 4w) float32 in [0, 1]."""
    photo: str = ""
    """Name of the photo that it is a crop of."""


@dataclass(frozen=True)
class SampleSets:
    """Samples for calibration and samples for validation; no photo is in both."""

    calibration: tuple[Sample, ...]
    """Samples for the ranges of activations, at least `LEAST_SAMPLES`."""
    validation: tuple[Sample, ...]
    """Samples to measure the loss by INT8 on, at least `LEAST_SAMPLES`."""

    def __post_init__(self) -> None:
        for name in ("calibration", "validation"):
            if len(getattr(self, name)) < LEAST_SAMPLES:
                raise SampleError(
                    f"{name} needs at least {LEAST_SAMPLES} samples, got {len(getattr(self, name))}; draw more, or give a folder with "
                    "more photos"
                )
        both = {s.photo for s in self.calibration} & {s.photo for s in self.validation}
        if both:
            raise SampleError(f"{min(both)} is in both sets, expected each photo in one; draw the sets again")


def open_photo_paths(names: Sequence[str] = OPEN_PHOTOS) -> list[Path]:
    """Paths of photographs inside scikit-image."""
    try:
        import skimage
    except ImportError as error:
        raise ModuleNotFoundError(
            "no photo folder given and scikit-image, whose photographs would be used, is not installed; "
            'give a folder or `pip install "gdposr[export]"`'
        ) from error
    folder = Path(skimage.__file__).parent / "data"
    paths = [p for name in names for p in sorted(folder.glob(f"{name}.*"))]
    if len(paths) < len(names):
        raise FileNotFoundError(
            f"scikit-image below {folder} lacks some of its photographs {', '.join(names)}; give a folder"
        )
    return paths


def draw_samples(
    count: int, *, size: int = 64, channels: int = 4, downscale: int = 2, seed: int = 0, first: int = 0
) -> list[Sample]:
    """Samples of the open photos, taken in turn. Sample k has its own crop and noise.

    count: of samples.
    size: side in LR pixels.
    channels, downscale: of the noise: its channels, and LR pixels per noise cell.
    seed: of crops and noise.
    first: number of the photo to begin with.
    """
    photos = PhotoSet(open_photo_paths())
    crop = CropParams(4 * size, zoom_range=(1.0, 1.0), augment=False)
    samples = []
    for k in range(count):
        rng = np.random.default_rng([seed, k])
        index = (first + k) % len(photos)
        lr, hr = _pair(photos[index], crop, rng, mild=False)
        noise = noise_field(seed, k, size // downscale, size // downscale, channels=channels)
        samples.append(Sample(lr, noise, hr, photos.paths[index].name))
    return samples


def draw_sets(
    folder: Path | None,
    *,
    crops: int = 16,
    seeds: int = 2,
    size: int = 64,
    channels: int = 4,
    downscale: int = 2,
    seed: int = 0,
) -> SampleSets:
    """Both sets from the photos below a folder.

    folder: None: the photographs inside scikit-image.
    crops: for calibration; validation gets half as many.
    seeds: of noise, for each crop.
    size: side of a crop in LR pixels.
    channels, downscale: of the noise: its channels, and LR pixels per noise cell.
    seed: of crops and noise.

    Photos are taken evenly from the sorted list, one for each crop if there are enough. Every fourth of them is for validation.
    Every second crop has the mild degradation. SampleError for fewer than four photos.
    """
    paths = open_photo_paths() if folder is None else find_images(folder)
    wanted = min(len(paths), max(LEAST_PHOTOS, crops + -(-crops // 2)))
    places = np.linspace(0, len(paths) - 1, wanted).round().astype(int)
    photos = PhotoSet([paths[place] for place in places])
    if len(photos) < LEAST_PHOTOS:
        raise SampleError(
            f"calibration needs at least {LEAST_PHOTOS} photos, got {len(photos)} below {folder}; add more, or leave the folder out to "
            "use those inside scikit-image"
        )
    held_out = [k for k in range(len(photos)) if k % VALIDATION_EVERY == 1]
    others = [k for k in range(len(photos)) if k % VALIDATION_EVERY != 1]
    crop = CropParams(4 * size, zoom_range=(1.0, 1.0), augment=False)

    def draw(chosen: Sequence[int], count: int, stream: int) -> tuple[Sample, ...]:
        samples = []
        for k in range(count):
            index = chosen[k % len(chosen)]
            rng = np.random.default_rng([seed, stream, k])
            lr, hr = _pair(photos[index], crop, rng, mild=(k + k // len(chosen)) % 2 == 1)
            for sample in range(seeds):
                cells = size // downscale
                noise = noise_field(seed + stream, k * seeds + sample, cells, cells, channels=channels)
                path = photos.paths[index]
                name = path.name if folder is None else path.relative_to(folder).as_posix()
                samples.append(Sample(lr, noise, hr, name))
        return tuple(samples)

    return SampleSets(draw(others, crops, 0), draw(held_out, -(-crops // 2), 1))


def save_sets(sets: SampleSets, path: Path) -> None:
    """Write both sets to a safetensors file; it appears complete or not at all."""
    arrays: dict[str, np.ndarray] = {}
    photos: dict[str, str] = {}
    for name in ("calibration", "validation"):
        for k, sample in enumerate(getattr(sets, name)):
            key = f"{name}.{k:05d}"
            arrays |= {f"{key}.lr": sample.lr, f"{key}.noise": sample.noise, f"{key}.hr": sample.hr}
            photos[key] = sample.photo
    data = save(
        {key: np.ascontiguousarray(array) for key, array in arrays.items()},
        metadata={"gdposr": json.dumps({"format": FORMAT, "photos": photos})},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as stream:
        stream.write(data)


def load_sets(path: Path) -> SampleSets:
    """Read a file of `save_sets`. SampleError for any other file."""
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {}).get("gdposr", "{}"))
            if about.get("format") != FORMAT:
                raise SampleError(
                    f"{path}: expected samples ({FORMAT!r}), got {about.get('format')!r}; "
                    "draw them with `python -m calibration.samples`"
                )
            samples: dict[str, list[Sample]] = {"calibration": [], "validation": []}
            for key, photo in sorted(about["photos"].items()):
                lr, noise, hr = (file.get_tensor(f"{key}.{part}") for part in ("lr", "noise", "hr"))
                samples[key.partition(".")[0]].append(Sample(lr, noise, hr, photo))
    except (SafetensorError, KeyError, ValueError) as error:
        raise SampleError(
            f"{path}: expected samples that `python -m calibration.samples` wrote, got something else ({error}); draw them again"
        ) from error
    return SampleSets(tuple(samples["calibration"]), tuple(samples["validation"]))


def check_fit(sets: SampleSets, *, multiple: int, channels: int, downscale: int) -> None:
    """SampleError for a sample that does not fit a model.

    sets: the samples.
    multiple: of which LR sides must be multiples.
    channels: of the noise.
    downscale: LR pixels per noise cell.
    """
    for sample in (*sets.calibration, *sets.validation):
        height, width = sample.lr.shape[1:]
        noise = (channels, height // downscale, width // downscale)
        if height % multiple or width % multiple or sample.noise.shape != noise:
            raise SampleError(
                f"sample of {sample.photo}: expected LR sides that are multiples of {multiple} and noise of shape {noise}, got "
                f"{height}x{width} and {sample.noise.shape}; draw the samples for this model"
            )


def write_open_pairs(folder: Path, count: int, size: int = 128) -> tuple[Path, Path]:
    """Write pairs to measure on if a user gives none: crops of `HELD_OUT_PHOTOS` as HR and, degraded, as LR. Returns both folders.

    The degradation is the mild one, which is nearer to a user's photo. size: side in LR pixels.
    """
    photos = PhotoSet(open_photo_paths(HELD_OUT_PHOTOS))
    crop = CropParams(4 * size, zoom_range=(1.0, 1.0), augment=False)
    folders = folder / "LR", folder / "HR"
    for place in folders:
        place.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        name = f"{photos.paths[k % len(photos)].stem}-{k // len(photos)}.png"
        pair = _pair(photos[k % len(photos)], crop, np.random.default_rng([2, k]), mild=True)
        for place, image in zip(folders, pair, strict=True):
            Image.fromarray(as_pixels(image)).save(place / name)
    return folders


def as_pixels(image: np.ndarray) -> np.ndarray:
    """(3, h, w) in [0, 1] -> (h, w, 3) uint8, as the runtime rounds."""
    return (np.clip(image, 0, 1).transpose(1, 2, 0) * np.float32(255) + np.float32(0.5)).astype(np.uint8)


def _pair(
    photo: np.ndarray, crop: CropParams, rng: np.random.Generator, *, mild: bool
) -> tuple[np.ndarray, np.ndarray]:
    """LR and HR, each (3, h, w) float32 in [0, 1], of a random crop of a photo."""
    pixels = random_crop(photo, rng, crop)
    hr = from_pixels(pixels)
    return degrade(hr, rng, MILD if mild else PAPER).numpy(), np.ascontiguousarray(hr.numpy())


def main(argv: list[str] | None = None) -> int:
    """Draw both sets and save them. Exit code 0, 2 for a folder that cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m calibration.samples", description="Draw calibration and validation sets."
    )
    parser.add_argument("--photos", type=Path, help="folder of photos (default: those inside scikit-image)")
    parser.add_argument("--out", type=Path, required=True, help="file to write, .safetensors")
    parser.add_argument("--crops", type=int, default=16, help="crops for calibration (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="seeds of noise per crop (default: %(default)s)")
    parser.add_argument(
        "--size", type=int, default=64, help="LR pixels, a multiple of 8 (default: %(default)s)"
    )
    parser.add_argument("--channels", type=int, default=4, help="of the noise (default: %(default)s)")
    parser.add_argument(
        "--downscale", type=int, default=2, help="LR pixels per noise cell (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        for name in ("crops", "seeds", "size", "channels", "downscale"):
            if getattr(args, name) < 1:
                raise SampleError(f"--{name}: expected a positive number, got {getattr(args, name)}")
        sets = draw_sets(
            args.photos,
            crops=args.crops,
            seeds=args.seeds,
            size=args.size,
            channels=args.channels,
            downscale=args.downscale,
            seed=args.seed,
        )
        save_sets(sets, args.out)
    except (GdposrError, ValueError, OSError) as error:
        print_error(error)
        return 2
    print(
        f"{len(sets.calibration)} samples for calibration, {len(sets.validation)} for validation in {args.out}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
