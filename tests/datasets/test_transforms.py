"""Each transform against explicit geometry."""

import math

import cv2
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from perception.datasets import (
    BEVRandomFlip,
    BEVRandomRotate,
    LoadMultiViewImages,
    ObjectRangeFilter,
    PackBEVInputs,
    PhotometricDistortion,
    ResizeMultiView,
)
from perception.datasets.transforms import augment_boxes, augment_ego_motion, read_image
from perception.structures import CAMERA_NAMES, BEVGrid, bev_shift, box_corners, ego_motion, project_points
from perception.utils import DataError

GRID = BEVGrid((-51.2, -51.2, -5.0, 51.2, 51.2, 3.0), 50, 50)


def random_pose(rng: np.random.Generator, *, is_flat: bool) -> np.ndarray:
    tilt = (0.0, 0.0) if is_flat else rng.uniform(-0.02, 0.02, 2)
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("ZYX", [rng.uniform(-math.pi, math.pi), *tilt]).as_matrix()
    pose[:3, 3] = (*rng.uniform(-20, 20, 2), 0.0)
    return pose


def make_results(rng: np.random.Generator, num_frames: int = 3) -> dict:
    boxes = np.column_stack(
        [
            rng.uniform(-30, 30, (8, 2)),
            rng.uniform(-2, 0, 8),
            rng.uniform(0.5, 5, (8, 3)),
            rng.uniform(-3, 3, 8),
            rng.normal(0, 4, (8, 2)),
        ]
    )
    boxes[0, 7:] = np.nan
    frames = [
        {
            "lidar2img": rng.normal(0, 1, (6, 4, 4)),
            "ego_motion": rng.normal(0, 1, 18),
            "img": [rng.integers(0, 255, (36, 64, 3), dtype=np.uint8) for _ in range(6)],
        }
        for _ in range(num_frames)
    ]
    labels = np.arange(8)
    return {
        "frames": frames,
        "gt_bboxes_3d": boxes,
        "gt_labels_3d": labels,
        "bev_aug": np.eye(4),
        "rng": np.random.default_rng(5),
    }


AUGMENTATIONS = [
    BEVRandomFlip(prob=1.0),
    BEVRandomRotate(max_angle=180.0),
    BEVRandomRotate(max_angle=30.0, scale_range=(0.9, 1.1)),
]


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=repr)
def test_augmented_boxes_project_to_the_same_pixels(augmentation):
    results = make_results(np.random.default_rng(0))
    changed = augmentation(results)
    old = box_corners(torch.from_numpy(results["gt_bboxes_3d"])).numpy().reshape(-1, 3)
    new = box_corners(torch.from_numpy(changed["gt_bboxes_3d"])).numpy().reshape(-1, 3)
    for before, after in zip(results["frames"], changed["frames"], strict=True):
        for camera in range(6):
            old_points = old @ before["lidar2img"][camera, :3, :3].T + before["lidar2img"][camera, :3, 3]
            new_points = new @ after["lidar2img"][camera, :3, :3].T + after["lidar2img"][camera, :3, 3]
            # A mirrored box has the same corners in another order: compare per box, as sets.
            old_sets = np.sort(old_points.reshape(8, 8, 3), axis=1)
            new_sets = np.sort(new_points.reshape(8, 8, 3), axis=1)
            np.testing.assert_allclose(new_sets, old_sets, atol=1e-9)
    assert not np.allclose(results["gt_bboxes_3d"][:, :2], changed["gt_bboxes_3d"][:, :2])


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=repr)
def test_velocity_and_heading_move_like_points(augmentation):
    results = make_results(np.random.default_rng(1))
    changed = augmentation(results)
    boxes, matrix = results["gt_bboxes_3d"], changed["bev_aug"]
    # Where the box, and a point one metre ahead of it, are a second later.
    ahead = np.column_stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6]), np.zeros(8)])
    for direction, new_direction in (
        (np.pad(boxes[:, 7:], ((0, 0), (0, 1))), changed["gt_bboxes_3d"][:, 7:]),
        (ahead, None),
    ):
        end = boxes[:, :3] + direction
        moved = (np.column_stack([end, np.ones(8)]) @ matrix.T)[:, :2]
        expected = moved - changed["gt_bboxes_3d"][:, :2]
        if new_direction is None:
            yaw = np.arctan2(expected[:, 1], expected[:, 0])
            np.testing.assert_allclose(np.cos(yaw - changed["gt_bboxes_3d"][:, 6]), 1.0, atol=1e-12)
        else:
            np.testing.assert_allclose(new_direction, expected, atol=1e-9)
    assert np.isnan(changed["gt_bboxes_3d"][0, 7:]).all()


