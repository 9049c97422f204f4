"""Trained one-step models as rows of an accuracy table: run in torch on the CPU, with the runtime's noise, timed beside the others.

A bundle was made from them or is measured against them. These rows have no budget; they are only compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gdposr.console import UsageError
from gdposr.forward import explained

if TYPE_CHECKING:
    import numpy as np

    from calibration.measure.methods import Method
    from training.model.one_step import OneStepModel

# What these rows run in, and the note of each, both as the report shows them.
TARGET = "torch"
NOTE = "a one-step model in torch, float32; parameters and size are those of UNet and VAE, with the files of adapters"


@dataclass(frozen=True)
class OneStepRow:
    """A loaded model and its name."""

    name: str
    """Name in the table."""
    model: OneStepModel
    """The model, on its device."""
    parameters: int
    """Weights of UNet and VAE."""
    bytes: int
    """Size of the files of UNet and VAE, adapters included."""
    prompt: str | None = None
    """Prompt of every picture; None: the default. A model without cross-attention ignores it."""

    def upscale(self, lr: np.ndarray, seed: int, sample: int = 0) -> np.ndarray:
        """One sample of a picture of any size, (h, w, 3) uint8 -> (4h, 4w, 3) uint8."""
        from calibration.measure.onestep import restore

        return restore(self.model, lr, seed, sample, self.prompt)


@contextmanager
def open_rows(
    named: Sequence[tuple[str, str]],
    scale: int,
    threads: int,
    base: str | None = None,
    prompt: str | None = None,
) -> Iterator[list[OneStepRow]]:
    """The models of --onestep, all in memory at once.

    named: (row, folder or hub name) of each.
    scale: factor by which each must enlarge.
    threads: of torch, inside the context.
    base: source of text encoder and scheduler for models that have none.
    prompt: the prompt folded into the bundle; None: the default. Models without cross-attention ignore it.

    UsageError if one cannot be loaded or enlarges by another factor.
    """
    if not named:
        yield []
        return
    with _explained(named[0][0]):
        import torch
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield [_load(name, source, scale, base, prompt) for name, source in named]
    finally:
        torch.set_num_threads(before)


def onestep_methods(rows: Sequence[OneStepRow], seed: int) -> list[Method]:
    """One method of kind "peer" and target "torch" per row. Seed and sample give the same noise as in a bundle."""
    return [_method(row, seed) for row in rows]


def onestep_calls(rows: Sequence[OneStepRow], picture: np.ndarray) -> dict[str, Callable[[], object]]:
    """The timed call of each row, by name: one picture (h, w, 3) uint8 from bytes to bytes, noise included."""
    return {row.name: _call(row, picture) for row in rows}


def _method(row: OneStepRow, seed: int) -> Method:
    from calibration.measure.methods import Method

    return Method(
        name=row.name,
        kind="peer",
        upscale=lambda name, lr: row.upscale(lr, seed),
        samples=lambda lr, count: [row.upscale(lr, seed, sample) for sample in range(count)],
        parameters=row.parameters,
        bytes=row.bytes,
        device=str(row.model.device),
        notes=(NOTE,),
        target=TARGET,
    )


def _call(row: OneStepRow, picture: np.ndarray) -> Callable[[], object]:
    return lambda: row.upscale(picture, 0)


def _load(name: str, source: str, scale: int, base: str | None, prompt: str | None) -> OneStepRow:
    """The model of one row, with the arguments of `open_rows`.

    name, source: of the row.
    scale, base, prompt: as there.
    """
    with _explained(name):
        import torch

        from calibration.measure.onestep import count_weights, weight_files
        from training.model.loading import load_model

        model = load_model(source, base=base)
        for part in (model.vae, model.unet):  # as for a teacher; a third less time on a CPU
            part.to(memory_format=torch.channels_last)
        size = sum(file.stat().st_size for file in weight_files(source))
    if model.scale != scale:
        raise UsageError(
            f"--onestep {name}: expected a model that enlarges {scale} times, as the bundle does, {source} enlarges {model.scale} "
            "times: give another model or bundle"
        )
    return OneStepRow(name, model, count_weights(model), size, prompt)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turns a loading error into a UsageError that names the row."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise explained(error, "train", "--onestep") from error
    except OSError as error:
        raise UsageError(f"--onestep {name}: {error}") from error
    except ValueError as error:
        remedy = "if a base is missing, name it with --onestep-base"
        raise UsageError(f"--onestep {name}: {error}; {remedy}") from error
