"""The accelerate object of a run: device, precision and processes."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs

from training.loop.precision import resolved


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
