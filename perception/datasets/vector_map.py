"""nuScenes' vector maps (map expansion v1.3) drawn as bird's-eye-view targets in the LiDAR frame.

The JSON is read directly: at run time there is no devkit object, whose own masks fail with shapely 2 on lines that
re-enter a patch and on polygons that only touch it.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import shapely
from shapely import STRtree

from perception.datasets._map_file import MapFile, PolygonLayer, map_path, polygon_parts
from perception.structures import MapGrid

DIVIDER, PED_CROSSING, BOUNDARY = 1, 2, 3
LINE_WIDTH = 0.75
"""OpenCV thickness of a line, metres: upstream's 5 pixels at 0.15 m. OpenCV includes the border: 5 covers 7 pixels."""
CLEARANCE = 0.3
"""A line of a later class clears earlier classes this far beyond its own edge, metres: upstream's 2 pixels."""

LineLayer = Literal["divider", "ped_crossing", "boundary"]

_SUBPIXEL_BITS = 4
_PIECE_LENGTH = 16  # vertices; long lines are indexed in pieces
_MARGIN = LINE_WIDTH / 2 + CLEARANCE + 0.3


@functools.lru_cache(maxsize=8)
def load_vector_map(root: str, location: str) -> "NuScenesVectorMap":
    """The map of a location, read once per process."""
    return NuScenesVectorMap(root, location)


class NuScenesVectorMap:
    """The vector map of one location.

    *Source*: BEVFormer_segmentation_detection's targets (after HDMapNet). Deviations: centred on the LiDAR, not on the
    ego pose 0.94 m behind it; vertices are rounded to 1/16 pixel instead of cut to whole ones; boundaries come from the
    union over the whole map, so no patch edge can become one and no shrinking of the patch is needed; a line just
    outside the grid still shows the half of its width that reaches in.

    Args:
        root: folder that holds `maps/expansion`.
        location: e.g. boston-seaport.

    Raises:
        DataError: the file is missing, not JSON, or a token in it has no record.
    """

    def __init__(self, root: str | Path, location: str) -> None:
        self._path = map_path(root, location)
        self._file: MapFile | None = MapFile(self._path, location)  # dropped as soon as the layers are built
        self._lines: dict[str, tuple[list[np.ndarray], STRtree]] = {}
        self._polygons: dict[str, tuple[np.ndarray, STRtree]] = {}

    def rasterise(
        self, grid: MapGrid, lidar2global: np.ndarray, *, filled: bool = False, ground_z: float = 0.0
    ) -> np.ndarray:
        """Draw the target of one sample.

        Lines have a thickness of 0.75 m (at least 1 pixel): 1 divider = road and lane dividers; 2 crossing = its two
        longest edges; 3 boundary = outlines of the union of road segments and lanes. A later class wins, and clears
        earlier ones for 0.3 m around it. With `filled`, 3 is the drivable area and 2 the crossings' areas, and dividers
        lie on top.

        Args:
            grid: the pixels.
            lidar2global: (4, 4) LiDAR pose; with augmentation, `lidar2global @ inv(bev_aug)`.
            filled: areas instead of outlines.
            ground_z: height of the ground in the global frame, metres.

        Returns:
            (rows, columns) uint8, values as in `MAP_CLASSES`, or `FILLED_MAP_CLASSES`.
        """
        target = np.zeros(grid.shape, dtype=np.uint8)
        to_lidar = _global2lidar_plane(lidar2global, ground_z)
        if filled:
            self._build(lines=("divider",), polygons=("drivable_area", "ped_crossing"))
            self._fill(target, grid, to_lidar, "drivable_area", BOUNDARY)
            self._fill(target, grid, to_lidar, "ped_crossing", PED_CROSSING)
            self._draw(target, grid, to_lidar, "divider", DIVIDER)
            return target
        self._build(lines=("divider", "ped_crossing", "boundary"))
        self._draw(target, grid, to_lidar, "divider", DIVIDER)
        self._draw(target, grid, to_lidar, "ped_crossing", PED_CROSSING)
        self._draw(target, grid, to_lidar, "boundary", BOUNDARY)
        return target

    def layer_mask(
        self, layer: PolygonLayer, grid: MapGrid, lidar2global: np.ndarray, *, ground_z: float = 0.0
    ) -> np.ndarray:
        """The area of a polygon layer, pixels on its border included.

        Args:
            layer: name of the layer.
            grid: the pixels.
            lidar2global: (4, 4) LiDAR pose.
            ground_z: height of the ground in the global frame, metres.

        Returns:
            (rows, columns) bool.
        """
        self._build(polygons=(layer,))
        mask = np.zeros(grid.shape, dtype=np.uint8)
        self._fill(mask, grid, _global2lidar_plane(lidar2global, ground_z), layer, 1)
        return mask.astype(bool)

    # ------------------------------------------------------------------------------------------------ drawing

    def _draw(
        self, target: np.ndarray, grid: MapGrid, to_lidar: np.ndarray, layer: LineLayer, value: int
    ) -> None:
        pieces, tree = self._lines[layer]
        near = tree.query(_patch(grid, to_lidar, _MARGIN), predicate="intersects")
        lines = [_to_pixels(grid, _apply(to_lidar, pieces[idx])) for idx in np.sort(near)]
        if not lines:
            return
        if value > DIVIDER:  # the first class has nothing to clear
            width = max(1, round((LINE_WIDTH + 2 * CLEARANCE) / grid.resolution))
            cv2.polylines(target, lines, False, 0, thickness=width, shift=_SUBPIXEL_BITS)
        width = max(1, round(LINE_WIDTH / grid.resolution))
        cv2.polylines(target, lines, False, value, thickness=width, shift=_SUBPIXEL_BITS)

    def _fill(
        self, target: np.ndarray, grid: MapGrid, to_lidar: np.ndarray, layer: PolygonLayer, value: int
    ) -> None:
        polygons, tree = self._polygons[layer]
        near = tree.query(_patch(grid, to_lidar, 0.0), predicate="intersects")
        window = shapely.box(*_bounds(grid, 2 * grid.resolution))
        for polygon in polygons[np.sort(near)]:
            local = shapely.transform(polygon, lambda points: _apply(to_lidar, points))
            for part in polygon_parts(local.intersection(window)):
                rings = [part.exterior, *part.interiors]
                outlines = [_to_pixels(grid, np.asarray(ring.coords)) for ring in rings]
                cv2.fillPoly(target, outlines, value, shift=_SUBPIXEL_BITS)  # even-odd: holes stay free

    # ------------------------------------------------------------------------------------------------ geometry

    def _build(self, lines: Sequence[LineLayer] = (), polygons: Sequence[PolygonLayer] = ()) -> None:
        """Build the layers that are not there yet; the file is read again if it has been dropped before."""
        missing_lines = [layer for layer in lines if layer not in self._lines]
        missing_polygons = [layer for layer in polygons if layer not in self._polygons]
        if not missing_lines and not missing_polygons:
            return
        file = self._file or MapFile(self._path, self._path.stem)
        for line_layer in missing_lines:
            self._lines[line_layer] = self._line_layer(file, line_layer)
        for polygon_layer in missing_polygons:
            array = np.array(file.polygons(polygon_layer), dtype=object)
            self._polygons[polygon_layer] = (array, STRtree(array))
        self._file = None  # the full set's maps are tens of MB of JSON, hundreds as objects, in every worker

    def _line_layer(self, file: MapFile, layer: LineLayer) -> tuple[list[np.ndarray], STRtree]:
        if layer == "divider":
            lines = file.divider_lines()
        elif layer == "ped_crossing":
            lines = self._crossing_lines(file)
        else:
            lines = self._boundary_lines(file)
        pieces = [
            line[start : start + _PIECE_LENGTH]
            for line in lines
            for start in range(0, len(line) - 1, _PIECE_LENGTH - 1)
        ]
        return pieces, STRtree([shapely.linestrings(piece) for piece in pieces])

    def _crossing_lines(self, file: MapFile) -> list[np.ndarray]:
        lines = []
        for polygon in file.polygons("ped_crossing"):
            outline = np.asarray(polygon.exterior.coords)
            lengths = np.linalg.norm(np.diff(outline, axis=0), axis=1)
            lines += [outline[edge : edge + 2] for edge in np.argsort(lengths, kind="stable")[-2:]]
        return lines

    def _boundary_lines(self, file: MapFile) -> list[np.ndarray]:
        union = shapely.union_all(file.polygons("road_segment") + file.polygons("lane"))
        rings = [ring for part in polygon_parts(union) for ring in (part.exterior, *part.interiors)]
        return [np.asarray(ring.coords) for ring in rings]