@pytest.mark.parametrize("is_flat", [True, False])
@pytest.mark.parametrize(
    ("angle", "is_mirrored", "scale"),
    [(0.7, False, 1.0), (-2.9, False, 1.0), (0.0, True, 1.0), (0.4, True, 1.0), (3.1, False, 1.2)],
)
def test_augmented_motion_equals_that_of_augmented_poses(angle, is_mirrored, scale, is_flat):
    """Oracle: the displacement and turn between the LiDAR frames themselves, as 4×4 matrices."""
    rng = np.random.default_rng(2)
    lidar2ego = np.eye(4)
    lidar2ego[:3, :3] = Rotation.from_euler("z", -math.pi / 2).as_matrix()
    lidar2ego[:3, 3] = (0.94, 0.0, 1.84)
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = np.eye(4)
    matrix[:2, :2] = [[cos, -sin], [sin, cos]]
    matrix = matrix @ np.diag([-1.0 if is_mirrored else 1.0, 1, 1, 1])
    matrix[:3] *= scale
    for _ in range(20):
        previous, current = random_pose(rng, is_flat=is_flat), random_pose(rng, is_flat=is_flat)
        motion = ego_motion(previous, current, lidar2ego)
        changed = augment_ego_motion(motion, angle=angle, is_mirrored=is_mirrored, scale=scale)
        # Previous sensor origin and axes seen from the current, augmented frame.
        relative = matrix @ np.linalg.inv(current @ lidar2ego) @ previous @ lidar2ego @ np.linalg.inv(matrix)
        shift = bev_shift(torch.from_numpy(changed)[None], GRID)[0].numpy() * 102.4
        tolerance = 1e-9 if is_flat else 0.03 * np.linalg.norm(relative[:2, 3]) + 0.1
        np.testing.assert_allclose(shift, -relative[:2, 3], atol=tolerance)
        # Heading change: the angle of the current y axis against the previous one, counter-clockwise.
        inverse = np.linalg.inv(relative)
        turn = math.degrees(math.atan2(-inverse[0, 1], inverse[1, 1]))
        difference = math.remainder(changed[17] - turn, 360.0)
        assert abs(difference) < (1e-6 if is_flat else 0.2)
        assert -math.pi <= changed[16] <= math.pi
        # The quaternion turns with the heading: Δ(yaw of the quaternion) = Δ(heading).
        w, x, y, z = changed[3:7]
        assert math.isclose(np.linalg.norm(changed[3:7]), 1.0, abs_tol=1e-9)
        forward = Rotation.from_quat([x, y, z, w]).apply([1.0, 0.0, 0.0])
        assert abs(math.remainder(math.atan2(forward[1], forward[0]) - changed[16], 2 * math.pi)) < 0.01


def test_can_vectors_turn_with_the_frame():
    motion = np.zeros(18)
    motion[7:16] = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    mirrored = augment_ego_motion(motion, is_mirrored=True)
    assert mirrored[7:16].tolist() == [1, -2, 3, -4, 5, -6, 7, -8, 9]
    turned = augment_ego_motion(motion, angle=math.pi / 2, scale=2.0)
    np.testing.assert_allclose(turned[7:16], [-4, 2, 6, -5, 4, 6, -16, 14, 18], atol=1e-12)


