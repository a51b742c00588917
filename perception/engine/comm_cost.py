"""What a training step's exchanges cost: seconds, operations and memory, on paper; and the table of it.

Seconds are bytes / bandwidth and hops × latency, one exchange after the other: an upper bound, as buckets overlap with
each other and reduce-scatters with the next task's backward. Hops are NCCL's: those of a tree in an all-reduce and a
broadcast, those of a ring in the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from perception.balancing import build_balancer
from perception.engine.comm_model import MODES, Mode, StepShape, modes_of, num_trunk_backwards, step_exchanges
from perception.utils.seed_statistics import markdown_table

_NODE = 8  # GPUs of a DGX A100
_SKETCH_CHUNK = 1 << 20  # columns that a sketch takes at once


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What exchanges and arithmetic run on; by default A100s, eight to a node.

    Attributes:
        bandwidth: bytes per second of one link of the ring; None: `a100_bandwidth`.
        latency: seconds per hop.
        flop_rate: operations per second of arithmetic on long vectors. Memory bounds it: an A100 reads 2.0e12 bytes per
            second, and a multiply-add wants four.
    """

    bandwidth: float | None = None
    latency: float = 5e-6
    flop_rate: float = 1e12


def a100_bandwidth(num_ranks: int) -> float:
    """Bytes per second of one link of the ring: NVLink inside a node, else the eight 200 Gb/s adapters of a node.

    NCCL splits a ring over all adapters of a node, so together they are one link. Peak rates in one direction.
    """
    return 300e9 if num_ranks <= _NODE else 200e9


def step_flops(mode: Mode, shape: StepShape) -> float:
    """Operations per rank for exchanging, comparing and combining gradients; forward and backward are not in it.

    A multiply-add is two. A method's own arithmetic on T x T numbers is nothing beside these; that of a method on parts
    is taken as one multiply-add per element, and the products of layers.
    """
    tasks, columns, others = shape.num_tasks, shape.num_parameters, 1 - 1 / shape.num_ranks
    part = columns / shape.num_ranks
    # Sums of what arrives, the finite check, products, combination.
    on_parts = tasks * columns * others + tasks * part + 2 * tasks * part
    products = 2 * tasks**2 * part
    return {
        "plain": columns * others,
        "exact": on_parts + products,
        "sketched": (columns + tasks * shape.sketch_size) * others
        + (1 + 2 + 2) * tasks * columns
        + 2 * tasks**2 * shape.sketch_size,
        "parts": on_parts + (products if shape.num_layers else 0.0),
        "features": columns * others + 2 * (tasks**2 + tasks) * shape.num_features,
        "last_layer": (columns + tasks * shape.num_last_layer) * others + 2 * tasks**2 * shape.num_last_layer,
    }[mode]


def step_memory(mode: Mode, shape: StepShape) -> float:
    """Bytes per rank of gradients and messages where most of them are alive at once, on NCCL.

    Plain: the gradient and its buckets. Exact: T local rows, T parts, the combined part, the update, and what is
    gathered for it; on gloo up to T rows more, which arrived and are not added yet. Parts: as exact, without a method's
    own arithmetic on a block of columns. Sketched: T rows, then either what sketching a chunk of columns takes, or the
    update and its buckets. The others: as plain, and T gradients of what is compared.
    """
    tasks, row = shape.num_tasks, shape.num_parameters * shape.row_bytes
    plain = 2 * shape.num_parameters * shape.num_bytes
    if shape.zero_stage == 3 and mode in ("plain", "exact"):
        num_parts = tasks + 2 if mode == "exact" else 1
        return num_parts * row / shape.num_ranks + 3 * min(row, shape.bucket_mb * 2**20)
    chunk = min(shape.num_parameters, _SKETCH_CHUNK) * (12 + 20 * tasks)
    parts = (tasks + 2) * row + (tasks + 1) * row / shape.num_ranks
    return {
        "plain": plain,
        "exact": parts,
        "sketched": tasks * row + max(plain, chunk),
        "parts": parts,
        "features": plain + tasks * shape.num_features * shape.row_bytes,
        "last_layer": plain + 2 * tasks * shape.num_last_layer * shape.row_bytes,
    }[mode]


