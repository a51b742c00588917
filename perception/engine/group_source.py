"""Gradients of connection strength's second phase: one backward per group, projected per layer and channel group."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from perception.balancing.task_gradients import TaskGradients
from perception.engine.collectives import any_over_ranks, sum_over_ranks, world_size
from perception.engine.gradient_sources import MicroStep, NonFinite

if TYPE_CHECKING:
    from perception.balancing.connection_strength import ConnectionStrength


class GroupSource:
    """Gets the losses of one group after the other, each from a forward of its own, and holds gradients per group.

    Args:
        balancer: weighs the losses and projects the gradients.
        parameters: n trainable parameters.
        model: the bare model, whose names of the parameters the balancer knows.
    """

    coefficients: Tensor | None = None  # there is not one per task

    def __init__(
        self, balancer: "ConnectionStrength", parameters: Sequence[Tensor], model: nn.Module
    ) -> None:
        self.balancer = balancer
        self.parameters = list(parameters)
        self.model = model
        self._names = _names_of(model, self.parameters)
        self._gradients = TaskGradients(self.parameters, len(balancer.plan))
        self._has_steps = False

    def micro_step(self, step: MicroStep) -> NonFinite | None:
        """Backward of one group's weighted losses."""
        self._has_steps = True
        weights = self.balancer.weigh(step.global_losses, step.present)
        coefficients = self.balancer.combine(weights * step.global_losses, step.present, None)
        scalar = step.weighted_sum(weights * coefficients)
        if scalar is None:
            return None
        groups = [
            number for number, (_, tasks) in enumerate(self.balancer.plan) if set(tasks) & set(step.losses)
        ]
        if len(groups) != 1:
            raise ValueError(
                f"one forward gave the losses of {list(step.losses)}, which belong to {len(groups)} groups of "
                f"{dict(self.balancer.plan)}. The model's `only_tasks` must leave out all tasks but its own"
            )
        self._gradients.add(groups[0], scalar, retain_graph=False)
        return None

    def finish(self, loss_scale: float) -> NonFinite | None:
        """Project the global gradients, unscaled, and leave the update in `p.grad`."""
        gradients = self._gradients
        if not self._has_steps:
            return None
        gradients.rows = sum_over_ranks(gradients.rows)
        gradients.reached = any_over_ranks(gradients.reached)
        bad = gradients.bad_rows()
        if bad:
            all_tasks = self.balancer.task_names
            tasks = [all_tasks.index(task) for number in bad for task in self.balancer.plan[number][1]]
            return tasks, gradients.bad_parameters()
        if loss_scale != 1.0:
            gradients.rows *= 1.0 / loss_scale
        grads = {name: gradients.of(number) for number, name in enumerate(self._names)}
        update = self.balancer.project(self.model, grads, strengths=self._strengths())
        for name, parameter in zip(self._names, self.parameters, strict=True):
            parameter.grad = _laid_out_like(parameter, update[name]) if name in update else None
        gradients.restart()
        self._has_steps = False
        return None

    def _strengths(self) -> list[Tensor]:
        """Strengths with the mean over ranks of what their own batch statistics give, the same on all ranks."""
        local = self.balancer.strengths(self.model)
        mean = sum_over_ranks(torch.cat([strength.flatten() for strength in local])) / world_size()
        parts = mean.split([strength.numel() for strength in local])
        return [part.view_as(strength) for part, strength in zip(parts, local, strict=True)]


def _laid_out_like(parameter: Tensor, values: Tensor) -> Tensor:
    # Fused optimisers walk through memory: a gradient must have its parameter's strides (channels last, say).
    return torch.empty_like(parameter, requires_grad=False).copy_(values)


def _names_of(model: nn.Module, parameters: Sequence[Tensor]) -> list[str]:
    known: Mapping[int, str] = {id(parameter): name for name, parameter in model.named_parameters()}
    missing = sum(id(parameter) not in known for parameter in parameters)
    if missing:
        raise ValueError(
            f"{missing} trained parameters are not the model's; connection strength trains the prepared model alone"
        )
    return [known[id(parameter)] for parameter in parameters]
