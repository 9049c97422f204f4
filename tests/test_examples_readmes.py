"""The READMEs of the examples for iOS and Android: tables, figures and names are those of the built-in bundle and of the sources."""

import re
from collections.abc import Callable
from pathlib import Path

import example_cases
import onnxruntime
import pytest
from example_cases import KOTLIN, SWIFT, constants

from runtime.bundle.manifest import TensorSpec
from runtime.bundle.reader import Bundle
from runtime.upscale.probe import read_rgb

read, bundle = example_cases.read, example_cases.bundle  # fixtures


def test_tables_of_the_readmes(read: Callable[[str], str], bundle: Bundle) -> None:
    manifest = bundle.manifest
    window = constants(read(f"{SWIFT}/Model.swift"))["WINDOW"]

    def fixed(tensor: TensorSpec) -> str:
        side = round(window * tensor.scale)
        return f"1, {tensor.channels}, {side}, {side}"

    def free(tensor: TensorSpec) -> str:
        if tensor.scale < 1:
            return ", ".join(
                ("1", str(tensor.channels), *(f"{side}/{round(1 / tensor.scale)}" for side in "hw"))
            )
        factor = "" if tensor.scale == 1 else str(round(tensor.scale))
        return f"1, {tensor.channels}, {factor}h, {factor}w"

    for name, shape in (("ios/README.md", fixed), ("android/README.md", free)):
        page = read(name)
        for graph, way, tensor in (
            ("encoder", "in", manifest.image),
            *(("encoder", "out", tensor) for tensor in manifest.encoder.outputs),
            ("generator", "in", manifest.noise_input),
            ("generator", "out", manifest.output),
        ):
            assert f"| {graph} | {way} `{tensor.name}` | {shape(tensor)} |" in page
        both = ", ".join(f"`{tensor.name}`" for tensor in manifest.encoder.outputs)
        assert f"| generator | in {both} | as above |" in page


def test_figures_in_the_text_of_the_readmes(read: Callable[[str], str], bundle: Bundle) -> None:
    manifest, rule = bundle.manifest, bundle.manifest.size
    window = constants(read(f"{SWIFT}/Model.swift"))["WINDOW"]
    probe, cell = read_rgb(bundle, manifest.probe.input).shape[0], manifest.noise.downscale
    kind = {1: "number", 2: "even number"}[rule.multiple_of]
    both = (
        "one value per channel and " + ("pixel of" if cell == 1 else f"cell of {cell}x{cell} pixels"),
        f"most {rule.context} LR pixels away",
        f"lies {rule.context} pixels or more inside",
    )
    both += (
        f"{4 * manifest.scale**2} bytes for each pixel",
        manifest.probe.input.file,
        manifest.probe.output.file,
    )
    reliable = probe - rule.context
    swift = (
        f"a side below {window} pixels",
        f"last {rule.context} rows or columns ({manifest.scale * rule.context} of the result)",
        f"{manifest.scale} x ({probe} - {rule.context}) = {manifest.scale * reliable}",
        f"first {manifest.scale * reliable} rows and columns",
        *(f'"$BUNDLE/{package.name}"' for package in manifest.coreml["fp16"].values()),
        *(f"`{variant}`" for variant in manifest.coreml if variant != "fp16"),
    )
    kotlin = (
        f"any {kind}s from {rule.minimum} on",
        f"below {rule.minimum} pixels",
        f"Any {kind} from {2 * rule.context + rule.multiple_of} on",
        *(f'"$BUNDLE/{file.file}"' for file in manifest.graphs["int8"].values()),
    )
    for name, facts in (("ios/README.md", both + swift), ("android/README.md", both + kotlin)):
        page = " ".join(read(name).split())
        assert [fact for fact in facts if fact not in page] == []
    default = re.search(r"window: Int = (\d+)", read(f"{KOTLIN}/Upscaler.kt"))
    assert default is not None
    page = read("android/README.md")
    assert f"window = {default[1]}" in page
    assert f"`columns` ({default[1]})" in page


@pytest.mark.parametrize("name", ["ios/README.md", "android/README.md"])
def test_readmes_name_files_that_exist(name: str, root: Path, read: Callable[[str], str]) -> None:
    page = read(name)
    folder = (root / "examples" / name).parent
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page)
    assert links
    assert [link for link in links if not (folder / link).exists()] == []
    sources = {path.name for path in (folder / ("Sources" if "ios" in name else "src/main")).rglob("*.*")}
    table = {
        word for row in re.findall(r"^\| (\w+\.\w+.*?) \|", page, re.MULTILINE) for word in row.split(", ")
    }
    assert table == sources


def test_names_of_free_sizes(read: Callable[[str], str], bundle: Bundle) -> None:
    """The names that `setSymbolicDimensionValue` takes."""
    page = read("android/README.md")
    names = set()
    for file in bundle.manifest.graphs["int8"].values():
        session = onnxruntime.InferenceSession(bundle.read(file), providers=["CPUExecutionProvider"])
        names |= {size for node in session.get_inputs() for size in node.shape if isinstance(size, str)}
    stated = re.search(r"setSymbolicDimensionValue` for (.*?), and let", " ".join(page.split()))
    assert stated is not None
    assert set(re.findall(r"`(.*?)`", stated[1])) == names


def test_opset(read: Callable[[str], str], bundle: Bundle, need: Callable[..., None]) -> None:
    need("onnx")
    import onnx

    for graphs in bundle.manifest.graphs.values():
        for file in graphs.values():
            opsets = {
                each.domain: each.version for each in onnx.load_from_string(bundle.read(file)).opset_import
            }
            assert f"The graphs are opset {opsets['']}." in read("android/README.md")