def test_flip_twice_is_the_identity():
    results = make_results(np.random.default_rng(3))
    flip = BEVRandomFlip(prob=1.0)
    twice = flip(flip(results))
    np.testing.assert_allclose(twice["bev_aug"], np.eye(4))
    np.testing.assert_allclose(twice["gt_bboxes_3d"], results["gt_bboxes_3d"], atol=1e-12)
    np.testing.assert_allclose(twice["frames"][1]["ego_motion"], results["frames"][1]["ego_motion"])


def test_mirrored_images_show_the_mirrored_world():
    """Left in the image is left of the sensor again; the left cameras take the place of the right ones."""
    results = make_results(np.random.default_rng(6))
    changed = BEVRandomFlip(prob=1.0, mirror_images=True)(results)
    opposite = {
        "CAM_FRONT": "CAM_FRONT",
        "CAM_FRONT_LEFT": "CAM_FRONT_RIGHT",
        "CAM_BACK_LEFT": "CAM_BACK_RIGHT",
    }
    opposite |= {value: key for key, value in opposite.items()} | {"CAM_BACK": "CAM_BACK"}
    points = np.random.default_rng(7).uniform(-20, 20, (50, 3))
    mirrored = points * [-1, 1, 1]
    for before, after in zip(results["frames"], changed["frames"], strict=True):
        for name, source in opposite.items():
            new, old = CAMERA_NAMES.index(name), CAMERA_NAMES.index(source)
            np.testing.assert_array_equal(after["img"][new], before["img"][old][:, ::-1])
            uv, depth = project_points(mirrored, after["lidar2img"][new])
            old_uv, old_depth = project_points(points, before["lidar2img"][old])
            np.testing.assert_allclose(depth, old_depth)
            ahead = depth > 0.1
            np.testing.assert_allclose(uv[ahead, 0], 64 - old_uv[ahead, 0], atol=1e-6)
            np.testing.assert_allclose(uv[ahead, 1], old_uv[ahead, 1], atol=1e-6)


def test_mirroring_images_twice_is_the_identity_and_leaves_its_argument():
    results = make_results(np.random.default_rng(8))
    first = [image.copy() for image in results["frames"][0]["img"]]
    flip = BEVRandomFlip(prob=1.0, mirror_images=True)
    twice = flip(flip(results))
    for before, after in zip(results["frames"], twice["frames"], strict=True):
        np.testing.assert_array_equal(after["img"], before["img"])
        np.testing.assert_allclose(after["lidar2img"], before["lidar2img"], atol=1e-9)
    np.testing.assert_array_equal(results["frames"][0]["img"], first)


def test_mirroring_images_before_they_are_loaded_is_refused():
    results = make_results(np.random.default_rng(9))
    results["frames"] = [{k: v for k, v in frame.items() if k != "img"} for frame in results["frames"]]
    with pytest.raises(ValueError, match="behind LoadMultiViewImages"):
        BEVRandomFlip(prob=1.0, mirror_images=True)(results)


def test_augment_boxes_keeps_its_argument():
    boxes = make_results(np.random.default_rng(4))["gt_bboxes_3d"]
    before = boxes.copy()
    augment_boxes(boxes, np.diag([-1.0, 1.0, 1.0, 1.0]))
    np.testing.assert_array_equal(boxes, before)


def test_augmentation_after_the_map_is_refused():
    results = {**make_results(np.random.default_rng(0)), "gt_bev_seg": np.zeros((2, 2), np.uint8)}
    with pytest.raises(ValueError, match="LoadBEVMap must come after"):
        BEVRandomFlip(prob=1.0)(results)


