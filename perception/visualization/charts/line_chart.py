"""Curves over training steps."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from perception.visualization.charts.axis import Axis, padded, tick_text
from perception.visualization.series import Series

NUM_COLOURS = 10
"""Colours c0…c9 of the style sheet; further lines are dashed."""

WIDTH, _HEIGHT = 420, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 8, 26


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve.

    Attributes:
        label: what the legend calls it.
        colour: its number; 10 and more are those of 0… dashed.
        points: (step, value); not finite values interrupt it.
        pale: the same before it was smoothed, drawn pale.
        band: (step, lowest, highest) around it.
    """

    label: str
    colour: int
    points: Series
    pale: Series = field(default_factory=list)
    band: list[tuple[float, float, float]] = field(default_factory=list)


def line_chart(
    lines: Sequence[Line],
    *,
    name: str,
    from_zero: bool = False,
    is_log: bool = False,
    limits: tuple[float, float] | None = None,
    x_limits: tuple[float, float] | None = None,
    height: int = _HEIGHT,
) -> Markup:
    """An SVG of curves over training steps.

    Args:
        lines: at least one, each with a point.
        name: what the curves show; said to those who cannot see the picture.
        from_zero: the vertical axis begins at 0.
        is_log: it is logarithmic; all values are above 0.
        limits: its ends, in place of those of the values.
        x_limits: steps at the ends of the horizontal axis.
        height: of the picture, 420 being its width.

    Example:
        >>> chart = line_chart([Line(label="a", colour=0, points=[(1.0, 2.0), (2.0, 1.0)])], name="loss")
        >>> 'aria-label="loss over training steps. a: from 2 to 1."' in chart, chart.count("<path")
        (True, 1)
    """
    values = [value for line in lines for _, value in (*line.points, *line.pale)]
    values += [edge for line in lines for _, *edges in line.band for edge in edges]
    low, high = limits or padded(min(values), max(values), from_zero=from_zero, is_log=is_log)
    steps = [step for line in lines for step, _ in line.points]
    first, last = x_limits or (min(steps), max(steps))
    x = Axis(low=first, high=last if last > first else first + 1.0, start=_LEFT, end=WIDTH - _RIGHT)
    y = Axis(low=low, high=high, start=height - _BOTTOM, end=_TOP, is_log=is_log)
    said = " ".join(
        f"{line.label}: from {line.points[0][1]:.3g} to {line.points[-1][1]:.3g}." for line in lines[:12]
    )
    parts = [frame(x, y), *(_drawn(line, x, y) for line in lines)]
    return picture(parts, height=height, label=f"{name} over training steps. {said}")


def picture(parts: Sequence[Markup], *, height: float, label: str) -> Markup:
    """An SVG as wide as its place, with a text for those who cannot see it."""
    return Markup('<svg class="chart" viewBox="0 0 {} {:g}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, height, label, Markup("").join(parts)
    )


def frame(x: Axis, y: Axis, *, y_ticks: Sequence[float] | None = None, y_percent: bool = False) -> Markup:
    """Grid lines, the numbers along both axes, and the bottom line."""
    parts = []
    for value in y.ticks() if y_ticks is None else y_ticks:
        place = y.place(value)
        text = f"{value:.0%}" if y_percent else tick_text(value)
        parts.append(
            f'<line class="grid" x1="{x.start:g}" x2="{x.end:g}" y1="{place:.1f}" y2="{place:.1f}"/>'
        )
        parts.append(f'<text class="tick end" x="{x.start - 6:g}" y="{place + 4:.1f}">{text}</text>')
    parts.append(steps_axis(x, y.start))
    return Markup("".join(parts))


def steps_axis(x: Axis, bottom: float) -> Markup:
    """The line of steps and its numbers, below."""
    parts = [f'<line class="axis" x1="{x.start:g}" x2="{x.end:g}" y1="{bottom:g}" y2="{bottom:g}"/>']
    for value in x.ticks():
        anchor = "end" if x.place(value) > x.end - 12 else "middle"
        text = f"{tick_text(value)}"
        parts.append(
            f'<text class="tick {anchor}" x="{x.place(value):.1f}" y="{bottom + 16:g}">{text}</text>'
        )
    return Markup("".join(parts))


def path_of(points: Sequence[tuple[float, float]], x: Axis, y: Axis) -> str:
    """The `d` of a curve; a value that is not a number interrupts it."""
    words, is_open = [], False
    for step, value in points:
        if value != value or step != step:
            is_open = False
            continue
        words.append(f"{'L' if is_open else 'M'}{x.place(step):.1f} {y.place(value):.1f}")
        is_open = True
    return "".join(words)


def _drawn(line: Line, x: Axis, y: Axis) -> Markup:
    colour = f"c{line.colour % NUM_COLOURS}" + (" dashed" if line.colour >= NUM_COLOURS else "")
    parts = []
    if line.band:
        around = [(step, high) for step, _, high in line.band]
        around += [(step, low) for step, low, _ in reversed(line.band)]
        parts.append(Markup('<path class="band {}" d="{}Z"/>').format(colour, path_of(around, x, y)))
    if line.pale:
        parts.append(Markup('<path class="line pale {}" d="{}"/>').format(colour, path_of(line.pale, x, y)))
    title = Markup("<title>{}</title>").format(line.label)
    if len(line.points) == 1:
        (step, value), *_ = line.points
        parts.append(
            Markup('<circle class="point {}" cx="{}" cy="{}" r="4">{}</circle>').format(
                colour, round(x.place(step), 1), round(y.place(value), 1), title
            )
        )
    else:
        d = path_of(line.points, x, y)
        parts.append(Markup('<path class="line {}" d="{}">{}</path>').format(colour, d, title))
    return Markup("").join(parts)