def step_cost(mode: Mode, shape: StepShape, hardware: Hardware | None = None) -> dict[str, Any]:
    """Everything that a step costs beyond forward and backward, JSON-able.

    Returns:
        Per rank: `sent_bytes`, of which `gradient_bytes` and `small_bytes`; `times_plain` (sent, relative to plain
        training without ZeRO), `flops`, `memory_bytes`; `send_seconds`, `latency_seconds`, `arithmetic_seconds`;
        `trunk_backwards`, how often the backward passes through the shared part; `exchanges`, rows of `purpose`,
        `kind`, `count`, `payload` and `sent_bytes`; and `mode`, `ranks`, `parameters`, `bandwidth`.

    Example:
        >>> cost = step_cost("exact", StepShape(num_ranks=8, num_parameters=1_000_000, num_tasks=3))
        >>> round(cost["times_plain"], 2)  # (T + 1) / 2
        2.0
    """
    hardware = Hardware() if hardware is None else hardware
    ranks = shape.num_ranks
    bandwidth = hardware.bandwidth or a100_bandwidth(ranks)
    exchanges = step_exchanges(mode, shape)
    sent = sum(exchange.sent_bytes(ranks) for exchange in exchanges)
    gradient = sum(exchange.sent_bytes(ranks) for exchange in exchanges if exchange.is_gradient)
    unsharded = step_exchanges("plain", replace(shape, zero_stage=0))
    plain = sum(exchange.sent_bytes(ranks) for exchange in unsharded)
    flops = step_flops(mode, shape)
    return {
        "mode": mode,
        "ranks": ranks,
        "parameters": shape.num_parameters,
        "bandwidth": bandwidth,
        "sent_bytes": sent,
        "gradient_bytes": gradient,
        "small_bytes": sent - gradient,
        "times_plain": sent / plain,
        "flops": flops,
        "memory_bytes": step_memory(mode, shape),
        "send_seconds": sent / bandwidth,
        "latency_seconds": hardware.latency * sum(exchange.num_hops(ranks) for exchange in exchanges),
        "arithmetic_seconds": flops / hardware.flop_rate,
        "trunk_backwards": num_trunk_backwards(mode, shape),
        "exchanges": [
            {
                "purpose": exchange.purpose,
                "kind": exchange.kind,
                "count": exchange.count,
                "payload": exchange.payload,
                "sent_bytes": exchange.sent_bytes(ranks),
            }
            for exchange in exchanges
        ],
    }


def reckon_comm(
    *,
    num_ranks: Sequence[int],
    num_parameters: Sequence[int],
    method: str | None = None,
    bandwidth: float | None = None,
    latency: float = 5e-6,
    **sizes: Any,
) -> dict[str, Any]:
    """The costs of all combinations, JSON-able.

    Args:
        num_ranks: numbers of ranks.
        num_parameters: numbers of parameters.
        method: name of a balancing method: only its modes, and plain; None: all.
        bandwidth: as in `Hardware`.
        latency: as in `Hardware`.
        **sizes: further fields of `StepShape`.

    Returns:
        `rows` of `step_cost`; `modes`, what they are; `sizes`, `method`, `latency`, `flop_rate`.

    Raises:
        ValueError: an unknown method, or one that a name alone does not make; a size that is out of range.
    """
    modes = list(MODES)
    if method is not None:
        own = modes_of(build_balancer(method))
        modes = [mode for mode in MODES if mode == "plain" or mode in own]
    hardware = Hardware(bandwidth=bandwidth, latency=latency)
    rows = [
        step_cost(mode, StepShape(num_ranks=ranks, num_parameters=size, **sizes), hardware)
        for size in num_parameters
        for ranks in num_ranks
        for mode in modes
    ]
    return {
        "method": method,
        "modes": {mode: MODES[mode] for mode in modes},
        "sizes": dict(sizes),
        "latency": latency,
        "flop_rate": hardware.flop_rate,
        "rows": rows,
    }


def comm_table(result: Mapping[str, Any]) -> str:
    """A result of `reckon_comm` as Markdown: a table per number of parameters, and what its modes are."""
    by_size: dict[int, list[Mapping[str, Any]]] = {}
    for row in result["rows"]:
        by_size.setdefault(row["parameters"], []).append(row)
    modes = "\n".join(f"- {mode}: {summary}" for mode, summary in result["modes"].items())
    return "\n\n".join([*(_table(size, rows) for size, rows in by_size.items()), modes]) + "\n"


_HEADER = (
    "ranks",
    "mode",
    "sent MB",
    "× plain",
    "small KB",
    "send ms",
    "latency ms",
    "GFLOP",
    "memory MB",
    "trunk backwards",
)


def _table(size: int, costs: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            str(cost["ranks"]),
            cost["mode"],
            f"{cost['sent_bytes'] / 1e6:,.1f}",
            f"{cost['times_plain']:.3f}",
            f"{cost['small_bytes'] / 1e3:.1f}",
            f"{1e3 * cost['send_seconds']:.2f}",
            f"{1e3 * cost['latency_seconds']:.2f}",
            f"{cost['flops'] / 1e9:.2f}",
            f"{cost['memory_bytes'] / 1e6:,.0f}",
            str(cost["trunk_backwards"]),
        ]
        for cost in costs
    ]
    return f"{size:,} parameters\n\n{markdown_table(_HEADER, rows)}"
