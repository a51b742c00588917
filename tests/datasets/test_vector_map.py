"""Map targets: hand-computed places, the devkit's own masks on a real map, frames and line widths."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from nuscenes.map_expansion.map_api import NuScenesMap
from scipy.spatial.transform import Rotation

from perception.datasets import LoadBEVMap, NuScenesVectorMap
from perception.datasets.vector_map import BOUNDARY, DIVIDER, PED_CROSSING, map_path
from perception.structures import MapGrid
from perception.utils import DataError

LOCATION = "singapore-onenorth"


def lidar_pose(x: float, y: float, heading: float, tilt: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """(4, 4) lidar2global with the LiDAR's y axis towards `heading`; tilt is (pitch, roll), radians."""
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("ZYX", [heading - np.pi / 2, *tilt]).as_matrix()
    pose[:3, 3] = (x, y, 1.84)
    return pose


@pytest.fixture(scope="module")
def real_root(shared_root, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("real_map")
    path = map_path(root, LOCATION)
    path.parent.mkdir(parents=True)
    shutil.copy(shared_root / "data" / "av2_map" / f"{LOCATION}.json", path)
    return root


def test_straight_road_is_where_it_was_drawn(tiny_root):
    # Driving along +x at y = 207: divider 3 m to the left, boundaries 9 m to the left and 3 m to the right.
    grid = MapGrid()
    target = NuScenesVectorMap(tiny_root, LOCATION).rasterise(grid, lidar_pose(250.0, 207.0, 0.0))
    assert target.shape == (200, 400)
    assert target.dtype == np.uint8
    column = target[:, 200]
    x = grid.centres()[:, 200, 0]
    for value, centre in ((DIVIDER, [-3.0]), (BOUNDARY, [-9.0, 3.0])):
        distance = np.min(np.abs(x[:, None] - np.array(centre)), axis=1)
        assert (column[distance < 0.375] == value).all()
        assert (column[distance > 0.6] != value).all()
        assert (column == value).sum() == 7 * len(centre)  # what OpenCV makes of a thickness of 5
    assert not (target == PED_CROSSING).any()


def test_crossing_shows_its_two_long_edges_and_clears_the_divider(tiny_root):
    # The crossing spans x 212…216 over the whole road: forward 12…16 m from a LiDAR at x = 200.
    target = NuScenesVectorMap(tiny_root, LOCATION).rasterise(MapGrid(), lidar_pose(200.0, 207.0, 0.0))
    y = MapGrid().centres()[0, :, 1]
    row = target[110, :]  # 1.6 m to the left of the LiDAR: inside the lane, off every line along the road
    distance = np.minimum(np.abs(y - 12), np.abs(y - 16))
    assert (row[distance < 0.375] == PED_CROSSING).all()
    assert (row[distance > 0.6] == 0).all()
    divider_row = target[120, :]  # 3.1 m to the left: on the divider
    assert (divider_row[distance < 0.375] == PED_CROSSING).all()
    assert (divider_row[(distance > 0.61) & (distance < 0.74)] == 0).all()
    assert (divider_row[distance > 1.0] == DIVIDER).all()


def test_filled_target_has_areas_with_holes(tiny_root):
    grid = MapGrid()
    vector_map = NuScenesVectorMap(tiny_root, LOCATION)
    target = vector_map.rasterise(grid, lidar_pose(210.0, 207.0, 0.0), filled=True)
    centres = grid.centres()
    forward, left = centres[..., 1], -centres[..., 0]
    inside_crossing = (np.abs(forward - 4) < 1.8) & (np.abs(left - 3) < 5.8) & (np.abs(left - 3) > 0.65)
    assert (target[inside_crossing] == PED_CROSSING).all()
    inside_hole = (np.abs(forward - 17) < 1.8) & (np.abs(left - 3) < 1.8) & (np.abs(left - 3) > 0.65)
    assert (target[inside_hole] == 0).all()
    assert (target[(np.abs(left - 3) < 9.8) & (np.abs(left - 3) > 6.2)] == BOUNDARY).all()
    assert (target[np.abs(left - 3) > 10.2] == 0).all()


@pytest.mark.parametrize("grid", [MapGrid(), MapGrid.full()])
def test_patch_edges_are_no_boundary(real_root, grid):
    vector_map = NuScenesVectorMap(real_root, LOCATION)
    xs = [node["x"] for node in json.loads(map_path(real_root, LOCATION).read_text())["node"]]
    ys = [node["y"] for node in json.loads(map_path(real_root, LOCATION).read_text())["node"]]
    border = []
    rng = np.random.default_rng(3)
    for _ in range(20):
        pose = lidar_pose(rng.uniform(min(xs), max(xs)), rng.uniform(min(ys), max(ys)), rng.uniform(-3, 3))
        target = vector_map.rasterise(grid, pose)
        for edge in (target[0], target[-1], target[:, 0], target[:, -1]):
            border.append((edge == BOUNDARY).mean())
    assert (
        np.mean(border) < 0.15
    )  # a patch edge drawn as boundary would fill whole sides where the road leaves


def test_line_width_is_in_metres(tiny_root):
    vector_map = NuScenesVectorMap(tiny_root, LOCATION)
    pose = lidar_pose(300.0, 207.0, 0.0)
    fine = MapGrid(resolution=0.05)
    coarse = MapGrid(x_range=(-16.0, 16.0), y_range=(-32.0, 32.0), resolution=2.0)
    assert (vector_map.rasterise(fine, pose)[:, 600] == DIVIDER).sum() == 15 + 2  # OpenCV's border
    assert (vector_map.rasterise(coarse, pose)[:, 16] == DIVIDER).sum() == 1


def test_augmentation_moves_the_map_like_the_points(tiny_root):
    grid = MapGrid()
    vector_map = NuScenesVectorMap(tiny_root, LOCATION)
    pose = lidar_pose(203.0, 206.0, 0.3)
    plain = vector_map.rasterise(grid, pose)
    mirror = np.diag([-1.0, 1.0, 1.0, 1.0])
    mirrored = vector_map.rasterise(grid, pose @ np.linalg.inv(mirror))
    assert (mirrored != plain[::-1]).mean() < 0.003
    assert (mirrored != plain).mean() > 0.03
    half_turn = np.diag([-1.0, -1.0, 1.0, 1.0])
    turned = vector_map.rasterise(grid, pose @ np.linalg.inv(half_turn))
    assert (turned != plain[::-1, ::-1]).mean() < 0.003


def test_tilt_moves_ground_points_exactly(tiny_root):
    grid = MapGrid()
    pose = lidar_pose(300.0, 207.0, 0.2, tilt=(0.03, -0.04))
    target = NuScenesVectorMap(tiny_root, LOCATION).rasterise(grid, pose)
    divider = np.column_stack([np.linspace(280, 320, 200), np.full(200, 210.0), np.zeros(200), np.ones(200)])
    local = (divider @ np.linalg.inv(pose).T)[:, :2]
    columns, rows = grid.lidar2pixels(local).round().astype(int).T
    inside = (columns >= 0) & (columns < 400) & (rows >= 0) & (rows < 200)
    assert inside.sum() > 100
    assert (target[rows[inside], columns[inside]] == DIVIDER).all()


def _iou(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / max((first | second).sum(), 1))


@pytest.mark.parametrize("source", ["real_root", "tiny_root", "synthetic_root"])
def test_areas_equal_the_devkits_masks(request, source):
    """Same places, same orientation. The devkit rounds vertices to whole pixels, ours are placed to 1/16."""
    root = request.getfixturevalue(source)
    location = next((root / "maps" / "expansion").glob("*.json")).stem
    devkit, ours = NuScenesMap(str(root), location), NuScenesVectorMap(root, location)
    grid = MapGrid(x_range=(-50.0, 50.0), y_range=(-50.0, 50.0), resolution=0.25)
    xy = np.array([[node["x"], node["y"]] for node in devkit.node])
    rng = np.random.default_rng(11)
    scores: dict[str, list[float]] = {"drivable_area": [], "ped_crossing": [], "lane": []}
    for _ in range(15):
        x, y = xy[rng.integers(len(xy))] + rng.normal(0, 5, 2)
        heading = rng.uniform(-np.pi, np.pi)
        # The devkit's pixel k lies at k pixels from the patch's edge, ours at k + ½: move its patch by half a pixel.
        half = grid.resolution / 2
        dx = half * (np.cos(heading) - np.sin(heading))
        dy = half * (np.sin(heading) + np.cos(heading))
        for layer, found in scores.items():
            mask = ours.layer_mask(layer, grid, lidar_pose(x, y, heading))
            patch = (x + dx, y + dy, 100.0, 100.0)
            expected = devkit.get_map_mask(patch, np.degrees(heading), [layer], grid.shape)[0].astype(bool)
            if expected.sum() > 200:
                found.append(_iou(mask, expected))
            else:
                assert mask.sum() < 400
    assert len(scores["drivable_area"]) >= 10
    assert len(scores["ped_crossing"]) >= 3
    assert np.mean(scores["drivable_area"]) > 0.985
    assert np.mean(scores["lane"]) > 0.985
    assert np.mean(scores["ped_crossing"]) > 0.95
    assert min(min(found) for found in scores.values()) > 0.85


def test_wrong_orientation_would_be_noticed(real_root):
    """The comparison above has teeth: a mirrored or turned mask does not pass it."""
    devkit, ours = NuScenesMap(str(real_root), LOCATION), NuScenesVectorMap(real_root, LOCATION)
    grid = MapGrid(x_range=(-50.0, 50.0), y_range=(-50.0, 50.0), resolution=0.25)
    node = devkit.node[1000]
    mask = ours.layer_mask("drivable_area", grid, lidar_pose(node["x"], node["y"], 0.4))
    patch = (node["x"], node["y"], 100.0, 100.0)
    expected = devkit.get_map_mask(patch, np.degrees(0.4), ["drivable_area"], grid.shape)[0].astype(bool)
    assert _iou(mask, expected) > 0.95
    for wrong in (mask[::-1], mask[:, ::-1], mask.T):
        assert _iou(wrong, expected) < 0.9


def test_missing_map_names_the_download(tmp_path):
    with pytest.raises(DataError, match=r"map expansion v1\.3.*boston-seaport\.json"):
        NuScenesVectorMap(tmp_path, "boston-seaport")


def test_damaged_map_is_named(tiny_copy):
    path = map_path(tiny_copy, LOCATION)
    content = json.loads(path.read_text())
    content["line"][0]["node_tokens"][0] = "nowhere"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"refers to node 'nowhere'.*singapore-onenorth\.json"):
        NuScenesVectorMap(tiny_copy, LOCATION).rasterise(MapGrid(), np.eye(4))
    path.write_text('{"node": [')
    with pytest.raises(DataError, match=r"not readable JSON.*singapore-onenorth\.json"):
        NuScenesVectorMap(tiny_copy, LOCATION)
    path.write_text('{"node": [], "line": [], "polygon": []}')
    with pytest.raises(DataError, match="has no layer 'road_divider'"):
        NuScenesVectorMap(tiny_copy, LOCATION).rasterise(MapGrid(), np.eye(4))


