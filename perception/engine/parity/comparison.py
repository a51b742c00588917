"""Collecting the differences between our numbers and a fixture's."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from perception.engine.parity.fixtures import STATE, Fixture

SMALLEST_GRADIENT = 1e-3
"""Gradients are compared relative to the array's maximum, or to this where that is smaller: rounding of a zero."""
_NOT_OURS = ("level_start_index",)
_YAW = 6


@dataclass(frozen=True)
class Difference:
    """The worst deviation of one quantity.

    quantity: what was compared.
    error: largest absolute (gradients: relative) difference; for discrete quantities the number of unequal entries.
    tolerance: what a float32 re-implementation may have; 0 for discrete quantities.
    array: the fixture's array where it is.
    """

    quantity: str
    error: float
    tolerance: float
    array: str

    @property
    def is_within(self) -> bool:
        """Whether the error is at most the tolerance."""
        return self.error <= self.tolerance


class Comparison:
    """What was compared of one fixture, and how it went.

    Args:
        fixture: the official numbers.
    """

    def __init__(self, fixture: Fixture) -> None:
        self.fixture = fixture
        self._worst: dict[str, Difference] = {}
        self._used: set[str] = set()

    @property
    def differences(self) -> list[Difference]:
        """The worst deviation of each quantity, in the order of comparison."""
        return list(self._worst.values())

    @property
    def unused(self) -> list[str]:
        """Official results that were not compared, but for those that have no counterpart here."""
        left = [key for key in self.fixture.arrays if key not in self._used and STATE not in key]
        return [key for key in left if not key.startswith("inputs/") and not key.endswith(_NOT_OURS)]

    def has(self, key: str) -> bool:
        """Whether the fixture has an array of this name."""
        return key in self.fixture.arrays

    def take(self, key: str) -> Tensor:
        """An array as input; it counts as used."""
        self._used.add(key)
        return self.fixture.arrays[key]

    def near(
        self,
        quantity: str,
        key: str,
        actual: Tensor,
        tolerance: float,
        *,
        convert: Callable[[Tensor], Tensor] | None = None,
        where: Tensor | None = None,
    ) -> None:
        """Compare values; nothing happens where the fixture lacks the array.

        Args:
            quantity: name in the table.
            key: the fixture's array.
            actual: ours.
            tolerance: largest absolute difference allowed.
            convert: turns the fixture's array into our convention.
            where: bool, which entries of both count; None: all.
        """
        if not self.has(key):
            return
        expected = self.take(key)
        if convert is not None:
            expected = convert(expected)
        if where is not None:
            actual, expected = actual[where], expected[where]
        self._record(quantity, key, _max_error(actual, expected), tolerance)

    def boxes(
        self,
        quantity: str,
        key: str,
        actual: Tensor,
        tolerance: float,
        convert: Callable[[Tensor], Tensor],
        *,
        rows: Tensor | None = None,
    ) -> None:
        """Compare boxes (n, 9), headings as angles; with `rows` only these of the fixture's."""
        if not self.has(key):
            return
        expected = convert(self.take(key) if rows is None else self.take(key)[rows])
        if actual.shape != expected.shape:
            self._record(quantity, key, math.inf, tolerance)
            return
        difference = actual - expected.to(actual)
        turned = torch.remainder(difference[:, _YAW] + math.pi, 2 * math.pi) - math.pi
        aligned = actual.clone()
        aligned[:, _YAW] = expected[:, _YAW] + turned
        self._record(quantity, key, _max_error(aligned, expected), tolerance)

    def relative(
        self,
        quantity: str,
        key: str,
        actual: Tensor,
        tolerance: float,
        *,
        convert: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Compare relative to the expected array's largest entry."""
        if not self.has(key):
            return
        expected = self.take(key)
        if convert is not None:
            expected = convert(expected)
        finite = expected[expected.isfinite()]
        scale = max(float(finite.abs().max()) if finite.numel() else 0.0, SMALLEST_GRADIENT)
        self._record(quantity, key, _max_error(actual, expected) / scale, tolerance)

    def exact(
        self, quantity: str, key: str, actual: Tensor, *, convert: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        """Compare discrete values: the error is the number of unequal entries."""
        if not self.has(key):
            return
        expected = self.take(key)
        if convert is not None:
            expected = convert(expected)
        if actual.shape != expected.shape:
            self._record(quantity, key, math.inf, 0.0)
            return
        self._record(quantity, key, float((actual != expected.to(actual.dtype)).sum()), 0.0)

    def require(self, quantity: str, is_met: bool) -> None:
        """Note a condition that has no array."""
        self._record(quantity, "", 0.0 if is_met else 1.0, 0.0)

    def _record(self, quantity: str, key: str, error: float, tolerance: float) -> None:
        before = self._worst.get(quantity)
        if before is None or error / (tolerance or 1) > before.error / (before.tolerance or 1):
            self._worst[quantity] = Difference(quantity, error, tolerance, key)


def _max_error(actual: Tensor, expected: Tensor) -> float:
    if actual.shape != expected.shape:
        return math.inf
    actual, expected = actual.detach().double(), expected.double()
    if not torch.equal(actual.isnan(), expected.isnan()):
        return math.inf
    difference = (actual - expected).abs().nan_to_num(nan=0.0, posinf=math.inf)
    return float(difference.max()) if difference.numel() else 0.0
