"""The image model as a whole: losses, missing labels, pseudo labels, cuts and copies, predictions, bad input."""

import pytest
import torch
from mmengine.structures import InstanceData
from torch.testing import assert_close

from perception.balancing import RotoGrad, TaskLosses
from perception.models import FCOSMultiTask
from perception.models.execution import compile_parts
from perception.utils import DataError
from tests.models.images import NUM_SEG, ORIGINAL, PADDED, image_batch, image_item, image_model

DET = {
    "det.loss_focal",
    "det.loss_giou",
    "det.loss_centerness",
    "det.num_targets",
    "det.loss_giou.num_targets",
}
SEG = {"seg.loss_ce", "seg.loss_dice", "seg.num_targets", "seg.loss_dice.num_targets"}
TRUNK = ("img_backbone", "img_neck")


def gradients(model: FCOSMultiTask, losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor | None]:
    model.zero_grad(set_to_none=True)
    model.parse_losses(losses)[0].total().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def frozen(model: FCOSMultiTask) -> FCOSMultiTask:
    """With fixed statistics, so that an image's features don't depend on its batch."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    return model


def test_loss_names_counts_and_shapes() -> None:
    model = image_model()
    losses = model(**image_batch(model, [image_item(1), image_item(2)]), mode="loss")
    assert set(losses) == DET | SEG
    assert all(value.dim() == 0 and value.isfinite() for value in losses.values())
    assert float(losses["seg.num_targets"]) == 2 * 55 * 96
    tasks, log_vars = model.parse_losses(losses)
    assert isinstance(tasks, TaskLosses)
    assert tuple(tasks) == model.task_names == ("det", "seg")
    assert tasks.part_names == ("det", "det.loss_giou", "seg", "seg.loss_dice")
    assert_close(tasks["det"], sum(value for key, value in losses.items() if key in DET and "num" not in key))
    assert_close(log_vars["loss"], tasks.total().detach())


@pytest.mark.parametrize(("changes", "names"), [({"seg": None}, ("det",)), ({"box": None}, ("seg",))])
def test_single_task_models(changes: dict, names: tuple[str, ...]) -> None:
    model = image_model(**changes)
    batch = image_batch(model, [image_item(1)])
    assert model.task_names == tuple(model.task_groups) == names
    assert {key.partition(".")[0] for key in model(**batch, mode="loss")} == set(names)
    prediction = model.eval()(**batch, mode="predict")[0]
    assert ("pred_instances" in prediction) == ("det" in names)
    assert ("pred_sem_seg" in prediction) == ("seg" in names)
    assert model.num_classes == (10 if "det" in names else None)


@pytest.mark.parametrize(("absent", "kept"), [("det", SEG), ("seg", DET)])
def test_a_batch_without_a_tasks_labels(absent: str, kept: set[str]) -> None:
    """No keys, no gradient of the head at all, and the trunk's is the other task's."""
    model = frozen(image_model())
    options = {"boxes": None} if absent == "det" else {"mask": False}
    losses = model(**image_batch(model, [image_item(i, **options) for i in (1, 2)]), mode="loss")
    assert set(losses) == kept
    assert model.parse_losses(losses)[0].present == (absent != "det", absent != "seg")
    found = gradients(model, losses)
    head = "box_head." if absent == "det" else "seg_head."
    assert all(grad is None for name, grad in found.items() if name.startswith(head))

    full = model(**image_batch(model, [image_item(i) for i in (1, 2)]), mode="loss")
    other = "seg" if absent == "det" else "det"
    model.zero_grad(set_to_none=True)
    model.parse_losses(full)[0][other].backward()
    for name, parameter in model.named_parameters():
        if name.startswith(TRUNK) or name.startswith(f"{'seg' if other == 'seg' else 'box'}_head"):
            grad = found[name]
            assert (grad is None) == (parameter.grad is None), name
            if grad is not None:
                assert torch.equal(grad, parameter.grad), name


def test_a_batch_without_any_label_has_no_loss() -> None:
    model = image_model()
    losses = model(**image_batch(model, [image_item(1, boxes=None, mask=False)]), mode="loss")
    assert losses == {}
    assert model.parse_losses(losses)[0].present == (False, False)


def test_mixed_batches_are_those_of_the_labelled_samples() -> None:
    model = frozen(image_model())
    items = [
        image_item(1, mask=False),
        image_item(2, boxes=None),
        image_item(3),
        image_item(4, boxes=0, mask=False),
    ]
    mixed = model(**image_batch(model, items), mode="loss")
    det = model(**image_batch(model, [items[0], items[2], items[3]]), mode="loss")
    seg = model(**image_batch(model, [items[1], items[2]]), mode="loss")
    for key, value in mixed.items():
        assert_close(value, (det if key in DET else seg)[key], rtol=1e-5, atol=1e-6)


def test_no_object_is_a_label_too() -> None:
    model = image_model(seg=None)
    losses = model(**image_batch(model, [image_item(1, boxes=0)]), mode="loss")
    assert set(losses) == {"det.loss_focal", "det.num_targets"}
    found = gradients(model, losses)
    assert found["box_head.conv_cls.weight"] is not None
    assert found["box_head.conv_reg.weight"] is None


def test_every_parameter_gets_a_gradient() -> None:
    model = image_model()
    found = gradients(model, model(**image_batch(model, [image_item(1), image_item(2)]), mode="loss"))
    assert [name for name, grad in found.items() if grad is None] == []
    shared = {id(parameter) for parameter in model.last_shared_parameters()}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in shared}
    assert names == {f"img_neck.fpn_convs.{n}.conv.{part}" for n in (0, 1, 2) for part in ("weight", "bias")}


def test_pseudo_labels_are_weighted_by_eq_9() -> None:
    weights = {"label_weights": {"gt": 0.8, "pseudo": 0.2}, "task_weights": {"det": 1.7, "seg": 0.3}}
    plain, weighted = frozen(image_model()), frozen(image_model(**weights))
    items = [image_item(1, mask=False, pseudo_mask=True), image_item(2, boxes=None, pseudo_boxes=3)]
    losses = weighted(**image_batch(weighted, items), mode="loss")
    assert {key for key in losses if key.startswith("det.pseudo")} == {
        key.replace("det.", "det.pseudo.", 1) for key in DET
    }
    as_gt = [image_item(1, mask=False), image_item(2, boxes=None)]
    as_gt[0]["data_samples"].gt_sem_seg = items[0]["data_samples"].pseudo_sem_seg
    as_gt[1]["data_samples"].gt_instances = items[1]["data_samples"].pseudo_instances
    for number, (det_kind, seg_kind) in enumerate([("gt", "pseudo"), ("pseudo", "gt")]):
        wanted = plain(**image_batch(plain, [as_gt[number]]), mode="loss")
        for key, value in wanted.items():
            task, _, rest = key.partition(".")
            kind = det_kind if task == "det" else seg_kind
            factor = weights["task_weights"][task] * weights["label_weights"][kind]
            is_count = key.endswith("num_targets")
            assert_close(
                losses[f"{task}.{kind}.{rest}"], value if is_count else value * factor, rtol=1e-5, atol=1e-6
            )
    tasks, _ = weighted.parse_losses(losses)
    assert set(tasks.parts) == {
        f"{task}.{kind}{own}"
        for task, own_name in (("det", ".loss_giou"), ("seg", ".loss_dice"))
        for kind in ("gt", "pseudo")
        for own in ("", own_name)
    }
    found = plain(**image_batch(plain, [items[0]]), mode="loss")
    assert found.keys() == DET  # pseudo labels are not asked for


def test_pseudo_labels_of_weight_0_are_left_out() -> None:
    model = image_model(label_weights={"gt": 1.0, "pseudo": 0.0})
    batch = image_batch(model, [image_item(1, mask=False, pseudo_mask=True)])
    assert {key.partition(".")[0] for key in model(**batch, mode="loss")} == {"det"}


def test_ignored_regions_reach_the_head() -> None:
    model = frozen(image_model(seg=None))
    item = image_item(1)
    before = model(**image_batch(model, [item]), mode="loss")
    everything = torch.tensor([[0.0, 0.0, 96.0, 60.0]])
    item["data_samples"].ignored_instances = InstanceData(bboxes=everything)
    after = model(**image_batch(model, [item]), mode="loss")
    assert after["det.loss_focal"] < before["det.loss_focal"]
    assert_close(after["det.loss_giou"], before["det.loss_giou"])


def test_only_tasks_runs_one_head() -> None:
    model = image_model()
    batch = image_batch(model, [image_item(1)])
    for task, keys in (("det", DET), ("seg", SEG)):
        with model.only_tasks([task]):
            assert set(model(**batch, mode="loss")) == keys
    with pytest.raises(ValueError, match="only_tasks names"), model.only_tasks(["cls"]):
        pass


def test_rotations_that_turn_nothing_change_nothing() -> None:
    model = frozen(image_model())
    batch = image_batch(model, [image_item(1, mask=False), image_item(2)])
    plain = model(**batch, mode="loss")
    model.rotations = RotoGrad(tasks=("det", "seg"), size=model.shared_width)
    with model.shared_features.cut():
        turned = model(**batch, mode="loss")
    (leaf,) = model.shared_features.leaves
    assert leaf.shape == (2, 16 * 24 + 8 * 12 + 4 * 6, 16)
    for key, value in plain.items():
        assert_close(turned[key], value, rtol=1e-4, atol=1e-5)


def test_predictions_are_in_the_original_image() -> None:
    model = image_model().eval()
    items = [image_item(1), image_item(2, boxes=None, mask=False, size=(56, 80))]
    batch = model.data_preprocessor({"inputs": {"img": [item["inputs"]["img"] for item in items]},
                                     "data_samples": [item["data_samples"] for item in items]}, False)  # fmt: skip
    assert batch["inputs"]["img"].shape[-2:] == PADDED
    with torch.no_grad():
        results = model(**batch, mode="predict")
    rows, columns = ORIGINAL
    for result, item in zip(results, items, strict=True):
        boxes = result.pred_instances
        assert len(boxes) > 0
        assert boxes.bboxes.dtype == torch.float32
        assert boxes.bboxes.min() >= 0
        assert bool((boxes.bboxes[:, 2:] <= torch.tensor([columns, rows])).all())
        assert bool((boxes.bboxes[:, 2:] >= boxes.bboxes[:, :2]).all())
        assert boxes.scores.diff().max() <= 0
        assert boxes.labels.dtype == torch.int64
        assert result.pred_sem_seg.sem_seg.shape == (1, rows, columns)
        assert result.pred_sem_seg.sem_seg.dtype == torch.int64
        assert 0 <= result.pred_sem_seg.sem_seg.min() <= result.pred_sem_seg.sem_seg.max() < NUM_SEG
        assert result.metainfo["frame_name"] == item["data_samples"].metainfo["frame_name"]
        assert "pred_instances" not in item["data_samples"]


def test_tensor_mode_needs_no_samples() -> None:
    model = image_model().eval()
    outputs = model(image_batch(model, [image_item(1)])["inputs"])
    assert outputs["boxes"].cls_scores.shape == (1, 16 * 24 + 8 * 12 + 4 * 6, 10)
    assert outputs["seg_logits"].shape == (1, NUM_SEG, 16, 24)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_trains_and_predicts(dtype: torch.dtype) -> None:
    model = image_model()
    batch = image_batch(model, [image_item(1), image_item(2)])
    exact = image_model()(**batch, mode="loss")
    with torch.autocast("cpu", dtype=dtype):
        losses = model(**batch, mode="loss")
    found = gradients(model, losses)
    assert all(grad.isfinite().all() for grad in found.values() if grad is not None)
    assert_close(losses["det.loss_focal"], exact["det.loss_focal"], rtol=0.05, atol=0)
    with torch.autocast("cpu", dtype=dtype), torch.no_grad():
        model.eval()(**batch, mode="predict")


def test_checkpointed_parts_have_the_same_gradients() -> None:
    found = []
    for parts in ((), ("img_backbone.layer2", "box_head", "seg_head.branches")):
        model = image_model(activation_checkpointing=parts)
        found.append(gradients(model, model(**image_batch(model, [image_item(1)]), mode="loss")))
    for name, grad in found[0].items():
        assert_close(grad, found[1][name], msg=name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # as torch traces
@pytest.mark.parametrize("part", ["img_backbone", "img_neck", "box_head", "seg_head"])
def test_each_part_is_one_graph(part: str) -> None:
    torch._dynamo.reset()
    model, compiled = image_model(), image_model()
    compile_parts(compiled, (part,), backend="aot_eager")
    batch = image_batch(model, [image_item(1), image_item(2, mask=False)])
    wanted, found = model(**batch, mode="loss"), compiled(**batch, mode="loss")
    for key, value in wanted.items():
        assert_close(found[key], value, rtol=1e-5, atol=1e-6)
    assert gradients(compiled, found)["img_backbone.conv1.weight"].isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"box": None, "seg": None}, "needs box_head, seg_head"),
        ({"box": {"levels": (1, 2, 3)}}, "makes levels 0 to 2"),
        ({"seg": {"in_channels": 8}}, "img_neck makes 16"),
        ({"box": {"strides": (8, 16, 32)}}, "it has one"),
        ({"label_weights": {"gt": 1.0}}, "label_weights must have"),
        ({"task_weights": {"det": 1.0, "seg": -1.0}}, "task_weights must have"),
        ({"activation_checkpointing": ("box_hed",)}, "Did you mean 'box_head'"),
    ],
)
def test_bad_configs_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_model(**changes)


def test_bad_inputs_are_named() -> None:
    model = image_model()
    batch = image_batch(model, [image_item(1)])
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        model({"img": batch["inputs"]["img"][:, 0]}, batch["data_samples"], mode="loss")
    with pytest.raises(ValueError, match="data_samples"):
        model(batch["inputs"], [], mode="loss")
    with pytest.raises(ValueError, match="mode must be"):
        model(**batch, mode="train")
    batch["data_samples"][0].gt_instances.bboxes[2] = torch.tensor([9.0, 9.0, 3.0, 20.0])
    with pytest.raises(DataError, match=r"box 2 of gt_instances.*frame1"):
        model(**batch, mode="loss")
