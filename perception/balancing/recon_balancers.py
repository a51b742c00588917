"""Recon as two runs: a training that scores layers, and one of the network in which the worst of them are split."""

from collections.abc import Callable, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from perception.balancing._grouped_balancer import GroupedBalancer, GroupedOptions
from perception.balancing.recon import LayerConflicts, shared_layers
from perception.balancing.split_layers import split_layers
from perception.balancing.task_copies import task_copies
from perception.balancing.task_gradients import TaskGradients
from perception.utils import name_some


class ReconScores(GroupedBalancer):
    """Any training, in which each shared layer counts how often the groups' gradients conflict in it.

    *Source*: Recon, Algorithm 1, first run; see `LayerConflicts`. Its `report` names the layers to split, the worst
    first: copy them from the last line of the log into `Recon(layers=...)`. Many ranks add the inner products of their
    parts, L x G x G numbers for L layers and G groups.

    Args:
        num_layers: how many layers the report names. Released: 40 for SegNet on Cityscapes, 15 for MTAN on NYUv2.
        threshold: S; a pair conflicts if its cosine is below. Released: 0.0 and −0.02.
        trunk: submodules whose layers are candidates; by default the model's `trunk_names`; none means all.
        options: `groups` (the tasks whose gradients are added up) and the others of `GroupedBalancer`.

    Raises:
        ValueError: a threshold or a number of layers outside its range; at `adopt`, no trainable layer.

    Example:
        >>> from perception.balancing import build_balancer
        >>> build_balancer({"name": "recon_scores", "num_layers": 5, "combination": "cagrad"}).threshold
        0.0
    """

    observes_gradients = True

    def __init__(
        self,
        *,
        num_layers: int = 15,
        threshold: float = 0.0,
        trunk: Sequence[str] | None = None,
        **options: Unpack[GroupedOptions],
    ) -> None:
        super().__init__(**options)
        LayerConflicts(layers=("any",), num_tasks=2, threshold=threshold)  # checks it
        if num_layers < 1:
            raise ValueError(f"num_layers is {num_layers}; allowed: 1 or more")
        self.num_layers = num_layers
        self.threshold = threshold
        self.trunk = None if trunk is None else tuple(trunk)
        self.conflicts: LayerConflicts | None = None
        self._parameter_names: dict[int, str] = {}

    def adopt(self, model: nn.Module) -> None:
        """Learn the layers and whose parameters are whose."""
        groups = self._declare(model)
        trunk = self.trunk if self.trunk is not None else tuple(getattr(model, "trunk_names", ()))
        self.conflicts = LayerConflicts(
            layers=shared_layers(model, trunk), num_tasks=len(groups), threshold=self.threshold
        )
        self._parameter_names = {id(parameter): name for name, parameter in model.named_parameters()}

    def observe_gradients(self, gradients: TaskGradients, add: Callable[[Tensor], Tensor]) -> None:
        """Count one update, from the task gradients of the global batch."""
        assert self.conflicts is not None
        assert self._groups is not None
        products = self.conflicts.zero_products()
        factors = gradients.factors.tolist()
        for piece in gradients.pieces():
            weighted = [
                None if grad is None else factor * grad
                for factor, grad in zip(factors, piece.gradients, strict=True)
            ]
            per_task = dict(zip(self.task_names, weighted, strict=True))
            sums = [_sum([per_task[task] for task in tasks]) for tasks in self._groups.values()]
            name = self._parameter_names[id(gradients.parameters[piece.number])]
            self.conflicts.add_products(products, name, sums)
        self.conflicts.update(add(products))

    def report(self) -> dict[str, Any]:
        """As the base class, and `recon_layers`: names of the layers to split, as of now."""
        report = super().report()
        if self.conflicts is not None and self.conflicts.num_steps:
            found = min(self.num_layers, len(self.conflicts.layers))
            report["recon_layers"] = self.conflicts.top(found)
        return report

    def state_dict(self) -> dict[str, Any]:
        """The base class's, and the scores."""
        own = {} if self.conflicts is None else {"conflicts": self.conflicts.state_dict()}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned; after `adopt` and `setup`."""
        rest = {key: value for key, value in state.items() if key != "conflicts"}
        super().load_state_dict(rest)
        if self.conflicts is not None:
            self.conflicts.load_state_dict(state.get("conflicts", {}))


class Recon(GroupedBalancer):
    """Training of the network in which chosen layers exist once per group of tasks, by any balancer.

    *Source*: Recon, Algorithm 1, second run: "turn shared layers into task-specific layers", and train from scratch.
    The model runs once per group, since all that follows a split layer differs between groups; the Gram matrix is over
    what the tasks still share. *Deviation*: trainable batch norms of the trunk are split too, whether listed or not.
    Behind a split layer each group has features of its own; running statistics in common would be a mixture of all
    groups' and fit none of them in evaluation.

    Args:
        layers: names of the layers to split, as `ReconScores` reports them.
        trunk: submodules whose batch norms are split; by default the model's `trunk_names`; none means all.
        options: `groups` (the tasks that use a copy) and the others of `GroupedBalancer`.

    Raises:
        ValueError: no layer; at `prepare`, one that the model lacks, or groups that don't fit its tasks.

    Example:
        >>> from perception.balancing import build_balancer
        >>> balancer = build_balancer({"name": "recon", "layers": ["0"], "groups": {"a": ["det"], "b": ["seg"]}})
        >>> sorted(name for name, _ in balancer.prepare(nn.Sequential(nn.LayerNorm(2))).named_parameters())
        ['0.a.bias', '0.a.weight', '0.b.bias', '0.b.weight']
    """

    holds_gradients = True  # each forward has one group's losses; they are weighed and combined together
    changes_model = True
    needs_task_forwards = True

    def __init__(
        self,
        *,
        layers: Sequence[str],
        trunk: Sequence[str] | None = None,
        **options: Unpack[GroupedOptions],
    ) -> None:
        super().__init__(**options)
        if isinstance(layers, str) or not layers:
            raise ValueError(f"layers must name at least one layer in a sequence, got {layers!r}")
        self.layers = tuple(layers)
        self.trunk = None if trunk is None else tuple(trunk)

    def prepare(self, model: nn.Module) -> nn.Module:
        """A copy of the model with the layers and the batch norms split."""
        groups = self._declare(model)
        self.plan = tuple(groups.items())
        trunk = self.trunk if self.trunk is not None else tuple(getattr(model, "trunk_names", ()))
        norms = [name for name in _batch_norms(model, trunk) if name not in self.layers]
        return split_layers(model, (*self.layers, *norms), tuple(groups))

    def adopt(self, model: nn.Module) -> None:
        """Take the groups from the split model; see the base class."""
        groups = self._declare(model)
        self.plan = tuple(groups.items())
        copies = task_copies(model)
        wrong = [name for name in self.layers if name not in copies or copies[name].tasks != tuple(groups)]
        if wrong:
            raise ValueError(
                f"layers {name_some(wrong)} are not split for the groups {list(groups)}; Recon trains the model that "
                "its `prepare` returns"
            )


def _batch_norms(model: nn.Module, under: Sequence[str]) -> list[str]:
    roots = tuple(f"{root}." for root in under)
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and module.running_var is not None
        and any(parameter.requires_grad for parameter in module.parameters())
        and (not under or f"{name}.".startswith(roots))
    ]


def _sum(grads: Sequence[Tensor | None]) -> Tensor | None:
    given = [grad for grad in grads if grad is not None]
    return torch.stack(given).sum(dim=0) if given else None
