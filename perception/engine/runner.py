"""The one runner: MMEngine's FlexibleRunner with our run folder, checkpoints, resume and signals."""

import inspect
import os
import uuid
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.runner import BaseLoop, FlexibleRunner
from mmengine.visualization import Visualizer
from torch import nn
from torch.utils.data import DataLoader

from perception.checkpoint import (
    CHECKPOINTS_DIR,
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)
from perception.engine.collectives import gather_json, max_over_ranks
from perception.engine.data_check import check_data
from perception.engine.data_loading import build_dataloader
from perception.engine.default_hooks import default_hooks
from perception.engine.eval_loop import EvalLoop
from perception.engine.hooks import TensorboardBackend
from perception.engine.jsonl_log import last_evaluation
from perception.engine.rank_failure import fail_together
from perception.engine.rank_state import gather_rank_states, load_stream_state
from perception.engine.rng import set_rng_state
from perception.engine.run_folder import (
    CONFIG_FILE,
    ENV_FILE,
    LOG_FILE,
    describe_environment,
    hash_config,
    peak_memory_mb,
    to_plain,
    update_summary,
)
from perception.engine.start_weights import read_start_weights
from perception.engine.strategies import DDPStrategy, SingleStrategy, class_of, has_ranks
from perception.engine.task_forwards import Plan, balancer_that_changes_the_model, prepare_model
from perception.engine.train_loop import TrainLoop
from perception.engine.training_state import check_resumable, dump_schedules, load_schedules
from perception.engine.vocabulary import check_vocabulary, read_vocabulary
from perception.engine.work_dir import WorkDirLock, check_free, holds_run, prepare_work_dir
from perception.registry import RUNNERS, SCOPE
from perception.utils import get_logger, write_json_atomic

logger = get_logger("engine")

_DEFAULT_SEED = 0
_TERMINATED = 143


