"""Stable Diffusion 2.1 at its full size, with random weights: folded, exported, and converted to half precision and to weights of 8 and
4 bits within 24 GB.

As a script it prints what it measures: `python tests/test_full_size_export.py [FOLDER]`; the folder needs 8 GB.
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip("onnx", reason="needs the extra `export`")
pytest.importorskip("diffusers", reason="needs the extra `train`")

import onnx  # noqa: E402  (after importorskip)
from test_full_size import full_size  # noqa: E402

from export.fold.one_step import KIND, one_step_source  # noqa: E402
from export.onnx.graph.convert import data_file, export_fp32  # noqa: E402
from export.onnx.graph.half import FLOOR_DB, convert_fp16  # noqa: E402
from export.onnx.graph.ranges import run  # noqa: E402
from export.onnx.graph.weight_only import BITS, compress_pair  # noqa: E402
from export.onnx.target import W4_TARGET_DB  # noqa: E402
from export.parity import samples  # noqa: E402
from export.source import Source, psnr  # noqa: E402

LIMIT_GB = 24
ONNX_FLOOR_DB = 80.0
WEIGHT_ONLY_FLOOR_DB = {"w8": 45.0, "w4": W4_TARGET_DB}
SIDE = 16  # LR pixels: the smallest that SD2.1 takes


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def gigabytes(path: Path) -> float:
    return sum(file.stat().st_size for file in (path, data_file(path)) if file.exists()) / 1e9


def folded(folder: Path) -> Source:
    """The source alone: the bf16 model that it was folded from is gone afterwards."""
    return one_step_source(full_size(folder).freeze(), {}, "0" * 64)


def export_full_size(folder: Path) -> dict[str, float]:
    """Fold, export and convert; returns seconds, sizes in GB, PSNR in dB and peak memory in GB by name."""
    measured: dict[str, float] = {}
    began = time.monotonic()

    def note(name: str, value: float) -> None:
        measured[name] = value
        print(
            f"{name:24} {value:10.2f}   after {time.monotonic() - began:5.0f} s, peak {peak_gb():.1f} GB",
            flush=True,
        )

    source = folded(folder / "miniature")
    note("parameters, millions", source.parameters / 1e6)
    (photo,) = samples(source, 1, seed=0, size=SIDE)
    image, noise = photo.lr[None], photo.noise[None]
    expected = source(torch.from_numpy(image), torch.from_numpy(noise)).numpy()
    features = source.encode(torch.from_numpy(image))[0].numpy()
    paths = export_fp32(source, folder, {"model": KIND})
    for precision in BITS:
        few = compress_pair(source, paths, folder, precision, [photo], W4_TARGET_DB, print)
        for role, path in few.paths.items():
            note(f"{role} {precision}, GB", gigabytes(path))
        note(f"{precision} layers of 8 bits", len(few.wide))
        note(f"{precision} against torch, dB", few.psnr)
    del source
    feeds = {"encoder": {"image": image}, "generator": {"features": features, "noise": noise}}
    for role, path in paths.items():
        onnx.checker.check_model(str(path))
        note(f"{role} fp32, GB", gigabytes(path))
    note("fp32 against torch, dB", psnr(run(paths["generator"], feeds["generator"])["sr"], expected))
    for role, path in paths.items():
        half = convert_fp16(path, folder / f"{role}.fp16.onnx", [feeds[role]])
        note(f"{role} fp16, GB", gigabytes(half.path))
        note(f"{role} fp16 islands", len(half.islands))
        note(f"{role} fp16, dB", half.psnr)
    note("seconds", time.monotonic() - began)
    note("peak, GB", peak_gb())
    return measured


@pytest.mark.nightly
def test_full_size_export(tmp_path: Path) -> None:
    measured = export_full_size(tmp_path)
    assert measured["generator fp32, GB"] > 2**31 / 1e9  # more than a protobuf holds
    assert measured["generator fp16, GB"] < 0.55 * measured["generator fp32, GB"]
    assert measured["fp32 against torch, dB"] >= ONNX_FLOOR_DB
    assert measured["generator w8, GB"] < 0.26 * measured["generator fp32, GB"]
    assert measured["generator w4, GB"] < 0.17 * measured["generator fp32, GB"]
    for precision in BITS:
        assert measured[f"{precision} against torch, dB"] >= WEIGHT_ONLY_FLOOR_DB[precision]
    assert min(measured["encoder fp16, dB"], measured["generator fp16, dB"]) >= FLOOR_DB
    assert measured["peak, GB"] < LIMIT_GB


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as place:
        export_full_size(Path(place))
