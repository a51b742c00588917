"""Tells the balancing method of epochs and scores."""

from collections.abc import Mapping
from typing import Any

from mmengine.hooks import Hook

from perception.engine.collectives import gather_json
from perception.engine.jsonl_log import last_evaluation
from perception.engine.run_folder import LOG_FILE
from perception.registry import HOOKS


@HOOKS.register_module()
class BalancerHook(Hook):
    """Begins and ends the balancer's epochs, and hands it each evaluation's scores.

    The checkpoint of a step is written before the evaluation at that step. So a resume from it finds the scores in the
    log, if the evaluation was done.
    """

    priority = "NORMAL"

    def before_train(self, runner: Any) -> None:
        """After a resume, hand over the scores of the evaluation at this very step."""
        found = None
        if runner.rank == 0 and runner.iter > 0:
            found = last_evaluation(f"{runner.work_dir}/{LOG_FILE}", step=runner.iter)
        told = gather_json(found)[0]
        if told is not None:
            runner.optim_wrapper.balanced.update_kpis(told["metrics"], step=runner.iter)

    def before_train_epoch(self, runner: Any) -> None:
        """Begin the epoch, counted from 1."""
        runner.optim_wrapper.balanced.begin_epoch(runner.epoch + 1)

    def after_train_epoch(self, runner: Any) -> None:
        """End the epoch."""
        runner.optim_wrapper.balanced.end_epoch()

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, Any] | None = None) -> None:
        """Hand over the scores; an evaluation outside training has no balancer to tell."""
        wrapper = getattr(runner, "optim_wrapper", None)
        if metrics and wrapper is not None and wrapper.balanced.task_names:
            wrapper.balanced.update_kpis(metrics, step=runner.iter)
