"""Export folders with small graphs made by hand, of the signature that real ones have, and their function in NumPy."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from perception.runtime import NMS, GridSpec, ImageSpec, Manifest, Streaming, TensorSpec, write_manifest
from perception.runtime.proof import compare_steps, run_steps, write_steps
from perception.utils import write_json_atomic

CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
CELLS, CHANNELS = 8, 3
CLASSES = ("car", "bus", "pedestrian", "barrier")
MAP_CLASSES = ("background", "divider")
# x, y, z of the bottom, l, w, h, yaw, vx, vy; the last has score 0 and is none
BOXES = np.array(
    [
        [5.0, 10.0, -1.8, 4.0, 2.0, 1.5, 0.5, 3.0, 4.0],
        [-8.0, 20.0, -1.7, 10.0, 3.0, 3.0, -2.0, 0.1, 0.1],
        [3.0, -6.0, -1.8, 0.7, 0.7, 1.8, 3.0, 0.0, 1.0],
        [0.0, 15.0, -1.8, 0.5, 2.0, 1.0, 1.0, 0.0, 0.0],
        [9.0, 9.0, 9.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0],
    ],
    np.float32,
)
SCORES = np.array([0.9, 0.8, 0.6, 0.3, 0.0], np.float32)
LABELS = np.array([0, 1, 2, 3, 0], np.int64)
IMAGE_BOXES = np.array([[0, 0, 8, 8], [0, 0, 8, 9], [0, 0, 8, 9], [2, 2, 6, 6], [1, 1, 2, 2]], np.float32)
IMAGE_LABELS = np.array([0, 0, 1, 2, 0], np.int64)


def bevformer(inputs: Mapping[str, np.ndarray], map_shape: tuple[int, int] = (4, 6)) -> dict[str, np.ndarray]:
    """What the rig's graph computes."""
    brightness = inputs["images"].astype(np.float32).mean(axis=(1, 2, 3, 4)) / 255
    motion = inputs["ego_motion"].sum(axis=1) * np.float32(0.01)
    camera = inputs["lidar2img"].mean(axis=(1, 2, 3)) * np.float32(1e-4)
    bev = (
        np.zeros((len(brightness), CELLS, CHANNELS), np.float32)
        + (brightness + motion + camera)[:, None, None]
    )
    if "prev_bev" in inputs:
        bev = bev + inputs["prev_bev"] * (inputs["use_prev_bev"] * np.float32(0.5))[:, None, None]
    shift = bev.mean(axis=(1, 2))
    boxes = np.repeat(BOXES[None], len(bev), axis=0)
    boxes[:, :, 0] += shift[:, None]
    ones = np.ones((len(bev), 1), np.float32)
    seg = np.stack([1 - 0.5 * shift, 0.5 * shift], axis=1)[:, :, None, None] * np.ones(
        (1, 1, *map_shape), np.float32
    )
    found = {"boxes": boxes, "scores": SCORES * ones, "labels": LABELS * ones.astype(np.int64), "seg": seg}
    return found | ({"bev": bev} if "prev_bev" in inputs else {})


