"""The accelerate object of a run: device, precision and processes, and agreement among the processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list
from torch import Tensor

from training.loop.precision import resolved


def set_tf32(device: torch.device, on: bool) -> None:
    """Let a GPU multiply float32 in TF32, with 10 bits of mantissa as in float16, or not. Without effect on other devices."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = on
        torch.backends.cudnn.allow_tf32 = on


def make_accelerator(
    precision: str, *, several_phases: bool = True, device: str | None = None
) -> Accelerator:
    """The accelerator for a run. Raises ValueError if the device does not support the precision.

    precision: "no", "bf16", "fp16", or "auto" for the best one that the device supports.
    several_phases: whether a backward pass can leave parameters without gradient, since each phase trains its own.
    device: "cpu", "cuda", "cuda:1" and so on; None keeps the device of earlier runs in this process, else accelerate chooses.
    """
    if device is not None:
        wanted = torch.device(device)
        if PartialState._shared_state and PartialState().device.type != wanted.type:
            AcceleratorState._reset_state(reset_partial_state=True)
        if wanted.type == "cuda" and wanted.index is not None:
            torch.cuda.set_device(wanted)
        PartialState(cpu=wanted.type == "cpu")
    if precision == "auto":
        precision = resolved(precision, Accelerator().device.type, "no")
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()  # another run of this process had another precision
    try:
        return Accelerator(
            mixed_precision=precision,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=several_phases)],
        )
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"precision={precision} does not work on this device ({error}): set precision=no"
        ) from error


def vote(accelerator: Accelerator, progress: float, stop: bool, save: bool) -> tuple[float, bool, bool]:
    """Agree on (progress, stop, save) among processes.

    accelerator: of all processes.
    progress: the first process's holds for all.
    stop, save: hold for all if any process asks for them.
    """
    if accelerator.num_processes == 1:
        return progress, stop, save
    shared = [progress]
    broadcast_object_list(shared)
    flags = torch.tensor([float(stop), float(save)], device=accelerator.device)
    stop, save = (bool(x > 0) for x in accelerator.reduce(flags, "sum"))
    return shared[0], stop, save


def mean_losses(accelerator: Accelerator, parts: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """Means of the losses over batches and processes. parts: losses of each batch, by name."""
    names = sorted(parts[0])
    stacked = torch.stack([torch.stack([part[name].mean() for name in names]) for part in parts]).mean(0)
    return dict(zip(names, accelerator.reduce(stacked, "mean").tolist(), strict=True))
