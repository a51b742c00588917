"""Which parameters each task's graph holds, found without a backward."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def find_reach(
    losses: Mapping[str, Tensor], task_names: Sequence[str], parameters: Sequence[Tensor]
) -> Tensor:
    """Walk each loss's graph to its leaves.

    Args:
        losses: task → 0-dim loss with a graph; a task left out reaches nothing.
        task_names: T tasks.
        parameters: n parameters.

    Returns:
        (T, n) bool.

    Example:
        >>> a, b = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
        >>> find_reach({"det": (a * b).sum(), "seg": b.sum()}, ("det", "seg"), [a, b]).tolist()
        [[True, True], [False, True]]
    """
    numbers = {id(parameter): number for number, parameter in enumerate(parameters)}
    reach = torch.zeros(len(task_names), len(parameters), dtype=torch.bool)
    for task_idx, task in enumerate(task_names):
        if task not in losses:
            continue
        loss = losses[task]
        if loss.grad_fn is None:
            if id(loss) in numbers:
                reach[task_idx, numbers[id(loss)]] = True
            continue
        pending, seen = [loss.grad_fn], {loss.grad_fn}
        while pending:
            node = pending.pop()
            leaf = getattr(node, "variable", None)  # of AccumulateGrad
            if leaf is not None and id(leaf) in numbers:
                reach[task_idx, numbers[id(leaf)]] = True
            for following, _ in node.next_functions:
                if following is not None and following not in seen:
                    seen.add(following)
                    pending.append(following)
    return reach
