"""Scenes: an input with the enlargements of two models, matched by name and checked for size."""

import re
from dataclasses import dataclass
from pathlib import Path

from calibration.measure.pairs import SHOWN, named_photos, read_rgb
from runtime.errors import ImageError

NO_KIND = "all"
# Suffix that `gdposr upscale` appends to a photo's name.
UPSCALED = re.compile(r"_x[\d.]+_seed\d+(_s\d+)?$")


@dataclass(frozen=True)
class Scene:
    """One input and its two enlargements."""

    name: str
    """Path below the inputs' folder without suffix, such as jpeg75/photo1."""
    kind: str
    """Kind of input: the sub-folder of the inputs' folder, or "all"."""
    photo: str
    """The name without the kind: equal for one photo in several kinds."""
    lr: Path
    """The input."""
    a: Path
    """A's enlargement."""
    b: Path
    """B's enlargement."""
    scale: int
    """Size of an enlargement over the size of the input."""
    size: tuple[int, int]
    """Height and width of the input in pixels."""


def find_scenes(a_dir: Path, b_dir: Path, lr_dir: Path, *, by_folder: bool = True) -> list[Scene]:
    """All scenes, sorted by name.

    a_dir, b_dir: enlargements of the one and of the other model.
    lr_dir: their inputs.
    by_folder: the sub-folders of lr_dir are kinds of input; otherwise all inputs are of one kind.

    A folder that `gdposr upscale` wrote fits as it is: `photo_x4_seed0.png` belongs to `photo`. ImageError for a picture without its
    partners, and for an enlargement that is not a whole multiple of its input.
    """
    inputs = named_photos(lr_dir)
    a, b = (_partners(inputs, folder, lr_dir) for folder in (a_dir, b_dir))
    return [_scene(name, inputs[name], a[name], b[name], by_folder) for name in sorted(inputs)]


def _partners(inputs: dict[str, Path], folder: Path, lr_dir: Path) -> dict[str, Path]:
    """The enlargement of each input, by the input's name."""
    found: dict[str, Path] = {}
    strangers = []
    for name, path in named_photos(folder).items():
        own = name if name in inputs else UPSCALED.sub("", name)
        if own not in inputs:
            strangers.append(name)
        elif own in found:
            raise ImageError(f"{path} and {found[own]} both belong to {inputs[own]}: keep one of them")
        else:
            found[own] = path
    missing = [name for name in inputs if name not in found]
    for names, here, there in ((missing, lr_dir, folder), (strangers, folder, lr_dir)):
        if names:
            raise ImageError(
                f"pictures must have the same names; {len(names)} of {here} have no partner in {there}: "
                f"{', '.join(sorted(names)[:SHOWN])}{', ...' if len(names) > SHOWN else ''}: rename, add or remove them"
            )
    return found


def _scene(name: str, lr: Path, a: Path, b: Path, by_folder: bool) -> Scene:
    height, width = read_rgb(lr).shape[:2]
    sizes = [read_rgb(path).shape[:2] for path in (a, b)]
    if sizes[0] != sizes[1]:
        raise ImageError(
            f"{name}: expected enlargements of one size, got {_size(sizes[0])} ({a}) and {_size(sizes[1])} ({b}): "
            "make both at one scale"
        )
    scale = sizes[0][0] // height
    if scale < 1 or sizes[0] != (height * scale, width * scale):
        raise ImageError(
            f"{name}: expected enlargements of {_size((height, width))} ({lr}) by a whole number, got {_size(sizes[0])} ({a}): "
            "give the folder that they were made from"
        )
    kind, separator, photo = name.rpartition("/")
    if not (by_folder and separator):
        kind, photo = NO_KIND, name
    return Scene(name, kind, photo, lr, a, b, scale, (height, width))


def _size(shape: tuple[int, ...]) -> str:
    """(height, width) -> text, width first."""
    return f"{shape[1]}x{shape[0]}"
