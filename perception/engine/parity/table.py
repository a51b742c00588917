"""The parity table as Markdown: fixture × quantity → largest error."""

import platform
from collections.abc import Sequence

import torch

from perception.engine.parity.comparison import Comparison
from perception.engine.parity.run import FORMS, form_of


def render_table(comparisons: Sequence[Comparison]) -> str:
    """One table per kind of fixture; a cell beyond its tolerance is bold, a quantity that a fixture lacks is "–".

    Args:
        comparisons: what was compared, one per fixture.
    """
    parts = [_summary(comparisons)]
    for form in FORMS:
        of_form = [compare for compare in comparisons if form_of(compare.fixture) == form]
        if of_form:
            parts.append(f"## {form.title}\n\n{_matrix(of_form)}")
    return "\n\n".join(parts) + "\n"


def _summary(comparisons: Sequence[Comparison]) -> str:
    differences = [difference for compare in comparisons for difference in compare.differences]
    beyond = sum(not difference.is_within for difference in differences)
    unused = sum(len(compare.unused) for compare in comparisons)
    return (
        f"{len(comparisons)} fixtures, {len(differences)} quantities, {beyond} beyond the tolerance, {unused} official "
        f"arrays not compared. torch {torch.__version__.partition('+')[0]}, float32, CPU, {platform.machine()}."
    )


def _matrix(comparisons: Sequence[Comparison]) -> str:
    cells: dict[tuple[str, float], dict[str, str]] = {}
    for compare in comparisons:
        for difference in compare.differences:
            text = f"{difference.error:.1e}" if difference.tolerance else f"{difference.error:g}"
            row = cells.setdefault((difference.quantity, difference.tolerance), {})
            row[compare.fixture.name] = text if difference.is_within else f"**{text}**"
    names = [compare.fixture.name for compare in comparisons]
    lines = [
        f"| quantity | {' | '.join(f'`{name}`' for name in names)} | tolerance |",
        "| --- |" + " --- |" * (len(names) + 1),
    ]
    for (quantity, tolerance), row in cells.items():
        values = " | ".join(row.get(name, "–") for name in names)
        lines.append(f"| {quantity} | {values} | {f'{tolerance:.0e}' if tolerance else 'exact'} |")
    return "\n".join(lines)
