"""Compiling the kernels ahead of use."""

from __future__ import annotations

import numpy as np

from perception.synthetic import lidar, raster, raster_labels


def warm_up() -> None:
    """Run every kernel once on the smallest input, so that its machine code is compiled and cached."""
    planes = raster.new_buffers(1, 1)
    inverse, colour, ids, stamp = planes
    totals = np.zeros(2, dtype=np.int64)
    eye, zero3 = np.eye(3), np.zeros(3)
    light = np.ones(3, dtype=np.float32)
    none = np.zeros(0, dtype=np.int64)
    one = np.zeros(1, dtype=np.int64)
    raster.draw_objects(
        np.zeros((0, 3)),
        one,
        np.zeros((0, 3), dtype=np.int32),
        one,
        np.zeros((0, 3), dtype=np.float32),
        np.zeros(0, dtype=np.float32),
        none,
        np.zeros((0, 4)),
        np.zeros(0),
        np.zeros(0, dtype=np.int32),
        none,
        eye,
        zero3,
        np.ones(3),
        light,
        light,
        light,
        inverse,
        colour,
        ids,
        stamp,
        totals,
    )
    raster.count_ids(ids, totals)
    raster.shade(
        np.zeros(12, dtype=np.uint8),
        one,
        np.full((1, 2), 2, dtype=np.int64),
        np.zeros(2),
        0.1,
        light,
        eye,
        zero3,
        np.ones(3),
        light,
        light,
        light,
        light,
        light,
        100.0,
        1.0,
        1.0,
        0,
        inverse,
        colour,
        ids,
        np.zeros((1, 1, 3), dtype=np.uint8),
    )
    raster_labels.measure_objects(ids, totals, np.zeros((2, 4), dtype=np.int32))
    byte = np.zeros((1, 1), dtype=np.uint8)
    cover = np.zeros((1, 1, 2), dtype=np.uint8)
    raster_labels.label_pixels(
        ids, inverse, byte[0], cover, np.zeros(2), 0.1, eye, zero3, np.ones(3), 0, 0, 0, 0, byte.copy()
    )
    lidar.cast(zero3, np.zeros((1, 3)), np.zeros((0, 7)), 1.0, np.zeros(1), np.zeros(1, dtype=np.int64))
