"""A small model with one decoder for boxes and map, and items with a map of its grid."""

from typing import Any

import torch
from mmengine.structures import PixelData

from perception.models import BEVFormer, PatchSegHead
from perception.registry import MODELS
from tests.models.small import GRID, make_item, small_config

TASKS = ("cls", "box", "velocity", "seg")
MAP_SHAPE, PATCH_SHAPE = (64, 80), (8, 10)
SEG: dict[str, Any] = {
    "map_x_range": (-48.0, 48.0),
    "map_y_range": (-60.0, 60.0),
    "map_resolution": 1.5,
    "patch_size": 12.0,
    **GRID,
}


def unified_model(seed: int = 0, **changes: Any) -> BEVFormer:
    """The small model with patch queries, seeded, with attention weights that are not zero."""
    torch.manual_seed(seed)
    config = {**small_config(**changes), "seg_head": {"type": PatchSegHead, **SEG}}
    model: BEVFormer = MODELS.build(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sampling_offsets.weight" in name or "attention_weights.weight" in name:
                parameter.normal_(std=0.1)
    return model


def make_unified_item(seed: int, *, with_map: bool = True, **options: Any) -> dict[str, Any]:
    """As `make_item`, its map on the grid of `unified_model`."""
    item = make_item(seed, with_map=False, **options)
    if with_map:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, 4, (1, *MAP_SHAPE), generator=generator)
        item["data_samples"].gt_bev_seg = PixelData(sem_seg=labels)
    return item