def test_the_parsed_file_is_dropped_and_read_again_when_needed(tiny_root):
    vector_map = NuScenesVectorMap(tiny_root, LOCATION)
    pose = lidar_pose(220.0, 210.0, 0.1)
    lines = vector_map.rasterise(MapGrid(), pose)
    assert vector_map._file is None
    filled = vector_map.rasterise(MapGrid(), pose, filled=True)
    assert vector_map._file is None
    fresh = NuScenesVectorMap(tiny_root, LOCATION)
    np.testing.assert_array_equal(fresh.rasterise(MapGrid(), pose, filled=True), filled)
    np.testing.assert_array_equal(fresh.rasterise(MapGrid(), pose), lines)


def test_upstreams_map_lies_around_the_ego(tiny_root):
    # The LiDAR is 0.94 m ahead of the ego's origin; the car drives along +x towards the crossing at x 212…216.
    lidar2ego = lidar_pose(0.94, 0.0, 0.02)
    ego2global = np.eye(4)
    ego2global[:3, :3] = Rotation.from_euler("ZYX", [0.1, 0.03, -0.02]).as_matrix()
    ego2global[:3, 3] = (199.06, 207.0, 0.5)
    results = {
        "data_root": tiny_root,
        "map_location": LOCATION,
        "sample_token": "a",
        "ego2global": ego2global,
        "lidar2ego": lidar2ego,
        "bev_aug": np.eye(4),
    }
    ours, upstream = (
        LoadBEVMap(grid=MapGrid(), center=center, cache_dir=None)(results)["gt_bev_seg"]
        for center in ("lidar", "ego")
    )
    drawn = NuScenesVectorMap(tiny_root, LOCATION)
    assert np.array_equal(ours, drawn.rasterise(MapGrid(), ego2global @ lidar2ego, ground_z=ego2global[2, 3]))
    assert np.array_equal(upstream, drawn.rasterise(MapGrid(), lidar_pose(199.06, 207.0, 0.1)))
    first = [int((target[105] == PED_CROSSING).nonzero()[0][0]) for target in (ours, upstream)]
    assert (first[1] - first[0]) * 0.15 == pytest.approx(0.94, abs=0.3)  # further ahead, seen from the ego
    with pytest.raises(ValueError, match="center"):
        LoadBEVMap(grid=MapGrid(), center="world")
