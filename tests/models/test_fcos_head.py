"""The 2D box head against mmdet's FCOSHead, and what mmdet has not: ignored regions, scores, original pixels."""

from typing import Any

import pytest
import torch
from mmdet.models.dense_heads import FCOSHead
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch.testing import assert_close

from perception.models import FCOSHead2D
from perception.models.fcos_head import Boxes2D, PointOutputs
from perception.models.point_assigner import assign_points, centerness, locate
from tests.models.images import random_boxes

# mmdet calls torch.meshgrid in its old way.
pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")
STRIDES, RANGES = (8, 16, 32), ((-1, 64), (64, 128), (128, 1e8))
SIZE = (192, 320)
NUM_CLASSES = 10


def head(**changes: Any) -> FCOSHead2D:
    torch.manual_seed(0)
    options = {"in_channels": 16, "feat_channels": 16, "num_groups": 4, "stacked_convs": 1}
    return FCOSHead2D(**{**options, **changes})


def mmdet_head() -> FCOSHead:
    # A runner of an earlier test may have left its own registries as the default.
    with DefaultScope.overwrite_default_scope("mmdet"):
        return FCOSHead(
            num_classes=NUM_CLASSES,
            in_channels=16,
            feat_channels=16,
            strides=list(STRIDES),
            regress_ranges=RANGES,
            center_sampling=True,
            norm_on_bbox=True,
            centerness_on_reg=True,
            norm_cfg=None,
            loss_bbox=dict(type="GIoULoss", loss_weight=1.0),
            test_cfg=ConfigDict(
                nms_pre=1000, score_thr=0.05, nms=dict(type="nms", iou_threshold=0.6), max_per_img=100
            ),
        )


