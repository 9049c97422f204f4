"""The trained weights of a stage as a state, and their moving average."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from training.loop.stage import Stage


class Trained:
    """The trained parameters and all buffers of a stage. Frozen parameters are not part of the state."""

    def __init__(self, stage: Stage) -> None:
        self.groups = stage.groups()
        wanted = {id(p) for parameters, _ in self.groups.values() for p in parameters}
        self.parameters = {name: p for name, p in stage.named_parameters() if id(p) in wanted}
        self.stage = stage

    def of(self, phases: tuple[str, ...]) -> dict[str, nn.Parameter]:
        """The parameters that the named phases train."""
        wanted = {id(p) for phase in phases for p in self.groups[phase][0]}
        return {name: p for name, p in self.parameters.items() if id(p) in wanted}

    def state_dict(self) -> dict[str, Tensor]:
        # with several processes, torch replaces a stage's buffers by other tensors
        found = self.parameters | dict(self.stage.named_buffers())
        return {name: value.detach() for name, value in found.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError if names or shapes differ from this stage's."""
        _copy(state, self.state_dict())


class Average:
    """Exponential moving average of parameters. The decay rises during the first steps, so that they soon lose weight."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.values = {name: p.detach().clone() for name, p in parameters.items()} if decay else {}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in self.values.items():
            value.lerp_(self.parameters[name].detach(), 1.0 - decay)

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Put the averaged weights into the model for the duration of the `with` block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, value in self.values.items():
            kept = value.clone()
            value.copy_(self.parameters[name])
            self.parameters[name].copy_(kept)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.values)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        _copy(state, self.values)


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name in sorted({*source, *target}):
        have = tuple(source[name].shape) if name in source else None
        want = tuple(target[name].shape) if name in target else None
        if have != want:
            raise ValueError(
                f"the saved state belongs to a model of another size: {name} has shape {have}, expected {want}. Resume with the "
                "run's original settings and base"
            )
        target[name].copy_(source[name])
