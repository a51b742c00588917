"""Recon: find the layers where task gradients conflict most; `split_layers` then gives each task its own.

Legend: L layers, T tasks.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from perception.balancing._checks import check_range


class LayerConflicts:
    """Counts, over a run of any method, how often each layer's task gradients conflict.

    *Source*: Shi et al., Recon (ICLR 2023), Definition of S-conflicts and Algorithm 1: a pair of tasks conflicts in a
    layer if the cosine of its gradients is below S; a layer's score is the number of steps and pairs that did. A
    layer is a module with parameters of its own, norms included; of several parameters the inner products add up.
    Released: S = 0.0 and 40 layers on Cityscapes, S = −0.02 and 15 layers on NYUv2, scored over a whole run of 40 to
    50 epochs; the new network is trained from scratch.

    *Use*: per optimiser step `zero_products`, `add_products` for each shared parameter (of pieces on many ranks, whose
    products are then summed), `update`; after the run `top` and `split_layers` make the network of the second run,
    trained by any balancer, one forward per task under `use_task`.

    Args:
        layers: candidates, in the network's order, as `shared_layers` lists them.
        num_tasks: T, at least 2.
        threshold: S, above −1 and at most 0.

    Raises:
        ValueError: fewer than two tasks, no layer, or a threshold outside its range.

    Example:
        >>> conflicts = LayerConflicts(layers=("conv1", "conv2"), num_tasks=2)
        >>> products = conflicts.zero_products()
        >>> conflicts.add_products(products, "conv1.weight", [torch.ones(3), -torch.ones(3)])
        >>> conflicts.add_products(products, "conv2.weight", [torch.ones(3), torch.ones(3)])
        >>> conflicts.update(products)
        >>> conflicts.top(1)
        ['conv1']
    """

    def __init__(self, *, layers: Sequence[str], num_tasks: int, threshold: float = 0.0) -> None:
        if num_tasks < 2 or not layers or len(set(layers)) != len(layers):
            raise ValueError(
                f"Recon compares at least 2 tasks in a list of different layers; got {num_tasks} tasks and "
                f"{len(layers)} layers"
            )
        check_range("threshold", threshold, -1.0, 0.0, is_open=True)
        self.layers = tuple(layers)
        self.num_tasks = num_tasks
        self.threshold = threshold
        self.scores = torch.zeros(len(layers), dtype=torch.int64)
        self.num_steps = 0
        self._index = {layer: index for index, layer in enumerate(self.layers)}

    def zero_products(self, device: torch.device | str = "cpu") -> Tensor:
        """(L, T, T) zeros, float64: where `add_products` accumulates."""
        shape = (len(self.layers), self.num_tasks, self.num_tasks)
        return torch.zeros(shape, dtype=torch.float64, device=device)

    def add_products(self, products: Tensor, name: str, grads: Sequence[Tensor | None]) -> None:
        """Add a parameter's, or a piece's, inner products to its layer's.

        Args:
            products: (L, T, T), changed.
            name: the parameter's; one of no listed layer adds nothing.
            grads: T gradients of the global batch of one shape, None where a task doesn't reach the parameter.

        Raises:
            ValueError: not T gradients.
        """
        if len(grads) != self.num_tasks:
            raise ValueError(
                f"{name!r} needs {self.num_tasks} gradients, one per task or None; got {len(grads)}"
            )
        layer = self._index.get(name.rpartition(".")[0])
        if layer is None:
            return
        flat = [(task, _flat(grad)) for task, grad in enumerate(grads) if grad is not None]
        for place, (first, a) in enumerate(flat):
            for second, b in flat[place:]:
                value = torch.dot(a, b).double().to(products.device)
                products[layer, first, second] += value
                if first != second:
                    products[layer, second, first] += value

    def update(self, products: Tensor) -> None:
        """Count one step.

        Args:
            products: (L, T, T), summed over parameters and ranks. A task with a zero gradient conflicts with none.

        Raises:
            ValueError: they are not finite.
        """
        if not bool(products.isfinite().all()):
            raise ValueError(
                "Recon's inner products are not finite; leave out a step whose gradients are not finite"
            )
        norms = products.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
        for first, second in combinations(range(self.num_tasks), 2):
            scale = norms[:, first] * norms[:, second]
            conflicts = (scale > 0) & (products[:, first, second] < self.threshold * scale)
            self.scores += conflicts.to(self.scores.device)
        self.num_steps += 1

    def top(self, num_layers: int) -> list[str]:
        """The layers with the highest scores, ties in the network's order.

        Raises:
            ValueError: not between 1 and L, or no step was counted.
        """
        if not 1 <= num_layers <= len(self.layers):
            raise ValueError(
                f"num_layers must be in 1..{len(self.layers)}, the layers there are; got {num_layers}"
            )
        if not self.num_steps:
            raise ValueError("Recon has counted no step yet; run the scoring training first")
        order = self.scores.argsort(descending=True, stable=True)
        return [self.layers[index] for index in order[:num_layers].tolist()]

    def state_dict(self) -> dict[str, Any]:
        """Scores, layers and steps."""
        return {"scores": self.scores.clone(), "layers": list(self.layers), "num_steps": self.num_steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned.

        Raises:
            ValueError: the layers are others.
        """
        if tuple(state.get("layers", ())) != self.layers:
            raise ValueError(
                "the checkpoint's Recon scores are of other layers. Resume with the model and trunk that wrote them"
            )
        self.scores = state["scores"].clone()
        self.num_steps = int(state["num_steps"])


def shared_layers(model: nn.Module, under: Sequence[str] = ()) -> list[str]:
    """Names of the modules with trainable parameters of their own: what Recon scores.

    Args:
        model: the plain model.
        under: submodules that all tasks share; none means the whole model.

    Raises:
        ValueError: there is none.

    Example:
        >>> shared_layers(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.LayerNorm(2)))
        ['0', '2']
    """
    roots = tuple(f"{root}." for root in under)
    found = [
        name
        for name, module in model.named_modules()
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        and (not under or f"{name}.".startswith(roots))
    ]
    if not found:
        raise ValueError(f"{type(model).__name__} has no trainable layer under {list(under) or 'the root'}")
    return found


def _flat(grad: Tensor) -> Tensor:
    return grad.flatten().to(torch.promote_types(grad.dtype, torch.float32))
