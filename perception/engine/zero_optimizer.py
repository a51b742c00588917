"""An optimiser whose state and step DeepSpeed's ZeRO shards over the ranks, behind the interface of torch's.

The gradient sources leave the *global* update in `p.grad` on every rank, so DeepSpeed has nothing to reduce: its
gradient hooks are taken off, each rank hands it the part of the update that it owns, and `engine.step()` runs the
optimiser on the parts and gathers the weights. Everything before the step (balancing, finite check, clipping,
precision, accumulation) and everything after it (schedules, checkpoints) is that of the other strategies.

Legend: N ranks, P elements of a shard's parameters, S = P / N (padded) elements that a rank owns.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from perception.engine.collectives import comm_device, rank, world_size
from perception.engine.rank_notes import exchange
from perception.engine.sharded_weights import ShardedWeights
from perception.utils import get_logger

logger = get_logger("engine")

ELEMENTWISE = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
"""Optimisers whose update of an element depends on this element alone, so that parts of tensors can be updated."""

_STEP = "step"  # the only state of these optimisers that is not one number per element
_MAX_NAMED = 5


@dataclass(frozen=True)
class Piece:
    """Elements [start, end) of a parameter, at `offset` in what this rank owns."""

    parameter: Tensor
    start: int
    end: int
    offset: int

    def of(self, values: Tensor) -> Tensor:
        """These elements of what has the parameter's shape."""
        return values.reshape(-1)[self.start : self.end]

    def within(self, flat: Tensor) -> Tensor:
        """Their place in what this rank owns."""
        return flat[self.offset : self.offset + self.end - self.start]


