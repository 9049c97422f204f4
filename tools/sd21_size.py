"""Stable Diffusion 2.1's size on the way to a phone, with random weights: Core ML packages in chunks, and INT8 graphs.

    python -m tools.sd21_size coreml FOLDER     chunks below 1 GB in fp16, palette8 and palette6, each checked
    python -m tools.sd21_size int8 FOLDER       the graphs in parts, by NNCF, each compared with fp32

Nothing is downloaded: UNet and VAE are built from the published configuration, and random embeddings stand for the
prompt's. So sizes, minutes, memory and the proofs are those of the real model; ranges of values, and with them PSNR,
are not. The folder needs 12 GB."""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from export.coreml.target import CHUNK_BYTES, write_coreml
from export.fold.chunks import cut
from export.fold.one_step import KIND, one_step_source
from export.mil.lint import lint, summary
from export.mil.package.program import find_packages, read_package
from export.onnx.graph.convert import export_fp32, save_checked
from export.onnx.graph.ranges import run
from export.onnx.graph.weight_only import compress_onnx
from export.onnx.int8.integer_form import integer_form
from export.onnx.int8.layers import find_layers, kept_float
from export.onnx.int8.nncf_graphs import quantized
from export.parity import samples
from export.source import Source, feature_psnr
from runtime.text import print_error
from training.model.one_step import OneStepModel
from training.model.schedule import NoiseSchedule

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel

# Core ML variants by default.
VARIANTS: Final = ("fp16", "palette8", "palette6")
# Side in LR pixels of all pictures: the smallest that the model takes. Weights, not pixels, make the files.
SIDE: Final = 16
# Most bytes, in half precision, of a part that NNCF gets: it holds several copies in float32.
PART_BYTES: Final = 250_000_000
# Seeds of noise that INT8 is calibrated on, at the model's one noise level.
SEEDS: Final = 2
# Tokens of a prompt, and numbers for each, of Stable Diffusion 2.1's text encoder.
TOKENS, WIDTH = 77, 1024


class Prompt(nn.Module):
    """Stands in for the text encoder: one random embedding, (n, 77, 1024), for every prompt."""

    width = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("embedding", torch.randn(1, TOKENS, WIDTH))

    def forward(self, prompts: Sequence[str]) -> Tensor:
        return self.embedding.expand(len(prompts), -1, -1)


@contextmanager
def bfloat16() -> Iterator[None]:
    """Inside this block new tensors are bfloat16, which takes half of the memory."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def full_size_networks() -> tuple[UNet2DConditionModel, AutoencoderKL]:
    """UNet and VAE of the published configuration of stable-diffusion-2-1-base, random weights, in bfloat16."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with bfloat16():
        unet = UNet2DConditionModel(
            sample_size=64,
            cross_attention_dim=WIDTH,
            attention_head_dim=(5, 10, 20, 20),
            use_linear_projection=True,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            sample_size=768,
        )
    return unet, vae


def full_size() -> Source:
    """The folded model of that size."""
    torch.manual_seed(0)
    unet, vae = full_size_networks()
    with bfloat16():
        text: Any = Prompt()
    model = OneStepModel(vae, unet, text, NoiseSchedule.scaled_linear())
    return one_step_source(model.freeze(), {}, "0" * 64)


