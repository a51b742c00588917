"""Graphs of small models: the same function as the model's own prediction, and as onnxruntime's run of them."""

import copy

import numpy as np
import onnx
import pytest
import torch
from mmcv.ops import batched_nms
from torch.testing import assert_close

from perception.export.capture import OPSET, capture, to_onnx
from perception.export.half import to_half
from perception.export.onnx_model import check_model, operators, save_model, scope_of
from perception.export.proving import (
    ProofError,
    empty_history,
    first_group,
    group_differences,
    open_session,
    prove,
    prove_program,
    run_reference,
)
from perception.export.quantise import to_int8
from perception.runtime.proof import read_proof
from tests.export.graphs import SOURCE, bev_graph, image_graph, random_steps, tensors
from tests.models.images import collate_images, image_item
from tests.models.small import IMAGE, collate, make_item

MODELS = {
    "boxes and map": lambda: bev_graph(encoder={"max_cameras_per_cell": 3}),
    "no history, no map": lambda: bev_graph(use_history=False, seg=None),
    "map alone": lambda: bev_graph(box=None),
    "unified": lambda: bev_graph("unified"),
    "upstream": lambda: bev_graph(
        seg=None, upstream_compat={"rotate_center": (5.0, 5.0), "aliased_shift": True}
    ),
    "images": image_graph,
    "images, boxes alone": lambda: image_graph(seg=None),
}


