"""Weighted projection of conflicting gradients (wPCGrad)."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from perception.balancing.component import Component, Setting
from perception.balancing.gram_weighting import GramWeighting
from perception.balancing.priorities import Priority, as_probabilities

# An anchor of which less than this share of its squared norm is left is rounding noise: nothing is projected on it.
VANISHED = 1e-12


class HasProbabilities(Protocol):
    """Anything that says how likely each task is to come first."""

    def probabilities(self) -> Tensor:
        """(T,), at least 0, summing to 1."""
        ...


class WPCGradWeighting(GramWeighting):
    """Leaves the gradient of a task drawn by priority whole and projects conflicting ones onto its normal plane.

    *Source*: Bohn et al., "Task Weighting through Gradient Projection for Multitask Learning", Algorithm 2. The printed
    formula projects on g_i where the condition uses g_i^PC; with g_i the first anchor can change, against the text, so
    both are g_i^PC here. With mode "loop" each task is anchor once, in an order drawn without replacement by the
    priorities. By induction no anchor changes after its turn and no two final gradients conflict; so each anchor is
    projected on by the later ones only.

    Gradient i is C_i J, C = 1 at first: for anchor i and each later j with m = C_i G C_j < 0,
    C_j -= m / (C_i G C_i) C_i; the coefficients are the column sums of C. An anchor of which less than 1e-12 of its
    squared norm is left is skipped.

    Args:
        priority: anything with `.probabilities() -> (T,)`.
        mode: "loop" as above; "anchor": only the first anchor, as the text alone can be read (other pairs may still
            conflict).
        generator: for the order of anchors; by default the balancer's.

    Raises:
        ValueError: unknown mode; or, when called, probabilities that do not fit the tasks.

    Example:
        >>> from perception.balancing.priorities import UniformPriority
        >>> gram = torch.tensor([[1.0, -1.0], [-1.0, 4.0]])
        >>> WPCGradWeighting(UniformPriority()).weights_for_order(gram, [0, 1])
        tensor([2., 1.])
    """

    def __init__(
        self,
        priority: HasProbabilities,
        *,
        mode: Literal["loop", "anchor"] = "loop",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if mode not in ("loop", "anchor"):
            raise ValueError(
                f"mode is {mode!r}; allowed: 'loop' (every task is anchor once) or 'anchor' (the first only)"
            )
        if not callable(getattr(priority, "probabilities", None)):
            raise TypeError(f"priority is {priority!r}; it needs a method probabilities() -> (T,)")
        self.priority = priority
        self.mode = mode
        self.generator = generator
        self._last: dict[str, Any] = {}

    def parts(self) -> tuple[Component, ...]:
        """The priority, where it takes part in the life cycle."""
        return (self.priority,) if isinstance(self.priority, Component) else ()

    def setup(self, setting: Setting) -> None:
        """Learn the tasks; the priority's first probabilities must fit them."""
        super().setup(setting)
        as_probabilities(self.priority.probabilities(), self.task_names, "the priority")

    def weights_for_order(self, gramian: Tensor, order: Sequence[int]) -> Tensor:
        """Coefficients (T,) for one order of anchors, without drawing."""
        return self.combinations_for_order(gramian, order).sum(0)

    def combinations_for_order(self, gramian: Tensor, order: Sequence[int]) -> Tensor:
        """The final gradients in the originals, (T, T): row i of C J is g_i^PC."""
        order = [int(task) for task in order]
        if sorted(order) != list(range(len(gramian))):
            raise ValueError(f"order is {order}; it must name each of the {len(gramian)} tasks once")
        return self._project(gramian.detach().to("cpu", torch.float64), order)[0].to(gramian)

    def report(self) -> dict[str, Any]:
        """Order of the anchors, who was projected onto whom, and the priorities."""
        return dict(self._last)

    def _solve(self, gram: Tensor, task_idx: Tensor) -> Tensor:
        num_tasks = len(self.task_names) or (int(task_idx.max()) + 1)
        names = self.task_names or tuple(str(task) for task in range(num_tasks))
        if isinstance(self.priority, Priority) and len(self.priority.task_names) != num_tasks:
            # Called without setup, as TorchJD's weightings are: the tasks are numbers, another time perhaps more.
            generator = self.generator or torch.default_generator
            epochs = self.priority.num_epochs
            self.priority.setup(
                Setting(task_names=names, max_epochs=epochs, total_steps=epochs, generator=generator)
            )
        probabilities = as_probabilities(self.priority.probabilities(), names, "the priority")
        order = draw_order(probabilities[task_idx], self.generator)
        combinations, projections = self._project(gram, order)
        tasks = [names[int(task)] for task in task_idx]
        self._last = {
            "order": [tasks[row] for row in order],
            "projected": [[tasks[task], tasks[anchor]] for task, anchor in projections],
            "priorities": dict(zip(names, probabilities.tolist(), strict=True)),
        }
        return combinations.sum(0)

    def _project(self, gram: Tensor, order: list[int]) -> tuple[Tensor, list[tuple[int, int]]]:
        combinations = torch.eye(len(gram), dtype=torch.float64)
        projections = []
        for turn, anchor in enumerate(order[:-1] if self.mode == "loop" else order[:1]):
            row = combinations[anchor]
            products = gram @ row
            squared_norm = float(row @ products)
            if squared_norm <= VANISHED * float(gram[anchor, anchor]):
                continue
            later = order[turn + 1 :]
            conflicts = (combinations[later] @ products).clamp(max=0)
            combinations[later] -= conflicts[:, None] / squared_norm * row
            projections += [
                (task, anchor) for task, value in zip(later, conflicts.tolist(), strict=True) if value < 0
            ]
        return combinations, projections


def draw_order(probabilities: Tensor, generator: torch.Generator | None) -> list[int]:
    """An order of the tasks drawn without replacement (Plackett–Luce); those of probability 0 come last, shuffled."""
    clocks = torch.empty(len(probabilities), dtype=torch.float64).exponential_(generator=generator)
    rings = torch.where(probabilities > 0, clocks / probabilities, torch.inf)
    pairs = list(zip(rings.tolist(), clocks.tolist(), strict=True))
    return sorted(range(len(pairs)), key=pairs.__getitem__)