class Notes:
    """Prints each figure with the seconds since the start and the peak of memory."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, text: str) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        wall, cpu = time.monotonic() - self._began, time.process_time()
        print(f"{wall:6.0f} s, {cpu:5.0f} s of CPU, peak {peak:4.1f} GB: {text}", flush=True)


def core_ml(folder: Path, variants: Sequence[str], side: int, note: Notes) -> None:
    """Write all packages, with the checks of an export, and list their sizes and lint's findings.

    folder: for the packages.
    variants: of them.
    side: of a tile in LR pixels.
    note: takes a line of the report.
    """
    source = full_size()
    note(f"{source.parameters / 1e6:.0f} million parameters folded")
    _, measured = write_coreml(
        source, folder, variants, "iOS17", side, False, {"model": KIND}, note, chunk_bytes=CHUNK_BYTES
    )
    note(f"measured: {measured}")
    for path in find_packages(folder):
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        flags = {rule: len(found) for rule, found in summary(lint(read_package(path)).flags).items()}
        note(f"{path.name}: {size / 1e9:.3f} GB, lint: {flags or 'no known obstacle'}")


def int8(source: Source, folder: Path, part_bytes: int, note: Callable[[str], object]) -> float:
    """Quantize encoder and generator part by part; each part is compared with fp32 on the float model's inputs, then all together.

    source: the folded model.
    folder: for the graphs.
    part_bytes: most bytes, in half precision, of a part.
    note: takes a line of the report.

    Returns the PSNR in dB of the whole chain's picture in INT8 to that in fp32."""
    source, parts = cut(source, part_bytes)
    names = ("encoder", *parts)
    photos = samples(source, SEEDS, seed=0, size=SIDE)
    cases = [_values(source, names, photo.lr[None], photo.noise[None]) for photo in photos]
    specs, modules = source.specs, source.modules
    for name in names:
        part = replace(source, modules={name: modules[name]})
        export_fp32(part, folder, {"model": KIND})
    note(f"{len(names)} parts in fp32: {_gigabytes(folder, names, 'fp32'):.2f} GB")
    del source, modules, part
    came = dict(cases[0])  # of the chain of INT8 parts on the first photo
    for name in names:
        inputs, outputs = (
            [tensor.name for tensor in side] for side in (specs[name].inputs, specs[name].outputs)
        )
        path = folder / f"{name}.fp32.onnx"
        feeds = [{key: values[key] for key in inputs} for values in cases]
        model = onnx.load(path)
        kept = kept_float(model)
        layers = [layer.name for layer in find_layers(model, feeds[0], SIDE * SIDE) if layer.whole]
        layers = [layer for layer in layers if layer not in kept]
        target = folder / f"{name}.int8.onnx"
        save_checked(integer_form(quantized(model, feeds, layers, 7), model, feeds), target)
        del model
        compress_onnx(target, target, 8)
        alone = run(target, feeds[0])
        worst = min(feature_psnr(alone[key], cases[0][key]) for key in outputs)
        came |= run(target, {key: came[key] for key in inputs})
        chained = min(feature_psnr(came[key], cases[0][key]) for key in outputs)
        size = target.stat().st_size / 1e9
        note(
            f"{name}: {len(layers)} layers W8A8, {size:.3f} GB, {worst:.1f} dB alone, {chained:.1f} dB in the chain"
        )
    note(f"INT8: {_gigabytes(folder, names, 'int8'):.2f} GB")
    return chained


@torch.no_grad()
def _values(
    source: Source, names: Sequence[str], image: np.ndarray, noise: np.ndarray
) -> Mapping[str, np.ndarray]:
    """Every value between the parts, and the picture, by name.

    source: the model in parts.
    names: of the parts, in the order of running.
    image: (1, 3, h, w) float32 in [0, 1].
    noise: as the generator takes it.
    """
    first, last = source.specs["encoder"].inputs[0].name, source.specs["generator"].inputs[-1].name
    values = {first: torch.from_numpy(image), last: torch.from_numpy(noise)}
    for name in names:
        spec = source.specs[name]
        results = source.modules[name](*(values[tensor.name] for tensor in spec.inputs))
        results = (results,) if isinstance(results, Tensor) else results
        values |= {tensor.name: value for tensor, value in zip(spec.outputs, results, strict=True)}
    return {name: value.numpy() for name, value in values.items()}


def _gigabytes(folder: Path, names: Sequence[str], precision: str) -> float:
    return sum((folder / f"{name}.{precision}.onnx").stat().st_size for name in names) / 1e9


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.sd21_size", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("coreml", "int8"))
    parser.add_argument("folder", type=Path, help="for the files, 12 GB; made if it is missing")
    parser.add_argument(
        "--variant", nargs="+", default=list(VARIANTS), help="variants of the Core ML packages"
    )
    parser.add_argument("--tile", type=int, default=SIDE, help="side in LR pixels of a package (default: 16)")
    args = parser.parse_args(argv)
    try:
        args.folder.mkdir(parents=True, exist_ok=True)
        note = Notes()
        if args.what == "coreml":
            core_ml(args.folder, args.variant, args.tile, note)
        else:
            source = full_size()
            note(f"{source.parameters / 1e6:.0f} million parameters folded")
            int8(source, args.folder, PART_BYTES, note)
    except (OSError, ValueError) as error:
        print_error(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
