"""Measures consecutive steps: first how long they take, then what they consist of."""

import statistics
import time
from contextlib import ExitStack
from typing import Any

import torch
from mmengine.hooks import Hook

from perception.engine.part_timer import PartTimer
from perception.engine.peak_memory import PeakMemory
from perception.engine.step_table import breakdown
from perception.engine.timed_parts import LOADING, Watch
from perception.utils import Progress


class StepMeter:
    """Goes from warming up to totals to parts, told of each step's end.

    Args:
        model: the bare model.
        optim_wrapper: None for prediction.
        num_steps: of each stretch.
        num_warmup: before them.
    """

    def __init__(self, model: Any, *, optim_wrapper: Any, num_steps: int, num_warmup: int) -> None:
        device = next(model.parameters()).device
        self.num_steps = num_steps
        self.num_warmup = num_warmup
        self.model = model
        self.timer = PartTimer(device)
        self.watch = Watch(model, self.timer, optim_wrapper=optim_wrapper)
        self.memory = PeakMemory(device)
        self._device = device
        self._progress = Progress("Measuring", total=self.num_total, unit="steps")
        self._stack = ExitStack()
        self._count = 0
        self._num_samples = 0
        self._times: list[float] = []
        self._cpu = [0.0, 0.0]
        self._peak: dict[str, Any] = {}
        self._is_timing = False

    @property
    def num_total(self) -> int:
        """Steps in all."""
        return self.num_warmup + 2 * self.num_steps

    @property
    def is_finished(self) -> bool:
        """Whether all is measured."""
        return self._count >= self.num_total

    def start(self) -> None:
        """The first step begins."""
        if self.num_warmup == 0:
            self._start_totals()

    def batch_arrives(self, num_samples: int) -> None:
        """The loader has given the step's batch."""
        if self._is_timing:
            self.timer.leave()
        elif self._count >= self.num_warmup:
            self._num_samples += num_samples

    def step_ends(self) -> None:
        """A step is over, the next one begins."""
        self._count += 1
        counted = self._count - self.num_warmup
        if self._is_timing:
            self.timer.end_step()
        elif 0 < counted < self.num_steps:
            self._times.append(time.perf_counter())
        elif counted == self.num_steps:
            self._wait()
            self._times.append(time.perf_counter())
            self._cpu[1] = time.process_time()
            self._peak = self.memory.describe()
            self._stack.enter_context(self.watch.attached())
            self._is_timing = True
        elif counted == 0:
            self._start_totals()
        self._progress.advance()
        if self.is_finished:
            self.close()
            self._progress.close()
        elif self._is_timing:
            self.timer.begin_step()
            self.timer.enter(LOADING)

    def close(self) -> None:
        """Leave the model alone again."""
        self._is_timing = False
        self._stack.close()

    def result(self) -> dict[str, Any]:
        """What was measured, JSON-able."""
        cpu_seconds = self._cpu[1] - self._cpu[0]
        seconds = [after - before for before, after in zip(self._times, self._times[1:], strict=False)]
        parameters = list(self.model.parameters())
        return {
            "samples_per_second": round(self._num_samples / sum(seconds), 4),
            "ms_per_step": round(1e3 * statistics.fmean(seconds), 3),
            "ms_per_step_median": round(1e3 * statistics.median(seconds), 3),
            "cpu_ms_per_step": round(1e3 * cpu_seconds / self.num_steps, 3),
            "num_steps": self.num_steps,
            "num_warmup": self.num_warmup,
            "num_parameters": sum(parameter.numel() for parameter in parameters),
            "num_trained": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
            "device": str(self._device),
            "memory": self._peak,
            "breakdown": breakdown(self.watch),
        }

    def _start_totals(self) -> None:
        self.memory.restart()
        self._wait()
        self._times.append(time.perf_counter())
        self._cpu[0] = time.process_time()

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


class StepEndHook(Hook):
    """Measures a training run by the boundaries of its steps, and ends it when all is measured.

    Its priority is the lowest, so that what other hooks do at a step's end belongs to that step.

    Args:
        num_steps: as `StepMeter`.
        num_warmup: likewise.
    """

    priority = "LOWEST"

    def __init__(self, *, num_steps: int, num_warmup: int) -> None:
        self.num_steps = num_steps
        self.num_warmup = num_warmup
        self.meter: StepMeter | None = None

    def before_train(self, runner: Any) -> None:
        """Model and optimiser are there."""
        self.meter = StepMeter(
            runner.bare_model,
            optim_wrapper=runner.optim_wrapper,
            num_steps=self.num_steps,
            num_warmup=self.num_warmup,
        )
        self.meter.start()

    def at_step_boundary(self, runner: Any) -> None:
        """A step is over."""
        assert self.meter is not None  # set in before_train
        self.meter.step_ends()
        runner.should_stop = runner.should_stop or self.meter.is_finished


class BatchHook(Hook):
    """Tells the meter of `StepEndHook` that a batch has arrived, before any other hook does something with it."""

    priority = "HIGHEST"

    def __init__(self, step_end: StepEndHook) -> None:
        self.step_end = step_end

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """A batch has arrived."""
        assert self.step_end.meter is not None
        self.step_end.meter.batch_arrives(count_samples(data_batch))


def count_samples(batch: Any) -> int:
    """How many samples a collated batch holds."""
    return len(batch["data_samples"])
