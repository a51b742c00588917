"""What every part of a balancer shares: names of the tasks, the life cycle, the generator and the saved state."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

Convention = Literal["sum", "mean"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a balancer knows about the run before its first step.

    Attributes:
        task_names: every task, in the order of all (T,) vectors.
        max_epochs: epochs of the whole run.
        total_steps: optimiser steps of the whole run.
        generator: the balancer's own CPU generator, seeded alike on all ranks.
    """

    task_names: tuple[str, ...]
    max_epochs: int
    total_steps: int
    generator: torch.Generator


class Component:
    """A part of a balancer. Each life-cycle call goes to the part and then to the parts that it holds.

    Attributes:
        state_names: attributes that a resume needs: tensors or JSON-able values.
        num_steps: optimiser steps taken so far.
        generator: where random numbers come from; None is torch's global one. One of the component's own, given before
            `setup`, is in its state; the balancer saves the one that it lends.
    """

    state_names: ClassVar[tuple[str, ...]] = ()
    task_names: tuple[str, ...] = ()
    num_steps: int = 0
    generator: torch.Generator | None = None
    _is_generator_lent: bool = False

    def parts(self) -> tuple["Component", ...]:
        """The components that this one holds."""
        return ()

    def setup(self, setting: Setting) -> None:
        """Learn the tasks and check every argument against them.

        Raises:
            ValueError: an argument does not fit the tasks or the run.
        """
        self.task_names = setting.task_names
        if self.generator is None:
            self.generator = setting.generator
            self._is_generator_lent = True
        for part in self.parts():
            part.setup(setting)

    def begin_epoch(self, epoch: int) -> None:
        """Start an epoch, counted from 1."""
        for part in self.parts():
            part.begin_epoch(epoch)

    def end_epoch(self, mean_losses: Tensor) -> None:
        """End an epoch. mean_losses: (T,) float64 means of the scaled global losses, NaN for a task without any."""
        for part in self.parts():
            part.end_epoch(mean_losses)

    def check_directions(self, lower: Collection[str]) -> None:
        """After `setup`: learn the tasks whose scores are known to be better when lower.

        Raises:
            ValueError: the component follows scores and takes such a task's for better when higher.
        """
        for part in self.parts():
            part.check_directions(lower)

    def update_kpis(self, kpis: Mapping[str, float]) -> None:
        """Take task → score of a validation, as the metric gives it."""
        for part in self.parts():
            part.update_kpis(kpis)

    def end_step(self) -> None:
        """Count one optimiser step."""
        self.num_steps += 1
        for part in self.parts():
            part.end_step()

    def report(self) -> dict[str, Any]:
        """What the last step did here, JSON-able."""
        return {}

    def save_state(self) -> dict[str, Any]:
        """Tensors and JSON-able values that a resume needs, those of the parts under "parts"."""
        state: dict[str, Any] = {"type": type(self).__name__, "num_steps": self.num_steps}
        for name in self.state_names:
            value = getattr(self, name)
            state[name] = value.clone() if isinstance(value, Tensor) else value
        own = self._own_generator()
        if own is not None:
            state["generator"] = own.get_state()
        state["parts"] = [part.save_state() for part in self.parts()]
        return state

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what `save_state` returned.

        Raises:
            ValueError: the state belongs to another component.
        """
        parts, own = self.parts(), self._own_generator()
        wanted = {"type", "num_steps", "parts", *self.state_names}
        if own is not None:
            wanted.add("generator")
        if set(state) != wanted or state["type"] != type(self).__name__ or len(state["parts"]) != len(parts):
            raise ValueError(
                f"the checkpoint holds the state of {state.get('type')!r} with {sorted(set(state) - {'type'})}, but "
                f"the balancer has a {type(self).__name__} here. Resume with the balancer that wrote it"
            )
        self.num_steps = int(state["num_steps"])
        for name in self.state_names:
            value = state[name]
            setattr(self, name, value.clone() if isinstance(value, Tensor) else value)
        if own is not None:
            own.set_state(state["generator"].cpu())
        for part, part_state in zip(parts, state["parts"], strict=True):
            part.load_state(part_state)

    def _own_generator(self) -> torch.Generator | None:
        return None if self._is_generator_lent else self.generator
