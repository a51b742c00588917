"""The gradients of all tasks with respect to the same parameters, one row per task.

Legend: T tasks, n parameters, P their elements in all.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_CHUNK = 1 << 13  # columns per float32 product; the partial Gram matrices are added in float64


class TaskGradients:
    """Collects task gradients, gives their Gram matrix, and combines them into one update.

    What is shared is read off the graph: a parameter that two or more present tasks reach is shared, whichever two they
    are. The Gram matrix is over the shared parameters; in it a task has zeros where it does not reach. So three tasks
    on one decoder and four on one trunk need no list of names.

    With features in front of the parameters, the Gram matrix is over these alone, and they are never a task's own.

    Args:
        parameters: n trainable parameters (features first) on one device.
        num_tasks: T.
        num_features: how many of them are features.

    Attributes:
        rows: (T, P), at least float32.
        reached: (T, n) bool, on the CPU, whether a task's graph holds the parameter.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> gradients = TaskGradients([w], num_tasks=2)
        >>> gradients.add(0, w.sum(), retain_graph=False)
        >>> gradients.add(1, (w * torch.tensor([1.0, -3.0])).sum(), retain_graph=False)
        >>> gradients.gram(torch.tensor([True, True])).tolist()
        [[2.0, -2.0], [-2.0, 10.0]]
    """

    def __init__(self, parameters: Sequence[Tensor], num_tasks: int, *, num_features: int = 0) -> None:
        self.parameters = list(parameters)
        self.num_features = num_features
        dtype, device = torch.float32, torch.device("cpu")
        for parameter in self.parameters:
            dtype, device = torch.promote_types(dtype, parameter.dtype), parameter.device
        sizes = [parameter.numel() for parameter in self.parameters]
        ends = torch.tensor(sizes, dtype=torch.int64).cumsum(0).tolist()
        self._columns = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        self.rows = torch.zeros(num_tasks, sum(sizes), dtype=dtype, device=device)
        self.reached = torch.zeros(num_tasks, len(sizes), dtype=torch.bool)

    def add(self, task_idx: int, loss: Tensor, *, retain_graph: bool) -> None:
        """Add the gradient of a 0-dim loss to a task's row."""
        found = torch.autograd.grad(loss, self.parameters, retain_graph=retain_graph, allow_unused=True)
        row = self.rows[task_idx]
        for number, (columns, gradient) in enumerate(zip(self._columns, found, strict=True)):
            if gradient is not None:
                row[columns] += gradient.reshape(-1)
                self.reached[task_idx, number] = True

    def shared(self, present: Tensor) -> Tensor:
        """(n,) bool, what the Gram matrix is over: the features, or else what two or more present tasks (T,) reach."""
        if self.num_features:
            return torch.arange(self.reached.shape[1]) < self.num_features
        return self.reached[present.cpu()].sum(dim=0) >= 2

    def gram(self, present: Tensor) -> Tensor:
        """(T, T) float64 inner products over the shared parameters, on the CPU.

        Args:
            present: (T,) bool; absent tasks have zeros.
        """
        total = torch.zeros(len(self.rows), len(self.rows), dtype=torch.float64, device=self.rows.device)
        for start, end in self._runs(self.shared(present)):
            whole = start + (end - start) // _CHUNK * _CHUNK
            if whole > start:
                blocks = (
                    self.rows[:, start:whole].unflatten(1, (-1, _CHUNK)).transpose(0, 1)
                )  # (chunks, T, _CHUNK)
                total += (blocks @ blocks.mT).double().sum(dim=0)
            rest = self.rows[:, whole:end].double()
            total += rest @ rest.T
        mask = present.to(total.device)
        return (total * mask[:, None] * mask).cpu()

    def combine(self, coefficients: Tensor, present: Tensor, *, scale_heads: bool) -> list[Tensor | None]:
        """The update of each parameter: the sum of c_t g_t.

        Args:
            coefficients: (T,).
            present: (T,) bool.
            scale_heads: whether a parameter of one task alone is scaled by that task's coefficient too.

        Returns:
            n tensors of the parameters' shapes and strides; None for a parameter that no present task reaches.
        """
        mask = present.cpu()
        factors = torch.where(mask, coefficients.detach().cpu().double(), 0.0)
        update = factors.to(self.rows) @ self.rows  # (P,)
        if not scale_heads:
            for start, end in self._runs(self._own(mask)):
                update[start:end] = mask.to(self.rows) @ self.rows[:, start:end]
        return self._split(update, mask)

    def combine_blocks(
        self, combine_block: Callable[[Tensor, Tensor], Tensor], present: Tensor, *, scale_heads: bool
    ) -> list[Tensor | None]:
        """As `combine`, each parameter's update made by `combine_block((T, ...) gradients, (T,) present)`."""
        mask = present.cpu()
        update = torch.empty_like(self.rows[0])
        own = self._own(mask)
        for number, (parameter, columns) in enumerate(zip(self.parameters, self._columns, strict=True)):
            block = self.rows[:, columns]
            if own[number] and not scale_heads:
                update[columns] = mask.to(block) @ block
            else:
                update[columns] = combine_block(block.view(-1, *parameter.shape), mask).reshape(-1)
        return self._split(update, mask)

    def scale_(self, factors: Tensor) -> None:
        """Multiply each row by its factor, (T,)."""
        self.rows *= factors.to(self.rows)[:, None]

    def find_twins(self) -> tuple[int, int] | None:
        """Two tasks whose rows are the same and not zero, which is one loss under two names; None: there are none."""
        for first in range(len(self.rows)):
            for second in range(first + 1, len(self.rows)):
                if torch.equal(self.rows[first], self.rows[second]) and bool(self.rows[first].any()):
                    return first, second
        return None

    def bad_rows(self) -> list[int]:
        """Tasks whose gradient is not finite."""
        return (~self.rows.isfinite().all(dim=1)).nonzero().flatten().tolist()

    def bad_parameters(self) -> list[int]:
        """Parameters for which some task's gradient is not finite."""
        return [
            number
            for number, columns in enumerate(self._columns)
            if not bool(self.rows[:, columns].isfinite().all())
        ]

    def _own(self, mask: Tensor) -> Tensor:
        """(n,) bool, which parameters one present task alone reaches."""
        own = self.reached[mask].sum(dim=0) == 1
        own[: self.num_features] = False
        return own

    def _runs(self, chosen: Tensor) -> list[tuple[int, int]]:
        """Column ranges of the chosen parameters, neighbours joined."""
        runs: list[tuple[int, int]] = []
        for columns, is_chosen in zip(self._columns, chosen.tolist(), strict=True):
            if not is_chosen:
                continue
            if runs and runs[-1][1] == columns.start:
                runs[-1] = (runs[-1][0], columns.stop)
            else:
                runs.append((columns.start, columns.stop))
        return runs

    def _split(self, update: Tensor, mask: Tensor) -> list[Tensor | None]:
        is_reached = self.reached[mask].any(dim=0).tolist()
        return [
            _laid_out_like(parameter, update[columns]) if reached else None
            for parameter, columns, reached in zip(self.parameters, self._columns, is_reached, strict=True)
        ]


def _laid_out_like(parameter: Tensor, flat: Tensor) -> Tensor:
    # Fused optimisers walk through memory: a gradient must have its parameter's strides (channels last, say).
    values = flat.view(parameter.shape).to(parameter.dtype)
    if parameter.is_contiguous():
        return values
    return torch.empty_like(parameter, requires_grad=False).copy_(values)
