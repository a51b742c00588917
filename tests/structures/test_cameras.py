"""Projection: NumPy and torch agree, depth is unclamped, resizing is a scaling."""

import numpy as np
import pytest
import torch

from perception.structures import compose_lidar2img, project_points, resize_matrix

CAM2IMG = np.array([[100.0, 0.0, 50.0], [0.0, 100.0, 30.0], [0.0, 0.0, 1.0]])
# Camera at the LiDAR's origin looking forward: LiDAR (right, forward, up) → camera (right, down, forward).
LIDAR2CAM = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])


def test_projects_a_known_point() -> None:
    uv, depth = project_points(np.array([1.0, 10.0, -2.0]), compose_lidar2img(CAM2IMG, LIDAR2CAM))
    assert uv.tolist() == pytest.approx([60.0, 50.0])
    assert depth == pytest.approx(10.0)


def test_points_behind_keep_their_depth() -> None:
    uv, depth = project_points(np.array([[0.0, -3.0, 0.0]]), compose_lidar2img(CAM2IMG, LIDAR2CAM))
    assert depth.tolist() == [-3.0]
    assert np.isfinite(uv).all()


def test_numpy_and_torch_agree_with_broadcasting() -> None:
    rng = np.random.default_rng(0)
    points, matrices = rng.normal(size=(5, 3)) * 10, rng.normal(size=(4, 1, 4, 4))
    uv, depth = project_points(points, matrices)
    uv_torch, depth_torch = project_points(torch.from_numpy(points), torch.from_numpy(matrices))
    assert uv.shape == (4, 5, 2)
    np.testing.assert_allclose(uv_torch.numpy(), uv)
    np.testing.assert_allclose(depth_torch.numpy(), depth)


def test_resize_scales_pixels_only() -> None:
    lidar2img = compose_lidar2img(CAM2IMG, LIDAR2CAM)
    point = np.array([1.0, 10.0, -2.0])
    uv, depth = project_points(point, lidar2img)
    uv_resized, depth_resized = project_points(point, resize_matrix(0.5, 0.25) @ lidar2img)
    np.testing.assert_allclose(uv_resized, uv * [0.5, 0.25])
    assert depth_resized == pytest.approx(depth)