def write(module, folder, *, batch=1, is_open=False):
    example = module.example(2 if is_open else batch, SOURCE)
    graph = to_onnx(module, capture(module, example, is_batch_open=is_open))
    save_model(graph.model, folder / "model.onnx")
    return graph


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The smallest model with everything, its graph and the folder of it."""
    module = bev_graph(encoder={"num_layers": 1, "max_cameras_per_cell": 3}, box={"num_layers": 1})
    folder = tmp_path_factory.mktemp("tiny")
    return module, write(module, folder), folder


def check_graph(module, graph, folder):
    assert set(operators(graph.model)) == {""}
    assert [(entry.domain, entry.version) for entry in graph.model.opset_import] == [("", OPSET)]
    assert tuple(value.name for value in graph.model.graph.input) == module.input_names
    assert tuple(value.name for value in graph.model.graph.output) == module.output_names
    check_model(graph.model)
    measured = prove(folder, {"fp32": "model.onnx"}, module, random_steps(module), graph.taps)["fp32"]
    assert set(measured) == set(module.output_names)
    proof = read_proof(folder)
    assert proof.content["measured"]["fp32"] == measured
    assert set(proof.content["groups"]["fp32"]) <= {"backbone", "neck", "encoder", "decoder", "heads"}
    assert set(proof.outputs[-1]) == set(module.output_names)


def test_onnxruntime_computes_what_torch_does(tiny):
    check_graph(*tiny)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_of_model_is_the_same_in_onnxruntime(kind, tmp_path):
    module = MODELS[kind]()
    check_graph(module, write(module, tmp_path), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["boxes and map", "images"])
def test_an_open_batch_takes_any_number_and_any_image(kind, tmp_path):
    module = MODELS[kind]()
    graph = write(module, tmp_path, is_open=True)
    for batch, source in ((1, (200, 144)), (3, SOURCE)):
        prove(tmp_path, {"fp32": "model.onnx"}, module, random_steps(module, 2, batch, source), graph.taps)


def test_nodes_tell_their_layers_and_nothing_of_this_machine(tiny):
    _, graph, folder = tiny
    scopes = {scope_of(node) for node in graph.model.graph.node}
    assert {"img_backbone.conv1", "bev_encoder.layers.0.ffn.linear1"} <= scopes
    assert b"/perception/" not in (folder / "model.onnx").read_bytes()


def test_the_graph_module_predicts_as_the_model():
    module = bev_graph()
    model = module.model
    items = [make_item(seed, num_frames=1) for seed in (3, 4)]
    for item in items:
        item["inputs"]["has_prev"][:] = False
    batch = model.data_preprocessor(collate(items), False)
    expected = model(**batch, mode="predict")
    images = torch.stack([item["inputs"]["img"][0] for item in items]).flip(2).permute(0, 1, 3, 4, 2)
    module.prepare.size, module.prepare.crop_top = (IMAGE[1], IMAGE[0]), 0
    matrices = torch.stack([item["inputs"]["lidar2img"][0] for item in items])
    motion = torch.stack([item["inputs"]["ego_motion"][0] for item in items])
    history = module.example(2, SOURCE)["prev_bev"] + 1.0
    found = module(images, matrices, history, motion, torch.zeros(2))
    for row, sample in enumerate(expected):
        count = len(sample.pred_instances_3d.scores_3d)
        assert_close(found["scores"][row, :count], sample.pred_instances_3d.scores_3d, atol=1e-5, rtol=0)
        assert not found["scores"][row, count:].any()
        assert_close(
            found["boxes"][row, :count], sample.pred_instances_3d.bboxes_3d.tensor, atol=1e-4, rtol=0
        )
        classes = found["seg"][row].argmax(dim=0)
        assert (classes == sample.pred_bev_seg.sem_seg[0]).float().mean() > 0.999
    assert_close(found["seg"].sum(dim=1), torch.ones_like(found["seg"][:, 0]))


def test_history_counts_where_it_shall():
    module = bev_graph()
    first, second = random_steps(module, 2)
    bev = module(*tensors(module, first))["bev"]
    alone = module(*tensors(module, first, bev))["bev"]
    assert_close(alone, bev)
    followed = module(*tensors(module, second, bev))["bev"]
    without = module(*tensors(module, second))["bev"]
    assert (followed - without).abs().max() > 1e-2


def test_a_cell_that_too_many_cameras_see_makes_the_graph_s_answer_not_finite(tiny):
    module, _, folder = tiny
    step = random_steps(module, 1)[0].inputs
    same = {**step, "lidar2img": step["lidar2img"][:, :1].repeat(step["lidar2img"].shape[1], axis=1)}
    run = open_session(folder / "model.onnx", module.output_names)
    history = {"prev_bev": module.example(1, SOURCE)["prev_bev"].numpy()}
    assert np.isfinite(run({**step, **history})["bev"]).all()
    assert np.isnan(run({**same, **history})["bev"]).any()


def test_the_image_graph_predicts_as_the_model():
    module = image_graph()
    model = module.model
    module.prepare.interpolation = "bilinear"
    items = [image_item(seed) for seed in (1, 2)]
    for item in items:
        sample = item["data_samples"]
        sample.set_metainfo({"ori_shape": sample.img_shape, "scale_factor": (1.0, 1.0)})
    expected = model(**model.data_preprocessor(collate_images(items), False), mode="predict")
    images = torch.stack([item["inputs"]["img"] for item in items]).flip(1).permute(0, 2, 3, 1)
    found = module(images)
    for row, sample in enumerate(expected):
        keep = found["scores"][row] > 0
        boxes, scores, labels = (found[name][row][keep] for name in ("boxes", "scores", "labels"))
        nms = {"type": "nms", "iou_threshold": model.box_head.nms_iou, "max_num": model.box_head.max_num}
        kept, index = batched_nms(boxes, scores, labels, nms)
        # Scores that differ in the last bit may change places, so each box is compared with the nearest of its class.
        predicted = sample.pred_instances
        mine = torch.cat([kept[:, :4], labels[index, None] * 1e4], dim=1)
        theirs = torch.cat([predicted.bboxes, predicted.labels[:, None] * 1e4], dim=1)
        nearest = torch.cdist(theirs, mine, compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)
        assert len(nearest.unique()) == len(predicted) == len(kept)
        assert_close(kept[nearest, 4], predicted.scores, atol=1e-6, rtol=0)
        assert_close(mine[nearest], theirs, atol=1e-4, rtol=0)
        assert (found["seg"][row] == sample.pred_sem_seg.sem_seg[0]).float().mean() > 0.999
    assert found["seg"].dtype == torch.uint8


def test_a_changed_weight_fails_the_proof_and_names_the_layers(tiny, tmp_path):
    module, graph, _ = tiny
    model = copy.deepcopy(graph.model)
    scale_weight(model, "bev_encoder.layers.0.ffn.linear2", 2.0)
    save_model(model, tmp_path / "model.onnx")
    with pytest.raises(ProofError, match=r"model\.onnx: bev .*first layer group that differs is the encoder"):
        prove(tmp_path, {"fp32": "model.onnx"}, module, random_steps(module), graph.taps)


def scale_weight(model, scope, factor):
    """Multiply the weights of a layer's operators."""
    used = {name for node in model.graph.node if scope_of(node) == scope for name in node.input}
    found = [tensor for tensor in model.graph.initializer if tensor.name in used and len(tensor.dims) == 2]
    assert found
    for tensor in found:
        tensor.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(factor), tensor.name)
        )


