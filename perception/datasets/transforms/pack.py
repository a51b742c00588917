"""Last step: arrays become the tensors and data sample that the collate function and the model take."""

from typing import Any

import numpy as np
import torch
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.structures import InstanceData, PixelData

from perception.datasets.transforms._base import Transform
from perception.registry import TRANSFORMS

_META_KEYS = (
    "sample_token",
    "prev_token",
    "scene_token",
    "scene_name",
    "frame_idx",
    "timestamp",
    "map_location",
    "ego2global",
    "lidar2ego",
    "bev_aug",
)


@TRANSFORMS.register_module()
class PackBEVInputs(Transform):
    """Pack an item. F frames oldest first, N cameras.

    Args:
        with_images: False leaves out `inputs.img` and the metainfo `img_shape`: for what looks at ground truth only.

    Returns a dict:
        inputs.img: (F, N, 3, H, W) uint8, BGR.
        inputs.lidar2img: (F, N, 4, 4), pixels of these images.
        inputs.ego_motion: (F, 18), see `perception.structures.ego_motion`.
        inputs.has_prev: (F,) bool.
        data_samples: `Det3DDataSample` with `gt_instances_3d` (bboxes_3d, labels_3d), `gt_bev_seg` (sem_seg: (1, rows,
            columns) int64) where the sample has a map, and the metainfo of the current sample.

    Raises:
        ValueError: the images have different sizes.
    """

    def __init__(self, *, with_images: bool = True) -> None:
        self._with_images = with_images

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Pack."""
        frames = results["frames"]
        inputs = {"img": self._stack_images(frames)} if self._with_images else {}
        inputs |= {
            "lidar2img": _float_tensor([frame["lidar2img"] for frame in frames]),
            "ego_motion": _float_tensor([frame["ego_motion"] for frame in frames]),
            "has_prev": torch.tensor([frame["has_prev"] for frame in frames]),
        }
        sample = self._data_sample(results)
        if self._with_images:
            sample.set_metainfo({"img_shape": tuple(inputs["img"].shape[-2:])})
        return {"inputs": inputs, "data_samples": sample}

    def _stack_images(self, frames: list[dict[str, Any]]) -> torch.Tensor:
        shapes = {image.shape for frame in frames for image in frame["img"]}
        if len(shapes) != 1:
            raise ValueError(
                f"all images of an item must have one size, got {sorted(shapes)}; add ResizeMultiView(size=…)."
            )
        images = np.stack([image for frame in frames for image in frame["img"]])  # (F·N, H, W, 3)
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))  # (F·N, 3, H, W)
        images = images.reshape(len(frames), -1, *images.shape[1:])  # (F, N, 3, H, W)
        return torch.from_numpy(images)

    def _data_sample(self, results: dict[str, Any]) -> Det3DDataSample:
        metainfo = {key: results[key] for key in _META_KEYS}
        if "carried_token" in results:  # a frame of a stream
            metainfo["carried_token"] = results["carried_token"]
        metainfo |= {"img_paths": dict(results["frames"][-1]["img_paths"])}
        sample = Det3DDataSample(metainfo=metainfo)
        boxes = torch.from_numpy(results["gt_bboxes_3d"]).float()
        sample.gt_instances_3d = InstanceData(
            bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9),
            labels_3d=torch.from_numpy(results["gt_labels_3d"]),
        )
        if "gt_bev_seg" in results:
            sample.gt_bev_seg = PixelData(sem_seg=torch.from_numpy(results["gt_bev_seg"]).long()[None])
        return sample


def _float_tensor(arrays: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(arrays)).float()
