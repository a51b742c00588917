"""Pacing functions: how strongly similarity counts at an optimiser step."""

from abc import abstractmethod

from perception.balancing._checks import check_range
from perception.balancing.component import Component, Setting


class Pacing(Component):
    """Base of the pacing functions."""

    @abstractmethod
    def __call__(self, step: int) -> float:
        """p(t) ≥ 0 at optimiser step t, counted from 0."""


class LinearPacing(Pacing):
    """max(initial - step * decrement, 0).

    *Source*: MCLGS, Eq. 7.

    Args:
        initial: a_0, at least 0.
        decrement: Δa per optimiser step, at least 0.

    Raises:
        ValueError: a negative argument.

    Example:
        >>> LinearPacing(40, 0.5)(20), LinearPacing.from_ratio(40, 1, 80)(20)
        (30.0, 30.0)
    """

    def __init__(self, initial: float, decrement: float) -> None:
        check_range("initial", initial, 0.0)
        check_range("decrement", decrement, 0.0)
        self.initial = float(initial)
        self.decrement = float(decrement)

    @classmethod
    def from_ratio(cls, initial: float, ratio: float, total_steps: int) -> "LinearPacing":
        """Reaches 0 after `ratio * total_steps` optimiser steps (MCLGS, Eq. 10)."""
        check_range("ratio", ratio, 0.0, is_open=True)
        check_range("total_steps", total_steps, 1)
        return cls(initial, initial / (ratio * total_steps))

    def __call__(self, step: int) -> float:
        """p(t)."""
        return max(self.initial - step * self.decrement, 0.0)


class RatioPacing(Pacing):
    """`LinearPacing.from_ratio` with the run's number of optimiser steps, which a config need not know.

    Args:
        initial: a_0; the paper's best is 40 on NYUv2 and 120 on BDD100K.
        ratio: r_t; the paper's best is 1 and 2.
        total_steps: to use it without `setup`.
    """

    def __init__(self, initial: float = 40.0, ratio: float = 1.0, *, total_steps: int | None = None) -> None:
        self.initial = initial
        self.ratio = ratio
        self._linear = LinearPacing.from_ratio(initial, ratio, total_steps or 1)
        self._is_known = total_steps is not None

    def setup(self, setting: Setting) -> None:
        """Learn the number of optimiser steps."""
        super().setup(setting)
        if not self._is_known:
            self._linear = LinearPacing.from_ratio(self.initial, self.ratio, setting.total_steps)

    def __call__(self, step: int) -> float:
        """p(t)."""
        return self._linear(step)


class ExponentialPacing(Pacing):
    """initial * rate ** step.

    *Source*: MCLGS, Eq. 8.

    Args:
        initial: a_0, at least 0.
        rate: r_a per optimiser step, in (0, 1].

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> ExponentialPacing(40, 0.5)(2)
        10.0
    """

    def __init__(self, initial: float, rate: float) -> None:
        check_range("initial", initial, 0.0)
        check_range("rate", rate, 0.0, 1.0, is_open=True)
        self.initial = float(initial)
        self.rate = float(rate)

    def __call__(self, step: int) -> float:
        """p(t)."""
        return self.initial * self.rate**step
