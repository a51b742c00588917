"""A small BEVFormer and seeded batches for it."""

import math
from typing import Any

import torch
from mmdet.models.backbones import ResNet
from mmdet.models.necks import FPN
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from perception.models import BEVDataPreprocessor, BEVEncoder, BEVFormer, BoxHead, SegHead

PC_RANGE = (-50.0, -60.0, -5.0, 50.0, 60.0, 3.0)
GRID = {"pc_range": PC_RANGE, "bev_h": 12, "bev_w": 10, "embed_dims": 16}
IMAGE = (60, 96)
MAP_SHAPE = (20, 40)


def small_config(**changes: Any) -> dict[str, Any]:
    """Config of the small model; `encoder`, `box` and `seg` change the parts, None leaves a head out."""
    encoder = {"type": BEVEncoder, "num_layers": 2, "num_heads": 2, "dropout": 0.0, **GRID}
    box = {"type": BoxHead, "num_query": 12, "num_layers": 2, "num_heads": 2, "dropout": 0.0, **GRID}
    seg = {"type": SegHead, "width": 4, "map_resolution": 1.5, **GRID}
    parts = {"encoder": encoder, "box": box, "seg": seg}
    for name, part in parts.items():
        change = changes.pop(name, {})
        parts[name] = None if change is None else {**part, **change}
    backbone = {
        "type": ResNet,
        "depth": 18,
        "base_channels": 4,
        "num_stages": 3,
        "strides": (1, 2, 2),
        "dilations": (1, 1, 1),
        "out_indices": (2,),
        "norm_eval": False,
    }
    return {
        "type": BEVFormer,
        "data_preprocessor": {"type": BEVDataPreprocessor, "pad_size_divisor": 16},
        "img_backbone": backbone,
        "img_neck": {"type": FPN, "in_channels": [16], "out_channels": 16, "num_outs": 1},
        "bev_encoder": parts["encoder"],
        "box_head": parts["box"],
        "seg_head": parts["seg"],
        **changes,
    }


def small_model(seed: int = 0, **changes: Any) -> BEVFormer:
    """The small model, seeded, with attention weights that are not zero."""
    torch.manual_seed(seed)
    config = small_config(**changes)
    config.pop("type")
    model = BEVFormer(**config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sampling_offsets.weight" in name or "attention_weights.weight" in name:
                parameter.normal_(std=0.1)
    return model


def ring_of_cameras(image: tuple[int, int] = IMAGE, height: float = 0.3, num_cams: int = 6) -> Tensor:
    """(N, 4, 4) lidar2img of cameras that look outwards all around, 70° wide."""
    rows, columns = image
    focal = columns / 2 / math.tan(math.radians(35))
    intrinsics = torch.tensor([[focal, 0, columns / 2], [0, focal, rows / 2], [0, 0, 1.0]])
    matrices = []
    for camera in range(num_cams):
        yaw = 2 * math.pi * camera / num_cams
        right = torch.tensor([math.cos(yaw), -math.sin(yaw), 0.0])
        forward = torch.tensor([math.sin(yaw), math.cos(yaw), 0.0])
        rotation = torch.stack([right, torch.tensor([0.0, 0.0, -1.0]), forward])
        matrix = torch.eye(4)
        matrix[:3, :3] = intrinsics @ rotation
        matrix[:3, 3] = intrinsics @ rotation @ torch.tensor([0.0, 0.0, height])
        matrices.append(matrix)
    return torch.stack(matrices)


def make_item(seed: int, *, num_frames: int = 2, num_boxes: int = 5, with_map: bool = True) -> dict[str, Any]:
    """One data set item; every seed gives other images, cameras, motion and ground truth."""
    generator = torch.Generator().manual_seed(seed)
    cameras = ring_of_cameras(height=0.2 + 0.1 * (seed % 5))
    has_prev = torch.ones(num_frames, dtype=torch.bool)
    has_prev[0] = False
    motion = torch.randn(num_frames, 18, generator=generator)
    motion[:, 17] *= 20
    sample = Det3DDataSample(
        metainfo={"sample_token": f"token{seed}", "prev_token": f"token{seed - 100}", "scene_token": "scene"}
    )
    boxes = torch.rand(num_boxes, 9, generator=generator)
    boxes[:, :2] = boxes[:, :2] * 60 - 30
    boxes[:, 3:6] = boxes[:, 3:6] * 3 + 0.5
    labels = torch.randint(0, 10, (num_boxes,), generator=generator)
    sample.gt_instances_3d = InstanceData(bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9), labels_3d=labels)
    if with_map:
        sample.gt_bev_seg = PixelData(sem_seg=torch.randint(0, 4, (1, *MAP_SHAPE), generator=generator))
    return {
        "inputs": {
            "img": torch.randint(0, 255, (num_frames, 6, 3, *IMAGE), dtype=torch.uint8, generator=generator),
            "lidar2img": cameras[None].repeat(num_frames, 1, 1, 1),
            "ego_motion": motion,
            "has_prev": has_prev,
        },
        "data_samples": sample,
    }


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """As MMEngine's pseudo_collate."""
    return {
        "inputs": {key: [item["inputs"][key] for item in items] for key in items[0]["inputs"]},
        "data_samples": [item["data_samples"] for item in items],
    }


def make_batch(model: BEVFormer, items: list[dict[str, Any]]) -> dict[str, Any]:
    """Collated and preprocessed."""
    return model.data_preprocessor(collate(items), False)
