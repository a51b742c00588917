"""The gradients of all tasks with respect to the same parameters, one row per task.

Legend: T tasks, n parameters, P their elements in all.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from perception.balancing.gradient_sketch import GradientSketch

_CHUNK = 1 << 13  # columns per float32 product; the partial Gram matrices are added in float64
_BLOCK = 1 << 18  # columns that an element-wise method sees at once


@dataclass(frozen=True)
class GradientPiece:
    """Neighbouring elements of one parameter's task gradients.

    Attributes:
        number: of the parameter.
        start: index of the first element in the flattened parameter.
        columns: of `TaskGradients.held`.
        gradients: T views (s,), without the factors of `scale_`; None where the task does not reach the parameter.
    """

    number: int
    start: int
    columns: slice
    gradients: list[Tensor | None]


class TaskGradients:
    """Collects task gradients, gives their Gram matrix, and combines them into one update.

    What is shared is read off the graph: a parameter that two or more present tasks reach is shared, whichever two they
    are. The Gram matrix is over the shared parameters; in it a task has zeros where it does not reach. So three tasks
    on one decoder and four on one trunk need no list of names.

    With features in front of the parameters, the Gram matrix is over these alone, and they are never a task's own.

    Gradients that come from elsewhere are handed over by `put`. The memory can be used again by `restart`; a fresh
    T × P block per update would cost more than the Gram matrix.

    On many ranks each may keep a part of the columns alone (`keep_part`). Its Gram matrix is then the part's, and the
    sum of all ranks' is that of whole gradients; an update must be put together from the ranks' parts (`gather`).

    Args:
        parameters: n trainable parameters (features first) on one device.
        num_tasks: T.
        num_features: how many of them are features.
        is_row_major: whether rows hold a parameter's elements in the order of its shape, as `GradientPiece.start`
            counts them; else in the order of its memory (channels last, say), so that copies are plain and the update
            has the strides that fused optimisers want.

    Attributes:
        reached: (T, n) bool, on the CPU, whether a task's graph holds the parameter.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> gradients = TaskGradients([w], num_tasks=2)
        >>> gradients.add(0, w.sum(), retain_graph=False)
        >>> gradients.add(1, (w * torch.tensor([1.0, -3.0])).sum(), retain_graph=False)
        >>> gradients.gram(torch.tensor([True, True])).tolist()
        [[2.0, -2.0], [-2.0, 10.0]]
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        num_tasks: int,
        *,
        num_features: int = 0,
        is_row_major: bool = False,
    ) -> None:
        self.parameters = list(parameters)
        self.num_features = num_features
        dtype, device = torch.float32, torch.device("cpu")
        for parameter in self.parameters:
            dtype, device = torch.promote_types(dtype, parameter.dtype), parameter.device
        sizes = [parameter.numel() for parameter in self.parameters]
        ends = torch.tensor(sizes, dtype=torch.int64).cumsum(0).tolist()
        self._columns = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        layout = torch.contiguous_format if is_row_major else torch.preserve_format
        self._strides = [
            torch.empty_like(parameter, device="meta", memory_format=layout).stride()
            for parameter in self.parameters
        ]
        self._rows = torch.empty(num_tasks, sum(sizes), dtype=dtype, device=device)
        # Where the memory holds neither a gradient of now nor zeros.
        self._is_stale = torch.ones(num_tasks, len(sizes), dtype=torch.bool)
        self._factors = torch.ones(num_tasks, dtype=torch.float64)
        self.reached = torch.zeros(num_tasks, len(sizes), dtype=torch.bool)
        self._part: Tensor | None = None
        self._ranges: list[tuple[int, int]] = [(0, sum(sizes))]  # the columns that `held` has

    @property
    def rows(self) -> Tensor:
        """(T, P), at least float32, as they were added: without the factors of `scale_`; 0 where not reached."""
        for task_idx, number in self._is_stale.nonzero().tolist():
            self._rows[task_idx, self._columns[number]] = 0.0
        self._is_stale.zero_()
        return self._rows

    @rows.setter
    def rows(self, rows: Tensor) -> None:
        self._rows = rows

    @property
    def factors(self) -> Tensor:
        """(T,) float64, on the CPU: what `scale_` multiplied the tasks' gradients by."""
        return self._factors

    @property
    def held(self) -> Tensor:
        """(T, S): the part that `keep_part` was given, else all `rows`. Like these, without factors."""
        return self.rows if self._part is None else self._part

    def row(self, task_idx: int) -> Tensor:
        """(P,), one task's of `rows`; the others may still be under way."""
        for number in self._is_stale[task_idx].nonzero().flatten().tolist():
            self._rows[task_idx, self._columns[number]] = 0.0
        self._is_stale[task_idx] = False
        return self._rows[task_idx]

    def keep_part(self, part: Tensor, ranges: Sequence[tuple[int, int]]) -> None:
        """From now on to `restart`, know some columns alone.

        Args:
            part: (T, S).
            ranges: S ascending columns (start, end) in all.
        """
        self._part, self._ranges = part, list(ranges)

    def restart(self) -> None:
        """Forget the gradients and keep their memory."""
        self._part, self._ranges = None, [(0, self._rows.shape[1])]
        self._is_stale |= self.reached
        self._factors.fill_(1.0)
        self.reached = torch.zeros_like(self.reached)

    def add(self, task_idx: int, loss: Tensor, *, retain_graph: bool) -> None:
        """Add the gradient of a 0-dim loss to a task's row."""
        found = torch.autograd.grad(loss, self.parameters, retain_graph=retain_graph, allow_unused=True)
        row, is_reached = self._rows[task_idx], self.reached[task_idx].tolist()
        for number, gradient in enumerate(found):
            if gradient is None:
                continue
            place = self._shaped(row, number)
            if is_reached[number]:
                place += gradient
            else:
                place.copy_(gradient)
                is_reached[number] = True
                self._is_stale[task_idx, number] = False
        self.reached[task_idx] = torch.tensor(is_reached, dtype=torch.bool)

    def put(self, task_idx: int, number: int, values: Tensor) -> None:
        """Add flat values to one parameter's place in a task's row; `reached` is the caller's to set."""
        place = self._rows[task_idx, self._columns[number]]
        if bool(self._is_stale[task_idx, number]):
            place.copy_(values)
            self._is_stale[task_idx, number] = False
        else:
            place += values

    def shared(self, present: Tensor) -> Tensor:
        """(n,) bool, what the Gram matrix is over: the features, or else what two or more present tasks (T,) reach."""
        if self.num_features:
            return torch.arange(self.reached.shape[1]) < self.num_features
        return self.reached[present.cpu()].sum(dim=0) >= 2

    def pieces(self) -> Iterator[GradientPiece]:
        """All that is held of the parameters that a task reaches, in the order of the columns."""
        rows = self.held
        reached = self.reached.T.tolist()
        offset = 0
        for first, last in self._ranges:
            for number, columns in enumerate(self._columns):
                low, high = max(columns.start, first), min(columns.stop, last)
                if low >= high or not any(reached[number]):
                    continue
                held = slice(offset + low - first, offset + high - first)
                gradients = [
                    row[held] if is_reached else None
                    for row, is_reached in zip(rows, reached[number], strict=True)
                ]
                yield GradientPiece(number, low - columns.start, held, gradients)
            offset += last - first

    def gram(self, present: Tensor) -> Tensor:
        """(T, T) float64 inner products over the shared parameters (and held columns), on the CPU.

        Args:
            present: (T,) bool; absent tasks have zeros.
        """
        rows = self.held
        total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
        for start, end in self._runs(self.shared(present)):
            whole = start + (end - start) // _CHUNK * _CHUNK
            if whole > start:
                blocks = rows[:, start:whole].unflatten(1, (-1, _CHUNK))  # (T, chunks, _CHUNK)
                blocks = blocks.transpose(0, 1)  # (chunks, T, _CHUNK)
                total += (blocks @ blocks.mT).double().sum(dim=0)
            rest = rows[:, whole:end].double()
            total += rest @ rest.T
        factors = self._masked_factors(present)
        return factors[:, None] * total.cpu() * factors

    def sketch(self, sketch: GradientSketch, present: Tensor) -> Tensor:
        """(T, k) float64, on the CPU: what gives nearly the same inner products as `gram`; 0 for absent tasks."""
        chosen = torch.zeros(self._rows.shape[1], dtype=torch.bool)
        for start, end in self._runs(self.shared(present)):
            chosen[start:end] = True
        sketched = sketch(self.rows, chosen.to(self._rows.device)).cpu()
        return sketched * self._masked_factors(present)[:, None]

    def combine(
        self,
        coefficients: Tensor,
        present: Tensor,
        *,
        scale_heads: bool,
        gather: Callable[[Tensor], Tensor] | None = None,
    ) -> list[Tensor | None]:
        """The update of each parameter: the sum of c_t g_t.

        Args:
            coefficients: (T,).
            present: (T,) bool.
            scale_heads: whether a parameter of one task alone is scaled by that task's coefficient too.
            gather: (S,) → (P,), from the ranks' parts of a vector to the whole.

        Returns:
            n tensors of the parameters' shapes and strides; None for a parameter that no present task reaches.
        """
        rows, mask = self.held, present.cpu()
        factors = self._masked_factors(mask)
        totals = torch.where(mask, coefficients.detach().cpu().double() * factors, 0.0)
        update = totals.to(rows) @ rows  # (S,)
        if not scale_heads:
            for start, end in self._runs(self._own(mask)):
                update[start:end] = factors.to(rows) @ rows[:, start:end]
        return self.assemble(update, mask, gather=gather)

    def combine_blocks(
        self,
        combine_block: Callable[[Tensor, Tensor, int], Tensor],
        present: Tensor,
        *,
        scale_heads: bool,
        gather: Callable[[Tensor], Tensor] | None = None,
    ) -> list[Tensor | None]:
        """As `combine`, but by a function of blocks of neighbouring columns, in which no column looks at another one.

        Blocks are cut at the same columns whatever part of them is held, so that what a method draws at random for a
        block is the same on any number of ranks.

        Args:
            combine_block: ((T, B) weighted gradients, (T,) present, the block's number) → (B,) update. Columns of the
                block that are not held are zeros, and what comes out for them is not used.
            present: as in `combine`.
            scale_heads: as in `combine`.
            gather: as in `combine`.
        """
        rows, mask = self.held, present.cpu()
        update = torch.empty_like(rows[0])
        factors = self._masked_factors(mask).to(rows)
        offset = 0
        for start, end in self._ranges:
            for number in range(start // _BLOCK, -(-end // _BLOCK)):
                first, last = number * _BLOCK, min((number + 1) * _BLOCK, self._rows.shape[1])
                low, high = max(first, start), min(last, end)
                held = slice(offset + low - start, offset + high - start)
                block = F.pad(rows[:, held] * factors[:, None], (low - first, last - high))
                update[held] = combine_block(block, mask, number)[low - first : high - first]
            offset += end - start
        if not scale_heads:
            for start, end in self._runs(self._own(mask)):
                update[start:end] = factors @ rows[:, start:end]
        return self.assemble(update, mask, gather=gather)

    def assemble(
        self, update: Tensor, present: Tensor, *, gather: Callable[[Tensor], Tensor] | None = None
    ) -> list[Tensor | None]:
        """Each parameter's part of an update; None where no present task reaches.

        Args:
            update: (S,), of the columns that are held.
            present: (T,) bool.
            gather: as in `combine`.
        """
        whole = update if gather is None else gather(update)
        is_reached = self.reached[present.cpu()].any(dim=0).tolist()
        return [
            self._shaped(whole, number).to(parameter.dtype) if is_reached[number] else None
            for number, parameter in enumerate(self.parameters)
        ]

    def scale_(self, factors: Tensor) -> None:
        """Multiply each task's gradient by its factor, (T,). It is kept apart: no pass over the rows."""
        self._factors *= factors.detach().cpu()

    def bad_rows(self) -> list[int]:
        """Tasks whose gradient, as far as it is held, is not finite."""
        rows = self.held
        # A sum is finite only if all its terms are. It is one pass without temporaries, and may overflow: look closer.
        suspects = (~rows.sum(dim=1).isfinite()).nonzero().flatten().tolist()
        return [task_idx for task_idx in suspects if not bool(rows[task_idx].isfinite().all())]

    def bad_parameters(self) -> list[int]:
        """Parameters for which some task's gradient, as far as it is held, is not finite."""
        is_finite = self.held.isfinite().all(dim=0)
        numbers = torch.arange(len(self._columns))
        return [
            number
            for number in numbers.tolist()
            if not all(bool(is_finite[start:end].all()) for start, end in self._runs(numbers == number))
        ]

    def _masked_factors(self, present: Tensor) -> Tensor:
        """(T,) float64, 0 for absent tasks."""
        return torch.where(present.cpu(), self._factors, 0.0)

    def _shaped(self, flat: Tensor, number: int) -> Tensor:
        """The part of a (P,) vector that is a parameter's, in its shape."""
        start = flat.storage_offset() + self._columns[number].start
        return flat.as_strided(self.parameters[number].shape, self._strides[number], start)

    def _own(self, mask: Tensor) -> Tensor:
        """(n,) bool, which parameters one present task alone reaches."""
        own = self.reached[mask].sum(dim=0) == 1
        own[: self.num_features] = False
        return own

    def _runs(self, chosen: Tensor) -> list[tuple[int, int]]:
        """Columns of `held` that belong to the chosen parameters, neighbours joined."""
        runs: list[tuple[int, int]] = []
        for columns, is_chosen in zip(self._columns, chosen.tolist(), strict=True):
            if not is_chosen:
                continue
            if runs and runs[-1][1] == columns.start:
                runs[-1] = (runs[-1][0], columns.stop)
            else:
                runs.append((columns.start, columns.stop))
        return runs if self._part is None else list(_clip(runs, self._ranges))


def _clip(runs: Sequence[tuple[int, int]], ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """What of the runs lies in the ranges, counted as if these stood one after the other."""
    offset = 0
    for first, last in ranges:
        for start, end in runs:
            low, high = max(start, first), min(end, last)
            if low < high:
                yield offset + low - first, offset + high - first
        offset += last - first
