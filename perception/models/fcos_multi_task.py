"""FCOS and a segmentation head on one image pyramid.

Legend: B batch, G groups of task streams (1 without), C channels, (h, w) cells of a level, N cells of all levels.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import torch
from mmdet.structures import DetDataSample
from mmengine.structures import PixelData
from torch import Tensor, nn

from perception.models.distillation import Distillation, TaskTeachers
from perception.models.execution import checkpoint_parts, compile_parts
from perception.models.fcos_head import Boxes2D, FCOSHead2D
from perception.models.multi_task_model import MODULE_CONFIG, MultiTaskModel
from perception.models.panoptic_fpn_head import PanopticFPNHead
from perception.registry import MODELS
from perception.utils import DataError

KINDS = ("gt", "pseudo")
"""Where labels come from: people, or another model."""

Levels = list[Tensor]
Shapes = list[tuple[int, int]]


class LabelWeights(TypedDict):
    """Factors of the losses by the labels' origin."""

    gt: float
    pseudo: float


class TaskWeights(TypedDict):
    """Factors of the losses by task."""

    det: float
    seg: float


@MODELS.register_module()
class FCOSMultiTask(MultiTaskModel):
    """2D detection and semantic segmentation from single images, of which each may be labelled for one task only.

    *Source*: MCLGS (Igarashi and Yoneji 2022), §4.1.2: FCOS-RT's backbone and FPN with an FCOS head and the
    segmentation head of Panoptic FPN.

    **Missing labels.** A sample says by an attribute that it is labelled for a task: `gt_instances`, `gt_sem_seg`,
    `pseudo_instances`, `pseudo_sem_seg`. A head runs on the samples that are labelled for it. Without any, its keys are
    absent from the loss dict: its parameters have no gradient, and the trunk's is the other task's.

    **Pseudo labels** (eq. 9) count if `label_weights` is set: each task then has losses "<task>.gt.…" and
    "<task>.pseudo.…", each kind averaged over its own targets and times its weight.

    Args:
        img_backbone: config of the image backbone (mmdet).
        img_neck: config of the FPN (mmdet).
        box_head: config of the box head; None: no detection.
        seg_head: config of the segmentation head; None: no segmentation.
        data_preprocessor: config of the data preprocessor.
        label_weights: factors by the labels' origin, e.g. dict(gt=0.8, pseudo=0.2); None: ground truth alone, weight 1.
        task_weights: factors by task, e.g. dict(det=1.7, seg=0.3); None: 1.
        distillation: teachers beside the model in training, whose predictions or features it learns, see
            `TaskTeachers`; its losses are "<task>.distill.…". None: none.
        backbone_weights: local file with pretrained backbone weights; None: from scratch.
        backbone_sha256: expected hash of that file.
        activation_checkpointing: parts whose activations are computed again in the backward pass; `checkpoint_parts`.
        compiled: parts that run through `torch.compile`, e.g. "img_backbone"; `compile_parts`.
        init_cfg: MMEngine's.

    Raises:
        ValueError: there is no head, a head reads levels that the neck does not make or other channels, two heads give
            one level different strides, or a weight is negative.
    """

    summed_layers = ("img_neck.*",)  # for connection strength: an FPN has no norms
    kpi_metrics = {"det": ("AP",), "seg": ("mIoU",)}

    def __init__(
        self,
        *,
        img_backbone: MODULE_CONFIG,
        img_neck: MODULE_CONFIG,
        box_head: MODULE_CONFIG | None = None,
        seg_head: MODULE_CONFIG | None = None,
        data_preprocessor: MODULE_CONFIG | nn.Module | None = None,
        label_weights: LabelWeights | None = None,
        task_weights: TaskWeights | None = None,
        distillation: Distillation | None = None,
        backbone_weights: str | None = None,
        backbone_sha256: str | None = None,
        activation_checkpointing: Sequence[str] = (),
        compiled: Sequence[str] = (),
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            img_backbone=img_backbone,
            img_neck=img_neck,
            data_preprocessor=data_preprocessor,
            backbone_weights=backbone_weights,
            backbone_sha256=backbone_sha256,
            init_cfg=init_cfg,
        )
        self.box_head: FCOSHead2D | None = None if box_head is None else MODELS.build(box_head)
        self.seg_head: PanopticFPNHead | None = None if seg_head is None else MODELS.build(seg_head)
        self.label_weights = (
            None if label_weights is None else _checked(label_weights, KINDS, "label_weights")
        )
        self.task_weights = (
            None if task_weights is None else _checked(task_weights, ("det", "seg"), "task_weights")
        )
        self._check_heads()
        self.distillation: TaskTeachers | None = None
        if distillation is not None:
            levels = {
                task: head.levels for task, head in (("det", self.box_head), ("seg", self.seg_head)) if head
            }
            self.distillation = TaskTeachers(
                teachers=distillation["teachers"],
                kind=distillation.get("kind", "features"),
                weight=distillation.get("weight", 1.0),
                in_channels=int(self.img_neck.out_channels),
                levels=levels,
            )
        checkpoint_parts(self, activation_checkpointing)
        compile_parts(self, compiled)

    @property
    def part_names(self) -> tuple[str, ...]:
        """The parts of the losses that have counts of their own, see `TaskLosses`."""
        own = {"det": "loss_giou", "seg": "loss_dice"}
        prefixes = [(prefix, own[task]) for task in self.task_names for prefix in self._prefixes(task)]
        taught = () if self.distillation is None else self.distillation.tasks
        return (
            *(part for prefix, name in prefixes for part in (prefix, f"{prefix}.{name}")),
            *(f"{task}.distill" for task in self.task_names if task in taught),
        )

    @property
    def shared_width(self) -> int:
        """C, length of the features that `rotations`, if there are any, turn for each head, on all levels alike."""
        return int(self.img_neck.out_channels)

    def last_shared_parameters(self) -> list[nn.Parameter]:
        """Parameters of the neck's last convolutions, of the levels that all heads read."""
        heads = [head for head in (self.box_head, self.seg_head) if head is not None]
        levels = set.intersection(*(set(head.levels) for head in heads))
        return [p for level in sorted(levels) for p in self.img_neck.fpn_convs[level].parameters()]

    def extract_features(self, images: Tensor) -> Levels:
        """(B, 3, H, W) → the neck's levels, (G·B, C, h, w) each."""
        return list(self._pyramid(self.task_streams.repeat({"img": images})["img"]))

    def loss(self, inputs: dict[str, Tensor], data_samples: Sequence[DetDataSample]) -> dict[str, Tensor]:
        """Loss terms and target counts; a task without a label in the batch is left out."""
        shared, shapes = self._share(inputs)
        losses: dict[str, Tensor] = {}
        if self.box_head is not None and self._runs("det"):
            losses |= self._head_losses("det", self.box_head, _boxes, shared, shapes, data_samples)
        if self.seg_head is not None and self._runs("seg"):
            losses |= self._head_losses("seg", self.seg_head, _mask, shared, shapes, data_samples)
        return losses | self._distillation_losses(inputs["img"], shared, shapes, data_samples)

    def predict(
        self, inputs: dict[str, Tensor], data_samples: Sequence[DetDataSample]
    ) -> list[DetDataSample]:
        """Boxes (`pred_instances`) and classes of pixels (`pred_sem_seg`), both of the original images."""
        outputs = self._forward_raw(inputs)
        metainfos = [sample.metainfo for sample in data_samples]
        results = [sample.new() for sample in data_samples]
        if self.box_head is not None and "boxes" in outputs:
            for result, boxes in zip(
                results, self.box_head.predict(outputs["boxes"], metainfos), strict=True
            ):
                result.pred_instances = boxes
        if self.seg_head is not None and "seg_logits" in outputs:
            found = self.seg_head.predict(outputs["seg_logits"], metainfos)
            for result, classes in zip(results, found, strict=True):
                result.pred_sem_seg = PixelData(sem_seg=classes[None])
        return results

    def _forward_raw(self, inputs: dict[str, Tensor]) -> dict[str, Any]:
        shared, shapes = self._share(inputs)
        outputs: dict[str, Any] = {}
        if self.box_head is not None and self._runs("det"):
            outputs["boxes"] = self.box_head(self._levels("det", self.box_head, shared, shapes))
        if self.seg_head is not None and self._runs("seg"):
            outputs["seg_logits"] = self.seg_head(self._levels("seg", self.seg_head, shared, shapes))
        return outputs

    def _share(self, inputs: Mapping[str, Tensor]) -> tuple[Levels, Shapes]:
        """What the heads read, through the cut; with rotations all levels in one tensor (G·B, N, C)."""
        levels = self.extract_features(inputs["img"])
        shapes = [(level.shape[-2], level.shape[-1]) for level in levels]
        if self.rotations is not None:
            levels = [torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)]
        return list(self.shared_features(*levels)), shapes

    def _levels(
        self,
        task: str,
        head: FCOSHead2D | PanopticFPNHead,
        shared: Levels,
        shapes: Shapes,
        rows: Sequence[int] | None = None,
    ) -> Levels:
        """A head's levels, (B, C, h, w) each, of some samples or all."""
        if self.rotations is None:
            levels = [self.task_streams.rows(level, task) for level in shared]
        else:
            flat = self._read(shared[0], task).split([height * width for height, width in shapes], dim=1)
            levels = [
                part.transpose(1, 2).unflatten(2, shape) for part, shape in zip(flat, shapes, strict=True)
            ]
        chosen = [levels[number] for number in head.levels]
        if rows is None or len(rows) == len(chosen[0]):
            return chosen
        return [level[list(rows)] for level in chosen]

    def _head_losses(
        self,
        task: str,
        head: Any,
        read: Callable[[DetDataSample, str], Any],
        shared: Levels,
        shapes: Shapes,
        data_samples: Sequence[DetDataSample],
    ) -> dict[str, Tensor]:
        kinds = KINDS if self.label_weights is not None else ("gt",)
        targets = {kind: [read(sample, kind) for sample in data_samples] for kind in kinds}
        rows = [
            row
            for row in range(len(data_samples))
            if any(found[row] is not None for found in targets.values())
        ]
        if not rows:
            return {}
        outputs = head(self._levels(task, head, shared, shapes, rows))
        task_weight = 1.0 if self.task_weights is None else self.task_weights[task]
        losses: dict[str, Tensor] = {}
        for (kind, found), prefix in zip(targets.items(), self._prefixes(task), strict=True):
            weight = task_weight if self.label_weights is None else task_weight * self.label_weights[kind]
            if weight == 0:  # not a loss of 0, which would be a task without a gradient
                continue
            for name, value in head.loss(outputs, [found[row] for row in rows]).items():
                is_loss = not name.endswith("num_targets")
                losses[f"{prefix}.{name}"] = value * weight if is_loss and weight != 1.0 else value
        return losses

    def _distillation_losses(
        self, images: Tensor, shared: Levels, shapes: Shapes, data_samples: Sequence[DetDataSample]
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        heads = {"det": self.box_head, "seg": self.seg_head}
        for task in () if self.distillation is None else self.distillation.tasks:
            head = heads[task]
            if self.distillation is None or head is None or not self._runs(task):
                continue
            levels = self._levels(task, head, shared, shapes)
            if self.distillation.kind == "features":
                found = self.distillation.feature_losses(task, levels, images)
            else:
                sizes = [sample.metainfo["img_shape"][:2] for sample in data_samples]
                found = self.distillation.prediction_losses(task, head(levels), images, sizes)
            weight = 1.0 if self.task_weights is None else self.task_weights[task]
            for name, value in found.items():
                is_loss = not name.endswith("num_targets")
                losses[f"{task}.distill.{name}"] = value * weight if is_loss and weight != 1.0 else value
        return losses

    def _prefixes(self, task: str) -> list[str]:
        return [task] if self.label_weights is None else [f"{task}.{kind}" for kind in KINDS]

    def _check_heads(self) -> None:
        heads = {"box_head": self.box_head, "seg_head": self.seg_head}
        found = {name: head for name, head in heads.items() if head is not None}
        if not found:
            raise ValueError("FCOSMultiTask needs box_head, seg_head, or both; got neither.")
        width, num_levels = int(self.img_neck.out_channels), int(self.img_neck.num_outs)
        strides: dict[int, tuple[int, str]] = {}
        for name, head in found.items():
            if head.in_channels != width:
                raise ValueError(
                    f"{name} expects {head.in_channels} channels, img_neck makes {width}. Give both the same number."
                )
            for level, stride in zip(head.levels, head.strides, strict=True):
                if not 0 <= level < num_levels:
                    raise ValueError(
                        f"{name} reads level {level}, img_neck makes levels 0 to {num_levels - 1}. Change "
                        f"{name}.levels, or img_neck.num_outs."
                    )
                before, other = strides.setdefault(level, (stride, name))
                if before != stride:
                    raise ValueError(
                        f"level {level} of the neck has stride {before} in {other}, but {stride} in {name}; it has one."
                    )

    def _check_inputs(self, inputs: Mapping[str, Tensor]) -> None:
        shape = tuple(inputs["img"].shape)
        if len(shape) != 4 or shape[1] != 3:
            raise ValueError(f"inputs['img'] must be (B, 3, H, W), got {shape}. See ImageDataPreprocessor.")


def _checked(weights: Mapping[str, Any], names: Sequence[str], key: str) -> dict[str, float]:
    if set(weights) != set(names) or any(weights[name] < 0 for name in names):
        raise ValueError(
            f"{key} must have a number from 0 on for each of {list(names)}, got {dict(weights)}."
        )
    return {name: float(weights[name]) for name in names}


def _boxes(sample: DetDataSample, kind: str) -> Boxes2D | None:
    name = f"{kind}_instances"
    if name not in sample:
        return None
    instances = sample.get(name)
    boxes = instances.bboxes
    is_bad = ~boxes.isfinite().all(dim=1) | (boxes[:, 2:] <= boxes[:, :2]).any(dim=1)
    if bool(is_bad.any()):
        number = int(is_bad.nonzero()[0])
        raise DataError(
            f"box {number} of {name} is {boxes[number].tolist()}; x1, y1, x2, y2 must be finite, x2 above x1 and y2 "
            "above y1. Repair the labels and build the index again with `perception data prepare`.",
            sample_token=sample.metainfo.get("frame_name"),
        )
    is_known = kind == "gt" and "ignored_instances" in sample
    ignored = sample.ignored_instances.bboxes if is_known else boxes.new_zeros(0, 4)
    return Boxes2D(boxes, instances.labels, ignored)


def _mask(sample: DetDataSample, kind: str) -> Tensor | None:
    name = f"{kind}_sem_seg"
    return sample.get(name).sem_seg[0].long() if name in sample else None
