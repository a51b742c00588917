"""From image features of all cameras, and the previous BEV, to the BEV features.

Legend: B batch, N cameras, Q = bev_h · bev_w cells (row-major), C channels, L levels, S = Σ h·w image cells.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from perception.models._layers import FeedForward
from perception.models.camera_projection import CameraPlan, pillar_points, plan_cameras, project_pillars
from perception.models.history import clear_motion, rotate_bev
from perception.models.spatial_cross_attention import SpatialCrossAttention
from perception.models.temporal_self_attention import QUEUE, TemporalSelfAttention
from perception.models.upstream_compat import UpstreamCompat
from perception.registry import MODELS
from perception.structures import EGO_MOTION_SIZE, BEVGrid, bev_shift

_FOCUSED_STD = 0.02


class LearnedPositionalEncoding(nn.Module):
    """One learned vector per column and one per row, concatenated in that order.

    Args:
        embed_dims: C, even.
        bev_h: rows.
        bev_w: columns.
    """

    def __init__(self, *, embed_dims: int, bev_h: int, bev_w: int) -> None:
        super().__init__()
        self.row_embed = nn.Embedding(bev_h, embed_dims // 2)
        self.col_embed = nn.Embedding(bev_w, embed_dims // 2)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(self) -> Tensor:
        """(1, Q, C)."""
        row, column = self.row_embed.weight, self.col_embed.weight
        bev_h, bev_w = len(row), len(column)
        grid = [column[None].expand(bev_h, -1, -1), row[:, None].expand(-1, bev_w, -1)]
        return torch.cat(grid, dim=-1).flatten(0, 1)[None]


class BEVEncoderLayer(nn.Module):
    """Temporal self-attention, spatial cross-attention and feed-forward, each followed by its norm.

    Args:
        embed_dims: C.
        num_heads: of both attentions.
        num_levels: L.
        num_points_in_pillar: D.
        num_points_temporal: sampled per head and queue entry.
        num_points_spatial: sampled per head, level and camera.
        ffn_dims: hidden width of the feed-forward.
        dropout: probability, everywhere.
        focused_init: of the spatial cross-attention.
        mixed_temporal_query: of the temporal self-attention.
    """

    def __init__(
        self,
        *,
        embed_dims: int,
        num_heads: int,
        num_levels: int,
        num_points_in_pillar: int,
        num_points_temporal: int,
        num_points_spatial: int,
        ffn_dims: int,
        dropout: float,
        focused_init: bool,
        mixed_temporal_query: bool,
    ) -> None:
        super().__init__()
        self.temporal_self_attention = TemporalSelfAttention(
            embed_dims=embed_dims,
            num_heads=num_heads,
            num_points=num_points_temporal,
            dropout=dropout,
            mixed_query=mixed_temporal_query,
        )
        self.spatial_cross_attention = SpatialCrossAttention(
            embed_dims=embed_dims,
            num_heads=num_heads,
            num_levels=num_levels,
            num_points=num_points_spatial,
            num_points_in_pillar=num_points_in_pillar,
            dropout=dropout,
            focused_init=focused_init,
        )
        self.ffn = FeedForward(embed_dims=embed_dims, hidden_dims=ffn_dims, dropout=dropout)
        self.norms = nn.ModuleList([nn.LayerNorm(embed_dims) for _ in range(3)])

    def forward(
        self,
        query: Tensor,
        bev_pos: Tensor,
        seen: Tensor,
        reference_points: Tensor,
        bev_shape: tuple[int, int],
        features: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        plan: CameraPlan,
    ) -> Tensor:
        """(B, Q, C) → (B, Q, C); arguments as the two attentions name them."""
        query = self.temporal_self_attention(query, bev_pos, seen, reference_points, bev_shape)
        query = self.norms[0](query)
        query = self.norms[1](self.spatial_cross_attention(query, features, spatial_shapes, plan))
        return self.norms[2](self.ffn(query))


@MODELS.register_module()
class BEVEncoder(nn.Module):
    """BEVFormer's encoder: a grid of BEV queries that gather image features and history.

    *Source*: BEVFormer §3 and its released code, upstream defects corrected: history, ego motion and visibility are
    each sample's own; the history turns about the vehicle; the shift moves only the history's reference points.
    `upstream_compat` brings each of them back.

    Args:
        pc_range: (x_min, y_min, z_min, x_max, y_max, z_max), LiDAR frame, metres.
        bev_h: rows of the grid.
        bev_w: columns of the grid.
        embed_dims: C, even.
        num_layers: number of encoder layers.
        num_cams: N.
        num_levels: L, feature levels per camera.
        num_heads: of both attentions.
        num_points_in_pillar: D.
        num_points_temporal: sampled per head and queue entry.
        num_points_spatial: sampled per head, level and camera; a multiple of D.
        ffn_dims: hidden width of the feed-forward, by default 2C.
        dropout: probability, everywhere.
        max_cameras_per_cell: of one sample, as `plan_cameras`; time and memory of the spatial cross-attention grow with
            it. 2 for nuScenes' rig; None: num_cams, enough for any.
        num_level_embeds: rows of `level_embeds`; upstream has 4 whatever L is.
        focused_init: start as little more than a projection of the image features: small BEV, camera, level and motion
            embeddings, and each head of the spatial cross-attention at one height of the pillar. Upstream starts from
            unit noise in each cell and wide offsets. Meant for short trainings; its own effect has not been ablated.
        upstream_compat: switches of `UpstreamCompat`; None: all off.

    Raises:
        ValueError: odd C, more levels than level embeddings, or room for no camera.
    """

    def __init__(
        self,
        *,
        pc_range: Sequence[float],
        bev_h: int,
        bev_w: int,
        embed_dims: int = 256,
        num_layers: int = 3,
        num_cams: int = 6,
        num_levels: int = 1,
        num_heads: int = 8,
        num_points_in_pillar: int = 4,
        num_points_temporal: int = 4,
        num_points_spatial: int = 8,
        ffn_dims: int | None = None,
        dropout: float = 0.1,
        max_cameras_per_cell: int | None = None,
        num_level_embeds: int = 4,
        focused_init: bool = False,
        upstream_compat: UpstreamCompat | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if embed_dims % 2:
            raise ValueError(f"embed_dims must be even (half for rows, half for columns), got {embed_dims}.")
        if num_levels > num_level_embeds:
            raise ValueError(
                f"num_levels must be at most num_level_embeds = {num_level_embeds}, got {num_levels}."
            )
        if max_cameras_per_cell is not None and max_cameras_per_cell < 1:
            raise ValueError(
                f"max_cameras_per_cell must be at least 1, or None for every camera, got {max_cameras_per_cell}."
            )
        self.grid = BEVGrid.from_range(pc_range, bev_h, bev_w)
        self.embed_dims = embed_dims
        self.num_cams = num_cams
        self.num_levels = num_levels
        self.compat = UpstreamCompat.read(upstream_compat)
        self.max_cameras_per_cell = max_cameras_per_cell

        self.bev_embedding = nn.Embedding(bev_h * bev_w, embed_dims)
        self.positional_encoding = LearnedPositionalEncoding(embed_dims=embed_dims, bev_h=bev_h, bev_w=bev_w)
        self.cams_embeds = nn.Parameter(torch.randn(num_cams, embed_dims))
        self.level_embeds = nn.Parameter(torch.randn(num_level_embeds, embed_dims))
        self.can_bus_mlp = nn.Sequential()
        for name, module in (
            ("0", nn.Linear(EGO_MOTION_SIZE, embed_dims // 2)),
            ("1", nn.ReLU()),
            ("2", nn.Linear(embed_dims // 2, embed_dims)),
            ("3", nn.ReLU()),
            ("norm", nn.LayerNorm(embed_dims)),
        ):
            self.can_bus_mlp.add_module(name, module)
        self.layers = nn.ModuleList(
            BEVEncoderLayer(
                embed_dims=embed_dims,
                num_heads=num_heads,
                num_levels=num_levels,
                num_points_in_pillar=num_points_in_pillar,
                num_points_temporal=num_points_temporal,
                num_points_spatial=num_points_spatial,
                ffn_dims=2 * embed_dims if ffn_dims is None else ffn_dims,
                dropout=dropout,
                focused_init=focused_init,
                mixed_temporal_query=self.compat.mixed_temporal_query,
            )
            for _ in range(num_layers)
        )
        if focused_init:
            self._shrink_embeddings()
        centres = torch.tensor(self.grid.centres()).reshape(-1, 2)
        corner, extent = torch.tensor(pc_range[:2]), torch.tensor(self.grid.extent[:2])
        self.register_buffer(
            "ref_2d", ((centres - corner) / extent).float(), persistent=False
        )  # (Q, 2), 0..1
        self.register_buffer("ref_3d", pillar_points(self.grid, num_points_in_pillar), persistent=False)
        self.ref_2d: Tensor
        self.ref_3d: Tensor

    @torch.no_grad()
    def _shrink_embeddings(self) -> None:
        for embedding in (
            self.bev_embedding.weight,
            self.cams_embeds,
            self.level_embeds,
            self.can_bus_mlp.norm.weight,
        ):
            embedding.mul_(_FOCUSED_STD)

    def forward(
        self,
        mlvl_feats: Sequence[Tensor],
        lidar2img: Tensor,
        ego_motion: Tensor,
        image_shape: tuple[int, int],
        prev_bev: Tensor | None = None,
        has_prev: Tensor | None = None,
    ) -> Tensor:
        """Compute the BEV features of one frame.

        Args:
            mlvl_feats: L tensors (B, N, C, h, w).
            lidar2img: (B, N, 4, 4), LiDAR metres → pixels of the network's input image.
            ego_motion: (B, 18), as `perception.structures.ego_motion`.
            image_shape: (height, width) of the padded input image, pixels.
            prev_bev: (B, Q, C), the previous frame's output, unaligned; None where no sample has one.
            has_prev: (B,), bool, which rows of `prev_bev` count; None: all.

        Returns:
            (B, Q, C).

        Raises:
            ValueError: the features or `prev_bev` do not fit the configuration.
        """
        self._check(mlvl_feats, prev_bev)
        batch = lidar2img.shape[0]
        chooses = has_prev is not None and prev_bev is not None
        if has_prev is None or prev_bev is None:
            has_prev = lidar2img.new_full((batch,), prev_bev is not None, dtype=torch.bool)
        ego_motion = clear_motion(ego_motion, has_prev)
        if self.compat.first_sample_history:
            has_prev = has_prev[:1].expand(batch)
        features, spatial_shapes = self.embed_features(mlvl_feats)
        plan = plan_cameras(
            *project_pillars(self.ref_3d, lidar2img, image_shape),
            max_cameras_per_cell=self.max_cameras_per_cell,
            first_sample=self.compat.first_sample_cameras,
        )
        reference_points = self.temporal_reference(ego_motion, has_prev)
        bev_pos = self.positional_encoding()
        query = self.initial_queries(ego_motion)
        queue = None
        if prev_bev is not None:
            history = rotate_bev(prev_bev, ego_motion[:, -1], self.grid, self.compat.rotate_center)
            queue = torch.stack([history, query], dim=1)  # (B, 2, Q, C)
        use_queue = has_prev[:, None, None, None]
        for layer in self.layers:
            # A sample without history looks twice at the layer's own query instead.
            twice = query[:, None].expand(-1, QUEUE, -1, -1)
            if queue is None:
                seen = twice
            else:
                seen = torch.where(use_queue, queue, twice) if chooses else queue
            query = layer(
                query,
                bev_pos,
                seen,
                reference_points,
                (self.grid.bev_h, self.grid.bev_w),
                features,
                spatial_shapes,
                plan,
            )
        return query

    def initial_queries(self, ego_motion: Tensor) -> Tensor:
        """(B, 18) → (B, Q, C): the learned grid plus what the ego motion says."""
        motion = self.can_bus_mlp(ego_motion.to(self.bev_embedding.weight.dtype))
        return self.bev_embedding.weight[None] + motion[:, None]

    def temporal_reference(self, ego_motion: Tensor, has_prev: Tensor) -> Tensor:
        """(B, 2, Q, 2), (x, y) in 0..1: where a cell lies in the aligned history, and in the current BEV."""
        with torch.autocast(ego_motion.device.type, enabled=False):
            shift = bev_shift(ego_motion.float(), self.grid) * has_prev[:, None]  # (B, 2)
            current = self.ref_2d[None].expand(shift.shape[0], -1, -1)
            moved = current + shift[:, None]
            return torch.stack([moved, moved if self.compat.aliased_shift else current], dim=1)

    def embed_features(self, mlvl_feats: Sequence[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
        """Add camera and level embeddings; L × (B, N, C, h, w) → (B·N, S, C) and the L (h, w)."""
        flat = []
        for level, feature in enumerate(mlvl_feats):
            tokens = feature.flatten(3).transpose(2, 3)  # (B, N, h·w, C)
            tokens = tokens + self.cams_embeds[None, :, None] + self.level_embeds[level]
            flat.append(tokens.flatten(0, 1))
        shapes = [(int(feature.shape[-2]), int(feature.shape[-1])) for feature in mlvl_feats]
        return torch.cat(flat, dim=1), shapes

    def _check(self, mlvl_feats: Sequence[Tensor], prev_bev: Tensor | None) -> None:
        if len(mlvl_feats) != self.num_levels:
            raise ValueError(
                f"the encoder expects {self.num_levels} feature level(s), the neck gave {len(mlvl_feats)}. Set "
                "bev_encoder.num_levels to the neck's num_outs."
            )
        cams, channels = mlvl_feats[0].shape[1:3]
        if cams != self.num_cams or channels != self.embed_dims:
            raise ValueError(
                f"the encoder expects {self.num_cams} cameras and {self.embed_dims} channels, got {cams} cameras "
                f"and {channels} channels. Set bev_encoder.num_cams, or the neck's out_channels, accordingly."
            )
        expected = (self.grid.bev_h * self.grid.bev_w, self.embed_dims)
        if prev_bev is not None and prev_bev.shape[1:] != expected:
            raise ValueError(
                f"prev_bev must be (B, {expected[0]}, {expected[1]}) for a {self.grid.bev_h} × {self.grid.bev_w} "
                f"grid, got {tuple(prev_bev.shape)}. It comes from a model with another bev_h, bev_w or embed_dims."
            )
