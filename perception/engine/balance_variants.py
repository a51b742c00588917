"""The ways to take a training step that the cost benchmark compares, and the proof that they take the same one."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from perception.balancing import MultiTaskBalancer
from perception.balancing.build import Spec
from perception.engine.balance_peers import (
    Step,
    flat_pcgrad_step,
    plain_step,
    project,
    torchjd_step,
    trunk_parameters,
)
from perception.engine.balance_workloads import Workload
from perception.engine.optim_wrapper import BalancedOptimWrapper
from perception.utils import did_you_mean

PLAIN = "plain"
TOLERANCE = 1e-4
"""Largest relative error of an update that the benchmark accepts of a float64 network."""
TOLERANCE_FLOAT32 = 5e-3
"""The same in float32: vmap rounds otherwise, and batch norms magnify it (7e-4 seen, where float64 had 4e-15)."""

_SEED = 5


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to take a step.

    Attributes:
        name: for tables and `--methods`.
        summary: what it is.
        make: (workload, optimizer) → the step.
        period: steps after which its cost repeats.
        exact: the method whose update on all shared parameters it claims to take; None: not checked.
        shared: whose notion of shared parameters it has, "tasks" (two or more tasks reach them) or "trunk".
    """

    name: str
    summary: str
    make: Callable[[Workload, Optimizer], Step]
    period: int = 1
    exact: Literal["pcgrad", "sum"] | None = None
    shared: Literal["tasks", "trunk"] = "trunk"


def make_wrapper(
    workload: Workload, optimizer: Optimizer, balancer: Spec, **options: Any
) -> BalancedOptimWrapper:
    """Our wrapper, prepared as the runner does it."""
    wrapper = BalancedOptimWrapper(optimizer, balancer=balancer, **options)
    wrapper.balanced.prepare(
        workload.model, workload.task_names, max_epochs=24, total_steps=10_000, seed=_SEED
    )
    wrapper.balanced.begin_epoch(1)
    return wrapper


class WrapperStep:
    """A step through our wrapper, as `train_step` takes it.

    Args:
        workload: model and batch.
        wrapper: prepared.
    """

    def __init__(self, workload: Workload, wrapper: BalancedOptimWrapper) -> None:
        self.workload = workload
        self.wrapper = wrapper

    def __call__(self) -> None:
        """Forward, backward and update."""
        with self.wrapper.optim_context(self.workload.model):
            losses = self.workload.forward()
        self.wrapper.update_params(losses)


def _ours(workload: Workload, optimizer: Optimizer, balancer: Spec, **options: Any) -> Step:
    return WrapperStep(workload, make_wrapper(workload, optimizer, balancer, **options))


def _amtl(workload: Workload, optimizer: Optimizer) -> Step:
    potentials = dict.fromkeys(workload.task_names, 0.5)
    wrapper = make_wrapper(workload, optimizer, {"name": "amtl", "potentials": potentials})
    wrapper.balancer.update_kpis(dict.fromkeys(workload.task_names, 0.25))
    return WrapperStep(workload, wrapper)


def _variant(name: str, summary: str, balancer: str, **options: Any) -> Variant:
    exact = balancer if balancer in ("sum", "pcgrad") and not options else None
    return Variant(
        name=name,
        summary=summary,
        make=partial(_ours, balancer=balancer, **options),
        period=options.get("interval", 1),
        exact=exact,  # type: ignore[arg-type]
        shared="tasks",
    )


def _torchjd(name: str, summary: str, method: str, **options: Any) -> Variant:
    return Variant(
        name=name,
        summary=summary,
        make=partial(torchjd_step, method=method, **options),
        exact="pcgrad" if method == "pcgrad" else None,
    )


_LEAN = {"parallel_chunk_size": 1, "optimize_gramian": True}

VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant(name=PLAIN, summary="one backward of the sum, no wrapper", make=plain_step, exact="sum"),
        _variant("sum", "ours, one backward", "sum"),
        Variant(name="amtl", summary="ours, one backward", make=_amtl),
        _variant("pcgrad", "ours, exact", "pcgrad"),
        _variant("mgda", "ours, exact", "mgda"),
        _variant("wpcgrad", "ours, exact", "wpcgrad"),
        _variant("mclgs", "ours, exact", "mclgs"),
        _variant("pcgrad-features", "ours, on the features", "pcgrad", gradient_source="features"),
        _variant("pcgrad-last-layer", "ours, on the last layer", "pcgrad", gradient_source="last_layer"),
        _variant("pcgrad-interval-4", "ours, exact, every 4th update", "pcgrad", interval=4),
        _variant("sum-watched", "ours, cosines in every update", "sum", watch={"gram_interval": 1}),
        _torchjd("torchjd-pcgrad", "mtl_backward, jac_to_grad", "pcgrad"),
        _torchjd("torchjd-pcgrad-sequential", "same, parallel_chunk_size=1", "pcgrad", parallel_chunk_size=1),
        _torchjd("torchjd-pcgrad-gramian", "same, Gramian optimised", "pcgrad", optimize_gramian=True),
        _torchjd("torchjd-pcgrad-lean", "same, both", "pcgrad", **_LEAN),
        _torchjd("torchjd-mgda", "mtl_backward, jac_to_grad", "mgda"),
        _torchjd("torchjd-mgda-lean", "same, chunk 1, Gramian optimised", "mgda", **_LEAN),
        Variant(
            name="flat-pcgrad",
            summary="LibMTL-style loop on vectors",
            make=flat_pcgrad_step,
            exact="pcgrad",
        ),
    )
}


