"""The proof: repeated, and failing where a graph, a file or an output is not what it was."""

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from perception.runtime import ModelError, read_manifest, verify_export, write_manifest
from perception.runtime.__main__ import main
from perception.runtime.proof import check, compare_steps, read_proof, read_steps, run_steps, write_steps


@pytest.fixture
def export(rig_export, tmp_path):
    return shutil.copytree(rig_export, tmp_path / "export")


def change_constant(folder, name, factor):
    """Another weight in the graph, with a manifest that knows its hash."""
    model = onnx.load(folder / "model.onnx")
    for constant in model.graph.initializer:
        if constant.name == name:
            constant.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(constant) * factor), name))
    onnx.save(model, folder / "model.onnx")
    write_manifest(folder, read_manifest(folder))


def test_the_proof_holds(export, image_export):
    lines = []
    (result,) = verify_export(export, num_threads=1, report=lines.append)
    assert (result.variant, result.steps, result.problems) == ("fp32", 3, [])
    assert set(result.measured) == {"bev", "boxes", "scores", "labels", "seg"}
    assert "4 files have the hashes of the manifest" in lines[0]
    assert len(lines) == 6
    assert not any("count" in line for line in lines)
    assert verify_export(image_export)[0].measured["seg"]["max"] == 0.0


@pytest.mark.parametrize(
    ("constant", "expected"),
    [
        ("over_255", r"fp32: bev \(image backbone, neck and BEV encoder\) differs.*boxes \(box head\)"),
        ("all_boxes", r"is: fp32: boxes \(box head\) differs by \S+ \(max\), allowed 1e-05"),
        ("all_scores", r"is: fp32: scores|says: fp32: scores \(box head\)"),
        ("map_slope", r"says: fp32: seg \(segmentation head\)"),
    ],
)
def test_an_output_that_differs_is_named_with_its_layers(export, constant, expected):
    change_constant(export, constant, np.float32(1.01))
    with pytest.raises(ModelError, match=expected.replace("is: ", "says: ")):
        verify_export(export)


def test_the_history_is_carried(export):
    """Half the history's weight shows from the second step on."""
    change_constant(export, "half", np.float32(0.9))
    proof = read_proof(export)
    from perception.runtime import Graph

    graph = Graph(export)
    found = list(run_steps(graph.run, proof.inputs, graph.empty_history(1)))
    assert compare_steps(proof.outputs[:1], found[:1])["bev"]["max"] < 1e-6
    assert compare_steps(proof.outputs[1:], found[1:])["bev"]["max"] > 1e-3


def test_a_changed_file_fails_before_anything_runs(export):
    (export / "proof_outputs.npz").write_bytes(b"x")
    with pytest.raises(ModelError, match="proof_outputs.npz is damaged or was exchanged"):
        verify_export(export)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "proof.json").unlink(), "there is no proof.json"),
        (lambda folder: (folder / "proof.json").write_text("{}"), "proof.json is not complete"),
        (
            lambda folder: (folder / "proof.json").write_text('{"format": 2, "steps": 1, "tolerances": {}}'),
            "has format 2, this version reads 1",
        ),
        (
            lambda folder: (folder / "proof.json").write_text('{"format": 1, "steps": 3, "tolerances": {}}'),
            "no tolerances for the fp32 graph",
        ),
        (lambda folder: (folder / "proof_inputs.npz").write_bytes(b"PK"), "arrays are not readable"),
        (
            lambda folder: write_steps(folder / "proof_outputs.npz", [{"depth": np.zeros(1)}] * 3),
            "no output 'depth'",
        ),
        (
            lambda folder: write_steps(folder / "proof_outputs.npz", [{"bev": np.zeros(1)}] * 3),
            r"bev is \(1, 8, 3\)",
        ),
    ],
)
def test_a_proof_that_is_none(export, change, message):
    change(export)
    write_manifest(export, read_manifest(export))
    with pytest.raises(ModelError, match=message):
        verify_export(export)


def test_a_graph_that_is_none(export):
    (export / "model.onnx").write_bytes(b"not a graph")
    write_manifest(export, read_manifest(export))
    with pytest.raises(ModelError, match="onnxruntime .* cannot open the graph"):
        verify_export(export)


def test_a_graph_of_another_signature(export, image_export):
    shutil.copy(image_export / "model.onnx", export / "model.onnx")
    write_manifest(export, read_manifest(export))
    with pytest.raises(ModelError, match="the graph's inputs are .* the manifest's"):
        verify_export(export)


