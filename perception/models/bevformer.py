"""The BEVFormer detector: images of all cameras to BEV features, and from these to the heads.

Legend: B batch, F frames (oldest first, the last is the current one), N cameras, Q BEV cells, C channels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from perception.models._eval_mode import eval_no_grad
from perception.models.bev_encoder import BEVEncoder
from perception.models.box_coder import DecodedBoxes
from perception.models.box_head import BoxHead, BoxTargets
from perception.models.center_heatmap import CenterHeatmap
from perception.models.execution import checkpoint_parts, compile_parts
from perception.models.map_head import MapHead
from perception.models.multi_task_model import MODULE_CONFIG, MultiTaskModel
from perception.models.patch_seg_head import PatchSegHead
from perception.models.perspective_head import PerspectiveHead
from perception.models.stream_memory import StreamMemory
from perception.models.upstream_compat import UpstreamCompat
from perception.registry import MODELS
from perception.utils import DataError

HEAD_TASKS = {"det": ("cls", "box", "velocity"), "seg": ("seg",)}
"""Tasks that share a head: queries and one matching serve classes, boxes and velocities."""
KPI_METRICS = {"cls": ("mAP",), "box": ("mATE", "mASE", "mAOE"), "velocity": ("mAVE",), "seg": ("mIoU",)}


@MODELS.register_module()
class BEVFormer(MultiTaskModel):
    """Camera-only 3D detection and BEV segmentation over time.

    *Source*: Li et al., BEVFormer (ECCV 2022), and its released code with the defects corrected that tie it to batch
    size 1. Of a queue, history frames run in evaluation mode without gradients and only the last frame is trained. A
    stream's frame has the BEV features that the training step before made, see `StreamMemory`.

    Args:
        img_backbone: config of the image backbone (mmdet).
        img_neck: config of the neck, whose output channels are the encoder's `embed_dims`.
        bev_encoder: config of the BEV encoder.
        box_head: config of the box head; None: no detection.
        seg_head: config of the segmentation head; None: no segmentation. `SegHead` reads the BEV; `PatchSegHead` has
            queries of its own in the box head's decoder (BEVFormer-Unified) and needs a box head.
        center_heatmap: config of the auxiliary loss on the BEV features, which needs a box head; None: no such loss.
        perspective_head: config of the auxiliary loss on the image features, which needs a box head; None: no such
            loss.
        data_preprocessor: config of the data preprocessor.
        use_history: False trains and predicts every frame on its own (BEVFormer-S).
        backbone_weights: local file with pretrained backbone weights; None: from scratch.
        backbone_sha256: expected hash of that file.
        upstream_compat: switches of `UpstreamCompat`, handed to the encoder and the box and segmentation heads; None:
            each has what its own config says, by default nothing.
        activation_checkpointing: parts whose activations are computed again in the backward pass; `checkpoint_parts`.
        compiled: parts that run through `torch.compile`, e.g. "bev_encoder"; `compile_parts`.
        init_cfg: MMEngine's.

    Raises:
        ValueError: there is no head, a head's grid is not the encoder's, or a named part does not exist.
    """

    head_tasks = HEAD_TASKS
    kpi_metrics = KPI_METRICS
    trunk_names = ("img_backbone", "img_neck", "bev_encoder")

    def __init__(
        self,
        *,
        img_backbone: MODULE_CONFIG,
        img_neck: MODULE_CONFIG,
        bev_encoder: MODULE_CONFIG,
        box_head: MODULE_CONFIG | None = None,
        seg_head: MODULE_CONFIG | None = None,
        center_heatmap: MODULE_CONFIG | None = None,
        perspective_head: MODULE_CONFIG | None = None,
        data_preprocessor: MODULE_CONFIG | nn.Module | None = None,
        use_history: bool = True,
        backbone_weights: str | None = None,
        backbone_sha256: str | None = None,
        upstream_compat: UpstreamCompat | Mapping[str, Any] | None = None,
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
        compat = {} if upstream_compat is None else {"upstream_compat": UpstreamCompat.read(upstream_compat)}
        self.bev_encoder: BEVEncoder = MODELS.build({**bev_encoder, **compat})
        self.box_head: BoxHead | None = None if box_head is None else MODELS.build({**box_head, **compat})
        self.seg_head: MapHead | None = None if seg_head is None else MODELS.build({**seg_head, **compat})
        self.center_heatmap: CenterHeatmap | None = (
            None if center_heatmap is None else MODELS.build(center_heatmap)
        )
        self.perspective_head: PerspectiveHead | None = (
            None if perspective_head is None else MODELS.build(perspective_head)
        )
        self.use_history = use_history
        self.stream_memory = StreamMemory()
        self._num_cams = self.bev_encoder.num_cams
        self._histories: dict[tuple[str, ...] | None, dict[str, Tensor]] = {}
        self._check_heads()
        checkpoint_parts(self, activation_checkpointing)
        compile_parts(self, compiled)

    @property
    def heads_read_apart(self) -> bool:
        """Whether boxes and segmentation each read the BEV features by modules of their own, not by one decoder."""
        return not isinstance(self.seg_head, PatchSegHead)

    @property
    def shared_width(self) -> int:
        """C, length of the BEV features that `rotations`, if there are any, turn for each head."""
        return self.bev_encoder.embed_dims

    def last_shared_parameters(self) -> list[nn.Parameter]:
        """Parameters of the last layer that all tasks share: its last linear layer and the norm behind it.

        It is the encoder's last layer, or the decoder's where the segmentation has queries there.
        """
        last: Any = self.bev_encoder.layers[-1]
        if self.box_head is not None and not self.heads_read_apart:
            last = self.box_head.decoder[-1]
        return [*last.ffn.linear2.parameters(), *last.norms[-1].parameters()]

    def reset_history(self) -> None:
        """Forget the BEV features of the last predicted batch."""
        self._histories = {}

    def loss(self, inputs: dict[str, Tensor], data_samples: Sequence[Det3DDataSample]) -> dict[str, Tensor]:
        """Loss terms and target counts; a task without a target in the batch is left out."""
        history = self.stream_memory.recall(data_samples, self._only)
        bev, features = self._compute_bev(inputs, *history)
        self.stream_memory.keep(bev, self._only)
        bev, *features = self.shared_features(bev, *features)
        outputs = self.forward_heads(bev)
        losses: dict[str, Tensor] = {}
        if self.box_head is not None and "boxes" in outputs:
            targets = [_box_targets(sample) for sample in data_samples]
            losses.update(self.box_head.loss(outputs["boxes"], targets))
            if self.center_heatmap is not None:
                losses.update(self.center_heatmap.loss(self._read(bev, "det"), targets))
            if self.perspective_head is not None:
                image_shape = (inputs["img"].shape[-2], inputs["img"].shape[-1])
                features = [self.task_streams.rows(level, "cls") for level in features]
                losses.update(
                    self.perspective_head.loss(features, inputs["lidar2img"][:, -1], image_shape, targets)
                )
        if self.seg_head is not None and "seg_logits" in outputs:
            losses.update(self.seg_head.loss(outputs["seg_logits"], [_map_target(s) for s in data_samples]))
        return losses

    def predict(
        self, inputs: dict[str, Tensor], data_samples: Sequence[Det3DDataSample]
    ) -> list[Det3DDataSample]:
        """Boxes and maps; the batch's BEV features are kept as history for its successors."""
        label = self.task_streams.label
        tokens = label([sample.metainfo.get("sample_token", "") for sample in data_samples])
        prev_tokens = label([sample.metainfo.get("prev_token", "") for sample in data_samples])
        bev = self.compute_bev(inputs, *self._look_up(prev_tokens))
        outputs = self.forward_heads(bev)
        if self.use_history:
            kept = {token: row.detach() for token, row in zip(tokens, bev, strict=True) if token}
            self._histories[self._only] = kept
        results = [sample.new() for sample in data_samples]
        if self.box_head is not None and "boxes" in outputs:
            for result, boxes in zip(results, self.box_head.predict(outputs["boxes"]), strict=True):
                result.pred_instances_3d = _to_instances(boxes)
        if self.seg_head is not None and "seg_logits" in outputs:
            for result, classes in zip(results, self.seg_head.predict(outputs["seg_logits"]), strict=True):
                result.pred_bev_seg = PixelData(sem_seg=classes[None])
        return results

    def compute_bev(
        self, inputs: dict[str, Tensor], prev_bev: Tensor | None = None, known: Tensor | None = None
    ) -> Tensor:
        """The one place where BEV features are made; all heads read its result.

        With groups in `task_streams` B is their number times that of the samples, but for the inputs.

        Args:
            inputs: as `forward`.
            prev_bev: (B, Q, C), BEV features of the frame before the first one; None: no sample has any.
            known: (B,), bool, which rows of `prev_bev` count.

        Returns:
            (B, Q, C), of the last frame, with gradients.
        """
        return self._compute_bev(inputs, prev_bev, known)[0]

    def _compute_bev(
        self, inputs: dict[str, Tensor], prev_bev: Tensor | None, known: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """The BEV features of the last frame, and the image features they come from."""
        inputs = self.task_streams.repeat(inputs)
        num_frames = inputs["img"].shape[1]
        if not self.use_history:
            prev_bev = known = None
        elif num_frames > 1:
            with eval_no_grad(self):
                past = inputs["img"][:, :-1]
                features = self.extract_features(past.flatten(0, 1))  # all past frames in one batch
                features = [level.unflatten(0, past.shape[:2]) for level in features]  # (B, F−1, N, C, h, w)
                for frame in range(num_frames - 1):
                    per_frame = [level[:, frame] for level in features]
                    prev_bev, known = self._encode(inputs, frame, per_frame, prev_bev, known), None
        features = self.extract_features(inputs["img"][:, -1])
        return self._encode(inputs, num_frames - 1, features, prev_bev, known), features

    def extract_features(self, images: Tensor) -> list[Tensor]:
        """(M, N, 3, H, W) → per level (M, N, C, h, w)."""
        return [level.unflatten(0, images.shape[:2]) for level in self._pyramid(images.flatten(0, 1))]

    def _encode(
        self,
        inputs: dict[str, Tensor],
        frame: int,
        features: Sequence[Tensor],
        prev_bev: Tensor | None,
        known: Tensor | None,
    ) -> Tensor:
        has_prev = inputs["has_prev"][:, frame]
        if known is not None:
            has_prev = has_prev & known
        # Where all have a history no layer has to choose. Only a CPU can look at that without waiting.
        looks = prev_bev is not None and has_prev.device.type == "cpu" and not torch.compiler.is_compiling()
        height, width = inputs["img"].shape[-2:]
        return self.bev_encoder(
            features,
            inputs["lidar2img"][:, frame],
            inputs["ego_motion"][:, frame],
            (height, width),
            prev_bev,
            None if looks and bool(has_prev.all()) else has_prev,
        )

    def forward_heads(self, bev: Tensor) -> dict[str, Any]:
        """What the heads make of BEV features (B, Q, C): "boxes" (`BoxOutputs`), "seg_logits"; and "bev" itself."""
        outputs: dict[str, Any] = {"bev": bev}
        runs_det, runs_seg = self._runs("det"), self._runs("seg")
        queries = self.seg_head.queries() if isinstance(self.seg_head, PatchSegHead) else None
        source = None
        if self.box_head is not None and (runs_det or (runs_seg and queries is not None)):
            boxes = self.box_head(self._read(bev, "det"), queries)
            source = boxes.extra
            if runs_det:
                outputs["boxes"] = boxes
        if self.seg_head is not None and runs_seg:
            outputs["seg_logits"] = self.seg_head(self._read(bev, "seg") if source is None else source)
        return outputs

    def _forward_raw(self, inputs: dict[str, Tensor]) -> dict[str, Any]:
        return self.forward_heads(self.compute_bev(inputs))

    def _look_up(self, prev_tokens: Sequence[str]) -> tuple[Tensor | None, Tensor | None]:
        history = self._histories.get(self._only, {})
        found = [history.get(token) for token in prev_tokens]
        rows = [row for row in found if row is not None]
        if not rows or not self.use_history:
            return None, None
        prev_bev = torch.stack([torch.zeros_like(rows[0]) if row is None else row for row in found])
        known = torch.tensor([row is not None for row in found], device=prev_bev.device)
        return prev_bev, known

    def _check_heads(self) -> None:
        if self.box_head is None and self.seg_head is None:
            raise ValueError("BEVFormer needs box_head, seg_head, or both; got neither.")
        if isinstance(self.seg_head, PatchSegHead) and self.box_head is None:
            raise ValueError(
                "PatchSegHead has its queries in the decoder of box_head, which is None. Keep box_head, or take "
                "SegHead for a model of segmentation alone."
            )
        auxiliary = {"center_heatmap": self.center_heatmap, "perspective_head": self.perspective_head}
        for name, module in auxiliary.items():
            if module is not None and self.box_head is None:
                raise ValueError(
                    f"{name} belongs to the tasks of box_head, which is None; leave it out as well."
                )
        heads = {"box_head": self.box_head, "seg_head": self.seg_head, "center_heatmap": self.center_heatmap}
        expected = (self.bev_encoder.grid, self.bev_encoder.embed_dims)
        for name, head in heads.items():
            if head is not None and (head.grid, head.embed_dims) != expected:
                raise ValueError(
                    f"{name} expects {head.grid} with {head.embed_dims} channels, bev_encoder makes {expected[0]} with "
                    f"{expected[1]}. Give both the same pc_range, bev_h, bev_w and embed_dims."
                )
        wanted = (self.bev_encoder.num_levels, self.bev_encoder.embed_dims)
        if self.perspective_head is not None:
            found = (len(self.perspective_head.levels), self.perspective_head.embed_dims)
            if found != wanted:
                raise ValueError(
                    f"perspective_head expects {found[0]} feature level(s) with {found[1]} channels, bev_encoder "
                    f"{wanted[0]} with {wanted[1]}. Give both the same num_levels and embed_dims."
                )

    def _check_inputs(self, inputs: Mapping[str, Tensor]) -> None:
        images = inputs["img"]
        cams = self._num_cams
        if images.dim() != 6 or images.shape[2] != cams or images.shape[3] != 3:
            raise ValueError(
                f"inputs['img'] must be (B, F, N = {cams} cameras, 3, H, W), got {tuple(images.shape)}. Check the "
                "camera list of the data set and bev_encoder.num_cams."
            )
        batch, frames = images.shape[:2]
        wanted = {
            "lidar2img": (batch, frames, cams, 4, 4),
            "ego_motion": (batch, frames, 18),
            "has_prev": (batch, frames),
        }
        for key, shape in wanted.items():
            if tuple(inputs[key].shape) != shape:
                raise ValueError(
                    f"inputs[{key!r}] must be {shape} to fit the images, got {tuple(inputs[key].shape)}."
                )


def _box_targets(sample: Det3DDataSample) -> BoxTargets:
    instances = sample.gt_instances_3d
    boxes = instances.bboxes_3d.tensor
    is_bad = ~boxes[:, :7].isfinite().all(dim=1) | (boxes[:, 3:6] <= 0).any(dim=1)
    if bool(is_bad.any()):
        number = int(is_bad.nonzero()[0])
        raise DataError(
            f"ground-truth box {number} is {boxes[number].tolist()}; x, y, z, l, w, h and yaw must be finite and the "
            "sizes above 0. Repair the annotation and build the index again with `perception data prepare`.",
            sample_token=sample.metainfo.get("sample_token"),
        )
    return BoxTargets(boxes, instances.labels_3d)


def _map_target(sample: Det3DDataSample) -> Tensor | None:
    return sample.gt_bev_seg.sem_seg[0].long() if "gt_bev_seg" in sample else None


def _to_instances(decoded: DecodedBoxes) -> InstanceData:
    boxes = LiDARInstance3DBoxes(decoded.boxes, box_dim=decoded.boxes.shape[-1])
    return InstanceData(bboxes_3d=boxes, scores_3d=decoded.scores, labels_3d=decoded.labels)
