"""Our reader of Scalabel's format against Scalabel's own, and what it refuses."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from perception.evaluation._bdd100k_toolkit import toolkit_module
from perception.structures import BDD_BOX_CLASSES
from perception.structures.scalabel import IGNORED_MAPPING, NAME_MAPPING, frame_boxes, read_boxes, read_frames
from perception.utils import DataError
from tests.datasets.bdd100k_world import frame, label


def toolkit_annotations(path: Path) -> tuple[list[str], list[dict]]:
    """Names and annotations of a file as the official evaluation has them, by COCO's keys."""
    config = toolkit_module("bdd100k.common.utils").load_bdd100k_config("det")
    frames = toolkit_module("scalabel.label.io").load(str(path)).frames
    frames = toolkit_module("bdd100k.label.to_scalabel").bdd100k_to_scalabel(frames, config)
    converted = toolkit_module("scalabel.label.to_coco").scalabel2coco_detection(frames, config.scalabel)
    return [image["file_name"] for image in converted["images"]], converted["annotations"]


def our_annotations(path: Path) -> tuple[list[str], list[tuple]]:
    names, rows = [], []
    for number, boxes in enumerate(read_boxes(path), start=1):
        names.append(boxes.name)
        sizes = boxes.bboxes[:, 2:] - boxes.bboxes[:, :2]
        corners = np.concatenate([boxes.bboxes[:, :2], sizes], axis=1)
        for corner, kind, is_ignored in zip(corners, boxes.labels, boxes.is_ignored, strict=True):
            rows.append((number, int(kind) + 1, int(is_ignored), corner.tolist()))
    return names, rows


def compare(path: Path) -> int:
    names, rows = our_annotations(path)
    their_names, annotations = toolkit_annotations(path)
    assert names == their_names
    assert len(rows) == len(annotations)
    for row, theirs in zip(rows, annotations, strict=True):
        assert row[:3] == (theirs["image_id"], theirs["category_id"], theirs["iscrowd"])
        np.testing.assert_allclose(row[3], theirs["bbox"], rtol=0, atol=1e-9)
    return len(rows)


def test_real_labels_are_read_as_by_scalabel(shared_root):
    assert compare(shared_root / "data" / "bdd100k_cases" / "det" / "gt.json") == 3241


def test_real_results_are_read_as_by_scalabel(shared_root, tmp_path):
    source = shared_root / "data" / "bdd100k_cases" / "det" / "bbox_predictions.json"
    path = tmp_path / "results.json"  # Scalabel's reader takes a second for 40 frames
    path.write_text(json.dumps(json.loads(source.read_text())[:40]))
    assert compare(path) > 1000
    frames = toolkit_module("scalabel.label.io").load(str(path)).frames
    scores = [one.score for found in frames for one in found.labels or ()]
    assert np.concatenate([boxes.scores for boxes in read_boxes(path)]).tolist() == scores
    empty = source.with_name("bbox_predictions_empty.json")
    assert sum(len(boxes.labels) for boxes in read_boxes(empty)) == 0


def test_mapped_ignored_and_crowded_categories_are_the_toolkits(tmp_path):
    names = [*BDD_BOX_CLASSES, *NAME_MAPPING, *IGNORED_MAPPING]
    labels = [label(number, name) for number, name in enumerate(names)]
    labels.append(label(30, "car", attributes={"crowd": True}))
    labels.append(label(31, "car", attributes={"ignored": True}))
    labels.append(label(32, "car", attributes=None))
    labels.append({"id": "33", "category": "car", "poly2d": []})  # no box: not read
    path = tmp_path / "labels.json"
    path.write_text(json.dumps([frame("a.jpg", *labels), frame("b.jpg")]))
    assert compare(path) == len(names) + 3
    first, second = read_boxes(path)
    assert first.is_ignored.sum() == len(IGNORED_MAPPING) + 2
    assert (second.name, second.bboxes.shape, second.labels.dtype) == ("b.jpg", (0, 4), np.int64)


def test_mappings_are_the_toolkits():
    config = toolkit_module("bdd100k.common.utils").load_bdd100k_config("det")
    assert config.name_mapping == NAME_MAPPING
    assert config.ignored_mapping == IGNORED_MAPPING


