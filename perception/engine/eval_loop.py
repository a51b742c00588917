"""The evaluation loop, for validation and test alike."""

import time
from typing import Any, Literal

import torch
from mmengine.evaluator import Evaluator
from mmengine.runner.base_loop import BaseLoop

from perception.engine.collectives import max_over_ranks
from perception.engine.lost_workers import name_lost_samples
from perception.engine.precision import Precision, autocast, precision_of, resolve_precision
from perception.engine.rank_notes import at, exchange
from perception.engine.task_forwards import predict_by_groups
from perception.engine.train_loop import WARM_UP_STEPS
from perception.registry import LOOPS


@LOOPS.register_module()
class EvalLoop(BaseLoop):
    """Predicts every sample of the loader and computes the metrics.

    Ranks may have different numbers of batches, since scenes stay whole. They step together all the same, so that a
    stop request reaches every rank at the same batch. They hold the same weights and running statistics (see
    `average_norm_statistics`), so an evaluation changes neither.

    Args:
        runner: the runner.
        dataloader: the loader or its config.
        evaluator: an Evaluator, or configs of metrics.
        mode: which of MMEngine's hooks are called: those of validation or those of test.
        precision: of the forwards; None takes the training's (`optim_wrapper.precision`), fp32 without a training.

    Raises:
        ConfigError: a metric is set to another version or split than the loader's.
        DataError: a metric has nothing to score against.
    """

    def __init__(
        self,
        runner: Any,
        dataloader: Any,
        evaluator: Any,
        *,
        mode: Literal["val", "test"] = "val",
        precision: Precision | None = None,
    ) -> None:
        super().__init__(runner, dataloader)
        self.evaluator = evaluator if isinstance(evaluator, Evaluator) else runner.build_evaluator(evaluator)
        self.evaluator.dataset_meta = getattr(self.dataloader.dataset, "metainfo", None)
        for metric in self.evaluator.metrics:
            if hasattr(metric, "check_dataset"):
                metric.check_dataset(self.evaluator.dataset_meta or {})
        self.mode = mode
        self.precision = (
            precision_of(runner.optim_wrapper) if precision is None else resolve_precision(precision)
        )
        self.seconds = 0.0

    def run(self) -> dict[str, Any]:
        """Evaluate; returns the metrics, the same on every rank, or nothing if a stop was requested.

        Raises:
            DataError: a loader worker died; names the sample that it was reading.
        """
        with name_lost_samples(self.dataloader):
            return self._run()

    def _run(self) -> dict[str, Any]:
        start = time.perf_counter()
        runner = self.runner
        at("the start of an evaluation", is_slow=True)
        runner.call_hook(f"before_{self.mode}")
        runner.call_hook(f"before_{self.mode}_epoch")
        runner.model.eval()
        if hasattr(runner.bare_model, "reset_history"):
            runner.bare_model.reset_history()
        iterator = iter(self.dataloader)
        for batch_idx in range(max_over_ranks(len(self.dataloader), what="number of evaluation batches")):
            at(f"evaluation batch {batch_idx + 1}", is_slow=batch_idx < WARM_UP_STEPS)
            data_batch = next(iterator, None)
            if data_batch is not None:
                self._run_step(batch_idx, data_batch)
            if runner.poll_stop_request():
                for metric in self.evaluator.metrics:
                    metric.results.clear()
                return {}
        at("the scoring of an evaluation", is_slow=True)
        with exchange("results and metrics"):
            metrics = self.evaluator.evaluate(len(self.dataloader.dataset))
        self.seconds = time.perf_counter() - start
        runner.call_hook(f"after_{self.mode}_epoch", metrics=metrics)
        runner.call_hook(f"after_{self.mode}")
        return metrics

    @torch.no_grad()
    def _run_step(self, batch_idx: int, data_batch: Any) -> None:
        runner = self.runner
        runner.call_hook(f"before_{self.mode}_iter", batch_idx=batch_idx, data_batch=data_batch)
        step = runner.model.val_step if self.mode == "val" else runner.model.test_step
        with autocast(self.precision):
            outputs = predict_by_groups(runner.bare_model, runner.task_plan, step, data_batch)
        self.evaluator.process(data_samples=outputs, data_batch=data_batch)
        runner.call_hook(
            f"after_{self.mode}_iter", batch_idx=batch_idx, data_batch=data_batch, outputs=outputs
        )
