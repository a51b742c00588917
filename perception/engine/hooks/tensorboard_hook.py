"""Losses and metrics to TensorBoard."""

from collections.abc import Mapping
from itertools import permutations
from typing import Any

from mmengine.hooks import Hook
from mmengine.visualization import TensorboardVisBackend

from perception.registry import HOOKS, VISBACKENDS


@VISBACKENDS.register_module()
class TensorboardBackend(TensorboardVisBackend):
    """MMEngine's TensorBoard backend without the config text, which `config.json` has."""

    def add_config(self, config: Any, **kwargs: Any) -> None:
        """Leave the config out."""


@HOOKS.register_module()
class TensorboardHook(Hook):
    """Writes losses, task losses, gradient norm and learning rate every few steps, and metrics after evaluations.

    Args:
        interval: steps between points.
    """

    # After the log hook, whose line it writes.
    priority = "LOW"

    def __init__(self, *, interval: int = 10) -> None:
        self.interval = interval

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Mapping[str, Any] | None = None
    ) -> None:
        """Write the scalars of this step if it is its turn."""
        line = runner.last_log_line
        if runner.rank != 0 or not line or line["step"] % self.interval:
            return
        scalars = {
            **{f"loss/{key}": value for key, value in line["losses"].items()},
            **{f"task/{key}": value for key, value in line["tasks"].items()},
            "train/loss": line["loss"],
            "train/lr": line["lr"],
            "train/step_time": line["step_time"],
            "train/data_time": line["data_time"],
        }
        if line["grad_norm"] is not None:
            scalars["train/grad_norm"] = line["grad_norm"]
        if "loss_scale" in line:
            scalars["train/loss_scale"] = line["loss_scale"]
        balance = line.get("balance", {})
        scalars |= flatten_numbers(balance, prefix="balance") | flatten_projections(balance)
        runner.visualizer.add_scalars(scalars, step=line["step"])

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, Any] | None = None) -> None:
        """Write the metrics."""
        if runner.rank == 0:
            numbers = {
                f"val/{key}": float(value)
                for key, value in (metrics or {}).items()
                if isinstance(value, int | float)
            }
            if numbers:
                runner.visualizer.add_scalars(numbers, step=runner.iter)

    def after_run(self, runner: Any) -> None:
        """Flush and close the event file."""
        if runner.rank == 0:
            runner.visualizer.close()


def flatten_numbers(tree: Mapping[str, Any], *, prefix: str) -> dict[str, float]:
    """Numbers of a nested mapping by their path, "balance/cosines/det/seg"; everything else is left out."""
    flat: dict[str, float] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten_numbers(value, prefix=f"{prefix}/{key}")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[f"{prefix}/{key}"] = float(value)
    return flat


def flatten_projections(balance: Mapping[str, Any]) -> dict[str, float]:
    """Pairs of tasks by "balance/<method>/projected/<task>/<task>": 1 if the first lost its part against the second.

    Example:
        >>> balance = {"coefficients": {"det": 1.0, "seg": 1.5}, "WPCGrad": {"projected": [["seg", "det"]]}}
        >>> flatten_projections(balance)
        {'balance/WPCGrad/projected/det/seg': 0.0, 'balance/WPCGrad/projected/seg/det': 1.0}
    """
    return {
        f"balance/{name}/projected/{first}/{second}": float([first, second] in part["projected"])
        for name, part in balance.items()
        if isinstance(part, Mapping) and "projected" in part
        for first, second in permutations(balance["coefficients"], 2)
    }
