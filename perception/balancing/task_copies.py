"""Layers that exist once per task, and the choice of the task that a forward runs for."""

import copy
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

_choosing = threading.Lock()


class TaskCopies(nn.ModuleDict):
    """One copy of a layer per task; `use_task` chooses the one that runs.

    A subclass of `nn.ModuleDict`, so that a copy's parameters are named `<layer>.<task>.<parameter>`, `train()`,
    `eval()` and `requires_grad_()` reach every copy, and whoever looks for batch norms by type finds them.

    Args:
        layer: what is copied; its mode, frozen parameters, device and dtype are kept.
        tasks: at least one name, each usable as a module's name.

    Raises:
        ValueError: a task is named twice, or by a name that a module can't have.

    Attributes:
        stands_alone: whether a task's copy by itself does all that the layer does for the task.

    Example:
        >>> norm = TaskCopies(layer=nn.LayerNorm(4), tasks=("det", "seg"))
        >>> with use_task(norm, "seg"):
        ...     norm.task
        'seg'
    """

    stands_alone: bool = True

    def __init__(self, *, layer: nn.Module, tasks: Sequence[str]) -> None:
        check_tasks(tasks)
        super().__init__({task: copy.deepcopy(layer) for task in tasks})
        self.training = layer.training
        self.task: str | None = None
        self._thread: int | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks' names, in their order."""
        return tuple(self.keys())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the chosen task's copy returns.

        Raises:
            RuntimeError: no task is chosen.
        """
        if self.task is None:
            raise RuntimeError(
                f"a layer with one copy per task ran while no task was chosen (its tasks are {list(self.tasks)}). "
                "Wrap the forward in `with use_task(model, task)`, or export one plain model per task"
            )
        return self[self.task](*args, **kwargs)


@contextmanager
def use_task(model: nn.Module, task: str) -> Iterator[None]:
    """Run the forwards inside for one task; afterwards the former choice holds again.

    It costs one walk over the modules, both ways. Two threads can't use one model at the same time: the second
    gets an error, never the other's task. Activation checkpointing repeats forwards in the backward, so there the
    backward belongs inside as well.

    Args:
        model: holds `TaskCopies` at any depth, also inside a DDP wrapper.
        task: one of their tasks.

    Raises:
        ValueError: the model has no copies per task, or not this task's.
        RuntimeError: another thread is using the model.

    Example:
        >>> layer = TaskCopies(layer=nn.Linear(2, 2), tasks=("det", "seg"))
        >>> with use_task(layer, "det"), use_task(layer, "seg"):
        ...     layer.task
        'seg'
    """
    copies = _find(model)
    if not copies:
        raise ValueError(
            f"use_task({task!r}): {type(model).__name__} has no layer with one copy per task. Convert it first, with "
            "convert_task_norms or split_layers"
        )
    for layer in copies:
        if task not in layer:
            raise ValueError(
                f"use_task({task!r}): a layer of {type(model).__name__} has copies for {list(layer.tasks)} only. Name "
                "one of these"
            )
    thread = threading.get_ident()
    with _choosing:
        if any(layer._thread not in (None, thread) for layer in copies):
            raise RuntimeError(
                f"use_task({task!r}): another thread is running this {type(model).__name__} for a task. Give each "
                "thread a model of its own"
            )
        before = [(layer, layer.task, layer._thread) for layer in copies]
        for layer in copies:
            layer.task, layer._thread = task, thread
    try:
        yield
    finally:
        for layer, old_task, old_thread in before:
            layer.task, layer._thread = old_task, old_thread


def task_copies(model: nn.Module) -> dict[str, TaskCopies]:
    """Name → layer of all layers in `model` that have one copy per task."""
    return {name: module for name, module in model.named_modules() if isinstance(module, TaskCopies)}


def _find(model: nn.Module) -> list[TaskCopies]:
    # As `model.modules()`, but several times faster, without its nested generators.
    found, seen, stack = [], set(), [model]
    while stack:
        module = stack.pop()
        if module in seen:
            continue
        seen.add(module)
        if isinstance(module, TaskCopies):
            found.append(module)
        stack.extend(child for child in module._modules.values() if child is not None)
    return found


def check_tasks(tasks: Sequence[str]) -> None:
    """Refuse task names that modules can't carry.

    Raises:
        ValueError: there is none, one twice, or one is no module name.
    """
    if isinstance(tasks, str) or not tasks or len(set(tasks)) != len(tasks):
        raise ValueError(f"tasks must be a sequence of different names, got {tasks!r}")
    reserved = nn.ModuleDict()
    for task in tasks:
        if not isinstance(task, str) or not task.isidentifier() or hasattr(reserved, task):
            raise ValueError(
                f"task {task!r} can't name a module: use letters, digits and underscores, and no name that "
                "nn.ModuleDict itself has, such as 'keys' or 'training'"
            )
