"""Spatial cross-attention: every BEV query looks at the image features where its pillar projects to.

Legend: B batch, N cameras, Q BEV cells, M cameras that a cell looks into, D points per pillar, C channels, H heads,
L levels, P points.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from perception.models._dropout import Dropout
from perception.models._layers import (
    at_least_float,
    check_heads,
    init_attention,
    sampling_locations,
    spread_offsets,
)
from perception.models.camera_projection import CameraPlan
from perception.ops import multi_scale_deformable_attention

_FOCUSED_SPREAD = 0.25  # of upstream's initial offsets
_FOCUSED_LOGIT = 3.0  # softmax gives a head's own height 87 % of 4


class SpatialCrossAttention(nn.Module):
    """Deformable attention around the projected pillar points, averaged over the cameras that see the cell.

    *Source*: BEVFormer §3.3. The P points are split as P/D per pillar point, the pillar point varying fastest; no
    positional term is added to the query. Deviation from upstream's code: visibility is each sample's own, and
    there is no loop over samples or cameras: each cell samples P points in each camera that sees it.

    Args:
        embed_dims: C.
        num_heads: H.
        num_levels: L.
        num_points: P, a multiple of `num_points_in_pillar`.
        num_points_in_pillar: D.
        dropout: probability, on the output.
        focused_init: start with head h looking at pillar point h mod D, close to where it projects; else as upstream,
            all heads at all heights, up to P feature cells away.

    Raises:
        ValueError: C is not a multiple of H, or P not of D.
    """

    def __init__(
        self,
        *,
        embed_dims: int,
        num_heads: int = 8,
        num_levels: int = 1,
        num_points: int = 8,
        num_points_in_pillar: int = 4,
        dropout: float = 0.1,
        focused_init: bool = False,
    ) -> None:
        super().__init__()
        check_heads(embed_dims, num_heads)
        if num_points % num_points_in_pillar:
            raise ValueError(
                f"num_points must be a multiple of num_points_in_pillar, got {num_points} and {num_points_in_pillar}."
            )
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        self.sampling_offsets = nn.Linear(embed_dims, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(embed_dims, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(embed_dims, embed_dims)
        self.output_proj = nn.Linear(embed_dims, embed_dims)
        self.dropout = Dropout(dropout)
        init_attention(
            self.sampling_offsets,
            self.attention_weights,
            (self.value_proj, self.output_proj),
            spread_offsets(num_heads, num_levels, num_points),
        )
        if focused_init:
            self._focus(num_points_in_pillar)

    @torch.no_grad()
    def _focus(self, num_anchors: int) -> None:
        self.sampling_offsets.bias.mul_(_FOCUSED_SPREAD)
        logits = self.attention_weights.bias.view(self.num_heads, self.num_levels, -1, num_anchors)
        for head in range(self.num_heads):
            logits[head, :, :, head % num_anchors] = _FOCUSED_LOGIT

    def forward(
        self, query: Tensor, features: Tensor, spatial_shapes: Sequence[tuple[int, int]], plan: CameraPlan
    ) -> Tensor:
        """Attend and add the residual.

        Args:
            query: (B, Q, C).
            features: (B·N, S, C), the levels flattened and concatenated.
            spatial_shapes: (height, width) of each of the L levels.
            plan: which cameras each cell looks into.

        Returns:
            (B, Q, C), before the norm. A cell that no camera sees keeps its value plus the output bias.
        """
        batch, num_query, channels = query.shape
        heads, levels, points = self.num_heads, self.num_levels, self.num_points

        offsets = at_least_float(self.sampling_offsets(query)).view(
            batch, num_query, heads, levels, 1, points, 2
        )
        locations = sampling_locations(plan.reference_points, offsets, spatial_shapes)
        weights = self.attention_weights(query).view(batch, num_query, heads, levels * points).softmax(dim=-1)
        weights = (
            weights.view(batch, num_query, heads, levels, 1, points) * plan.weight[:, :, None, None, :, None]
        )

        value = self.value_proj(features).view(features.shape[0], -1, heads, channels // heads)
        attended = multi_scale_deformable_attention(
            value, spatial_shapes, locations.flatten(4, 5), weights.flatten(4, 5), plan.camera_idx
        )  # (B, Q, C)
        return query + self.dropout(self.output_proj(attended))
