"""What the tests share: paths, generated photos, and skips that say what they need."""

import gc
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
TOY = ROOT / "tests" / "data" / "toy.gdposr"

# The files that take longest. They come first, or one process would still work on such a file when the others have nothing left.
LONGEST = (
    "stages", "gdpo", "merge", "merge_graphs", "quantize", "export_targets", "shipped_model", "export", "coreml", "teacher_runs",
    "determinism", "critic", "loading", "stage_inputs", "gate", "compress", "weight_only", "activations", "naosd", "batch",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first; tests marked gpu or coreml are skipped where they cannot run."""
    place = {f"test_{name}.py": index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))
    for item in items:
        if item.get_closest_marker("gpu") and shutil.which("nvidia-smi") is None:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("coreml") and sys.platform != "darwin":
            item.add_marker(pytest.mark.skip(reason="needs macOS"))


def pytest_collection_finish() -> None:
    """Collect cycles less often, and never among what imports have made: it took a fifth of the time where graphs are exported."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def toy_bundle() -> Path:
    """The committed toy bundle; only to read, copy it with `toy_copy` to change it."""
    return TOY


@pytest.fixture
def toy_copy(tmp_path: Path) -> Path:
    """A toy bundle of the test's own."""
    return Path(shutil.copytree(TOY, tmp_path / "copy.gdposr"))


@pytest.fixture
def packed(toy_copy: Path) -> Path:
    """A toy bundle of the test's own, with Core ML packages for tiles of 32x32."""
    from core_ml_stand_in import add_packages

    add_packages(toy_copy)
    return toy_copy


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The `FakeTools` of a Mac, see `core_ml_stand_in`. Compiled models are kept in tmp_path/cache."""
    from core_ml_stand_in import stand_in_mac

    return stand_in_mac(monkeypatch, tmp_path / "cache")


@pytest.fixture(scope="session")
def make_pixels() -> Callable[..., np.ndarray]:
    """make_pixels(height, width, channels=3, seed=0, dtype=uint8): ramps, an edge and grain, always the same."""

    def make(height: int, width: int, channels: int = 3, seed: int = 0, dtype: type = np.uint8) -> np.ndarray:
        y, x = np.mgrid[:height, :width] / max(height, width, 2)
        planes = [0.5 + 0.4 * np.sin(7 * x + 5 * y + channel + seed) for channel in range(channels)]
        picture = np.stack(planes, axis=2) + 0.1 * (x > y)[..., None]
        index = np.arange(picture.size, dtype=np.uint64) + np.uint64(1000003 * seed)
        grain = (index * np.uint64(6364136223846793005) >> np.uint64(40)).astype(np.float64) / 2**24 - 0.5
        top = np.iinfo(dtype).max
        return np.rint(np.clip(picture + 0.1 * grain.reshape(picture.shape), 0, 1) * top).astype(dtype)

    return make


@pytest.fixture
def make_photo(tmp_path: Path, make_pixels: Callable[..., np.ndarray]) -> Callable[..., Path]:
    """make_photo("sub/name.png", height, width, channels=3, seed=0) writes a picture under tmp_path and gives its path."""

    def make(name: str, height: int = 24, width: int = 32, channels: int = 3, seed: int = 0) -> Path:
        pixels = make_pixels(height, width, channels, seed)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(path)
        return path

    return make


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """shared_data("realsr/LR"): that path of the optional data folder; skips the test where it is missing."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"needs ../shared/data/{name}, which is not here")
        return path

    return find


@pytest.fixture(scope="session")
def need() -> Callable[..., None]:
    """need("torch", "onnx") skips the test where a package is missing."""

    def check(*packages: str) -> None:
        missing = [name for name in packages if importlib.util.find_spec(name) is None]
        if missing:
            pytest.skip(f"needs {', '.join(missing)}: pip install {' '.join(missing)}")

    return check


@pytest.fixture(scope="session")
def run_python(root: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """run_python("-m", "gdposr", ...) runs this Python in the repository and captures what it prints."""

    def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *map(str, arguments)]
        settings: dict = {"cwd": root, "capture_output": True, "text": True, "timeout": 120, **options}
        return subprocess.run(command, check=False, **settings)

    return run


@pytest.fixture(scope="module")
def exports_once() -> Iterator[dict[Any, bytes]]:
    """A graph that a test of the module has exported to ONNX is not exported again: torch takes seconds for the smallest. The value
    is what is kept; `clear()` it where the exporter itself is under test."""
    from export.onnx.graph import convert

    export, kept = convert._export, {}

    def once(
        source: Any, role: str, path: Path, metadata: Mapping[str, str], inside_bytes: int, **options: Any
    ) -> Path:
        module = source.modules[role]
        digest = hashlib.sha256(repr(module).encode())
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().contiguous().numpy().tobytes())
        key = (
            digest.hexdigest(),
            role,
            repr(source.specs[role]),
            repr(source.size),
            repr(dict(metadata)),
            inside_bytes,
            repr(options),
        )
        if key not in kept:
            export(source, role, path, metadata, inside_bytes, **options)
            if convert.data_file(path).exists():
                return path
            kept[key] = path.read_bytes()
        path.write_bytes(kept[key])
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert, "_export", once)
        yield kept