def test_range_filter_keeps_bounds_and_ignores_height():
    results = make_results(np.random.default_rng(0))
    results["gt_bboxes_3d"][:4, :3] = [[10, 5, 99], [10.001, 5, 0], [-10, -5, 0], [0, -5.001, 0]]
    kept = ObjectRangeFilter(pc_range=[-10, -5, -1, 10, 5, 1])(results)
    assert kept["gt_labels_3d"][:2].tolist() == [0, 2]
    assert len(results["gt_labels_3d"]) == 8


def _gradient_image(width: int, height: int) -> np.ndarray:
    """Blue grows with x, green with y, in proportion to the continuous position of the pixel centre."""
    x = (np.arange(width) + 0.5) / width * 250
    y = (np.arange(height) + 0.5) / height * 250
    blue, green = np.meshgrid(x, y)
    return np.stack([blue, green, np.full_like(blue, 128)], axis=-1).round().astype(np.uint8)


@pytest.mark.parametrize("target_size", [None, (352, 198), (300, 150), (100, 60)])
@pytest.mark.parametrize("interpolation", ["bilinear", "area"])
def test_lidar2img_follows_decoding_and_resizing(tmp_path, target_size, interpolation):
    """The colour at the projected place tells where in the original image it lies."""
    path = tmp_path / "image.jpg"
    cv2.imwrite(str(path), _gradient_image(704, 396), [cv2.IMWRITE_JPEG_QUALITY, 100])
    lidar2img = np.tile(
        np.array([[500.0, 352, 0, 0], [0, 198, -500, 0], [0, 1, 0, 0], [0, 0, 0, 1]]), (6, 1, 1)
    )
    cameras = dict.fromkeys(
        ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT"),
        str(path),
    )
    frame = {
        "sample_token": "s",
        "img_paths": cameras,
        "img_sizes": dict.fromkeys(cameras, (704, 396)),
        "lidar2img": lidar2img,
    }
    results = {"frames": [frame]}
    results = LoadMultiViewImages(target_size=target_size)(results)
    decoded_width = results["frames"][0]["img"][0].shape[1]
    assert decoded_width == {None: 704, (352, 198): 352, (300, 150): 352, (100, 60): 176}[target_size]
    if target_size is not None:
        results = ResizeMultiView(size=target_size, interpolation=interpolation)(results)
        assert results["frames"][0]["img"][3].shape == (target_size[1], target_size[0], 3)
    image, matrix = results["frames"][0]["img"][0], results["frames"][0]["lidar2img"][0]
    height, width = image.shape[:2]
    points = np.array([[0.0, 10, 0], [3, 10, 1], [-4, 12, -2], [-6, 11, 3]])
    uv, _ = project_points(points, matrix)
    full_uv, _ = project_points(points, lidar2img[0])
    for (u, v), (full_u, full_v) in zip(uv, full_uv, strict=True):
        blue, green, _ = cv2.getRectSubPix(image, (1, 1), (u - 0.5, v - 0.5))[0, 0]
        assert abs(blue - full_u / 704 * 250) < 250 / width + 2
        assert abs(green - full_v / 396 * 250) < 250 / height + 2


def test_resize_by_scale_rounds_to_pixels():
    results = make_results(np.random.default_rng(0))
    resized = ResizeMultiView(scale=0.3)(results)
    assert resized["frames"][0]["img"][0].shape == (11, 19, 3)
    expected = np.diag([19 / 64, 11 / 36, 1, 1]) @ results["frames"][0]["lidar2img"][2]
    np.testing.assert_allclose(resized["frames"][0]["lidar2img"][2], expected)


def test_photometric_distortion_is_random_per_image_and_leaves_its_argument():
    results = make_results(np.random.default_rng(0))
    image = results["frames"][0]["img"][0]
    for frame in results["frames"]:
        frame["img"] = [image.copy() for _ in range(6)]
    distorted = PhotometricDistortion()(results)
    images = [image for frame in distorted["frames"] for image in frame["img"]]
    assert len({image.tobytes() for image in images}) > 10
    np.testing.assert_array_equal(results["frames"][0]["img"][0], image)
    assert all(image.dtype == np.uint8 and image.shape == (36, 64, 3) for image in images)


