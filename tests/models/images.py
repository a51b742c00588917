"""A small FCOS multi-task model and seeded images for it, labelled for both tasks, one or none."""

from typing import Any

import torch
from mmdet.models.backbones import ResNet
from mmdet.models.necks import FPN
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from perception.models import FCOSHead2D, FCOSMultiTask, ImageDataPreprocessor, PanopticFPNHead

IMAGE = (60, 96)
PADDED = (64, 96)
ORIGINAL = (120, 192)
NUM_SEG = 5
PYRAMID = {
    "in_channels": 16,
    "levels": (0, 1, 2),
    "strides": (4, 8, 16),
    "feat_channels": 16,
    "num_groups": 4,
}
PARTS = ("img", "gt_instances", "pseudo_instances", "ignored", "gt_sem_seg", "pseudo_sem_seg")
RANGES = ((-1.0, 24.0), (24.0, 48.0), (48.0, 1e8))


def image_config(**changes: Any) -> dict[str, Any]:
    """Config of the small model; `box` and `seg` change the heads, None leaves one out."""
    box = {"type": FCOSHead2D, "stacked_convs": 1, "regress_ranges": RANGES, "num_classes": 10, **PYRAMID}
    seg = {"type": PanopticFPNHead, "num_classes": NUM_SEG, "common_stride": 4, **PYRAMID}
    parts = {"box": box, "seg": seg}
    for name, part in parts.items():
        change = changes.pop(name, {})
        parts[name] = None if change is None else {**part, **change}
    return {
        "type": FCOSMultiTask,
        "data_preprocessor": {"type": ImageDataPreprocessor, "pad_size_divisor": 16},
        "img_backbone": {
            "type": ResNet,
            "depth": 18,
            "base_channels": 4,
            "num_stages": 3,
            "strides": (1, 2, 2),
            "dilations": (1, 1, 1),
            "out_indices": (0, 1, 2),
            "norm_eval": False,
            "zero_init_residual": False,
        },
        "img_neck": {"type": FPN, "in_channels": [4, 8, 16], "out_channels": 16, "num_outs": 3},
        "box_head": parts["box"],
        "seg_head": parts["seg"],
        **changes,
    }


def image_model(seed: int = 0, **changes: Any) -> FCOSMultiTask:
    """The small model, seeded and initialised; its box head says something from the start."""
    torch.manual_seed(seed)
    config = image_config(**changes)
    config.pop("type")
    model = FCOSMultiTask(**config)
    model.init_weights()
    if model.box_head is not None:
        with torch.no_grad():
            model.box_head.conv_cls.bias.fill_(-1.0)
            model.box_head.conv_reg.bias.fill_(1.0)
    return model


def random_boxes(generator: torch.Generator, num: int, size: tuple[int, int] = IMAGE) -> Tensor:
    """(n, 4), inside an image of (rows, columns), from 2 pixels to nearly all of it."""
    rows, columns = size
    limits = torch.tensor([columns, rows], dtype=torch.float32)
    sides = torch.rand(num, 2, generator=generator) ** 2 * (limits - 4) + 2
    corners = torch.rand(num, 2, generator=generator) * (limits - sides)
    return torch.cat([corners, corners + sides], dim=1)


def image_item(
    seed: int,
    *,
    boxes: int | None = 4,
    mask: bool = True,
    pseudo_boxes: int | None = None,
    pseudo_mask: bool = False,
    ignored: int = 0,
    size: tuple[int, int] = IMAGE,
) -> dict[str, Any]:
    """One data set item; None and False: not labelled for this task, which 0 boxes are."""
    # A generator for each part: what one label says does not depend on whether another is there.
    generators = {name: torch.Generator().manual_seed(10 * seed + n) for n, name in enumerate(PARTS)}
    generator = generators["img"]
    image = torch.randint(0, 255, (3, *size), dtype=torch.uint8, generator=generator)
    sample = DetDataSample(
        metainfo={
            "img_id": seed,
            "frame_name": f"frame{seed}",
            "ori_shape": ORIGINAL,
            "img_shape": size,
            "scale_factor": (size[1] / ORIGINAL[1], size[0] / ORIGINAL[0]),
        }
    )
    for name, count in (("gt_instances", boxes), ("pseudo_instances", pseudo_boxes)):
        if count is not None:
            found = InstanceData(bboxes=random_boxes(generators[name], count, size))
            found.labels = torch.randint(0, 10, (count,), generator=generators[name])
            setattr(sample, name, found)
    if boxes is not None:
        sample.ignored_instances = InstanceData(bboxes=random_boxes(generators["ignored"], ignored, size))
    for name, is_there in (("gt_sem_seg", mask), ("pseudo_sem_seg", pseudo_mask)):
        if is_there:
            classes = torch.randint(0, NUM_SEG, (1, *size), generator=generators[name])
            classes[:, :5] = 255
            setattr(sample, name, PixelData(sem_seg=classes))
    return {"inputs": {"img": image}, "data_samples": sample}


def image_batch(model: FCOSMultiTask, items: list[dict[str, Any]]) -> dict[str, Any]:
    """Collated and preprocessed for training."""
    return model.data_preprocessor(collate_images(items), True)


def collate_images(items: list[dict[str, Any]]) -> dict[str, Any]:
    """As MMEngine's pseudo_collate."""
    return {
        "inputs": {"img": [item["inputs"]["img"] for item in items]},
        "data_samples": [item["data_samples"] for item in items],
    }
