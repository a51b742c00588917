"""Which norm each shared layer's output reaches, read from the autograd graph of one forward."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from perception.balancing.task_copies import TaskCopies
from perception.balancing.task_norms import is_norm

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
ATTENTION = {"value_proj": "output_proj"}

# Operations that keep channels apart, by the name of their autograd node; others end the search.
_PER_CHANNEL = frozenset(
    "Add Sub Neg Relu LeakyRelu Gelu Silu Hardtanh NativeDropout View UnsafeView ReshapeAlias Permute Transpose Clone "
    "ToCopy Unsqueeze Squeeze Expand Alias Slice Select Cat MaxPool2DWithIndices AvgPool2D UpsampleNearest2D "
    "UpsampleBilinear2D".split()
)
_SCALING = frozenset({"Mul", "Div"})  # by a constant, such as dropout's mask; not a product of two features


@dataclass(frozen=True)
class Connection:
    """A layer whose output channels are those of a per-task norm, or reach it through other layers.

    Attributes:
        layer: name of the layer.
        norm: name of the `TaskCopies` of norms.
        through: names of the layers in between, the nearest to `layer` first; empty if the norm follows directly.
    """

    layer: str
    norm: str
    through: tuple[str, ...] = ()


class ConnectionTrace:
    """Watches one forward of a model and pairs layers with norms.

    A layer is connected to the first norm, in order of execution, that its output reaches through operations that
    keep channels apart (activations, dropout, additions, reshapes, pooling); if it reaches none, to the norm of a
    connected layer that it feeds in this way. Attention mixes positions, which such a search can't follow: there the
    pairs of `attention` tell which layer's inputs another layer's outputs become.

    Args:
        model: converted by `convert_task_norms`.
        attention: names of sibling layers, values → output, whose channels correspond one to one.

    Example:
        >>> import torch
        >>> from perception.balancing.task_copies import use_task
        >>> from perception.balancing.task_norms import convert_task_norms
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3), nn.LayerNorm(3))
        >>> model = convert_task_norms(model, ("det", "seg"))
        >>> with use_task(model, "det"), ConnectionTrace(model) as trace:
        ...     _ = model(torch.ones(1, 2))
        >>> trace.connections()
        (Connection(layer='2', norm='3', through=()), Connection(layer='0', norm='3', through=('2',)))
    """

    def __init__(self, model: nn.Module, *, attention: Mapping[str, str] = ATTENTION) -> None:
        self._attention = dict(attention)
        self._norms: dict[
            str, list[Any]
        ] = {}  # name → autograd nodes of its inputs; dicts keep the order of execution
        self._inputs: dict[str, list[Any]] = {}
        self._outputs: dict[Any, str] = {}  # node → layer; "" for a norm
        self._modules = dict(model.named_modules())
        self._handles: list[Any] = []

    def __enter__(self) -> "ConnectionTrace":
        inside = tuple(f"{name}." for name, m in self._modules.items() if isinstance(m, TaskCopies))
        for name, module in self._modules.items():
            if isinstance(module, TaskCopies):
                self._watch(name, module, is_all_norms(module))
            elif isinstance(module, LAYERS) and module.weight.requires_grad and not name.startswith(inside):
                self._watch(name, module, False)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def connections(self) -> tuple[Connection, ...]:
        """What the watched forward showed, directly followed layers first."""
        found: dict[str, Connection] = {}
        for norm, nodes in self._norms.items():
            for layer in self._layers_before(nodes):
                if layer not in found and self._width(layer) == self._norm_width(norm):
                    found[layer] = Connection(layer, norm)
        queue = list(found.values())
        while queue:
            outer = queue.pop(0)
            for layer in [*self._siblings(outer.layer), *self._layers_before(self._inputs[outer.layer])]:
                if layer not in found and self._width(layer) == self._modules[outer.layer].weight.shape[1]:
                    found[layer] = Connection(layer, outer.norm, (outer.layer, *outer.through))
                    queue.append(found[layer])
        return tuple(found.values())

    def _watch(self, name: str, module: nn.Module, is_task_norm: bool) -> None:
        def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if not isinstance(output, Tensor) or output.grad_fn is None:
                return  # history frames run without gradients
            self._outputs.setdefault(output.grad_fn, "" if isinstance(module, TaskCopies) else name)

        def note_input(module: nn.Module, args: tuple[Any, ...]) -> None:
            node = args[0].grad_fn if args and isinstance(args[0], Tensor) else None
            if isinstance(module, TaskCopies):
                if is_task_norm and node is not None:
                    self._norms.setdefault(name, []).append(node)
            else:
                self._inputs.setdefault(name, []).extend([] if node is None else [node])

        self._handles.append(module.register_forward_pre_hook(note_input))
        self._handles.append(module.register_forward_hook(note))

    def _layers_before(self, nodes: list[Any]) -> list[str]:
        found, seen, stack = [], set(), list(nodes)
        while stack:
            node = stack.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if node in self._outputs:
                found.append(self._outputs[node])
                continue
            operation = type(node).__name__.partition("Backward")[0]
            before = [parent for parent, _ in node.next_functions if parent is not None]
            if operation in _PER_CHANNEL or (operation in _SCALING and len(before) == 1):
                stack.extend(before)
        return [name for name in found if name]

    def _siblings(self, layer: str) -> list[str]:
        parent, _, own = layer.rpartition(".")
        names = [
            f"{parent}.{inner}" if parent else inner
            for inner, outer in self._attention.items()
            if outer == own
        ]
        return [name for name in names if name in self._inputs]

    def _width(self, layer: str) -> int:
        return len(self._modules[layer].weight)

    def _norm_width(self, norm: str) -> int:
        copy = next(iter(self._modules[norm].values()))
        return copy.num_features if hasattr(copy, "num_features") else copy.normalized_shape[-1]


def is_all_norms(layer: TaskCopies) -> bool:
    """Whether a layer's copies are norms."""
    return all(is_norm("", copy) for copy in layer.values())