def choose_variants(names: Iterable[str] | None) -> list[Variant]:
    """The named variants in the table's order, the plain sum first; None: all.

    Raises:
        ValueError: an unknown name.
    """
    wanted = set(VARIANTS if names is None else names) | {PLAIN}
    for name in sorted(wanted):
        if name not in VARIANTS:
            raise ValueError(
                f"unknown method {name!r}.{did_you_mean(name, list(VARIANTS))} Known: {', '.join(VARIANTS)}"
            )
    return [variant for name, variant in VARIANTS.items() if name in wanted]


class _Catcher(SGD):
    """Keeps the gradients of a step instead of taking it."""

    found: list[Tensor | None]

    def step(self, closure: Any = None) -> None:
        """Copy the gradients."""
        self.found = [
            None if parameter.grad is None else parameter.grad.double().cpu()
            for group in self.param_groups
            for parameter in group["params"]
        ]


class UpdateCheck:
    """The updates of the plain sum and of PCGrad, computed on float64 vectors, to hold variants against.

    PCGrad's orders come from one seed in all of them. A parameter that is not shared has the sum's gradient.

    Args:
        workload: model and batch.

    Attributes:
        tolerance: largest error to accept.
    """

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        is_double = workload.parameters[0].dtype == torch.float64
        self.tolerance = TOLERANCE if is_double else TOLERANCE_FLOAT32
        parameters, losses = workload.parameters, list(workload.forward().values())
        self._gradients = [
            torch.autograd.grad(loss, parameters, retain_graph=loss is not losses[-1], allow_unused=True)
            for loss in losses
        ]
        counts = [sum(row[n] is not None for row in self._gradients) for n in range(len(parameters))]
        trunk = {id(parameter) for parameter in trunk_parameters(workload)}
        self._updates: dict[tuple[str | None, str], list[Tensor]] = {}
        self._shared = {
            "tasks": [n for n, count in enumerate(counts) if count >= 2],
            "trunk": [n for n, parameter in enumerate(parameters) if id(parameter) in trunk],
        }

    def error(self, variant: Variant) -> float | None:
        """Norm of the difference between a variant's update and ours here, relative; None: it claims nothing."""
        if variant.exact is None:
            return None
        catcher = _Catcher(self.workload.parameters, lr=0.0)
        step = variant.make(self.workload, catcher)
        if isinstance(step, WrapperStep) and isinstance(step.wrapper.balancer, MultiTaskBalancer):
            step.wrapper.balancer.generator.manual_seed(_SEED)
        with _draws():
            step()
        squares = errors = 0.0
        for found, expected in zip(catcher.found, self._update(variant), strict=True):
            difference = expected if found is None else found - expected
            squares += float(expected.square().sum())
            errors += float(difference.square().sum())
        return (errors / squares) ** 0.5

    def _update(self, variant: Variant) -> list[Tensor]:
        key = (variant.exact, variant.shared)
        if key not in self._updates:
            self._updates[key] = self._compute(variant)
        return self._updates[key]

    def _compute(self, variant: Variant) -> list[Tensor]:
        update = [self._rows(number).sum(dim=0) for number in range(len(self.workload.parameters))]
        if variant.exact == "pcgrad":
            shared = self._shared[variant.shared]
            with _draws():
                vector = project(torch.cat([self._rows(number) for number in shared], dim=1)).sum(dim=0)
            sizes = [update[number].numel() for number in shared]
            for number, value in zip(shared, vector.split(sizes), strict=True):
                update[number] = value
        shapes = [parameter.shape for parameter in self.workload.parameters]
        return [value.view(shape) for value, shape in zip(update, shapes, strict=True)]

    def _rows(self, number: int) -> Tensor:
        """(T, elements) float64 gradients of one parameter."""
        zero = torch.zeros(self.workload.parameters[number].numel(), dtype=torch.float64)
        found = [row[number] for row in self._gradients]
        return torch.stack([zero if g is None else g.flatten().double().cpu() for g in found])


@contextmanager
def _draws() -> Iterator[None]:
    """Under it `torch.randperm` gives the orders that our PCGrad draws from a generator with the benchmark's seed."""
    generator = torch.Generator().manual_seed(_SEED)
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        yield
