"""What this process asks torch's collectives to move, and what its sockets really sent."""

import os
import socket
import stat
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch.distributed as dist
from torch import Tensor

from perception.engine.comm_model import Kind, sent_bytes
from perception.engine.row_exchange import ALL_GATHER, REDUCE_SCATTER

_BYTES_SENT = 200  # offset of tcpi_bytes_sent in Linux's struct tcp_info, since 4.19


# Function of torch.distributed → kind, and which argument is the payload, by place and name: see `Exchange.payload`.
COUNTED: dict[str, tuple[Kind, int, str]] = {
    "all_reduce": ("all_reduce", 0, "tensor"),
    "broadcast": ("broadcast", 0, "tensor"),
    "all_gather": ("all_gather", 0, "tensor_list"),
    ALL_GATHER: ("all_gather", 0, "output_tensor"),
    REDUCE_SCATTER: ("reduce_scatter", 1, "input"),
    "all_to_all_single": ("all_to_all", 1, "input"),
}


@dataclass
class CommCounter:
    """The collectives that were called.

    Attributes:
        calls: (kind, payload in bytes) of each, in order.
    """

    calls: list[tuple[Kind, int]] = field(default_factory=list)

    def payload_by_kind(self) -> dict[Kind, int]:
        """Bytes that went into collectives."""
        total: Counter[Kind] = Counter()
        for kind, payload in self.calls:
            total[kind] += payload
        return dict(total)

    def sent_bytes(self, num_ranks: int) -> float:
        """What this rank sends for them by the algorithms of `comm_model`."""
        return sum(sent_bytes(kind, payload, num_ranks) for kind, payload in self.calls)


@contextmanager
def count_collectives() -> Iterator[CommCounter]:
    """Count the collectives that this process calls inside, as `torch.distributed.<name>`, by old names too.

    Not counted are those that torch calls by itself, as DDP's constructor does. Not for two threads at once.

    Example:
        >>> with count_collectives() as counter:
        ...     pass  # a training step
        >>> counter.payload_by_kind()
        {}
    """
    counter = CommCounter()
    originals = {name: getattr(dist, name) for name in COUNTED}
    # DeepSpeed holds on to functions of older names, which call the present ones where they are defined.
    places = (dist, dist.distributed_c10d)
    for name, original in originals.items():
        counting = _counting(original, counter, *COUNTED[name])
        for place in places:
            setattr(place, name, counting)
    try:
        yield counter
    finally:
        for name, original in originals.items():
            for place in places:
                setattr(place, name, original)


def _counting(
    function: Callable[..., Any], counter: CommCounter, kind: Kind, place: int, argument: str
) -> Callable[..., Any]:
    @wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        payload = args[place] if len(args) > place else kwargs[argument]
        tensors = [payload] if isinstance(payload, Tensor) else payload
        counter.calls.append((kind, sum(tensor.numel() * tensor.element_size() for tensor in tensors)))
        return function(*args, **kwargs)

    return counted


def socket_bytes_sent() -> int | None:
    """Bytes that this process's open TCP connections have sent since they were made, headers not counted.

    The kernel's own count (TCP_INFO), so that other processes' traffic is not in it, as it is in an interface's.

    Returns:
        None where the system does not tell: it is not Linux, or an older one.
    """
    if not sys.platform.startswith("linux"):
        return None
    infos = [info for name in os.listdir("/proc/self/fd") if (info := _tcp_info(int(name)))]
    if any(len(info) < _BYTES_SENT + 8 for info in infos):
        return None
    return sum(struct.unpack_from("<Q", info, _BYTES_SENT)[0] for info in infos)


def _tcp_info(descriptor: int) -> bytes:
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return b""
        with socket.socket(fileno=os.dup(descriptor)) as connection:
            return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    except OSError:  # closed in between, or a socket of another kind
        return b""
