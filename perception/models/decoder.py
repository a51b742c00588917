"""The detection decoder: object queries look at each other and at the BEV, and move their reference points.

Legend: B batch, G query groups, q queries per group, C channels, H heads, P points.
"""

from torch import Tensor, nn

from perception.models._dropout import Dropout
from perception.models._layers import (
    FeedForward,
    at_least_float,
    check_heads,
    init_attention,
    sampling_locations,
    spread_offsets,
)
from perception.models._remembered import Remembered
from perception.models.self_attention import SelfAttention
from perception.ops import multi_scale_deformable_attention


class BEVCrossAttention(nn.Module):
    """Deformable attention of object queries over the BEV, plus the residual.

    *Source*: Deformable DETR's cross-attention with one level; only (x, y) of the reference point is used.

    Args:
        embed_dims: C.
        num_heads: H.
        num_points: P.
        dropout: probability, on the output.
    """

    def __init__(self, *, embed_dims: int, num_heads: int, num_points: int, dropout: float) -> None:
        super().__init__()
        check_heads(embed_dims, num_heads)
        self.num_heads = num_heads
        self.num_points = num_points
        self.sampling_offsets = nn.Linear(embed_dims, num_heads * num_points * 2)
        self.attention_weights = nn.Linear(embed_dims, num_heads * num_points)
        self.value_proj = nn.Linear(embed_dims, embed_dims)
        self.output_proj = nn.Linear(embed_dims, embed_dims)
        self.dropout = Dropout(dropout)
        init_attention(
            self.sampling_offsets,
            self.attention_weights,
            (self.value_proj, self.output_proj),
            spread_offsets(num_heads, 1, num_points),
        )

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        bev: Tensor,
        reference_points: Tensor,
        bev_shape: tuple[int, int],
    ) -> Tensor:
        """Attend.

        Args:
            query: (B, G·q, C).
            query_pos: (1, G·q, C).
            bev: (B, bev_h·bev_w, C).
            reference_points: (B, G·q, 2), (x, y) in 0..1 of the BEV.
            bev_shape: (bev_h, bev_w).

        Returns:
            (B, G·q, C), before the norm.
        """
        batch, num_query, channels = query.shape
        shape = (batch, num_query, self.num_heads, 1, self.num_points)
        located = query + query_pos
        offsets = at_least_float(self.sampling_offsets(located)).view(*shape[:4], 1, self.num_points, 2)
        weights = self.attention_weights(located).view(shape).softmax(dim=-1)
        locations = sampling_locations(reference_points[:, :, None, None], offsets, [bev_shape]).squeeze(4)
        value = self.value_proj(bev).view(batch, -1, self.num_heads, channels // self.num_heads)
        attended = multi_scale_deformable_attention(value, [bev_shape], locations, weights)
        return query + self.dropout(self.output_proj(attended))


class DecoderLayer(nn.Module):
    """Self-attention within each query group, cross-attention to the BEV, feed-forward; a norm after each.

    Args:
        embed_dims: C.
        num_heads: H.
        num_points: P of the cross-attention.
        ffn_dims: hidden width of the feed-forward.
        dropout: probability, everywhere.
    """

    def __init__(
        self, *, embed_dims: int, num_heads: int, num_points: int, ffn_dims: int, dropout: float
    ) -> None:
        super().__init__()
        self.self_attention = SelfAttention(embed_dims=embed_dims, num_heads=num_heads, dropout=dropout)
        self.self_dropout = Dropout(dropout)
        self.cross_attention = BEVCrossAttention(
            embed_dims=embed_dims, num_heads=num_heads, num_points=num_points, dropout=dropout
        )
        self.ffn = FeedForward(embed_dims=embed_dims, hidden_dims=ffn_dims, dropout=dropout)
        self.norms = nn.ModuleList([nn.LayerNorm(embed_dims) for _ in range(3)])
        self._first_look = Remembered()

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        bev: Tensor,
        reference_points: Tensor,
        bev_shape: tuple[int, int],
        num_groups: int,
        attention_mask: Tensor | None = None,
        is_first: bool = False,
    ) -> Tensor:
        """(B, G·q, C) → (B, G·q, C); arguments as `BEVCrossAttention.forward`, but `query` may be (1, G·q, C).

        With an `attention_mask` of (n, n), bool, True = row sees column, it says who sees whom instead of the groups,
        which then need not be alike. `is_first` says that the queries are parameters: without dropout, what they see in
        each other is then the same for every frame.
        """
        if is_first and not self.training:
            inputs = [query, query_pos, *self.self_attention.parameters(), *self.norms[0].parameters()]
            inputs += [] if attention_mask is None else [attention_mask]
            query = self._first_look(
                inputs, lambda: self._look_around(query, query_pos, num_groups, attention_mask)
            )
        else:
            query = self._look_around(query, query_pos, num_groups, attention_mask)
        query = query.expand(bev.shape[0], -1, -1)
        query = self.norms[1](self.cross_attention(query, query_pos, bev, reference_points, bev_shape))
        return self.norms[2](self.ffn(query))

    def _look_around(
        self, query: Tensor, query_pos: Tensor, num_groups: int, attention_mask: Tensor | None
    ) -> Tensor:
        if attention_mask is None:
            return self.norms[0](self._attend_within_groups(query, query_pos, num_groups))
        return self.norms[0](self._attend(query, query_pos, attention_mask))

    def _attend_within_groups(self, query: Tensor, query_pos: Tensor, num_groups: int) -> Tensor:
        batch, num_query, channels = query.shape
        grouped = (batch * num_groups, num_query // num_groups, channels)
        located = (query + query_pos).reshape(grouped)
        attended = self.self_attention(located, query.reshape(grouped))
        return query + self.self_dropout(attended.reshape(query.shape))

    def _attend(self, query: Tensor, query_pos: Tensor, attention_mask: Tensor) -> Tensor:
        attended = self.self_attention(query + query_pos, query, attention_mask)
        return query + self.self_dropout(attended)
