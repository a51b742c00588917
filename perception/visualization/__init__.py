"""Pictures and the report, without a display: NumPy, OpenCV, Matplotlib (Agg) and Jinja only."""

from perception.visualization.balance import plot_balance
from perception.visualization.bev import BEVView, draw_bev
from perception.visualization.boxes_on_image import draw_boxes_on_image
from perception.visualization.canvas import save_image
from perception.visualization.image_sheet import ImageLabels, draw_image_sample
from perception.visualization.map_on_image import draw_map_on_image
from perception.visualization.palette import class_colours
from perception.visualization.report import choose_samples, find_reference, write_report
from perception.visualization.run_groups import RunGroup, find_runs, read_groups
from perception.visualization.sheet import CAMERA_ROWS, contact_sheet, draw_sample

__all__ = [
    "CAMERA_ROWS",
    "BEVView",
    "ImageLabels",
    "RunGroup",
    "choose_samples",
    "class_colours",
    "contact_sheet",
    "draw_bev",
    "draw_boxes_on_image",
    "draw_image_sample",
    "draw_map_on_image",
    "draw_sample",
    "find_reference",
    "find_runs",
    "plot_balance",
    "read_groups",
    "save_image",
    "write_report",
]
