"""Fixtures of the official head: image features → BEV → boxes, map, losses, gradients."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from perception.checkpoint.upstream import convert_state, official_to_ours
from perception.engine.parity.boxes import compare_boxes
from perception.engine.parity.capture import Capture
from perception.engine.parity.comparison import Comparison
from perception.engine.parity.encoder import compare_encoder, watch_encoder
from perception.engine.parity.fixtures import Fixture, count, official_state
from perception.engine.parity.modules import build_heads
from perception.engine.parity.tolerances import ENCODER, GRADIENTS, GRADIENTS_WITH_MAP, LOSSES, MAP_SCORES
from perception.models import BEVEncoder, BoxHead, SegHead


def compare_head(fixture: Fixture) -> Comparison:
    """Run the head on a fixture's frames, and compare all that is in it."""
    compare = Comparison(fixture)
    state = convert_state(official_state(fixture.arrays))
    heads = build_heads(fixture.info["head_config"], state, is_binze=fixture.is_binze).eval()
    encoder = heads["bev_encoder"]
    assert isinstance(encoder, BEVEncoder)
    capture = watch_encoder(encoder)
    num_frames = count(fixture.arrays, "inputs/frame{}/can_bus")
    prev_bev = compare.take("inputs/prev_bev") if compare.has("inputs/prev_bev") else None
    features: list[Tensor] = []
    for frame in range(num_frames):
        is_last = frame == num_frames - 1
        prefix = "outputs/" if is_last else f"outputs/frame{frame}/"
        with torch.set_grad_enabled(is_last):
            features = _features(compare, frame)
            bev = compare_encoder(compare, prefix, frame, encoder, features, prev_bev, capture)
        compare.near("encoder layers", f"{prefix}bev_embed_only_bev", bev, ENCODER)
        prev_bev = bev
    compare.near("encoder layers", "outputs/head/bev_embed", bev.transpose(0, 1), ENCODER)
    losses: list[Tensor] = []
    if "seg_head" in heads:
        losses += _compare_map(compare, heads["seg_head"], bev)
    if "box_head" in heads:
        box_head = heads["box_head"]
        assert isinstance(box_head, BoxHead)
        losses += compare_boxes(compare, box_head, bev)
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


def _features(compare: Comparison, frame: int) -> list[Tensor]:
    name = f"inputs/frame{frame}/mlvl_feats" + "{}"
    levels = [compare.take(name.format(level)) for level in range(count(compare.fixture.arrays, name))]
    return [level.clone().requires_grad_() for level in levels]


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
