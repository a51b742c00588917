"""Cropped images and their projection belong together."""

import numpy as np
import pytest
import torch

from perception.datasets import CropTopMultiView, PackBEVInputs, ResizeMultiView
from perception.structures import project_points

HEIGHT, WIDTH = 40, 64


def make_results(rng: np.random.Generator, *, num_frames: int = 2, num_cameras: int = 3) -> dict:
    """Each frame's camera looks along +y; its image holds the row number in every pixel."""
    intrinsics = np.array([[50.0, 0, 32, 0], [0, 55.0, 18, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    lidar2cam = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    frames = []
    for _ in range(num_frames):
        moved = np.tile(lidar2cam, (num_cameras, 1, 1))
        moved[:, :3, 3] = rng.normal(0, 0.3, (num_cameras, 3))
        rows = np.tile(np.arange(HEIGHT, dtype=np.uint8)[:, None, None], (1, WIDTH, 3))
        frames.append(
            {"img": [rows.copy() for _ in range(num_cameras)], "lidar2img": intrinsics @ moved, "x": 1}
        )
    return {"frames": frames, "rng": rng}


@pytest.mark.parametrize("rows", [0, 1, 13, HEIGHT - 1])
def test_points_stay_on_their_pixels(rows):
    """The row that a projected point hits holds the same picture content before and after."""
    rng = np.random.default_rng(0)
    results = make_results(rng)
    cropped = CropTopMultiView(rows=rows)(results)
    points = torch.from_numpy(rng.uniform((-4, 8, -2), (4, 30, 2), (200, 3)))
    for before, after in zip(results["frames"], cropped["frames"], strict=True):
        for camera in range(3):
            uv, depth = project_points(points, torch.from_numpy(before["lidar2img"][camera]))
            new_uv, new_depth = project_points(points, torch.from_numpy(after["lidar2img"][camera]))
            np.testing.assert_allclose(new_uv.numpy(), uv.numpy() - [0, rows], atol=1e-9)
            np.testing.assert_allclose(new_depth.numpy(), depth.numpy())
            image = after["img"][camera]
            assert image.shape == (HEIGHT - rows, WIDTH, 3)
            row = new_uv[:, 1].round().long()
            is_seen = (row >= 0) & (row < len(image))
            assert is_seen.any() or rows == HEIGHT - 1
            expected = uv[is_seen, 1].round().numpy()
            np.testing.assert_array_equal(image[row[is_seen].numpy(), 0, 0], expected)
        assert after["x"] == 1


def test_commutes_with_resizing():
    """Cropping 2n rows and halving is halving and cropping n rows: the conventions of both agree."""
    results = make_results(np.random.default_rng(1))
    resize = ResizeMultiView(size=(WIDTH // 2, HEIGHT // 2))
    one = resize(CropTopMultiView(rows=0)(results))
    one = CropTopMultiView(rows=6)(one)
    other = ResizeMultiView(size=(WIDTH // 2, HEIGHT // 2 - 6))(CropTopMultiView(rows=12)(results))
    for left, right in zip(one["frames"], other["frames"], strict=True):
        np.testing.assert_allclose(left["lidar2img"], right["lidar2img"], atol=1e-9)
        np.testing.assert_array_equal(np.stack(left["img"]), np.stack(right["img"]))


def test_argument_is_left_alone():
    results = make_results(np.random.default_rng(2))
    matrices = [frame["lidar2img"].copy() for frame in results["frames"]]
    CropTopMultiView(rows=5)(results)
    for frame, matrix in zip(results["frames"], matrices, strict=True):
        np.testing.assert_array_equal(frame["lidar2img"], matrix)
        assert {len(image) for image in frame["img"]} == {HEIGHT}


def test_packed_item_has_the_cropped_shape():
    results = make_results(np.random.default_rng(3)) | {
        "gt_bboxes_3d": np.zeros((0, 9)),
        "gt_labels_3d": np.zeros(0, dtype=np.int64),
        **dict.fromkeys(("sample_token", "prev_token", "scene_token", "scene_name", "map_location"), ""),
        "frame_idx": 0,
        "timestamp": 0.0,
        **dict.fromkeys(("ego2global", "lidar2ego", "bev_aug"), np.eye(4)),
    }
    for frame in results["frames"]:
        frame |= {"ego_motion": np.zeros(18), "has_prev": False, "img_paths": {}}
    item = PackBEVInputs()(CropTopMultiView(rows=8)(results))
    assert item["inputs"]["img"].shape == (2, 3, 3, HEIGHT - 8, WIDTH)
    assert item["data_samples"].img_shape == (HEIGHT - 8, WIDTH)


def test_bad_rows():
    with pytest.raises(ValueError, match="rows must not be negative, got -1"):
        CropTopMultiView(rows=-1)
    for rows in (HEIGHT, HEIGHT + 5):
        with pytest.raises(ValueError, match=f"rows = {rows} leaves nothing of an image of {HEIGHT} rows"):
            CropTopMultiView(rows=rows)(make_results(np.random.default_rng(4)))
