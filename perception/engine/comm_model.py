"""What the ranks of a training step send one another, on paper. Pure arithmetic.

Legend: T tasks, P elements of the n trainable parameters, N ranks, k numbers per sketch, L elements of the last shared
layer, F of a rank's shared features.

Bytes are those that one rank sends by the ring algorithms, which are also those that one link of the ring carries. Of a
payload of M bytes these are 2 M (N - 1) / N in an all-reduce, and M (N - 1) / N in a reduce-scatter, in an all-gather,
in the all-to-all that stands for a reduce-scatter on gloo and, on the average of the ranks, in a broadcast. What no
step repeats is left out: the check of new tasks' losses, checkpoints, evaluations. All tasks are present, a batch is an
update, and one forward has all losses.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from perception.balancing import Balancer

Kind = Literal["all_reduce", "reduce_scatter", "all_gather", "all_to_all", "broadcast"]
Mode = Literal["plain", "exact", "sketched", "parts", "features", "last_layer"]

MODES: dict[Mode, str] = {
    "plain": "one backward of a weighted sum, one all-reduce of its gradient",
    "exact": "each task's gradient reduce-scattered, T x T products all-reduced, the update all-gathered",
    "sketched": "T x k numbers all-reduced, then the update's gradient",
    "parts": "as exact, for methods that work element by element or layer by layer in place of T x T products",
    "features": "T x T products of the shared features' gradients all-reduced, then the update's gradient",
    "last_layer": "the last shared layer's gradient of each task all-reduced, then the update's gradient",
}
"""How a step's task gradients are compared → what ranks exchange for it."""

_MAY_BE_ZERO = ("num_idle", "num_statistics", "num_layers", "zero_stage")
_MIB = 2**20
_FLOAT64 = 8
_WEIGHTS_BUCKET = 16 * _MIB  # see `ShardedWeights`


