"""Compiled kernels: what stands at each pixel, and how far each object reaches.

Legend: H x W pixels, as in `raster`.
"""

from __future__ import annotations

from perception.synthetic.raster import F32, F64, I32, I64, MAX_GROUND, U8
from perception.utils.jit import kernel


@kernel
def measure_objects(ids: I32, counts: I64, extents: I32) -> None:
    """Count each object's pixels and find the first and the last column and row that show it.

    ids: (H, W), positive where an object is seen. counts: (N + 1,) zeros, by id. extents: (N + 1, 4), by id, filled
    with (W, H, -1, -1); gets the smallest column and row and the largest column and row.
    """
    for j in range(ids.shape[0]):
        for i in range(ids.shape[1]):
            o = ids[j, i]
            if o > 0:
                counts[o] += 1
                extents[o, 0] = min(extents[o, 0], i)
                extents[o, 1] = min(extents[o, 1], j)
                extents[o, 2] = max(extents[o, 2], i)
                extents[o, 3] = max(extents[o, 3], j)


@kernel
def label_pixels(
    ids: I32,
    inverse: F32,
    class_of: U8,
    ground: U8,
    origin: F64,
    cell: float,
    camera2world: F64,
    position: F64,
    intrinsic: F64,
    surface: int,
    walkway: int,
    other: int,
    sky: int,
    labels: U8,
) -> None:
    """Write each pixel's class: an object's by its id, else what its ray meets on the ground, else sky.

    ids: (H, W). inverse: (H, W), 0 where no object is. class_of: (N + 1,) class of each id. ground: (rows, columns, 2)
    share of each cell that is carriageway, and that is paved, 0…255; `origin` and `cell` as in `raster.shade`, so that
    labels lie where the ground is painted. surface, walkway, other, sky: their classes. labels: (H, W), written.
    """
    last_row, last_col = ground.shape[0] - 1, ground.shape[1] - 1
    for j in range(labels.shape[0]):
        for i in range(labels.shape[1]):
            if inverse[j, i] > 0.0:
                labels[j, i] = class_of[ids[j, i]]
                continue
            a = (i + 0.5 - intrinsic[1]) / intrinsic[0]
            b = (j + 0.5 - intrinsic[2]) / intrinsic[0]
            dz = camera2world[2, 0] * a + camera2world[2, 1] * b + camera2world[2, 2]
            if dz >= -1e-6 or -position[2] / dz >= MAX_GROUND:
                labels[j, i] = sky
                continue
            depth = -position[2] / dz
            dx = camera2world[0, 0] * a + camera2world[0, 1] * b + camera2world[0, 2]
            dy = camera2world[1, 0] * a + camera2world[1, 1] * b + camera2world[1, 2]
            x = (position[0] + depth * dx - origin[0]) / cell - 0.5
            y = (position[1] + depth * dy - origin[1]) / cell - 0.5
            labels[j, i] = other
            if x >= 0.0 and y >= 0.0 and x < last_col and y < last_row:
                col, row = int(x), int(y)
                fx, fy = x - col, y - row
                for k in range(2):
                    cover = (1.0 - fy) * ((1.0 - fx) * ground[row, col, k] + fx * ground[row, col + 1, k])
                    cover += fy * ((1.0 - fx) * ground[row + 1, col, k] + fx * ground[row + 1, col + 1, k])
                    if cover >= 127.5:
                        labels[j, i] = surface if k == 0 else walkway
                        break
