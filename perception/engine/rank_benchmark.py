"""What a training step of several ranks costs, beside torch's own DistributedDataParallel.

Every rank runs this in step with the others. All variants take turns, so that a busy machine slows all of them; a ratio
compares two measurements of one round, and medians are over these ratios.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from perception.engine.balance_benchmark import describe_times, peak_mib
from perception.engine.balance_peers import Step
from perception.engine.balance_variants import WrapperStep, make_wrapper
from perception.engine.balance_workloads import Workload
from perception.engine.collectives import any_over_ranks, max_over_ranks, world_size
from perception.engine.comm_counter import socket_bytes_sent
from perception.engine.run_folder import describe_environment
from perception.utils import did_you_mean
from perception.utils.seed_statistics import markdown_table

DDP = "ddp"
_OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "sum": ("ours: plain sum", {"balancer": "sum"}),
    "pcgrad": ("ours: exact PCGrad", {"balancer": "pcgrad"}),
    "pcgrad-sketched": ("ours: PCGrad from sketches", {"balancer": "pcgrad", "sketch_size": 65_536}),
    "graddrop": ("ours: GradDrop on parts", {"balancer": "graddrop"}),
}
VARIANTS = (DDP, *_OURS)
_LR = 1e-6
_MIB = 2**20
_EXPLANATION = """\
A step is forward, backward, all exchanges and AdamW, until the last rank is done; the batch is loaded before. All
variants take turns; a ratio is of two steps of one round, shown are the median and the quartiles. Peak: the most bytes
of tensors alive at once in a variant's first two steps beyond those before them (model, batch and AdamW's state), by
torch's profiler. Sent: by one rank's sockets in a step, as the kernel counts.
"""


class _SummedLosses(nn.Module):
    """What DDP wraps: the sum of a workload's task losses."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.model = workload.model
        self._losses = workload.forward

    def forward(self) -> Tensor:
        return torch.stack([loss.reshape(()) for loss in self._losses().values()]).sum()


class _DDPStep:
    """A step as people write it: one backward through DDP of the summed losses.

    Args:
        workload: of its own, as DDP puts hooks into the model.
        optimizer: of its parameters.
        has_unused: whether some of them get no gradient.
    """

    def __init__(self, workload: Workload, optimizer: Optimizer, *, has_unused: bool) -> None:
        self.model = DistributedDataParallel(_SummedLosses(workload), find_unused_parameters=has_unused)
        self.optimizer = optimizer

    def __call__(self) -> None:
        self.model().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def benchmark_ranks(
    make: Callable[[], Workload], *, methods: Iterable[str] | None = None, num_steps: int = 20
) -> dict[str, Any]:
    """Measure steps in turns: forward, backward, all exchanges and an AdamW update; without loading the batch.

    Args:
        make: gives this rank's model and batch, the same model on every rank.
        methods: names of `VARIANTS`; None: all. DDP is always measured.
        num_steps: rounds; a variant takes one step in each.

    Returns:
        JSON-able: `variants`, name → `ms` (median, until the last rank is done), `ratio` to DDP's of the same round
        (median, and `ratio_quartiles`), `cpu_ms` and `cpu_ratio` of this rank's process, `peak_mib` (most bytes of
        tensors alive at once in the first two steps, beyond those before), `sent_mib` (what this rank's sockets sent
        in a step, as the kernel counts; None where it does not); `has_unused`, whether DDP looked for unused
        parameters; the workload, `ranks` and the environment.

    Raises:
        ValueError: an unknown method.
    """
    names = _choose(methods)
    workload, other = make(), make()
    has_unused = _has_unused(other)
    optimizer, others = _optimizer(workload), _optimizer(other)
    makers: dict[str, Callable[[], Step]] = {DDP: partial(_DDPStep, other, others, has_unused=has_unused)}
    for name, (_, options) in _OURS.items():
        makers[name] = partial(_our_step, workload, optimizer, options)
    steps: dict[str, Step] = {}
    peaks = {}
    for name in names:
        steps[name], peaks[name] = _first_steps(makers[name], workload.device)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for number in range(num_steps):
        first = number % len(names)
        for name in [*names[first:], *names[:first]]:
            times[name].append(_time(steps[name]))
    return {
        "workload": workload.name,
        "tasks": list(workload.task_names),
        "num_parameters": sum(parameter.numel() for parameter in workload.parameters),
        "ranks": world_size(),
        "num_steps": num_steps,
        "has_unused": has_unused,
        "variants": {
            name: {
                "summary": "torch's DistributedDataParallel, one backward" if name == DDP else _OURS[name][0],
                **describe_times(times[name], times[DDP]),
                "peak_mib": round(peaks[name], 4),
                "sent_mib": _sent_mib(steps[name]),
            }
            for name in names
        },
        "environment": describe_environment(),
    }


