"""Single-task teachers beside a multi-task model in training: it learns their soft predictions, or their features.

Legend: B batch, P locations of all levels, K classes, C channels, (h, w) cells.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

import torch
import torch.nn.functional as F
from mmdet.models.losses.iou_loss import giou_loss
from torch import Tensor, nn

from perception.checkpoint import check_path, load_weights
from perception.config import ConfigError, load_config
from perception.models.fcos_head import PointOutputs
from perception.registry import MODELS

_PROPOSED = 0.05  # class probability; the box head's default


class Distillation(TypedDict):
    """What a model learns from teachers while it trains.

    teachers: task → run folder of its single-task model.
    kind: "soft" (predictions) or "features".
    weight: factor of the losses.
    """

    teachers: dict[str, str]
    kind: Literal["soft", "features"]
    weight: float


class TaskTeachers(nn.Module):
    """Frozen teachers, one per task, and the loss of differing from them. No label is needed, so no task is absent.

    *Source*: the comparisons of AMTL's Table 8. Neither is told there in formulas; deviations and choices:

    - "soft", after NoisyStudent (Xie et al. 2020): the student is to predict what the teacher does, scores unrounded.
      Theirs labels the image without augmentation; here the teacher sees the student's own input, so that nothing has
      to be moved back, and the student's noise is dropout and the like alone. Classes of locations: focal loss to the
      teacher's probability p, |p − q|² · BCE; boxes: GIoU; centerness: BCE; the latter two weighted by the teacher's
      score, all divided by the sum of these. Pixels: cross-entropy to the teacher's distribution.
    - "features", after KD-MTL (Li and Bilen 2020): the squared distance of the shared features, taken through a
      1 × 1 convolution per task and level, from the teacher's, both of length 1 at each cell. (AMTL's sentence
      has the teacher's features projected; this is KD-MTL's own direction.)

    Teachers are no submodules: they are neither saved, trained nor counted.

    Args:
        teachers: task → run folder, or a step folder or `.safetensors` file in one.
        kind: "soft" or "features".
        weight: factor of the losses.
        in_channels: of the student's shared features.
        levels: task → the levels that the student's head reads.

    Raises:
        ConfigError: a teacher has not its task's head, or reads other levels.
    """

    def __init__(
        self,
        *,
        teachers: Mapping[str, str],
        kind: Literal["soft", "features"],
        weight: float,
        in_channels: int,
        levels: Mapping[str, Sequence[int]],
    ) -> None:
        super().__init__()
        if kind not in ("soft", "features") or weight < 0:
            raise ConfigError(
                f"distillation has kind={kind!r}, weight={weight}; allowed: 'soft' or 'features', from 0"
            )
        unknown = sorted(set(teachers) - set(levels))
        if unknown or not teachers:
            raise ConfigError(
                f"distillation.teachers names {unknown}; the model's tasks are {sorted(levels)}"
            )
        self.kind = kind
        self.weight = float(weight)
        self._teachers = {task: _load(task, path, levels[task]) for task, path in teachers.items()}
        self.adapters = nn.ModuleDict()
        for task in teachers if kind == "features" else ():
            width = int(self._teachers[task].img_neck.out_channels)
            self.adapters[task] = nn.ModuleList(nn.Conv2d(in_channels, width, 1) for _ in levels[task])

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that have a teacher."""
        return tuple(self._teachers)

    def feature_losses(self, task: str, levels: Sequence[Tensor], images: Tensor) -> dict[str, Tensor]:
        """Distance of the shared features from the teacher's.

        Args:
            task: one of `tasks`.
            levels: what the task's head reads, (B, C, h, w) each.
            images: (B, 3, H, W), normalised.

        Returns:
            "loss_feature", 0…4, and "num_targets", the number of images.
        """
        teacher = self._teacher(task, images)
        with torch.no_grad():
            found = teacher.extract_features(images)
            wanted = [found[number] for number in _head(teacher, task).levels]
        distances = [
            (F.normalize(adapter(level), dim=1) - F.normalize(target, dim=1)).square().sum(dim=1).mean()
            for adapter, level, target in zip(self.adapters[task], levels, wanted, strict=True)
        ]
        return {
            "loss_feature": torch.stack(distances).mean() * self.weight,
            "num_targets": torch.tensor(len(images), device=images.device),
        }

    def prediction_losses(
        self, task: str, outputs: Any, images: Tensor, sizes: Sequence[tuple[int, int]]
    ) -> dict[str, Tensor]:
        """Distance of a head's outputs from the teacher's.

        Args:
            task: one of `tasks`.
            outputs: of the student's head.
            images: (B, 3, H, W), normalised.
            sizes: (rows, columns) of each image before padding.

        Returns:
            Losses and "num_targets".
        """
        teacher = self._teacher(task, images)
        with torch.no_grad():
            head = _head(teacher, task)
            levels = teacher.extract_features(images)
            wanted = head([levels[number] for number in head.levels])
        losses = soft_box_losses(outputs, wanted) if task == "det" else soft_mask_losses(
            outputs, wanted, sizes, head.common_stride
        )  # fmt: skip
        return {
            name: value if name.endswith("num_targets") else value * self.weight
            for name, value in losses.items()
        }

    def _teacher(self, task: str, images: Tensor) -> Any:
        return self._teachers[task].to(images.device)