@dataclass(frozen=True, kw_only=True)
class StepShape:
    """The sizes that a step's costs depend on.

    Attributes:
        num_ranks: N, 2 or more.
        num_parameters: P.
        num_tasks: T.
        num_tensors: n.
        num_idle: elements of parameters that no task reaches: exact rows and parts hold them, plain training does not.
        num_statistics: running statistics of batch norms in training mode.
        num_bytes: of a parameter's element. Task gradients are held and sent in float32 at least.
        sketch_size: k.
        num_last_layer: L; by default a layer from 256 to 256 channels and its norm.
        num_features: F; by default 150 x 150 BEV cells of 256 channels.
        num_layers: layers for each of which a method in mode "parts" adds T x T products.
        bucket_mb: largest message, MiB.
        zero_stage: DeepSpeed's; 0 is DDP.
        max_live_parameters: weights that are gathered at once at most, under stage 3.

    Raises:
        ValueError: a size is out of range.
    """

    num_ranks: int
    num_parameters: int
    num_tasks: int = 4
    num_tensors: int = 500
    num_idle: int = 0
    num_statistics: int = 0
    num_bytes: int = 4
    sketch_size: int = 65_536
    num_last_layer: int = 66_304
    num_features: int = 5_760_000
    num_layers: int = 0
    bucket_mb: float = 25.0
    zero_stage: int = 0
    max_live_parameters: int = 10**9

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = 2 if name == "num_ranks" else 0 if name in _MAY_BE_ZERO else 1
            if value < least and not (name == "bucket_mb" and value > 0):
                raise ValueError(f"{name} is {value}; allowed: {least} or more")
        if self.zero_stage > 3:
            raise ValueError(f"zero_stage is {self.zero_stage}; allowed: 0, 1, 2, 3")

    @property
    def row_bytes(self) -> int:
        """Of an element of a task gradient."""
        return max(4, self.num_bytes)


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A collective that all ranks take part in, once or several times in a step.

    Attributes:
        purpose: what it is for.
        kind: the collective.
        payload: bytes of what one goes over: the tensor of an all-reduce or broadcast, all ranks' pieces of the others.
        count: how many.
        is_gradient: whether it carries gradients or what is made of them, not flags and single numbers.
        bucket: largest message in bytes.
    """

    purpose: str
    kind: Kind
    payload: int
    count: int = 1
    is_gradient: bool = False
    bucket: float = math.inf

    def sent_bytes(self, num_ranks: int) -> float:
        """What a rank sends, all `count` together."""
        return self.count * sent_bytes(self.kind, self.payload, num_ranks)

    def num_hops(self, num_ranks: int) -> int:
        """How many times a message waits for the one before it, all `count` together."""
        depth = math.ceil(math.log2(num_ranks))
        hops = {"all_reduce": 2 * depth, "broadcast": depth}.get(self.kind, num_ranks - 1)
        return self.count * math.ceil(self.payload / self.bucket or 1) * hops


def sent_bytes(kind: Kind, payload: int, num_ranks: int) -> float:
    """What a rank sends in one collective; see the module.

    Example:
        >>> sent_bytes("all_reduce", 1000, 4), sent_bytes("all_gather", 1000, 4)
        (1500.0, 750.0)
    """
    return (2 if kind == "all_reduce" else 1) * payload * (num_ranks - 1) / num_ranks


def step_exchanges(mode: Mode, shape: StepShape) -> list[Exchange]:
    """All exchanges of one training step.

    Raises:
        ValueError: an unknown mode.

    Example:
        >>> shape = StepShape(num_ranks=8, num_parameters=1000, num_tasks=2)
        >>> for exchange in step_exchanges("exact", shape):
        ...     if exchange.is_gradient:
        ...         print(exchange.count, exchange.kind, exchange.payload)
        2 reduce_scatter 4000
        1 all_reduce 32
        1 all_gather 4000
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; allowed: {', '.join(MODES)}")
    exchanges = [
        Exchange(
            purpose="losses and target counts", kind="all_reduce", payload=4 * shape.num_tasks * _FLOAT64
        ),
        *(_SHARDED if shape.zero_stage == 3 else {}).get(mode, _MAKERS[mode])(shape),
        *_weights(mode, shape),
        Exchange(purpose="whether to stop", kind="all_reduce", payload=8),
    ]
    if shape.num_statistics:
        statistics = _FLOAT64 * shape.num_statistics
        exchanges.append(Exchange(purpose="batch norms' statistics", kind="all_reduce", payload=statistics))
    return exchanges


def _summed(shape: StepShape) -> list[Exchange]:
    update = (shape.num_parameters - shape.num_idle) * shape.num_bytes
    bucket = shape.bucket_mb * _MIB
    return [
        Exchange(purpose="who has a gradient", kind="all_reduce", payload=4 * shape.num_tensors),
        Exchange(purpose="update", kind="all_reduce", payload=update, is_gradient=True, bucket=bucket),
    ]


def _weights_and_coefficients(shape: StepShape) -> Exchange:
    payload = _FLOAT64 * shape.num_tasks
    return Exchange(purpose="weights, coefficients", kind="broadcast", payload=payload, count=2)


def _reached(shape: StepShape) -> Exchange:
    payload = shape.num_tasks * shape.num_tensors
    return Exchange(purpose="who reaches what", kind="all_reduce", payload=payload)


def _flags(shape: StepShape) -> list[Exchange]:
    is_finite = Exchange(purpose="who is not finite", kind="all_reduce", payload=shape.num_tasks)
    return [_reached(shape), is_finite, _weights_and_coefficients(shape)]


def _products(shape: StepShape, count: int) -> Exchange:
    payload = _FLOAT64 * shape.num_tasks**2 * count
    return Exchange(purpose="products", kind="all_reduce", payload=payload, is_gradient=True)