def fcos(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the images' graph computes."""
    count = len(inputs["images"])
    found = {"boxes": IMAGE_BOXES, "scores": SCORES, "labels": IMAGE_LABELS}
    repeated = {name: np.repeat(array[None], count, axis=0) for name, array in found.items()}
    return repeated | {"seg": (inputs["images"][..., 0] > 127).astype(np.uint8)}


def write_bevformer(
    folder: Path,
    *,
    batch: str | int = "batch",
    has_history: bool = True,
    streaming: Streaming | None = None,
    map_shape: tuple[int, int] = (4, 6),
    **manifest_fields,
) -> Path:
    """An export folder of a camera rig, with its proof."""
    image = ("uint8", (batch, 6, "height", "width", 3))
    wanted = {
        "images": image,
        "lidar2img": ("float32", (batch, 6, 4, 4)),
        "ego_motion": ("float32", (batch, 18)),
    }
    outputs = {
        "boxes": ("float32", (batch, 5, 9)),
        "scores": ("float32", (batch, 5)),
        "labels": ("int64", (batch, 5)),
        "seg": ("float32", (batch, 2, *map_shape)),
    }
    if has_history:
        wanted["prev_bev"] = outputs["bev"] = ("float32", (batch, CELLS, CHANNELS))
        wanted["use_prev_bev"] = ("float32", (batch,))
    nodes = [
        _node("Cast", "images", "pixels", to=TensorProto.FLOAT),
        _node("ReduceMean", "pixels image_axes", "level", keepdims=0),
        _node("Mul", "level over_255", "brightness"),
        _node("ReduceSum", "ego_motion axis_1", "moved", keepdims=0),
        _node("Mul", "moved motion_factor", "motion"),
        _node("ReduceMean", "lidar2img matrix_axes", "projected", keepdims=0),
        _node("Mul", "projected camera_factor", "camera"),
        _node("Add", "brightness motion", "some"),
        _node("Add", "some camera", "value"),
        _node("Unsqueeze", "value axes_12", "wide"),
        _node("Add", "wide no_cells", "fresh"),
        _node("Mul", "use_prev_bev half", "half_use"),
        _node("Unsqueeze", "half_use axes_12", "use_wide"),
        _node("Mul", "prev_bev use_wide", "kept"),
        _node("Add", "fresh kept", "bev"),
        _node("ReduceMean", "bev axes_12" if has_history else "fresh axes_12", "shift", keepdims=1),
        _node("Mul", "shift first_column", "moved_box"),
        _node("Add", "all_boxes moved_box", "boxes"),
        _node("Mul", "shift zero", "nothing"),
        _node("Squeeze", "nothing axis_2", "nothing_flat"),
        _node("Add", "all_scores nothing_flat", "scores"),
        _node("Cast", "nothing_flat", "nothing_whole", to=TensorProto.INT64),
        _node("Add", "all_labels nothing_whole", "labels"),
        _node("Unsqueeze", "shift axis_3", "shift_map"),
        _node("Mul", "shift_map map_slope", "map_part"),
        _node("Add", "map_start map_part", "seg"),
    ]
    if not has_history:
        nodes = [
            node for node in nodes if not {"prev_bev", "use_prev_bev", "use_wide", "kept"} & {*node.input}
        ]
        nodes = [node for node in nodes if "half_use" not in node.input]
    grid = np.ones((1, 1, *map_shape), np.float32)
    slope = np.array([-0.5, 0.5], np.float32).reshape(1, 2, 1, 1)
    constants = {
        "image_axes": np.array([1, 2, 3, 4]),
        "over_255": np.float32(1 / 255),
        "axis_1": np.array([1]),
        "axis_2": np.array([2]),
        "axis_3": np.array([3]),
        "motion_factor": np.float32(0.01),
        "matrix_axes": np.array([1, 2, 3]),
        "camera_factor": np.float32(1e-4),
        "axes_12": np.array([1, 2]),
        "no_cells": np.zeros((1, CELLS, CHANNELS), np.float32),
        "half": np.float32(0.5),
        "zero": np.float32(0),
        "first_column": np.eye(1, 9, dtype=np.float32)[None],
        "all_boxes": BOXES[None],
        "all_scores": SCORES[None],
        "all_labels": LABELS[None],
        "map_slope": slope * grid,
        "map_start": np.array([1, 0], np.float32).reshape(1, 2, 1, 1) * grid,
    }
    rng = np.random.default_rng(0)
    steps = []
    rows = batch if isinstance(batch, int) else 1
    for number in range(3):
        step = {
            "images": rng.integers(0, 256, (rows, 6, 4, 5, 3), np.uint8),
            "lidar2img": rng.normal(size=(rows, 6, 4, 4)).astype(np.float32),
            "ego_motion": rng.normal(size=(rows, 18)).astype(np.float32),
        }
        if has_history:
            step["use_prev_bev"] = np.full(rows, float(number > 0), np.float32)
        steps.append(step)
    manifest = _manifest(
        "bevformer",
        wanted,
        outputs,
        cameras=CAMERAS,
        point_cloud_range=(-50.0, -50.0, -5.0, 50.0, 50.0, 3.0),
        bev=GridSpec(shape=(4, 2), range=(-50.0, -50.0, 50.0, 50.0)),
        seg=GridSpec(shape=map_shape, range=(-15.0, -30.0, 15.0, 30.0)),
        streaming=streaming or Streaming(max_gap_s=2.0, max_jump_m=50.0),
        **manifest_fields,
    )
    history = np.zeros((rows, CELLS, CHANNELS), np.float32) if has_history else None
    expected = list(run_steps(lambda inputs: bevformer(inputs, map_shape), steps, history))
    return _write(folder, manifest, nodes, constants, steps, expected)


def write_fcos(folder: Path, *, batch: str | int = "batch", **manifest_fields) -> Path:
    """An export folder of single images, whose boxes still need thinning out, with its proof."""
    wanted = {"images": ("uint8", (batch, "height", "width", 3))}
    outputs = {
        "boxes": ("float32", (batch, 5, 4)),
        "scores": ("float32", (batch, 5)),
        "labels": ("int64", (batch, 5)),
        "seg": ("uint8", (batch, "height", "width")),
    }
    nodes = [
        _node("Cast", "images", "pixels", to=TensorProto.FLOAT),
        _node("ReduceMean", "pixels image_axes", "level", keepdims=0),
        _node("Mul", "level zero", "nothing"),
        _node("Unsqueeze", "nothing axis_1", "nothing_row"),
        _node("Unsqueeze", "nothing_row axis_2", "nothing_wide"),
        _node("Add", "all_boxes nothing_wide", "boxes"),
        _node("Add", "all_scores nothing_row", "scores"),
        _node("Cast", "nothing_row", "nothing_whole", to=TensorProto.INT64),
        _node("Add", "all_labels nothing_whole", "labels"),
        _node("Gather", "pixels first", "red", axis=3),
        _node("Greater", "red middle", "is_bright"),
        _node("Cast", "is_bright", "seg", to=TensorProto.UINT8),
    ]
    constants = {
        "image_axes": np.array([1, 2, 3]),
        "zero": np.float32(0),
        "axis_1": np.array([1]),
        "axis_2": np.array([2]),
        "all_boxes": IMAGE_BOXES[None],
        "all_scores": SCORES[None],
        "all_labels": IMAGE_LABELS[None],
        "first": np.array(0),
        "middle": np.float32(127),
    }
    rng = np.random.default_rng(0)
    rows = batch if isinstance(batch, int) else 1
    steps = [{"images": rng.integers(0, 256, (rows, 6, 8, 3), np.uint8)} for _ in range(2)]
    manifest = _manifest(
        "fcos",
        wanted,
        outputs,
        nms=NMS(iou=0.6, score=0.05, max_num=3),
        seg=GridSpec(shape=("height", "width")),
        **manifest_fields,
    )
    return _write(folder, manifest, nodes, constants, steps, list(run_steps(fcos, steps)))


def _manifest(kind: str, inputs: dict, outputs: dict, **more) -> Manifest:
    fields = {
        "kind": kind,
        "name": f"toy_{kind}",
        "created": "2026-01-01T00:00:00Z",
        "versions": {"perception": "0.1.0", "onnxruntime": "1.31.1", "opset": 20},
        "variants": {"fp32": "model.onnx"},
        "inputs": _specs(inputs),
        "outputs": _specs(outputs),
        "classes": {"boxes": CLASSES, "seg": MAP_CLASSES},
        "image": ImageSpec(network_size=(5, 4), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        "training_config": {},
        "checkpoint": {"name": "step_00000001", "sha256": "0" * 64, "step": 1},
    }
    return Manifest(**{**fields, **more})


def _specs(values: dict) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=name, dtype=dtype, shape=shape) for name, (dtype, shape) in values.items())


def _node(kind: str, inputs: str, output: str, **attributes) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def _write(
    folder: Path, manifest: Manifest, nodes: list, constants: dict, steps: list, expected: list
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "toy",
        [_value(spec) for spec in manifest.inputs],
        [_value(spec) for spec in manifest.outputs],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / "model.onnx")
    write_steps(folder / "proof_inputs.npz", steps)
    write_steps(folder / "proof_outputs.npz", expected)
    tolerances = {name: {"max": 1e-5, "mean": 1e-6} for name in compare_steps(expected, expected)}
    content = {"format": 1, "steps": len(steps), "tolerances": {"fp32": tolerances}, "measured": {}}
    write_json_atomic(folder / "proof.json", content)
    write_manifest(folder, manifest)
    return folder


def _value(spec: TensorSpec) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
    return helper.make_tensor_value_info(spec.name, kind, list(spec.shape))
