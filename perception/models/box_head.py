"""The box head: object queries, decoder, class and box branches, losses, decoding.

Legend: B batch, L decoder layers, G query groups, q queries per group, Q = G·q, P extra queries, C channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from perception.models._layers import inverse_sigmoid
from perception.models.box_assigner import HungarianAssigner
from perception.models.box_coder import CENTRE, BoxCoder, DecodedBoxes, refine_centres, to_code
from perception.models.box_losses import LayerLosses, MatchedTargets, layer_losses
from perception.models.decoder import DecoderLayer
from perception.models.extra_queries import ExtraQueries, self_attention_mask
from perception.models.upstream_compat import UpstreamCompat
from perception.registry import MODELS
from perception.structures import CODE_SIZE, BEVGrid, encode_boxes

DEFAULT_CODE_WEIGHTS = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2)
UNIT_CODE_SCALE = (1.0,) * CODE_SIZE


@dataclass(frozen=True)
class BoxOutputs:
    """What the decoder layers say.

    cls_scores: (L, B, Q, num_classes), logits.
    codes: (L, B, Q, 10), metres.
    num_groups: G.
    extra: (B, P, C), extra queries after the last layer; None without any.
    """

    cls_scores: Tensor
    codes: Tensor
    num_groups: int
    extra: Tensor | None = None


@dataclass(frozen=True)
class BoxTargets:
    """Ground truth of one sample.

    boxes: (n, 9), bottom-centre, LiDAR frame, metres; velocity NaN where unknown.
    labels: (n,), int64.
    """

    boxes: Tensor
    labels: Tensor


@MODELS.register_module()
class BoxHead(nn.Module):
    """DETR-style 3D box head on BEV features.

    *Source*: BEVFormer §3.5. Options of ours: several query groups in training (Group DETR, as in BEVFormerV2), and
    reference points that start spread over the grid; with both off, parameters are exactly upstream's.

    Args:
        pc_range: (x_min, y_min, z_min, x_max, y_max, z_max), LiDAR frame, metres.
        bev_h: rows of the BEV grid.
        bev_w: columns of the BEV grid.
        embed_dims: C.
        num_classes: number of classes.
        num_query: q.
        num_layers: L.
        num_heads: of both attentions.
        num_points: sampled per head in the BEV.
        ffn_dims: hidden width of the feed-forward, by default 2C.
        dropout: probability, everywhere.
        with_box_refine: each layer has its own branches and moves the reference points; else all layers share one.
        num_query_groups: G in training; group 0 alone at inference.
        reference_init: "learned" as upstream (random), "grid": spread evenly over the BEV.
        code_weights: (10,), of the L1 losses.
        code_scale: (10,), what the regression branches' channels are multiplied by; 1 for the centres, whose unit is
            the whole range already. A branch starts with outputs around 0.1 and Adam moves each weight by the learning
            rate whatever the gradient, so a velocity of 10 m/s is thousands of steps away at scale 1 (upstream's), and
            hundreds at 30. The same function as scaling the last linear layers' rows.
        loss_cls_weight: factor of the focal loss.
        loss_box_weight: factor of the L1 losses.
        max_num: boxes per sample at most.
        score_threshold: boxes must score more; None keeps all.
        post_center_range: where decoded centres may lie, by default the range plus 10 m (z: 5 m) on each side.
        upstream_compat: switches of `UpstreamCompat`; None: all off.

    Raises:
        ValueError: `code_weights` or `code_scale` has not 10 numbers, `code_scale` is not positive or scales a centre,
            or a count is below 1.
    """

    def __init__(
        self,
        *,
        pc_range: Sequence[float],
        bev_h: int,
        bev_w: int,
        embed_dims: int = 256,
        num_classes: int = 10,
        num_query: int = 900,
        num_layers: int = 6,
        num_heads: int = 8,
        num_points: int = 4,
        ffn_dims: int | None = None,
        dropout: float = 0.1,
        with_box_refine: bool = True,
        num_query_groups: int = 1,
        reference_init: Literal["learned", "grid"] = "learned",
        code_weights: Sequence[float] = DEFAULT_CODE_WEIGHTS,
        code_scale: Sequence[float] = UNIT_CODE_SCALE,
        loss_cls_weight: float = 2.0,
        loss_box_weight: float = 0.25,
        max_num: int = 300,
        score_threshold: float | None = None,
        post_center_range: Sequence[float] | None = None,
        upstream_compat: UpstreamCompat | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if len(code_weights) != CODE_SIZE:
            raise ValueError(f"code_weights must have {CODE_SIZE} numbers, got {len(code_weights)}.")
        _check_scale(code_scale)
        counts = {"num_query": num_query, "num_layers": num_layers, "num_query_groups": num_query_groups}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}.")
        self.grid = BEVGrid.from_range(pc_range, bev_h, bev_w)
        x_min, y_min, z_min, x_max, y_max, z_max = self.grid.pc_range
        self.embed_dims = embed_dims
        self.num_classes = num_classes
        self.num_query = num_query
        self.num_query_groups = num_query_groups
        self.with_box_refine = with_box_refine
        self.loss_cls_weight = loss_cls_weight
        self.loss_box_weight = loss_box_weight
        self.compat = UpstreamCompat.read(upstream_compat)
        self.assigner = HungarianAssigner(cls_weight=loss_cls_weight, box_weight=loss_box_weight)
        if post_center_range is None:
            post_center_range = (x_min - 10, y_min - 10, z_min - 5, x_max + 10, y_max + 10, z_max + 5)
        self.coder = BoxCoder(
            post_center_range=post_center_range,
            max_num=max_num,
            score_threshold=score_threshold,
            lower_threshold=self.compat.lower_score_threshold,
        )

        self.query_embedding = nn.Embedding(num_query_groups * num_query, 2 * embed_dims)
        self.reference_points = nn.Linear(embed_dims, 3)
        self.decoder = nn.ModuleList(
            DecoderLayer(
                embed_dims=embed_dims,
                num_heads=num_heads,
                num_points=num_points,
                ffn_dims=2 * embed_dims if ffn_dims is None else ffn_dims,
                dropout=dropout,
            )
            for _ in range(num_layers)
        )
        num_branches = num_layers if with_box_refine else 1
        self.cls_branches = nn.ModuleList(_cls_branch(embed_dims, num_classes) for _ in range(num_branches))
        self.reg_branches = nn.ModuleList(_reg_branch(embed_dims) for _ in range(num_branches))
        # A parameter, though never trained, because upstream's is one.
        self.code_weights = nn.Parameter(torch.tensor(list(code_weights)), requires_grad=False)
        self.register_buffer("pc_range", torch.tensor(list(pc_range)), persistent=False)
        self.pc_range: Tensor
        self.register_buffer("code_scale", torch.tensor(list(code_scale)), persistent=False)
        self.code_scale: Tensor
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)
        if reference_init == "grid":
            self._spread_references()

    def forward(self, bev: Tensor, extra: ExtraQueries | None = None) -> BoxOutputs:
        """(B, bev_h·bev_w, C) → outputs of all layers; all groups in training, group 0 otherwise.

        Args:
            bev: the BEV features.
            extra: another head's queries, which go through the decoder's layers beside the box queries.
        """
        num_groups = self.num_query_groups if self.training else 1
        num_boxes = num_groups * self.num_query
        embedding = self.query_embedding.weight[:num_boxes]
        attention_mask = None
        if extra is not None:
            embedding = torch.cat([embedding, extra.embedding])
            attention_mask = self_attention_mask(num_groups, self.num_query, extra)
        query_pos, query = embedding[None].split(self.embed_dims, dim=-1)  # (1, Q + P, C)
        reference = self.reference_points(query_pos[:, :num_boxes]).sigmoid().expand(bev.shape[0], -1, -1)
        if self.training:  # else samples are alike until they look at their BEV
            query = query.expand(bev.shape[0], -1, -1)
        all_scores, all_codes = [], []
        for layer_idx, layer in enumerate(self.decoder):
            branch = layer_idx if self.with_box_refine else 0
            points = reference[..., :2]
            if extra is not None:
                points = torch.cat([points, extra.reference_points.expand(bev.shape[0], -1, -1)], dim=1)
            query = layer(
                query,
                query_pos,
                bev,
                points,
                (self.grid.bev_h, self.grid.bev_w),
                num_groups if extra is None else 1,
                attention_mask,
                layer_idx == 0,
            )
            boxes = query[:, :num_boxes]
            raw = self.reg_branches[branch](boxes) * self.code_scale
            centres = refine_centres(raw, reference)
            all_codes.append(to_code(raw, centres, self.pc_range))
            all_scores.append(self.cls_branches[branch](boxes))
            if self.with_box_refine:
                reference = centres.detach()
        return BoxOutputs(
            torch.stack(all_scores),
            torch.stack(all_codes),
            num_groups,
            None if extra is None else query[:, num_boxes:],
        )

    def loss(self, outputs: BoxOutputs, targets: Sequence[BoxTargets]) -> dict[str, Tensor]:
        """Losses of all layers, and the numbers of targets of the last one.

        Without ground truth in the whole batch, box and velocity are left out.

        Args:
            outputs: of `forward`.
            targets: one per sample.
        """
        per_layer = self.match(outputs, targets)
        losses: dict[str, Tensor] = {}
        for layer_idx, matched in enumerate(per_layer):
            layer = layer_losses(
                outputs.cls_scores[layer_idx],
                outputs.codes[layer_idx],
                matched,
                self.code_weights,
                cls_weight=self.loss_cls_weight,
                box_weight=self.loss_box_weight,
                drop_unknown_velocity=self.compat.drop_unknown_velocity,
            )
            is_last = layer_idx == len(per_layer) - 1
            losses.update(_name_losses(layer, "" if is_last else f"d{layer_idx}."))
        return losses

    @torch.no_grad()
    def match(self, outputs: BoxOutputs, targets: Sequence[BoxTargets]) -> list[MatchedTargets]:
        """Match queries to ground truth, each layer, sample and group on its own; one entry per layer."""
        layers, batch, num_query, _ = outputs.codes.shape
        groups = outputs.num_groups
        labels = torch.full((layers, batch, num_query), self.num_classes, device=outputs.codes.device)
        codes = outputs.codes.new_zeros(outputs.codes.shape)
        for sample_idx, target in enumerate(targets):
            if len(target.labels) == 0:
                continue
            gt_codes = encode_boxes(target.boxes.to(codes))
            gt_labels = target.labels.to(labels)
            pairs = self.assigner.assign(
                outputs.cls_scores[:, sample_idx].unflatten(1, (groups, -1)).flatten(0, 1),
                outputs.codes[:, sample_idx].unflatten(1, (groups, -1)).flatten(0, 1),
                gt_codes,
                gt_labels,
            )
            for slice_idx, (query_idx, gt_idx) in enumerate(pairs):
                layer_idx, group_idx = divmod(slice_idx, groups)
                rows = query_idx + group_idx * (num_query // groups)
                labels[layer_idx, sample_idx, rows] = gt_labels[gt_idx]
                codes[layer_idx, sample_idx, rows] = gt_codes[gt_idx]
        matched = labels < self.num_classes
        return [MatchedTargets(labels[i], codes[i], matched[i]) for i in range(layers)]

    def predict(self, outputs: BoxOutputs) -> list[DecodedBoxes]:
        """Boxes of each sample, from the last layer and group 0."""
        scores, codes = self.final(outputs)
        return [self.coder.decode(score, code) for score, code in zip(scores, codes, strict=True)]

    def final(self, outputs: BoxOutputs) -> tuple[Tensor, Tensor]:
        """What is decoded: (B, q, num_classes) and (B, q, 10) of the last layer and group 0."""
        return outputs.cls_scores[-1, :, : self.num_query], outputs.codes[-1, :, : self.num_query]

    @torch.no_grad()
    def _spread_references(self) -> None:
        """Shift the position embeddings, as little as possible, so that the reference points cover the grid evenly.

        Each group gets an R2 low-discrepancy sequence (Roberts 2018) of its own offset; z is the ground's middle.
        """
        total = len(self.query_embedding.weight)
        index = torch.arange(total, dtype=torch.float64) % self.num_query
        group = torch.arange(total) // self.num_query
        plastic = 1.32471795724474602596
        x = (0.5 + index / plastic + group * 0.5 / self.num_query**0.5) % 1
        y = (0.5 + index / plastic**2 + group * 0.5 / self.num_query**0.5) % 1
        points = torch.stack([x, y, torch.full_like(x, 0.5)], dim=-1).float()
        query_pos = self.query_embedding.weight[:, : self.embed_dims]
        missing = inverse_sigmoid(points) - self.reference_points(query_pos)
        query_pos += missing @ torch.linalg.pinv(self.reference_points.weight).T


def _check_scale(code_scale: Sequence[float]) -> None:
    if len(code_scale) != CODE_SIZE or any(scale <= 0 for scale in code_scale):
        raise ValueError(f"code_scale must have {CODE_SIZE} positive numbers, got {list(code_scale)}.")
    if any(code_scale[channel] != 1 for channel in CENTRE):
        raise ValueError(
            f"code_scale must be 1 for the centre (channels {CENTRE}), whose unit is the range; got {list(code_scale)}."
        )


def _cls_branch(embed_dims: int, num_classes: int) -> nn.Sequential:
    branch = nn.Sequential(
        nn.Linear(embed_dims, embed_dims),
        nn.LayerNorm(embed_dims),
        nn.ReLU(inplace=True),
        nn.Linear(embed_dims, embed_dims),
        nn.LayerNorm(embed_dims),
        nn.ReLU(inplace=True),
        nn.Linear(embed_dims, num_classes),
    )
    nn.init.constant_(branch[-1].bias, -4.59511985)  # prior probability 0.01
    return branch


def _reg_branch(embed_dims: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(embed_dims, embed_dims),
        nn.ReLU(inplace=True),
        nn.Linear(embed_dims, embed_dims),
        nn.ReLU(inplace=True),
        nn.Linear(embed_dims, CODE_SIZE),
    )


def _name_losses(layer: LayerLosses, prefix: str) -> dict[str, Tensor]:
    losses = {f"cls.{prefix}loss_focal": layer.cls}
    counts = {"cls.num_targets": layer.num_boxes}
    if layer.box is not None:
        losses[f"box.{prefix}loss_l1"] = layer.box
        counts["box.num_targets"] = layer.num_boxes
    if layer.velocity is not None:
        losses[f"velocity.{prefix}loss_l1"] = layer.velocity
        counts["velocity.num_targets"] = layer.num_velocities
    return {**losses, **counts}
