"""`model.json` of an export: what goes in, what comes out, in which units and frames."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from mmengine.config import Config
from torch import Tensor

import perception
from perception.config import dump_json
from perception.export.capture import OPSET
from perception.export.graph_module import BEVFormerGraph, GraphModule
from perception.export.samples import Samples
from perception.models import BEVFormer, FCOSMultiTask
from perception.runtime import NMS, GridSpec, ImageSpec, Manifest, Streaming, TensorSpec
from perception.structures import CAMERA_NAMES

_FRAME = "LiDAR: x right, y forward, z up"
_MAP_LAYOUT = "rows along -x (row 0 at x_max), columns along +y (column 0 at y_min)"
_BEV_LAYOUT = (
    "rows along +y (row 0 at y_min), columns along +x (column 0 at x_min); index = row * columns + column"
)
_TEXTS: dict[str, tuple[str, str, str, str]] = {
    "images": (
        "uint8",
        "0..255",
        "pixels",
        "RGB images as decoded, of any size; their last axes are rows, columns, colour",
    ),
    "lidar2img": (
        "float32",
        "m to pixels",
        _FRAME,
        "homogeneous LiDAR points to (u d, v d, d, 1) of the given images",
    ),
    "prev_bev": ("float32", "", _FRAME, "`bev` of the stream's frame before; zeros at its start"),
    "ego_motion": (
        "float32",
        "m, rad, degrees",
        "global",
        "0-2 translation since the frame before, m; 3-6 quaternion w x y z of the pose; 7-9 acceleration, 10-12 "
        "rotation rate, 13-15 velocity of the CAN bus, zeros without it; 16 heading, rad; 17 its change, degrees",
    ),
    "use_prev_bev": (
        "float32",
        "",
        "",
        "1 where `prev_bev` and the change since it count, 0 at a stream's start",
    ),
    "boxes": (
        "float32",
        "m, rad, m/s",
        _FRAME,
        "x, y, z of the bottom's centre, length, width, height, yaw counter-clockwise from x, velocity; best first",
    ),
    "scores": ("float32", "0..1", "", "0 marks rows that are no box; they come last"),
    "labels": ("int64", "", "", "position in classes.boxes"),
    "seg": ("float32", "0..1", _FRAME, "probability of each of classes.seg at every pixel of the map"),
    "bev": ("float32", "", _FRAME, "BEV features, to be handed back as `prev_bev`"),
}
_IMAGE_TEXTS: dict[str, tuple[str, str, str, str]] = {
    "boxes": ("float32", "pixels", "given image", "x1, y1, x2, y2, before suppression of overlapping ones; best first"),
    "seg": ("uint8", "", "given image", "position in classes.seg of the likeliest class; 255 for none"),
}  # fmt: skip


def describe(
    cfg: Config,
    name: str,
    module: GraphModule,
    samples: Samples,
    checkpoint: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]],
    *,
    batch: int | None,
    source_size: tuple[int, int],
    variants: Mapping[str, str],
) -> Manifest:
    """The manifest of an export.

    Args:
        cfg: the training's config.
        name: its short name.
        module: what is exported.
        samples: of the proof; for class names.
        checkpoint: origin of the weights.
        shapes: input or output → its shape in the proof.
        batch: the graph's; None: any.
        source_size: (width, height) of the proof's images.
        variants: "fp32" and so on → file.
    """
    is_bev = isinstance(module, BEVFormerGraph)
    texts = _TEXTS if is_bev else {**_TEXTS, **_IMAGE_TEXTS}

    def spec(name: str) -> TensorSpec:
        dtype, unit, frame, description = texts[name]
        shape: list[int | str] = ["batch" if batch is None else batch, *shapes[name][1:]]
        if name == "images":
            shape[-3:-1] = ["height", "width"]
        if name == "seg" and not is_bev:
            shape[1:] = ["height", "width"]
        return TensorSpec(
            name=name, dtype=dtype, shape=tuple(shape), unit=unit, frame=frame, description=description
        )

    prepare, meta = module.prepare, samples.metainfo
    rows, columns = prepare.shape
    preprocessor = prepare.preprocessor
    mean, std = (
        _by_colour(buffer, preprocessor.bgr_to_rgb) for buffer in (preprocessor.mean, preprocessor.std)
    )
    model: Any = module.model
    seg_classes = meta.get("map_classes" if is_bev else "seg_classes", ())
    return Manifest(
        kind="bevformer" if is_bev else "fcos",
        name=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={
            "perception": perception.__version__,
            **{package: version(package) for package in ("torch", "onnx", "onnxruntime", "onnxscript")},
            "opset": OPSET,
        },
        variants=dict(variants),
        inputs=tuple(spec(name) for name in module.input_names),
        outputs=tuple(spec(name) for name in module.output_names),
        classes={
            **({} if model.box_head is None else {"boxes": tuple(meta["classes"])}),
            **({} if model.seg_head is None else {"seg": tuple(seg_classes)}),
        },
        image=ImageSpec(
            network_size=(columns, rows),
            source_size=source_size,
            mean=mean,
            std=std,
            resize=prepare.size,
            crop_top=prepare.crop_top,
            pad_divisor=preprocessor.pad_size_divisor,
            interpolation=prepare.interpolation,
        ),
        training_config=dump_json(cfg),
        checkpoint=dict(checkpoint),
        **(_bev_parts(model, samples) if is_bev else _image_parts(model)),
    )


def _by_colour(values: Tensor, is_rgb: bool) -> tuple[float, float, float]:
    """A mean or standard deviation, red first."""
    first, second, third = values.flatten().tolist()
    return (first, second, third) if is_rgb else (third, second, first)


def _bev_parts(model: BEVFormer, samples: Samples) -> dict[str, Any]:
    grid = model.bev_encoder.grid
    x_min, y_min, _, x_max, y_max, _ = grid.pc_range
    bev = GridSpec(shape=(grid.bev_h, grid.bev_w), range=(x_min, y_min, x_max, y_max), layout=_BEV_LAYOUT)
    seg = None
    if model.seg_head is not None:
        (left, right), (back, front) = model.seg_head.map_grid.x_range, model.seg_head.map_grid.y_range
        seg = GridSpec(
            shape=model.seg_head.map_grid.shape, range=(left, back, right, front), layout=_MAP_LAYOUT
        )
    is_upstream = bool(getattr(samples.dataset, "upstream_can_bus", False))
    return {
        "cameras": tuple(CAMERA_NAMES),
        "point_cloud_range": tuple(grid.pc_range),
        "bev": bev,
        "seg": seg,
        "streaming": Streaming(motion="upstream" if is_upstream else "lidar"),
    }


def _image_parts(model: FCOSMultiTask) -> dict[str, Any]:
    head = model.box_head
    nms = None if head is None else NMS(iou=head.nms_iou, score=0.0, max_num=head.max_num)
    seg = (
        None
        if model.seg_head is None
        else GridSpec(shape=("height", "width"), layout="pixels of the given image")
    )
    return {"nms": nms, "seg": seg}
