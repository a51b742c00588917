"""A batch in which every sample stands once per group of tasks: the rows of one stream per group."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class TaskStreams:
    """Repeats what a trunk reads once per group of tasks, and gives each head the rows of its own group.

    A model holds one, calls `repeat` before its trunk and `rows` before each head. Without groups both change nothing.
    Rows are group by group: with groups a, b and samples 1, 2 they are a1, a2, b1, b2. So a trunk that treats the
    samples of a batch alike runs all groups in step, and layers that exist once per group (`StitchedCopies`) take
    their part of the rows.

    Attributes:
        groups: name → its tasks, which are all of the model's; empty: one stream for all tasks.

    Example:
        >>> streams = TaskStreams()
        >>> streams.groups = {"det": ("cls", "box"), "seg": ("seg",)}
        >>> trunk_output = streams.repeat({"img": torch.tensor([[1.0], [2.0]])})["img"] * 10
        >>> trunk_output.flatten().tolist(), streams.rows(trunk_output[1:3] * 0 + 7, "seg").tolist()
        ([10.0, 20.0, 10.0, 20.0], [[7.0]])
    """

    def __init__(self) -> None:
        self.groups: dict[str, tuple[str, ...]] = {}

    def repeat(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each tensor (B, ...) → (G·B, ...), G being the number of groups, 1 without groups."""
        return {
            name: torch.cat([value] * len(self.groups)) if self.groups else value
            for name, value in inputs.items()
        }

    def label(self, tokens: Sequence[str]) -> list[str]:
        """The samples' tokens → one name per row; an empty token stays empty."""
        if not self.groups:
            return list(tokens)
        return [token and f"{group}/{token}" for group in self.groups for token in tokens]

    def rows(self, features: Tensor, task: str) -> Tensor:
        """(G·B, ...) → (B, ...), the rows of the task's group."""
        if not self.groups:
            return features
        number = next(number for number, tasks in enumerate(self.groups.values()) if task in tasks)
        size = len(features) // len(self.groups)
        return features[number * size : (number + 1) * size]
