"""Self-attention of object queries.

Legend: B batch, n queries, C channels, H heads, D = C / H.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perception.models._dropout import draws_cheaply, keep_mask, keep_share

_PIECE = 1 << 21  # attention weights at once


class SelfAttention(nn.MultiheadAttention):
    """Multi-head attention of queries to each other, their positions added to queries and keys.

    *Source*: Vaswani et al. 2017, §3.2.2; parameters and their names are those of `nn.MultiheadAttention`. Where torch
    has a fused kernel, it is used; it has none for dropout on a CPU, and there the n × n weights are dropped with
    `keep_mask`.

    Args:
        embed_dims: C.
        num_heads: H.
        dropout: probability, on the attention weights.
    """

    def __init__(self, *, embed_dims: int, num_heads: int, dropout: float) -> None:
        super().__init__(embed_dims, num_heads, dropout=dropout, batch_first=True)

    def forward(self, located: Tensor, content: Tensor, sees: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            located: (B, n, C), with position.
            content: (B, n, C), without.
            sees: (n, n), bool, True = the row's query sees the column's; None: all see all.

        Returns:
            (B, n, C), without residual.
        """
        channels = content.shape[-1]
        weight, bias = self.in_proj_weight, self.in_proj_bias
        pair = F.linear(located, weight[: 2 * channels], bias[: 2 * channels])
        query, key = (self._heads(half) for half in pair.chunk(2, dim=-1))
        value = self._heads(F.linear(content, weight[2 * channels :], bias[2 * channels :]))
        p = self.dropout if self.training else 0.0
        if p > 0 and draws_cheaply(query, p):
            attended = _attend_with_dropout(query, key, value, sees, p)
        else:
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=sees, dropout_p=p)
        projected: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return projected

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, n, D)


def _attend_with_dropout(query: Tensor, key: Tensor, value: Tensor, sees: Tensor | None, p: float) -> Tensor:
    # In pieces, as every allocation of more than 32 MB would come from the system, page by page.
    pieces = max(1, _PIECE // max(1, query.shape[-2] * key.shape[-2]))  # heads at once
    queries, keys, values = (x.flatten(0, 1).split(pieces) for x in (query, key, value))
    attended = [_attend_piece(q, k, v, sees, p) for q, k, v in zip(queries, keys, values, strict=True)]
    return torch.cat(attended).view(value.shape)


def _attend_piece(query: Tensor, key: Tensor, value: Tensor, sees: Tensor | None, p: float) -> Tensor:
    scores = torch.bmm(query * query.shape[-1] ** -0.5, key.transpose(1, 2))  # (heads, n, n)
    if sees is not None:
        scores = scores.masked_fill(~sees, float("-inf"))
    weights = scores.softmax(dim=-1)
    # The values are scaled in the weights' place: they are fewer.
    return torch.bmm(weights * keep_mask(weights, p), (value / keep_share(p)).to(weights.dtype))