@pytest.mark.parametrize(
    ("options", "check"),
    [
        (
            {"brightness": 0, "contrast": (1, 1), "saturation": (1, 1), "hue": 0},
            lambda a, b: np.abs(a.astype(int) - b).mean() < 2,
        ),
        ({"brightness": 0, "contrast": (0, 0), "saturation": (1, 1), "hue": 0}, lambda a, b: b.max() == 0),
        (
            {"brightness": 0, "contrast": (1, 1), "saturation": (0, 0), "hue": 0},
            lambda a, b: np.ptp(b.astype(int), axis=-1).max() == 0,
        ),
        (
            {"brightness": 0, "contrast": (2, 2), "saturation": (1, 1), "hue": 0},
            lambda a, b: np.abs(np.minimum(a.astype(int) * 2, 255) - b).max() <= 6,
        ),
    ],
)
def test_photometric_amounts(options, check):
    results = make_results(np.random.default_rng(0), num_frames=1)
    distorted = PhotometricDistortion(prob=1.0, **options)(results)
    before, after = results["frames"][0]["img"][0], distorted["frames"][0]["img"][0]
    assert check(before, after)


def test_hue_turns_by_the_angle():
    red = np.full((2, 2, 3), (0, 0, 200), np.uint8)
    results = {"frames": [{"img": [red]}], "rng": np.random.default_rng(0)}
    turned = PhotometricDistortion(brightness=0, contrast=(1, 1), saturation=(1, 1), hue=120, prob=1.0)(
        results
    )
    hue = int(cv2.cvtColor(turned["frames"][0]["img"][0], cv2.COLOR_BGR2HSV)[0, 0, 0])
    drawn = np.random.default_rng(0)
    drawn.random(4), drawn.uniform(), drawn.uniform(), drawn.uniform()
    expected = drawn.uniform(-120, 120) / 2 % 180
    assert abs(math.remainder(hue - expected, 180)) <= 1


def test_pack_refuses_images_of_different_sizes():
    results = make_results(np.random.default_rng(0))
    results["frames"][0]["img"][2] = results["frames"][0]["img"][2][:20]
    with pytest.raises(ValueError, match="one size"):
        PackBEVInputs()(results)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ResizeMultiView(), "either size"),
        (lambda: ResizeMultiView(scale=0.0), "scale must be positive"),
        (lambda: ResizeMultiView(scale=0.5, interpolation="cubic"), "interpolation must be one of"),
        (lambda: LoadMultiViewImages(target_size=(0, 5)), "image size"),
        (lambda: BEVRandomFlip(prob=1.5), "prob must lie"),
        (lambda: BEVRandomRotate(max_angle=-1), "max_angle must lie"),
        (lambda: BEVRandomRotate(scale_range=(0, 1)), "scale_range"),
        (lambda: ObjectRangeFilter(pc_range=(1, 2)), "six numbers"),
        (lambda: PhotometricDistortion(contrast=(2, 1)), "contrast must be"),
        (lambda: PhotometricDistortion(hue=-1), "must not be negative"),
    ],
)
def test_wrong_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes cannot be decoded"),
        (b"not an image at all", "not a JPEG or PNG"),
        (None, "missing"),
        ("cut", "cut short"),
    ],
)
def test_unreadable_images_are_named(tmp_path, content, message):
    path = tmp_path / "image.jpg"
    if content == "cut":
        _, encoded = cv2.imencode(
            ".jpg", np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        )
        path.write_bytes(encoded.tobytes()[: len(encoded) // 2])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_image(path, sample_token="abc")
    assert caught.value.sample_token == "abc"
    assert caught.value.path == str(path)
