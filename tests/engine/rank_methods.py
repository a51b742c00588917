"""The same ten updates by every method on any number of ranks: a small network, tasks without labels on some ranks."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from perception.balancing import TaskLosses, balancer_names, build_balancer
from perception.engine import gradient_sources
from perception.engine.collectives import rank, world_size
from perception.engine.deepspeed_strategy import shard_optimizer
from perception.engine.sharded_weights import ShardedWeights
from tests.engine.test_gradient_sources import TASKS, Net, batch, make, spec_of

GLOBAL_BATCH, STEPS = 4, 10
LEARNING_RATE = 0.01
"""At 0.1 ten updates amplify rounding: a sign that bf16 turns in GradDrop's draw then ends ten times as far off."""
# They train another model or need the runner; `test_task_forwards_ranks` and the tests of each have them on two ranks.
ELSEWHERE = ("connection_strength", "cross_stitch", "recon", "recon_scores", "rotograd")
METHODS = tuple(name for name in balancer_names() if name not in ELSEWHERE)
COMPARING = tuple(name for name in METHODS if build_balancer(spec_of(name)).needs_gram)
TELLING = ("pcgrad", "mgda", "wpcgrad-seg-vel")
"""With which the conflicts of each rank's own gradients are tried."""
LARGE_SKETCH = 4096
"""Numbers per task that are more than the network has parameters: the sketch is exact."""
FEW_LIVE = 100
"""Less than half of the network's weights: under ZeRO-3 each backward gathers them again."""


def local_losses(net: Net, step: int) -> TaskLosses:
    """This rank's part of the global batch; velocity has labels in every second sample, box in the first alone."""
    x, targets = batch(100 + step, GLOBAL_BATCH)
    dtype = net.trunk.weight.dtype
    share = GLOBAL_BATCH // world_size()
    mine = range(rank() * share, (rank() + 1) * share)
    outputs = net(x[mine.start : mine.stop].to(dtype))
    losses, counts = {}, {}
    for task in TASKS:
        every = {"velocity": 2, "box": GLOBAL_BATCH}.get(task, 1)
        labelled = [sample for sample in mine if sample % every == 0]
        if not labelled:
            continue
        found = outputs[task][[sample - mine.start for sample in labelled]]
        losses[task] = (found.to(dtype) - targets[task][labelled].to(dtype)).square().mean()
        counts[task] = torch.tensor(float(len(labelled)))
    return TaskLosses(losses, counts, TASKS)


def weights_after(method: str, precision: str, *, zero_stage: int = 0, **options: Any) -> Tensor:
    """(3, P) float64: all weights at the start, after one step and after all of them."""
    net = Net().to(torch.float64 if precision == "float64" else torch.float32)
    if precision == "bf16":
        options["precision"] = "bf16"
    wrapper = make(net, spec_of(method), lr=LEARNING_RATE, **options)
    weights = ShardedWeights(max_live_parameters=FEW_LIVE)
    found = []
    with weights if zero_stage == 3 else nullcontext():
        if zero_stage:
            wrapper.shard(shard_optimizer(wrapper.optimizer, net, zero_stage=zero_stage, weights=weights))
        for step in range(STEPS):
            if step < 2:
                found.append(_flat(net))
            with wrapper.optim_context(net):
                losses = local_losses(net, step)
            wrapper.update_params(losses)
        return torch.stack([*found, _flat(net)])


def all_weights(methods: list[str], precision: str, way: str) -> dict[str, Tensor]:
    """`weights_after` of some methods, in one of several ways.

    Args:
        methods: their names.
        precision: "float64", "float32" or "bf16".
        way: "exact"; "zero1", "zero2", "zero3", exact and sharded; "sketch", with sketches that are exact; "local":
            conflicts of each rank's own gradients.
    """
    if way == "exact" or way.startswith("zero"):
        stage = int(way.removeprefix("zero")) if way != "exact" else 0
        return {method: weights_after(method, precision, zero_stage=stage) for method in methods}
    real = gradient_sources.sum_over_ranks, gradient_sources.from_first_rank
    if way == "local":
        gradient_sources.sum_over_ranks = gradient_sources.from_first_rank = lambda values: values
    try:
        return {method: weights_after(method, precision, sketch_size=LARGE_SKETCH) for method in methods}
    finally:
        gradient_sources.sum_over_ranks, gradient_sources.from_first_rank = real


def _flat(net: Net) -> Tensor:
    return torch.cat([parameter.detach().double().flatten() for parameter in net.parameters()])
