"""Tables of scores: means over seeds with their errors, and differences from a reference."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from perception.structures import (
    BDD_BOX_CLASSES,
    BDD_SEG_CLASSES,
    CLASS_NAMES,
    FILLED_MAP_CLASSES,
    MAP_CLASSES,
)
from perception.utils.seed_statistics import SeedMean
from perception.visualization.comparability import same_data
from perception.visualization.palette import BOX_COLOURS_2D, CLASS_COLOURS, MAP_COLOURS, SEG_COLOURS, to_hex
from perception.visualization.run_groups import RunGroup
from perception.visualization.run_summary import TP_ERRORS

COLUMNS = ("NDS", "mAP", "AP", "AP50", "mIoU", "mAcc", *(f"m{name}" for name in TP_ERRORS))
"""Scores of the table of runs, as far as a run has them."""

_LOWER = ("ATE", "ASE", "AOE", "AVE", "AAE")
_KINDS = {"AP": "AP", "IoU": "IoU", "Acc": "precision of pixels"} | {
    name: f"{name} ({unit})" for name, unit in TP_ERRORS.items()
}
_BOX_ORDER = (*CLASS_NAMES, *BDD_BOX_CLASSES)
_SEG_ORDER = (*MAP_CLASSES, *FILLED_MAP_CLASSES, *BDD_SEG_CLASSES)
_SEG_KINDS = ("IoU", "Acc")
_GREY = (153, 153, 153)
_MIN_SEEDS = 3
"""Errors of fewer seeds are too uncertain themselves to call a difference one."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A number of a table.

    Attributes:
        value: with its error; "" where there is none.
        difference: from the reference, with its error; "" of the reference itself.
        verdict: "better" or "worse" where both have three seeds and the difference is more than two errors, else "".
        is_best: of its row or column.
    """

    value: str = ""
    error: str = ""
    difference: str = ""
    verdict: str = ""
    is_best: bool = False


@dataclass
class Table:
    """Rows of cells.

    Attributes:
        name: what it is called.
        corner: head of the first column.
        heads: heads of the others.
        rows: name, colour or None, cells.
    """

    name: str
    corner: str
    heads: list[str]
    rows: list[tuple[str, str | None, list[Cell]]] = field(default_factory=list)


def compare_cell(
    value: SeedMean | None, reference: SeedMean | None, *, decimals: int, is_lower_better: bool = False
) -> Cell:
    """A cell of a score and of its difference.

    The error of a difference is the root of the sum of both squared standard errors, which takes the runs for
    independent; it is there where both have two seeds or more.

    Example:
        >>> cell = compare_cell(SeedMean(0.5, 0.03, 3), SeedMean(0.4, 0.04, 3), decimals=2)
        >>> cell.value, cell.error, cell.difference, cell.verdict
        ('0.50', '±0.03', '+0.10 ±0.05', '')
    """
    if value is None:
        return Cell()
    text = f"{value.mean:.{decimals}f}"
    error = "" if value.error is None else f"±{value.error:.{decimals}f}"
    if reference is None:
        return Cell(value=text, error=error)
    gap = value.mean - reference.mean
    difference, verdict = _signed(gap, decimals), ""
    if value.error is not None and reference.error is not None:
        uncertainty = math.hypot(value.error, reference.error)
        difference += f" ±{uncertainty:.{decimals}f}"
        if min(value.num, reference.num) >= _MIN_SEEDS and abs(gap) > 2 * uncertainty:
            verdict = "worse" if (gap > 0) == is_lower_better else "better"
    return Cell(value=text, error=error, difference=difference, verdict=verdict)


def _signed(gap: float, decimals: int) -> str:
    text = f"{gap:+.{decimals}f}"
    return "0" if float(text) == 0 else text.replace("-", "−")


def runs_table(
    groups: Sequence[RunGroup], reference: RunGroup | None, multi_task: Mapping[str, Sequence[Cell]]
) -> Table:
    """A row per method, a column per score: the main ones, those of `multi_task_cells`, the errors."""
    names = [name for name in COLUMNS if any(group.over_seeds(name) for group in groups)]
    main, errors = ([name for name in names if _is_error(name) == is_error] for is_error in (False, True))
    between = ["Δm, drop ↓ %", "Δm, gain ↑ %", "Acc_MTL ↑"] if multi_task else []
    heads = [*(f"{name} ↑" for name in main), *between, *(f"{name} ↓" for name in errors), "seeds"]
    table = Table(name="scores", corner="run", heads=heads)
    columns = {
        name: _cells([group.over_seeds(name) for group in groups], groups, reference, name) for name in names
    }
    for index, group in enumerate(groups):
        cells = [columns[name][index] for name in main]
        cells += multi_task.get(group.label, [Cell()] * len(between))
        cells += [columns[name][index] for name in errors]
        cells.append(Cell(value=str(len(group.runs))))
        table.rows.append((group.label, f"var(--c{group.colour % 10})", cells))
    return table


def class_tables(groups: Sequence[RunGroup], reference: RunGroup | None) -> list[Table]:
    """A table per kind of score, AP and IoU first: a row per class, a column per method."""
    kinds = dict.fromkeys(key.partition("/")[0] for group in groups for key in group.metrics if "/" in key)
    tables = []
    for kind in sorted(kinds, key=lambda kind: list(_KINDS).index(kind) if kind in _KINDS else len(_KINDS)):
        shown = [group for group in groups if any(key.startswith(f"{kind}/") for key in group.metrics)]
        classes = dict.fromkeys(
            key.partition("/")[2] for group in shown for key in group.metrics if key.startswith(f"{kind}/")
        )
        table = Table(
            name=f"{_KINDS.get(kind, kind)} {_arrow(kind)}",
            corner="class",
            heads=[group.label for group in shown],
        )
        for name in sorted(classes, key=partial(_class_order, kind=kind)):
            values = [group.over_seeds(f"{kind}/{name}") for group in shown]
            cells = _cells(values, shown, reference, kind)
            table.rows.append((name.replace("_", " "), class_colour(name, kind), cells))
        tables.append(table)
    return tables


def run_tables(group: RunGroup) -> list[Table]:
    """Of a single method: a row per class with all its scores, the means last; one table of boxes, one of the map."""
    kinds = {"boxes": ("AP", *TP_ERRORS), "segmentation": ("IoU", "Acc")}
    tables = []
    for name, wanted in kinds.items():
        found = [kind for kind in wanted if any(key.startswith(f"{kind}/") for key in group.metrics)]
        if not found:
            continue
        table = Table(name=name, corner="class", heads=[f"{kind} {_arrow(kind)}" for kind in found])
        for label, colour, keys in _class_rows(group, found):
            table.rows.append((label, colour, [_plain(group.over_seeds(key)) for key in keys]))
        tables.append(table)
    return tables


def _class_rows(group: RunGroup, kinds: Sequence[str]) -> list[tuple[str, str | None, list[str]]]:
    first = kinds[0]
    classes = [key.partition("/")[2] for key in group.metrics if key.startswith(f"{first}/")]
    if first == "IoU" and "fIoU" not in group.metrics:  # a map: a class that nothing holds has no IoU
        ours = FILLED_MAP_CLASSES if FILLED_MAP_CLASSES[-1] in classes else MAP_CLASSES
        classes = [*classes, *(name for name in ours[1:] if name not in classes)]
    rows: list[tuple[str, str | None, list[str]]] = [
        (name.replace("_", " "), class_colour(name, first), [f"{kind}/{name}" for kind in kinds])
        for name in sorted(classes, key=partial(_class_order, kind=first))
    ]
    means = ["AP" if kind == "AP" and "AP" in group.metrics else f"m{kind}" for kind in kinds]
    return [*rows, ("mean", None, means)]


def _plain(value: SeedMean | None) -> Cell:
    return compare_cell(value, None, decimals=3)


def multi_task_cells(scored: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Cell]]:
    """Method → Δm as a drop, as a gain, in per cent, and Acc_MTL; empty cells where one has no value.

    Args:
        scored: label → `delta_m_drop`, `delta_m_gain` and `acc_mtl`, each with `mean` and `standard_error`, or None.
    """
    rows = {
        label: [
            _scaled(row.get("delta_m_drop"), 1, 100.0),
            _scaled(row.get("delta_m_gain"), 1, 100.0),
            _scaled(row.get("acc_mtl"), 3, 1.0),
        ]
        for label, row in scored.items()
    }
    return {label: cells for label, cells in rows.items() if any(cell.value for cell in cells)}


def class_colour(name: str, kind: str = "AP") -> str:
    """A class's colour in the pictures."""
    known = {**SEG_COLOURS, **MAP_COLOURS} if kind in _SEG_KINDS else {**BOX_COLOURS_2D, **CLASS_COLOURS}
    return to_hex(known.get(name, _GREY))


