"""Last step for images with 2D labels: arrays become the tensors and data sample that collate and model take."""

from typing import Any, Literal

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData, PixelData

from perception.datasets.transforms._base import Transform
from perception.registry import TRANSFORMS

_META_KEYS = ("img_id", "frame_name", "img_path", "ori_shape", "scale_factor", "flip")


@TRANSFORMS.register_module()
class PackImageInputs(Transform):
    """Pack one image. Boxes are clipped to it; what is left of a box may be too small to learn from.

    A kind of label that the frame does not have is absent from the data sample, not empty: "no car here" and "nobody
    looked for cars" are two things.

    Args:
        min_box_size: a clipped box narrower or lower than this, pixels, is too small.
        too_small: what becomes of such a box: "drop" it, or "ignore" it (its place then counts neither as object nor
            as background).

    Returns a dict:
        inputs.img: (3, H, W) uint8, BGR.
        data_samples: `DetDataSample` with, where the frame has them, `gt_instances` (bboxes (n, 4) float32, labels
            (n,) int64), `ignored_instances` (bboxes), `gt_sem_seg` (sem_seg (1, H, W) int64), `pseudo_instances` (also
            scores (n,)), `pseudo_sem_seg`; and metainfo: img_id, frame_name (also as sample_token, which names a
            sample in logs), img_path, ori_shape, img_shape, scale_factor, flip.

    Raises:
        ValueError: a mask has another size than the image, or an option is out of range.
    """

    def __init__(self, *, min_box_size: float = 1.0, too_small: Literal["drop", "ignore"] = "drop") -> None:
        if min_box_size <= 0:
            raise ValueError(f"min_box_size must be positive, got {min_box_size}.")
        if too_small not in ("drop", "ignore"):
            raise ValueError(f"too_small must be 'drop' or 'ignore', got {too_small!r}.")
        self._min_box_size = min_box_size
        self._too_small = too_small

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Pack."""
        image = results["img"]
        metainfo = {key: results[key] for key in _META_KEYS} | {"sample_token": results["frame_name"]}
        sample = DetDataSample(metainfo={**metainfo, "img_shape": tuple(image.shape[:2])})
        if "gt_bboxes" in results:
            boxes, sides = _clip(results["gt_bboxes"], image.shape)
            is_large = (sides >= self._min_box_size).all(axis=1)
            is_crowd = results["gt_ignored"]
            is_object = is_large & ~is_crowd
            is_ignored = is_crowd & is_large
            if self._too_small == "ignore":
                is_ignored = ~is_object & (sides > 0).all(axis=1)
            sample.gt_instances = _instances(
                bboxes=boxes[is_object], labels=results["gt_labels"][is_object].astype(np.int64)
            )
            sample.ignored_instances = _instances(bboxes=boxes[is_ignored])
        if "pseudo_bboxes" in results:
            boxes, sides = _clip(results["pseudo_bboxes"], image.shape)
            is_kept = (sides >= self._min_box_size).all(axis=1)
            sample.pseudo_instances = _instances(
                bboxes=boxes[is_kept],
                labels=results["pseudo_labels"][is_kept].astype(np.int64),
                scores=results["pseudo_scores"][is_kept].astype(np.float32),
            )
        for key in ("gt_sem_seg", "pseudo_sem_seg"):
            if key in results:
                setattr(sample, key, _pixels(results[key], image.shape, key))
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))  # (3, H, W)
        return {"inputs": {"img": pixels}, "data_samples": sample}


def _clip(boxes: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(n, 4) boxes inside the image, and the (n, 2) widths and heights that are left."""
    height, width = shape[:2]
    clipped = np.clip(boxes, 0, np.array([width, height, width, height])).astype(np.float32)
    return clipped, clipped[:, 2:] - clipped[:, :2]


def _instances(**fields: np.ndarray) -> InstanceData:
    return InstanceData(**{name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in fields.items()})


def _pixels(mask: np.ndarray, shape: tuple[int, ...], key: str) -> PixelData:
    if mask.shape != shape[:2]:
        raise ValueError(
            f"{key} is {mask.shape[1]}×{mask.shape[0]} and the image {shape[1]}×{shape[0]}; add ResizeImage to the "
            "pipeline behind LoadImage2D and LoadSegMask, or decode in full."
        )
    return PixelData(sem_seg=torch.from_numpy(mask.astype(np.int64))[None])
