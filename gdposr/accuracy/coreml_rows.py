"""A bundle's Core ML packages as methods of an accuracy table, run by the reference evaluator on any machine.

Packages take one size of LR picture: a smaller one is padded with its last row and column and the result cropped, a larger one is
refused. Noise, colour fix and rounding are those of the runtime, so a seed gives the same sample as in the ONNX rows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gdposr.console import UsageError, say

if TYPE_CHECKING:
    import numpy as np

    from calibration.measure.methods import Method
    from export.mil.pair import PackagePair
    from runtime.bundle.packages import PackageList
    from runtime.bundle.reader import Bundle

# A variant's name in the table, the value of --coreml for all variants, and each row's note, with width and height of the tile.
ROW = "coreml {}"
ALL = "all"
NOTE = "run by the reference evaluator; a picture below {}x{} is filled up, which changes its right and lower edge"


def chosen_variants(bundle: Bundle, wanted: Sequence[str]) -> list[str]:
    """The variants asked for, each once, in the manifest's order. "all" means every variant. UsageError for one that is missing."""
    have = list(bundle.manifest.coreml)
    unknown = [name for name in wanted if name != ALL and name not in have]
    if unknown:
        raise UsageError(
            f"--coreml: expected variants of this bundle ({', '.join(have) or 'it has none'}), got {unknown[0]!r}: "
            "name one of these, or export packages with `gdposr export --targets onnx,coreml`"
        )
    return [name for name in have if ALL in wanted or name in wanted]


def fitting_variants(
    bundle: Bundle, wanted: Sequence[str], pictures: Mapping[str, tuple[int, int]]
) -> list[str]:
    """`chosen_variants` whose tile holds every LR picture. pictures: (height, width) by name. Others among "all" are left out, with a
    message. ImageError for one asked for by name."""
    from runtime.errors import ImageError

    kept, left, reason = [], [], None
    for variant in chosen_variants(bundle, wanted):
        try:
            check_sizes(bundle, [variant], pictures)
            kept.append(variant)
        except ImageError as error:
            if variant in wanted:
                raise
            left.append(ROW.format(variant))
            reason = reason or error
    if left:
        say(f"not measured: {', '.join(left)}: {reason}")
    if ALL in wanted and not bundle.manifest.coreml:
        say("this bundle has no Core ML packages: none is measured")
    return kept


@contextmanager
def open_methods(bundle: Bundle, variants: Sequence[str], seed: int) -> Iterator[list[Method]]:
    """One method of kind "model" and target "coreml" per variant. They work only inside the context, because the evaluator reads their
    weights from a temporary folder. The hash of each file is checked."""
    from calibration.measure.methods import Method, count_parameters

    with tempfile.TemporaryDirectory(prefix="gdposr-") as folder:
        methods = []
        for variant in variants:
            packages = bundle.manifest.coreml[variant]
            tile = packages["encoder"]  # the generator's is the same
            model = _PackageModel(
                bundle, packages, _open_pair(bundle, packages, Path(folder) / variant), seed
            )
            methods.append(
                Method(
                    name=ROW.format(variant),
                    kind="model",
                    upscale=model.upscale,
                    samples=model.samples,
                    parameters=count_parameters(bundle),
                    bytes=sum(package.total_bytes for package in packages.values()),
                    device="reference",
                    notes=(NOTE.format(tile.width, tile.height),),
                    target="coreml",
                )
            )
        yield methods


def check_sizes(bundle: Bundle, variants: Sequence[str], pictures: Mapping[str, tuple[int, int]]) -> None:
    """ImageError for the first LR picture, by its name and (height, width), that does not fit the tile of a variant."""
    for variant in variants:
        for name, (height, width) in pictures.items():
            _check_fits(bundle.manifest.coreml[variant]["encoder"], name, height, width)


def _open_pair(bundle: Bundle, packages: Mapping[str, PackageList], folder: Path) -> PackagePair:
    from export.mil.pair import PackagePair

    for package in packages.values():
        for file in package.files:
            path = folder / file.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bundle.read(file))
    specs = {"encoder": bundle.manifest.encoder, "generator": bundle.manifest.generator}
    paths = {role: [folder / one.name for one in chunks.packages] for role, chunks in packages.items()}
    return PackagePair(paths, specs)


def _check_fits(package: PackageList, name: str, height: int, width: int) -> None:
    """ImageError if an LR picture does not fit the tile of a package.

    package: of either role.
    name: of the picture, for the message.
    height, width: of the picture in pixels.
    """
    from runtime.errors import ImageError

    if height > package.height or width > package.width:
        raise ImageError(
            f"{name}: expected an LR picture of at most {package.width}x{package.height}, the tile of {package.name}, "
            f"got {width}x{height}: crop it, leave out --coreml, or export packages with a larger --tile"
        )


class _PackageModel:
    """Both packages of a variant as a function of pictures.

    bundle: has the manifest.
    packages: of the variant, by role.
    pair: the same packages, opened.
    seed: of the noise.
    """

    def __init__(
        self, bundle: Bundle, packages: Mapping[str, PackageList], pair: PackagePair, seed: int
    ) -> None:
        self._manifest, self._pair, self._seed = bundle.manifest, pair, seed
        self._tile = packages["encoder"]  # both roles have the same

    def upscale(self, name: str, lr: np.ndarray) -> np.ndarray:
        """Sample 0: (h, w, 3) uint8 -> (H, W, 3) uint8."""
        _check_fits(self._tile, name, *lr.shape[:2])
        return self.samples(lr, 1)[0]

    def samples(self, lr: np.ndarray, count: int) -> list[np.ndarray]:
        """Samples 0 to count - 1 of one picture, which is encoded once."""
        import numpy as np

        from runtime.errors import ImageError
        from runtime.image.arrays import as_picture
        from runtime.noise import noise_field
        from runtime.upscale.color import color_fix
        from runtime.upscale.tiling import pad_edge

        height, width = lr.shape[:2]
        _check_fits(self._tile, "picture", height, width)
        picture, scale, rule = as_picture(lr), self._manifest.scale, self._manifest.noise
        rgb = picture.rgb(0, height)
        features = self._pair.encode(pad_edge(rgb, self._tile.height, self._tile.width)[None])
        cells = self._tile.height // rule.downscale, self._tile.width // rule.downscale
        results = []
        for sample in range(count):
            noise = noise_field(self._seed, sample, *cells, channels=rule.channels)[None]
            sr = np.clip(self._pair.generate(features, noise)[0], 0.0, 1.0)  # (3, H', W')
            cut = sr[:, : height * scale, : width * scale].astype(np.float32)
            fixed = color_fix(cut.transpose(1, 2, 0), rgb.transpose(1, 2, 0), self._manifest.color_fix)
            result = picture.empty(height * scale, width * scale)
            if not picture.store(result, fixed.transpose(2, 0, 1), None):
                raise ImageError(
                    "a Core ML package gave values that are not numbers; `gdposr coreml verify` finds out which"
                )
            results.append(result)
        return results
