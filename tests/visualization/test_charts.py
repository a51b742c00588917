"""Charts: places follow values, what is drawn is said, nothing breaks out of the markup."""

import re
from xml.etree import ElementTree

import pytest

from perception.visualization.charts import Axis, Line, heat_strip, line_chart
from perception.visualization.charts.axis import padded, tick_text


def numbers(path):
    return [tuple(map(float, pair.split())) for pair in re.findall(r"[ML]([\d.]+ [\d.]+)", path)]


def parse(svg):
    return ElementTree.fromstring(str(svg))


@pytest.mark.parametrize(
    ("low", "high", "is_log", "expected"),
    [
        (0.0, 1.0, False, [0.0, 0.5, 1.0]),
        (0.0, 320.0, False, [0.0, 100.0, 200.0, 300.0]),
        (-0.3, 0.4, False, [-0.2, 0.0, 0.2, 0.4]),
        (0.01, 100.0, True, [0.01, 0.1, 1.0, 10.0, 100.0]),
        (2.0, 9.0, True, [2.0, 5.0]),
    ],
)
def test_ticks_are_round_and_lie_within(low, high, is_log, expected):
    axis = Axis(low=low, high=high, start=0.0, end=100.0, is_log=is_log)
    assert axis.ticks() == pytest.approx(expected)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e9])
def test_an_axis_has_a_few_ticks_at_any_scale(scale):
    for low, high in ((0.0, 1.0), (0.3, 0.31), (-7.0, 5.0)):
        axis = Axis(low=low * scale, high=high * scale, start=0.0, end=1.0)
        assert 2 <= len(axis.ticks()) <= 6
        assert all(len(tick_text(tick)) <= 9 for tick in axis.ticks())


def test_an_axis_is_never_of_length_zero():
    for value in (0.0, 5.0, -5.0, 1e-30):
        low, high = padded(value, value)
        assert low < value < high
        low, high = padded(value, value, from_zero=True)
        assert low <= min(value, 0.0)
        assert high > max(value, 0.0)
        assert low < high


def test_a_curve_lies_where_its_values_are():
    points = [(0.0, 0.0), (50.0, 1.0), (100.0, 0.5)]
    svg = parse(line_chart([Line(label="a", colour=3, points=points)], name="x", limits=(0.0, 1.0)))
    path = next(node for node in svg.iter("path"))
    (x0, y0), (x1, y1), (x2, y2) = numbers(path.get("d"))
    assert (x0 + x2) / 2 == pytest.approx(x1, abs=0.11)
    assert y1 < y2 < y0  # up is small
    assert (y0 + y1) / 2 == pytest.approx(y2, abs=0.11)
    assert path.get("class") == "line c3"
    assert path.find("title").text == "a"


def test_gaps_single_points_bands_and_many_runs():
    nan = float("nan")
    lines = [
        Line(label="gap", colour=0, points=[(1.0, 1.0), (2.0, nan), (3.0, 1.0), (4.0, 2.0)]),
        Line(label="one", colour=12, points=[(2.0, 1.5)], band=[(1.0, 1.0, 2.0), (3.0, 1.0, 2.0)]),
    ]
    svg = parse(line_chart(lines, name="x", limits=(0.0, 3.0)))
    gap = next(node for node in svg.iter("path") if node.get("class") == "line c0")
    assert gap.get("d").count("M") == 2
    assert next(svg.iter("circle")).get("class") == "point c2 dashed"
    band = next(node for node in svg.iter("path") if node.get("class").startswith("band"))
    assert len(numbers(band.get("d"))) == 4


def test_the_cosines_have_their_signs_places_and_strengths():
    cosines = {"a/b": [(1.0, -0.4), (2.0, 0.2)], "a/c": [(2.0, 0.1)]}
    svg = parse(heat_strip(cosines, [(1.0, 1.0), (2.0, 0.0)]))
    cells = [node for node in svg.iter("rect") if node.get("class") in ("against", "along")]
    assert [node.get("class") for node in cells] == ["against", "along", "along"]
    assert [float(node.get("opacity")) for node in cells] == [1.0, 0.5, 0.25]
    assert float(cells[0].get("x")) < float(cells[1].get("x")) == float(cells[2].get("x"))
    assert cells[0].get("y") == cells[1].get("y") != cells[2].get("y")
    assert "50% of the pairs in conflict" in svg.get("aria-label")
    assert len(list(parse(heat_strip(cosines, [])).iter("path"))) == 0


def test_names_cannot_break_out():
    evil = "<script>\"&'</script>"
    for svg in (
        line_chart([Line(label=evil, colour=0, points=[(1.0, 1.0)])], name=evil),
        heat_strip({evil: [(1.0, 0.5)]}, []),
    ):
        assert "<script" not in svg
        parse(svg)  # well-formed
