"""nuScenes' vector maps (map expansion v1.3) drawn as bird's-eye-view targets in the LiDAR frame.

The JSON is read directly: at run time there is no devkit object, whose own masks fail with shapely 2 on lines that
re-enter a patch and on polygons that only touch it.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import shapely
from shapely import STRtree

from perception.structures import MapGrid
from perception.utils import DataError

DIVIDER, PED_CROSSING, BOUNDARY = 1, 2, 3
LINE_WIDTH = 0.75
"""OpenCV thickness of a line, metres: upstream's 5 pixels at 0.15 m. OpenCV includes the border: 5 covers 7 pixels."""
CLEARANCE = 0.3
"""A line of a later class clears earlier classes this far beyond its own edge, metres: upstream's 2 pixels."""

LineLayer = Literal["divider", "ped_crossing", "boundary"]
PolygonLayer = Literal["drivable_area", "road_segment", "lane", "ped_crossing", "walkway"]

_SUBPIXEL_BITS = 4
_PIECE_LENGTH = 16  # vertices; long lines are indexed in pieces
_MARGIN = LINE_WIDTH / 2 + CLEARANCE + 0.3


def map_path(root: str | Path, location: str) -> Path:
    """File of a location's map expansion."""
    return Path(root) / "maps" / "expansion" / f"{location}.json"


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
        if not self._path.is_file():
            raise DataError(
                f"the vector map of {location!r} is missing; download 'nuScenes map expansion v1.3' from nuscenes.org "
                "and unpack it into maps/, or train without the seg task (LoadBEVMap(on_missing='skip')).",
                path=self._path,
            )
        try:
            self._content: dict[str, list[dict[str, Any]]] = json.loads(self._path.read_bytes())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DataError(
                f"the vector map is not readable JSON ({error}); unpack it again.", path=self._path
            ) from error
        self._nodes = {node["token"]: (node["x"], node["y"]) for node in self._layer("node")}
        self._line_nodes = {line["token"]: line["node_tokens"] for line in self._layer("line")}
        self._polygon_records = {polygon["token"]: polygon for polygon in self._layer("polygon")}
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
            (rows, columns) uint8, values as in `MAP_CLASSES`.
        """
        target = np.zeros(grid.shape, dtype=np.uint8)
        to_lidar = _global2lidar_plane(lidar2global, ground_z)
        if filled:
            self._fill(target, grid, to_lidar, "drivable_area", BOUNDARY)
            self._fill(target, grid, to_lidar, "ped_crossing", PED_CROSSING)
            self._draw(target, grid, to_lidar, "divider", DIVIDER)
            return target
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
        mask = np.zeros(grid.shape, dtype=np.uint8)
        self._fill(mask, grid, _global2lidar_plane(lidar2global, ground_z), layer, 1)
        return mask.astype(bool)

    # ------------------------------------------------------------------------------------------------ drawing

    def _draw(
        self, target: np.ndarray, grid: MapGrid, to_lidar: np.ndarray, layer: LineLayer, value: int
    ) -> None:
        pieces, tree = self._line_layer(layer)
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
        polygons, tree = self._polygon_layer(layer)
        near = tree.query(_patch(grid, to_lidar, 0.0), predicate="intersects")
        window = shapely.box(*_bounds(grid, 2 * grid.resolution))
        for polygon in polygons[np.sort(near)]:
            local = shapely.transform(polygon, lambda points: _apply(to_lidar, points))
            for part in _polygon_parts(local.intersection(window)):
                rings = [part.exterior, *part.interiors]
                outlines = [_to_pixels(grid, np.asarray(ring.coords)) for ring in rings]
                cv2.fillPoly(target, outlines, value, shift=_SUBPIXEL_BITS)  # even-odd: holes stay free

    # ------------------------------------------------------------------------------------------------ geometry

    def _line_layer(self, layer: LineLayer) -> tuple[list[np.ndarray], STRtree]:
        if layer not in self._lines:
            if layer == "divider":
                lines = self._divider_lines()
            elif layer == "ped_crossing":
                lines = self._crossing_lines()
            else:
                lines = self._boundary_lines()
            pieces = [
                line[start : start + _PIECE_LENGTH]
                for line in lines
                for start in range(0, len(line) - 1, _PIECE_LENGTH - 1)
            ]
            self._lines[layer] = (pieces, STRtree([shapely.linestrings(piece) for piece in pieces]))
        return self._lines[layer]

    def _divider_lines(self) -> list[np.ndarray]:
        records = [*self._layer("road_divider"), *self._layer("lane_divider")]
        lines = [
            self._points(self._get(self._line_nodes, record["line_token"], "line")) for record in records
        ]
        return [line for line in lines if len(line) >= 2]

    def _crossing_lines(self) -> list[np.ndarray]:
        lines = []
        for polygon in self._polygon_layer("ped_crossing")[0]:
            outline = np.asarray(polygon.exterior.coords)
            lengths = np.linalg.norm(np.diff(outline, axis=0), axis=1)
            lines += [outline[edge : edge + 2] for edge in np.argsort(lengths, kind="stable")[-2:]]
        return lines

    def _boundary_lines(self) -> list[np.ndarray]:
        areas = np.concatenate([self._polygon_layer("road_segment")[0], self._polygon_layer("lane")[0]])
        union = shapely.union_all(areas)
        rings = [ring for part in _polygon_parts(union) for ring in (part.exterior, *part.interiors)]
        return [np.asarray(ring.coords) for ring in rings]

    def _polygon_layer(self, layer: PolygonLayer) -> tuple[np.ndarray, STRtree]:
        if layer not in self._polygons:
            polygons = []
            for record in self._layer(layer):
                tokens = record["polygon_tokens"] if "polygon_tokens" in record else [record["polygon_token"]]
                for token in tokens:
                    polygons += self._polygon(self._get(self._polygon_records, token, "polygon"))
            array = np.empty(len(polygons), dtype=object)
            array[:] = polygons
            self._polygons[layer] = (array, STRtree(array))
        return self._polygons[layer]

    def _polygon(self, record: dict[str, Any]) -> list[shapely.Polygon]:
        """Valid polygons of a record; self-intersecting ones are repaired, as real maps have a few."""
        exterior = self._points(record["exterior_node_tokens"])
        holes = [self._points(hole["node_tokens"]) for hole in record["holes"]]
        if len(exterior) < 3:
            return []
        polygon = shapely.Polygon(exterior, [hole for hole in holes if len(hole) >= 3])
        return _polygon_parts(polygon if polygon.is_valid else shapely.make_valid(polygon))

    def _points(self, node_tokens: Sequence[str]) -> np.ndarray:
        return np.array([self._get(self._nodes, token, "node") for token in node_tokens]).reshape(-1, 2)

    def _layer(self, layer: str) -> list[dict[str, Any]]:
        if layer not in self._content:
            raise DataError(
                f"the vector map has no layer {layer!r}; it must be of map expansion v1.3.", path=self._path
            )
        return self._content[layer]

    def _get(self, records: dict[str, Any], token: str, table: str) -> Any:
        if token not in records:
            raise DataError(
                f"the vector map refers to {table} {token!r}, which it does not have; unpack it again.",
                path=self._path,
            )
        return records[token]


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


def _polygon_parts(geometry: shapely.Geometry) -> list[shapely.Polygon]:
    """Polygons of any geometry; points and edges, which have no area, are dropped."""
    if isinstance(geometry, shapely.Polygon):
        return [] if geometry.is_empty else [geometry]
    return [part for child in getattr(geometry, "geoms", ()) for part in _polygon_parts(child)]
