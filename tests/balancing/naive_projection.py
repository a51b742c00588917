"""Connection strength's second phase as the paper writes it, with vectors; the oracle of two test files."""

import torch
from torch import Tensor

NO_TASK = -1


def naive(grads: list[list[Tensor]], group: list[int], num_tasks: int) -> list[Tensor]:
    """Algorithm 1, lines 6-16, of one layer: grads[task][parameter]; vectors are projected one by one."""
    result = [torch.zeros_like(part) for part in grads[0]]
    for task in range(num_tasks):
        channels = [p for p, owner in enumerate(group) if owner == task]
        if not channels:
            continue

        def vector(j: int, channels: list[int] = channels) -> Tensor:
            return torch.cat([part[p].flatten() for part in grads[j] for p in channels])

        reference = vector(task)
        total = reference.clone()
        for other in range(num_tasks):
            if other == task:
                continue
            g = vector(other)
            dot = torch.dot(g, reference)
            if dot < 0 and reference.any():
                g = g - dot / torch.dot(reference, reference) * reference
            total = total + g
        taken = 0
        for part in result:
            for p in channels:
                size = part[p].numel()
                part[p] = total[taken : taken + size].view_as(part[p])
                taken += size
    for p, owner in enumerate(group):
        if owner == NO_TASK:
            for number, part in enumerate(result):
                part[p] = sum(grads[j][number][p] for j in range(num_tasks))
    return result
