"""`model.json`: written, read back, and refused wherever it or a file beside it is not what it was."""

import json
import pickle
from dataclasses import replace

import pytest

from perception.runtime import (
    FORMAT,
    NMS,
    GridSpec,
    ImageSpec,
    Manifest,
    ModelError,
    Streaming,
    TensorSpec,
    check_files,
    graph_file,
    is_export,
    read_manifest,
    write_manifest,
)


@pytest.fixture
def manifest():
    image = ("batch", 2, "height", "width", 3)
    return Manifest(
        kind="bevformer",
        name="tiny",
        created="2026-01-01T00:00:00Z",
        versions={"perception": "0.1.0", "opset": 20},
        variants={"fp32": "model.onnx"},
        inputs=(
            TensorSpec(name="images", dtype="uint8", shape=image, unit="0..255"),
            TensorSpec(name="prev_bev", dtype="float32", shape=("batch", 8, 4)),
        ),
        outputs=(TensorSpec(name="bev", dtype="float32", shape=("batch", 8, 4), frame="LiDAR"),),
        classes={"boxes": ("car",), "seg": ()},
        cameras=("CAM_FRONT", "CAM_BACK"),
        image=ImageSpec(
            network_size=(64, 32), mean=(1.0, 2.0, 3.0), std=(1.0, 1.0, 1.0), resize=(64, 40), crop_top=8
        ),
        point_cloud_range=(-1.0, -1.0, -1.0, 1.0, 1.0, 1.0),
        bev=GridSpec(shape=(4, 2), range=(-1.0, -1.0, 1.0, 1.0), layout="rows along y"),
        streaming=Streaming(max_gap_s=1.5),
        training_config={"model": {"type": "BEVFormer", "heads": [1, 2.5, None]}},
        checkpoint={"name": "step_00000010", "sha256": "0" * 64, "step": 10},
    )


@pytest.fixture
def folder(manifest, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"graph")
    (tmp_path / "weights.safetensors").write_bytes(b"weights")
    write_manifest(tmp_path, manifest)
    return tmp_path


def reseal(folder, **changes):
    """A `model.json` with other content and a seal that fits it."""
    from perception.runtime.manifest import _seal

    content = {**json.loads((folder / "model.json").read_text()), **changes}
    content.pop("sha256")
    (folder / "model.json").write_text(json.dumps({**content, "sha256": _seal(content)}))


def test_round_trip(folder, manifest):
    assert is_export(folder)
    found = read_manifest(folder)
    assert set(found.files) == {"model.onnx", "weights.safetensors"}
    assert replace(found, files={}) == manifest
    assert found.has_history
    assert found.input("images").shape == ("batch", 2, "height", "width", 3)
    check_files(folder, found)
    assert graph_file(folder, found, "fp32") == folder / "model.onnx"


def test_images_have_no_range_but_nms(manifest, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"graph")
    flat = replace(
        manifest,
        kind="fcos",
        cameras=(),
        bev=None,
        streaming=None,
        point_cloud_range=None,
        nms=NMS(iou=0.6, score=0.05, max_num=100),
        seg=GridSpec(shape=("height", "width")),
    )
    write_manifest(tmp_path, flat)
    found = read_manifest(tmp_path)
    assert replace(found, files={}) == flat
    assert found.seg.range is None


def test_a_changed_file_is_named_with_both_hashes(folder):
    manifest = read_manifest(folder)
    (folder / "model.onnx").write_bytes(b"other")
    with pytest.raises(
        ModelError, match="model.onnx is damaged.*expected sha256 [0-9a-f]{64}, actual [0-9a-f]{64}"
    ):
        check_files(folder, manifest)
    check_files(folder, manifest, ["weights.safetensors"])


def test_a_missing_file_is_named(folder):
    (folder / "weights.safetensors").unlink()
    with pytest.raises(ModelError, match="weights.safetensors is missing"):
        check_files(folder, read_manifest(folder))
    with pytest.raises(ModelError, match="no hash of other.onnx"):
        check_files(folder, read_manifest(folder), ["other.onnx"])


def test_a_variant_without_its_file_is_not_written(folder, manifest):
    with pytest.raises(ModelError, match="model_int8.onnx, the int8 graph"):
        write_manifest(folder, replace(manifest, variants={"fp32": "model.onnx", "int8": "model_int8.onnx"}))


def test_an_unknown_variant_lists_those_there_are(folder):
    with pytest.raises(ValueError, match="no variant 'fp16', it has fp32.*--precision"):
        graph_file(folder, read_manifest(folder), "fp16")


def test_a_folder_that_is_no_export(tmp_path):
    assert not is_export(tmp_path)
    with pytest.raises(ModelError, match="no model.json.*perception export"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not readable JSON"), ("[]", "names no format"), ('{"a": 1}', "names no format")],
)
def test_not_a_manifest(tmp_path, text, message):
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(ModelError, match=message):
        read_manifest(tmp_path)


def test_a_newer_format_asks_for_an_update(folder):
    reseal(folder, format=FORMAT + 1)
    with pytest.raises(
        ModelError, match=f"has format {FORMAT + 1}, this version reads {FORMAT}. Update perception"
    ):
        read_manifest(folder)


def test_an_edited_manifest_is_refused(folder):
    content = json.loads((folder / "model.json").read_text())
    content["point_cloud_range"][0] = -2.0
    (folder / "model.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="was changed after the export"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "yolo"}, "kind 'yolo', known are bevformer, fcos"),
        ({"inputs": None}, "is not complete"),
        ({"files": {"../weights": "0"}}, "outside its folder"),
    ],
)
def test_wrong_content(folder, changes, message):
    reseal(folder, **changes)
    with pytest.raises(ModelError, match=message):
        read_manifest(folder)


def test_the_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(ModelError("no graph", path="x")))  # noqa: S301  our own bytes
    assert (str(error), error.path) == ("no graph [x]", "x")
