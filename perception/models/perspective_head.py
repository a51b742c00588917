"""An auxiliary loss on the image features: what stands where in each camera's own view; training only.

Legend: B batch, N cameras, C channels, h × w cells of a feature level, K classes, n boxes of a sample, V visible pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from mmdet.models.losses import GaussianFocalLoss
from torch import Tensor, nn

from perception.models.box_head import BoxTargets
from perception.registry import MODELS
from perception.structures import project_points

_PRIOR_LOGIT = -4.59511985  # probability 0.01
_SIGMAS_PER_SIZE = 1 / 6
_SIGMA_RANGE = (0.5, 2.0)  # cells
_GEOMETRY = ("log depth", "log l", "log w", "log h", "sin alpha", "cos alpha")


@dataclass(frozen=True)
class VisibleBoxes:
    """Boxes in front of a camera whose centre lies in its image, one row per pair of camera and box.

    camera: (V,), int64, 0..N−1.
    box: (V,), int64, 0..n−1.
    uv: (V, 2), the gravity centre, pixels of the network's input image.
    depth: (V,), along the camera's axis, metres.
    size: (V,), longest side of the box as it appears, pixels.
    alpha: (V,), heading against the ray from the camera in the ground plane, radians, counter-clockwise.
    """

    camera: Tensor
    box: Tensor
    uv: Tensor
    depth: Tensor
    size: Tensor
    alpha: Tensor


@MODELS.register_module()
class PerspectiveHead(nn.Module):
    """Does each image cell hold a box's centre, of which class, how far, how large, and how is it turned?

    A BEV loss reaches the backbone only through the attention's few sampling points; here the image features are told
    directly. A 1×1 convolution per level, so that the features themselves must know.

    *Source*: the perspective supervision of BEVFormerV2 (Yang et al., CVPR 2023, §3.2), with CenterNet's heatmap in
    place of its FCOS3D head. Inference does not use it.

    Args:
        embed_dims: C.
        num_levels: feature levels, each with a convolution of its own.
        num_classes: K.
        min_depth: nearer centres are left out, metres.
        loss_cls_weight: factor of the heatmaps' focal loss.
        loss_box_weight: factor of the L1 loss of depth, size and heading.
    """

    def __init__(
        self,
        *,
        embed_dims: int = 256,
        num_levels: int = 1,
        num_classes: int = 10,
        min_depth: float = 1.0,
        loss_cls_weight: float = 0.5,
        loss_box_weight: float = 0.1,
    ) -> None:
        super().__init__()
        self.embed_dims = embed_dims
        self.num_classes = num_classes
        self.min_depth = min_depth
        self.loss_box_weight = loss_box_weight
        self.focal_loss = GaussianFocalLoss(reduction="sum", loss_weight=loss_cls_weight)
        self.levels = nn.ModuleList(
            nn.Conv2d(embed_dims, num_classes + len(_GEOMETRY), 1) for _ in range(num_levels)
        )
        for conv in self.levels:
            nn.init.zeros_(conv.bias)
            nn.init.constant_(conv.bias[:num_classes], _PRIOR_LOGIT)

    def loss(
        self,
        features: Sequence[Tensor],
        lidar2img: Tensor,
        image_shape: tuple[int, int],
        targets: Sequence[BoxTargets],
    ) -> dict[str, Tensor]:
        """Losses per box of the batch, averaged over the levels; the numbers of targets are the box head's.

        Args:
            features: per level (B, N, C, h, w).
            lidar2img: (B, N, 4, 4), LiDAR metres → pixels of the network's input image.
            image_shape: (height, width) of the padded input image, pixels.
            targets: one per sample.

        Returns:
            "cls.loss_perspective", and "box.loss_perspective" where a box is visible.
        """
        visible = [
            find_visible(target.boxes.to(matrix), matrix, image_shape, self.min_depth)
            for target, matrix in zip(targets, lidar2img, strict=True)
        ]
        num_boxes = max(sum(len(target.labels) for target in targets), 1)
        heat_losses, geometry_losses = [], []
        for conv, feature in zip(self.levels, features, strict=True):
            raw = conv(feature.flatten(0, 1)).unflatten(0, feature.shape[:2]).float()
            logits, geometry = raw.split([self.num_classes, len(_GEOMETRY)], dim=2)
            for sample, (pairs, target) in enumerate(zip(visible, targets, strict=True)):
                labels = target.labels.to(pairs.box.device)[pairs.box]
                scale = _cells_per_pixel(feature, image_shape)
                heat = self.heatmap(pairs, labels, scale, logits[sample])
                heat_losses.append(self.focal_loss(logits[sample].sigmoid(), heat))
                nearest, rows, columns = _nearest_per_cell(pairs, scale, feature.shape[-1])
                wanted = _geometry(pairs, target.boxes.to(raw))[nearest]
                found = geometry[sample, pairs.camera[nearest], :, rows[nearest], columns[nearest]]
                geometry_losses.append((found - wanted).abs().sum())
        num_terms = num_boxes * len(self.levels)
        losses = {"cls.loss_perspective": torch.stack(heat_losses).sum() / num_terms}
        if any(len(pairs.box) for pairs in visible):
            losses["box.loss_perspective"] = (
                torch.stack(geometry_losses).sum() / num_terms * self.loss_box_weight
            )
        return losses

    @torch.no_grad()
    def heatmap(self, pairs: VisibleBoxes, labels: Tensor, scale: Tensor, like: Tensor) -> Tensor:
        """A Gaussian around every visible centre, as wide as the box looks, and 1 in the centre's cell.

        Args:
            pairs: the V visible pairs.
            labels: (V,), int64.
            scale: (2,), cells per pixel, (x, y).
            like: (N, K, h, w), whose shape and type are wanted.

        Returns:
            (N, K, h, w), 0..1.
        """
        cams, classes, height, width = like.shape
        heat = like.new_zeros(cams * classes, height * width)
        rows, columns = torch.meshgrid(
            torch.arange(height, device=like.device), torch.arange(width, device=like.device), indexing="ij"
        )
        cells = torch.stack([columns, rows], dim=-1).flatten(0, 1) + 0.5  # (h·w, 2)
        centre = pairs.uv * scale  # (V, 2)
        sigma = (pairs.size * scale[0] * _SIGMAS_PER_SIZE).clamp(*_SIGMA_RANGE)
        distance = (cells[None] - centre[:, None]).square().sum(dim=-1)  # (V, h·w)
        gaussian = (-distance / (2 * sigma[:, None] ** 2)).exp().to(heat)
        gaussian[torch.arange(len(centre)), centre[:, 1].long() * width + centre[:, 0].long()] = 1.0
        index = (pairs.camera * classes + labels)[:, None].expand_as(gaussian)
        return heat.scatter_reduce_(0, index, gaussian, "amax").view(like.shape)


@torch.no_grad()
def find_visible(
    boxes: Tensor, lidar2img: Tensor, image_shape: tuple[int, int], min_depth: float
) -> VisibleBoxes:
    """Project gravity centres into all cameras of one sample; occlusion is not looked at.

    Args:
        boxes: (n, 9), bottom-centre, LiDAR frame, metres.
        lidar2img: (N, 4, 4), LiDAR metres → pixels.
        image_shape: (height, width), pixels.
        min_depth: metres.
    """
    centres = boxes[:, :3].clone()
    centres[:, 2] += boxes[:, 5] / 2
    uv, depth = project_points(centres[None], lidar2img[:, None])  # (N, n, 2), (N, n)
    height, width = image_shape
    inside = (uv >= 0).all(dim=-1) & (uv[..., 0] < width) & (uv[..., 1] < height) & (depth > min_depth)
    camera, box = inside.nonzero(as_tuple=True)
    depth = depth[camera, box]
    # The third row is the camera's axis, the first its x axis times the focal length plus c_x times the third.
    axis, first = torch.nn.functional.normalize(lidar2img[:, 2, :3], dim=-1), lidar2img[:, 0, :3]
    focal = torch.linalg.vector_norm(first - (first * axis).sum(-1, keepdim=True) * axis, dim=-1)
    position = -torch.linalg.solve(lidar2img[:, :3, :3], lidar2img[:, :3, 3])  # (N, 3)
    ray = centres[box, :2] - position[camera, :2]
    return VisibleBoxes(
        camera=camera,
        box=box,
        uv=uv[camera, box],
        depth=depth,
        size=boxes[box, 3:6].amax(dim=-1) * focal[camera] / depth,
        alpha=boxes[box, 6] - torch.atan2(ray[:, 1], ray[:, 0]),
    )


def _cells_per_pixel(feature: Tensor, image_shape: tuple[int, int]) -> Tensor:
    height, width = image_shape
    return feature.new_tensor([feature.shape[-1] / width, feature.shape[-2] / height], dtype=torch.float32)


def _geometry(pairs: VisibleBoxes, boxes: Tensor) -> Tensor:
    """(V, 6), in the order of `_GEOMETRY`; log metres."""
    sizes = boxes[pairs.box, 3:6].log()
    return torch.cat(
        [pairs.depth.log()[:, None], sizes, pairs.alpha.sin()[:, None], pairs.alpha.cos()[:, None]], dim=-1
    )


def _nearest_per_cell(pairs: VisibleBoxes, scale: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mask (V,) of the pairs that are the nearest of their cell, and every pair's row and column."""
    columns, rows = (pairs.uv * scale).long().unbind(dim=-1)
    cell = torch.stack([pairs.camera, rows, columns], dim=-1)
    if len(cell) == 0:
        return torch.zeros(0, dtype=torch.bool, device=cell.device), rows, columns
    _, cell_idx = cell.unique(dim=0, return_inverse=True)
    nearest = pairs.depth.new_full((int(cell_idx.max()) + 1,), float("inf"))
    nearest.scatter_reduce_(0, cell_idx, pairs.depth, "amin")
    return pairs.depth == nearest[cell_idx], rows, columns
