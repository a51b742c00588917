"""What the comparison falls back on where the official code is not at hand: its rebatching, restated in plain torch.

Legend: B batch, N cameras, Q BEV cells, K most visible cells of a camera, D points per pillar, C channels, H heads,
L levels, P points.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from perception.models import BEVEncoder
from perception.models.camera_projection import CameraPlan
from perception.models.spatial_cross_attention import SpatialCrossAttention


class RebatchingCrossAttention(SpatialCrossAttention):
    """The same function as `SpatialCrossAttention`, in loops over samples and cameras.

    *Source*: BEVFormer's paper §3.3 and the description of its released code: the visible queries of each camera are
    copied, one sample and camera at a time, into a padded batch, all linear layers act on the copies, and the results
    are added back in the same loops. It needs a plan with a slot for every camera; visibility is each sample's own.
    """

    def forward(
        self, query: Tensor, features: Tensor, spatial_shapes: Sequence[tuple[int, int]], plan: CameraPlan
    ) -> Tensor:
        """As `SpatialCrossAttention.forward`."""
        batch, num_query, channels = query.shape
        num_cams = len(features) // batch
        heads, levels, points = self.num_heads, self.num_levels, self.num_points
        reference = plan.reference_points.transpose(1, 2)  # (B, N, Q, D, 2)
        num_anchors = reference.shape[3]
        share = plan.weight.transpose(1, 2)  # (B, N, Q), 0 where unseen

        visible = [[share[b, n].nonzero().squeeze(-1) for n in range(num_cams)] for b in range(batch)]
        most = max(len(idx) for sample in visible for idx in sample)  # K
        queries = query.new_zeros(batch, num_cams, most, channels)
        anchors = reference.new_zeros(batch, num_cams, most, num_anchors, 2)
        for b in range(batch):
            for n in range(num_cams):
                idx = visible[b][n]
                queries[b, n, : len(idx)] = query[b, idx]
                anchors[b, n, : len(idx)] = reference[b, n, idx]
        queries, anchors = queries.flatten(0, 1), anchors.flatten(0, 1)

        value = self.value_proj(features).view(len(features), -1, heads, channels // heads)
        offsets = self.sampling_offsets(queries).view(-1, most, heads, levels, points, 2)
        weights = self.attention_weights(queries).view(-1, most, heads, levels * points).softmax(dim=-1)
        size = torch.tensor([[width, height] for height, width in spatial_shapes])
        offsets = offsets / size[:, None, :]
        offsets = offsets.unflatten(4, (points // num_anchors, num_anchors))  # the anchor varies fastest
        locations = (anchors[:, :, None, None, None] + offsets).flatten(4, 5)  # (B·N, K, H, L, P, 2)
        attended = plain_deformable_attention(
            value, spatial_shapes, locations, weights.view(-1, most, heads, levels, points)
        ).unflatten(0, (batch, num_cams))

        summed = torch.zeros_like(query)
        for b in range(batch):
            for n in range(num_cams):
                idx = visible[b][n]
                summed[b, idx] = summed[b, idx] + attended[b, n, : len(idx)]
        count = (share > 0).sum(dim=1).clamp(min=1)[..., None]  # (B, Q, 1)
        return query + self.dropout(self.output_proj(summed / count))


def plain_deformable_attention(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Deformable attention the direct way: sample every level, stack, weigh, sum.

    *Source*: Deformable DETR, eq. 3.

    Args:
        value: (B, S, H, D).
        spatial_shapes: L pairs (h, w).
        locations: (B, Q, H, L, P, 2), (x, y) in 0..1.
        weights: (B, Q, H, L, P).

    Returns:
        (B, Q, C).
    """
    batch, _, heads, channels = value.shape
    queries = locations.shape[1]
    maps = value.split([height * width for height, width in spatial_shapes], dim=1)
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # (B·H, Q, L, P, 2)
    samples = [
        F.grid_sample(
            maps[level].flatten(2).transpose(1, 2).reshape(batch * heads, channels, *shape),
            grids[:, :, level],
            align_corners=False,
        )
        for level, shape in enumerate(spatial_shapes)
    ]  # L × (B·H, D, Q, P)
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    out = (torch.stack(samples, dim=-2).flatten(-2) * weights).sum(-1)
    return out.view(batch, heads * channels, queries).transpose(1, 2)


def use_rebatching(encoder: BEVEncoder) -> None:
    """Let an encoder's spatial cross-attentions rebatch; parameters and their names stay.

    Args:
        encoder: changed in place.
    """
    encoder.max_cameras_per_cell = None
    for layer in encoder.layers:
        layer.spatial_cross_attention.__class__ = RebatchingCrossAttention