def test_the_first_group_over_the_limit_is_named():
    differences = {"backbone": 1e-7, "neck": 3e-3, "encoder": 0.5}
    assert first_group(differences, 1e-4).startswith("the neck")
    assert first_group(differences, 1.0).startswith("the encoder")


def check_half(module, graph, folder):
    half = to_half(graph.model)
    save_model(half, folder / "model_fp16.onnx")
    assert half.ByteSize() < graph.model.ByteSize()
    kinds = {
        value.name: value.type.tensor_type.elem_type for value in (*half.graph.input, *half.graph.output)
    }
    assert onnx.TensorProto.FLOAT16 not in kinds.values()
    by_name = {node.name: node for node in half.graph.node}
    halved = {
        tensor.name for tensor in half.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16
    }
    assert all(
        any(name in halved for name in node.input)
        for name, node in by_name.items()
        if node.op_type == "Conv" and name.startswith("img_backbone")
    )
    assert not any(
        value in halved
        for name, node in by_name.items()
        if name.startswith(("graph", "box_head.reg_branches"))
        for value in node.input
    )
    prove(folder, {"fp16": "model_fp16.onnx"}, module, random_steps(module), graph.taps)


def test_half_precision_stays_close_and_keeps_geometry(tiny, tmp_path):
    module, graph, _ = tiny
    check_half(module, graph, tmp_path)


@pytest.mark.slow
def test_half_precision_of_images(tmp_path):
    module = image_graph()
    check_half(module, write(module, tmp_path), tmp_path)


def test_a_weight_beyond_half_precision_is_named(tiny):
    model = copy.deepcopy(tiny[1].model)
    scale_weight(model, "bev_encoder.layers.0.ffn.linear2", 1e8)
    with pytest.raises(ValueError, match="beyond float16's range"):
        to_half(model)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["boxes and map", "images"])
def test_eight_bits_run_and_stay_near(kind, tmp_path):
    module = MODELS[kind]()
    write(module, tmp_path)
    steps = random_steps(module, 4)
    to_int8(
        tmp_path / "model.onnx",
        tmp_path / "model_int8.onnx",
        module.input_names,
        module.output_names,
        steps,
        empty_history(module, steps),
    )
    model = onnx.load(tmp_path / "model_int8.onnx")
    kinds = [node.op_type for node in model.graph.node]
    assert {"QuantizeLinear", "DequantizeLinear"} <= set(kinds)
    assert set(operators(model)) == {""}
    reference = run_reference(module, steps)
    differences = group_differences(
        tmp_path / "model_int8.onnx", module, reference, {"backbone": ["tap_backbone_0"]}
    )
    assert 0.0 < differences["backbone"] < 0.2


@pytest.mark.slow
def test_a_torch_package_is_the_same_function(tmp_path):
    module = bev_graph()
    module.has_taps = False
    torch.export.save(capture(module, module.example(1, SOURCE), is_batch_open=False), tmp_path / "model.pt2")
    measured = prove_program(tmp_path / "model.pt2", module, random_steps(module, 2))
    assert np.isfinite(measured["bev"]["max"])