def ranks_table(result: Mapping[str, Any]) -> str:
    """The Markdown page of a result.

    Args:
        result: of `benchmark_ranks`, and the `command` that made it.
    """
    plain = result["variants"][DDP]
    rows = [
        [
            name,
            row["summary"],
            f"{row['ms']:.1f}",
            f"{row['ratio']:.2f} ({row['ratio_quartiles'][0]:.2f}–{row['ratio_quartiles'][1]:.2f})",
            f"{row['cpu_ratio']:.2f}",
            f"{row['peak_mib']:.0f}",
            f"{row['peak_mib'] - plain['peak_mib']:+.0f}",
            "–" if row["sent_mib"] is None else f"{row['sent_mib']:.1f}",
        ]
        for name, row in result["variants"].items()
    ]
    header = [
        "variant",
        "",
        "ms/step",
        "× DDP (quartiles)",
        "× DDP, CPU time",
        "peak MiB",
        "beyond DDP",
        "MiB sent",
    ]
    environment = result["environment"]
    unused = ", DDP with find_unused_parameters" if result["has_unused"] else ""
    return (
        f"# A step on {result['ranks']} ranks\n\n"
        f"{result['workload']}, {len(result['tasks'])} tasks, {result['num_parameters']:,} trained parameters; gloo on "
        f"one machine, {environment['threads']} thread(s) per rank, {environment['cpus']} cores "
        f"({environment['cpu']}); {result['num_steps']} rounds{unused}.\n\n"
        f"{markdown_table(header, rows)}\n\n{_EXPLANATION}\n```\n{result['command']}\n```\n"
    )


def _choose(methods: Iterable[str] | None) -> list[str]:
    chosen = list(VARIANTS if methods is None else methods)
    for name in chosen:
        if name not in VARIANTS:
            raise ValueError(
                f"unknown method {name!r}.{did_you_mean(name, VARIANTS)} Known: {', '.join(VARIANTS)}"
            )
    return [name for name in VARIANTS if name == DDP or name in chosen]


def _has_unused(workload: Workload) -> bool:
    """Whether a trainable parameter gets no gradient on some rank, which DDP must be told."""
    torch.stack([loss.reshape(()) for loss in workload.forward().values()]).sum().backward()
    flags = torch.tensor([any(parameter.grad is None for parameter in workload.parameters)])
    for parameter in workload.parameters:
        parameter.grad = None
    return bool(any_over_ranks(flags))


def _optimizer(workload: Workload) -> Optimizer:
    """AdamW that has its state already, so that no variant's first step pays for it."""
    optimizer = torch.optim.AdamW(workload.parameters, lr=_LR, fused=True)
    for parameter in workload.parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def _our_step(workload: Workload, optimizer: Optimizer, options: Mapping[str, Any]) -> Step:
    return WrapperStep(workload, make_wrapper(workload, optimizer, **options))


def _first_steps(make: Callable[[], Step], device: torch.device) -> tuple[Step, float]:
    """The step, and the peak of its making and its first two times, with what it keeps in between."""
    made: list[Step] = []

    def run() -> None:
        made.append(make())
        made[0]()
        made[0]()

    _meet()
    peak = peak_mib(run, device)
    return made[0], peak


def _meet() -> None:
    max_over_ranks(0, what="the others' step")


def _together(step: Step) -> None:
    _meet()
    step()
    _meet()


def _time(step: Step) -> tuple[float, float]:
    """Seconds by the clock until all ranks are done, and of this process's CPU time."""
    _meet()
    start, start_cpu = time.perf_counter(), time.process_time()
    step()
    _meet()
    return time.perf_counter() - start, time.process_time() - start_cpu


def _sent_mib(step: Step) -> float | None:
    _meet()
    before = socket_bytes_sent()
    _together(step)
    after = socket_bytes_sent()
    return None if before is None or after is None else round((after - before) / _MIB, 3)
