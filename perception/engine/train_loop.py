"""The training loop: by epochs or by iterations, resumable at any step."""

import time
from collections.abc import Iterable
from typing import Any

from mmengine.runner.base_loop import BaseLoop
from torch import nn

from perception.engine.lost_workers import name_lost_samples
from perception.engine.norm_statistics import average_norm_statistics
from perception.engine.rank_notes import at
from perception.engine.rank_state import check_stream_model
from perception.engine.rng import isolated_rng
from perception.engine.step_context import StepContext
from perception.engine.task_forwards import train_by_groups
from perception.registry import LOOPS
from perception.utils import get_logger

logger = get_logger("engine")

WARM_UP_STEPS = 3
"""Steps of a start, and batches of an evaluation, in which a rank may keep others waiting: for compilers and caches."""


@LOOPS.register_module()
class TrainLoop(BaseLoop):
    """Runs epochs of the training loader until `max_epochs` or `max_iters`.

    *Deviation* from MMEngine, which has two loops: here iteration-based training knows its epochs too, so epoch
    schedules work in both; and the position inside an epoch is state, so a resume reads no batch twice. After each
    step, when everything is consistent, hooks get `at_step_boundary(runner)`: checkpoints and signals belong there.

    Args:
        runner: the runner.
        dataloader: the training loader or its config; its sampler must be an `EpochSampler` or a `StreamSampler`.
        by_epoch: whether `val_interval` and `val_begin` count epochs (else iterations).
        max_epochs: end of training if `by_epoch`.
        max_iters: end of training if not `by_epoch`.
        val_interval: evaluate every so many epochs or iterations, and at the end; None only at the end, 0 never.
        val_begin: no evaluation before this epoch or iteration.

    Raises:
        ValueError: the limits contradict `by_epoch`, `val_interval` is negative, or the sampler can't be positioned.
    """

    def __init__(
        self,
        runner: Any,
        dataloader: Any,
        *,
        by_epoch: bool = True,
        max_epochs: int | None = None,
        max_iters: int | None = None,
        val_interval: int | None = None,
        val_begin: int = 1,
    ) -> None:
        limit = max_epochs if by_epoch else max_iters
        if limit is None or limit < 1 or (max_iters if by_epoch else max_epochs) is not None:
            raise ValueError(
                f"train_cfg has by_epoch={by_epoch}, max_epochs={max_epochs}, max_iters={max_iters}; allowed: "
                "by_epoch=True with max_epochs >= 1, or by_epoch=False with max_iters >= 1"
            )
        if val_interval is not None and val_interval < 0:
            raise ValueError(
                f"train_cfg has val_interval={val_interval}; allowed: 1 or more, None (at the end only), 0 (never)"
            )
        super().__init__(runner, dataloader)
        if not hasattr(self.dataloader.sampler, "set_position"):
            raise ValueError(
                f"the training sampler is {type(self.dataloader.sampler).__name__}, which cannot be resumed in "
                "mid-epoch. Use sampler=dict(type=EpochSampler)"
            )
        self.by_epoch = by_epoch
        self.epoch_length = len(self.dataloader)
        if self.epoch_length == 0:
            raise ValueError(
                f"the training set has {len(self.dataloader.dataset)} samples, less than one batch of "
                f"{self.dataloader.batch_size} on each rank with drop_last. Use a smaller batch_size"
            )
        self._max_iters = int(limit) * self.epoch_length if by_epoch else int(limit)
        self._max_epochs = -(-self._max_iters // self.epoch_length)
        self.val_interval = val_interval
        self.val_begin = val_begin
        self._iter = 0
        self.first_iter = 0
        self.stop_training = False
        self.data_time = 0.0

    @property
    def max_epochs(self) -> int:
        """Number of epochs, a last partial one counted."""
        return self._max_epochs

    @property
    def max_iters(self) -> int:
        """Number of steps in all."""
        return self._max_iters

    @property
    def iter(self) -> int:
        """Finished steps."""
        return self._iter

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return self._iter // self.epoch_length

    @property
    def batch_idx(self) -> int:
        """Finished steps of the current epoch."""
        return self._iter % self.epoch_length

    @property
    def is_finished(self) -> bool:
        """Whether no step is left."""
        return self._iter >= self._max_iters or self.stop_training

    def resume_at(self, step: int) -> None:
        """Continue after `step` finished steps."""
        self._iter = self.first_iter = step

    def run(self) -> nn.Module:
        """Train to the end, or until the runner is told to stop.

        Raises:
            DataError: a loader worker died; names the sample that it was reading.
        """
        with name_lost_samples(self.dataloader):
            return self._run()

    def _run(self) -> nn.Module:
        runner = self.runner
        check_stream_model(runner.bare_model, self.dataloader.sampler)
        runner.call_hook("before_train")
        if runner.has_pending_evaluation(self._iter, is_due=self._iter > 0 and self._is_evaluation_due()):
            self._evaluate()
        while not self.is_finished and not runner.should_stop:
            self._run_epoch()
        at("the end of training", is_slow=True)
        runner.call_hook("after_train")
        return runner.model

    def _run_epoch(self) -> None:
        runner = self.runner
        at(f"the start of epoch {self.epoch + 1}", is_slow=True)
        runner.call_hook("before_train_epoch")
        runner.model.train()
        num_consumed = self.batch_idx * self.dataloader.batch_size
        self.dataloader.sampler.set_position(epoch=self.epoch, num_consumed=num_consumed)
        epoch = self.epoch
        for data_batch in self._timed(self.dataloader):
            self._run_step(data_batch)
            if self.is_finished or runner.should_stop or self.epoch != epoch:
                break

    @property
    def _is_warming_up(self) -> bool:
        return self._iter < self.first_iter + WARM_UP_STEPS

    def _timed(self, dataloader: Iterable[Any]) -> Iterable[Any]:
        iterator = iter(dataloader)
        while True:
            start = time.perf_counter()
            is_slow = self._is_warming_up or self.batch_idx == 0  # new workers
            at(f"the wait for step {self._iter + 1}'s batch", is_slow=is_slow)
            try:
                data_batch = next(iterator)
            except StopIteration:
                return
            self.data_time = time.perf_counter() - start
            yield data_batch

    def _run_step(self, data_batch: Any) -> None:
        runner = self.runner
        batch_idx = self.batch_idx
        at(f"step {self._iter + 1}", is_slow=self._is_warming_up)
        runner.restore_pending_rng()
        runner.call_hook("before_train_iter", batch_idx=batch_idx, data_batch=data_batch)
        outputs = self._train_step(data_batch)
        average_norm_statistics(runner.bare_model)
        runner.call_hook("after_train_iter", batch_idx=batch_idx, data_batch=data_batch, outputs=outputs)
        if batch_idx + 1 == self.epoch_length:
            runner.call_hook("after_train_epoch")
        self._iter += 1
        runner.call_hook("at_step_boundary")
        if not runner.should_stop and self._is_evaluation_due():
            self._evaluate()

    def _train_step(self, data_batch: Any) -> dict[str, Any]:
        runner, step = self.runner, self._iter + 1
        if runner.task_plan:
            return train_by_groups(runner.bare_model, data_batch, runner.optim_wrapper, step=step)
        context = StepContext(step=step, model=runner.bare_model, data_batch=data_batch)
        runner.optim_wrapper.begin_step(context)
        return runner.model.train_step(data_batch, optim_wrapper=runner.optim_wrapper)

    def _is_evaluation_due(self) -> bool:
        if self.val_interval == 0 or self.runner.val_loop is None:
            return False
        if self.by_epoch and self.batch_idx != 0:
            return False
        count = self.epoch if self.by_epoch else self._iter
        is_turn = self.val_interval is not None and count % self.val_interval == 0
        return count >= self.val_begin and (is_turn or self._iter == self._max_iters)

    def _evaluate(self) -> None:
        # Whether and when a run evaluates must not change how it trains: it draws from generators of its own, and every
        # rank's weights and statistics are the ones that it evaluates with.
        with isolated_rng():
            self.runner.val_loop.run()
        self.runner.model.train()
        if self.runner.should_stop:
            # The signal came during the evaluation; the last step boundary is still the state of everything.
            self.runner.call_hook("at_step_boundary")
