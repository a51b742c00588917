"""The BEV encoder: embeddings, motion, reference points, projections, layers.

Legend: N cameras, Q BEV cells, C channels, D points per pillar.
"""

import torch
from torch import Tensor

from perception.engine.parity.capture import Capture
from perception.engine.parity.comparison import Comparison
from perception.engine.parity.tolerances import CAMERA_POINTS, ENCODER, POSITIONS
from perception.models import BEVEncoder
from perception.models.camera_projection import project_pillars
from perception.structures import bev_shift


def watch_encoder(encoder: BEVEncoder) -> Capture:
    """Hooks on the encoder, for `compare_encoder`."""
    capture = Capture()
    capture.result("can_bus_embed", encoder.can_bus_mlp)
    capture.arguments("layer", encoder.layers[0])
    for name in ("sampling_offsets", "attention_weights"):
        capture.result(name, getattr(encoder.layers[0].temporal_self_attention, name))
    for idx, layer in enumerate(encoder.layers):
        capture.result(f"layer{idx}/tsa_out", layer.temporal_self_attention)
        capture.result(f"layer{idx}/sca_out", layer.spatial_cross_attention)
        capture.result(f"layer{idx}/out", layer)
    return capture


def compare_encoder(
    compare: Comparison,
    prefix: str,
    frame: int,
    encoder: BEVEncoder,
    features: list[Tensor],
    prev_bev: Tensor | None,
    capture: Capture,
) -> Tensor:
    """Run the encoder on one frame and compare what it does.

    Args:
        compare: gets the differences.
        prefix: of the frame's results.
        frame: its number.
        encoder: the module.
        features: (1, N, C, h, w) per level.
        prev_bev: (1, Q, C), or None without history.
        capture: the encoder's, from `watch_encoder`.

    Returns:
        (1, Q, C).
    """
    inputs = f"inputs/frame{frame}/"
    lidar2img = compare.take(f"{inputs}lidar2img")[None]
    motion = compare.take(f"{inputs}can_bus")[None]
    height, width = compare.take(f"{inputs}img_shape")[0, :2].tolist()
    bev = encoder(features, lidar2img, motion, (height, width), prev_bev)

    query, bev_pos, seen, reference, _, tokens, shapes, _ = capture["layer"]
    history = seen[:, 0]
    here = f"{prefix}enc/"
    compare.near("embeddings", f"{here}can_bus_embed", capture["can_bus_embed"], POSITIONS)
    compare.near("embeddings", f"{here}bev_query_in", query.transpose(0, 1), POSITIONS)
    compare.near("embeddings", f"{here}bev_pos", bev_pos.transpose(0, 1), POSITIONS)
    compare.near("embeddings", f"{here}feat_flatten", tokens[:, :, None], POSITIONS)
    compare.exact("embeddings, sizes", f"{here}spatial_shapes", torch.tensor(shapes))
    compare.near("shift", f"{here}shift", bev_shift(motion.float(), encoder.grid), POSITIONS)
    if frame == 0:
        compare.exact("rotated history", f"{here}prev_bev_rotated", history.transpose(0, 1))
    else:  # of our own BEV, which is near the official one
        compare.near("rotated history, own BEV", f"{here}prev_bev_rotated", history.transpose(0, 1), ENCODER)
    low, extent = torch.tensor(encoder.grid.pc_range[:3]), torch.tensor(encoder.grid.extent)
    pillars = (encoder.ref_3d - low) / extent  # (Q, D, 3)
    compare.near("reference points", f"{here}ref_3d", pillars.transpose(0, 1)[None], POSITIONS)
    compare.near("reference points", f"{here}hybrid_ref_2d", reference[0][:, :, None], POSITIONS)
    points, mask = project_pillars(encoder.ref_3d, lidar2img, (height, width))  # (1, N, Q, D, …)
    compare_cameras(compare, here, points, mask)
    for name in ("sampling_offsets", "attention_weights"):
        compare.near("encoder layers", f"{here}layer0/tsa_{name}_linear", capture[name], ENCODER)
    for idx in range(len(encoder.layers)):
        for name in ("tsa_out", "sca_out", "out"):
            compare.near("encoder layers", f"{here}layer{idx}/{name}", capture[f"layer{idx}/{name}"], ENCODER)
    compare.near("encoder layers", f"{here}out", bev, ENCODER)
    return bev


def compare_cameras(compare: Comparison, prefix: str, points: Tensor, mask: Tensor) -> None:
    """Compare masks, and projections where they count.

    Args:
        compare: gets the differences.
        prefix: of the arrays' names.
        points: (1, N, Q, D, 2), as `project_pillars` returns them.
        mask: (1, N, Q, D), bool.
    """
    key = f"{prefix}bev_mask"
    compare.exact("camera masks", key, mask.transpose(0, 1))
    seen = compare.fixture.arrays[key] if compare.has(key) else mask.transpose(0, 1)
    compare.near(
        "projected points",
        f"{prefix}reference_points_cam",
        points.transpose(0, 1),
        CAMERA_POINTS,
        where=seen,
    )
