"""A small program on the Python interface, for `mypy --strict`. test_types.py checks and runs it."""

import sys
from collections.abc import Iterator
from typing import assert_type

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gdposr import Bundle, GdposrError, Photo, SettingError, Upscaler, read_photo, write_photo
from runtime import available_devices, noise_field
from runtime.image.bands import Strips


def versions(upscaler: Upscaler, path: str, out: str) -> int:
    photo: Photo = read_photo(path, max_pixels=1_000_000)
    assert_type(photo.pixels, NDArray[np.uint8 | np.uint16])
    shape: tuple[int, ...] = photo.pixels.shape
    height, width, _ = shape
    strips = upscaler.strips(photo.pixels, seed=3)
    assert_type(photo.with_pixels(strips), Photo[Strips])
    write_photo(out, photo.with_pixels(strips), text={"gdposr-seed": "3"}, notify=print)
    for number, version in enumerate(upscaler.up_photo(photo, samples=2, scale=2.0)):
        assert version.pixels.shape[:2] == (2 * height, 2 * width)
        print(number, version.pixels.mean(), version.dpi)
    return height * width


def arrays(upscaler: Upscaler, image: NDArray[np.float32]) -> None:
    large = upscaler.up(image, seed=1, samples=2)
    assert_type(large, list[NDArray[np.float32]])
    assert_type(upscaler.samples(image), Iterator[NDArray[np.float32]])
    opened = upscaler.up(Image.new("RGB", (8, 8)), scale=1.5)
    assert_type(opened, list[NDArray[np.uint8 | np.uint16]])
    print(large[0].shape, opened[0].dtype)
    upscaler.up(np.zeros((8, 8)), samples=1) if image.size == 0 else None  # type: ignore[type-var]  # float64


def main(bundle: str, path: str, out: str) -> None:
    model = Bundle.open(bundle)
    assert_type(model.manifest.scale, int)
    print(model.digest, available_devices(), noise_field)
    try:
        with Upscaler(model, device="cpu", threads=1) as upscaler:
            print(upscaler.device, upscaler.precision, upscaler.notes, versions(upscaler, path, out))
            arrays(upscaler, np.zeros((8, 8, 3), np.float32))
            upscaler.up(Image.new("RGB", (8, 8)), samples=0)
    except SettingError as error:
        print(f"refused: {error}")
    except GdposrError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main(*sys.argv[1:])