def images(count: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Boxes and labels of random images, a few without any box."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        num_boxes = 0 if number % 17 == 5 else int(torch.randint(1, 30, (), generator=generator))
        boxes = random_boxes(generator, num_boxes, SIZE)
        found.append((boxes, torch.randint(0, NUM_CLASSES, (num_boxes,), generator=generator)))
    return found


def shapes() -> list[tuple[int, int]]:
    return [(SIZE[0] // stride, SIZE[1] // stride) for stride in STRIDES]


def test_targets_are_mmdets_on_100_images() -> None:
    reference = mmdet_head()
    locations = locate(shapes(), STRIDES, RANGES, torch.device("cpu"))
    points = reference.prior_generator.grid_priors(shapes(), dtype=torch.float32, device="cpu")
    assert torch.equal(locations.points, torch.cat(points))
    num_assigned = 0
    for boxes, labels in images(100):
        found = assign_points(
            locations, boxes, labels, torch.zeros(0, 4), num_classes=NUM_CLASSES, center_radius=1.5
        )
        per_level, targets = reference.get_targets(points, [InstanceData(bboxes=boxes, labels=labels)])
        assert torch.equal(found.labels, torch.cat(per_level))
        is_assigned = found.labels < NUM_CLASSES
        num_assigned += int(is_assigned.sum())
        wanted = torch.cat(targets)[is_assigned]
        distances = (found.distances / locations.strides[:, None])[is_assigned]
        assert torch.equal(distances, wanted)
        assert_close(centerness(distances), reference.centerness_target(wanted), rtol=1e-6, atol=0)
        assert not found.is_ignored.any()
    assert num_assigned > 5_000


def random_outputs(batch: int, seed: int) -> PointOutputs:
    generator = torch.Generator().manual_seed(seed)
    locations = locate(shapes(), STRIDES, RANGES, torch.device("cpu"))
    num = len(locations.points)
    return PointOutputs(
        torch.randn(batch, num, NUM_CLASSES, generator=generator) - 2,
        torch.rand(batch, num, 4, generator=generator) * 4,
        torch.randn(batch, num, generator=generator),
        locations,
    )


def as_maps(values: torch.Tensor) -> list[torch.Tensor]:
    """(B, P, C) → mmdet's maps (B, C, h, w) per level."""
    parts = values.split([height * width for height, width in shapes()], dim=1)
    return [part.transpose(1, 2).unflatten(2, shape) for part, shape in zip(parts, shapes(), strict=True)]


def test_losses_and_their_gradients_are_mmdets_on_100_images() -> None:
    ours, reference = head(), mmdet_head()
    for number in range(0, 100, 4):
        targets = images(100)[number : number + 4]
        outputs = random_outputs(4, number)
        leaves = [
            values.requires_grad_() for values in (outputs.cls_scores, outputs.distances, outputs.centerness)
        ]
        found = ours.loss(outputs, [Boxes2D(boxes, labels, torch.zeros(0, 4)) for boxes, labels in targets])
        wanted = reference.loss_by_feat(
            as_maps(leaves[0]),
            as_maps(leaves[1]),
            as_maps(leaves[2][..., None]),
            [InstanceData(bboxes=boxes, labels=labels) for boxes, labels in targets],
            [{}] * 4,
        )
        names = {"loss_focal": "loss_cls", "loss_giou": "loss_bbox", "loss_centerness": "loss_centerness"}
        for own, theirs in names.items():
            assert_close(found[own], wanted[theirs], rtol=2e-5, atol=1e-6)
        gradients = [
            torch.autograd.grad(sum(losses[name] for name in chosen), leaves)
            for losses, chosen in ((found, names), (wanted, names.values()))
        ]
        for own, theirs in zip(*gradients, strict=True):
            assert_close(own, theirs, rtol=1e-3, atol=1e-6)


def test_predictions_are_mmdets_but_for_the_root() -> None:
    ours, reference = head(), mmdet_head()
    reference.eval()
    outputs = random_outputs(2, 1)
    metainfo = {"img_shape": (180, 310), "ori_shape": (360, 620), "scale_factor": (0.5, 0.5)}
    distances = outputs.distances * outputs.locations.strides[:, None]
    wanted = reference.predict_by_feat(
        as_maps(outputs.cls_scores),
        as_maps(distances),
        as_maps(outputs.centerness[..., None]),
        batch_img_metas=[metainfo] * 2,
        rescale=True,
    )
    for own, theirs in zip(ours.predict(outputs, [metainfo] * 2), wanted, strict=True):
        assert len(own) == 100
        assert_close(own.scores, theirs.scores.sqrt())
        assert torch.equal(own.labels, theirs.labels)
        assert_close(own.bboxes, theirs.bboxes)
        assert own.bboxes[:, 0::2].max() <= 620
        assert own.bboxes[:, 1::2].max() <= 360


def test_background_in_an_ignored_region_does_not_count() -> None:
    outputs = random_outputs(1, 3)
    box, crowd = torch.tensor([[100.0, 60.0, 140.0, 100.0]]), torch.tensor([[90.0, 50.0, 200.0, 150.0]])
    target = Boxes2D(box, torch.tensor([2]), crowd)
    (wanted,) = head().match(outputs, [target])
    points = outputs.locations.points
    inside = (points[:, 0] > 90) & (points[:, 0] < 200) & (points[:, 1] > 50) & (points[:, 1] < 150)
    is_assigned = wanted.labels < NUM_CLASSES
    assert is_assigned.any()
    assert torch.equal(wanted.is_ignored, inside & ~is_assigned)  # an object in a crowd remains one

    logits = outputs.cls_scores.requires_grad_()
    head().loss(outputs, [target])["loss_focal"].backward()
    assert not logits.grad[0, wanted.is_ignored].any()
    assert logits.grad[0, ~wanted.is_ignored].all()


def test_no_box_leaves_background_alone_and_no_label_nothing() -> None:
    outputs = random_outputs(2, 0)
    empty = Boxes2D(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    losses = head().loss(outputs, [empty, None])
    assert set(losses) == {"loss_focal", "num_targets"}
    assert int(losses["num_targets"]) == 0
    assert losses["loss_focal"] > 0
    assert head().loss(outputs, [None, None]) == {}
    (boxes,) = head(score_threshold=0.999999).predict(
        outputs.rows([0]), [{"img_shape": SIZE, "ori_shape": SIZE, "scale_factor": (1.0, 1.0)}]
    )
    assert boxes.bboxes.shape == (0, 4)


def test_an_images_losses_don_t_depend_on_unlabelled_ones() -> None:
    outputs = random_outputs(3, 4)
    boxes, labels = images(1)[0]
    target = Boxes2D(boxes, labels, torch.zeros(0, 4))
    among = head().loss(outputs, [None, target, None])
    alone = head().loss(outputs.rows([1]), [target])
    assert among.keys() == alone.keys()
    for name in among:
        assert torch.equal(among[name], alone[name])


def test_shapes_and_start() -> None:
    module = head()
    outputs = module([torch.randn(2, 16, *shape) for shape in shapes()])
    num = sum(rows * columns for rows, columns in shapes())
    assert outputs.cls_scores.shape == (2, num, NUM_CLASSES)
    assert outputs.distances.shape == (2, num, 4)
    assert outputs.distances.min() >= 0
    assert outputs.centerness.shape == (2, num)
    assert_close(outputs.cls_scores.sigmoid().mean(), torch.tensor(0.01), rtol=0.2, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = module([torch.randn(1, 16, *shape) for shape in shapes()])
    assert half.distances.dtype == torch.float32


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match="one entry per level"):
        head(strides=(8, 16))
    with pytest.raises(ValueError, match="nms_pre must be at least 1"):
        head(nms_pre=0)
    with pytest.raises(ValueError, match="multiple of num_groups"):
        head(num_groups=5)
