"""Weights that lie in parts on the ranks, and whole only around the operations that read them (ZeRO stage 3).

Every operation of torch passes by here first. One that reads a weight waits until the weight has been gathered;
detours (views, autocast, recomputed activations, weights read outside their own layer) need nothing special, since
what is looked at is the memory itself. Memory is freed and filled again in place, so shapes, names and graphs stay as
they are.

Ranks need not run the same layers: one may have no labels for a task, or fewer batches to evaluate. Whoever needs
weights asks all others, and a rank that is done, that is, about to enter another exchange, answers until all are.

Legend: N ranks, U units (neighbouring weights that are gathered together).
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from perception.engine.collectives import comm_device, rank, world_size
from perception.engine.rank_notes import before_exchanges, exchange
from perception.engine.row_exchange import ALL_GATHER

_UNIT = 1 << 22
_UNITS_AT_ONCE = 8

_aten = torch.ops.aten
# They look at shape, type and device of their arguments alone.
_READ_NO_VALUES = frozenset(
    overload
    for packet in (
        _aten.detach, _aten.alias, _aten.empty_like, _aten.zeros_like, _aten.ones_like, _aten.full_like,
        _aten.rand_like, _aten.randn_like, _aten.new_empty, _aten.new_empty_strided, _aten.new_zeros,
        _aten.new_ones, _aten.new_full,
    )
    for overload in (getattr(packet, name) for name in packet.overloads())
)  # fmt: skip


class ShardedWeights(TorchDispatchMode):
    """A context inside which parameters may be sharded; on leaving it, they are whole again.

    Parameter by parameter, the part of rank r is elements [r s, (r + 1) s) with s = ceil(elements / N), padded.
    What has been gathered stays until others need the room, or until `release`. An operation that writes to a weight,
    as loading does, changes the parts too.

    Args:
        max_live_parameters: gathered weights, in elements, that may be there at once; more only if one operation
            needs them. A step whose weights all fit gathers each of them once.

    Attributes:
        parameters: the sharded ones.
        shards: this rank's part of each, flat and padded.

    Raises:
        ValueError: `max_live_parameters` is not positive.
    """

    def __init__(self, *, max_live_parameters: int = 10**9) -> None:
        super().__init__()
        if max_live_parameters < 1:
            raise ValueError(f"max_live_parameters is {max_live_parameters}; allowed: 1 or more")
        self.max_live = int(max_live_parameters)
        self.parameters: list[Tensor] = []
        self.shards: list[Tensor] = []
        self.is_open = False
        self._units: list[list[int]] = []
        self._sizes: list[int] = []
        self._homes: dict[int, int] = {}  # storage → unit
        self._live: dict[int, None] = {}  # in the order of gathering, the same on all ranks
        self._is_moving = False
        self._group: Any = None

    # ------------------------------------------------------------------ what training sees

    def shard(self, parameters: Sequence[Tensor], shards: Sequence[Tensor]) -> None:
        """From now on the parameters' values come from the ranks' parts; every rank must call this.

        Args:
            parameters: contiguous; their memory is freed.
            shards: this rank's part of each, kept up to date by an optimiser.
        """
        self.parameters, self.shards = list(parameters), list(shards)
        self._group = dist.new_group() if world_size() > 1 else None
        self._units = [[]]
        size = 0
        limit = min(_UNIT, self.max_live // _UNITS_AT_ONCE)
        for number, parameter in enumerate(self.parameters):
            if self._units[-1] and size + parameter.numel() > limit:
                self._units.append([])
                size = 0
            self._units[-1].append(number)
            size += parameter.numel()
            if parameter.untyped_storage().nbytes() != parameter.numel() * parameter.element_size():
                parameter.data = parameter.data.clone()  # its memory is not its own
        for unit, members in enumerate(self._units):
            self._sizes.append(sum(self.parameters[number].numel() for number in members))
            self._free(unit)
        self._find_homes()

    def parts(self, parameters: Sequence[Tensor]) -> list[Tensor] | None:
        """This rank's part of each; None if one is not sharded."""
        found = {id(p): part for p, part in zip(self.parameters, self.shards, strict=True)}
        return [found[id(p)] for p in parameters] if all(id(p) in found for p in parameters) else None

    def release(self) -> None:
        """Free what has been gathered: the parts have changed."""
        for unit in list(self._live):
            self._free(unit)

    def settle(self) -> None:
        """Answer the other ranks until all of them are here."""
        if self._is_moving or not self._units:
            return
        with self._moving():
            while True:
                asked, is_done = self._agree((), is_done=True)
                if is_done:
                    return
                self._gather(asked)

    def __enter__(self) -> "ShardedWeights":
        self._leave_hook = before_exchanges(self.settle)
        self.is_open = True
        self._find_homes()
        return super().__enter__()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if kind is None and self._units:
                self.settle()
                with self._moving():
                    for unit in range(len(self._units)):
                        if unit not in self._live:
                            self._fill(unit)
        finally:
            self._homes = {}
            self.is_open = False
            self._leave_hook()
            super().__exit__(kind, error, trace)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Have the weights that an operation reads at hand, then run it."""
        kwargs = kwargs or {}
        if self._is_moving or not self._homes or func in _READ_NO_VALUES:
            return func(*args, **kwargs)
        homes = self._homes
        needed = {homes[key] for tensor in _tensors((args, kwargs)) if (key := _storage(tensor)) in homes}
        if not needed:
            return func(*args, **kwargs)
        if not needed <= self._live.keys():
            with self._moving():
                self._gather(self._agree(needed, is_done=False)[0])
        result = func(*args, **kwargs)
        if func._schema.is_mutable:
            with self._moving():
                self._keep(_written(func, args, kwargs))
        return result

    # ------------------------------------------------------------------ details

    def _find_homes(self) -> None:
        self._homes = {
            _storage(self.parameters[number]): unit
            for unit, members in enumerate(self._units)
            for number in members
        }

    @contextmanager
    def _moving(self) -> Iterator[None]:
        """Operations inside are ours."""
        self._is_moving = True
        try:
            with torch.no_grad():
                yield
        finally:
            self._is_moving = False

    def _agree(self, needed: Collection[int], *, is_done: bool) -> tuple[list[int], bool]:
        """The units that any rank needs, and whether all are done; every rank must call this."""
        if world_size() == 1:
            return sorted(needed), is_done
        flags = torch.zeros(len(self._units) + 1, dtype=torch.uint8)
        flags[list(needed)] = 1
        flags[-1] = not is_done
        flags = flags.to(comm_device())
        with exchange("which weights are needed"):
            dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self._group)
            *asked, anyone_works = flags.tolist()
        return [unit for unit, flag in enumerate(asked) if flag], not anyone_works

    def _gather(self, asked: Sequence[int]) -> None:
        """Have these units at hand; every rank must call this, with the same ones."""
        missing = [unit for unit in asked if unit not in self._live]
        total = sum(self._sizes[unit] for unit in {*self._live, *asked})
        for unit in list(self._live):
            if total <= self.max_live:
                break
            if unit not in asked:
                self._free(unit)
                total -= self._sizes[unit]
        for unit in missing:
            self._fill(unit)

    def _fill(self, unit: int) -> None:
        members = self._units[unit]
        own = torch.cat([self.shards[number].detach() for number in members])
        whole = own.to(comm_device())
        if world_size() > 1:
            whole = whole.new_empty(world_size() * len(own))
            with exchange("weights"):
                getattr(dist, ALL_GATHER)(whole, own.to(comm_device()), group=self._group)
        parts = whole.view(world_size(), -1).split([len(self.shards[number]) for number in members], dim=1)
        for number, part in zip(members, parts, strict=True):
            parameter = self.parameters[number]
            parameter.untyped_storage().resize_(parameter.numel() * parameter.element_size())
            # Through `data`: the graph of a forward must not take this for a change.
            parameter.data.view(-1).copy_(part.reshape(-1)[: parameter.numel()])
        self._live[unit] = None

    def _free(self, unit: int) -> None:
        for number in self._units[unit]:
            self.parameters[number].untyped_storage().resize_(0)
        self._live.pop(unit, None)

    def _keep(self, storages: Collection[int]) -> None:
        """Take over what was written to whole weights, the same on all ranks."""
        for unit in {self._homes[key] for key in storages if key in self._homes}:
            for number in self._units[unit]:
                if _storage(self.parameters[number]) in storages:
                    own = own_part(self.parameters[number].detach(), len(self.shards[number]))
                    self.shards[number][: len(own)].copy_(own)


def own_part(whole: Tensor, size: int) -> Tensor:
    """This rank's elements of a tensor that is dealt out in parts of `size`; fewer, or none, at the end.

    Example:
        >>> own_part(torch.tensor([[1, 2], [3, 4]]), 4).tolist()  # on one rank
        [1, 2, 3, 4]
    """
    return whole.reshape(-1)[rank() * size : (rank() + 1) * size]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else 0


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple | dict):
            yield from _tensors(value)


def _written(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> set[int]:
    """Storages of the arguments that an operation writes to."""
    found = []
    for number, argument in enumerate(func._schema.arguments):  # type: ignore[attr-defined]
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(args[number] if number < len(args) else kwargs.get(argument.name))
    return {_storage(tensor) for tensor in _tensors(found)}