def _global2lidar_plane(lidar2global: np.ndarray, ground_z: float) -> np.ndarray:
    """(2, 3): ground point (x, y, 1) in the global frame → its (x, y) in the LiDAR frame, tilt included."""
    inverse = np.linalg.inv(lidar2global)
    return np.column_stack([inverse[:2, :2], inverse[:2, 2] * ground_z + inverse[:2, 3]])


def _apply(plane: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ plane[:, :2].T + plane[:, 2]


def _bounds(grid: MapGrid, margin: float) -> tuple[float, float, float, float]:
    return (
        grid.x_range[0] - margin,
        grid.y_range[0] - margin,
        grid.x_range[1] + margin,
        grid.y_range[1] + margin,
    )


def _patch(grid: MapGrid, to_lidar: np.ndarray, margin: float) -> shapely.Polygon:
    """The grid's outline in the global frame."""
    outline = np.asarray(shapely.box(*_bounds(grid, margin)).exterior.coords)
    return shapely.Polygon(np.linalg.solve(to_lidar[:, :2], (outline - to_lidar[:, 2]).T).T)


def _to_pixels(grid: MapGrid, points: np.ndarray) -> np.ndarray:
    """OpenCV's fixed-point coordinates, (n, 2) int32 (column, row)."""
    return np.round(grid.lidar2pixels(points) * (1 << _SUBPIXEL_BITS)).astype(np.int32)
