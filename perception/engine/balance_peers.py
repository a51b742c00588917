"""How others balance gradients, to measure against: plain training, TorchJD's calls, and the loop of LibMTL's kind.

Legend: T tasks, P shared parameters' elements. Every factory returns a function that takes one training step.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer
from torchjd.aggregation import MGDA, Aggregator, PCGrad
from torchjd.autojac import jac_to_grad, mtl_backward

from perception.balancing import SharedFeatures
from perception.balancing.task_reach import find_reach
from perception.engine.balance_workloads import Workload

Step = Callable[[], None]


class RecordedFeatures(SharedFeatures):
    """Keeps what the heads read. The heads get views, as one feature may be made from another."""

    def __call__(self, *features: Tensor) -> tuple[Tensor, ...]:
        """Views of the features."""
        self.roots = [feature.view_as(feature) for feature in features]
        return tuple(self.roots)


def plain_step(workload: Workload, optimizer: Optimizer) -> Step:
    """One backward of the sum of the losses, without any wrapper."""

    def step() -> None:
        workload.forward().total().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def torchjd_step(
    workload: Workload,
    optimizer: Optimizer,
    *,
    method: str,
    parallel_chunk_size: int | None = None,
    optimize_gramian: bool = False,
) -> Step:
    """TorchJD's `mtl_backward` and `jac_to_grad`, as its multi-task example has them.

    Its shared parameters are those of the trunk: what only some tasks share (a decoder) it does not compare, there it
    takes the sum.

    Args:
        workload: model and batch.
        optimizer: takes the step.
        method: "pcgrad" or "mgda".
        parallel_chunk_size: tasks that go through the trunk at once by vmap; None: all, its default.
        optimize_gramian: its `optimize_gramian_computation`.
    """
    aggregator: Aggregator = {"pcgrad": PCGrad, "mgda": MGDA}[method]()
    shared = trunk_parameters(workload)
    recorded = RecordedFeatures()
    losses = workload.forward()
    trunk, reach = (
        {id(parameter) for parameter in shared},
        find_reach(losses, list(losses), workload.parameters),
    )
    counts = reach.sum(dim=0).tolist()
    # What two heads share outside the trunk would lose its graph in the first one's backward.
    has_shared_heads = any(
        count >= 2 and id(parameter) not in trunk
        for parameter, count in zip(workload.parameters, counts, strict=True)
    )
    del losses

    def step() -> None:
        mtl_backward(
            _forward(workload, recorded),
            features=recorded.roots,
            retain_graph=has_shared_heads,
            parallel_chunk_size=parallel_chunk_size,
        )
        recorded.clear()
        jac_to_grad(shared, aggregator, optimize_gramian_computation=optimize_gramian)
        optimizer.step()
        optimizer.zero_grad()

    return step


def flat_pcgrad_step(workload: Workload, optimizer: Optimizer) -> Step:
    """PCGrad on whole vectors, as LibMTL and most papers' codes do it.

    A backward per task into `p.grad`, the trunk's gradients flattened to the rows of a (T, P) matrix, projections on
    these in Python loops, the sum written back.

    *Source*: Yu et al. 2020, Algorithm 1. Written here from the method's description.
    """
    shared = trunk_parameters(workload)
    sizes = [parameter.numel() for parameter in shared]

    def step() -> None:
        losses = list(workload.forward().values())
        rows = torch.zeros(len(losses), sum(sizes), dtype=shared[0].dtype, device=workload.device)
        for number, loss in enumerate(losses):
            loss.backward(retain_graph=number + 1 < len(losses))
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in shared]
            rows[number] = torch.cat([gradient.flatten() for gradient in gradients])
            for parameter in shared:
                parameter.grad = None
        for parameter, value in zip(shared, project(rows).sum(dim=0).split(sizes), strict=True):
            parameter.grad = value.view_as(parameter).clone()
        optimizer.step()
        optimizer.zero_grad()

    return step


def project(rows: Tensor) -> Tensor:
    """PCGrad on vectors: each (P,) row loses its part against every other original row that it conflicts with.

    Args:
        rows: (T, P). The others' order is drawn by `torch.randperm`, row by row.

    Returns:
        (T, P).
    """
    projected = rows.clone()
    for i in range(len(rows)):
        for j in torch.randperm(len(rows)).tolist():
            if j == i:
                continue
            product = projected[i] @ rows[j]
            if product < 0:
                projected[i] -= product / rows[j].square().sum() * rows[j]
    return projected


def trunk_parameters(workload: Workload) -> list[Tensor]:
    """What the features are made from: the shared parameters as TorchJD and LibMTL see them."""
    recorded = RecordedFeatures()
    _forward(workload, recorded)
    total = torch.stack([feature.sum() for feature in recorded.roots]).sum()
    (reach,) = find_reach({"trunk": total}, ("trunk",), workload.parameters)
    return [p for p, is_reached in zip(workload.parameters, reach.tolist(), strict=True) if is_reached]


def _forward(workload: Workload, recorded: RecordedFeatures) -> list[Tensor]:
    own = workload.model.shared_features
    workload.model.shared_features = recorded
    try:
        return list(workload.forward().values())
    finally:
        workload.model.shared_features = own
