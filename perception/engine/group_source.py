"""Gradients of connection strength's second phase: one backward per group, projected per layer and channel group."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from perception.balancing.task_gradients import TaskGradients
from perception.engine.collectives import any_over_ranks, sum_over_ranks, world_size
from perception.engine.gradient_sources import (
    MicroStep,
    NonFinite,
    bad_parameters,
    bad_tasks,
    laid_out_like,
)
from perception.engine.row_exchange import keep_parts, row_exchange

if TYPE_CHECKING:
    from perception.balancing.connection_strength import ConnectionStrength


class GroupSource:
    """Gets the losses of one group after the other, each from a forward of its own, and holds gradients per group.

    On many ranks each keeps a part of every group's global gradient, as `ParameterSource` does. A group's gradient is
    sent while the next group's forward and backward run; then the parts' inner products, G x G for each of L layers,
    are added, and the projected parts put together.

    Args:
        balancer: weighs the losses and projects the gradients.
        parameters: n trainable parameters.
        model: the bare model, whose names of the parameters the balancer knows.
        bucket_mb: largest message between ranks, MiB.
    """

    coefficients: Tensor | None = None  # there is not one per task

    def __init__(
        self,
        balancer: "ConnectionStrength",
        parameters: Sequence[Tensor],
        model: nn.Module,
        *,
        bucket_mb: float,
    ) -> None:
        self.balancer = balancer
        self.parameters = list(parameters)
        self.model = model
        self._names = _names_of(model, self.parameters)
        # A parameter's first axis is the channels'. In memory it may be another one.
        self._gradients = TaskGradients(self.parameters, len(balancer.plan), is_row_major=True)
        self._exchange = row_exchange(self._gradients, bucket_mb=bucket_mb) if world_size() > 1 else None
        self._pending: dict[int, Callable[[], Tensor]] = {}
        self._has_steps = False

    def micro_step(self, step: MicroStep) -> NonFinite | None:
        """Backward of one group's weighted losses."""
        self._has_steps = True
        weights = self.balancer.weigh(step.global_losses, step.present)
        coefficients = self.balancer.combine(weights * step.global_losses, step.present, None)
        present = [
            task for task, flag in zip(step.losses.task_names, step.present.tolist(), strict=True) if flag
        ]
        if not present:
            return None
        groups = [number for number, (_, tasks) in enumerate(self.balancer.plan) if set(tasks) & set(present)]
        if len(groups) != 1:
            raise ValueError(
                f"one forward gave the losses of {present}, which belong to {len(groups)} groups of "
                f"{dict(self.balancer.plan)}. The model's `only_tasks` must leave out all tasks but its own"
            )
        scalar = step.weighted_sum(weights * coefficients)
        if scalar is not None:
            self._gradients.add(groups[0], scalar, retain_graph=False)
        if self._exchange is not None:
            self._pending[groups[0]] = self._exchange.start(self._gradients.row(groups[0]))
        return None

    def finish(self, loss_scale: float) -> NonFinite | None:
        """Project the global gradients, unscaled, and leave the update in `p.grad`."""
        gradients = self._gradients
        if not self._has_steps:
            return None
        gradients.reached = any_over_ranks(gradients.reached)
        if self._exchange is not None:
            keep_parts(gradients, self._exchange, self._pending)
        bad = bad_tasks(gradients)
        if bad:
            all_tasks = self.balancer.task_names
            tasks = [all_tasks.index(task) for number in bad for task in self.balancer.plan[number][1]]
            return tasks, bad_parameters(gradients)
        held = gradients.held
        if loss_scale != 1.0:
            held *= 1.0 / loss_scale
        for parameter, value in zip(self.parameters, self._project(gradients), strict=True):
            parameter.grad = None if value is None else laid_out_like(parameter, value)
        gradients.restart()
        self._has_steps = False
        return None

    def _project(self, gradients: TaskGradients) -> list[Tensor | None]:
        """Each parameter's update."""
        pieces = list(gradients.pieces())
        reached = dict(zip(self._names, gradients.reached.T.tolist(), strict=True))
        projected = self.balancer.project(
            self.model,
            [(self._names[piece.number], piece.start, piece.gradients) for piece in pieces],
            self.balancer.reached(reached),
            strengths=self._strengths(),
            add=sum_over_ranks,
        )
        update = torch.zeros_like(gradients.held[0])
        for piece, value in zip(pieces, projected, strict=True):
            update[piece.columns] = value
        everyone = torch.ones(len(self.balancer.plan), dtype=torch.bool)
        gather = None if self._exchange is None else self._exchange.gather
        return gradients.assemble(update, everyone, gather=gather)

    def _strengths(self) -> list[Tensor]:
        """Strengths with the mean over ranks of what their own batch statistics give, the same on all ranks."""
        local = self.balancer.strengths(self.model)
        mean = sum_over_ranks(torch.cat([strength.flatten() for strength in local])) / world_size()
        parts = mean.split([strength.numel() for strength in local])
        return [part.view_as(strength) for part, strength in zip(parts, local, strict=True)]


def _names_of(model: nn.Module, parameters: Sequence[Tensor]) -> list[str]:
    known: Mapping[int, str] = {id(parameter): name for name, parameter in model.named_parameters()}
    missing = sum(id(parameter) not in known for parameter in parameters)
    if missing:
        raise ValueError(
            f"{missing} trained parameters are not the model's; connection strength trains the prepared model alone"
        )
    return [known[id(parameter)] for parameter in parameters]
