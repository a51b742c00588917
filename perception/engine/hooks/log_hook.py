"""The JSONL log and the progress lines."""

import time
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.hooks import Hook
from torch import Tensor

from perception.engine.jsonl_log import JsonlLog
from perception.engine.run_folder import METRICS_FILE, peak_memory_mb, to_plain
from perception.registry import HOOKS
from perception.utils import write_json_atomic


@HOOKS.register_module()
class LogHook(Hook):
    """Writes a line of `log.jsonl` per step and evaluation, and progress with ETA to the terminal.

    Only the main rank writes. Loss terms are those of its batch; task losses are those of the global batch.

    Args:
        interval_s: seconds between progress lines.
    """

    priority = "BELOW_NORMAL"

    def __init__(self, *, interval_s: float = 5.0) -> None:
        self.interval_s = interval_s
        self._log: JsonlLog | None = None
        self._last_progress = 0.0
        self._step_start = 0.0
        self._recent: list[float] = []
        self._eval_start = 0.0

    def before_train(self, runner: Any) -> None:
        """Open the log; on resume take back the lines after the checkpoint."""
        if runner.rank != 0:
            return
        self._log = JsonlLog(runner.work_dir)
        self._log.rewind(step=runner.iter)
        self._log.write({"kind": "event", "event": "resume" if runner.iter else "start", "step": runner.iter})

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Start the clock of the step."""
        self._step_start = time.perf_counter()

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write the step's line, and a progress line if it is time."""
        step_time = time.perf_counter() - self._step_start
        data_time = runner.train_loop.data_time
        runner.count_step(seconds=step_time + data_time, data_batch=data_batch)
        self._recent = [*self._recent[-49:], step_time + data_time]
        if self._log is None:
            return
        last = runner.optim_wrapper.last_step
        losses = _to_floats(outputs or {})
        line = {
            "kind": "train",
            "step": runner.iter + 1,
            "epoch": runner.epoch + 1,
            "lr": runner.optim_wrapper.optimizer.param_groups[0]["lr"],
            "loss": sum(last["tasks"].values()),
            "losses": {key: value for key, value in losses.items() if key != "loss"},
            **last,
            "data_time": round(data_time, 5),
            "step_time": round(step_time, 5),
            "memory_mb": round(peak_memory_mb(), 1),
        }
        self._log.write(line)
        runner.last_log_line = line
        now = time.perf_counter()
        is_last = runner.iter + 1 >= runner.max_iters
        if (
            now - self._last_progress >= self.interval_s
            or runner.iter == runner.train_loop.first_iter
            or is_last
        ):
            self._last_progress = now
            runner.logger.info(self._progress(runner, line))

    def after_checkpoint(self, runner: Any, path: Any) -> None:
        """Record a checkpoint and make the log durable with it."""
        if self._log is not None:
            self._log.write({"kind": "event", "event": "checkpoint", "step": runner.iter, "path": path.name})
            self._log.sync()

    def on_stop(self, runner: Any, signal_name: str) -> None:
        """Record why the run stops."""
        if self._log is not None:
            self._log.write({"kind": "event", "event": "signal", "step": runner.iter, "signal": signal_name})

    def before_val(self, runner: Any) -> None:
        """Start the clock of the evaluation."""
        self._eval_start = self._last_progress = time.perf_counter()

    before_test = before_val

    def after_val_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Write progress if it is time."""
        self._eval_progress(runner, batch_idx, len(runner.val_dataloader))

    def after_test_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Write progress if it is time."""
        self._eval_progress(runner, batch_idx, len(runner.test_dataloader))

    def after_val_epoch(self, runner: Any, metrics: dict[str, Any] | None = None) -> None:
        """Write the metrics to the log and to `metrics.json`."""
        if runner.rank != 0:
            return
        seconds = time.perf_counter() - self._eval_start
        metrics = to_plain(metrics or {})
        runner.logger.info(f"evaluation at step {runner.iter} ({seconds:.0f} s): {_format_metrics(metrics)}")
        write_json_atomic(f"{runner.work_dir}/{METRICS_FILE}", {**metrics, "step": runner.iter})
        if self._log is not None:
            self._log.write({"kind": "val", "step": runner.iter, "seconds": seconds, "metrics": metrics})

    def after_run(self, runner: Any) -> None:
        """Make the log durable."""
        if self._log is not None:
            self._log.sync()

    def close(self) -> None:
        """Close the log, however the run ended."""
        if self._log is not None:
            self._log.close()

    def _progress(self, runner: Any, line: Mapping[str, Any]) -> str:
        mean = sum(self._recent) / len(self._recent)
        remaining = (runner.max_iters - runner.iter - 1) * mean
        tasks = "  ".join(f"{task} {value:.4f}" for task, value in line["tasks"].items())
        norm = line["grad_norm"]
        return (
            f"step {line['step']}/{runner.max_iters}  epoch {line['epoch']}/{runner.max_epochs}  "
            f"loss {line['loss']:.4f} ({tasks})  grad {'-' if norm is None else f'{norm:.2f}'}  "
            f"lr {line['lr']:.2e}  {mean:.2f} s/step (data {line['data_time']:.2f})  "
            f"{line['memory_mb']:.0f} MiB  ETA {_format_seconds(remaining)}"
        )

    def _eval_progress(self, runner: Any, batch_idx: int, num_batches: int) -> None:
        now = time.perf_counter()
        if now - self._last_progress < self.interval_s or runner.rank != 0:
            return
        self._last_progress = now
        done = batch_idx + 1
        remaining = (now - self._eval_start) / done * (num_batches - done)
        runner.logger.info(f"evaluating {done}/{num_batches}  ETA {_format_seconds(remaining)}")


def _to_floats(outputs: Mapping[str, Any]) -> dict[str, float]:
    keys = [key for key, value in outputs.items() if isinstance(value, Tensor) and value.numel() == 1]
    if not keys:
        return {}
    # One copy from the device instead of one per loss.
    values = torch.stack([outputs[key].detach().float().reshape(()) for key in keys]).tolist()
    return dict(zip(keys, values, strict=True))


def _format_metrics(metrics: Mapping[str, Any]) -> str:
    numbers = {
        key: value for key, value in metrics.items() if isinstance(value, int | float) and "/" not in key
    }
    return "  ".join(f"{key} {value:.4f}" for key, value in numbers.items()) or "no numbers"


def _format_seconds(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
