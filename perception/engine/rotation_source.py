"""Gradients of RotoGrad: one backward of each head, then one of the trunk from the balanced sum of what they sent."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from perception.balancing.shared_features import SharedFeatures
from perception.balancing.task_reach import find_reach
from perception.engine.collectives import any_over_ranks, from_first_rank, sum_over_ranks
from perception.engine.gradient_sources import MicroStep, NonFinite, unscale_gradients
from perception.engine.gradient_sync import sum_gradients_over_ranks

if TYPE_CHECKING:
    from perception.balancing.rotograd_balancer import RotoGradBalancer


class RotationSource:
    """Cuts the graph at the shared features, whose first tensor the model's `rotations` turn.

    Parameters behind the cut get the sum of the heads' weighted losses, those before it the heads' gradients times
    their coefficients, whichever way these come: through the rotated features, through other features, or around them
    all. What the rotations learn is handed to the balancer at the end of an update.

    Args:
        balancer: weighs the losses, and gives a coefficient per head.
        parameters: n trainable parameters.
        features: the model's cut; its forwards run under `features.cut()`.
        bucket_mb: largest message between ranks, MiB.
    """

    coefficients: Tensor | None = None  # there is not one per task

    def __init__(
        self,
        balancer: "RotoGradBalancer",
        parameters: Sequence[Tensor],
        features: SharedFeatures,
        *,
        bucket_mb: float,
    ) -> None:
        self.balancer = balancer
        self.parameters = list(parameters)
        self.features = features
        self.bucket_mb = bucket_mb
        self._restart()

    def _restart(self) -> None:
        self._num_steps = 0
        self._squared_norms = torch.zeros(len(self.balancer.groups), dtype=torch.float64)
        self._products: Tensor | None = None

    def micro_step(self, step: MicroStep) -> NonFinite | None:
        """Backward of each head with its loss, then of the trunk; not that where the former are not finite."""
        balancer, rotations, leaves = self.balancer, self.balancer.rotations, self.features.leaves
        if not leaves:
            raise ValueError(
                "RotoGrad rotates shared features, but the model's forward did not pass anything through its "
                "shared_features. Call them on what the heads read"
            )
        weights = from_first_rank(balancer.weigh(step.global_losses, step.present))
        shares = from_first_rank(balancer.combine(weights * step.global_losses, step.present, None))
        found = self._head_gradients(step, weights * shares)
        rotated = {head: grads[0] / step.loss_scale for head, grads in found.items() if grads[0] is not None}
        self._check(found, rotated)
        gram = sum_over_ranks(rotations.gram(rotated))
        if not bool(gram.isfinite().all()):
            return self._bad_tasks(step, rotated), []
        factors = from_first_rank(balancer.coefficients(gram))
        self._back_through_trunk(found, dict(zip(balancer.groups, factors.tolist(), strict=True)))
        products = rotations.products(rotated, gram.diagonal())
        self._products = products if self._products is None else self._products + products
        self._squared_norms += gram.diagonal()
        self._num_steps += 1
        self.features.clear()
        return None

    def finish(self, loss_scale: float) -> NonFinite | None:
        """Sum the gradients over ranks, unscaled, and what the rotations learn."""
        sum_gradients_over_ranks(self.parameters, bucket_mb=self.bucket_mb)
        unscale_gradients(self.parameters, loss_scale)
        if self._products is not None:
            self.balancer.hold(self._squared_norms, sum_over_ranks(self._products / self._num_steps))
        self._restart()
        return None

    def _head_gradients(self, step: MicroStep, totals: Tensor) -> dict[str, list[Tensor | None]]:
        """Head → gradients of the leaves and, behind these, of the trunk's parameters; the heads' own are kept.

        Only heads with a local loss. A parameter that the leaves' makers reach is the trunk's, even if a loss reaches
        it around the leaves too.
        """
        leaves = self.features.leaves
        roots = {str(number): root for number, root in enumerate(self.features.roots)}
        is_trunk = find_reach(roots, tuple(roots), self.parameters).any(dim=0).tolist()
        trunk = [p for p, flag in zip(self.parameters, is_trunk, strict=True) if flag]
        heads = [p for p, flag in zip(self.parameters, is_trunk, strict=True) if not flag]
        local = {
            head: [task for task in tasks if task in step.losses]
            for head, tasks in self.balancer.groups.items()
        }
        found: dict[str, list[Tensor | None]] = {}
        remaining = [head for head, tasks in local.items() if tasks]
        for head in list(remaining):
            remaining.remove(head)
            loss = step.weighted_sum(totals, local[head])
            assert loss is not None
            if loss.grad_fn is None:
                raise ValueError(
                    f"the losses of tasks {local[head]} are not connected to any parameter, so they have no gradient. "
                    "Compute them from the model's outputs without detach(), or leave the tasks out of the loss dict"
                )
            # A way around the cut shares the trunk's graph, which is still needed.
            keep = bool(remaining) or bool(find_reach({head: loss}, (head,), trunk).any())
            inputs = [*leaves, *trunk, *heads]
            grads = torch.autograd.grad(loss, inputs, retain_graph=keep, allow_unused=True)
            num_before = len(leaves) + len(trunk)
            found[head] = list(grads[:num_before])
            _add_gradients(heads, grads[num_before:])
        self._trunk = trunk
        return found

    def _back_through_trunk(
        self, found: Mapping[str, Sequence[Tensor | None]], factors: Mapping[str, float]
    ) -> None:
        """Combine the heads' gradients and take them through the trunk."""
        num_leaves = len(self.features.leaves)
        combined: list[Tensor | None] = [None] * (num_leaves + len(self._trunk))
        for head, grads in found.items():
            factor = (
                factors[head] or 1.0
            )  # nothing through the rotated features: nothing to scale the rest by
            for number, grad in enumerate(grads):
                if grad is not None:
                    before = combined[number]
                    combined[number] = grad * factor if before is None else before + grad * factor
        _add_gradients(self._trunk, combined[num_leaves:])
        pairs = [
            (root, grad)
            for root, grad in zip(self.features.roots, combined, strict=False)
            if root.requires_grad and grad is not None
        ]
        if pairs:
            torch.autograd.backward([root for root, _ in pairs], [grad for _, grad in pairs])

    def _check(self, found: Mapping[str, Sequence[Tensor | None]], rotated: Mapping[str, Tensor]) -> None:
        """Every head reads the features, and these have the length that is rotated."""
        first, size = self.features.leaves[0], self.balancer.rotations.size
        if first.shape[-1] != size:
            raise ValueError(
                f"the first tensor that the model passes to its shared_features is {tuple(first.shape)}, but RotoGrad "
                f"rotates vectors of shared_width = {size} along the last axis"
            )
        loose = [head for head in found if head not in rotated]
        if loose:
            raise ValueError(
                f"the losses of {loose[0]!r} don't reach the first tensor that the model passes to its "
                "shared_features, so RotoGrad can't rotate it for them. Let their head read "
                "rotations.rotate(features, ...) of it, or train by another method"
            )

    def _bad_tasks(self, step: MicroStep, rotated: Mapping[str, Tensor]) -> list[int]:
        names = step.losses.task_names
        flags = torch.zeros(len(names), dtype=torch.bool)
        for head, grad in rotated.items():
            if not bool(grad.isfinite().all()):
                flags[[names.index(task) for task in self.balancer.groups[head] if task in step.losses]] = (
                    True
                )
        return any_over_ranks(flags).nonzero().flatten().tolist()


def _add_gradients(parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    for parameter, grad in zip(parameters, gradients, strict=True):
        if grad is not None:
            parameter.grad = grad if parameter.grad is None else parameter.grad + grad
