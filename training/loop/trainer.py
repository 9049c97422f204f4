"""The training loop of every stage, on accelerate: precision, several processes, accumulation, averages, budgets, checkpoints.

All random numbers are functions of (seed, item), see `training.randomness`. So a state holds weights, averages, optimizers and the
step, and a run that is stopped and resumed gives the same weights as one that was not.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from training.checkpoint import has_state, load_state, read_values, save_state
from training.data.batches import Batch, Pairs, batches
from training.loop.average import Average, Trained
from training.loop.budget import Budget, Interrupt
from training.loop.precision import resolved
from training.loop.stage import Carry, RunSettings, Stage
from training.loop.validation import Validation
from training.model.text import PromptSource
from training.settings import differences, to_dict

log = logging.getLogger("train")

LOG_EVERY = 10  # steps between points on the TensorBoard curves
SMALLEST_SCALE = 1.0  # of fp16's gradient scaler; it begins at 65536
SHOW_SECONDS = 15.0  # between lines of progress


def learning_rate(peak: float, final: float, warmup: int, step: int, progress: float) -> float:
    """Linear warm-up over the first steps, times a cosine from peak to final over the progress, 0-1."""
    cosine = final + (peak - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
    return cosine * min(1.0, (step + 1) / warmup)


class Trainer:
    """Runs a stage until its budget is spent.

    out: the run folder, with config.json (written first), log.jsonl, tensorboard/, samples/, state/ and at the end model/.
    validation: None for no validation. about: what config.json and the model's provenance tell besides the settings, equal whenever the
    run is resumed. notes: more of it that may change. before: called in every process once the state is loaded and before the clock
    starts. on_step: called with the step and its losses, mean over processes.
    """

    def __init__(
        self,
        stage: Stage,
        settings: RunSettings,
        pairs: Pairs,
        out: Path,
        budget: Budget,
        *,
        prompts: PromptSource | None = None,
        validation: Validation | None = None,
        save_minutes: float = 5.0,
        workers: int = 1,
        about: Mapping[str, Any] | None = None,
        notes: Mapping[str, Any] | None = None,
        before: Callable[[], None] | None = None,
        on_step: Callable[[int, dict[str, float]], None] | None = None,
    ) -> None:
        self.groups = stage.groups()
        self.accelerator = make_accelerator(settings.precision, several_phases=len(self.groups) > 1)
        self.settings, self.pairs, self.out, self.budget = settings, pairs, out, budget
        self.prompts, self.validation, self.workers = prompts, validation, workers
        self.save_minutes, self.before, self.on_step = save_minutes, before, on_step
        self.notes = dict(notes or {})
        self.about = {
            **(about or {}),
            "processes": self.accelerator.num_processes,
            "settings": to_dict(settings),
        }
        # Convolutions are faster channels last. No dropout anywhere, in frozen networks least of all.
        self.stage = stage.to(self.accelerator.device, memory_format=torch.channels_last).eval()
        self.trained = Trained(self.stage)
        self.average = Average(self.trained.of(stage.averaged()), settings.ema)
        optimizers = {
            phase: torch.optim.AdamW(
                parameters, lr=rate, betas=(0.9, settings.beta2), weight_decay=settings.weight_decay
            )
            for phase, (parameters, rate) in self.groups.items()
        }
        self.raw_optimizers = optimizers
        self.model = self.accelerator.prepare(self.stage)
        self.optimizers = {phase: self.accelerator.prepare(o) for phase, o in optimizers.items()}
        self.step = 0
        self.phase_steps = dict.fromkeys(self.groups, 0)

    @property
    def main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    def run(self, *, resume: bool = False) -> dict[str, Any]:
        """Train; returns what was last measured, with `finished` False when the user stopped it (go on with resume=True).

        FloatingPointError when a loss or gradient is not finite; what stood then is saved in out/failed.
        """
        self._open(resume)
        if self.before:
            self.before()
        self.budget.start(self.budget.spent)
        next_save = (
            self.budget.seconds() + 60.0
        )  # the first one early, to see at once whether the model learns
        shown, last = time.monotonic(), {}
        micro_steps = batches(
            self.pairs,
            self.prompts,
            self.settings.batch,
            start=self.step * self.settings.accumulate,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
            workers=self.workers,
        )
        with Interrupt() as interrupt:
            while True:
                progress, stop, save = self._vote(interrupt.asked, self.budget.seconds() >= next_save)
                if stop or progress >= 1.0:
                    break
                if save:
                    last = self._measure()
                    self._save_state(self.out / "state")
                    next_save = self.budget.seconds() + 60 * self.save_minutes
                step_batches = [next(micro_steps) for _ in range(self.settings.accumulate)]
                on_device = [self.stage.prepare(b.to(self.accelerator.device)) for b in step_batches]
                losses = self._train_step(on_device, progress)
                self.step += 1
                self._report(losses)
                if time.monotonic() - shown > SHOW_SECONDS or self.step == 1:
                    self._show(progress, losses)
                    shown = time.monotonic()
        self._save_state(self.out / "state")
        if not stop:
            last = self._measure()
            self._finish(last)
        if self.main:
            self.curves.close()
        return {**last, "step": self.step, "finished": not stop}

    def _open(self, resume: bool) -> None:
        state = self.out / "state"
        if has_state(state) and not resume:
            raise FileExistsError(
                f"{self.out} holds a run already: go on with --resume, or choose another --out"
            )
        if resume:
            self._resume(state)
        if self.main:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / "config.json").write_text(json.dumps(self.about | self.notes, indent=2) + "\n")
            self.curves = SummaryWriter(str(self.out / "tensorboard"), purge_step=self.step)
            trained = sum(p.numel() for p in self.trained.parameters.values())
            total = sum(p.numel() for p in self.stage.parameters())
            log.info(
                "%d of %d parameters are trained, on %s x %d, precision %s",
                trained,
                total,
                self.accelerator.device,
                self.accelerator.num_processes,
                self.settings.precision,
            )

    def _resume(self, state: Path) -> None:
        changed = differences(read_values(state)["about"], self.about)
        if changed:
            raise ValueError(
                f"{self.out} was begun with other settings ({'; '.join(changed)}): resume with the same ones"
            )
        values = load_state(state, {"trained": self.trained, "average": self.average}, self.raw_optimizers)
        self.step, self.budget.spent = values["step"], values["seconds"]
        self.phase_steps = values["phase_steps"]
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(values["scaler"])

    def _vote(self, stop: bool, save: bool) -> tuple[float, bool, bool]:
        """One progress for all processes (the first one's clock); any process may ask for a stop or a save."""
        progress = self.budget.progress(self.step)
        if self.accelerator.num_processes == 1:
            return progress, stop, save
        shared = [progress]
        broadcast_object_list(shared)
        flags = torch.tensor([float(stop), float(save)], device=self.accelerator.device)
        stop, save = (bool(x > 0) for x in self.accelerator.reduce(flags, "sum"))
        return shared[0], stop, save

    def _train_step(self, step_batches: list[Batch], progress: float) -> dict[str, float]:
        values: dict[str, float] = {}
        carries: list[Carry] = [{} for _ in step_batches]
        self.stage.step = self.step
        for phase in self.stage.phases(progress):
            parts: list[dict[str, Tensor]] = []
            for k, batch in enumerate(step_batches):
                last = k == len(step_batches) - 1
                with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                    losses, carries[k] = self.model(phase, batch, carries[k])
                    self.accelerator.backward(losses["loss"] / len(step_batches))
                parts.append({name: value.detach().float() for name, value in losses.items()})
            means = self._mean_losses(parts)
            norm = self._update(phase, progress, math.isfinite(means["loss"]))
            self._check_finite(phase, means, norm, step_batches)
            values |= {f"{phase}/{name}": value for name, value in means.items()}
            values |= {f"{phase}/grad": norm}
        self.average.update(self.step)
        return values

    def _mean_losses(self, parts: list[dict[str, Tensor]]) -> dict[str, float]:
        names = sorted(parts[0])
        stacked = torch.stack([torch.stack([part[name].mean() for name in names]) for part in parts]).mean(0)
        return dict(zip(names, self.accelerator.reduce(stacked, "mean").tolist(), strict=True))

    def _update(self, phase: str, progress: float, finite: bool) -> float:
        """Clip and step one phase's optimizer; returns the norm of the gradient. The weights stay where loss or norm is not finite."""
        parameters, peak = self.groups[phase]
        optimizer = self.optimizers[phase]
        s = self.settings
        rate = learning_rate(
            peak,
            s.final_lr,
            s.warmup_steps,
            self.phase_steps[phase],
            self.stage.phase_progress(phase, progress),
        )
        self.phase_steps[phase] += 1
        for group in optimizer.param_groups:
            group["lr"] = rate
        self.accelerator.unscale_gradients(optimizer)
        norm = float(nn.utils.clip_grad_norm_(parameters, s.clip))
        if finite and (
            math.isfinite(norm) or self.accelerator.scaler
        ):  # a scaler itself skips a step that overflowed
            optimizer.step()
        optimizer.zero_grad()
        return norm

    def _check_finite(
        self, phase: str, means: dict[str, float], norm: float, step_batches: list[Batch]
    ) -> None:
        scaler = (
            self.accelerator.scaler
        )  # it skips a step that overflowed and halves its scale: a scale near 0 means always
        if math.isfinite(means["loss"]) and (
            math.isfinite(norm) if scaler is None else scaler.get_scale() >= SMALLEST_SCALE
        ):
            return
        photos = [name for batch in step_batches for name in batch.names]
        if self.accelerator.num_processes > 1:
            photos = gather_object(photos)
        self._save_state(self.out / "failed")
        terms = ", ".join(f"{name} {value:.4g}" for name, value in means.items())
        raise FloatingPointError(
            f"step {self.step}, phase {phase}: loss or gradient is not finite ({terms}, gradient {norm:.4g}). Photos: "
            f"{', '.join(dict.fromkeys(photos))}. The weights of that moment are in {self.out / 'failed'}, the last regular state "
            f"in {self.out / 'state'}. Lower lr, or set precision=no"
        )

    def _report(self, losses: dict[str, float]) -> None:
        if self.on_step:
            self.on_step(self.step, losses)
        if self.main and self.step % LOG_EVERY == 0:
            for name, value in losses.items():
                self.curves.add_scalar(name, value, self.step)

    def _show(self, progress: float, losses: dict[str, float]) -> None:
        if self.main:
            terms = " ".join(f"{name}={value:.4g}" for name, value in losses.items())
            pace = self.budget.seconds() / max(1, self.step)
            log.info("step %d (%.0f %%, %.2f s a step) %s", self.step, 100 * progress, pace, terms)

    def _measure(self) -> dict[str, Any]:
        """Validate the averaged weights on the main process; the others wait."""
        row: dict[str, Any] = {"step": self.step, "seconds": round(self.budget.seconds(), 1)}
        if self.main and self.validation is not None:
            with self.average.swapped_in(), self.accelerator.autocast():
                row |= self.validation(self._sample, self.step)
                row |= self.stage.measure(self.validation)
            for name, value in row.items():
                self.curves.add_scalar(f"validation/{name}", value, self.step)
            if self.validation.sheet is not None:
                self.curves.add_image("samples", self.validation.sheet, self.step, dataformats="HWC")
            log.info("validation %s", " ".join(f"{name}={value:.4g}" for name, value in row.items()))
            with (self.out / "log.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
        if self.main and self.settings.snapshots:
            self._write_model(self.out / "snapshots" / f"{self.step:07d}", row)
        self.stage.check(row)
        self.accelerator.wait_for_everyone()
        return row

    def _sample(self, lr: Tensor, hr: Tensor, k: int) -> Tensor:
        device = self.accelerator.device
        return self.stage.sample(lr.to(device), hr.to(device), k)

    def _save_state(self, folder: Path) -> None:
        if self.main:
            scaler = self.accelerator.scaler
            values = {
                "step": self.step,
                "phase_steps": self.phase_steps,
                "seconds": self.budget.seconds(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "about": self.about,
            }
            save_state(
                folder, {"trained": self.trained, "average": self.average}, self.raw_optimizers, values
            )
        self.accelerator.wait_for_everyone()

    def _finish(self, last: dict[str, Any]) -> None:
        if self.main:
            self._write_model(self.out / self.stage.model_folder, last)
        self.accelerator.wait_for_everyone()

    def _write_model(self, folder: Path, last: dict[str, Any]) -> None:
        """The averaged weights, with what is known of the run. last: what was last measured."""
        provenance = {
            **self.about,
            **self.notes,
            "steps": self.step,
            "minutes": round(self.budget.seconds() / 60, 1),
            "photos": len(self.pairs.photos),
            "validation": last,
        }
        with self.average.swapped_in():
            self.stage.save(folder, provenance)


def make_accelerator(
    precision: str, *, several_phases: bool = True, device: str | None = None
) -> Accelerator:
    """ValueError where this device cannot do the precision; auto takes one that it can.

    several_phases: each leaves parameters of the others without gradient. device: "cpu", "cuda", "cuda:1" and so on; None: that of
    the runs before in this process, or else accelerate's choice."""
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
