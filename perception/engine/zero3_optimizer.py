"""ZeRO stage 3: weights too lie in parts on the ranks. DeepSpeed holds and updates the parts; the model never sees it.

DeepSpeed's own hooks gather weights layer by layer and hang where ranks run different layers, as they do where a rank
has no labels for a task; they also take the shapes of parameters away. So its engine is given the parameters alone,
without the model around them, and `ShardedWeights` makes whole weights of the parts that it updates.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from perception.engine.collectives import rank, world_size
from perception.engine.sharded_weights import ShardedWeights
from perception.engine.zero_optimizer import Piece, ZeroOptimizer, gather_on_first


class Zero3Optimizer(ZeroOptimizer):
    """As `ZeroOptimizer`; the weights of its parameters are sharded too, and read inside `weights` alone.

    Args:
        optimizer: as there.
        model: as there; nothing of it may be compiled.
        start_engine: (model, optimizer) → DeepSpeed's engine with ZeRO-3.
        weights: an empty context, open or not.

    Raises:
        TypeError, ValueError, RuntimeError: as there.
    """

    weights: ShardedWeights

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        *,
        start_engine: Callable[[nn.Module, Optimizer], Any],
        weights: ShardedWeights,
    ) -> None:
        compiled = [name for name, part in model.named_modules() if part._compiled_call_impl is not None]
        if compiled:
            raise ValueError(
                f"strategy.zero_stage=3 gathers weights operation by operation, but {compiled} are compiled to single "
                "ones. Leave model.compiled out, or use strategy.zero_stage=2"
            )
        self.weights = weights
        super().__init__(optimizer, model, start_engine=start_engine)
        parameters = [p for shard in self._shards for p in shard]
        weights.shard(parameters, [self._part_of[id(p)] for p in parameters])

    def _start(self, start_engine: Callable[[nn.Module, Optimizer], Any], model: nn.Module) -> Any:
        twins = [[nn.Parameter(p.detach()) for p in shard] for shard in self._shards]
        for group, shard in zip(self._inner.param_groups, twins, strict=True):
            group["params"] = list(shard)
        engine = start_engine(nn.ParameterList([twin for shard in twins for twin in shard]), self._inner)
        self._part_of = {
            id(p): twin.ds_tensor
            for shard, others in zip(self._shards, twins, strict=True)
            for p, twin in zip(shard, others, strict=True)
        }
        return engine

    def _deal_out(self) -> tuple[list[Tensor], list[list[Piece]]]:
        pieces: list[list[Piece]] = []
        for shard in self._shards:
            offset = 0
            pieces.append([])
            for p in shard:
                size = len(self._part_of[id(p)])
                start, end = min(rank() * size, p.numel()), min((rank() + 1) * size, p.numel())
                if size != -(-p.numel() // world_size()):
                    raise RuntimeError(
                        f"this DeepSpeed deals out {p.numel()} weights in parts of {size} to {world_size()} ranks. "
                        "Install deepspeed==0.19.8, or use strategy.zero_stage=2"
                    )
                self._part_of[id(p)][end - start :] = 0.0  # padding
                pieces[-1].append(Piece(p, start, end, offset))
                offset += size
        return list(self._zero.fp32_partitioned_groups_flat), pieces

    def step(self, closure: None = None) -> None:
        """As the base class; the update is read from the parts' gradients, where they have one."""
        super().step()
        self.weights.release()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Free the gradients, those of the parts too."""
        super().zero_grad(set_to_none)
        for part in self.weights.shards:
            part.grad = None

    @torch.no_grad()
    def whole_weights(self) -> dict[int, Tensor]:
        """Identity of a parameter → its weights on the CPU, on the first rank; every rank must call this."""
        found = {}
        for p, part in zip(self.weights.parameters, self.weights.shards, strict=True):
            whole = gather_on_first(part)
            if whole is not None:
                found[id(p)] = whole[: p.numel()].view(p.shape).cpu()
        return found

    def _weights_of(self, p: Tensor) -> Tensor:
        return self._part_of[id(p)].data

    def _is_reached(self, p: Tensor) -> bool:
        part = self._part_of.get(id(p))
        return p.grad is not None or (part is not None and part.grad is not None)

    def _gradient_of(self, piece: Piece) -> Tensor | None:
        part = self._part_of[id(piece.parameter)]
        return super()._gradient_of(piece) if part.grad is None else part.grad[: piece.end - piece.start]

    def _whole(self, number: int, flat: Tensor) -> Iterator[Tensor]:
        offset = 0
        for p in self._shards[number]:
            size = len(self._part_of[id(p)])
            whole = gather_on_first(flat[offset : offset + size])
            offset += size
            yield flat if whole is None else whole[: p.numel()].view(p.shape)
