"""From an upstream-style config (as the parity folder has them) to a config of this project's model."""

from typing import Any

from mmdet.models.backbones import ResNet
from mmdet.models.necks import FPN

from perception.models import BEVDataPreprocessor, BEVEncoder, BEVFormer, BoxHead, SegHead


def convert_model_config(official: dict[str, Any]) -> dict[str, Any]:
    """Upstream's detector config → `BEVFormer`'s; what only training needs is left out."""
    backbone = {key: value for key, value in official["img_backbone"].items() if key != "type"}
    neck = {key: value for key, value in official["img_neck"].items() if key != "type"}
    return {
        "type": BEVFormer,
        "data_preprocessor": {"type": BEVDataPreprocessor},
        "img_backbone": {"type": ResNet, **backbone},
        "img_neck": {"type": FPN, **neck},
        **convert_head_config(official["pts_bbox_head"]),
    }


def convert_head_config(official: dict[str, Any]) -> dict[str, Any]:
    """Upstream's head config → those of our encoder and heads."""
    transformer = official["transformer"]
    encoder, decoder = transformer["encoder"], transformer["decoder"]
    temporal, spatial = encoder["transformerlayers"]["attn_cfgs"]
    coder = official["bbox_coder"]
    dims = transformer["embed_dims"]
    bev = {
        "pc_range": encoder["pc_range"],
        "bev_h": official["bev_h"],
        "bev_w": official["bev_w"],
        "embed_dims": dims,
    }
    parts = {
        "bev_encoder": {
            "type": BEVEncoder,
            **bev,
            "num_layers": encoder["num_layers"],
            "num_levels": spatial["deformable_attention"].get("num_levels", 4),
            "num_heads": temporal.get("num_heads", 8),
            "ffn_dims": encoder["transformerlayers"]["feedforward_channels"],
            "dropout": 0.0,
            "upstream_compat": {"rotate_center": list(transformer.get("rotate_center", (100, 100)))},
        },
        "box_head": {
            "type": BoxHead,
            **bev,
            "num_query": official["num_query"],
            "num_layers": decoder["num_layers"],
            "num_heads": decoder["transformerlayers"]["attn_cfgs"][0].get("num_heads", 8),
            "ffn_dims": decoder["transformerlayers"]["feedforward_channels"],
            "dropout": 0.0,
            "max_num": coder["max_num"],
            "post_center_range": coder["post_center_range"],
        },
    }
    if "seg_encoder" in official:
        parts["seg_head"] = {
            "type": SegHead,
            **bev,
            "map_resolution": official["map_grid_conf"]["xbound"][2],
            "upstream_compat": {
                "map_divisors": [_outermost(official, "xbound"), _outermost(official, "ybound")]
            },
        }
    return parts


def _outermost(official: dict[str, Any], axis: str) -> float:
    """Where upstream takes the outermost BEV cells' centres to be, metres."""
    low, _, step = official["det_grid_conf"][axis]
    return -(low + step / 2)
