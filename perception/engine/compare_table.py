"""A paper's table of methods beside our numbers, from a plan: which balancers, which metrics, what was published."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perception.balancing.build import Spec
from perception.config import ConfigError
from perception.engine.compare_scores import relative_sizes
from perception.utils import did_you_mean, read_json
from perception.utils.seed_statistics import SeedMean, markdown_table

_KEYS = ("title", "scores", "columns", "names", "balancers", "published")
_SINGLE, _SIZE, _DROP = "single", "#P", "delta_m"


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """A comparison that a paper printed.

    Attributes:
        title: of the table.
        scores: task → metrics in Δm.
        columns: metric → heading; fractions are printed in per cent.
        names: label of a balancer, or "single" → the paper's name of the row; rows have this order.
        balancers: label → balancer.
        published: label → column → what the paper prints; columns are "#P", the metrics and "delta_m".
    """

    title: str
    scores: Mapping[str, Sequence[str]]
    columns: Mapping[str, str]
    names: Mapping[str, str]
    balancers: Mapping[str, Spec]
    published: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> "PaperTable":
        """Read a plan's JSON.

        Raises:
            ConfigError: it cannot be read, or has other keys than the attributes, which but `published` must be there.
        """
        try:
            content = read_json(path)
        except (OSError, ValueError) as error:
            raise ConfigError(f"the plan {path} cannot be read as JSON: {error}") from error
        if not isinstance(content, dict):
            raise ConfigError(f"the plan {path} holds {type(content).__name__}; allowed: an object")
        problems = [f"unknown key {key!r}.{did_you_mean(key, _KEYS)}" for key in content if key not in _KEYS]
        problems += [f"{key!r} is missing" for key in _KEYS[:-1] if key not in content]
        if problems:
            raise ConfigError(f"the plan {path} has problems (keys: {', '.join(_KEYS)}):", problems=problems)
        return cls(**content)

    def choose(self, labels: Sequence[str]) -> dict[str, Spec]:
        """The balancers with these labels, all where none is named.

        Raises:
            ConfigError: an unknown label.
        """
        for label in labels:
            if label not in self.balancers:
                raise ConfigError(
                    f"the plan has no balancer {label!r}.{did_you_mean(label, self.balancers)} It has "
                    f"{', '.join(self.balancers)}"
                )
        return {label: self.balancers[label] for label in (labels or self.balancers)}

    def page(self, result: Mapping[str, Any]) -> str:
        """The table in Markdown: under each heading our number and the paper's; what was not run has a dash.

        Args:
            result: what `compare.json` holds.
        """
        sizes = relative_sizes(result)
        columns = {_SIZE: _SIZE, **self.columns, _DROP: "Δm % ↓"}
        header = ["method"]
        for text in columns.values():
            header += [f"{text} ours", "paper"]
        rows = []
        for label, name in self.names.items():
            ours = self._single(result) if label == _SINGLE else self._row(label, result, sizes)
            row = [name]
            for column in columns:
                row += [ours.get(column, ""), self.published.get(label, {}).get(column, "")]
            rows.append(row)
        return (
            f"## {self.title}\n\n"
            f"Metrics in per cent, mean ± standard error over our seeds. *paper* is copied and was measured "
            f"on other data and models.\n\n{markdown_table(header, rows)}\n"
        )

    def _row(self, label: str, result: Mapping[str, Any], sizes: Mapping[str, float]) -> dict[str, str]:
        group = result["balancers"].get(label)
        if group is None:
            return {}
        cells = {column: _percent(group["metrics"].get(column)) for column in self.columns}
        return {
            **cells,
            _DROP: _percent(group.get("delta_m_drop")),
            **({_SIZE: f"{sizes[label]:.2f}"} if label in sizes else {}),
        }

    def _single(self, result: Mapping[str, Any]) -> dict[str, str]:
        """Each metric from the task's own model; together they are as large as there are tasks."""
        cells: dict[str, str] = {}
        for task, names in self.scores.items():
            metrics = result["single"].get(task, {}).get("metrics", {})
            cells |= {name: _percent(metrics.get(name)) for name in names if name in self.columns}
        return cells | ({_SIZE: f"{len(result['single'])}"} if result["single"] else {})


def _percent(number: Mapping[str, Any] | None) -> str:
    if number is None:
        return ""
    return SeedMean(number["mean"], number["standard_error"], number["num_seeds"]).text(2, 100.0)
