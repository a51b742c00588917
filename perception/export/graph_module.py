"""The functions that are exported: plain tensors in and out, around a model whose weights and modules they share.

Legend: B batch, N cameras, (H, W) an image as given, Q BEV cells, C channels, K boxes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from perception.export.prepare_images import PrepareImages
from perception.models import BEVFormer, FCOSMultiTask
from perception.models.seg_losses import IGNORE
from perception.structures import EGO_MOTION_SIZE

GROUPS = ("backbone", "neck", "encoder", "decoder", "heads")
"""Layer groups in the order in which they run."""


class _Found:
    """What hooks have seen; no part of the module's state, so that tracing leaves it alone."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}


class GraphModule(nn.Module):
    """A model as a function of tensors.

    Attributes:
        model: the model, in evaluation mode.
        prepare: what is done to images first.
        input_names: of `forward`, in order.
        output_names: of what is deployed.
        has_taps: whether `forward` also returns what the layer groups make, as "tap_<group>_<number>".
    """

    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    def __init__(self, model: nn.Module, prepare: PrepareImages, groups: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.model = model
        self.prepare = prepare
        self.has_taps = True
        self._found = _Found()
        for group, module in groups.items():
            module.register_forward_hook(self._watch(group))

    def _watch(self, group: str) -> Any:
        def note(_: nn.Module, __: Any, result: Any) -> None:
            levels = [result] if isinstance(result, Tensor) else list(result)
            for number, level in enumerate(levels):
                self._found.values[f"tap_{group}_{number}"] = level

        return note

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        """The tensors of `input_names` → those of `output_names`, and taps."""
        self._found.values = {}
        outputs = self._run(**dict(zip(self.input_names, inputs, strict=True)))
        taps, self._found.values = self._found.values, {}
        if not self.has_taps:
            return outputs
        made = {id(value) for value in outputs.values()}
        return {**outputs, **{name: value for name, value in taps.items() if id(value) not in made}}

    def _run(self, **inputs: Any) -> dict[str, Tensor]:
        raise NotImplementedError

    def example(self, batch: int, image: tuple[int, int]) -> dict[str, Tensor]:
        """Inputs of the right shapes; `image` is (width, height)."""
        raise NotImplementedError


class BEVFormerGraph(GraphModule):
    """BEVFormer for one frame of B streams, with decoding and with the history as input and output.

    Inputs, of which a model without history has the first two and `ego_motion`:
        images: (B, N, H, W, 3) uint8 RGB, as decoded.
        lidar2img: (B, N, 4, 4), pixels of these images.
        prev_bev: (B, Q, C), `bev` of the frame before.
        ego_motion: (B, 18), see `perception.structures.ego_motion`.
        use_prev_bev: (B,), 1 where `prev_bev` and the motion count, 0 at the start of a stream.

    Outputs, as far as the model has them:
        boxes: (B, K, 9), as `DecodedBoxes`, the best first.
        scores: (B, K); 0 for rows that stand for no box, which come last.
        labels: (B, K), int64.
        seg: (B, classes, rows, columns), probabilities.
        bev: (B, Q, C).

    Raises:
        ValueError: the box coder looks for a threshold, which a graph can't.
    """

    def __init__(self, model: BEVFormer, prepare: PrepareImages) -> None:
        groups = {"backbone": model.img_backbone, "neck": model.img_neck, "encoder": model.bev_encoder}
        if model.box_head is not None:
            groups["decoder"] = model.box_head.decoder[-1]
            if model.box_head.coder.lower_threshold and model.box_head.coder.score_threshold is not None:
                raise ValueError(
                    "upstream_compat.lower_score_threshold lowers the score_threshold box by box, which a graph "
                    "without data-dependent shapes can't. Export with --set model.box_head.score_threshold=null"
                )
        super().__init__(model, prepare, groups)
        self.model: BEVFormer
        history = ("prev_bev", "use_prev_bev") if model.use_history else ()
        order = ("images", "lidar2img", "prev_bev", "ego_motion", "use_prev_bev")
        self.input_names = tuple(name for name in order if name in history or not name.endswith("prev_bev"))
        boxes = ("boxes", "scores", "labels") if model.box_head is not None else ()
        seg = ("seg",) if model.seg_head is not None else ()
        self.output_names = (*boxes, *seg, *(("bev",) if model.use_history else ()))

    def example(self, batch: int, image: tuple[int, int]) -> dict[str, Tensor]:
        """Inputs of the right shapes; `image` is (width, height)."""
        encoder = self.model.bev_encoder
        cams, cells = encoder.num_cams, encoder.grid.bev_h * encoder.grid.bev_w
        inputs = {
            "images": torch.zeros(batch, cams, image[1], image[0], 3, dtype=torch.uint8),
            "lidar2img": torch.eye(4).expand(batch, cams, 4, 4).contiguous(),
            "prev_bev": torch.zeros(batch, cells, encoder.embed_dims),
            "ego_motion": torch.zeros(batch, EGO_MOTION_SIZE),
            "use_prev_bev": torch.zeros(batch),
        }
        return {name: inputs[name] for name in self.input_names}

    def _run(  # type: ignore[override]
        self,
        images: Tensor,
        lidar2img: Tensor,
        ego_motion: Tensor,
        prev_bev: Tensor | None = None,
        use_prev_bev: Tensor | None = None,
    ) -> dict[str, Tensor]:
        batch, cams = images.shape[:2]
        pixels = self.prepare(images.flatten(0, 1)).unflatten(0, (batch, cams))
        has_prev = ego_motion.new_zeros(batch) if use_prev_bev is None else use_prev_bev
        inputs = {
            "img": pixels[:, None],
            "lidar2img": self._to_network(lidar2img, self.prepare.scale(images))[:, None],
            "ego_motion": ego_motion[:, None],
            "has_prev": has_prev[:, None] > 0.5,
        }
        bev = self.model.compute_bev(inputs, prev_bev)
        outputs = self.model.forward_heads(bev)
        found: dict[str, Tensor] = {}
        head = self.model.box_head
        if head is not None:
            boxes, scores, labels, keep = head.coder.rank(*head.final(outputs["boxes"]))
            found |= _sort(boxes, scores, labels, keep)
        if self.model.seg_head is not None:
            found["seg"] = _softmax_of_channels(outputs["seg_logits"])
        return {**found, "bev": bev} if self.model.use_history else found

    def _to_network(self, lidar2img: Tensor, scale: Tensor) -> Tensor:
        """Pixels of the given images → of the resized and cut ones."""
        u, v, depth, last = lidar2img.unbind(dim=-2)  # (B, N, 4) each
        return torch.stack(
            [u * scale[0], v * scale[1] - depth * float(self.prepare.crop_top), depth, last], dim=-2
        )


class FCOSGraph(GraphModule):
    """FCOS multi-task for B images of one size, with decoding up to the suppression of overlapping boxes.

    Input:
        images: (B, H, W, 3) uint8 RGB.

    Outputs, as far as the model has them:
        boxes: (B, K, 4), x1, y1, x2, y2, pixels of the given image, the best first.
        scores: (B, K); 0 for rows that stand for no box, which come last.
        labels: (B, K), int64.
        seg: (B, H, W), uint8, the likeliest class of each pixel; 255 for none.
    """

    input_names = ("images",)

    def __init__(self, model: FCOSMultiTask, prepare: PrepareImages) -> None:
        super().__init__(model, prepare, {"backbone": model.img_backbone, "neck": model.img_neck})
        self.model: FCOSMultiTask
        boxes = ("boxes", "scores", "labels") if model.box_head is not None else ()
        self.output_names = (*boxes, *(("seg",) if model.seg_head is not None else ()))

    def example(self, batch: int, image: tuple[int, int]) -> dict[str, Tensor]:
        """Inputs of the right shapes; `image` is (width, height)."""
        return {"images": torch.zeros(batch, image[1], image[0], 3, dtype=torch.uint8)}

    def _run(self, images: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        outputs = self.model({"img": self.prepare(images)}, mode="tensor")
        height, width = images.shape[1], images.shape[2]
        found: dict[str, Tensor] = {}
        if self.model.box_head is not None:
            boxes, scores, labels, keep = self.model.box_head.rank(outputs["boxes"], self.prepare.shape)
            scale = self.prepare.scale(images).repeat(2)
            limits = torch.stack([torch.zeros(()) + side for side in (width, height)]).repeat(2)
            found |= _sort((boxes / scale).minimum(limits), scores, labels, keep)
        head = self.model.seg_head
        if head is not None:
            logits = head.at_input_size(outputs["seg_logits"], self.prepare.shape)
            logits = nn.functional.interpolate(
                logits, size=(height, width), mode="bilinear", align_corners=False
            )
            classes = logits.argmax(dim=1)
            if head.min_confidence > 0:
                is_sure = logits.softmax(dim=1).amax(dim=1) >= head.min_confidence
                classes = torch.where(is_sure, classes, IGNORE)
            found["seg"] = classes.to(torch.uint8)
        return found


def _softmax_of_channels(logits: Tensor) -> Tensor:
    """`softmax(dim=1)`, which runtimes transpose for, though the channels are few and the pixels many."""
    exponential = (logits - logits.amax(dim=1, keepdim=True)).exp()
    return exponential / exponential.sum(dim=1, keepdim=True)


def _sort(boxes: Tensor, scores: Tensor, labels: Tensor, keep: Tensor) -> dict[str, Tensor]:
    """Rows by score, those that are not kept last, with score 0."""
    scores, order = torch.where(keep, scores, 0.0).topk(scores.shape[1])
    return {
        "boxes": boxes.gather(1, order[..., None].expand_as(boxes)),
        "scores": scores,
        "labels": labels.gather(1, order),
    }
