"""Fixtures of the official detector: images → boxes over several frames, and one training step."""

from typing import Any

import torch
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.structures import InstanceData
from torch import Tensor

from perception.checkpoint.upstream import convert_code, convert_state
from perception.engine.parity.boxes import compare_losses, take_targets
from perception.engine.parity.capture import Capture
from perception.engine.parity.comparison import Comparison
from perception.engine.parity.convention import convert_boxes
from perception.engine.parity.fixtures import Fixture, count, official_state
from perception.engine.parity.heads import compare_gradient_norms
from perception.engine.parity.modules import build_detector
from perception.models import BEVFormer
from perception.structures.ego_motion import TRANSLATION, YAW_CHANGE_DEGREES

TOLERANCE, BOXES = 1e-4, 2e-4  # the folder's README
_FRAME = "inputs/frame{}/"


def compare_detector(fixture: Fixture) -> Comparison:
    """Predict frame after frame, then train on the queue of all frames, and compare all that is in the fixture."""
    compare = Comparison(fixture)
    state = convert_state(official_state(fixture.arrays))
    model = build_detector(fixture.info["model_config"], state, is_binze=fixture.is_binze)
    capture = Capture()
    for name in ("img_neck", "bev_encoder", "box_head"):
        capture.result(name, getattr(model, name))
    frames = range(count(fixture.arrays, _FRAME + "img"))
    _compare_predictions(compare, model.eval(), capture, frames)
    _compare_training(compare, model.train(), capture, frames)
    return compare


def _compare_predictions(compare: Comparison, model: BEVFormer, capture: Capture, frames: range) -> None:
    previous: Tensor | None = None
    for frame in frames:
        prefix = f"outputs/test/frame{frame}/"
        if not compare.has(f"{prefix}scores"):
            continue
        motion, has_prev = _motion(compare, frame, previous, f"{prefix}can_bus_seen_by_head")
        previous = compare.take(f"{_FRAME.format(frame)}can_bus_absolute")
        sample = Det3DDataSample(
            metainfo={"sample_token": f"{frame}", "prev_token": f"{frame - 1}" if has_prev else ""}
        )
        with torch.no_grad():
            inputs = _inputs(compare, [frame], [motion], [has_prev])
            predicted = model(inputs, [sample], mode="predict")[0].pred_instances_3d
        for level, feature in enumerate(capture["img_neck"]):
            compare.near("image features", f"{prefix}fpn{level}", feature, TOLERANCE)
        _compare_bev(compare, f"{prefix}bev_embed", capture)
        outputs = capture["box_head"]
        compare.near("class scores", f"{prefix}all_cls_scores", outputs.cls_scores, TOLERANCE)
        compare.near("box codes", f"{prefix}all_bbox_preds", outputs.codes, BOXES, convert=convert_code)
        compare.exact("decoded labels", f"{prefix}labels", predicted.labels_3d)
        compare.near("decoded scores", f"{prefix}scores", predicted.scores_3d, TOLERANCE)
        boxes = predicted.bboxes_3d.tensor
        compare.boxes("decoded boxes", f"{prefix}boxes_bottom", boxes, BOXES, convert_boxes)


def _compare_training(compare: Comparison, model: BEVFormer, capture: Capture, frames: range) -> None:
    prefix = "outputs/train/"
    if not compare.has(f"{prefix}loss/loss_cls"):
        return
    motions, flags = [], []
    previous: Tensor | None = None
    for frame in frames:
        motion, has_prev = _motion(compare, frame, previous, f"{prefix}frame{frame}/can_bus_delta")
        previous = compare.take(f"{_FRAME.format(frame)}can_bus_absolute")
        motions.append(motion)
        flags.append(has_prev)
    targets = take_targets(compare, "inputs/")
    sample = Det3DDataSample()
    boxes = LiDARInstance3DBoxes(targets.boxes, box_dim=targets.boxes.shape[-1])
    sample.gt_instances_3d = InstanceData(bboxes_3d=boxes, labels_3d=targets.labels)
    losses = model(_inputs(compare, list(frames), motions, flags), [sample], mode="loss")
    _compare_bev(compare, f"{prefix}bev_embed", capture)
    terms = compare_losses(compare, f"{prefix}loss/", losses, TOLERANCE)
    torch.stack(terms).sum().backward()
    compare_gradient_norms(compare, f"{prefix}grad_norm/", dict(model.named_parameters()), TOLERANCE)


def _compare_bev(compare: Comparison, key: str, capture: Capture) -> None:
    compare.near("BEV features", key, capture["bev_encoder"].transpose(0, 1), TOLERANCE)


def _motion(compare: Comparison, frame: int, previous: Tensor | None, key: str) -> tuple[Tensor, bool]:
    """What the head sees, (18,), from absolute values; and whether the frame has a predecessor in its scene.

    The arrays don't say where a scene begins, but the head sees no change there.
    """
    motion = compare.fixture.arrays[f"{_FRAME.format(frame)}can_bus_absolute"].clone()
    seen = compare.fixture.arrays[key]
    changes = [*range(TRANSLATION.start, TRANSLATION.stop), YAW_CHANGE_DEGREES]
    has_prev = previous is not None and bool(seen[changes].any())
    motion[changes] = motion[changes] - previous[changes] if previous is not None and has_prev else 0.0
    compare.near("ego motion", key, motion, 0.0)
    return motion, has_prev


def _inputs(
    compare: Comparison, frames: list[int], motions: list[Tensor], flags: list[bool]
) -> dict[str, Any]:
    keys = [_FRAME.format(frame) for frame in frames]
    return {
        "img": torch.stack([compare.take(f"{key}img") for key in keys])[None],
        "lidar2img": torch.stack([compare.take(f"{key}lidar2img") for key in keys])[None],
        "ego_motion": torch.stack(motions)[None],
        "has_prev": torch.tensor([flags]),
    }
