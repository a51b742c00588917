"""How a model lives on its devices: `SingleStrategy` on one, `DDPStrategy` on one per rank.

Both are thin: they choose device and process group; checkpoints, resume and gradient reduction are the runner's and the
optimiser wrapper's, the same for every strategy.
"""

import atexit
import datetime
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch
import torch.distributed as dist
from mmengine._strategy import DDPStrategy as MMEngineDDPStrategy
from mmengine._strategy import SingleDeviceStrategy
from mmengine.dist import broadcast
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm

from perception.checkpoint import CheckpointError
from perception.engine.collectives import leave_process_group, max_over_ranks
from perception.engine.rank_failure import RankFailure
from perception.engine.rank_notes import exchange
from perception.engine.seconds import check_seconds
from perception.registry import STRATEGIES
from perception.utils import keep_freed_memory

_MAX_NAMED = 5


class _RunFolderMixin:
    """Text logs go to the run folder's `logs`, and state dicts are those of the bare model.

    Attributes:
        convert: initialised model → the one to train or evaluate; None: itself.
    """

    model: nn.Module
    convert: Callable[[nn.Module], nn.Module] | None = None
    _log_dir: str
    dispatch_kwargs: dict[str, Any]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not torch.cuda.is_available():
            keep_freed_memory()
        # MMEngine makes a folder per start; ours is the run folder itself. One rank's removal must not come between
        # another's making it and looking whether it is there, so ranks wait for each other.
        max_over_ranks(0)
        with suppress(OSError):
            os.rmdir(self._log_dir)
        self._log_dir = self.log_dir

    @property
    def log_dir(self) -> str:
        """Folder of the text logs."""
        return os.path.join(self.work_dir, "logs")  # type: ignore[attr-defined]

    def build_logger(
        self, log_level: int | str = "INFO", log_file: str | None = None, **kwargs: Any
    ) -> MMLogger:
        """MMEngine's logger; our own loggers write where it writes."""
        os.makedirs(self.log_dir, exist_ok=True)
        logger = super().build_logger(log_level=log_level, log_file=log_file, **kwargs)  # type: ignore[misc]
        ours = logging.getLogger("perception")
        ours.handlers[:] = logger.handlers
        ours.setLevel(log_level)
        return logger

    def _init_model_weights(self, model: nn.Module) -> nn.Module:
        """As MMEngine's: initialised on each rank, then the first rank's on all."""
        if hasattr(model, "init_weights") and self.dispatch_kwargs.get("init_weights_for_test_or_val", True):
            model.init_weights()
            with exchange("the first rank's weights"):
                for value in model.state_dict().values():
                    broadcast(value)
        return model

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        """As MMEngine's, after the conversion of the initialised model where a balancing method wants one."""
        converted = model if self.convert is None else self.convert(model)
        with exchange("all ranks' models"):
            return super()._wrap_model(converted)  # type: ignore[misc]

    @property
    def bare_model(self) -> nn.Module:
        """The model without its distributed wrapper."""
        return self.model.module if is_model_wrapper(self.model) else self.model

    def training(self) -> AbstractContextManager[Any]:
        """The context of a whole run."""
        return nullcontext()

    def model_state_dict(self) -> dict[str, Tensor]:
        """State dict of the bare model; every rank must call this."""
        return self.bare_model.state_dict()

    def load_model_state_dict(self, state_dict: dict[str, Tensor], *, path: str = "", **_: Any) -> None:
        """Load weights; every name and shape must fit.

        Raises:
            CheckpointError: shows what is missing, unknown or of another shape.
        """
        own = self.bare_model.state_dict()
        missing = sorted(own.keys() - state_dict.keys())
        unknown = sorted(state_dict.keys() - own.keys())
        reshaped = [
            f"{name} {tuple(state_dict[name].shape)} (here {tuple(own[name].shape)})"
            for name in sorted(own.keys() & state_dict.keys())
            if own[name].shape != state_dict[name].shape
        ]
        found = [
            f"{len(names)} {what}: {', '.join(names[:_MAX_NAMED])}{' ...' if len(names) > _MAX_NAMED else ''}"
            for what, names in (("missing", missing), ("unknown", unknown), ("of another shape", reshaped))
            if names
        ]
        if found:
            raise CheckpointError(
                f"the weights do not fit the model; {'; '.join(found)}. Use the config that the checkpoint was "
                "trained with",
                path=path,
            )
        self.bare_model.load_state_dict(state_dict)


@STRATEGIES.register_module()
class SingleStrategy(_RunFolderMixin, SingleDeviceStrategy):
    """One process, one device: the GPU if there is one, else the CPU."""

    def convert_model(self, model: nn.Module) -> nn.Module:
        """SyncBatchNorm becomes BatchNorm, which is the same on one rank and runs on a CPU."""
        if any(isinstance(module, SyncBatchNorm) for module in model.modules()):
            return super().convert_model(model)
        return model


@STRATEGIES.register_module()
class DDPStrategy(_RunFolderMixin, MMEngineDDPStrategy):
    """One process per device, started by torchrun: NCCL on GPUs, gloo on CPUs.

    *Deviation* from MMEngine: its initialisation insists on CUDA; and the reducer of the wrapper is never used (see
    `BalancedOptimWrapper`), so buffers are not broadcast at each forward either.

    Args:
        timeout_s: seconds after which a hanging collective, or the wait for all ranks at the start, ends the job.

    Raises:
        ValueError: `timeout_s` is no number of seconds.
        RankFailure: the ranks did not come together at the start.
    """

    model_wrapper: dict[str, Any] | None

    def __init__(self, *, timeout_s: float = 1800.0, **kwargs: Any) -> None:
        self._timeout = datetime.timedelta(seconds=check_seconds(timeout_s, "strategy.timeout_s"))
        super().__init__(**kwargs)
        if self.model_wrapper is None:
            self.model_wrapper = dict(type="MMDistributedDataParallel", broadcast_buffers=False)
        if not torch.cuda.is_available():
            self.model_wrapper = {**self.model_wrapper, "device_ids": None}

    def _setup_distributed(
        self, launcher: str = "pytorch", backend: str | None = None, **kwargs: Any
    ) -> None:
        if dist.is_initialized():
            return
        has_cuda = torch.cuda.is_available()
        if has_cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = backend or ("nccl" if has_cuda else "gloo")
        backend = "gloo" if not has_cuda else backend
        try:
            dist.init_process_group(backend=backend, timeout=self._timeout, **kwargs)
        except dist.DistError as error:
            found = {key: os.environ.get(key) for key in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
            reason = str(error).splitlines()[0]
            raise RankFailure(
                f"the {found['WORLD_SIZE']} ranks did not come together at {found['MASTER_ADDR']}:"
                f"{found['MASTER_PORT']}: {reason} Start them all, with the same WORLD_SIZE, MASTER_ADDR and "
                "MASTER_PORT, and look at the output of those that ended; strategy.timeout_s "
                f"({self._timeout.total_seconds():g}) is how many seconds they wait for each other"
            ) from error
        atexit.register(leave_process_group)


def class_of(strategy: Any) -> Any:
    """The class of a strategy or of its config."""
    kind = strategy["type"] if isinstance(strategy, Mapping) else type(strategy)
    # MMEngine builds the strategy before it sets the default scope.
    return STRATEGIES.get(kind) if isinstance(kind, str) else kind


def has_ranks(strategy: Any) -> bool:
    """Whether the processes are ranks of a group: several, or a launcher's only one by a strategy for ranks.

    Args:
        strategy: the config's; None where it names none.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        return True
    return "RANK" in os.environ and strategy is not None and class_of(strategy) is not SingleStrategy
