"""Core ML packages as rows of an accuracy table: the same noise as in ONNX, one tile, verified bytes."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("coremltools", reason="needs the extra `coreml`")

from calibration.measure.methods import Method
from gdposr.accuracy.coreml_rows import check_sizes, chosen_variants, fitting_variants, open_methods
from gdposr.cli import main
from gdposr.console import UsageError
from runtime.bundle.reader import DEFAULT_BUNDLE, Bundle
from runtime.errors import BundleError, ImageError
from runtime.upscale.color import color_fix
from runtime.upscale.probe import psnr_db
from runtime.upscale.upscaler import Upscaler

Pixels = Callable[..., np.ndarray]
SEED = 3
FLOOR_DB = {"fp16": 50.0, "w8a8": 35.0}  # against ONNX fp32, 8-bit; measured 61.7 on a photo with fp16


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open()


@pytest.fixture(scope="module")
def tile(bundle: Bundle) -> int:
    return bundle.manifest.coreml["fp16"]["encoder"].height


@pytest.fixture(scope="module")
def methods(bundle: Bundle) -> Iterator[list[Method]]:
    with open_methods(bundle, ["fp16", "w8a8"], SEED) as opened:
        yield opened


@pytest.fixture(scope="module")
def onnx(bundle: Bundle) -> Upscaler:
    return Upscaler(bundle, precision="fp32", device="cpu", threads=1, check=False)


def test_rows_say_what_they_are(bundle: Bundle, methods: list[Method]) -> None:
    assert [(m.name, m.kind, m.target, m.device) for m in methods] == [
        ("coreml fp16", "model", "coreml", "reference"), ("coreml w8a8", "model", "coreml", "reference")
    ]  # fmt: skip
    for method, variant in zip(methods, ("fp16", "w8a8"), strict=True):
        pair = bundle.manifest.coreml[variant]
        assert method.bytes == sum(file.bytes for package in pair.values() for file in package.files)
        assert method.parameters == bundle.manifest.provenance["parameters"]
        assert method.tiled is None
        assert "reference evaluator" in method.notes[0]


def test_pictures_are_those_of_the_onnx_graphs(methods: list[Method], onnx: Upscaler, tile: int) -> None:
    # squares with grain: on a smooth picture seeds hardly differ by more than w8a8's rounding
    squares = np.random.default_rng(1).integers(60, 200, (tile // 4, tile // 4, 3)).repeat(4, 0).repeat(4, 1)
    grain = np.random.default_rng(2).normal(0, 12, squares.shape)
    lr = (squares + grain).clip(0, 255).astype(np.uint8)
    expected, other = onnx.up(lr, seed=SEED)[0], onnx.up(lr, seed=SEED + 1)[0]
    for method, floor in zip(methods, FLOOR_DB.values(), strict=True):
        came = method.upscale("a", lr)
        assert (came.shape, came.dtype) == ((4 * tile, 4 * tile, 3), np.uint8)
        assert psnr_db(came, expected) >= floor, f"{method.name}: {psnr_db(came, expected):.1f} dB"
        # the seed's own noise
        assert psnr_db(came, expected) > psnr_db(came, other) + 1.5


def test_samples_are_those_of_the_onnx_graphs(
    methods: list[Method], onnx: Upscaler, make_pixels: Pixels, tile: int
) -> None:
    lr = make_pixels(tile, tile, seed=2)
    assert methods[0].samples is not None
    came, expected = methods[0].samples(lr, 2), onnx.up(lr, seed=SEED, samples=2)
    for k in range(2):
        assert psnr_db(came[k], expected[k]) >= FLOOR_DB["fp16"]
        assert psnr_db(came[k], expected[k]) > psnr_db(came[k], expected[1 - k]) + 3
    assert np.array_equal(came[0], methods[0].upscale("a", lr))


def test_a_smaller_picture_is_filled_up_and_cut_again(
    bundle: Bundle, methods: list[Method], onnx: Upscaler, make_pixels: Pixels, tile: int
) -> None:
    """Noise stands at absolute coordinates, so all but the filled-up borders is the same."""
    lr = make_pixels(tile - 31, tile - 8)
    came, expected = methods[0].upscale("a", lr), onnx.up(lr, seed=SEED)[0]
    assert came.shape == expected.shape == (4 * (tile - 31), 4 * (tile - 8), 3)
    reach = 4 * bundle.manifest.size.context
    assert psnr_db(came[:-reach, :-reach], expected[:-reach, :-reach]) >= FLOOR_DB["fp16"]


def test_a_larger_picture_is_refused_by_name(
    bundle: Bundle, methods: list[Method], make_pixels: Pixels, tile: int
) -> None:
    message = rf"wide: expected an LR picture of at most {tile}x{tile}, the tile of encoder.fp16.mlpackage, got {tile + 2}x{tile}"
    with pytest.raises(ImageError, match=message):
        methods[0].upscale("wide", make_pixels(tile, tile + 2))
    with pytest.raises(ImageError, match=message):
        check_sizes(bundle, ["fp16"], {"fits": (tile, tile), "wide": (tile, tile + 2)})
    check_sizes(bundle, [], {"wide": (tile, tile + 2)})


def test_the_colour_fix_is_the_bundle_s(bundle: Bundle, methods: list[Method], make_pixels: Pixels) -> None:
    fixed = Bundle.open()
    fixed.manifest = dataclasses.replace(bundle.manifest, color_fix="adain")
    lr = make_pixels(24, 20)
    with open_methods(fixed, ["fp16"], SEED) as (method,):
        came = method.upscale("a", lr)
    plain = methods[0].upscale("a", lr).astype(np.float32) / 255
    expected = color_fix(plain, lr.astype(np.float32) / 255, "adain") * 255
    assert np.abs(came - expected).max() <= 1.5  # the plain picture was rounded before
    assert np.abs(came.mean(axis=(0, 1)) - lr.mean(axis=(0, 1))).max() < 0.5


def test_altered_weights_are_refused_and_nothing_is_left(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(DEFAULT_BUNDLE, tmp_path / "copy.gdposr"))
    weights = copy / "generator.fp16.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    with (
        pytest.raises(BundleError, match="the file was altered"),
        open_methods(Bundle.open(copy), ["fp16"], 0),
    ):
        pass
    with open_methods(bundle, ["fp16"], 0):
        assert list(scratch.iterdir())
    assert not list(scratch.iterdir())


def test_variants_are_those_of_the_bundle(bundle: Bundle, toy_bundle: Path) -> None:
    assert chosen_variants(bundle, []) == []
    assert chosen_variants(bundle, ["w8a8", "fp16", "fp16"]) == ["fp16", "w8a8"]
    assert chosen_variants(bundle, ["all"]) == list(bundle.manifest.coreml)
    with pytest.raises(UsageError, match=r"variants of this bundle \(fp16, w8a8\), got 'palette2'"):
        chosen_variants(bundle, ["fp16", "palette2"])
    with pytest.raises(UsageError, match=r"\(it has none\), got 'fp16'"):
        chosen_variants(Bundle.open(toy_bundle), ["fp16"])


def test_all_variants_are_those_there_that_fit(
    bundle: Bundle, toy_bundle: Path, tile: int, capsys: pytest.CaptureFixture[str]
) -> None:
    large = {"fits": (tile, tile), "wide": (tile, tile + 2)}
    assert fitting_variants(bundle, ["all"], {"fits": (tile, tile)}) == list(bundle.manifest.coreml)
    assert capsys.readouterr().err == ""
    assert fitting_variants(bundle, ["all"], large) == []
    assert "not measured: coreml fp16, coreml " in (told := capsys.readouterr().err)
    assert f"wide: expected an LR picture of at most {tile}x{tile}" in told
    with pytest.raises(ImageError, match="wide: expected an LR picture"):
        fitting_variants(bundle, ["all", "fp16"], large)
    assert fitting_variants(Bundle.open(toy_bundle), ["all"], large) == []
    assert "this bundle has no Core ML packages" in capsys.readouterr().err


def test_packages_without_graphs_cannot_be_checked_against_them(
    make_pixels: Pixels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(DEFAULT_BUNDLE, tmp_path / "copy.gdposr"))
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"graphs": {}, "default_precision": {}}))
    words = ["accuracy", str(copy), "--lr", str(tmp_path / "lr"), "--hr", str(tmp_path / "hr"), "--no-speed"]
    for folder, side in (("lr", 32), ("hr", 128)):
        (tmp_path / folder).mkdir()
        Image.fromarray(make_pixels(side, side)).save(tmp_path / folder / "a.png")
    for more in ([], ["--coreml", "all"]):
        assert main([*words, "--check", *more]) == 2
        assert "against ONNX graphs in fp32, which this bundle lacks" in capsys.readouterr().err
    assert main([*words, "--coreml", "fp16", "--budget", "min_psnr=5"]) == 0
    assert "ok      coreml fp16 min psnr 5" in capsys.readouterr().out


def test_the_command_measures_packages_beside_graphs(
    make_pixels: Pixels, tile: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words: list[Any] = ["accuracy", "--lr", tmp_path / "lr", "--hr", tmp_path / "hr"]
    for folder, side in (("lr", tile), ("hr", 4 * tile)):
        (tmp_path / folder).mkdir()
        Image.fromarray(make_pixels(side, side)).save(tmp_path / folder / "a.png")
    words += ["--precision", "fp32", "--coreml", "fp16", "--rounds", "1", "--threads", "1", "--json"]
    words += ["--budget", "max_psnr_loss=3"]
    assert main([str(word) for word in words]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["target"]) for row in result["rows"]] == [
        ("bicubic", ""), ("fp32", "onnx"), ("coreml fp16", "coreml")
    ]  # fmt: skip
    onnx, package = result["rows"][1:]
    assert onnx["milliseconds"] > 0
    assert (package["milliseconds"], package["seam"]) == (None, None)
    assert package["diversity"] == pytest.approx(onnx["diversity"], rel=0.01)
    assert [gate["row"] for gate in result["gates"]] == ["coreml fp16"]
    for folder, side in (("lr", tile + 8), ("hr", 4 * tile + 32)):
        Image.fromarray(make_pixels(side, side)).save(tmp_path / folder / "b.png")
    assert main([str(word) for word in words]) == 2
    assert "b: expected an LR picture of at most" in capsys.readouterr().err
