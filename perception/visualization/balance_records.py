"""What a run's log tells of its balancing, as series over training steps."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

from perception.visualization.log_records import is_number, step_of
from perception.visualization.series import Series

_TASK_ROWS = ("weights", "coefficients", "grad_norms")
_KNOWN = (*_TASK_ROWS, "cosines", "conflict_share", "phase")


@dataclass
class BalanceRecords:
    """The `balance` of a log's training lines; whatever no line holds is empty.

    Attributes:
        first_step: of the log's training lines, as `last_step`.
        epochs: (epoch, its first step).
        cosines: "task/task" → series.
        conflict_share: share of pairs whose cosine is below 0.
        projected: "task → task" → 1 in updates that projected the first onto the second's normal plane, else 0; pairs
            that never were are left out.
        rows: name ("weights", "priorities", "pacing", ...) → task → series; the task is "" for a single number.
        phases: (first step, last step, name) of stretches of updates with one phase.
        components: class names of the method's parts that reported something.
    """

    first_step: float = 0.0
    last_step: float = 0.0
    epochs: list[tuple[int, float]] = field(default_factory=list)
    cosines: dict[str, Series] = field(default_factory=dict)
    conflict_share: Series = field(default_factory=list)
    projected: dict[str, Series] = field(default_factory=dict)
    rows: dict[str, dict[str, Series]] = field(default_factory=dict)
    phases: list[tuple[float, float, str]] = field(default_factory=list)
    components: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.cosines or self.rows or self.phases)

    def tasks(self) -> list[str]:
        """Names of the tasks, in the log's order."""
        found = [name for key in _TASK_ROWS for name in self.rows.get(key, {})]
        found += [name for pair in self.cosines for name in pair.split("/")]
        return list(dict.fromkeys(found))

    @classmethod
    def from_log(cls, records: Iterable[Mapping[str, Any]]) -> "BalanceRecords":
        """Collect the series of a log's lines, as `iter_json_lines` gives them.

        Example:
            >>> line = {"step": 3, "balance": {"cosines": {"det/seg": -0.5}, "conflict_share": 1.0}}
            >>> BalanceRecords.from_log([line]).cosines
            {'det/seg': [(3.0, -0.5)]}
        """
        found = cls()
        is_first = True
        for record in records:
            step = step_of(record)
            if step is None or record.get("kind", "train") != "train":
                continue
            found.first_step, found.last_step = step if is_first else found.first_step, step
            is_first = False
            epoch = record.get("epoch")
            if is_number(epoch) and (not found.epochs or found.epochs[-1][0] != epoch):
                found.epochs.append((int(epoch), step))
            if isinstance(record.get("balance"), Mapping):
                found._add(step, record["balance"])
        found.projected = {
            pair: series for pair, series in found.projected.items() if any(value for _, value in series)
        }
        return found

    def _add(self, step: float, balance: Mapping[str, Any]) -> None:
        _extend(self.cosines, step, balance.get("cosines"))
        share = balance.get("conflict_share")
        if is_number(share):
            self.conflict_share.append((step, float(share)))
        if isinstance(balance.get("phase"), str):
            self._add_phase(step, balance["phase"])
        for name in _TASK_ROWS:
            self._add_row(step, name, balance.get(name))
        for key, value in balance.items():
            if key[:1].isupper() and isinstance(
                value, Mapping
            ):  # a component's own report, by its class name
                if key not in self.components:
                    self.components.append(key)
                for name, part in value.items():
                    self._add_row(step, name, part)
                self._add_projections(step, value.get("projected"), balance.get("coefficients"))
            elif key not in _KNOWN:
                self._add_row(step, key, value)

    def _add_row(self, step: float, name: str, value: Any) -> None:
        values = {"": value} if is_number(value) else value
        row = dict(self.rows.get(name, {}))
        _extend(row, step, values)
        if row:
            self.rows[name] = row

    def _add_projections(self, step: float, projected: Any, coefficients: Any) -> None:
        # A method that took part names the tasks by their coefficients.
        if not isinstance(projected, list) or not isinstance(coefficients, Mapping):
            return
        done = {tuple(pair) for pair in projected}
        for pair in permutations(coefficients, 2):
            self.projected.setdefault(" → ".join(pair), []).append((step, float(pair in done)))

    def _add_phase(self, step: float, phase: str) -> None:
        if self.phases and self.phases[-1][2] == phase:
            self.phases[-1] = (self.phases[-1][0], step, phase)
        else:
            self.phases.append((step, step, phase))


def _extend(row: dict[str, Series], step: float, values: Any) -> None:
    for name, value in values.items() if isinstance(values, Mapping) else ():
        if is_number(value):
            row.setdefault(name, []).append((step, float(value)))