@pytest.fixture
def gdposr(toy_bundle: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """gdposr("upscale", ...) -> (exit code, stdout, stderr), with the toy bundle where none is named."""
    from gdposr.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        words = [str(argument) for argument in arguments]
        if words and words[0] == "upscale" and "--bundle" not in words:
            words += ["--bundle", str(toy_bundle)]
        capsys.readouterr()
        code = main(words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def start_server(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """start_server(workers=1, **limits) as a context: a server for apps on the toy bundle. Needs the extra `server`."""
    from api import running

    from runtime.upscale.upscaler import Upscaler

    folder = tmp_path_factory.mktemp("requests")
    with pytest.MonkeyPatch.context() as patch, Upscaler(toy_bundle, threads=1) as upscaler:
        patch.setattr(tempfile, "tempdir", str(folder))
        yield lambda **options: running(upscaler, folder, **options)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SqueezeNet 1.1 with random weights, in the layout of the real file. Needs torch."""
    import torch
    from safetensors.torch import save_file

    from training.metrics.squeezenet import _FIRES

    draw = torch.Generator().manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "squeezenet.safetensors"
    state = {
        "conv1.weight": torch.randn(64, 3, 3, 3, generator=draw) * 0.02,
        "conv1.bias": torch.zeros(64),
    }
    channels = 64
    for index, (squeeze, expand) in _FIRES.items():
        for name, outputs, inputs, side in (
            ("squeeze1x1", squeeze, channels, 1),
            ("expand1x1", expand, squeeze, 1),
            ("expand3x3", expand, squeeze, 3),
        ):
            kernel = torch.randn(outputs, inputs, side, side, generator=draw)
            state[f"fire{index}.{name}.weight"] = kernel * (2 / (inputs * side**2)) ** 0.5
            state[f"fire{index}.{name}.bias"] = torch.zeros(outputs)
        channels = 2 * expand
    save_file(state, path)
    return path


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four generated pictures of 160x120 pixels to train on."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:120, 0:160]
    for k in range(4):
        waves = (
            128
            + 80 * np.sin(x / (3 + k))[..., None] * np.cos(y / (5 + k))[..., None]
            + rng.normal(0, 12, (120, 160, 3))
        )
        Image.fromarray(np.clip(waves, 0, 255).astype(np.uint8)).save(folder / f"{k}.png")
    return folder


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature Stable Diffusion 2.1; only to read. Needs the extra `train`."""
    from make_miniature_sd21 import make_miniature

    return make_miniature(tmp_path_factory.mktemp("sd21") / "miniature")


@pytest.fixture(scope="session")
def teacher_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small one-step model; only to read. Needs the extra `train`."""
    from teachers import tiny_model

    from training.model.saving import save_merged

    folder = tmp_path_factory.mktemp("teacher") / "run"
    save_merged(tiny_model(), folder / "model")
    return folder


@pytest.fixture(scope="session")
def teacher(teacher_run: Path) -> Any:
    """The model of `teacher_run` as the teacher of a distillation; only to read."""
    from export.distill.teacher import Teacher

    return Teacher.load(teacher_run)


NCNN_NETWORK = """7767517
8 9
Input            data    0 1 data
Split            twice   1 2 data a b
Convolution      first   1 1 a c 0=8 1=3 4=1 5=1 6=216 9=2 -23310=1,2.000000e-01
PReLU            bent    1 1 c d 0=8
Convolution      second  1 1 d e 0=48 1=3 4=1 5=1 6=3456
PixelShuffle     up      1 1 e f 0=4
Interp           near    1 1 b g 0=1 1=4.000000e+00 2=4.000000e+00
BinaryOp         sum     2 1 f g output
"""


@pytest.fixture
def ncnn_network(tmp_path: Path) -> Path:
    """A small network of most of the layers, half of its weights stored as float16."""
    rng = np.random.default_rng(0)
    blob = b""
    for kind, count, bias in (("<f2", 216, 8), ("slope", 8, 0), ("<f4", 3456, 48)):
        if kind == "slope":
            blob += rng.uniform(0, 0.5, count).astype("<f4").tobytes()
            continue
        mark = 0x01306B47 if kind == "<f2" else 0
        blob += mark.to_bytes(4, "little") + rng.normal(0, 0.05, count).astype(kind).tobytes()
        blob += rng.normal(0, 0.01, bias).astype("<f4").tobytes()
    param = tmp_path / "small.param"
    param.write_text(NCNN_NETWORK)
    param.with_suffix(".bin").write_bytes(blob)
    return param


@pytest.fixture
def pictures(ncnn_network: Path, photos: Path, tmp_path: Path) -> Path:
    """A cache of four of a small network's pictures."""
    from export.prior.network import Prior
    from export.prior.pictures import PictureParams, make_pictures
    from training.data.photos import PhotoSet, find_images

    folder = tmp_path / "pictures"
    make_pictures(PhotoSet(find_images(photos)), Prior.load(ncnn_network), folder, 4, PictureParams(size=96))
    return folder
