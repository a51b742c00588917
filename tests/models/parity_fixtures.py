"""Reading the official code's numbers (see the parity folder's README) into this project's model."""

import json
import math
import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from perception.models import BEVEncoder, BoxHead
from tests.parity import require

RENAMES = (
    (r"^pts_bbox_head\.transformer\.encoder\.layers\.", "bev_encoder.layers."),
    (r"^pts_bbox_head\.transformer\.decoder\.layers\.", "box_head.decoder."),
    (r"^pts_bbox_head\.transformer\.reference_points\.", "box_head.reference_points."),
    (r"^pts_bbox_head\.transformer\.", "bev_encoder."),
    (r"^pts_bbox_head\.(bev_embedding|positional_encoding)", r"bev_encoder.\1"),
    (r"^pts_bbox_head\.seg_decoder\.", "seg_head.seg_encode."),
    (r"^pts_bbox_head\.", "box_head."),
    (r"^(bev_encoder\.layers\.\d+)\.attentions\.0\.", r"\1.temporal_self_attention."),
    (
        r"^(bev_encoder\.layers\.\d+)\.attentions\.1\.(deformable_attention\.)?",
        r"\1.spatial_cross_attention.",
    ),
    (r"^(box_head\.decoder\.\d+)\.attentions\.0\.attn\.", r"\1.self_attention."),
    (r"^(box_head\.decoder\.\d+)\.attentions\.1\.", r"\1.cross_attention."),
    (r"\.ffns\.0\.layers\.0\.0\.", ".ffn.linear1."),
    (r"\.ffns\.0\.layers\.1\.", ".ffn.linear2."),
)
CODE_ORDER = [0, 1, 3, 2, 4, 5, 7, 6, 8, 9]
"""Where today's code channels lie in upstream's: w and l, sin and cos change places."""
CODE_SIGN = torch.tensor([1.0, 1, 1, 1, 1, 1, -1, -1, 1, 1])
"""(sin, cos) → (−cos, −sin)."""


def rename(official: str) -> str:
    """Official parameter name → ours."""
    for pattern, replacement in RENAMES:
        official = re.sub(pattern, replacement, official)
    return official


def convert_code(code: Tensor) -> Tensor:
    """Upstream's box code on the last axis → today's."""
    return code[..., CODE_ORDER] * CODE_SIGN


def convert_boxes(boxes: Tensor) -> Tensor:
    """Upstream's (x, y, z, w, l, h, yaw, ...) → today's (x, y, z, l, w, h, yaw, ...)."""
    boxes = boxes[..., [0, 1, 2, 4, 3, 5, 6, 7, 8]].clone()
    boxes[..., 6] = -boxes[..., 6] - math.pi / 2
    return boxes


def convert_state(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official state dict → ours, regression outputs in today's convention."""
    state = {}
    for name, value in official.items():
        ours = rename(name)
        if re.fullmatch(r"box_head\.reg_branches\.\d+\.4\.(weight|bias)", ours):
            sign = CODE_SIGN.to(value.dtype)
            value = value[CODE_ORDER] * (sign[:, None] if value.dim() == 2 else sign)
        state[ours] = value
    return state


@dataclass(frozen=True)
class Fixture:
    """One fixture: its arrays, its config, and our modules with its weights."""

    arrays: dict[str, Tensor]
    config: dict
    image_shape: tuple[int, int]
    encoder: BEVEncoder
    head: BoxHead

    def features(self, frame: int) -> list[Tensor]:
        prefix = f"inputs/frame{frame}/mlvl_feats"
        count = sum(key.startswith(prefix) for key in self.arrays)
        return [self.arrays[f"{prefix}{level}"] for level in range(count)]

    def encode(self, frame: int, prev_bev: Tensor | None) -> Tensor:
        inputs = f"inputs/frame{frame}"
        return self.encoder(
            self.features(frame),
            self.arrays[f"{inputs}/lidar2img"][None],
            self.arrays[f"{inputs}/can_bus"][None],
            self.image_shape,
            prev_bev,
        )


def read_arrays(name: str) -> dict[str, Tensor]:
    with np.load(require(f"fixtures/{name}.npz"), allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def load(name: str) -> Fixture:
    arrays = read_arrays(name)
    info = json.loads(require(f"fixtures/{name}.json").read_text())
    config = info["head_config"]
    transformer = config["transformer"]
    encoder_cfg, decoder_cfg = transformer["encoder"], transformer["decoder"]
    temporal, spatial = encoder_cfg["transformerlayers"]["attn_cfgs"]
    grid = {"pc_range": encoder_cfg["pc_range"], "bev_h": config["bev_h"], "bev_w": config["bev_w"]}
    dims = transformer["embed_dims"]
    encoder = BEVEncoder(
        **grid,
        embed_dims=dims,
        num_layers=encoder_cfg["num_layers"],
        num_levels=spatial["deformable_attention"].get("num_levels", 4),
        num_heads=temporal.get("num_heads", 8),
        ffn_dims=encoder_cfg["transformerlayers"]["feedforward_channels"],
        dropout=0.0,
        upstream_compat={"rotate_center": transformer.get("rotate_center", (100, 100))},
    )
    coder = config["bbox_coder"]
    head = BoxHead(
        **grid,
        embed_dims=dims,
        num_query=config["num_query"],
        num_layers=decoder_cfg["num_layers"],
        num_heads=decoder_cfg["transformerlayers"]["attn_cfgs"][0].get("num_heads", 8),
        ffn_dims=decoder_cfg["transformerlayers"]["feedforward_channels"],
        dropout=0.0,
        max_num=coder["max_num"],
        post_center_range=coder["post_center_range"],
    )
    official = {k.removeprefix("state_dict/"): v for k, v in arrays.items() if k.startswith("state_dict/")}
    ours = convert_state(official)
    for prefix, module in (("bev_encoder.", encoder), ("box_head.", head)):
        module.load_state_dict({k.removeprefix(prefix): v for k, v in ours.items() if k.startswith(prefix)})
    height, width = info["img_shape_hw"]
    return Fixture(arrays, config, (height, width), encoder, head)
