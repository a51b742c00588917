"""Mean and standard error over seeds, and Markdown tables of them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True)
class SeedMean:
    """A number over seeds.

    Attributes:
        mean: over the seeds.
        error: standard error of the mean (sample standard deviation over the root of n); None for one seed.
        num: n.
    """

    mean: float
    error: float | None
    num: int

    def as_json(self) -> dict[str, float | int | None]:
        """As JSON-able values."""
        return {"mean": self.mean, "standard_error": self.error, "num_seeds": self.num}

    def text(self, decimals: int = 4, scale: float = 1.0) -> str:
        """E.g. `0.1490 ± 0.0021`; one seed has no error.

        Example:
            >>> over_seeds([0.1, 0.3]).text(2)
            '0.20 ± 0.10'
        """
        mean = f"{self.mean * scale:.{decimals}f}"
        return mean if self.error is None else f"{mean} ± {self.error * scale:.{decimals}f}"


def over_seeds(values: Iterable[float]) -> SeedMean:
    """Mean and standard error.

    Raises:
        ValueError: no value.

    Example:
        >>> over_seeds([1.0, 2.0, 3.0]).error == 1 / 3 ** 0.5
        True
    """
    numbers = [float(value) for value in values]
    if not numbers:
        raise ValueError("there is no value to average; at least one seed is needed")
    error = stdev(numbers) / math.sqrt(len(numbers)) if len(numbers) > 1 else None
    return SeedMean(mean=fmean(numbers), error=error, num=len(numbers))


def metrics_over_seeds(runs: Sequence[Mapping[str, float]]) -> dict[str, SeedMean]:
    """Mean and error of each metric that all runs have, in the first run's order."""
    names = [name for name in (runs[0] if runs else ()) if all(name in run for run in runs)]
    return {name: over_seeds(run[name] for run in runs) for name in names}


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; empty cells become a dash.

    Example:
        >>> print(markdown_table(["name", "x"], [["a", "1"], ["b", ""]]))
        | name | x |
        | --- | --- |
        | a | 1 |
        | b | – |
    """
    lines = [header, ["---"] * len(header), *([cell or "–" for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
