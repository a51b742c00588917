"""Deformable attention into all maps of a batch row, without a choice among them."""

from collections.abc import Sequence

from torch import Tensor

from perception.ops import multi_scale_deformable_attention


def attend_every_map(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """(B, Q, C), the sum of an attention for each of the N maps, as exported graphs need, which can't choose.

    Args:
        value: (B·N, S, H, C/H).
        spatial_shapes: (height, width) of the L levels.
        locations: (B, Q, H, L, N, P, 2).
        weights: (B, Q, H, L, N, P).
    """
    locations = locations.permute(0, 4, 1, 2, 3, 5, 6).flatten(0, 1)  # (B·N, Q, H, L, P, 2)
    per_map = weights.permute(0, 4, 1, 2, 3, 5).flatten(0, 1)
    attended = multi_scale_deformable_attention(value, spatial_shapes, locations, per_map)  # (B·N, Q, C)
    return attended.unflatten(0, (weights.shape[0], -1)).sum(dim=1)
