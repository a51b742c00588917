"""Random task gradients for the tests of this folder."""

import torch


def draw(seed, *, num_tasks=None, rank=None, size=12, low=-10.0, high=10.0):
    """(T, n) float64 of a given rank, at a scale of 10^low … 10^high; T of 2 to 8 if not given."""
    generator = torch.Generator().manual_seed(seed)
    if num_tasks is None:
        num_tasks = int(torch.randint(2, 9, (), generator=generator))
    normal = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    matrix = normal(num_tasks, size) if rank is None else normal(num_tasks, rank) @ normal(rank, size)
    exponent = low + (high - low) * float(torch.rand((), generator=generator))
    return matrix * 10**exponent


def orders_of(num_tasks, seed):
    """The orders in which TorchJD's PCGrad and GradVac visit the others, from a generator seeded like the method's."""
    method_seed = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(seed)))
    generator = torch.Generator().manual_seed(method_seed)
    pcgrad, gradvac = [], []
    for task in range(num_tasks):
        pcgrad.append([int(j) for j in torch.randperm(num_tasks, generator=generator) if int(j) != task])
    generator.manual_seed(method_seed)
    for task in range(num_tasks):
        others = [j for j in range(num_tasks) if j != task]
        gradvac.append([others[int(j)] for j in torch.randperm(num_tasks - 1, generator=generator)])
    return pcgrad, gradvac


def seeded(method, seed):
    """The method with a generator of its own."""
    method.generator = torch.Generator().manual_seed(seed)
    return method


def relative_error(found, expected, matrix):
    """Largest error of an update, in parts of the norm of J."""
    return float((found - expected).abs().max() / matrix.norm())
