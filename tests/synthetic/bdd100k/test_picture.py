"""One picture: boxes, mask and image show the same things, by geometry that is worked out apart."""

from __future__ import annotations

import numpy as np
import pytest
from shapely.geometry import Point

from perception.structures import BDD_BOX_CLASSES, BDD_SEG_CLASSES, IGNORE_SEG
from perception.synthetic.bdd100k import clip as clip_module
from perception.synthetic.bdd100k.clip import Clip, ClipSpec, build_clip
from perception.synthetic.bdd100k.names import ACTOR_CLASSES, PROP_CLASSES, SEG_ID
from perception.synthetic.bdd100k.picture import (
    MIN_PIXELS,
    MIN_SIDE,
    LabelledPicture,
    _view,
    take_picture,
)
from perception.synthetic.ground import CELL
from perception.synthetic.names import CLASS_SIZES

SIZE = (640, 360)


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return [build_clip(ClipSpec(0, "100k", "train", index)) for index in range(2)]


@pytest.fixture(scope="module")
def pictures(clips: list[Clip]) -> list[tuple[Clip, int, LabelledPicture]]:
    return [(clip, number, take_picture(clip, number, SIZE)) for clip in clips for number in (0, 1)]


def _id_of(label: dict) -> int:
    return int(label["id"].rpartition("-")[2]) + 1


def _placed(clip: Clip, number: int, label: dict) -> np.ndarray:
    """(n, 3) corners of the labelled object in the camera's frame."""
    item, view = clip.objects[_id_of(label) - 1], _view(clip, number * clip_module.IMAGE_PERIOD, SIZE)
    x, y, z, yaw = item.at(number * clip_module.IMAGE_PERIOD)
    turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    world = item.mesh.vertices[np.unique(item.mesh.triangles)] @ turn.T + [x, y, z]
    return (world - view.position) @ view.rotation


def test_every_name_is_bdd100ks() -> None:
    ignored = {"trailer", "other vehicle"}  # which the official evaluation maps to ignored boxes
    assert {c for _, c in ACTOR_CLASSES.values() if c} <= {*BDD_BOX_CLASSES, *ignored}
    assert {name for name, _ in ACTOR_CLASSES.values()} <= {*BDD_SEG_CLASSES, ""}
    assert set(PROP_CLASSES.values()) <= set(BDD_SEG_CLASSES)
    assert set(ACTOR_CLASSES) == {*CLASS_SIZES, "train"}


def test_boxes_reach_as_far_as_their_pixels(pictures: list[tuple[Clip, int, LabelledPicture]]) -> None:
    num = 0
    for _, _, picture in pictures:
        for label in picture.labels:
            rows, columns = np.nonzero(picture.ids == _id_of(label))
            box = label["box2d"]
            assert (box["x1"], box["x2"]) == (columns.min(), columns.max())
            assert (box["y1"], box["y2"]) == (rows.min(), rows.max())
            assert len(rows) >= MIN_PIXELS
            assert min(np.ptp(rows), np.ptp(columns)) + 1 >= MIN_SIDE
            num += 1
    assert num > 40


def test_whole_objects_fill_their_projection(pictures: list[tuple[Clip, int, LabelledPicture]]) -> None:
    num = 0
    for clip, number, picture in pictures:
        view = _view(clip, number * clip_module.IMAGE_PERIOD, SIZE)
        for label in picture.labels:
            cam = _placed(clip, number, label)
            if label["attributes"]["truncated"]:
                continue
            assert (cam[:, 2] > 0).all()
            pixels = view.intrinsic[0] * cam[:, :2] / cam[:, 2:] + view.intrinsic[1:]
            low, high = pixels.min(axis=0), pixels.max(axis=0)
            box = label["box2d"]
            edges = np.array([box["x1"], box["y1"]]), np.array([box["x2"] + 1, box["y2"] + 1])
            assert (edges[0] >= low - 1).all()
            assert (edges[1] <= high + 1).all()
            if not label["attributes"]["occluded"]:
                # A thin end may fall between pixel centres, or be the tenth that something hides.
                assert (np.abs(edges[0] - low) <= np.maximum(3.0, 0.2 * (high - low))).all()
                assert (np.abs(edges[1] - high) <= np.maximum(3.0, 0.2 * (high - low))).all()
                num += 1
    assert num > 20


def test_masks_show_what_the_boxes_show(pictures: list[tuple[Clip, int, LabelledPicture]]) -> None:
    for clip, _, picture in pictures:
        for number in np.unique(picture.ids[picture.ids > 0]):
            found = np.unique(picture.mask[picture.ids == number])
            item = clip.objects[number - 1]
            allowed = {item.seg_class, IGNORE_SEG} if item.is_front_only else {item.seg_class}
            assert set(found.tolist()) <= allowed
            assert len(found) == 1
        for label in picture.labels:
            item = clip.objects[_id_of(label) - 1]
            assert item.category == label["category"]


