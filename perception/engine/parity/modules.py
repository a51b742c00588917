"""Our modules from an official config."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mmdet.models.backbones import ResNet
from mmdet.models.necks import FPN
from torch import Tensor, nn

from perception.models import BEVDataPreprocessor, BEVEncoder, BEVFormer, BoxHead, SegHead
from perception.models.box_assigner import HungarianAssigner
from perception.models.upstream_compat import UpstreamCompat
from perception.registry import MODELS

Config = Mapping[str, Any]


def upstream_compat(head: Config, *, is_binze: bool) -> UpstreamCompat:
    """The switches with which our model does what an official head does.

    Args:
        head: the official `pts_bbox_head`.
        is_binze: whether it is Bin-ze's code, which has the aliased shift.
    """
    center_x, center_y = head["transformer"].get("rotate_center", (100, 100))
    divisors = None
    if "det_grid_conf" in head:
        # The map's x axis is the LiDAR's y axis, and the other way round.
        (x_start, _, x_step), (y_start, _, y_step) = (head["det_grid_conf"][f"{axis}bound"] for axis in "xy")
        divisors = (-(y_start + y_step / 2), -(x_start + x_step / 2))
    return UpstreamCompat(
        rotate_center=(center_x, center_y),
        aliased_shift=is_binze,
        first_sample_cameras=True,
        first_sample_history=True,
        mixed_temporal_query=True,
        drop_unknown_velocity=True,
        lower_score_threshold=True,
        map_divisors=divisors,
    )


def encoder_config(head: Config, compat: Config) -> dict[str, Any]:
    """Arguments of `BEVEncoder`; dropout is off, as in the fixtures.

    Raises:
        ValueError: the config switches something off that our encoder always does.
    """
    transformer = head["transformer"]
    for flag in ("rotate_prev_bev", "use_shift", "use_can_bus"):
        if not transformer.get(flag, True):
            raise ValueError(f"an official config with {flag}=False has no counterpart here.")
    encoder = transformer["encoder"]
    temporal, spatial = encoder["transformerlayers"]["attn_cfgs"]
    sampling = spatial["deformable_attention"]
    return {
        "type": BEVEncoder,
        **_grid(head),
        "num_layers": encoder["num_layers"],
        "num_cams": transformer.get("num_cams", 6),
        "num_levels": sampling.get("num_levels", 4),
        "num_level_embeds": transformer.get("num_feature_levels", 4),
        "num_heads": _same_heads(temporal, sampling),
        "num_points_in_pillar": encoder.get("num_points_in_pillar", 4),
        "num_points_temporal": temporal.get("num_points", 4),
        "num_points_spatial": sampling.get("num_points", 8),
        "ffn_dims": _ffn_dims(encoder["transformerlayers"]),
        "dropout": 0.0,
        "upstream_compat": compat,
    }


def box_head_config(head: Config, compat: Config) -> dict[str, Any]:
    """Arguments of `BoxHead`; dropout is off, as in the fixtures."""
    decoder = head["transformer"]["decoder"]
    attention, cross = decoder["transformerlayers"]["attn_cfgs"]
    coder = head["bbox_coder"]
    return {
        "type": BoxHead,
        **_grid(head),
        "num_classes": head["num_classes"],
        "num_query": head["num_query"],
        "num_layers": decoder["num_layers"],
        "num_heads": _same_heads(attention, cross),
        "num_points": cross.get("num_points", 4),
        "ffn_dims": _ffn_dims(decoder["transformerlayers"]),
        "dropout": 0.0,
        "with_box_refine": head.get("with_box_refine", False),
        "loss_cls_weight": head["loss_cls"]["loss_weight"],
        "loss_box_weight": head["loss_bbox"]["loss_weight"],
        "max_num": coder["max_num"],
        "score_threshold": coder.get("score_threshold"),
        "post_center_range": coder["post_center_range"],
        "upstream_compat": compat,
    }


def seg_head_config(head: Config, compat: Config) -> dict[str, Any]:
    """Arguments of `SegHead`.

    Raises:
        ValueError: the map's pixels are not square.
    """
    (y_min, y_max, step), (down_min, down_max, down_step) = (
        head["map_grid_conf"][f"{axis}bound"] for axis in "xy"
    )
    if step != down_step:
        raise ValueError(f"map_grid_conf has pixels of {step} by {down_step} m; ours are square.")
    return {
        "type": SegHead,
        **_grid(head),
        "map_x_range": (-down_max, -down_min),  # rows run along −x
        "map_y_range": (y_min, y_max),
        "map_resolution": step,
        "num_classes": head["seg_encoder"]["outC"],
        "class_weights": head["loss_seg"]["class_weight"],
        "loss_ce_weight": head["loss_seg"]["loss_weight"],
        "upstream_compat": compat,
    }


def head_configs(head: Config, *, is_binze: bool) -> dict[str, dict[str, Any]]:
    """Configs of `bev_encoder`, and of `box_head` and `seg_head` where the official head has them."""
    compat = asdict(upstream_compat(head, is_binze=is_binze))
    configs = {"bev_encoder": encoder_config(head, compat)}
    task = head.get("task", {})
    if task.get("det", True):
        configs["box_head"] = box_head_config(head, compat)
    if task.get("seg", False):
        configs["seg_head"] = seg_head_config(head, compat)
    return configs


def build_heads(head: Config, state: Mapping[str, Tensor], *, is_binze: bool) -> nn.ModuleDict:
    """`bev_encoder`, and `box_head` and `seg_head` where the config has them, with their weights.

    Args:
        head: the official `pts_bbox_head`.
        state: our names → tensors.
        is_binze: whether it is Bin-ze's code.
    """
    configs = head_configs(head, is_binze=is_binze)
    heads = nn.ModuleDict({name: MODELS.build(config) for name, config in configs.items()})
    heads.load_state_dict(state)
    if "box_head" in heads:
        set_assigner(heads["box_head"], head.get("train_cfg"))
    return heads


def detector_config(config: Config, *, is_binze: bool) -> dict[str, Any]:
    """Config of `BEVFormer` for an official `model` config.

    Raises:
        ValueError: backbone or neck are not a ResNet and an FPN.
    """
    backbone, neck, head = (dict(config[key]) for key in ("img_backbone", "img_neck", "pts_bbox_head"))
    types = backbone.pop("type"), neck.pop("type")
    if types != ("ResNet", "FPN"):
        raise ValueError(f"backbone and neck must be ResNet and FPN, got {types}.")
    return {
        "type": BEVFormer,
        "data_preprocessor": {"type": BEVDataPreprocessor},
        "img_backbone": {"type": ResNet, **backbone},
        "img_neck": {"type": FPN, **neck},
        **head_configs(head, is_binze=is_binze),
    }


def build_detector(config: Config, state: Mapping[str, Tensor], *, is_binze: bool) -> BEVFormer:
    """The whole detector of an official `model` config, with its weights."""
    model: BEVFormer = MODELS.build(detector_config(config, is_binze=is_binze))
    model.load_state_dict(state)
    if model.box_head is not None:
        set_assigner(model.box_head, config.get("train_cfg", {}).get("pts"))
    return model


def set_assigner(box_head: nn.Module, train_cfg: Config | None) -> None:
    """Give the box head the official matching weights, which are not tied to the losses' there."""
    if train_cfg is not None:
        costs = train_cfg["assigner"]
        box_head.assigner = HungarianAssigner(
            cls_weight=costs["cls_cost"]["weight"], box_weight=costs["reg_cost"]["weight"]
        )


def _grid(head: Config) -> dict[str, Any]:
    transformer = head["transformer"]
    return {
        "pc_range": transformer["encoder"]["pc_range"],
        "bev_h": head["bev_h"],
        "bev_w": head["bev_w"],
        "embed_dims": transformer["embed_dims"],
    }


def _ffn_dims(layer: Config) -> int:
    # mmcv lets the layer's own (deprecated) key win over that of ffn_cfgs.
    return (
        layer["feedforward_channels"]
        if "feedforward_channels" in layer
        else layer["ffn_cfgs"]["feedforward_channels"]
    )


def _same_heads(first: Config, second: Config) -> int:
    heads = {attention.get("num_heads", 8) for attention in (first, second)}
    if len(heads) > 1:
        raise ValueError(
            f"both attentions of a layer must have the same number of heads, got {sorted(heads)}."
        )
    return heads.pop()
