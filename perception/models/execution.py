"""How named parts of a model run: compiled, or computed again in the backward pass instead of kept.

Both change a part in place and leave its parameters' names alone.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from perception.config import did_you_mean

# A part is traced anew for training, evaluation and history frames, each with and without earlier BEV features, and for
# batches of one and of more: a dozen graphs. Torch ends the run at its limit, by default 8.
_MAX_GRAPHS = 64


def compile_parts(model: nn.Module, names: Sequence[str], *, backend: str = "inductor") -> None:
    """Run parts of the model through `torch.compile` as one graph each; a graph break raises at the first call.

    Sets two options of torch for the whole process: the number of graphs of a function is limited to 64 in place of 8,
    and a compiled backward pass leaves what it reads intact, for the next task's.

    Args:
        model: changed in place.
        names: paths of submodules, e.g. "bev_encoder"; of a list its entries are compiled one by one.
        backend: of `torch.compile`; the default needs a C++ compiler on CPUs, Triton on CUDA.

    Raises:
        ValueError: the model has no such part.
    """
    modules = _find(model, names, "compiled")
    if modules:
        from torch._dynamo import config as dynamo_config  # seconds, so only where it is needed
        from torch._functorch import config as functorch_config

        dynamo_config.recompile_limit = max(_MAX_GRAPHS, dynamo_config.recompile_limit)
        functorch_config.donated_buffer = False
    for module in modules:
        module.compile(fullgraph=True, backend=backend)


def checkpoint_parts(model: nn.Module, names: Sequence[str]) -> None:
    """Keep only the inputs of these parts in a training forward; the backward pass computes what else it needs again.

    Each backward pass does so: with gradients per task on the parameters once per task, with gradients on the shared
    features (`gradient_source="features"`) the shared parts once. Random numbers are replayed, and statistics of batch
    norms count a batch once.

    Args:
        model: changed in place.
        names: paths of submodules, e.g. "img_backbone.layer3"; of a list its entries are treated one by one.

    Raises:
        ValueError: the model has no such part.
    """
    for module in _find(model, names, "activation_checkpointing"):
        module.forward = partial(_forward, module, module.forward)


def _forward(module: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not (module.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)
    if torch.compiler.is_compiling():  # a graph changes buffers at its end, once
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    contexts = partial(_contexts, module)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def _contexts(module: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    return nullcontext(), _SameStatistics(module)


class _SameStatistics:
    """Puts batch norms' statistics back at its end. May be entered once per backward pass, unlike a generator."""

    def __init__(self, module: nn.Module) -> None:
        norms = (norm for norm in module.modules() if isinstance(norm, _BatchNorm))
        self._buffers = [buffer for norm in norms for buffer in norm.buffers()]
        self._before: list[Tensor] = []

    def __enter__(self) -> None:
        self._before = [buffer.clone() for buffer in self._buffers]

    def __exit__(self, *_: object) -> None:
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(before)


def _find(model: nn.Module, names: Sequence[str], key: str) -> list[nn.Module]:
    known = dict(model.named_modules())
    found: list[nn.Module] = []
    for name in names:
        if name not in known or not name:
            raise ValueError(
                f"{key} names {name!r}, which is no part of the model.{did_you_mean(name, list(known))} It takes paths "
                "such as 'img_backbone.layer3' or 'bev_encoder.layers'."
            )
        module = known[name]
        found += list(module) if isinstance(module, nn.ModuleList) else [module]
    return found