def test_ground_is_labelled_as_the_road_lies(pictures: list[tuple[Clip, int, LabelledPicture]]) -> None:
    """Rays through pixels, met with the ground and looked up in the road's polygons."""
    rng = np.random.default_rng(0)
    counts = dict.fromkeys(("road", "sidewalk", "terrain", "sky"), 0)
    for clip, number, picture in pictures:
        view = _view(clip, number * clip_module.IMAGE_PERIOD, SIZE)
        rows, columns = np.nonzero(picture.ids <= 0)
        for pick in rng.choice(len(rows), 250, replace=False):
            row, column = rows[pick], columns[pick]
            focal, cx, cy = view.intrinsic
            ray = view.rotation @ [(column + 0.5 - cx) / focal, (row + 0.5 - cy) / focal, 1.0]
            value = picture.mask[row, column]
            if ray[2] > -1e-3:
                assert value == SEG_ID["sky"]
                counts["sky"] += 1
                continue
            hit = Point((view.position - view.position[2] / ray[2] * ray)[:2])
            edges = (clip.road.surface.boundary, clip.road.walkway.boundary)
            if ray[2] > -0.01 or min(hit.distance(edge) for edge in edges) < CELL:
                continue  # too far, or so near to an edge that drawing rounds it
            expected = "road" if hit.within(clip.road.surface) else "terrain"
            if hit.within(clip.road.walkway):
                expected = "sidewalk"
            assert value == SEG_ID[expected], (expected, row, column)
            counts[expected] += 1
    assert min(counts.values()) > 10, counts


def test_occluded_and_truncated_objects_occur(pictures: list[tuple[Clip, int, LabelledPicture]]) -> None:
    labels = [label for _, _, picture in pictures for label in picture.labels]
    for key in ("occluded", "truncated"):
        assert {label["attributes"][key] for label in labels} == {True, False}
    for _, _, picture in pictures:
        height, width = picture.mask.shape
        for label in picture.labels:
            box = label["box2d"]
            is_inside = min(box["x1"], box["y1"]) > 0 and box["x2"] < width - 1 and box["y2"] < height - 1
            if label["attributes"]["truncated"] and is_inside:
                assert label["attributes"]["occluded"]  # what sticks out is hidden by something


def test_riders_and_cycles_are_two(clips: list[Clip]) -> None:
    ridden = [o for clip in clips for o in clip.objects if o.category == "rider"]
    assert ridden
    for clip in clips:
        for before, item in zip(clip.objects, clip.objects[1:], strict=False):
            if item.category == "rider":
                assert before.category in ("bicycle", "motorcycle")
                assert before.actor is item.actor
                assert item.mesh.vertices[item.mesh.triangles].max() > 1.5  # the head


def test_backs_of_signs_are_no_signs(clips: list[Clip]) -> None:
    for clip in clips:
        picture = take_picture(clip, 1, SIZE)
        shown = {_id_of(label) for label in picture.labels}
        position = _view(clip, clip_module.IMAGE_PERIOD, SIZE).position
        for number, item in enumerate(clip.objects, start=1):
            if not item.is_front_only or not (picture.ids == number).any():
                continue
            x, y, yaw = item.pose
            is_front = np.dot([np.cos(yaw), np.sin(yaw)], position[:2] - [x, y]) > 0
            values = set(picture.mask[picture.ids == number].tolist())
            assert values == {SEG_ID["traffic sign"] if is_front else IGNORE_SEG}
            assert is_front or number not in shown


def test_a_tram_is_a_train() -> None:
    specs = [ClipSpec(0, "10k", "train", index) for index in range(2 * clip_module.TRAM_INTERVAL)]
    first, second = (spec for spec in specs if spec.has_tram)
    assert second.index - first.index == clip_module.TRAM_INTERVAL
    (tram,) = [o for o in build_clip(first).objects if o.category == "train"]
    low, high = (function(tram.mesh.vertices, axis=0) for function in (np.min, np.max))
    assert ((high - low) / [22.0, 2.4, 3.5] > 0.9).all()
    assert tram.seg_class == SEG_ID["train"]


def test_each_dozen_of_clips_has_every_light() -> None:
    lights = [ClipSpec(0, "10k", "val", index).light for index in range(24)]
    assert sorted(lights[:12]) == sorted(lights[12:])
    assert lights[:12] != lights[12:]
    assert set(lights[:12]) == {"noon", "overcast", "fog", "dusk", "night"}
    assert lights[:12] != [ClipSpec(1, "10k", "val", index).light for index in range(12)]


def test_same_spec_same_picture(clips: list[Clip]) -> None:
    again = build_clip(clips[0].spec)
    first, second = take_picture(clips[0], 1, (320, 180)), take_picture(again, 1, (320, 180))
    assert (first.image == second.image).all()
    assert (first.mask == second.mask).all()
    assert first.labels == second.labels
    assert (take_picture(clips[1], 1, (320, 180)).mask != first.mask).mean() > 0.05


def test_size_changes_the_resolution_only(clips: list[Clip]) -> None:
    small, large = take_picture(clips[0], 0, (320, 180)), take_picture(clips[0], 0, (960, 540))
    assert (small.mask == large.mask[1::3, 1::3]).mean() > 0.99
