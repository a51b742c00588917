"""The few exchanges between ranks that training needs, all without pickle, all no-ops on one rank."""

import json
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from perception.engine.rank_notes import exchange


def is_distributed() -> bool:
    """Whether a process group is up."""
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Number of ranks."""
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    """This process's rank."""
    return dist.get_rank() if is_distributed() else 0


def leave_process_group() -> None:
    """Close the process group, if there is one."""
    if is_distributed():
        dist.destroy_process_group()


def comm_device() -> torch.device:
    """Device on which the process group's backend wants its tensors."""
    if is_distributed() and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def max_over_ranks(value: int, *, what: str = "largest of a number") -> int:
    """The largest of all ranks' values, the same on every rank; `what` names it for the watch, see `rank_notes`."""
    if world_size() == 1:
        return value
    tensor = torch.tensor([value], dtype=torch.int64, device=comm_device())
    with exchange(what):
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return int(tensor.item())


def any_over_ranks(flags: Tensor) -> Tensor:
    """Element-wise "on any rank" of a bool tensor, the same on every rank."""
    if world_size() == 1:
        return flags
    moved = flags.to(comm_device(), torch.uint8)
    with exchange("flags of all ranks"):
        dist.all_reduce(moved, op=dist.ReduceOp.MAX)
    return moved.to(flags.device, torch.bool)


def sum_over_ranks(values: Tensor, *, what: str = "sum of numbers") -> Tensor:
    """Element-wise sum over ranks, returned on the device of `values`; `what` names it for the watch."""
    if world_size() == 1:
        return values
    moved = values.to(comm_device(), copy=True)
    with exchange(what):
        dist.all_reduce(moved)
    return moved.to(values.device)


def join_norms(norm: Tensor, norm_type: float) -> Tensor:
    """The norm of a vector of which each rank has a part, from the part's norm (0-dim), the same on every rank.

    Example:
        >>> join_norms(torch.tensor(3.0), 2.0)  # on one rank
        tensor(3.)
    """
    if world_size() == 1:
        return norm
    if norm_type == float("inf"):
        return torch.tensor(gather_json(float(norm), what="largest gradient")).max().to(norm)
    return (sum_over_ranks(norm.double() ** norm_type, what="norm of the gradient") ** (1 / norm_type)).to(
        norm
    )


def from_first_rank(values: Tensor) -> Tensor:
    """The first rank's values on every rank, on the device of `values`."""
    if world_size() == 1:
        return values
    moved = values.to(comm_device(), copy=True)
    with exchange("the first rank's numbers"):
        dist.broadcast(moved, src=0)
    return moved.to(values.device)


def gather_bytes(data: bytes, *, what: str = "messages of all ranks") -> list[bytes]:
    """Each rank's bytes, on every rank, in the order of ranks; `what` names them for the watch."""
    if world_size() == 1:
        return [data]
    with exchange(what):
        return _gather_bytes(data)


def gather_json(content: Any, *, what: str = "messages of all ranks") -> list[Any]:
    """Each rank's JSON-able value, on every rank, in the order of ranks; `what` names them for the watch."""
    if world_size() == 1:
        return [content]
    parts = gather_bytes(json.dumps(content).encode("utf-8"), what=what)
    return [json.loads(data.decode("utf-8")) for data in parts]


def _gather_bytes(data: bytes) -> list[bytes]:
    device = comm_device()
    length = torch.tensor([len(data)], dtype=torch.int64, device=device)
    lengths = [torch.zeros_like(length) for _ in range(world_size())]
    dist.all_gather(lengths, length)
    longest = max(int(item.item()) for item in lengths)
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    padded[: len(data)] = (
        torch.frombuffer(bytearray(data), dtype=torch.uint8).to(device) if data else padded[:0]
    )
    parts = [torch.zeros_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded)
    return [
        bytes(part[: int(size.item())].cpu().numpy().tobytes())
        for part, size in zip(parts, lengths, strict=True)
    ]