class ZeroOptimizer(Optimizer):
    """Shards a freshly built optimiser; `param_groups` stay as they were, over whole parameters.

    Parameters without a gradient are left as they are, as by torch's optimisers. *Deviation*: DeepSpeed joins
    parameters to flat tensors, for which Adam counts the updates once, not per parameter. So the bias correction of a
    parameter that had no gradient in some earlier update counts those too; the first such case is logged.

    Args:
        optimizer: one of `ELEMENTWISE`, without state; used up.
        model: holds its parameters, all of them float32, on its device.
        start_engine: (model, optimizer) → DeepSpeed's engine with ZeRO-1 or 2, which are the same here.

    Attributes:
        weights: the sharded weights, None where they lie whole on each rank.

    Raises:
        TypeError: the optimiser is none of `ELEMENTWISE`.
        ValueError: a parameter is not float32, or none is trained.
        RuntimeError: this DeepSpeed lacks what is used.
    """

    weights: ShardedWeights | None = None

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        *,
        start_engine: Callable[[nn.Module, Optimizer], Any],
    ) -> None:
        if type(optimizer) not in ELEMENTWISE:
            raise TypeError(
                f"ZeRO splits tensors between ranks, so it takes {', '.join(kind.__name__ for kind in ELEMENTWISE)}, "
                f"not {type(optimizer).__name__}. Use one of them, or strategy.zero_stage=0"
            )
        wrong = [name for name, p in model.named_parameters() if p.dtype != torch.float32]
        if wrong:
            raise ValueError(
                f"{len(wrong)} parameters are not float32, as {wrong[0]}; ZeRO's own weights are. Use "
                "optim_wrapper.precision='bf16' on a float32 model"
            )
        super().__init__([dict(group) for group in optimizer.param_groups], dict(optimizer.defaults))
        self._names = {id(p): name for name, p in model.named_parameters()}
        self._inner = optimizer
        self._members, self._shards = _join_equal(self.param_groups)
        if not self._shards:
            raise ValueError("the optimiser has no parameter that is trained; set requires_grad on one")
        optimizer.param_groups[:] = [
            {**self.param_groups[members[0]], "params": list(shard)}
            for members, shard in zip(self._members, self._shards, strict=True)
        ]
        for p in model.parameters():
            p.data = p.data.contiguous()  # DeepSpeed takes no other, and its flat tensors are no other
        self._engine = self._start(start_engine, model)
        self._zero = self._engine.optimizer
        _take_off_hooks(self._engine)
        self._flats, self._pieces = self._deal_out()
        self._missed: set[int] = set()
        self._has_told = False

    def _start(self, start_engine: Callable[[nn.Module, Optimizer], Any], model: nn.Module) -> Any:
        return start_engine(model, self._inner)

    def _deal_out(self) -> tuple[list[Tensor], list[list[Piece]]]:
        """This rank's weights of each shard, flat, and which elements of which parameters they are."""
        flats = [group["params"][0] for group in self._inner.param_groups]
        return flats, [_owned(shard, len(flat)) for shard, flat in zip(self._shards, flats, strict=True)]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of the weights from `p.grad`, which must be the same on all ranks; these are freed.

        Raises:
            ValueError: parameters were unfrozen after the start, or options of groups that were equal no longer are.
            RuntimeError: DeepSpeed left out the step.
        """
        self._copy_options()
        self._check_gradients()
        # The model's weights count: they may have been loaded, or put back below.
        self._zero.refresh_fp32_params()
        put_back = [self._keep_idle(number) for number in range(len(self._shards))]
        for number, flat in enumerate(self._flats):
            own = (
                torch.zeros_like(flat) if flat.grad is None else flat.grad.zero_()
            )  # the latter if offloaded
            for piece in self._pieces[number]:
                if (gradient := self._gradient_of(piece)) is not None:
                    piece.within(own).copy_(gradient)
            self._zero.averaged_gradients[number] = [own]
        with warnings.catch_warnings(), exchange("sharded update"):
            warnings.simplefilter("ignore", FutureWarning)  # it calls what torch 2.13 has new names for
            self._engine.step()
        if self._zero.overflow:
            raise RuntimeError("DeepSpeed left out an update that had passed the finite check")
        for undo in put_back:
            undo()

    @torch.no_grad()
    def state_dict(self) -> dict[str, Any]:
        """As torch's, gathered from all ranks; every rank must call this, only the first one gets the state."""
        index = {id(p): n for n, p in enumerate(p for group in self.param_groups for p in group["params"])}
        state: dict[int, dict[str, Tensor]] = {}
        for number, (shard, flat) in enumerate(zip(self._shards, self._flats, strict=True)):
            for key, value in self._inner.state.get(flat, {}).items():
                if not isinstance(value, Tensor):
                    continue
                parts = (value for _ in shard) if key == _STEP else self._whole(number, value)
                for p, part in zip(shard, parts, strict=True):
                    if rank() == 0:
                        state.setdefault(index[id(p)], {})[key] = part.detach().cpu().clone()
        groups = [
            {**{key: value for key, value in group.items() if key != "params"},
             "params": [index[id(p)] for p in group["params"]]}
            for group in self.param_groups
        ]  # fmt: skip
        return {"state": state, "param_groups": groups}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned on the first rank; each rank takes its part.

        Raises:
            ValueError: the groups are others.
        """
        saved = state_dict["param_groups"]
        sizes = [len(group["params"]) for group in self.param_groups]
        if [len(group["params"]) for group in saved] != sizes:
            raise ValueError(
                f"the optimiser's state has groups of {[len(group['params']) for group in saved]} parameters, this "
                f"optimiser of {sizes}. Use the same model and paramwise_cfg"
            )
        states: dict[int, Mapping[str, Tensor]] = {}
        for group, other in zip(self.param_groups, saved, strict=True):
            group.update({key: value for key, value in other.items() if key != "params"})
            for p, number in zip(group["params"], other["params"], strict=True):
                states[id(p)] = state_dict["state"].get(number, {})
        for shard, pieces, flat in zip(self._shards, self._pieces, self._flats, strict=True):
            state = {}
            for key, value in states[id(shard[0])].items():
                state[key] = value.clone() if key == _STEP else torch.zeros_like(flat)
                for piece in pieces if key != _STEP else ():
                    piece.within(state[key]).copy_(piece.of(states[id(piece.parameter)][key]))
            if _STEP in state and _counts_on_device(self._inner.param_groups[0]):
                state[_STEP] = state[_STEP].to(flat.device)
            self._inner.state[flat] = state

    def close(self) -> None:
        """Free DeepSpeed's engine."""
        self._engine.destroy()

    def _weights_of(self, p: Tensor) -> Tensor:
        """What of a parameter's weights lies here."""
        return p.data

    def _is_reached(self, p: Tensor) -> bool:
        """Whether the update changes a parameter, the same on all ranks."""
        return p.grad is not None

    def _gradient_of(self, piece: Piece) -> Tensor | None:
        return None if piece.parameter.grad is None else piece.of(piece.parameter.grad)

    def _whole(self, number: int, flat: Tensor) -> Iterator[Tensor]:
        """Of a shard's state, each parameter's on the first rank, anything elsewhere; every rank must use it up."""
        value = gather_on_first(flat)
        for p in self._shards[number]:
            if value is None:
                yield flat
            else:
                yield value[: p.numel()].view(p.shape)
                value = value[p.numel() :]

    def _copy_options(self) -> None:
        for members, inner in zip(self._members, self._inner.param_groups, strict=True):
            first, *others = (_options(self.param_groups[number]) for number in members)
            if any(other != first for other in others):
                raise ValueError(
                    "parameter groups that started with equal options now differ (say in lr), which ZeRO's joined "
                    "groups cannot follow. Give them different options from the start, or use strategy.zero_stage=0"
                )
            inner.update(first)

    def _check_gradients(self) -> None:
        sharded = {id(p) for shard in self._shards for p in shard}
        parameters = [p for group in self.param_groups for p in group["params"]]
        loose = [p for p in parameters if self._is_reached(p) and id(p) not in sharded]
        if loose:
            raise ValueError(
                f"{len(loose)} parameters have a gradient but were frozen when ZeRO was set up, as "
                f"{self._names.get(id(loose[0]), 'one of no model')}. "
                "Unfreeze them before the run, or use strategy.zero_stage=0"
            )
        reached = {id(p) for p in parameters if self._is_reached(p)}
        late = [self._names[number] for number in reached & self._missed]
        if late and not self._has_told and not isinstance(self._inner, torch.optim.SGD):
            self._has_told = True
            logger.warning(
                "parameters without a gradient in some earlier update have one now: %s; under ZeRO Adam's bias "
                "correction counts the updates of all parameters together, so theirs differs a little from that of "
                "an unsharded run",
                ", ".join(sorted(late)[:_MAX_NAMED]),
            )
        self._missed |= sharded - reached

    def _keep_idle(self, number: int) -> Callable[[], None]:
        """Remember a shard's parameters without a gradient; what is returned puts them and their state back."""
        flat = self._flats[number]
        idle = [p for p in self._shards[number] if not self._is_reached(p)]
        weights = [(p, self._weights_of(p).clone()) for p in idle]
        pieces = [piece for piece in self._pieces[number] if not self._is_reached(piece.parameter)]
        before = self._inner.state.get(flat, {})
        kept = [
            {
                key: piece.within(value).clone()
                for key, value in before.items()
                if value is not None and key != _STEP
            }
            for piece in pieces
        ]

        def put_back() -> None:
            for p, value in weights:
                self._weights_of(p).copy_(value)
            for piece, values in zip(pieces, kept, strict=True):
                for key, value in self._inner.state[flat].items():
                    if value is not None and key != _STEP:
                        piece.within(value).copy_(values.get(key, torch.zeros(())))

        return put_back


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def _join_equal(groups: Sequence[Mapping[str, Any]]) -> tuple[list[list[int]], list[list[Tensor]]]:
    """Numbers of the groups with equal options, and their trained parameters; one group per parameter is common."""
    members: list[list[int]] = []
    shards: list[list[Tensor]] = []
    for number, group in enumerate(groups):
        trained = [p for p in group["params"] if p.requires_grad]
        if not trained:
            continue
        same = [i for i, others in enumerate(members) if _options(groups[others[0]]) == _options(group)]
        if same:
            members[same[0]].append(number)
            shards[same[0]].extend(trained)
        else:
            members.append([number])
            shards.append(trained)
    return members, shards


