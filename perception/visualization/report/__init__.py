"""The report: one self-contained HTML page about one run or several, from their folders' JSON and pictures."""

from perception.visualization.report.page import ScoreGroups, find_reference, write_report
from perception.visualization.report.pictures import choose_samples

__all__ = ["ScoreGroups", "choose_samples", "find_reference", "write_report"]
