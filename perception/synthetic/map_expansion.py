"""A map's expansion JSON (version 1.3) and its semantic-prior mask, from the roads that lie on it."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from shapely.geometry import MultiPolygon, Polygon

from perception.synthetic.road import Road
from perception.synthetic.scene import SLOT, SceneSpec
from perception.synthetic.tables import make_token

PIXELS_PER_METRE = 10  # of the semantic prior
Row = dict[str, Any]
_LISTS: tuple[str, ...] = (
    "polygon",
    "line",
    "node",
    "drivable_area",
    "road_segment",
    "road_block",
    "lane",
    "ped_crossing",
    "walkway",
    "stop_line",
    "carpark_area",
    "road_divider",
    "lane_divider",
    "traffic_light",
    "lane_connector",
)


def canvas_edge(roads: list[tuple[SceneSpec, Road]]) -> tuple[float, float]:
    """Return (width, height) in metres of a map that holds these scenes."""
    return max(spec.origin[0] for spec, _ in roads) + SLOT, SLOT


class _Expansion:
    """Collects one map's records; tokens count up, so they are the same in every run."""

    def __init__(self, *, location: str) -> None:
        self.location = location
        self.content: dict[str, Any] = {name: [] for name in _LISTS}
        self._shift = (0.0, 0.0)

    def _token(self, kind: str) -> str:
        return make_token("map", self.location, kind, len(self.content[kind]))

    def _nodes(self, xy: NDArray[np.float64]) -> list[str]:
        tokens = []
        for x, y in np.asarray(xy)[:, :2]:
            tokens.append(self._token("node"))
            self.content["node"].append(
                {
                    "token": tokens[-1],
                    "x": round(float(x) + self._shift[0], 4),
                    "y": round(float(y) + self._shift[1], 4),
                }
            )
        return tokens

    def _polygon(self, shape: Polygon) -> str:
        # rings are stored open, as in the official files
        row = {
            "token": self._token("polygon"),
            "exterior_node_tokens": self._nodes(np.asarray(shape.exterior.coords)[:-1]),
            "holes": [{"node_tokens": self._nodes(np.asarray(r.coords)[:-1])} for r in shape.interiors],
        }
        self.content["polygon"].append(row)
        return str(row["token"])

    def _line(self, xy: NDArray[np.float64]) -> str:
        token = self._token("line")
        self.content["line"].append({"token": token, "node_tokens": self._nodes(xy)})
        return token

    def _add(self, layer: str, **fields: Any) -> str:
        token = self._token(layer)
        self.content[layer].append({"token": token, **fields})
        return token

    def add_road(self, spec: SceneSpec, road: Road) -> None:
        """Add one scene's road."""
        self._shift = spec.origin
        area = self._add("drivable_area", polygon_tokens=[self._polygon(road.surface)])
        segment = self._add(
            "road_segment",
            polygon_token=self._polygon(road.surface),
            is_intersection=False,
            drivable_area_token=area,
        )
        for shape in road.intersections:
            self._add(
                "road_segment",
                polygon_token=self._polygon(shape),
                is_intersection=True,
                drivable_area_token=area,
            )
        for shape in road.lane_polygons:
            self._add(
                "lane",
                polygon_token=self._polygon(shape),
                lane_type="CAR",
                from_edge_line_token="",
                to_edge_line_token="",
                left_lane_divider_segments=[],
                right_lane_divider_segments=[],
            )
        for corners in road.crossings:
            self._add(
                "ped_crossing", polygon_token=self._polygon(Polygon(corners)), road_segment_token=segment
            )
        for part in road.walkway.geoms if isinstance(road.walkway, MultiPolygon) else [road.walkway]:
            self._add("walkway", polygon_token=self._polygon(part))
        for corners in road.stop_bars:
            self._add(
                "stop_line",
                polygon_token=self._polygon(Polygon(corners)),
                stop_line_type="STOP_SIGN",
                ped_crossing_tokens=[],
                traffic_light_tokens=[],
                road_block_token="",
            )
        for line in road.road_dividers:
            self._add("road_divider", line_token=self._line(line), road_segment_token=segment)
        for line in road.lane_dividers:
            tokens = self._line(line)
            nodes = self.content["line"][-1]["node_tokens"]
            self._add(
                "lane_divider",
                line_token=tokens,
                lane_divider_segments=[
                    {"node_token": n, "segment_type": "SINGLE_DASHED_WHITE"} for n in nodes
                ],
            )


def build_expansion(location: str, roads: list[tuple[SceneSpec, Road]]) -> dict[str, Any]:
    """Build the expansion of one map.

    The carriageways of a scene (main road and side roads) are one road segment; junctions are further segments inside
    it, marked as intersections. The union of segments and lanes is therefore exactly the painted carriageway.
    """
    expansion = _Expansion(location=location)
    for spec, road in roads:
        expansion.add_road(spec, road)
    width, height = canvas_edge(roads)
    return {
        "version": "1.3",
        "canvas_edge": [width, height],
        **expansion.content,
        "arcline_path_3": {},
        "connectivity": {},
    }


def draw_mask(roads: list[tuple[SceneSpec, Road]]) -> NDArray[np.uint8]:
    """Draw the semantic prior: 255 on carriageway and pavement, row 0 at the largest y, 10 pixels per metre."""
    width, height = canvas_edge(roads)
    mask = np.zeros((int(height * PIXELS_PER_METRE), int(width * PIXELS_PER_METRE)), dtype=np.uint8)
    for spec, road in roads:
        shape = road.surface.union(road.walkway).buffer(0.01)
        for part in shape.geoms if isinstance(shape, MultiPolygon) else [shape]:
            rings = []
            for ring in (part.exterior, *part.interiors):
                xy = np.asarray(ring.coords)[:, :2] + spec.origin
                rings.append(
                    np.round(
                        np.stack(
                            [xy[:, 0] * PIXELS_PER_METRE, mask.shape[0] - xy[:, 1] * PIXELS_PER_METRE], -1
                        )
                    ).astype(np.int32)
                )
            cv2.fillPoly(mask, rings, 255)
    return mask
