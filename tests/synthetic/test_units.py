"""The parts by themselves: overlap test, paths, rasteriser, ground filter, LiDAR, kernels' warm-up, progress."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from shapely.geometry import Polygon

from perception.structures import CLASS_NAMES
from perception.synthetic import lidar, raster, raster_labels
from perception.synthetic._warm_up import warm_up
from perception.synthetic.actors import draw_size, make_actor
from perception.synthetic.bdd100k.clip import ClipSpec, build_clip
from perception.synthetic.bdd100k.picture import take_picture
from perception.synthetic.collision import rectangles_overlap
from perception.synthetic.lidar import count_points, scan
from perception.synthetic.motion import standing, time_grid, travelled
from perception.synthetic.names import CLASS_SIZES, visibility_token
from perception.synthetic.path import Path, random_centreline
from perception.synthetic.render import render
from perception.synthetic.rig import CAMERAS, ego2global, lidar2ego
from perception.synthetic.scene import Scene


def _polygon(box: np.ndarray) -> Polygon:
    x, y, length, width, yaw = box
    local = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)]) * [length / 2, width / 2]
    return Polygon(local @ np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]]) + [x, y])


def test_rectangle_overlap_agrees_with_shapely() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.uniform([-4, -4, 0.5, 0.5, -3], [4, 4, 5, 2, 3], (400, 5)) for _ in range(2))
    expected = [_polygon(p).intersects(_polygon(q)) for p, q in zip(a, b, strict=True)]
    assert 50 < sum(expected) < 350
    assert (rectangles_overlap(a, b) == expected).all()


def test_path_offset_and_projection() -> None:
    angle = np.linspace(0.0, np.pi / 2, 200)
    circle = Path.from_points(np.stack([20 * np.cos(angle), 20 * np.sin(angle)], -1))
    assert circle.length == pytest.approx(10 * np.pi, rel=1e-4)
    assert circle.offset(2.0).length == pytest.approx(
        9 * np.pi, rel=1e-3
    )  # left of a left-hand bend is inside
    xy, yaw = circle.at(circle.length / 2)
    assert xy == pytest.approx([20 * np.sqrt(0.5)] * 2, abs=1e-3)
    assert yaw == pytest.approx(np.pi * 0.75, abs=1e-3)
    assert circle.project(np.array([[18 * np.sqrt(0.5)] * 2]))[0, 1] == pytest.approx(2.0, abs=0.01)


@pytest.mark.parametrize("bend", [0.0, 0.5, 1.0])
def test_centreline_bends_as_told(bend: float) -> None:
    path = random_centreline(np.random.default_rng(3), length=250.0, bend=bend)
    radius = 1.0 / max(np.abs(np.gradient(path.yaw, path.s)).max(), 1e-9)
    assert radius > 30.0
    assert np.ptp(path.yaw) <= np.deg2rad(155.0)
    assert (np.ptp(path.yaw) < 1e-6) == (bend == 0.0)


def test_travelled_distance_is_the_integral_of_speed() -> None:
    times = time_grid(10.0)
    assert np.interp([0.0, 10.0], times, travelled(times, np.full(len(times), 3.0))) == pytest.approx(
        [0.0, 30.0]
    )


@pytest.mark.parametrize("name", CLASS_NAMES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mesh_fills_its_box_and_stays_inside(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rider = name in ("bicycle", "motorcycle") and seed == 1
    size = draw_size(rng, name, rider=rider)
    still = standing(time_grid(1.0), np.zeros(2), 0.0)
    actor = make_actor(rng, name, size, still, conduct="static", rider=rider)
    w, l, h = actor.size  # noqa: E741
    low, high = actor.mesh.vertices.min(0), actor.mesh.vertices.max(0)
    assert (low >= [-l / 2 - 1e-9, -w / 2 - 1e-9, -1e-9]).all()
    assert (high <= [l / 2 + 1e-9, w / 2 + 1e-9, h + 1e-9]).all()
    assert ((high - low) / [l, w, h] > 0.6).all(), (high - low) / [l, w, h]
    if not rider and name not in ("pedestrian", "bicycle", "motorcycle"):
        assert np.array([w, l, h]) == pytest.approx(CLASS_SIZES[name][:3], rel=0.25)


def test_attributes_follow_motion_and_class() -> None:
    rng, times = np.random.default_rng(0), time_grid(2.0)
    still = standing(times, np.zeros(2), 0.0)
    expected = {
        ("car", "static"): "vehicle.parked",
        ("bus", "mover"): "vehicle.stopped",
        ("pedestrian", "static"): "pedestrian.standing",
        ("bicycle", "static"): "cycle.without_rider",
        ("barrier", "static"): "",
        ("traffic_cone", "static"): "",
    }
    for (name, conduct), attribute in expected.items():
        actor = make_actor(rng, name, draw_size(rng, name), still, conduct=conduct)  # type: ignore[arg-type]
        assert actor.attribute(1.0) == attribute


def test_nearer_triangle_hides_the_farther_and_both_are_counted() -> None:
    inverse, colour, ids, stamp = raster.new_buffers(40, 60)
    totals = np.zeros(3, dtype=np.int64)
    for number, (depth, right) in enumerate(((10.0, 50.0), (5.0, 30.0)), start=1):
        quad = np.array([[10, 10], [right, 10], [right, 30], [10, 30]], dtype=float)
        for corners in ((0, 1, 2), (0, 2, 3)):
            p = np.c_[quad[list(corners)], np.full(3, 1 / depth)]
            raster.fill_triangle(p, np.full(3, float(number)), number, inverse, colour, ids, stamp, totals)
    assert totals.tolist() == [0, 40 * 20, 20 * 20]
    assert (ids == 2).sum() == 20 * 20
    assert (ids == 1).sum() == 20 * 20
    assert ids[10:30, 10:30].min() == 2  # pixel (i, j) is covered when its centre (i + 0.5, j + 0.5) is
    assert colour[15, 40, 0] == 1.0


def test_scan_meets_a_wall_at_the_right_distance() -> None:
    pose = ego2global(5.0, 5.0, 0.3) @ lidar2ego()
    centre = np.array([5.0, 5.0]) + 12.0 * np.array([np.cos(0.3), np.sin(0.3)])
    box = np.array([[centre[0], centre[1], 1.0, 2.0, 6.0, 1.94, 0.3]])
    points = scan(np.random.default_rng(0), pose, box, 1)
    assert points.dtype == np.float32
    counts = count_points(points, pose, box)
    assert counts[0] > 200
    hit = points[points[:, 3] >= 40][:, :3] @ pose[:3, :3].T + pose[:3, 3]
    ahead = (hit[:, :2] - [5.0, 5.0]) @ [np.cos(0.3), np.sin(0.3)]
    assert np.median(ahead) == pytest.approx(11.0 + lidar.SHRINK, abs=1e-3)


def test_visibility_levels() -> None:
    assert [visibility_token(v, 100) for v in (0, 39, 40, 59, 60, 79, 80, 100)] == list("11223344")
    assert visibility_token(0, 0) == "1"


def test_warm_up_compiles_what_drawing_uses(scenes: list[Scene]) -> None:
    warm_up()
    render(scenes[0], CAMERAS[0], 0.0)
    take_picture(build_clip(ClipSpec(0, "10k", "val", 0)), 0, (128, 72))
    functions = (raster.draw_objects, raster.shade, raster.count_ids, lidar.cast)
    for function in (*functions, raster_labels.measure_objects, raster_labels.label_pixels):
        assert len(function.signatures) == 1  # type: ignore[attr-defined]


def test_noise_and_lighting_leave_geometry_alone(scenes: list[Scene]) -> None:
    a, b = (render(scenes[0], CAMERAS[0], 0.0, noise_seed=k) for k in (1, 2))
    assert (a.ids == b.ids).all()
    difference = a.image.astype(int) - b.image
    assert 0.5 < difference.std() < 6.0
    assert (render(scenes[0], CAMERAS[0], 0.0, noise_seed=1).image == a.image).all()


def test_kernels_work_where_no_cache_can_be_written() -> None:
    """A read-only installation: numba finds no place for its cache, the kernel is compiled all the same."""
    code = (
        "import numba.core.caching as c; c.CacheImpl._locator_classes = []\n"
        "import numpy as np\nfrom perception.synthetic import raster\n"
        "n = np.zeros(3, dtype=np.int64); raster.count_ids(np.full((2, 2), 2, dtype=np.int32), n)\n"
        "print(n[2], raster.count_ids.stats.cache_path)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "4 None", done.stderr
