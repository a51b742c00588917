"""The two grids on the ground: cells of the bird's-eye-view features, and pixels of the map.

Both lie in the LiDAR frame of the sample (metres, x right / y forward / z up, origin at the sensor).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class BEVGrid:
    """Cells of the bird's-eye-view features. Row r grows with y (row 0 at y_min), column c with x.

    Flat index of a cell: `r * bev_w + c`. *Source*: BEVFormer's layout (`bev_h` rows, `bev_w` columns).

    Args:
        pc_range: (x_min, y_min, z_min, x_max, y_max, z_max), LiDAR frame, metres.
        bev_h: number of rows.
        bev_w: number of columns.

    Raises:
        ValueError: the range is empty or a size is not positive.

    Example:
        >>> grid = BEVGrid((-51.2, -51.2, -5.0, 51.2, 51.2, 3.0), 40, 40)
        >>> [round(float(size), 2) for size in grid.cell_size]
        [2.56, 2.56]
    """

    pc_range: tuple[float, float, float, float, float, float]
    bev_h: int
    bev_w: int

    def __post_init__(self) -> None:
        if len(self.pc_range) != 6 or any(
            self.pc_range[axis] >= self.pc_range[axis + 3] for axis in range(3)
        ):
            raise ValueError(
                f"pc_range must be (x_min, y_min, z_min, x_max, y_max, z_max) with min < max, got {self.pc_range}."
            )
        if self.bev_h < 1 or self.bev_w < 1:
            raise ValueError(f"bev_h and bev_w must be at least 1, got {self.bev_h} and {self.bev_w}.")

    @classmethod
    def from_range(cls, pc_range: Sequence[float], bev_h: int, bev_w: int) -> "BEVGrid":
        """The grid of a config's values, where the range may be a list of any numbers.

        Raises:
            ValueError: as the constructor.

        Example:
            >>> BEVGrid.from_range([-8, -4, -5, 8, 4, 3], 4, 8).pc_range
            (-8.0, -4.0, -5.0, 8.0, 4.0, 3.0)
        """
        if len(pc_range) != 6:
            raise ValueError(
                "pc_range must be (x_min, y_min, z_min, x_max, y_max, z_max), six numbers in metres, got "
                f"{list(pc_range)}."
            )
        x_min, y_min, z_min, x_max, y_max, z_max = (float(limit) for limit in pc_range)
        return cls((x_min, y_min, z_min, x_max, y_max, z_max), bev_h, bev_w)

    @property
    def extent(self) -> tuple[float, float, float]:
        """Lengths along x, y and z, metres."""
        low, high = self.pc_range[:3], self.pc_range[3:]
        return (high[0] - low[0], high[1] - low[1], high[2] - low[2])

    @property
    def cell_size(self) -> tuple[float, float]:
        """Size of a cell along x and y, metres."""
        return (self.extent[0] / self.bev_w, self.extent[1] / self.bev_h)

    def centres(self) -> np.ndarray:
        """Centres of the cells: (bev_h, bev_w, 2), float64, (x, y) in metres."""
        x = self.pc_range[0] + (np.arange(self.bev_w) + 0.5) * self.cell_size[0]
        y = self.pc_range[1] + (np.arange(self.bev_h) + 0.5) * self.cell_size[1]
        return np.stack(np.broadcast_arrays(x[None, :], y[:, None]), axis=-1)


@dataclass(frozen=True)
class MapGrid:
    """Pixels of a map target. Rows run along −x (row 0 at x_max), columns along +y (column 0 at y_min).

    The default is upstream's: ±30 m along y and ±15 m along x at 0.15 m, i.e. 200 × 400.

    Args:
        x_range: (x_min, x_max), LiDAR frame, metres.
        y_range: (y_min, y_max), LiDAR frame, metres.
        resolution: side of a pixel, metres.

    Raises:
        ValueError: a range is empty, or not a whole number of pixels.

    Example:
        >>> MapGrid().shape
        (200, 400)
        >>> MapGrid().lidar2pixels(np.array([0.0, 0.0])).round(6).tolist()
        [199.5, 99.5]
    """

    x_range: tuple[float, float] = (-15.0, 15.0)
    y_range: tuple[float, float] = (-30.0, 30.0)
    resolution: float = 0.15

    def __post_init__(self) -> None:
        if self.resolution <= 0:
            raise ValueError(f"resolution must be positive, got {self.resolution} m.")
        for name, (low, high) in (("x_range", self.x_range), ("y_range", self.y_range)):
            count = (high - low) / self.resolution
            if low >= high or not math.isclose(count, round(count), abs_tol=1e-6):
                raise ValueError(
                    f"{name} must be (min, max) with a whole number of {self.resolution} m pixels between them, got "
                    f"{(low, high)}, i.e. {count:.3f} pixels."
                )

    @classmethod
    def full(cls) -> "MapGrid":
        """The whole detection range, ±51.2 m both ways at 0.32 m: 320 × 320."""
        return cls(x_range=(-51.2, 51.2), y_range=(-51.2, 51.2), resolution=0.32)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        rows = round((self.x_range[1] - self.x_range[0]) / self.resolution)
        columns = round((self.y_range[1] - self.y_range[0]) / self.resolution)
        return rows, columns

    def centres(self) -> np.ndarray:
        """Centres of the pixels: (rows, columns, 2), float64, (x, y) in metres."""
        rows, columns = self.shape
        x = self.x_range[1] - (np.arange(rows) + 0.5) * self.resolution
        y = self.y_range[0] + (np.arange(columns) + 0.5) * self.resolution
        return np.stack(np.broadcast_arrays(x[:, None], y[None, :]), axis=-1)

    def lidar2pixels(self, xy: np.ndarray) -> np.ndarray:
        """Points (..., 2), LiDAR metres → (..., 2), (column, row) in pixels, pixel centres at whole numbers."""
        column = (xy[..., 1] - self.y_range[0]) / self.resolution - 0.5
        row = (self.x_range[1] - xy[..., 0]) / self.resolution - 0.5
        return np.stack([column, row], axis=-1)
