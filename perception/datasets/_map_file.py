"""The JSON of one location's map expansion: its lines and polygons, with tokens resolved."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import shapely

from perception.utils import DataError

PolygonLayer = Literal["drivable_area", "road_segment", "lane", "ped_crossing", "walkway"]


def map_path(root: str | Path, location: str) -> Path:
    """File of a location's map expansion."""
    return Path(root) / "maps" / "expansion" / f"{location}.json"


class MapFile:
    """A parsed map expansion; large, so keep it no longer than needed.

    Args:
        path: the file.
        location: e.g. boston-seaport.

    Raises:
        DataError: the file is missing or not JSON.
    """

    def __init__(self, path: Path, location: str) -> None:
        self._path = path
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

    def divider_lines(self) -> list[np.ndarray]:
        """Dividers of roads and lanes, each (n, 2), global frame, metres.

        Raises:
            DataError: a layer or a token is missing.
        """
        records = [*self._layer("road_divider"), *self._layer("lane_divider")]
        lines = [
            self._points(self._get(self._line_nodes, record["line_token"], "line")) for record in records
        ]
        return [line for line in lines if len(line) >= 2]

    def polygons(self, layer: PolygonLayer) -> list[shapely.Polygon]:
        """Valid polygons of a layer, global frame, metres.

        Raises:
            DataError: the layer or a token is missing.
        """
        polygons = []
        for record in self._layer(layer):
            tokens = record["polygon_tokens"] if "polygon_tokens" in record else [record["polygon_token"]]
            for token in tokens:
                polygons += self._polygon(self._get(self._polygon_records, token, "polygon"))
        return polygons

    def _polygon(self, record: dict[str, Any]) -> list[shapely.Polygon]:
        """Valid polygons of a record; self-intersecting ones are repaired, as real maps have a few."""
        exterior = self._points(record["exterior_node_tokens"])
        holes = [self._points(hole["node_tokens"]) for hole in record["holes"]]
        if len(exterior) < 3:
            return []
        polygon = shapely.Polygon(exterior, [hole for hole in holes if len(hole) >= 3])
        return polygon_parts(polygon if polygon.is_valid else shapely.make_valid(polygon))

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


def polygon_parts(geometry: shapely.Geometry) -> list[shapely.Polygon]:
    """Polygons of any geometry; points and edges, which have no area, are dropped."""
    if isinstance(geometry, shapely.Polygon):
        return [] if geometry.is_empty else [geometry]
    return [part for child in getattr(geometry, "geoms", ()) for part in polygon_parts(child)]
