"""Queries that another head adds to those of the box head, for the same decoder.

Legend: G query groups, q box queries per group, Q = G·q, P extra queries, C channels.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Attention = Literal["joint", "separate"]


@dataclass(frozen=True)
class ExtraQueries:
    """What the decoder needs to know of them.

    embedding: (P, 2C), position and content, as the box queries have.
    reference_points: (P, 2), (x, y) in 0..1 of the BEV; they stay where they are.
    attention: "joint": box and extra queries see each other in self-attention; "separate": each their own kind.
    """

    embedding: Tensor
    reference_points: Tensor
    attention: Attention = "joint"

    def __len__(self) -> int:
        return len(self.embedding)


def self_attention_mask(num_groups: int, num_query: int, extra: ExtraQueries) -> Tensor | None:
    """Who sees whom in self-attention: each box group itself, extra queries themselves, and jointly also each other.

    Extra queries see the first box group only, for that is the one that is there at inference.

    Args:
        num_groups: G.
        num_query: q.
        extra: the P extra queries.

    Returns:
        (Q + P, Q + P), bool, True = row sees column; None: all see all.

    Example:
        >>> extra = ExtraQueries(torch.zeros(1, 8), torch.zeros(1, 2))
        >>> self_attention_mask(2, 1, extra).int().tolist()
        [[1, 0, 1], [0, 1, 1], [1, 0, 1]]
    """
    is_joint = extra.attention == "joint"
    if num_groups == 1 and is_joint:
        return None
    device = extra.embedding.device
    group = torch.arange(num_groups, device=device).repeat_interleave(num_query)
    group = torch.cat([group, group.new_full((len(extra),), -1)])  # −1: an extra query
    is_extra = group < 0
    mask = group[:, None] == group
    if is_joint:
        mask |= ~is_extra[:, None] & is_extra
        mask |= is_extra[:, None] & (group == 0)
    return mask
