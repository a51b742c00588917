"""Training whose optimiser DeepSpeed's ZeRO shards over the ranks: `strategy=dict(type="DeepSpeedStrategy")`."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from mmengine.device import get_device
from mmengine.dist import broadcast
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn
from torch.optim import Optimizer

from perception.engine.collectives import world_size
from perception.engine.sharded_weights import ShardedWeights
from perception.engine.strategies import DDPStrategy
from perception.engine.zero3_optimizer import Zero3Optimizer
from perception.engine.zero_optimizer import ZeroOptimizer
from perception.registry import STRATEGIES
from perception.utils import get_logger

logger = get_logger("engine")

Shard = Callable[..., ZeroOptimizer]
_STAGES = (0, 1, 2, 3)
_TOLERANCE = 1e-6


@STRATEGIES.register_module()
class DeepSpeedStrategy(DDPStrategy):
    """One process per device, started as for `DDPStrategy`; the optimiser's state is sharded over them.

    The model is not wrapped: gradients are collected, balanced and reduced by `BalancedOptimWrapper` as under DDP, and
    DeepSpeed runs the optimiser. So every method, gradient source and precision takes the same steps as under DDP.
    Clipping is `optim_wrapper.clip_grad` alone; DeepSpeed's own is off. Testing and predicting need no DeepSpeed.

    Args:
        zero_stage: 1 or 2 shard the optimiser's state, 3 the weights and task gradients too (see `ShardedWeights`); 0
            shards nothing, which is DDP and needs no DeepSpeed.
        offload_optimizer: the optimiser's state lies in the host's memory and is updated there.
        max_live_parameters: of stage 3, weights (elements) that are gathered at once at most.
        train_micro_batch_size_per_gpu: MMEngine's runner gives it to a strategy of this name; not used.
        **kwargs: as of `DDPStrategy`.

    Raises:
        ValueError: another stage, or stage 0 with offloading.
    """

    def __init__(
        self,
        *,
        zero_stage: int = 2,
        offload_optimizer: bool = False,
        max_live_parameters: int = 10**9,
        train_micro_batch_size_per_gpu: int = 1,
        **kwargs: Any,
    ) -> None:
        if zero_stage not in _STAGES:
            raise ValueError(f"zero_stage is {zero_stage!r}; allowed: {', '.join(map(str, _STAGES))}")
        if offload_optimizer and zero_stage == 0:
            raise ValueError(
                "offload_optimizer needs zero_stage 1, 2 or 3; at 0 the optimiser is torch's alone"
            )
        self.zero_stage = zero_stage
        self.offload_optimizer = offload_optimizer
        self._weights = ShardedWeights(max_live_parameters=max_live_parameters)
        super().__init__(**kwargs)

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        """The converted model on its device, with the first rank's weights; no wrapper."""
        converted = model if self.convert is None else self.convert(model)
        converted = converted.to(get_device())
        if world_size() == 1:
            return revert_sync_batchnorm(converted)
        for value in converted.state_dict().values():
            broadcast(value)
        return self.convert_model(converted)

    def build_optim_wrapper(self, optim_wrapper: Any, model: nn.Module | None = None) -> Any:
        """As MMEngine's, with the optimiser sharded.

        Raises:
            ModuleNotFoundError: DeepSpeed is not installed.
            ValueError: no launcher started this process, or a parameter can't be sharded.
            TypeError: the optimiser can't be sharded.
            RuntimeError: this DeepSpeed does not pass the check.
        """
        if not dist.is_initialized():
            raise ValueError(
                "DeepSpeedStrategy trains ranks, but no launcher started this process. Start it by `bash "
                "tools/dist_train.sh CONFIG NUM_GPUS` or torchrun, or leave strategy out"
            )
        wrapper = super().build_optim_wrapper(optim_wrapper, model)
        if self.zero_stage > 0:
            shard = partial(shard_optimizer, zero_stage=self.zero_stage, offload=self.offload_optimizer)
            check_deepspeed(shard)
            wrapper.shard(shard(wrapper.optimizer, model, weights=self._weights))
            what = (
                "weights and the optimiser's state are"
                if self.zero_stage == 3
                else "the optimiser's state is"
            )
            logger.info("%s sharded over %d ranks (ZeRO-%d)", what, world_size(), self.zero_stage)
        return wrapper

    def training(self) -> AbstractContextManager[Any]:
        """A run's context, in which weights may be sharded."""
        return self._weights if self.zero_stage == 3 else nullcontext()

    def model_state_dict(self) -> dict[str, Tensor]:
        """As the base class's; every rank must call this, and only the first one gets sharded weights."""
        state = super().model_state_dict()
        if not self._weights.is_open:
            return state
        whole = self.optim_wrapper.optimizer.whole_weights()
        named = self.bare_model.named_parameters(remove_duplicate=False)
        return {**state, **{name: whole[id(p)] for name, p in named if id(p) in whole}}


