"""Connection strength's second phase: each channel group's gradients, projected where they oppose its own task's.

Legend: L layers, O output channels of a layer, T tasks, i a group's task, j any task.

With d_ij = ⟨G_ii, G_ij⟩, G_ij being task j's gradient on the channels of group i, the projected sum is

    Σ_j G_ij + Σ_{j≠i, d_ij<0} (−d_ij / d_ii) G_ii

so per layer and group one row of T inner products gives one coefficient per task. Products of parts of a parameter
add up, which is why many ranks need exchange only (L, T, T) numbers.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from perception.balancing.channel_strength import NO_TASK


class GroupProjection:
    """The projection for one assignment of channels to tasks.

    *Source*: connection strength §4.4 and Algorithm 1, lines 6–16. "When another gradient vector G_ij clashes with
    G_ii, we adjust G_ij to lie on the perpendicular plane of the reference vector G_ii", then "the sum of them is
    finally updated". Groups are per layer; a layer's bias belongs to its channels. A channel without a task, a
    parameter of no layer, and a group whose own task has no gradient there keep the plain sum.

    Args:
        groups: per layer (O,) long: the channel's task, or `NO_TASK`.
        parameters: parameter's name → (index of its layer, elements per channel); its first axis is the layer's
            output channels.
        num_tasks: T.

    Raises:
        ValueError: a parameter names a layer that isn't there, or a group a task that isn't there.

    Example:
        >>> step = GroupProjection(groups=[torch.tensor([0, 1])], parameters={"weight": (0, 2)}, num_tasks=2)
        >>> grads = [torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[-1.0, 1.0], [1.0, 0.0]])]
        >>> products = step.zero_products()
        >>> step.add_products(products, "weight", grads)
        >>> step.merge("weight", grads, step.coefficients(products)).tolist()
        [[1.0, 1.0], [2.0, 0.0]]
    """

    def __init__(
        self, *, groups: Sequence[Tensor], parameters: Mapping[str, tuple[int, int]], num_tasks: int
    ) -> None:
        bad_layers = {name: layer for name, (layer, _) in parameters.items() if not 0 <= layer < len(groups)}
        if bad_layers:
            raise ValueError(f"parameters {bad_layers} name layers outside 0..{len(groups) - 1}")
        for layer, group in enumerate(groups):
            if group.numel() and not NO_TASK <= int(group.min()) <= int(group.max()) < num_tasks:
                raise ValueError(
                    f"layer {layer} has channels of task {int(group.min())} to {int(group.max())}; allowed are "
                    f"{NO_TASK} (none) to {num_tasks - 1}"
                )
        self.groups = tuple(groups)
        self.parameters = dict(parameters)
        self.num_tasks = num_tasks

    def zero_products(self, device: torch.device | str = "cpu") -> Tensor:
        """(L, T, T) zeros, float64: where `add_products` accumulates. On the gradients' device nothing waits."""
        shape = (len(self.groups), self.num_tasks, self.num_tasks)
        return torch.zeros(shape, dtype=torch.float64, device=device)

    def add_products(
        self, products: Tensor, name: str, grads: Sequence[Tensor | None], *, start: int = 0
    ) -> None:
        """Add to the inner products what one parameter, or a piece of it, contributes.

        Args:
            products: (L, T, T), changed: entry (l, i, j) grows by ⟨G_ii, G_ij⟩ of layer l.
            name: the parameter's; one that belongs to no layer adds nothing.
            grads: T gradients of the global batch, all of the parameter's shape or all of one flat piece of it;
                None where the task doesn't reach the parameter.
            start: index of the piece's first element in the flattened parameter.

        Raises:
            ValueError: not T gradients, or they don't fit the layer.
        """
        rows, group = self._rows(name, grads, start)
        if group is None:
            return
        layer, _ = self.parameters[name]
        reference = torch.zeros_like(
            next(row for row in rows if row is not None)
        )  # each channel's own task's
        for task, row in enumerate(rows):
            if row is not None:
                reference = torch.where((group == task)[:, None], row, reference)
        is_member = (
            torch.arange(self.num_tasks, device=group.device)[:, None] == group
        ).double()  # (T, rows)
        for task, row in enumerate(rows):
            if row is not None:
                # A channel's elements are summed in the gradients' own precision, channels in float64.
                per_channel = torch.linalg.vecdot(reference, row).double()
                products[layer, :, task] += (is_member @ per_channel).to(products.device)

    def coefficients(self, products: Tensor) -> Tensor:
        """Coefficient of each task's gradient on each group, from the inner products of the global gradients.

        Args:
            products: (L, T, T), ⟨G_ii, G_ij⟩ at (l, i, j), summed over ranks.

        Returns:
            (L, T, T), float64: c_ij = 1, and c_ii = 1 + Σ_{j≠i} max(0, −d_ij) / d_ii.

        Raises:
            ValueError: a product isn't finite.
        """
        if not bool(products.isfinite().all()):
            raise ValueError(
                "the inner products of the task gradients are not finite; leave out a step whose gradients are not "
                "finite before projecting"
            )
        own = products.diagonal(dim1=1, dim2=2)  # (L, T)
        opposed = (-products).clamp(min=0).sum(dim=2)  # (L, T); the diagonal is never negative
        added = torch.where(own > 0, opposed / torch.where(own > 0, own, 1.0), 0.0)
        return torch.ones_like(products) + torch.diag_embed(added)

    def merge(
        self, name: str, grads: Sequence[Tensor | None], coefficients: Tensor, *, start: int = 0
    ) -> Tensor:
        """The update of one parameter, or of a piece of it: Σ_j c_ij G_ij on each group's channels.

        Args:
            name: the parameter's.
            grads: as `add_products`.
            coefficients: (L, T, T), as `coefficients` returns them.
            start: as `add_products`.

        Returns:
            A new tensor of the gradients' shape and dtype.

        Raises:
            ValueError: as `add_products`, or no task reaches the parameter.
        """
        given = [grad for grad in grads if grad is not None]
        if not given:
            raise ValueError(f"no task has a gradient of {name!r}; leave the parameter out")
        rows, group = self._rows(name, grads, start)
        if group is None:
            return torch.stack(given).sum(dim=0)
        layer, row_size = self.parameters[name]
        total = torch.zeros_like(next(row for row in rows if row is not None))
        for task, row in enumerate(rows):
            if row is not None:
                own = coefficients[layer, task, task].to(row)
                total += torch.where(group == task, own, 1.0).to(row)[:, None] * row
        first = start % row_size
        return total.flatten()[first : first + given[0].numel()].view_as(given[0]).to(given[0].dtype)

    def _rows(
        self, name: str, grads: Sequence[Tensor | None], start: int
    ) -> tuple[list[Tensor | None], Tensor | None]:
        """Gradients as (channels, elements), pieces filled up with zeros to whole rows; the channels' tasks.

        The second is None for a parameter that has no groups.
        """
        if len(grads) != self.num_tasks:
            raise ValueError(
                f"{name!r} needs {self.num_tasks} gradients, one per task or None; got {len(grads)}"
            )
        given = [grad for grad in grads if grad is not None]
        if name not in self.parameters or not given:
            return list(grads), None
        layer, row_size = self.parameters[name]
        channels, size = len(self.groups[layer]), given[0].numel()
        if any(grad.shape != given[0].shape for grad in given) or start + size > channels * row_size:
            raise ValueError(
                f"gradients of {name!r} have the shapes {[tuple(grad.shape) for grad in given]} from element {start} "
                f"on; it has {channels} channels of {row_size} elements. Give all tasks' of one and the same piece"
            )
        fill = (start % row_size, -(start + size) % row_size)
        dtype = torch.promote_types(given[0].dtype, torch.float32)
        rows = [
            None if grad is None else F.pad(grad.flatten().to(dtype), fill).view(-1, row_size)
            for grad in grads
        ]
        first, count = start // row_size, (size + sum(fill)) // row_size
        return rows, self.groups[layer][first : first + count].to(given[0].device)
