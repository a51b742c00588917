"""Fixtures of the official head: image features → BEV → boxes, map, losses, gradients.

Legend: N cameras, Q BEV cells, q object queries, C channels, D points per pillar, G ground-truth boxes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from perception.checkpoint.upstream import convert_code, convert_state, official_to_ours
from perception.engine.parity.capture import Capture
from perception.engine.parity.comparison import Comparison
from perception.engine.parity.convention import convert_boxes, decode_gravity, gravity_boxes
from perception.engine.parity.fixtures import Fixture, count, official_state
from perception.engine.parity.modules import build_heads
from perception.models import BEVEncoder, BoxHead, SegHead
from perception.models.box_head import BoxOutputs, BoxTargets
from perception.models.camera_projection import project_pillars
from perception.structures import bev_shift, encode_boxes

# The folder's README: recommended for a float32 re-implementation.
POSITIONS, CAMERA_POINTS, ENCODER, DECODER = 3e-6, 5e-6, 1e-4, 5e-5
CLASS_SCORES, CODES, SCORES, BOXES = 2e-5, 2e-4, 5e-6, 2e-4
COSTS, LOSSES, MAP_SCORES = 1e-4, 2e-5, 5e-5
GRADIENTS, GRADIENTS_WITH_MAP = 1e-4, 3e-2
_FRAME = "inputs/frame{}/"


def compare_head(fixture: Fixture) -> Comparison:
    """Run the head on a fixture's frames, and compare all that is in it."""
    compare = Comparison(fixture)
    state = convert_state(official_state(fixture.arrays))
    heads = build_heads(fixture.info["head_config"], state, is_binze=fixture.is_binze).eval()
    encoder = heads["bev_encoder"]
    assert isinstance(encoder, BEVEncoder)
    capture = _watch_encoder(encoder)
    num_frames = count(fixture.arrays, _FRAME + "can_bus")
    prev_bev = compare.take("inputs/prev_bev") if compare.has("inputs/prev_bev") else None
    features: list[Tensor] = []
    for frame in range(num_frames):
        is_last = frame == num_frames - 1
        prefix = "outputs/" if is_last else f"outputs/frame{frame}/"
        with torch.set_grad_enabled(is_last):
            features = _features(compare, frame)
            bev = _encode(compare, prefix, frame, encoder, features, prev_bev, capture)
        compare.near("encoder layers", f"{prefix}bev_embed_only_bev", bev, ENCODER)
        prev_bev = bev
    compare.near("encoder layers", "outputs/head/bev_embed", bev.transpose(0, 1), ENCODER)
    losses: list[Tensor] = []
    if "seg_head" in heads:
        losses += _compare_map(compare, heads["seg_head"], bev)
    if "box_head" in heads:
        losses += _compare_boxes(compare, heads["box_head"], bev)
    if losses:
        total = torch.stack(losses).sum()
        compare.near("total loss", "outputs/loss/total", total[None], LOSSES)
        total.backward()
        _compare_gradients(compare, heads, features, with_map="seg_head" in heads)
    return compare


def compare_gradient_norms(
    compare: Comparison, prefix: str, parameters: Mapping[str, nn.Parameter], tolerance: float
) -> None:
    """Compare norms of gradients; NaN stands for a parameter that is not trained."""
    for key in [key for key in compare.fixture.arrays if key.startswith(prefix)]:
        parameter = parameters[str(official_to_ours(key.removeprefix(prefix)))]
        missing = torch.tensor(torch.nan) if not parameter.requires_grad else torch.zeros(())
        norm = missing if parameter.grad is None else parameter.grad.norm()
        compare.relative("gradients (relative)", key, norm, tolerance)


def compare_losses(
    compare: Comparison, prefix: str, losses: Mapping[str, Tensor], tolerance: float = LOSSES
) -> list[Tensor]:
    """Compare the box head's loss terms with upstream's, whose box loss includes the velocity; gives our terms."""
    layers = [key.removeprefix("cls.").removesuffix("loss_focal") for key in losses if key.startswith("cls.")]
    for layer in layers:
        if layer == "num_targets":
            continue
        compare.near(
            "class loss", f"{prefix}{layer}loss_cls", losses[f"cls.{layer}loss_focal"][None], tolerance
        )
        box = losses[f"box.{layer}loss_l1"] + losses.get(f"velocity.{layer}loss_l1", torch.zeros(()))
        compare.near("box loss", f"{prefix}{layer}loss_bbox", box, tolerance)
    return [value for key, value in losses.items() if "loss_" in key]


