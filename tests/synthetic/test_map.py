"""The map: loadable, consistent with itself, with the ego vehicle's path and with what the images show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import shapely
from nuscenes.map_expansion.map_api import NuScenesMap
from nuscenes.nuscenes import NuScenes
from shapely.geometry import Point

from perception.synthetic.render import render
from perception.synthetic.rig import CAMERAS, ego2global
from perception.synthetic.scene import Scene


def _maps(nusc: NuScenes, world: Path) -> list[tuple[dict, NuScenesMap]]:
    return [(s, NuScenesMap(str(world), nusc.get("log", s["log_token"])["location"])) for s in nusc.scene]


def test_devkit_loads_the_maps_with_all_layers(nusc: NuScenes, world: Path) -> None:
    for _, nusc_map in _maps(nusc, world):
        for layer in (
            "drivable_area",
            "road_segment",
            "lane",
            "ped_crossing",
            "road_divider",
            "walkway",
            "stop_line",
        ):
            assert getattr(nusc_map, layer), layer
        assert (
            nusc_map.lane_divider or nusc_map.map_name == "boston-seaport"
        )  # one lane each way: no lane dividers


def test_ego_vehicle_keeps_to_the_right_lane_of_the_road(nusc: NuScenes, world: Path) -> None:
    for scene, nusc_map in _maps(nusc, world):
        area = shapely.unary_union(
            [nusc_map.extract_polygon(t) for r in nusc_map.drivable_area for t in r["polygon_tokens"]]
        )
        lines = [nusc_map.extract_line(r["line_token"]) for r in nusc_map.road_divider]
        for sample in (s for s in nusc.sample if s["scene_token"] == scene["token"]):
            record = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
            x, y, _ = nusc.get("ego_pose", record["ego_pose_token"])["translation"]
            assert Point(x, y).within(area.buffer(-0.9))
            assert min(line.distance(Point(x, y)) for line in lines) > 0.9
            assert nusc_map.record_on_point(x, y, "drivable_area")
        mask = next(m for m in nusc.map if scene["log_token"] in m["log_tokens"])["mask"]
        assert mask.is_on_mask(x, y)
        assert not mask.is_on_mask(2.0, 2.0)


def test_boundary_is_the_kerb_of_the_carriageway(nusc: NuScenes, world: Path, scenes: list[Scene]) -> None:
    """The outline of the union of road segments and lanes is the painted surface: no slivers, no holes."""
    for (_, nusc_map), scene in zip(_maps(nusc, world), scenes, strict=True):
        shapes = [nusc_map.extract_polygon(r["polygon_token"]) for r in nusc_map.road_segment + nusc_map.lane]
        assert all(s.is_valid for s in shapes)
        union = shapely.unary_union(shapes)
        assert union.geom_type == "Polygon"
        assert len(union.interiors) == len(scene.road.surface.interiors)
        surface = shapely.affinity.translate(scene.road.surface, *scene.spec.origin)
        assert union.symmetric_difference(surface).area < 1e-3 * surface.area
        for layer in (nusc_map.ped_crossing, nusc_map.stop_line):
            for record in layer:
                shape = nusc_map.extract_polygon(record["polygon_token"])
                assert shape.is_valid
                assert shape.difference(surface.buffer(0.3)).area < 0.02 * shape.area
        for record in nusc_map.road_divider + nusc_map.lane_divider:
            assert nusc_map.extract_line(record["line_token"]).within(surface.buffer(0.01))


def test_annotated_lines_are_painted_in_the_images(scenes: list[Scene]) -> None:
    """Brightness at projected road dividers exceeds that of the asphalt 0.6 m to either side."""
    on, beside = [], []
    for scene in scenes:
        for t in (0.0, 0.5, 1.0, 1.5):
            for camera in (CAMERAS[0], CAMERAS[3]):
                picture = render(scene, camera, t)
                world2cam = np.linalg.inv(ego2global(*scene.ego.at(t)) @ camera.cam2ego())
                for line in scene.road.road_dividers:
                    d = np.diff(line, axis=0)
                    normal = np.stack([-d[:, 1], d[:, 0]], -1) / np.linalg.norm(d, axis=1, keepdims=True)
                    for shift, values in ((0.0, on), (0.6, beside), (-0.6, beside)):
                        xy = line[:-1] + d / 2 + shift * normal
                        cam = np.c_[xy, np.zeros(len(xy))] @ world2cam[:3, :3].T + world2cam[:3, 3]
                        uv = cam @ camera.intrinsic().T
                        uv = uv[:, :2] / uv[:, 2:]
                        for (u, v), z in zip(uv, cam[:, 2], strict=True):
                            if (
                                3.0 < z < 18.0
                                and 0 <= u < 704
                                and 0 <= v < 396
                                and picture.ids[int(v), int(u)] == 0
                                and picture.inverse_depth[int(v), int(u)] == 0
                            ):
                                values.append(float(picture.image[int(v), int(u)].max()))
    assert len(on) > 20
    assert np.mean(on) > np.mean(beside) + 50
