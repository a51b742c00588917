"""The box head: decoder states, scores, codes, matching, losses, decoding.

Legend: q object queries, C channels, G ground-truth boxes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from perception.checkpoint.upstream import convert_code
from perception.engine.parity.capture import Capture
from perception.engine.parity.comparison import Comparison
from perception.engine.parity.convention import convert_boxes, decode_gravity, gravity_boxes
from perception.engine.parity.tolerances import BOXES, CLASS_SCORES, CODES, COSTS, DECODER, LOSSES, SCORES
from perception.models import BoxHead
from perception.models.box_head import BoxOutputs, BoxTargets
from perception.structures import encode_boxes


def compare_boxes(compare: Comparison, head: BoxHead, bev: Tensor) -> list[Tensor]:
    """Run the box head on BEV features (1, Q, C) and compare all that it says; gives its loss terms."""
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