def _owned(shard: Sequence[Tensor], size: int) -> list[Piece]:
    """What this rank owns of a shard's parameters, laid end to end and dealt out in parts of `size`."""
    first = rank() * size
    pieces = []
    position = 0
    for p in shard:
        start, end = max(first - position, 0), min(first + size - position, p.numel())
        if start < end:
            pieces.append(Piece(p, start, end, position + start - first))
        position += p.numel()
    return pieces


def _take_off_hooks(engine: Any) -> None:
    """Backward and forward leave gradients and engine alone: reducing is done already, and by tasks."""
    zero = engine.optimizer
    needed = {"averaged_gradients", "refresh_fp32_params", "_grad_acc_hooks", "overflow"}
    lacking = sorted(name for name in needed if not hasattr(zero, name))
    if lacking:
        raise RuntimeError(
            f"this DeepSpeed's {type(zero).__name__} has no {', '.join(lacking)}. Install deepspeed==0.19.8, or use "
            "strategy.zero_stage=0"
        )
    for hook in (*zero._grad_acc_hooks, engine.module_forward_pre_hook, engine.module_forward_post_hook):
        hook.remove()
    zero._grad_acc_hooks = []


def gather_on_first(part: Tensor) -> Tensor | None:
    """(N * S,) of the ranks' (S,) parts, on the first rank; every rank must call this."""
    part = part.detach().to(comm_device())
    parts = [torch.empty_like(part) for _ in range(world_size())] if rank() == 0 else None
    with exchange("the optimiser's state of all ranks"):
        dist.gather(part, parts)
    return None if parts is None else torch.cat(parts)


def _counts_on_device(group: Mapping[str, Any]) -> bool:
    return bool(group.get("fused") or group.get("capturable"))