def test_boxes_that_swap_places_are_the_same_boxes():
    rng = np.random.default_rng(0)
    scores = np.array([0.9, 0.5, 0.5 - 1e-7, 0.2, 0.1, 0.05], np.float32)[None]
    boxes, labels = rng.normal(size=(1, 6, 9)).astype(np.float32), np.array([[0, 1, 1, 0, 1, 0]])
    order = [0, 2, 1, 3, 4, 5]
    reference = {"boxes": boxes, "scores": scores, "labels": labels}
    swapped = {"boxes": boxes[:, order], "scores": scores, "labels": labels[:, order]}
    assert compare_steps([reference], [swapped])["boxes"]["max"] == 0
    turned = {**reference, "boxes": boxes + np.eye(9, dtype=np.float32)[6] * np.float32(2 * np.pi)}
    assert compare_steps([reference], [turned])["boxes"]["max"] < 1e-6
    moved = boxes.copy()
    moved[0, 1, 4] += 0.25
    assert compare_steps([reference], [{**reference, "boxes": moved}])["boxes"]["max"] == pytest.approx(0.25)
    other = np.array([[0, 1, 1, 2, 1, 0]])
    lost = compare_steps([{**reference, "labels": other}], [reference])["labels"]
    share = pytest.approx(1 / 5)  # the last box lies at the cut
    assert lost == {"max": share, "mean": share, "count": 5}
    low = boxes.copy()
    low[0, 3:] += 5
    found = [{**reference, "boxes": low}]
    assert compare_steps([reference], found, min_score=0.3)["boxes"]["max"] == 0
    assert compare_steps([reference], found)["boxes"]["max"] > 1


def test_a_box_that_one_side_alone_has_is_no_difference_of_scores():
    scores = np.array([0.9, 0.5, 0.4, 0.3], np.float32)[None]
    boxes, labels = np.arange(16, dtype=np.float32).reshape(1, 4, 4), np.zeros((1, 4), np.int64)
    reference = {"boxes": boxes, "scores": scores, "labels": labels}
    fewer = {**reference, "scores": scores * [[1, 1, 1, 0]]}
    for pair in ((reference, fewer), (fewer, reference)):
        measured = compare_steps([pair[0]], [pair[1]])
        assert measured["scores"]["max"] == 0
        assert 0 < measured["labels"]["max"] < 1
    none = compare_steps([reference], [{**reference, "scores": scores * 0}])
    assert none["labels"]["mean"] == 1.0
    unknown = compare_steps([reference], [{**reference, "scores": scores * np.float32(np.nan)}])
    assert unknown["scores"]["max"] == np.inf


def test_of_classes_the_share_of_other_ones_is_told():
    same, other = ({"seg": np.array([[0, 1, 2, seen]])} for seen in (3, 4))
    assert compare_steps([same, same], [same, other])["seg"] == {"max": 0.25, "mean": 0.125, "count": 8}


def test_what_is_not_finite_or_not_measured_fails():
    measured = compare_steps([{"bev": np.zeros(2)}], [{"bev": np.array([0.0, np.nan])}])
    (problem,) = check(measured, {"bev": {"max": 1.0}})
    assert problem.found == np.inf
    (problem,) = check({}, {"seg": {"mean": 1.0}})
    assert str(problem) == "seg (segmentation head) was not measured, allowed 1"


def test_steps_are_read_as_they_were_written(tmp_path):
    steps = [{"a": np.arange(3, dtype=np.uint8)}, {"a": np.zeros((2, 2)), "b": np.ones(1, np.float32)}]
    write_steps(tmp_path / "x.npz", steps)
    for mine, theirs in zip(read_steps(tmp_path / "x.npz", 2), steps, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            np.testing.assert_array_equal(mine[name], theirs[name])
            assert mine[name].dtype == theirs[name].dtype
    with pytest.raises(ModelError, match="not readable"):
        read_steps(tmp_path / "x.npz", 1)
    with pytest.raises(ValueError, match="0/a holds objects"):
        write_steps(tmp_path / "x.npz", [{"a": np.array([None])}])


def test_the_bare_command(export, capsys):
    assert main(["verify", str(export), "--variant", "fp32", "--threads", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "verified"
    assert main(["verify", str(export), "--variant", "int8"]) == 2
    assert "no variant 'int8'" in capsys.readouterr().err
    content = json.loads((export / "model.json").read_text())
    (export / "model.json").write_text(json.dumps({**content, "kind": "fcos"}))
    assert main(["verify", str(export)]) == 4
    assert "was changed after the export" in capsys.readouterr().err
