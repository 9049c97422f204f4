"""The training loop of every stage, on accelerate: precision, several processes, accumulation, averages, budgets, checkpoints.

All random numbers are functions of (seed, item), see `training.randomness`. A state therefore holds only weights,
averages, optimizers and the step, and a resumed run gives the same weights as an uninterrupted one."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from training.checkpoint import has_state, load_state, read_values, save_state
from training.data.batches import Batch, Pairs, batches
from training.loop.accelerator import make_accelerator, mean_losses, set_tf32, vote
from training.loop.average import Average, Trained
from training.loop.best import Best
from training.loop.budget import Budget, Interrupt
from training.loop.optimizers import Optimizers
from training.loop.resume import check
from training.loop.run_log import RunLog
from training.loop.stage import Carry, RunSettings, Stage
from training.loop.validation import Validation
from training.model.text import PromptSource
from training.settings import to_dict

log = logging.getLogger("train")

# Scale of fp16's gradient scaler below which training has failed. It starts at 65536 and is halved at each overflow.
SMALLEST_SCALE = 1.0
# Seconds between lines of progress.
SHOW_SECONDS = 15.0


class Trainer:
    """Runs a stage until its budget is spent.

    stage: what is trained.
    settings: of the run.
    pairs: training pairs.
    out: run folder with config.json (written first), log.jsonl, tensorboard/, samples/, state/ and, at the end, model/;
        also snapshots/ and best/ if the settings ask for them.
    budget: when to end.
    prepare: completes a batch on the device before the stage sees it, such as with LR pictures.
    prompts: prompts of the photos, for stages that use them.
    validation: held-out photos; None for no validation.
    save_minutes: minutes between validations and saved states.
    workers: processes that prepare batches.
    about: further facts for config.json and the model's provenance. They must be equal when the run is resumed.
    notes: further facts that may change on resume.
    before: called in every process after the state is loaded and before the clock starts.
    on_step: called with the number of steps done and the losses (mean over processes) of the last one."""

    def __init__(
        self,
        stage: Stage,
        settings: RunSettings,
        pairs: Pairs,
        out: Path,
        budget: Budget,
        *,
        prepare: Callable[[Batch], Batch] | None = None,
        prompts: PromptSource | None = None,
        validation: Validation | None = None,
        save_minutes: float = 5.0,
        workers: int = 1,
        about: Mapping[str, Any] | None = None,
        notes: Mapping[str, Any] | None = None,
        before: Callable[[], None] | None = None,
        on_step: Callable[[int, dict[str, float]], None] | None = None,
    ) -> None:
        self.accelerator = make_accelerator(settings.precision, several_phases=len(stage.groups()) > 1)
        self.settings, self.pairs, self.out, self.budget = settings, pairs, out, budget
        self.prepare, self.prompts, self.validation, self.workers = prepare, prompts, validation, workers
        self.save_minutes, self.before, self.on_step = save_minutes, before, on_step
        self.notes = dict(notes or {})
        self.about = {
            **(about or {}),
            "processes": self.accelerator.num_processes,
            "settings": to_dict(settings),
        }
        set_tf32(self.accelerator.device, settings.tf32)
        wide = settings.memory_format == "channels_last"
        self.memory_format = torch.channels_last if wide else torch.contiguous_format
        # eval() turns dropout off, also in frozen networks
        self.stage = stage.to(self.accelerator.device, memory_format=self.memory_format).eval()
        self.trained = Trained(self.stage)
        self.average = Average(self.trained.of(stage.averaged()), settings.ema)
        self.optimizers = Optimizers(self.stage, settings)
        self.model = self.accelerator.prepare(self.stage)
        self.optimizers.prepare(self.accelerator)
        self.best = Best(settings)
        self.step = 0

    @property
    def main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    def run(self, *, resume: bool = False) -> dict[str, Any]:
        """Train. Returns the last validation, and `finished`: False if the user stopped the run (continue it with resume=True).

        Raises FloatingPointError if a loss or gradient is not finite; the weights of that moment are saved in out/failed."""
        # open: a fresh run, or where the last one stopped
        self._open(resume)
        if self.before:
            self.before()
        self.budget.start(self.budget.spent)
        next_save = self.budget.seconds() + 60.0  # the first one early, to see soon whether the model learns
        last: dict[str, Any] = {}
        shown, began = time.monotonic(), self.step
        # data: batches from that step on
        micro_steps = batches(
            self.pairs,
            self.prompts,
            self.settings.batch,
            start=self.step * self.settings.accumulate,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
            workers=self.workers,
            pin=self.accelerator.device.type == "cuda",
        )
        # steps, until the budget is spent or somebody asks to stop
        with Interrupt() as interrupt:
            while True:
                # agree: all processes stop and save at the same step
                due = self.budget.seconds() >= next_save or self._due(began)
                due = due and last.get("step") != self.step
                progress = 1.0 if self.best.exhausted else self.budget.progress(self.step)
                progress, stop, save = vote(self.accelerator, progress, interrupt.asked, due)
                if stop or progress >= 1.0:
                    break
                # save, and measure
                if save:
                    last = self._measure()
                    self._save_state(self.out / "state")
                    next_save = self.budget.seconds() + 60 * self.save_minutes
                    continue  # the validation may have been the last one
                # train
                step_batches = [self._prepared(next(micro_steps)) for _ in range(self.settings.accumulate)]
                losses = self._train_step(step_batches, progress)
                self.step += 1
                self._report(losses)
                if time.monotonic() - shown > SHOW_SECONDS or self.step == 1:
                    self._show(progress, losses)
                    shown = time.monotonic()
        self._save_state(self.out / "state")
        if not stop:
            last = last if last.get("step") == self.step else self._measure()
            self._finish(last)
        if self.main:
            self.log.close()
        return {**last, "step": self.step, "finished": not stop}

    def _prepared(self, batch: Batch) -> Batch:
        """The batch on the device, complete."""
        batch = batch.to(self.accelerator.device, self.memory_format)
        return self.stage.prepare(batch if self.prepare is None else self.prepare(batch))

    def _open(self, resume: bool) -> None:
        state = self.out / "state"
        if has_state(state) and not resume:
            raise FileExistsError(
                f"{self.out} already holds a run: continue it with --resume, or choose another --out"
            )
        if resume:
            self._resume(state)
        if self.main:
            self.log = RunLog(self.out, self.about | self.notes, self.step)
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
        check(self.out, read_values(state)["about"], self.about, type(self.settings)())
        values = load_state(state, {"trained": self.trained, "average": self.average}, self.optimizers.raw)
        self.step, self.budget.spent = values["step"], values["seconds"]
        self.optimizers.steps = values["phase_steps"]
        self.best.load_state_dict(values.get("best", self.best.state_dict()))
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(values["scaler"])

    def _due(self, began: int) -> bool:
        """Whether the number of steps asks for a validation. began: step at which this part of the run began."""
        every = self.settings.validate_steps
        return every > 0 and self.step > began and self.step % every == 0

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
            means = mean_losses(self.accelerator, parts)
            norm = self.optimizers.update(phase, progress, math.isfinite(means["loss"]))
            self._check_finite(phase, means, norm, step_batches)
            values |= {f"{phase}/{name}": value for name, value in means.items()}
            values |= {f"{phase}/grad": norm}
        self.average.update(self.step)
        return values

    def _check_finite(
        self, phase: str, means: dict[str, float], norm: float, step_batches: list[Batch]
    ) -> None:
        """Save the state and raise FloatingPointError if the loss or the gradient is not finite.

        phase: name of the phase.
        means: its losses, mean over batches and processes.
        norm: of its gradient.
        step_batches: batches of the step, whose photos the error names."""
        # A scaler skips overflowing steps and halves its scale, so a tiny scale means that every step overflows.
        scaler = self.accelerator.scaler
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
        if self.main:
            self.log.losses(self.step, losses)

    def _show(self, progress: float, losses: dict[str, float]) -> None:
        if self.main:
            terms = " ".join(f"{name}={value:.4g}" for name, value in losses.items())
            pace = self.budget.seconds() / max(1, self.step)
            log.info("step %d (%.0f %%, %.2f s a step) %s", self.step, 100 * progress, pace, terms)

    def _measure(self) -> dict[str, Any]:
        """Validate the averaged weights on the main process while the others wait."""
        row: dict[str, Any] = {"step": self.step, "seconds": round(self.budget.seconds(), 1)}
        if self.main and self.validation is not None:
            with self.average.swapped_in(), self.accelerator.autocast():
                row |= self.validation(self._sample, self.step)
                pictures = {"samples": self.validation.sheet}
                row |= self.stage.measure(self.validation)
                pictures |= self.stage.pictures(self.validation)
            self.log.validation(self.step, row, pictures)
        if self.main and self.validation is not None and self.best.update(row):
            self._write_model(self.out / "best", row)
        if self.main and self.settings.snapshots:
            self._write_model(self.out / "snapshots" / f"{self.step:07d}", row)
        self.stage.check(row)
        self.accelerator.wait_for_everyone()
        return row

    def _sample(self, lr: Tensor, hr: Tensor, k: int, prompts: Sequence[str] = ()) -> Tensor:
        device = self.accelerator.device
        return self.stage.sample(lr.to(device), hr.to(device), k, prompts)

    def _save_state(self, folder: Path) -> None:
        if self.main:
            scaler = self.accelerator.scaler
            values = {
                "step": self.step,
                "phase_steps": self.optimizers.steps,
                "seconds": self.budget.seconds(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "about": self.about,
                "best": self.best.state_dict(),
            }
            save_state(
                folder, {"trained": self.trained, "average": self.average}, self.optimizers.raw, values
            )
        self.accelerator.wait_for_everyone()

    def _finish(self, last: dict[str, Any]) -> None:
        if self.main:
            self._write_model(self.out / self.stage.model_folder, last)
            if (best := self.best).value is not None:
                log.info("best: step %d, %s %.5g, in best/", best.step, best.name, best.value)
        self.accelerator.wait_for_everyone()

    def _write_model(self, folder: Path, last: dict[str, Any]) -> None:
        """Save the averaged weights with the run's provenance. last: the last validation."""
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
