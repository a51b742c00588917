"""Cosines of task gradients over training: a row per pair, a column per stretch of steps, and the share in conflict."""

from collections.abc import Mapping

import numpy as np
from markupsafe import Markup

from perception.visualization.charts.axis import Axis
from perception.visualization.charts.line_chart import WIDTH, path_of, picture, steps_axis
from perception.visualization.series import Series, binned, mean_of, smooth, thinned

_LEFT, _RIGHT, _ROW, _TOP = 98, 44, 18, 18
_SHARE = 46
_GAP = 12
_BOTTOM = 24
_MAX_COLUMNS = 60
_NAME_LENGTH = 15


def heat_strip(cosines: Mapping[str, Series], conflict_share: Series) -> Markup:
    """An SVG of the pairs' cosines over steps, each with its mean, and below them the share of pairs in conflict.

    Blue is agreement, red conflict, the stronger the nearer to the largest that occurs; grey is where nothing was
    measured.

    Args:
        cosines: "task/task" → series, at least one.
        conflict_share: share of pairs with a negative cosine; may be empty.

    Example:
        >>> strip = heat_strip({"cls/seg": [(1.0, -0.5), (2.0, 0.24)]}, [(1.0, 1.0), (2.0, 0.0)])
        >>> strip.count('class="against"'), strip.count('class="along"'), "cls / seg −0.13" in strip
        (1, 1, True)
    """
    edges, values = binned(cosines, _MAX_COLUMNS)
    limit = max(float(np.nanmax(np.abs(values))), 0.05)
    x = Axis(low=float(edges[0]), high=float(edges[-1]), start=_LEFT, end=WIDTH - _RIGHT)
    bottom = _TOP + _ROW * len(cosines)
    parts = [Markup('<text class="tick end" x="{}" y="12">mean</text>').format(WIDTH)]
    for number, (pair, series) in enumerate(cosines.items()):
        top = _TOP + _ROW * number
        name = pair.replace("/", " / ")
        parts.append(
            Markup('<text class="tick end" x="{}" y="{}">{}</text>').format(
                _LEFT - 6, top + 13, name if len(name) <= _NAME_LENGTH else name[: _NAME_LENGTH - 1] + "…"
            )
        )
        parts.append(
            Markup('<rect class="empty" x="{}" y="{}" width="{}" height="{}"/>').format(
                _LEFT, top, WIDTH - _LEFT - _RIGHT, _ROW - 2
            )
        )
        parts.append(_row(edges, values[number], limit, x, top))
        parts.append(
            Markup('<text class="tick end" x="{}" y="{}">{}</text>').format(
                WIDTH, top + 13, signed(mean_of(series))
            )
        )
    said = ", ".join(
        f"{pair.replace('/', ' / ')} {signed(mean_of(series))}" for pair, series in cosines.items()
    )
    label = f"Cosines of task gradients over training steps, means: {said}."
    if conflict_share:
        parts.append(_share(conflict_share, x, bottom + _GAP))
        bottom += _GAP + _SHARE
        label += f" {mean_of(conflict_share):.0%} of the pairs in conflict."
    parts.append(steps_axis(x, bottom))
    return picture(parts, height=bottom + _BOTTOM, label=label)


def signed(value: float) -> str:
    """A cosine with its sign.

    Example:
        >>> signed(-0.126), signed(0.5), signed(-0.001)
        ('−0.13', '+0.50', '0.00')
    """
    text = f"{value:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", "−")


def _row(edges: np.ndarray, values: np.ndarray, limit: float, x: Axis, top: float) -> Markup:
    cells = []
    for left, right, value in zip(edges[:-1], edges[1:], values, strict=True):
        if np.isnan(value):
            continue
        start, end = x.place(float(left)), x.place(float(right))
        kind = "against" if value < 0 else "along"
        opacity = max(abs(float(value)) / limit, 0.04)
        cells.append(
            f'<rect class="{kind}" x="{start:.1f}" y="{top}" width="{end - start:.1f}" height="{_ROW - 2}" '
            f'opacity="{opacity:.2f}"/>'
        )
    return Markup("".join(cells))


def _share(series: Series, x: Axis, top: float) -> Markup:
    y = Axis(low=0.0, high=1.0, start=top + _SHARE, end=top)
    steps, values = np.array(series).T
    smoothed = list(zip(steps.tolist(), smooth(values).tolist(), strict=True))
    d = path_of(thinned(smoothed), x, y)
    first, last = x.place(smoothed[0][0]), x.place(smoothed[-1][0])
    parts = [
        Markup('<text class="tick end" x="{}" y="{}">in conflict</text>').format(
            _LEFT - 6, top + _SHARE / 2 + 4
        ),
        Markup('<text class="tick end" x="{}" y="{:g}">{}</text>').format(
            WIDTH, top + _SHARE / 2 + 4, f"{mean_of(series):.0%}"
        ),
        Markup('<rect class="empty" x="{}" y="{}" width="{}" height="{}"/>').format(
            _LEFT, top, WIDTH - _LEFT - _RIGHT, _SHARE
        ),
    ]
    if len(smoothed) > 1:
        start, end, low = round(first, 1), round(last, 1), round(y.start, 1)
        parts.append(Markup('<path class="share" d="{}L{} {}L{} {}Z"/>').format(d, end, low, start, low))
    return Markup("").join(parts)
