"""Which parts of a training or prediction step are timed, and how a running model is watched for it.

Nothing that a step computes is changed: modules get forward hooks, their outputs' gradients hooks that only read the
clock, and a few methods are wrapped while the watch lasts.

**The backward by parts.** Autograd works through the graph from what was computed last to what was computed first. When
it reaches the output of a part it begins with that part's operations; until then it was busy with a later one. So one
backward splits into slices at the outputs of the parts; glue between two parts counts to the later one.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn

from perception.balancing.task_gradients import TaskGradients
from perception.engine.part_timer import PartTimer

LOADING = "data loading (waiting)"
LOSSES = "losses"
BALANCING = "balancing"
OPTIMISER = "optimiser"
BACKWARD = "backward: "
HISTORY = ", history"
ALL_TASKS = "all tasks"

_MODULES = {
    "data_preprocessor": "to device, preprocessing",
    "img_backbone": "backbone",
    "img_neck": "neck",
    "bev_encoder": "encoder",
    "box_head": "box head",
    "seg_head": "segmentation head",
}
"""Child of the model → part. Other children are parts by their own names."""

_METHODS = {
    "parse_losses": LOSSES,
    "box_head.match": "matching",
    "box_head.loss": LOSSES,
    "seg_head.loss": LOSSES,
    "center_heatmap.loss": "auxiliary heads",
    "perspective_head.loss": "auxiliary heads",
    "box_head.predict": "decoding",
    "seg_head.predict": "decoding",
}

ORDER = (
    LOADING,
    "to device, preprocessing",
    *(f"{name}{HISTORY}" for name in ("backbone", "neck", "encoder")),
    "backbone",
    "neck",
    "encoder",
    "decoder",
    "box head",
    "segmentation head",
    "auxiliary heads",
    "matching",
    LOSSES,
    "decoding",
)
"""Parts before the backward, as a table lists them; others follow."""


class Watch:
    """Times the parts of a model's steps on a `PartTimer`.

    Parts of the backward are counted under `BACKWARD` + part. In training, what runs without gradients is history.

    Args:
        model: the bare model.
        timer: its steps are begun and ended by others.
        optim_wrapper: a `BalancedOptimWrapper`; None for prediction.

    Attributes:
        backward_seconds: task, or `ALL_TASKS` → seconds of its backwards in all steps.
        backward_calls: likewise, how many there were.
    """

    def __init__(self, model: nn.Module, timer: PartTimer, *, optim_wrapper: Any = None) -> None:
        self.model = model
        self.timer = timer
        self.optim_wrapper = optim_wrapper
        self.backward_seconds: dict[str, float] = {}
        self.backward_calls: Counter[str] = Counter()
        self._task: str | None = None
        self._open: list[str | None] = []

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Watch what runs inside; afterwards model and torch are as before."""
        with ExitStack() as stack:
            for module, part in _timed_modules(self.model):
                if module._compiled_call_impl is not None:  # hooks would be compiled into it
                    calling = partial(self._timed_call, part)
                    stack.enter_context(_replaced(module, "_compiled_call_impl", calling))
                    continue
                for handle in (
                    module.register_forward_pre_hook(partial(self._before, part)),
                    module.register_forward_hook(partial(self._after, part)),
                ):
                    stack.callback(handle.remove)
            for path, part in _METHODS.items():
                owner, _, name = path.rpartition(".")
                holder = getattr(self.model, owner, None) if owner else self.model
                if hasattr(holder, name):
                    stack.enter_context(_replaced(holder, name, partial(self._timed, part)))
            if self.optim_wrapper is not None:
                self._watch_update(stack)
            yield

    def _watch_update(self, stack: ExitStack) -> None:
        wrapper = self.optim_wrapper
        for holder, name, part in (
            (wrapper, "add_losses", BALANCING),
            (wrapper, "take_step", OPTIMISER),
            (wrapper.balanced, "finish", BALANCING),
        ):
            stack.enter_context(_replaced(holder, name, partial(self._timed, part)))
        # All gradient sources, whatever they compare, come down to these two.
        for name in ("backward", "grad"):
            stack.enter_context(_replaced(torch.autograd, name, self._timed_backward))
        stack.enter_context(_replaced(TaskGradients, "add", self._named_by_task))

    def _before(self, part: str, *_: Any) -> None:
        if self._is_in_backward():  # activation checkpointing computes a part again
            self._open.append(None)
            return
        is_history = self.optim_wrapper is not None and not torch.is_grad_enabled()
        name = f"{part}{HISTORY}" if is_history else part
        self._open.append(name)
        self.timer.enter(name)

    def _after(self, part: str, *args: Any) -> None:
        if self._open.pop() is not None:
            self.timer.leave()
            self._mark(args[-1], part)

    def _timed_call(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """What hooks do, around a whole call."""

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._before(part)
            output = function(*args, **kwargs)
            self._after(part, output)
            return output

        return timed

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.timer.part(part):
                output = function(*args, **kwargs)
            self._mark(output, part)
            return output

        return timed

    def _mark(self, output: Any, part: str) -> None:
        for tensor in _tensors(output):
            if tensor.requires_grad and tensor.grad_fn is not None:
                tensor.register_hook(partial(self._reach, part))

    def _reach(self, part: str, gradient: Tensor) -> None:
        if self._is_in_backward():
            self.timer.switch(f"{BACKWARD}{part}")

    def _is_in_backward(self) -> bool:
        return (self.timer.current or "").startswith(BACKWARD)

    def _timed_backward(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._is_in_backward():
                return function(*args, **kwargs)
            before = self._backward_seconds()
            with self.timer.part(f"{BACKWARD}{LOSSES}"):
                output = function(*args, **kwargs)
            task = self._task or ALL_TASKS
            spent = self._backward_seconds() - before
            self.backward_seconds[task] = self.backward_seconds.get(task, 0.0) + spent
            self.backward_calls[task] += 1
            return output

        return timed

    def _backward_seconds(self) -> float:
        return sum(value for part, value in self.timer.seconds.items() if part.startswith(BACKWARD))

    def _named_by_task(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def add(gradients: TaskGradients, task_idx: int, *args: Any, **kwargs: Any) -> None:
            self._task = self.optim_wrapper.balanced.task_names[task_idx]
            try:
                function(gradients, task_idx, *args, **kwargs)
            finally:
                self._task = None

        return add


def _timed_modules(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for name, child in model.named_children():
        yield child, _MODULES.get(name, name)
    for layer in getattr(getattr(model, "box_head", None), "decoder", ()):
        yield layer, "decoder"


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name))


@contextmanager
def _replaced(
    holder: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Put what `make` makes of a function in its place for a while."""
    is_own = name in vars(holder)
    before = getattr(holder, name)
    setattr(holder, name, make(before))
    try:
        yield
    finally:
        if is_own:
            setattr(holder, name, before)
        else:
            delattr(holder, name)
