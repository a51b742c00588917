"""Pieces that several transformer modules share."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from perception.models._dropout import Dropout


def at_least_float(x: Tensor) -> Tensor:
    """Half precision → float32; float32 and float64 as they are. For positions, which half can't address."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """log(x / (1 − x)) with both clamped to at least `eps`; x in 0..1."""
    x = x.clamp(0.0, 1.0)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def sampling_locations(
    reference: Tensor, offsets: Tensor, spatial_shapes: Sequence[tuple[int, int]]
) -> Tensor:
    """Where a deformable attention samples: offsets from reference points, for all heads and levels.

    Args:
        reference: (B, Q, M, R, 2), (x, y) in 0..1 of the map in slot m; the points take its R entries in turn.
        offsets: (B, Q, H, L, M or 1, P, 2), cells of the level; P is a multiple of R.
        spatial_shapes: (height, width) of each of the L levels.

    Returns:
        (B, Q, H, L, M, P, 2), in 0..1.
    """
    batch, num_query, slots, entries, _ = reference.shape
    points = offsets.shape[-2]
    sizes = offsets.new_tensor([(width, height) for height, width in spatial_shapes])
    # Both are laid out point by point: torch then runs along all points instead of along the pairs (x, y).
    sizes = sizes[:, None, None].repeat(1, 1, points, 1)  # (L, 1, P, 2)
    reference = reference[:, :, :, None].expand(-1, -1, -1, points // entries, -1, -1)
    reference = reference.reshape(batch, num_query, 1, 1, slots, points, 2)
    return torch.addcdiv(reference, offsets, sizes)


def spread_offsets(num_heads: int, repeats: int, num_points: int) -> Tensor:
    """Initial bias of a sampling-offset layer: head h looks in direction 2πh / H, point p at distance p + 1 cells.

    *Source*: Deformable DETR, appendix.

    Args:
        num_heads: H.
        repeats: how many queues and levels there are per head.
        num_points: P.

    Returns:
        (H·repeats·P·2,), cells.
    """
    angle = torch.arange(num_heads, dtype=torch.float32) * (2 * torch.pi / num_heads)
    direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
    direction = direction / direction.abs().amax(dim=-1, keepdim=True)
    distance = torch.arange(1, num_points + 1, dtype=torch.float32)
    offsets = direction[:, None, None, :] * distance[None, None, :, None]  # (H, 1, P, 2)
    return offsets.expand(-1, repeats, -1, -1).reshape(-1)


def init_attention(
    sampling_offsets: nn.Linear, attention_weights: nn.Linear, projections: Sequence[nn.Linear], bias: Tensor
) -> None:
    """Initialise a deformable attention: fixed spread of offsets, equal weights, Xavier projections."""
    nn.init.zeros_(sampling_offsets.weight)
    nn.init.zeros_(attention_weights.weight)
    nn.init.zeros_(attention_weights.bias)
    with torch.no_grad():
        sampling_offsets.bias.copy_(bias)
    for projection in projections:
        nn.init.xavier_uniform_(projection.weight)
        nn.init.zeros_(projection.bias)


class FeedForward(nn.Module):
    """Linear, ReLU, linear, each followed by dropout, plus the input.

    Args:
        embed_dims: C.
        hidden_dims: width in between.
        dropout: probability.
    """

    def __init__(self, *, embed_dims: int, hidden_dims: int, dropout: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(embed_dims, hidden_dims)
        self.linear2 = nn.Linear(hidden_dims, embed_dims)
        self.dropout = Dropout(dropout)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) → (..., C)."""
        hidden = self.linear1(x)
        # In place, the graph would no longer tell which layer the values came from, which connection strength asks.
        hidden = self.dropout(hidden.relu() if hidden.requires_grad else hidden.relu_())
        return x + self.dropout(self.linear2(hidden))


def check_heads(embed_dims: int, num_heads: int) -> None:
    """Refuse a channel count that the heads can't share.

    Raises:
        ValueError: `embed_dims` is not a multiple of `num_heads`.
    """
    if num_heads < 1 or embed_dims % num_heads:
        raise ValueError(
            f"embed_dims must be a multiple of num_heads, got {embed_dims} and {num_heads}. Change one of them in "
            "the model config."
        )