def compare_matches(
    compare: Comparison, prefix: str, head: BoxHead, outputs: BoxOutputs, targets: BoxTargets
) -> None:
    """Compare costs, matches and targets of each decoder layer, one sample."""
    gt_codes = encode_boxes(targets.boxes)
    for layer, matched in enumerate(head.match(outputs, [targets])):
        here = f"{prefix}layer{layer}/"
        scores, codes = outputs.cls_scores[layer, 0], outputs.codes[layer, 0]
        compare.near(
            "matching costs", f"{here}cls_cost", head.assigner.cls_cost(scores, targets.labels), COSTS
        )
        compare.near("matching costs", f"{here}reg_cost", head.assigner.box_cost(codes, gt_codes), COSTS)
        rows = matched.matched[0].nonzero()[:, 0]
        compare.exact("matched indices", f"{here}labels", matched.labels[0])
        compare.exact("matched indices", f"{here}pos_inds", rows, convert=lambda x: x.sort().values)
        wanted = decode_gravity(matched.codes[0, rows])
        compare.boxes("box targets", f"{here}bbox_targets", wanted, BOXES, convert_boxes, rows=rows)


def take_targets(compare: Comparison, prefix: str) -> BoxTargets:
    """The ground truth in today's convention."""
    return BoxTargets(
        convert_boxes(compare.take(f"{prefix}gt_boxes_bottom")), compare.take(f"{prefix}gt_labels")
    )


# ---------------------------------------------------------------------------------------------------- the encoder


def _features(compare: Comparison, frame: int) -> list[Tensor]:
    name = _FRAME.format(frame) + "mlvl_feats{}"
    levels = [compare.take(name.format(level)) for level in range(count(compare.fixture.arrays, name))]
    return [level.clone().requires_grad_() for level in levels]


def _watch_encoder(encoder: BEVEncoder) -> Capture:
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


def _encode(
    compare: Comparison,
    prefix: str,
    frame: int,
    encoder: BEVEncoder,
    features: list[Tensor],
    prev_bev: Tensor | None,
    capture: Capture,
) -> Tensor:
    inputs = _FRAME.format(frame)
    lidar2img = compare.take(f"{inputs}lidar2img")[None]
    motion = compare.take(f"{inputs}can_bus")[None]
    height, width = compare.take(f"{inputs}img_shape")[0, :2].tolist()
    bev = encoder(features, lidar2img, motion, (height, width), prev_bev)

    query, bev_pos, history, _, reference, _, tokens, shapes, _ = capture["layer"]
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


# ------------------------------------------------------------------------------------------------------ the heads