class TrainingTerminated(SystemExit):
    """Training stopped by a signal after saving a checkpoint; the exit code is 143.

    Args:
        message: what happened.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_TERMINATED)
        self.message = message


@RUNNERS.register_module()
class PerceptionRunner(FlexibleRunner):
    """Trains and tests; see `FlexibleRunner` for the arguments.

    *Deviations* from MMEngine: the run folder is laid out as design.md says; checkpoints hold tensors and JSON-able
    values only and no config text is ever executed; a run stops and resumes at any step exactly; SIGTERM saves. The
    strategy, where none is given, is `DDPStrategy` under torchrun with more than one rank, else `SingleStrategy`.

    Attributes:
        should_stop: whether the run ends at the next step boundary.
        stop_signal: the signal that asked for it, 0 if none.
        last_log_line: the log's line of the last step.
        task_plan: groups of tasks that the model runs for one after the other; none: one forward for all.
    """

    stop_signal: int = 0
    should_stop: bool = False
    last_log_line: dict[str, Any]
    task_plan: Plan = ()
    _has_loaded: bool
    _train_loop: Any
    _val_loop: Any
    _test_loop: Any
    _stop_after: int | None = None
    _pending_rng: dict[str, Any] | None = None
    _train_seconds: float = 0.0
    _train_samples: int = 0

    @classmethod
    def from_cfg(cls, cfg: Config | ConfigDict | dict[str, Any]) -> "PerceptionRunner":
        """Build a runner from a config; the config itself is not changed.

        Raises:
            ValueError: an unknown top-level key.
            WorkDirError: the work directory can't be used.
        """
        cfg = cfg if isinstance(cfg, Config) else Config(dict(cfg))
        allowed = set(inspect.signature(cls.__init__).parameters) - {"self", "cfg"}
        unknown = sorted(set(cfg.keys()) - allowed)
        if unknown:
            raise ValueError(f"the config has unknown keys {unknown}; allowed: {sorted(allowed)}")
        options = {key: copy(cfg[key]) for key in cfg}
        work_dir = prepare_work_dir(options.setdefault("work_dir", "work_dirs/default"))
        randomness = dict(options.get("randomness") or {})
        if randomness.get("seed") is None:
            randomness["seed"] = _DEFAULT_SEED
        # MMEngine keeps loggers, hubs and visualizers by this name for the life of the process.
        name = options.get("experiment_name") or work_dir.name
        options.update(
            work_dir=str(work_dir),
            randomness=randomness,
            experiment_name=f"{name}-{uuid.uuid4().hex[:8]}",
            launcher="pytorch" if has_ranks(options.get("strategy")) else "none",
            env_cfg=options.get("env_cfg") or {},
            default_scope=options.get("default_scope") or SCOPE,
        )
        runner = cls(**options, cfg=cfg)
        runner.convert_for(cfg.get("optim_wrapper"))
        return runner

    def convert_for(self, optim_wrapper: Mapping[str, Any] | None) -> None:
        """Give the model the form in which an optimiser wrapper's balancing method trains it; before it is built.

        Args:
            optim_wrapper: config of the wrapper that trains or trained the model.

        Raises:
            ValueError: the balancer can't be built; when the model is built, that it does not fit.
        """
        balancer = balancer_that_changes_the_model(optim_wrapper)
        if balancer is None:
            return

        def convert(model: nn.Module) -> nn.Module:
            prepared = prepare_model(balancer, model)
            self.task_plan = balancer.plan
            return prepared

        self.strategy.convert = convert

    # ------------------------------------------------------------------ building

    def build_strategy(self, strategy: Any = None, launcher: str = "none", **kwargs: Any) -> Any:
        """The given strategy, or the one that the launcher calls for.

        Raises:
            ValueError: a strategy for one process under a launcher of several.
        """
        if strategy is None:
            strategy = dict(type=SingleStrategy if launcher == "none" else DDPStrategy)
        kind = class_of(strategy)
        strategy = {**strategy, "type": kind} if isinstance(strategy, dict) else strategy
        if launcher != "none" and kind is SingleStrategy:
            raise ValueError(
                f"strategy is SingleStrategy, but WORLD_SIZE is {os.environ.get('WORLD_SIZE')}. "
                "Use DDPStrategy or leave strategy out"
            )
        return super().build_strategy(strategy, launcher=launcher, **kwargs)

    def build_visualizer(self, visualizer: Any = None) -> Visualizer:
        """TensorBoard in the run folder's `tensorboard`, unless the config names a visualizer."""
        if visualizer is None:
            folder = os.path.join(self.work_dir, "tensorboard")
            visualizer = dict(type=Visualizer, vis_backends=[dict(type=TensorboardBackend, save_dir=folder)])
        if isinstance(visualizer, dict):
            visualizer = {"type": Visualizer, **visualizer}
        return super().build_visualizer(visualizer)

    @staticmethod
    def build_dataloader(
        dataloader: Any, seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        """See `perception.engine.data_loading.build_dataloader`."""
        rank = int(os.environ.get("RANK", 0))
        return build_dataloader(dataloader, seed=seed or _DEFAULT_SEED, rank=rank)

    def build_train_loop(self, loop: Any) -> Any:
        """`TrainLoop`, unless the config names a type."""
        if isinstance(loop, dict) and "type" not in loop:
            return TrainLoop(self, self._train_dataloader, **loop)
        return super().build_train_loop(loop)

    def build_val_loop(self, loop: Any) -> Any:
        """`EvalLoop`, unless the config names a type."""
        if isinstance(loop, dict) and "type" not in loop:
            return EvalLoop(self, self._val_dataloader, self._val_evaluator, mode="val", **loop)
        return super().build_val_loop(loop)

    def build_test_loop(self, loop: Any) -> Any:
        """`EvalLoop`, unless the config names a type."""
        if isinstance(loop, dict) and "type" not in loop:
            return EvalLoop(self, self._test_dataloader, self._test_evaluator, mode="test", **loop)
        return super().build_test_loop(loop)

    def register_default_hooks(self, hooks: dict[str, Any] | None = None) -> None:
        """Our hooks; the config changes one by its name, or leaves it out with None.

        Raises:
            ValueError: an unknown name.
        """
        for hook in default_hooks(hooks or {}):
            self.register_hook(hook)

    def get_hooks_info(self) -> str:
        """Names of the hooks, in one line."""
        return ", ".join(type(hook).__name__ for hook in self.hooks)

    def dump_config(self) -> None:
        """Nothing here: `train` writes `config.json` once it holds the work directory."""

    def _log_env(self) -> None:
        """Nothing here: `train` writes `env.json`."""

    # ------------------------------------------------------------------ running

    @fail_together()
    def train(self, *, stop_after: int | None = None) -> nn.Module:
        """Train, from the start or from a checkpoint (`resume=True` in the config).

        Args:
            stop_after: save and return after this step, as a signal would stop the run.

        Raises:
            WorkDirError: another process uses the work directory, or it holds a run and `resume` is not set.
            CheckpointError: the checkpoint is damaged or does not fit, or a save failed.
            FloatingPointError: too many non-finite steps in a row.
            TrainingTerminated: SIGTERM or SIGUSR1 came; a checkpoint was saved.
            RankFailure: another rank failed.
        """
        self._stop_after = stop_after
        self.last_log_line = {}
        self.call_hook("at_start")
        lock: AbstractContextManager = WorkDirLock(self.work_dir) if self.rank == 0 else nullcontext()
        with lock:
            if not self._resume:
                check_free(self.work_dir)
            if self.rank == 0:
                write_json_atomic(os.path.join(self.work_dir, CONFIG_FILE), to_plain(self.cfg.to_dict()))
                write_json_atomic(os.path.join(self.work_dir, ENV_FILE), describe_environment())
            try:
                with self.strategy.training():
                    model = super().train()
                self._write_train_summary()
            finally:
                self._close_hooks()
        if self.stop_signal:
            raise TrainingTerminated(f"stopped by signal {self.stop_signal} at step {self.iter}")
        return model

    @fail_together()
    def test(self) -> dict[str, Any]:
        """Evaluate on the test loader; returns the metrics, the same on every rank.

        Raises:
            RankFailure: another rank failed.
        """
        self.call_hook("at_start")
        return super().test()

    @property
    def bare_model(self) -> nn.Module:
        """The model without its distributed wrapper."""
        return self.strategy.bare_model

    def poll_stop_request(self) -> bool:
        """Agree with all ranks on whether to stop. Every rank must call this at the same point."""
        if not self.stop_signal:
            self.stop_signal = max_over_ranks(self.local_stop_signal(), what="whether to stop")
        has_reached = self._stop_after is not None and self.iter >= self._stop_after
        self.should_stop = bool(self.stop_signal) or has_reached
        return self.should_stop

    def local_stop_signal(self) -> int:
        """The signal that this process received, 0 if none; the signal hook replaces this."""
        return 0

    def count_step(self, *, seconds: float, data_batch: Any) -> None:
        """Add a step to the run's throughput."""
        self._train_seconds += seconds
        self._train_samples += self.train_dataloader.batch_size * self.world_size

    def accept_subsets(self) -> None:
        """Tell the metrics that they see a part of their split only."""
        if self._val_loop is not None:
            self._val_loop = self.build_val_loop(self._val_loop)
        if self._test_loop is not None:
            self._test_loop = self.build_test_loop(self._test_loop)
        for loop in (self._val_loop, self._test_loop):
            for metric in [] if loop is None else loop.evaluator.metrics:
                if hasattr(metric, "is_subset"):
                    metric.is_subset = True

    @fail_together()
    def evaluate_now(self) -> dict[str, Any]:
        """Run the validation loop once, after `train` has returned; nothing if there is none."""
        self._stop_after, self.should_stop = None, False
        try:
            return {} if self.val_loop is None else self.val_loop.run()
        finally:
            self._close_hooks()

    # ------------------------------------------------------------------ checkpoints

    def save_training_state(self, *, max_keep: int) -> Path:
        """Save everything that a resume needs; all ranks call this.

        Raises:
            CheckpointError: on every rank, if the main rank could not save.
        """
        rank_states = gather_rank_states(self.bare_model, self.train_loop.dataloader.sampler)
        folder = Path(self.work_dir) / CHECKPOINTS_DIR
        path, error = None, None
        # Gathered from all ranks where they are sharded.
        model_state, optimizer_state = self.strategy.model_state_dict(), self.strategy.optim_state_dict()
        if self.rank == 0:
            try:
                path = save_checkpoint(
                    folder,
                    step=self.iter,
                    model_state=model_state,
                    optimizer_state=optimizer_state,
                    state=self._describe_state(),
                    max_keep=max_keep,
                    **rank_states,
                )
            except CheckpointError as caught:
                error = caught
        told = gather_json(None if error is None else error.message, what="end of the save")[0]
        if error is not None:
            raise error
        if told is not None:
            raise CheckpointError(f"the main rank could not save: {told}", path=folder)
        path = path or folder / f"step_{self.iter:08d}"
        self.optim_wrapper.last_checkpoint = path
        self.call_hook("after_checkpoint", path=path)
        return path

    def load_or_resume(self) -> None:
        """Continue from a checkpoint, or take weights from one, as the config says; nothing of it is executed.

        Raises:
            CheckpointError: damaged, or classes, tasks, weights or the way of running differ.
            ConfigError: the classes or cameras of data sets and model differ.
        """
        if self._has_loaded:
            return
        check_data(self.bare_model, self._datasets(), self._metrics())
        self._prepare_balancer()
        source = self._resume if isinstance(self._resume, str) else None
        if self._resume is True:
            # A run that started from other weights (load_from) goes on from its own checkpoints.
            source = self.work_dir if holds_run(self.work_dir) else self._load_from
            if source is None:
                logger.info("resume: %s holds no checkpoint yet, starting from the beginning", self.work_dir)
                return
        if source is not None and not isinstance(source, Mapping):  # one per group are weights to start from
            self.resume(source)
        elif self._load_from is not None:
            self.load_checkpoint(self._load_from)
        self._has_loaded = True

    def load_checkpoint(self, filename: str | Mapping[str, str], **_: Any) -> None:
        """Take the weights of a checkpoint, or of one per group of tasks; see `read_start_weights`."""
        weights, path = read_start_weights(filename, self.bare_model, self._vocabulary())
        self.strategy.load_model_state_dict(weights, path=path)
        logger.info("weights loaded from %s", path)

    def resume(self, filename: str, **_: Any) -> None:
        """Put model, optimiser, schedules and position back; the generators follow before the first step."""
        checkpoint: Checkpoint = load_checkpoint(filename)
        state, path = checkpoint.state, checkpoint.path
        check_vocabulary(self._vocabulary(), state, path=path)
        here = self._describe_state()
        check_resumable(here, state, path=path)
        sampler = self.train_loop.dataloader.sampler
        load_stream_state(self.bare_model, sampler, checkpoint.stream_states, path=path)
        if state["config_hash"] != here["config_hash"]:
            logger.warning("the config differs from the one that wrote %s; the present one is used", path)
        self.strategy.load_model_state_dict(checkpoint.model_state, path=str(path))
        self.strategy.load_optim_state_dict(checkpoint.optimizer_state)
        load_schedules(self.param_schedulers, state["schedules"], path=path)
        self.train_loop.resume_at(checkpoint.step)
        self.optim_wrapper.resume_at(checkpoint.step, max_steps=self.max_iters)
        self.optim_wrapper.last_checkpoint = path
        self._pending_rng = checkpoint.rng_states[self.rank]
        self._train_seconds, self._train_samples = float(state["train_seconds"]), int(state["train_samples"])
        logger.info("resumed from %s at step %d", path, checkpoint.step)

    def restore_pending_rng(self) -> None:
        """Put the generators into the checkpoint's state; called right before the first step."""
        if self._pending_rng is not None:
            set_rng_state(self._pending_rng)
            self._pending_rng = None

    def has_pending_evaluation(self, step: int, *, is_due: bool) -> bool:
        """Whether an evaluation due at this step was cut off: the log has no line of it."""
        if not is_due:
            return False
        is_pending = self.rank == 0 and last_evaluation(Path(self.work_dir) / LOG_FILE, step=step) is None
        return max_over_ranks(int(is_pending)) == 1

    # ------------------------------------------------------------------ details

    def _close_hooks(self) -> None:
        for hook in self.hooks:
            if hasattr(hook, "close"):
                hook.close()

    def _describe_state(self) -> dict[str, Any]:
        loop = self.train_loop
        return {
            "step": loop.iter,
            "epoch": loop.epoch,
            "sampler": {"epoch": loop.epoch, "num_consumed": loop.batch_idx * loop.dataloader.batch_size},
            "world_size": self.world_size,
            "batch_size": loop.dataloader.batch_size,
            "num_samples": len(loop.dataloader.dataset),
            "seed": self.seed,
            "accumulative_counts": self.optim_wrapper._accumulative_counts,
            "precision": self.optim_wrapper.precision,
            "strategy": type(self.strategy).__name__,
            "config_hash": hash_config(self.cfg.to_dict()),
            "schedules": dump_schedules(self.param_schedulers),
            "train_seconds": self._train_seconds,
            "train_samples": self._train_samples,
            **self._vocabulary(),
        }

    def _prepare_balancer(self) -> None:
        """Tell the balancing method of the run, before it takes a state; nothing if the run does not train."""
        balanced = getattr(getattr(self, "optim_wrapper", None), "balanced", None)
        if balanced is None or not isinstance(self._train_loop, BaseLoop):
            return
        balanced.prepare(
            self.bare_model,
            getattr(self.bare_model, "task_names", ()),
            max_epochs=self.max_epochs,
            total_steps=-(-self.max_iters // self.optim_wrapper._accumulative_counts),
            seed=self.seed,
        )

    def _vocabulary(self) -> dict[str, Any]:
        return read_vocabulary(self.bare_model, next(iter(self._datasets().values()), None))

    def _datasets(self) -> dict[str, Any]:
        """Datasets of the loops that have been built, by the names of their loaders."""
        loops = {"train": self._train_loop, "val": self._val_loop, "test": self._test_loop}
        return {
            f"{name}_dataloader": loop.dataloader.dataset
            for name, loop in loops.items()
            if hasattr(loop, "dataloader")
        }

    def _metrics(self) -> dict[str, Any]:
        """Likewise what scores them."""
        loops = {"val": self._val_loop, "test": self._test_loop}
        return {
            f"{name}_dataloader": loop.evaluator.metrics
            for name, loop in loops.items()
            if hasattr(loop, "evaluator")
        }

    def _write_train_summary(self) -> None:
        memory = max_over_ranks(round(peak_memory_mb()))
        num_bad = max_over_ranks(getattr(self.train_dataloader.dataset, "num_skipped", 0))
        if self.rank != 0:
            return
        update_summary(
            self.work_dir,
            {
                "steps": self.iter,
                "seconds": {"train": round(self._train_seconds, 2)},
                "samples_per_second": round(self._train_samples / max(self._train_seconds, 1e-9), 4),
                "peak_memory_mb": memory,
                "num_skipped_steps": self.optim_wrapper.num_skipped,
                "num_replaced_samples": num_bad,  # on_error="skip"; the most of any rank
            },
        )
