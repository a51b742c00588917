"""Temporal self-attention: every BEV query looks into the previous BEV and into the current one.

Legend: B batch, Q BEV cells, C channels, H heads, T = 2 queue entries (history, current), P points.
"""

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
from perception.ops import multi_scale_deformable_attention

QUEUE = 2


class TemporalSelfAttention(nn.Module):
    """Deformable attention over the aligned previous BEV and the current BEV queries; the two are averaged.

    *Source*: BEVFormer §3.4. Deviations from upstream's code: offsets are predicted from each sample's own history
    (upstream's `value[:bs]` mixes samples at batch > 1), and history exists or not per sample.

    Args:
        embed_dims: C.
        num_heads: H.
        num_points: P, sampled per head and queue entry.
        dropout: probability, on the output.
        mixed_query: predict offsets from upstream's `value[:bs]`, which mixes samples at batch > 1.

    Raises:
        ValueError: C is not a multiple of H.
    """

    def __init__(
        self,
        *,
        embed_dims: int,
        num_heads: int = 8,
        num_points: int = 4,
        dropout: float = 0.1,
        mixed_query: bool = False,
    ) -> None:
        super().__init__()
        check_heads(embed_dims, num_heads)
        self.num_heads = num_heads
        self.num_points = num_points
        self.mixed_query = mixed_query
        self.sampling_offsets = nn.Linear(QUEUE * embed_dims, num_heads * QUEUE * num_points * 2)
        self.attention_weights = nn.Linear(QUEUE * embed_dims, num_heads * QUEUE * num_points)
        self.value_proj = nn.Linear(embed_dims, embed_dims)
        self.output_proj = nn.Linear(embed_dims, embed_dims)
        self.dropout = Dropout(dropout)
        init_attention(
            self.sampling_offsets,
            self.attention_weights,
            (self.value_proj, self.output_proj),
            spread_offsets(num_heads, QUEUE, num_points),
        )

    def forward(
        self,
        query: Tensor,
        bev_pos: Tensor,
        seen: Tensor,
        reference_points: Tensor,
        bev_shape: tuple[int, int],
    ) -> Tensor:
        """Attend and add the residual.

        Args:
            query: (B, Q, C).
            bev_pos: (1 or B, Q, C), positional embedding.
            seen: (B, T, Q, C), the aligned previous BEV and the encoder's input queries; for a sample without history,
                `query` twice.
            reference_points: (B, 2, Q, 2), (x, y) in 0..1 of the BEV, for history and for current.
            bev_shape: (bev_h, bev_w).

        Returns:
            (B, Q, C), before the norm.
        """
        batch, num_query, channels = query.shape
        heads, points = self.num_heads, self.num_points
        first = seen.flatten(0, 1)[:batch] if self.mixed_query else seen[:, 0]
        both = torch.cat([first, query + bev_pos], dim=-1)  # (B, Q, 2C)
        shape = (batch, num_query, heads, 1, QUEUE, points)
        offsets = at_least_float(self.sampling_offsets(both)).view(*shape, 2)
        weights = self.attention_weights(both).view(shape).softmax(dim=-1) / QUEUE  # the two are averaged
        reference = reference_points.transpose(1, 2)[:, :, :, None]  # (B, Q, T, 1, 2)
        locations = sampling_locations(reference, offsets, [bev_shape])  # (B, Q, H, 1, T, P, 2)

        value = self.value_proj(seen).view(batch * QUEUE, num_query, heads, channels // heads)
        queue_idx = torch.arange(QUEUE, device=query.device).expand(batch, num_query, -1)
        attended = multi_scale_deformable_attention(
            value, [bev_shape], locations.flatten(4, 5), weights.flatten(4, 5), queue_idx
        )  # (B, Q, C)
        return query + self.dropout(self.output_proj(attended))
