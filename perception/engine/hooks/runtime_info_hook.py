"""Tells components that don't know the runner at which step it is."""

from typing import Any

from mmengine.hooks import Hook

from perception.registry import HOOKS


@HOOKS.register_module()
class RuntimeInfoHook(Hook):
    """Writes epoch and iteration into MMEngine's message hub.

    *Deviation* from MMEngine's hook of the same name: no history of scalars and no config text is kept there; the log
    is `log.jsonl`.
    """

    priority = "VERY_HIGH"

    def before_train(self, runner: Any) -> None:
        """Write the run's length."""
        runner.message_hub.update_info_dict({"max_epochs": runner.max_epochs, "max_iters": runner.max_iters})
        self.before_train_epoch(runner)

    def before_train_epoch(self, runner: Any) -> None:
        """Write the epoch."""
        runner.message_hub.update_info_dict({"epoch": runner.epoch, "iter": runner.iter})

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Write the iteration."""
        runner.message_hub.update_info("iter", runner.iter)