def _compare_boxes(compare: Comparison, head: nn.Module, bev: Tensor) -> list[Tensor]:
    assert isinstance(head, BoxHead)
    capture = Capture()
    capture.arguments("decoder", head.decoder[0])
    capture.result("init_reference", head.reference_points)
    for idx, layer in enumerate(head.decoder):
        capture.arguments(f"layer{idx}/self_attn_out", layer.norms[0])
        capture.result(f"layer{idx}/cross_attn_out", layer.cross_attention)
        capture.result(f"layer{idx}", layer)
    outputs = head(bev)

    def states(name: str, key: str, value: Tensor) -> None:
        compare.near(name, f"outputs/dec/{key}", value, DECODER)

    query, query_pos = capture["decoder"][:2]  # (1, q, C)
    states("decoder states", "query_in", query.transpose(0, 1))
    states("decoder states", "query_pos", query_pos.transpose(0, 1))
    states("decoder reference points", "init_reference", capture["init_reference"].sigmoid())
    for idx in range(len(head.decoder)):
        attended = capture[f"layer{idx}/self_attn_out"][0]
        states("decoder states", f"layer{idx}/self_attn_out", attended.transpose(0, 1))
        crossed = capture[f"layer{idx}/cross_attn_out"]
        states("decoder states", f"layer{idx}/cross_attn_out", crossed.transpose(0, 1))
    layers = torch.stack([capture[f"layer{idx}"] for idx in range(len(head.decoder))])
    states("decoder states", "inter_states", layers.transpose(1, 2))
    low, extent = torch.tensor(head.grid.pc_range[:3]), torch.tensor(head.grid.extent)
    references = (outputs.codes[..., [0, 1, 4]] - low) / extent
    states("decoder reference points", "inter_references", references)
    compare.near("class scores", "outputs/head/all_cls_scores", outputs.cls_scores, CLASS_SCORES)
    compare.near("box codes", "outputs/head/all_bbox_preds", outputs.codes, CODES, convert=convert_code)
    _compare_decoding(compare, head, outputs)
    if not compare.has("outputs/loss/layer0/labels"):
        return []
    targets = take_targets(compare, "inputs/")
    compare.boxes(
        "box targets",
        "outputs/loss/gt_gravity",
        decode_gravity(encode_boxes(targets.boxes)),
        BOXES,
        convert_boxes,
    )
    compare_matches(compare, "outputs/loss/", head, outputs, targets)
    return compare_losses(compare, "outputs/loss/terms/", head.loss(outputs, [targets]))


def _compare_decoding(compare: Comparison, head: BoxHead, outputs: BoxOutputs) -> None:
    if not compare.has("outputs/decode/scores"):
        return
    decoded = head.predict(outputs)[0]
    compare.exact("decoded labels", "outputs/decode/labels", decoded.labels)
    compare.near("decoded scores", "outputs/decode/scores", decoded.scores, SCORES)
    compare.boxes("decoded boxes", "outputs/decode/bboxes_bottom", decoded.boxes, BOXES, convert_boxes)
    compare.boxes(
        "decoded boxes",
        "outputs/decode/bboxes_gravity",
        gravity_boxes(decoded.boxes),
        BOXES,
        convert_boxes,
    )


def _compare_map(compare: Comparison, head: nn.Module, bev: Tensor) -> list[Tensor]:
    assert isinstance(head, SegHead)
    capture = Capture()
    capture.arguments("bev", head.slicer)
    capture.result("cropped", head.slicer)
    capture.result("layer3", head.seg_encode.layer3)
    logits = head(bev)
    flipped = capture["bev"][0].transpose(2, 3).flip(2)
    compare.near("map features", "outputs/seg/bev_flipped", flipped, ENCODER)
    compare.near("map features", "outputs/seg/bev_cropped", capture["cropped"], ENCODER)
    compare.near("map features", "outputs/seg/layer3", capture["layer3"], ENCODER)
    compare.near("map scores", "outputs/head/seg_preds", logits, MAP_SCORES)
    if not compare.has("inputs/semantic_indices"):
        return []
    loss = head.loss(logits, [compare.take("inputs/semantic_indices")[0]])["seg.loss_ce"]
    compare.near("map loss", "outputs/loss/terms/loss_seg", loss, LOSSES)
    return [loss]


def _compare_gradients(
    compare: Comparison, heads: nn.ModuleDict, features: list[Tensor], *, with_map: bool
) -> None:
    tolerance = GRADIENTS_WITH_MAP if with_map else GRADIENTS
    quantity = "gradients (relative)"
    for level, feature in enumerate(features):
        assert feature.grad is not None
        compare.relative(quantity, f"outputs/grad/mlvl_feats{level}", feature.grad, tolerance)
    parameters = dict(heads.named_parameters())
    prefix = "outputs/grad/"
    for key in [key for key in compare.fixture.arrays if key.startswith(f"{prefix}pts_bbox_head.")]:
        official = key.removeprefix(prefix)
        ours = str(official_to_ours(official))
        gradient = parameters[ours].grad

        def convert(value: Tensor, official: str = official, ours: str = ours) -> Tensor:
            return convert_state({official: value})[ours]

        assert gradient is not None
        compare.relative(quantity, key, gradient, tolerance, convert=convert)
    compare_gradient_norms(compare, "outputs/grad_norm/", parameters, tolerance)