def test_all_of_the_formats_outer_forms_are_read(tmp_path):
    frames = [frame("a.jpg", label(1)), frame("b.jpg")]
    path = tmp_path / "labels.json"
    for content in (
        frames,
        {"frames": frames},
        {"config": {"categories": []}, "frames": frames, "groups": None},
    ):
        for indent in (None, 2):
            path.write_text(json.dumps(content, indent=indent))
            assert [found["name"] for found in read_frames(path)] == ["a.jpg", "b.jpg"]
    path.write_text("[]")
    assert list(read_frames(path)) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such label file"),
        ("", "not a label file"),
        ('[{"name": "a.jpg"}', "not a label file"),
        ('[{"name": "a.jpg"}] 1', "something follows its end"),
        ("{}", "it has no frames"),
        ('[{"labels": []}]', "frame 0 is no object with a name"),
        ('[{"name": "a"}, 3]', "frame 1 is no object with a name"),
        (b"\xff\xfe", "not a label file"),
    ],
)
def test_a_file_of_another_form_is_named(tmp_path, content, message):
    path = tmp_path / "labels.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as caught:
        list(read_frames(path))
    assert caught.value.path == str(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category": "tram"}, "category 'tram' is neither one of the ten classes nor mapped to one"),
        ({"category": "peson"}, "Did you mean 'person'"),
        ({"category": None}, "category None"),
        ({"category": ["car"]}, "category"),
        ({"box2d": {"x1": 9, "y1": 1, "x2": 8.5, "y2": 3}}, r"x2 < x1 or y2 < y1: \(9, 1, 8.5, 3\)"),
        ({"box2d": {"x1": 9, "y1": 4, "x2": 9, "y2": 3}}, "x2 < x1 or y2 < y1"),
        ({"box2d": {"x1": 1, "y1": 1, "x2": 64.5, "y2": 3}}, "leaves the image of 64×36 by 1.5 pixels"),
        ({"box2d": {"x1": -2, "y1": 1, "x2": 4, "y2": 3}}, "by 2 pixels"),
        ({"box2d": {"x1": 70, "y1": 1, "x2": 80, "y2": 3}}, "leaves the image"),
        ({"box2d": {"x1": float("nan"), "y1": 1, "x2": 4, "y2": 3}}, "four finite numbers"),
        ({"box2d": {"x1": 10**400, "y1": 1, "x2": 4, "y2": 3}}, "four finite numbers"),
        ({"box2d": {"x1": True, "y1": 1, "x2": 4, "y2": 3}}, "four finite numbers"),
        ({"box2d": {"x1": 1, "y1": 1, "x2": 4}}, "four finite numbers"),
        ({"box2d": [1, 2, 3, 4]}, "four finite numbers"),
        ({"score": "high"}, "score must be a finite number"),
        ({"attributes": [1]}, "attributes must be an object"),
    ],
)
def test_a_defective_label_is_told_and_the_others_are_read(change, message):
    boxes, problems = frame_boxes(
        frame("a.jpg", label(1), {**label(2), **change, "id": "bad"}, label(3)), size=(64, 36)
    )
    assert len(boxes.labels) == 2
    (problem,) = problems
    assert problem.startswith("label bad: ")
    assert re.search(message, problem)


def test_labels_that_are_no_objects():
    assert frame_boxes({"name": "a", "labels": {}})[1] == ["labels must be a list, found dict."]
    assert frame_boxes({"name": "a", "labels": [3]})[1] == ["label 0: it must be an object, found int."]


def test_boxes_may_end_one_pixel_outside():
    """BDD100K's own do: x2 = 1280 in images of 1280 columns."""
    edge = {"x1": -1, "y1": 0, "x2": 64, "y2": 36}
    assert frame_boxes(frame("a.jpg", label(1, box2d=edge)), size=(64, 36))[1] == []


def test_reading_a_file_names_frame_and_file(tmp_path):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps([frame("a.jpg", label(1)), frame("b.jpg", label(2, "tram"))]))
    with pytest.raises(DataError, match="label 0002: category 'tram'") as caught:
        list(read_boxes(path))
    assert (caught.value.sample_token, caught.value.path) == ("b.jpg", str(path))


def test_memory_is_bounded_by_a_frame(tmp_path):
    """A file is read in pieces: frames come before it has been read to its end."""
    path = tmp_path / "labels.json"
    with path.open("w") as file:
        file.write("[")
        for number in range(60):
            found = {**frame(f"{number}.jpg", label(number)), "url": "x" * 100_000}
            file.write(("," if number else "") + json.dumps(found))
        file.write("broken")
    frames = read_frames(path)
    assert next(frames)["name"] == "0.jpg"
    with pytest.raises(DataError):
        list(frames)
