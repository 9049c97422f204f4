"""Training state without pickles: tensors in a safetensors file, everything else in JSON beside it.

A state is a folder with state.safetensors and state.json. It is written beside the old state and then replaces it, so
an interruption leaves either the old or the new one. Read errors name the damaged file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

TENSORS = "state.safetensors"
VALUES = "state.json"


class Stateful(Protocol):
    """A module, or anything else with a state dict of tensors."""

    def state_dict(self) -> Mapping[str, Tensor]: ...

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> Any: ...


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's per-parameter tensors as {"index.name": tensor}. index counts in the order of the parameter groups."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value)
        for index, slots in state.items()
        for name, value in slots.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`. The optimizer keeps its learning rate and other settings."""
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        slots.setdefault(int(index), {})[name] = value
    state = optimizer.state_dict()
    state["state"] = slots
    optimizer.load_state_dict(state)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises ValueError if it is damaged."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged or cut off ({error}): copy it again, or repeat the command that made it"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError if it contains none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return document


def write_complete(path: Path, write: Callable[[Path], Any]) -> None:
    """Write to a file beside path and rename it once it is complete."""
    fresh = path.with_name(path.name + ".new")
    try:
        write(fresh)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def save_state(
    folder: Path,
    modules: Mapping[str, Stateful],
    optimizers: Mapping[str, torch.optim.Optimizer],
    values: Mapping[str, Any],
) -> None:
    """Write a state folder. Raises OSError if that fails; an earlier state is then unchanged.

    folder: of the state.
    modules: whose tensors are saved, by name.
    optimizers: whose tensors are saved, by name.
    values: JSON values."""
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        tensors |= {
            f"module/{name}/{key}": value.detach().clone().contiguous()
            for key, value in module.state_dict().items()
        }
    for name, optimizer in optimizers.items():
        tensors |= {
            f"optimizer/{name}/{key}": value.clone().contiguous()
            for key, value in optimizer_tensors(optimizer).items()
        }
    try:
        with swapped_in(folder) as fresh:
            save_file(tensors, fresh / TENSORS)
            (fresh / VALUES).write_text(json.dumps(dict(values), indent=2) + "\n")
    except (OSError, SafetensorError) as error:
        earlier = "the earlier state is unchanged" if has_state(folder) else "there is no earlier state"
        raise OSError(
            f"could not write the training state to {folder} ({error}); {earlier}. Free some space and continue with --resume"
        ) from error


@contextmanager
def swapped_in(target: Path) -> Iterator[Path]:
    """A new folder that replaces target if the block ends without error; otherwise nothing is left of it."""
    fresh = target.with_name(target.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir(parents=True)
        yield fresh
        replace_folder(fresh, target)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def replace_folder(fresh: Path, target: Path) -> None:
    """Move the folder `fresh` to `target`. The old content is removed afterwards, and restored after an error or Ctrl-C."""
    old = target.with_name(target.name + ".old")
    stood = target.exists()
    try:
        if stood:  # otherwise .old is the only copy, left by a process killed during the swap
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        fresh.rename(target)
    except BaseException:
        if stood and not target.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def has_state(folder: Path) -> bool:
    """Whether `load_state` would find a state at folder, or the one it replaced if the swap was interrupted."""
    return _complete(folder) is not None


def _complete(folder: Path) -> Path | None:
    for candidate in (folder, folder.with_name(folder.name + ".old")):
        if (candidate / TENSORS).is_file() and (candidate / VALUES).is_file():
            return candidate
    return None


def read_values(folder: Path) -> dict[str, Any]:
    """The JSON values of a state. Raises FileNotFoundError if there is no state."""
    source = _complete(folder)
    if source is None:
        raise FileNotFoundError(
            f"no training state at {folder}; expected {TENSORS} and {VALUES}. Start without --resume"
        )
    return json.loads((source / VALUES).read_text())


def load_state(
    folder: Path, modules: Mapping[str, Stateful], optimizers: Mapping[str, torch.optim.Optimizer]
) -> dict[str, Any]:
    """Load a state into modules and optimizers of the same names; returns the JSON values."""
    values = read_values(folder)
    source = _complete(folder)
    assert source is not None
    tensors = read_tensors(source / TENSORS)
    for name, module in modules.items():
        module.load_state_dict(_under(tensors, f"module/{name}/"))
    for name, optimizer in optimizers.items():
        load_optimizer_tensors(optimizer, _under(tensors, f"optimizer/{name}/"))
    return values


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
