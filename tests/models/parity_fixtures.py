"""Reading the official code's numbers (see the parity folder's README) into this project's model."""

import json
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from perception.checkpoint.upstream import convert_state
from perception.models import BEVEncoder, BoxHead
from perception.registry import MODELS
from tests.models.official_configs import convert_head_config
from tests.parity import require


def convert_boxes(boxes: Tensor) -> Tensor:
    """Upstream's (x, y, z, w, l, h, yaw, ...) → today's (x, y, z, l, w, h, yaw, ...)."""
    boxes = boxes[..., [0, 1, 2, 4, 3, 5, 6, 7, 8]].clone()
    boxes[..., 6] = -boxes[..., 6] - math.pi / 2
    return boxes


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
    parts = convert_head_config(config)
    encoder, head = MODELS.build(parts["bev_encoder"]), MODELS.build(parts["box_head"])
    official = {k.removeprefix("state_dict/"): v for k, v in arrays.items() if k.startswith("state_dict/")}
    ours = convert_state(official)
    for prefix, module in (("bev_encoder.", encoder), ("box_head.", head)):
        module.load_state_dict({k.removeprefix(prefix): v for k, v in ours.items() if k.startswith(prefix)})
    height, width = info["img_shape_hw"]
    return Fixture(arrays, config, (height, width), encoder, head)