def start_deepspeed() -> ModuleType:
    """Import DeepSpeed for the devices that are here; the process group must be up.

    Raises:
        ModuleNotFoundError: it is not installed; the message says how to.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        deepspeed = import_module("deepspeed")
        backend = import_module("deepspeed.comm.torch")  # as an attribute this name is torch itself
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"strategy DeepSpeedStrategy needs DeepSpeed ({error}): pip install 'perception-multitask[deepspeed]', or "
            "use strategy=dict(type='DDPStrategy')"
        ) from error
    if not torch.cuda.is_available():
        # It would compile an operation for shared memory, and wait for ever where a dead process left its lock.
        setattr(backend, "build_shm_op", lambda: None)  # noqa: B010  a name that mypy doesn't know
    return deepspeed


def start_engine(
    model: nn.Module, optimizer: Optimizer, *, zero_stage: int = 2, offload: bool = False
) -> Any:
    """DeepSpeed's engine around a model and its optimiser: float32, no clipping, no accumulation of its own.

    Raises:
        ModuleNotFoundError: DeepSpeed is not installed.
    """
    deepspeed = start_deepspeed()
    zero: dict[str, Any] = {"stage": zero_stage, "overlap_comm": False, "round_robin_gradients": False}
    if zero_stage == 3:
        # One part per parameter group, small parameters sharded too, no buffers for hooks that never run, and
        # torch's `linear` left as it is.
        zero |= {"sub_group_size": 10**15, "stage3_param_persistence_threshold": 0}
        zero |= {"contiguous_gradients": False, "memory_efficient_linear": False}
    if offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    config = {
        "train_micro_batch_size_per_gpu": 1,  # a number that only its own throughput is computed from
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,  # it clips to 1 where this is not said
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
        "steps_per_print": 10**15,
    }
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def shard_optimizer(
    optimizer: Optimizer,
    model: nn.Module,
    *,
    zero_stage: int = 2,
    offload: bool = False,
    weights: ShardedWeights | None = None,
) -> ZeroOptimizer:
    """A freshly built optimiser, sharded.

    Args:
        optimizer: as of `ZeroOptimizer`.
        model: as there.
        zero_stage: 1, 2 or 3.
        offload: see `DeepSpeedStrategy`.
        weights: of stage 3, the context in which the model will be used.

    Raises:
        TypeError, ValueError, RuntimeError: see `ZeroOptimizer` and `Zero3Optimizer`.
    """
    start = partial(start_engine, zero_stage=zero_stage, offload=offload)
    if zero_stage < 3:
        return ZeroOptimizer(optimizer, model, start_engine=start)
    weights = ShardedWeights() if weights is None else weights
    return Zero3Optimizer(optimizer, model, start_engine=start, weights=weights)


def check_deepspeed(shard: Shard) -> None:
    """Compare three sharded updates of a small model with torch's own.

    Args:
        shard: as `shard_optimizer`, which the run is to use.

    Raises:
        RuntimeError: they differ, so DeepSpeed no longer does what is relied on here.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain, sharded = (_small_model().to(get_device()) for _ in range(2))
    sharded.load_state_dict(plain.state_dict())
    options: dict[str, Any] = dict(lr=0.1, weight_decay=0.1)
    reference = torch.optim.AdamW(_groups(plain), **options)
    weights = ShardedWeights(max_live_parameters=30)  # not all of them at once
    optimizer = shard(torch.optim.AdamW(_groups(sharded), **options), sharded, weights=weights)
    with weights:
        for step in range(3):
            for model, stepper in ((plain, reference), (sharded, optimizer)):
                stepper.param_groups[0]["lr"] = 0.1 / (step + 1)
                # In two backwards, as accumulation does, and with a layer that has no gradient.
                for part in (1.0, 2.0):
                    x = torch.linspace(-1.0, part + step, 15, device=get_device()).view(5, 3)
                    model[1](torch.tanh(model[0](x))).square().sum().backward()
                stepper.step()
                stepper.zero_grad()
    pairs = zip(plain.parameters(), sharded.parameters(), strict=True)
    worst = max(float((one - other).detach().abs().max()) for one, other in pairs)
    optimizer.close()
    if not worst <= _TOLERANCE:
        version = start_deepspeed().__version__
        raise RuntimeError(
            f"DeepSpeed {version} is off by {worst:g} from torch's own optimiser on a small model (at most "
            f"{_TOLERANCE:g} is rounding), so training would be wrong. Install deepspeed==0.19.8, or use "
            "strategy.zero_stage=0"
        )


def _small_model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 3), nn.Linear(2, 1))


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    """23 and 18 numbers, which few numbers of ranks divide; the layer without a gradient would be decayed."""
    first, second, unused = model.children()
    decayed = [*first.parameters(), *unused.parameters()]
    return [{"params": decayed}, {"params": list(second.parameters()), "weight_decay": 0.0}]
