"""Charts as inline SVG: no script, sharp at any size, coloured by the page's style sheet."""

from perception.visualization.charts.axis import Axis
from perception.visualization.charts.heat_strip import heat_strip
from perception.visualization.charts.line_chart import NUM_COLOURS, Line, line_chart

__all__ = ["NUM_COLOURS", "Axis", "Line", "heat_strip", "line_chart"]
