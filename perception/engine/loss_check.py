"""What no balancer can make sense of: a loss that trains nothing, and one loss under two names.

Legend: T tasks, n parameters.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from perception.balancing.task_losses import TaskLosses
from perception.balancing.task_reach import find_reach
from perception.engine.collectives import any_over_ranks
from perception.engine.gradient_sources import MicroStep

# Twins' gradients differ by what a GPU's order of additions leaves to chance, in half precision too.
_TOLERANCE = 1e-3


class LossCheck:
    """Looks at each task's loss in the first micro-batch that has it, at each pair in the first that has both.

    A loss must reach a trainable parameter, which the walk of its graph tells without a backward. Two losses that are
    equal to the bit on every rank and reach the same parameters are compared by a backward each before they are
    refused. Ranks exchange what they found, so all of them refuse or none; afterwards nothing is done.
    """

    def __init__(self) -> None:
        self._is_checked: Tensor | None = None  # (T, T), a task itself on the diagonal

    def check(self, step: MicroStep, parameters: Sequence[Tensor], features: Sequence[Tensor] = ()) -> None:
        """Check what is new in a micro-batch; every rank must call this.

        Args:
            step: its losses must have their graphs.
            parameters: n trainable ones.
            features: where the graph is cut in front of trainable parameters.

        Raises:
            ValueError: names the task whose loss trains nothing, or the two tasks with one loss.
        """
        pairs = step.present[:, None] & step.present
        new = pairs if self._is_checked is None else pairs & ~self._is_checked
        if not bool(new.any()):
            return
        names = step.losses.task_names
        local = find_reach(step.losses, names, [*parameters, *features])
        cut = local[:, len(parameters) :].any(dim=1, keepdim=True)
        found = any_over_ranks(torch.cat([local[:, : len(parameters)], cut, _differ(step.losses)], dim=1))
        reach, differ = found.split([len(parameters) + 1, len(names)], dim=1)
        loose = (new.diagonal() & ~reach.any(dim=1)).nonzero().flatten().tolist()
        if loose:
            raise ValueError(
                f"the loss of task {names[loose[0]]!r} is not connected to any trainable parameter, so it has no "
                "gradient. Compute it from the model's outputs without detach(), unfreeze what it depends on, or "
                "leave the task out of the loss dict"
            )
        has_same_reach = (reach[:, None] == reach).all(dim=2)  # (T, T)
        inputs = [*parameters, *features]
        for first, second in (new & ~differ & has_same_reach).triu(diagonal=1).nonzero().tolist():
            tasks = names[first], names[second]
            flags = any_over_ranks(_compare(step, tasks, inputs))
            is_unlike, has_gradient, is_not_finite = flags.tolist()
            if is_not_finite or not (
                is_unlike or has_gradient
            ):  # an overflow, or losses of 0: nothing is known yet
                new[first, second] = new[second, first] = False
            elif not is_unlike:
                raise ValueError(
                    f"tasks {tasks[0]!r} and {tasks[1]!r} have the same loss and the same gradient, so they are one "
                    "loss under two names. Give one of them another loss, or leave it out"
                )
        self._is_checked = new if self._is_checked is None else self._is_checked | new


def _differ(losses: TaskLosses) -> Tensor:
    """(T, T) bool: whether one of two tasks has another loss here, or one alone has any."""
    values = torch.full((len(losses.task_names),), torch.nan, dtype=torch.float64)
    for task, loss in losses.items():
        values[losses.task_names.index(task)] = loss.detach().double().reshape(()).cpu()
    is_here = torch.tensor(losses.present)
    return (values[:, None] != values) & (is_here[:, None] | is_here)


def _compare(step: MicroStep, tasks: tuple[str, str], inputs: Sequence[Tensor]) -> Tensor:
    """(3,) bool: whether the local gradients are unlike, whether one is not 0, whether one is not finite."""
    if any(task not in step.losses for task in tasks):
        return torch.zeros(3, dtype=torch.bool)
    rows = []
    for task in tasks:
        loss = step.losses[task].reshape(())
        scaled = loss.to(torch.promote_types(loss.dtype, torch.float32)) * step.loss_scale
        if not scaled.requires_grad:
            return torch.tensor([True, False, False])  # on this rank; on another one it is connected
        gradients = torch.autograd.grad(scaled, inputs, retain_graph=True, allow_unused=True)
        rows.append([gradient.flatten() for gradient in gradients if gradient is not None])
    if not rows[0] or len(rows[0]) != len(rows[1]):  # here they reach less than on other ranks
        return torch.tensor([bool(rows[0]) or bool(rows[1]), False, False])
    first, second = (torch.cat(row) for row in rows)
    is_unlike = (first - second).norm() > _TOLERANCE * first.norm()
    has_gradient = first.any() | second.any()
    is_finite = first.isfinite().all() & second.isfinite().all()
    return torch.stack([is_unlike, has_gradient, ~is_finite]).cpu()