def soft_box_losses(outputs: PointOutputs, teacher: PointOutputs) -> dict[str, Tensor]:
    """Losses of the box head's outputs against a teacher's at the same locations, see `TaskTeachers`.

    Returns:
        "loss_focal", "loss_giou", "loss_centerness", and "num_targets", the sum of the teacher's scores; 0-dim each.
    """
    prob = teacher.cls_scores.sigmoid()
    likeliest = prob.amax(dim=-1)  # (B, P)
    # Where the teacher itself would propose a box; elsewhere, which is nearly everywhere, its distances mean nothing.
    weights = (likeliest * teacher.centerness.sigmoid()).sqrt() * (likeliest > _PROPOSED)
    total = weights.sum()
    focus = (prob - outputs.cls_scores.sigmoid()).square()
    focal = focus * F.binary_cross_entropy_with_logits(outputs.cls_scores, prob, reduction="none")
    losses = {"loss_focal": focal.sum() / total.clamp(min=1), "num_targets": total}
    is_kept = weights > 0
    if not bool(is_kept.any()):
        return losses
    kept = weights[is_kept]
    giou = giou_loss(
        _around(outputs.distances[is_kept]),
        _around(teacher.distances[is_kept]),
        eps=1e-6,
        reduction="none",
    )
    centers = F.binary_cross_entropy_with_logits(
        outputs.centerness[is_kept], teacher.centerness[is_kept].sigmoid(), reduction="none"
    )
    losses["loss_giou"] = (giou * kept).sum() / total.clamp(min=1)
    losses["loss_centerness"] = (centers * kept).sum() / total.clamp(min=1)
    return losses


def soft_mask_losses(
    logits: Tensor, teacher: Tensor, sizes: Sequence[tuple[int, int]], stride: int
) -> dict[str, Tensor]:
    """Cross-entropy of the segmentation head's logits to a teacher's distribution, over the cells inside the images.

    Args:
        logits: (B, K, h, w).
        teacher: (B, K, h, w), logits.
        sizes: (rows, columns) of each image before padding, pixels.
        stride: of a cell, pixels.

    Returns:
        "loss_ce" and "num_targets", the number of cells; 0-dim each.

    Example:
        >>> losses = soft_mask_losses(torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 1, 2), [(4, 4)], 4)
        >>> round(float(losses["loss_ce"]), 4), int(losses["num_targets"])
        (0.6931, 1)
    """
    rows = torch.arange(logits.shape[-2], device=logits.device)[None, :, None] * stride
    columns = torch.arange(logits.shape[-1], device=logits.device)[None, None] * stride
    limits = torch.tensor([list(size) for size in sizes], device=logits.device)[:, :, None, None]
    is_inside = (rows < limits[:, 0]) & (columns < limits[:, 1])  # (B, h, w)
    entropy = -(teacher.softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1)
    count = is_inside.sum()
    return {"loss_ce": (entropy * is_inside).sum() / count.clamp(min=1), "num_targets": count}


def _around(distances: Tensor) -> Tensor:
    left_top, right_bottom = distances.split(2, dim=-1)
    return torch.cat([-left_top, right_bottom], dim=-1)


def _head(model: Any, task: str) -> Any:
    return model.box_head if task == "det" else model.seg_head


def _load(task: str, path: str, levels: Sequence[int]) -> Any:
    start = check_path(path).absolute()
    folder = next((place for place in (start, *start.parents)[:4] if (place / "config.json").is_file()), None)
    if folder is None:
        raise ConfigError(f"distillation.teachers.{task}: {path} belongs to no run folder with a config.json")
    model = MODELS.build(load_config(folder).model)
    head = _head(model, task)
    if head is None or tuple(head.levels) != tuple(levels):
        found = "no such head" if head is None else f"one that reads the levels {head.levels}"
        raise ConfigError(
            f"distillation.teachers.{task}: the model of {path} has {found}; wanted is one that reads {tuple(levels)}"
        )
    model.load_state_dict(load_weights(path).model_state)
    return model.eval().requires_grad_(False)
