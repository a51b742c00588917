"""A balancer driven through a made-up training, for the tests of this folder."""

import torch

from perception.balancing import build_balancer

TASKS = ("cls", "box", "velocity", "seg")
POTENTIALS = {"cls": 0.3, "box": 0.7, "velocity": 0.5, "seg": 0.4}
ARGUMENTS = {
    "constant": {"weights": {"cls": 1.0, "box": 2.0, "velocity": 0.5, "seg": 3.0}},
    "achievement": {"potentials": POTENTIALS},
    "amtl": {"potentials": POTENTIALS},
    "achievement+pcgrad": {"potentials": POTENTIALS},
    "recon": {"layers": ("trunk.0",)},
    "achievement+cagrad": {"achievement": {"potentials": POTENTIALS}},
}


def built(name, *, seed=0, **options):
    """The named balancer, set up for 24 epochs of 100 steps."""
    balancer = build_balancer({"name": name, **ARGUMENTS.get(name, {}), **options})
    balancer.setup(TASKS, max_epochs=24, total_steps=2400, seed=seed)
    balancer.begin_epoch(1)
    return balancer


def batch(number, *, size=10):
    """Gradients (T, n), losses (T,) and present (T,) of a batch; every third lacks a task."""
    generator = torch.Generator().manual_seed(number)
    gradients = torch.randn(len(TASKS), size, dtype=torch.float64, generator=generator)
    losses = torch.rand(len(TASKS), dtype=torch.float64, generator=generator) + 0.1
    present = torch.ones(len(TASKS), dtype=torch.bool)
    if number % 3 == 1:
        present[number % len(TASKS)] = False
    gradients[~present], losses[~present] = 0, 0
    return gradients, losses, present


def update(balancer, gradients, losses, present):
    """The update (n,) that the optimiser wrapper would make of the gradients."""
    weights = balancer.weigh(losses, present)
    weighted = gradients * weights[:, None]
    gram = weighted @ weighted.T if balancer.needs_gram else None
    coefficients = balancer.combine(weights * losses, present, gram)
    if balancer.needs_gradients:
        return balancer.combine_block(weighted, present, 0)
    return coefficients @ weighted


def train(balancer, numbers):
    """Steps on numbered batches; an epoch and a validation after each fourth. Returns the updates."""
    updates = []
    for number in numbers:
        updates.append(update(balancer, *batch(number)))
        balancer.end_step()
        if number % 4 == 3:
            epoch = number // 4 + 1
            balancer.end_epoch({task: 1.0 / (epoch + k) for k, task in enumerate(TASKS)})
            balancer.update_kpis({task: 0.05 * epoch + 0.01 * k for k, task in enumerate(TASKS)})
            balancer.begin_epoch(epoch + 1)
    return updates
