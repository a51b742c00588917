"""What the command line calls: train, test, predict, dry run."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate

from perception.checkpoint import check_path
from perception.engine.evaluation_parts import (
    evaluation_parts,
    write_sample_scores,
    writing_evaluator,
    writing_loader,
)
from perception.engine.jsonl_log import last_evaluation
from perception.engine.precision import autocast, precision_of
from perception.engine.run_folder import (
    LOG_FILE,
    METRICS_FILE,
    SAMPLES_FILE,
    headline_scores,
    to_plain,
    update_summary,
)
from perception.engine.runner import PerceptionRunner
from perception.engine.scene_sampler import SceneSampler, read_scene_tokens
from perception.engine.task_forwards import predict_by_groups
from perception.utils import get_logger, write_json_atomic

logger = get_logger("engine")


def train(cfg: Config, *, resume: bool = False) -> Path:
    """Train by a config; returns the run folder.

    Args:
        cfg: the config; not changed.
        resume: continue the run in `cfg.work_dir` (from the start if it has no checkpoint yet).

    Raises:
        WorkDirError: the work directory is in use, not writable, or holds a run and `resume` is not set.
        CheckpointError: as `PerceptionRunner.train`.
        FloatingPointError: as `PerceptionRunner.train`.
        TrainingTerminated: as `PerceptionRunner.train`.
    """
    runner = PerceptionRunner.from_cfg(_changed(cfg, resume=True) if resume else cfg)
    runner.train()
    if runner.rank == 0 and (metrics := _read_headlines(runner)):
        update_summary(runner.work_dir, metrics)
    return Path(runner.work_dir)


def evaluate(
    cfg: Config,
    model_path: str | Path | None = None,
    *,
    untrained: bool = False,
    subset: int | None = None,
    submission: str | Path | None = None,
) -> dict[str, Any]:
    """Evaluate on the test loader's data (the validation loader's, if there is no test loader).

    Writes `metrics.json`, `metrics_per_sample.json` and `summary.json` into `cfg.work_dir`; an untrained model's
    numbers go under `untrained` in the summary, a subset's nowhere but into `metrics_subset.json`.

    Args:
        cfg: the config; not changed.
        model_path: step folder, run folder or `.safetensors` file.
        untrained: evaluate freshly initialised weights instead.
        subset: evaluate this many samples from the beginning only; the numbers are not comparable.
        submission: only write the predictions of all samples into this folder, in the data set's submission format;
            nothing is scored.

    Raises:
        ConfigError: `submission` is given and no metric has such a format.
        ValueError: neither or both of `model_path` and `untrained`, or the config has nothing to evaluate on.
        CheckpointError: the checkpoint is damaged or does not fit.
    """
    if (model_path is None) != untrained:
        raise ValueError(
            "test: give either a model (step folder, run folder, .safetensors) or untrained=True"
        )
    changes: dict[str, Any] = {"load_from": None if model_path is None else str(check_path(model_path))}
    changes["test_dataloader"], changes["test_evaluator"] = evaluation_parts(cfg)
    if submission is not None:
        changes["test_dataloader"] = writing_loader(changes["test_dataloader"])
        changes["test_evaluator"] = writing_evaluator(changes["test_evaluator"], submission)
    changes["test_cfg"] = cfg.get("test_cfg") or {}
    if "type" not in changes["test_cfg"]:
        changes["test_cfg"] = {"precision": precision_of(cfg.get("optim_wrapper")), **changes["test_cfg"]}
    if subset is not None:
        changes["test_dataloader"] = _with_subset(changes["test_dataloader"], subset)
    runner = PerceptionRunner.from_cfg(_changed(_without_training(cfg), **changes, resume=False))
    runner.convert_for(cfg.get("optim_wrapper"))
    loop = runner.build_test_loop(runner._test_loop)
    runner._test_loop = loop
    if subset is not None:
        logger.warning(
            "only %d samples are evaluated: these numbers are not comparable", len(loop.dataloader.dataset)
        )
        runner.accept_subsets()
    is_whole = subset is None and submission is None and not untrained
    for metric in loop.evaluator.metrics:
        metric.keeps_sample_scores = is_whole
    metrics = to_plain(runner.test())
    if runner.rank == 0 and is_whole:
        write_sample_scores(Path(runner.work_dir) / SAMPLES_FILE, loop.evaluator.metrics, model_path)
    if runner.rank == 0 and submission is None:
        _write_metrics(Path(runner.work_dir), metrics, loop.seconds, model_path, untrained, subset)
    return metrics


def predict(
    cfg: Config,
    model_path: str | Path,
    *,
    dataset: Any | None = None,
    indices: Sequence[int] | None = None,
) -> Iterator[Any]:
    """Data samples with predictions, scene by scene in the order of time.

    Args:
        cfg: the config; not changed.
        model_path: step folder, run folder or `.safetensors` file.
        dataset: a dataset in evaluation mode; by default that of the config's test or validation loader.
        indices: only these samples, in this order.

    Raises:
        CheckpointError: the checkpoint is damaged or does not fit.
    """
    with tempfile.TemporaryDirectory(prefix="perception-predict-") as folder:
        bare = _changed(
            _without_training(cfg), load_from=str(check_path(model_path)), resume=False, work_dir=folder
        )
        for name in ("val", "test"):
            for part in ("dataloader", "evaluator", "cfg"):
                bare.pop(f"{name}_{part}", None)
        bare["visualizer"] = dict(vis_backends=[])
        runner = PerceptionRunner.from_cfg(bare)
        runner.convert_for(cfg.get("optim_wrapper"))
        runner.strategy.prepare(runner.model)
        runner.load_or_resume()
    model = runner.bare_model.eval()
    precision = precision_of(cfg.get("optim_wrapper"))
    if dataset is None:
        loader, _ = evaluation_parts(cfg)
        dataset = runner.build_dataloader(dict(loader, num_workers=0), seed=runner.seed).dataset
    if hasattr(model, "reset_history"):
        model.reset_history()
    order = list(indices) if indices is not None else list(_in_scene_order(dataset))
    for index in order:
        with torch.no_grad(), autocast(precision):
            batch = pseudo_collate([dataset[index]])
            results = predict_by_groups(model, runner.task_plan, model.test_step, batch)
        yield from results


def rehearse(cfg: Config) -> dict[str, Any]:
    """Dry run: two training steps with a save and a resume between them, and two evaluation steps.

    Everything is written beside the run folder, to `<name>.dry-run`, which is removed. (Not to a random temporary
    folder: all ranks must find the same one.)

    Returns:
        The metrics of the two evaluation steps; empty if the config has no validation loop.

    Raises:
        Exception: whatever a real run would raise.
    """
    run_folder = Path(cfg.get("work_dir", "work_dirs/default")).absolute()
    with _scratch_folder(run_folder.with_name(f"{run_folder.name}.dry-run")) as folder:
        small = _changed(cfg, work_dir=folder, visualizer=dict(vis_backends=[]))
        if small.get("val_dataloader") is not None:
            batch_size = small["val_dataloader"].get("batch_size", 1)
            small["val_dataloader"] = _with_subset(small["val_dataloader"], 2 * batch_size)
        for step in (1, 2):
            # Schedules keep the whole run's length; the run is only stopped early.
            runner = PerceptionRunner.from_cfg(_changed(small, resume=step > 1))
            runner.accept_subsets()
            runner.train(stop_after=step)
            logger.info("dry run: trained step %d and saved%s", step, "" if step == 1 else ", after a resume")
        metrics = runner.evaluate_now()
        logger.info("dry run: evaluated 2 batches, %d metrics", len(metrics))
    return metrics


@contextmanager
def _scratch_folder(folder: Path) -> Iterator[str]:
    is_main = int(os.environ.get("RANK", 0)) == 0
    if is_main:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        yield str(folder)
    finally:
        if is_main:
            shutil.rmtree(folder, ignore_errors=True)


def _changed(cfg: Config, **changes: Any) -> Config:
    return Config({**{key: cfg[key] for key in cfg}, **changes})


def _without_training(cfg: Config) -> Config:
    dropped = ("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler", "auto_scale_lr",
               "val_dataloader", "val_evaluator", "val_cfg")  # fmt: skip
    return Config({key: cfg[key] for key in cfg if key not in dropped})


def _with_subset(loader: Any, num_samples: int) -> dict[str, Any]:
    return {**loader, "dataset": {**loader["dataset"], "indices": num_samples}}


def _in_scene_order(dataset: Any) -> Iterator[int]:
    try:
        read_scene_tokens(dataset)
    except ValueError:
        return iter(range(len(dataset)))
    return iter(SceneSampler(dataset, rank=0, world_size=1))


def _read_headlines(runner: PerceptionRunner) -> dict[str, Any]:
    # From the run's own log: a metrics.json may lie there from an evaluation of something else.
    last = last_evaluation(Path(runner.work_dir) / LOG_FILE, step=runner.iter)
    return {} if last is None else headline_scores(last["metrics"])


def _write_metrics(
    folder: Path,
    metrics: dict[str, Any],
    seconds: float,
    model_path: str | Path | None,
    untrained: bool,
    subset: int | None,
) -> None:
    headlines = headline_scores(metrics)
    details = {
        "model": None if model_path is None else str(model_path),
        "subset": subset,
        "comparable": subset is None,
    }
    if subset is not None:
        write_json_atomic(folder / "metrics_subset.json", {**metrics, **details})
    elif untrained:
        write_json_atomic(folder / "metrics_untrained.json", {**metrics, **details})
        update_summary(folder, {"untrained": headlines, "seconds": {"evaluate_untrained": seconds}})
    else:
        write_json_atomic(folder / METRICS_FILE, {**metrics, **details})
        update_summary(folder, {**headlines, "seconds": {"evaluate": seconds}})