def _padded(shape: StepShape) -> int:
    return -(-shape.num_parameters // shape.num_ranks) * shape.num_ranks


def _by_parts(shape: StepShape, num_products: int) -> list[Exchange]:
    padded = _padded(shape) * shape.row_bytes
    bucket = shape.bucket_mb * _MIB
    rows = Exchange(
        purpose="task gradients",
        kind="reduce_scatter",
        payload=padded,
        count=shape.num_tasks,
        is_gradient=True,
        bucket=bucket,
    )
    update = Exchange(purpose="update", kind="all_gather", payload=padded, is_gradient=True, bucket=bucket)
    products = [_products(shape, num_products)] if num_products else []
    return [*_flags(shape), rows, *products, update]


def _sketched(shape: StepShape) -> list[Exchange]:
    payload = shape.num_tasks * shape.sketch_size * _FLOAT64
    sketches = Exchange(purpose="sketches", kind="all_reduce", payload=payload, is_gradient=True)
    return [*_flags(shape), sketches, *_summed(shape)]


def _features(shape: StepShape) -> list[Exchange]:
    return [_reached(shape), _weights_and_coefficients(shape), _products(shape, 1), *_summed(shape)]


def _last_layer(shape: StepShape) -> list[Exchange]:
    payload = shape.num_tasks * shape.num_last_layer * shape.row_bytes
    rows = Exchange(purpose="last layer's gradients", kind="all_reduce", payload=payload, is_gradient=True)
    return [rows, _weights_and_coefficients(shape), *_summed(shape)]


_MAKERS: dict[Mode, Callable[[StepShape], list[Exchange]]] = {
    "plain": _summed,
    "exact": lambda shape: _by_parts(shape, 1),
    "sketched": _sketched,
    "parts": lambda shape: _by_parts(shape, shape.num_layers),
    "features": _features,
    "last_layer": _last_layer,
}


def num_trunk_backwards(mode: Mode, shape: StepShape) -> int:
    """How often a step's backward passes go through the shared part."""
    return shape.num_tasks if mode in ("exact", "sketched", "parts") else 1


def _weights(mode: Mode, shape: StepShape) -> list[Exchange]:
    """Under ZeRO-1 and 2 updated weights; under 3 a forward's, and at most as many per backward if they can't stay."""
    if shape.zero_stage == 0:
        return []
    is_kept = shape.zero_stage < 3 or shape.num_parameters <= shape.max_live_parameters
    weights = Exchange(
        purpose="weights",
        kind="all_gather",
        payload=_padded(shape) * shape.num_bytes,
        count=1 if is_kept else 1 + num_trunk_backwards(mode, shape),
        is_gradient=True,
        bucket=_WEIGHTS_BUCKET if shape.zero_stage == 3 else math.inf,
    )
    if shape.zero_stage < 3:
        return [weights]
    # Asked for unit by unit, and before each other exchange whether anyone still does.
    units = -(-shape.num_parameters * shape.num_bytes // _WEIGHTS_BUCKET)
    asked = Exchange(
        purpose="which weights are needed",
        kind="all_reduce",
        payload=units + 1,
        count=weights.count * units + 8,
    )
    return [asked, weights]


def _sharded_exact(shape: StepShape) -> list[Exchange]:
    return [exchange for exchange in _by_parts(shape, 1) if exchange.purpose != "update"]


def _sharded_sum(shape: StepShape) -> list[Exchange]:
    (gradient,) = (one for one in _by_parts(shape, 1) if one.purpose == "task gradients")
    reached = Exchange(purpose="who reaches what", kind="all_reduce", payload=shape.num_tensors)
    return [reached, replace(gradient, purpose="gradient", count=1)]


_SHARDED: dict[Mode, Callable[[StepShape], list[Exchange]]] = {
    "plain": _sharded_sum,
    "exact": _sharded_exact,
}


def modes_of(balancer: Balancer) -> list[Mode]:
    """The modes in which a balancing method can train, its own plain one first.

    Args:
        balancer: the method.
    """
    if balancer.needs_gradients or balancer.observes_gradients or balancer.projects_groups:
        return ["parts"]
    if balancer.rotates_features:
        return ["features"]
    if not balancer.needs_gram:
        return ["plain"]
    if balancer.holds_gradients:
        return ["exact"]
    on_features: list[Mode] = ["features", "last_layer"] if balancer.has_shared_features else []
    return ["exact", "sketched", *on_features]