def decimals_of(values: Sequence[SeedMean | None]) -> int:
    """Places that a column needs: four where all its numbers are below 0.1."""
    return 4 if all(value is None or abs(value.mean) < 0.1 for value in values) else 3


def _cells(
    values: Sequence[SeedMean | None], groups: Sequence[RunGroup], reference: RunGroup | None, name: str
) -> list[Cell]:
    is_lower = _is_error(name)
    known = [value.mean for value in values if value is not None]
    best = (min(known) if is_lower else max(known)) if len(set(known)) > 1 else None
    base = next((value for value, group in zip(values, groups, strict=True) if group is reference), None)
    cells = []
    for value, group in zip(values, groups, strict=True):
        is_compared = reference is not None and group is not reference and same_data(group, reference)
        cell = compare_cell(
            value, base if is_compared else None, decimals=decimals_of(values), is_lower_better=is_lower
        )
        is_best = (
            value is not None and value.mean == best and all(same_data(group, other) for other in groups)
        )
        cells.append(Cell(**{**vars(cell), "is_best": is_best}))
    return cells


def _arrow(name: str) -> str:
    return "↓" if _is_error(name) else "↑"


def _is_error(name: str) -> bool:
    return name.removeprefix("m") in _LOWER


def _class_order(name: str, kind: str) -> int:
    order = _SEG_ORDER if kind in _SEG_KINDS else _BOX_ORDER
    return order.index(name) if name in order else len(order)


def _scaled(value: Mapping[str, Any] | None, decimals: int, scale: float) -> Cell:
    if value is None:
        return Cell()
    error = None if value["standard_error"] is None else value["standard_error"] * scale
    cell = compare_cell(SeedMean(value["mean"] * scale, error, value["num_seeds"]), None, decimals=decimals)
    return Cell(value=cell.value.replace("-", "−"), error=cell.error)
