"""The seam between task losses and one update: weigh the losses, then combine the gradients.

Every method ends in one coefficient per task, the update being the sum of c_t g_t: the plain sum with c = 1, a
geometric mean by the exact identity for its gradient, a Gram method from the inner products of the task gradients. So
the optimiser wrapper needs to know one thing about a method: whether it wants the Gram matrix. Only an element-wise
method (GradDrop) wants the gradients themselves.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from perception.balancing.task_gradients import TaskGradients


class Balancer:
    """The plain sum, and the base of every other method.

    Order of calls: `prepare` before the optimiser is built; `adopt`, then `setup` once; per epoch `begin_epoch` …
    `end_epoch`; per micro-batch `weigh`, then `combine` or `reuse`; `end_step` after each optimiser step that was
    taken; `update_kpis` after a validation.

    Shapes: T is the number of declared tasks; vectors are in the order of `TaskLosses.task_names`. All inputs are the
    same on every rank: losses of the global batch, detached.

    Attributes:
        needs_gram: whether `combine` wants the Gram matrix of the weighted task gradients.
        needs_gradients: whether the update comes from `combine_block` instead of from coefficients.
        scale_heads: whether a parameter that only one task reaches is updated with that task's coefficient too; if
            not, only with the task's loss weight.
        observes_gradients: whether `observe_gradients` sees the task gradients.
        holds_gradients: whether task gradients are held until the end of an update though the method gets neither their
            Gram matrix nor them.
        changes_model: whether `prepare` returns another model than it gets.
        has_shared_features: whether all tasks' heads read the same features; if not, gradients of features or of the
            last shared layer compare nothing.
        needs_task_forwards: whether the model runs once per group of tasks and batch, under `use_task`.
        plan: then the groups in their order, each with its tasks.
        steps_per_group: whether each group's forward is followed by an optimiser step of its own.
        projects_groups: whether the update is made of the groups' gradients, by `project`.
        rotates_features: whether gradients are taken at the model's shared features, which its heads read rotated.
    """

    needs_gram: bool = False
    needs_gradients: bool = False
    scale_heads: bool = True
    observes_gradients: bool = False
    holds_gradients: bool = False
    changes_model: bool = False
    has_shared_features: bool = True
    needs_task_forwards: bool = False
    plan: tuple[tuple[str, tuple[str, ...]], ...] = ()
    rotates_features: bool = False

    @property
    def steps_per_group(self) -> bool:
        """See the class."""
        return False

    @property
    def projects_groups(self) -> bool:
        """See the class."""
        return False

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model to train: the given one, or a changed copy of it.

        Raises:
            ValueError: the method can't train this model.
        """
        return model

    def adopt(self, model: nn.Module) -> None:
        """See the model that `prepare` returned, maybe of another instance built alike.

        Raises:
            ValueError: the model was not prepared for this method.
        """

    def setup(self, task_names: Sequence[str], *, max_epochs: int, total_steps: int, seed: int) -> None:
        """Learn the run and check everything that can be known before its first step.

        Args:
            task_names: the model's tasks, in the order of all (T,) vectors.
            max_epochs: epochs of the whole run.
            total_steps: optimiser steps of the whole run.
            seed: the run's seed; the same on all ranks.

        Raises:
            ValueError: an argument names an unknown task or does not fit the run.
        """

    def check_directions(self, lower: Collection[str]) -> None:
        """After `setup`: learn the tasks whose validation scores are known to be better when lower.

        Raises:
            ValueError: the method takes such a score for better when higher.
        """

    def begin_epoch(self, epoch: int) -> None:
        """Start an epoch, counted from 1."""

    def end_epoch(self, mean_losses: Mapping[str, float]) -> None:
        """End an epoch; task → mean of its global losses, without tasks that never had one."""

    def update_kpis(self, kpis: Mapping[str, float]) -> None:
        """Take task → validation score, as the metric gives it."""

    def end_step(self) -> None:
        """Count an optimiser step that was taken; a skipped one is not counted."""

    def weigh(self, losses: Tensor, present: Tensor) -> Tensor:
        """Weight of each task's loss.

        Args:
            losses: (T,) global losses, 0 where absent.
            present: (T,) bool, whether the task has a target in the global batch.

        Returns:
            (T,) weights; those of absent tasks are not used.
        """
        return torch.ones_like(losses)

    def combine(self, losses: Tensor, present: Tensor, gram: Tensor | None) -> Tensor:
        """Coefficient of each weighted task gradient in the update.

        Args:
            losses: (T,) weighted global losses, 0 where absent.
            present: (T,) bool.
            gram: (T, T) inner products of the weighted global task gradients if `needs_gram`, else None.

        Returns:
            (T,) coefficients.
        """
        return torch.ones_like(losses)

    def reuse(self, losses: Tensor, present: Tensor) -> None:
        """In place of `combine` where an earlier update's coefficients are used again; arguments as there."""

    def combine_block(self, gradients: Tensor, present: Tensor, number: int) -> Tensor:
        """The update of a block of elements, for methods with `needs_gradients`; called after `combine`.

        Each rank calls it for the blocks of which it holds a part. So an element's update must depend on nothing but
        its own gradients, the block's number and its place in the block.

        Args:
            gradients: (T, B) weighted global gradients, 0 where absent, and where this rank does not hold them.
            present: (T,) bool.
            number: which block it is.

        Returns:
            (B,) the update.
        """
        raise NotImplementedError(f"{type(self).__name__} combines by coefficients, not element by element")

    def observe_gradients(self, gradients: TaskGradients, add: Callable[[Tensor], Tensor]) -> None:
        """See an update's task gradients of the global batch, before `combine`; for methods with `observes_gradients`.

        Args:
            gradients: the part that this rank holds.
            add: numbers of this rank's part → their sum over all ranks, which all must ask for alike.
        """

    def report(self) -> dict[str, Any]:
        """What the last step did, as JSON-able values; only what cost nothing."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Tensors and JSON-able values that a resume needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned.

        Raises:
            ValueError: the state belongs to another method.
        """
        if state:
            raise ValueError(
                f"{type(self).__name__} keeps no state, but the checkpoint has {sorted(state)}. "
                "Resume with the balancer that wrote it"
            )
