"""From values to places in a picture, and the round numbers written along an axis."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis of a chart.

    Args:
        low: value at `start`.
        high: value at `end`, above `low`.
        start: place in the picture.
        end: place in the picture.
        is_log: logarithmic; both values are above 0.

    Example:
        >>> axis = Axis(low=0.0, high=10.0, start=100.0, end=0.0)
        >>> axis.place(2.5), axis.ticks()
        (75.0, [0.0, 5.0, 10.0])
    """

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def place(self, value: float) -> float:
        """Where a value lies; values beyond the axis lie at its ends."""
        low, high, value = (
            math.log(x) if self.is_log else x for x in (self.low, self.high, self._cut(value))
        )
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self, count: int = 4) -> list[float]:
        """About `count` round values within the axis: 1, 2 or 5 times a power of ten apart."""
        if self.is_log and self.high > 3 * self.low:
            return self._log_ticks(count)
        step = _round_up((self.high - self.low) / count)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]

    def _cut(self, value: float) -> float:
        return min(max(value, self.low), self.high)

    def _log_ticks(self, count: int) -> list[float]:
        exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for factors in ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
            found = [factor * 10.0**exponent for exponent in exponents for factor in factors]
            found = [
                value for value in found if self.low <= value * (1 + 1e-9) and value <= self.high * (1 + 1e-9)
            ]
            if len(found) <= count + 1:
                return found
        return found[:: -(-len(found) // count)]


def padded(low: float, high: float, *, from_zero: bool = False, is_log: bool = False) -> tuple[float, float]:
    """Ends of an axis that holds some values with a little room, never of length 0.

    Example:
        >>> padded(2.0, 2.0), padded(1.0, 3.0, from_zero=True)
        ((1.9, 2.1), (0.0, 3.15))
    """
    if is_log:
        return (low / 1.1, high * 1.1)
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
    return (0.0 if from_zero and low == 0 else low - room, high + room)


def tick_text(value: float) -> str:
    """A tick's number, short.

    Example:
        >>> [tick_text(value) for value in (0.0, 0.25, 1200.0, 20000.0, 0.00004)]
        ['0', '0.25', '1200', '20k', '4e-5']
    """
    if value == 0:
        return "0"
    if abs(value) >= 10000:
        return f"{value / 1000:g}k" if abs(value) < 1e6 else f"{value:.2g}".replace("e+0", "e")
    if abs(value) < 0.001:
        return f"{value:.2g}".replace("e-0", "e-")
    return f"{value:g}"


def _round_up(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= step * (1 - 1e-9))
