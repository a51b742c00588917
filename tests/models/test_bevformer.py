"""The detector as a whole: batches, histories, losses, predictions, bad input."""

import pytest
import torch
from mmengine.structures import PixelData
from torch.testing import assert_close

from perception.balancing import TaskLosses
from tests.models.small import MAP_SHAPE, collate, make_batch, make_item, small_model


def rows(batch, index):
    return {
        "inputs": {key: value[index : index + 1] for key, value in batch["inputs"].items()},
        "data_samples": [batch["data_samples"][index]],
    }


def test_loss_names_counts_and_shapes():
    model = small_model(seg={"loss_dice_weight": 1.0})
    losses = model(**make_batch(model, [make_item(1), make_item(2)]), mode="loss")
    expected = {f"{task}.{layer}loss_l1" for task in ("box", "velocity") for layer in ("", "d0.")}
    expected |= {"cls.loss_focal", "cls.d0.loss_focal", "seg.loss_ce", "seg.loss_dice"}
    expected |= {f"{task}.num_targets" for task in model.task_names}
    assert set(losses) == expected
    assert all(value.dim() == 0 and value.isfinite() for value in losses.values())
    assert float(losses["cls.num_targets"]) == 10
    assert float(losses["seg.num_targets"]) == 2 * MAP_SHAPE[0] * MAP_SHAPE[1]


def test_parse_losses_groups_by_task():
    model = small_model()
    losses = model(**make_batch(model, [make_item(1)]), mode="loss")
    tasks, log_vars = model.parse_losses(losses)
    assert isinstance(tasks, TaskLosses)
    assert tuple(tasks) == model.task_names == ("cls", "box", "velocity", "seg")
    assert_close(tasks["box"], losses["box.loss_l1"] + losses["box.d0.loss_l1"])
    assert_close(log_vars["loss"], sum(tasks.values()).detach())
    assert not any(value.requires_grad for value in log_vars.values())


@pytest.mark.parametrize("name", ["d0.loss_focal", "cls.accuracy", "depth.loss_l1"])
def test_parse_losses_refuses_a_bad_key(name):
    with pytest.raises(ValueError, match=r"task|declare"):
        small_model().parse_losses({name: torch.ones(()), "depth.num_targets": torch.ones(())})


@pytest.mark.parametrize(
    ("changes", "names"),
    [({"seg": None}, ("cls", "box", "velocity")), ({"box": None}, ("seg",))],
)
def test_single_task_models(changes, names):
    model = small_model(**changes)
    batch = make_batch(model, [make_item(1)])
    assert model.task_names == names
    assert {key.partition(".")[0] for key in model(**batch, mode="loss")} == set(names)
    prediction = model.eval()(**batch, mode="predict")[0]
    assert ("pred_instances_3d" in prediction) == ("box" in names)
    assert ("pred_bev_seg" in prediction) == ("seg" in names)


def test_no_ground_truth_leaves_tasks_out():
    model = small_model()
    losses = model(
        **make_batch(model, [make_item(i, num_boxes=0, with_map=False) for i in (1, 2)]), mode="loss"
    )
    assert set(losses) == {"cls.loss_focal", "cls.d0.loss_focal", "cls.num_targets"}
    assert all(value.isfinite() for value in losses.values())
    tasks, _ = model.parse_losses(losses)
    assert tasks.present == (True, False, False, False)


def test_one_sample_without_ground_truth_among_others():
    model = small_model().eval()
    full, empty = make_item(1), make_item(2, num_boxes=0, with_map=False)
    both = model(**make_batch(model, [full, empty]), mode="loss")
    alone = model(**make_batch(model, [full]), mode="loss")
    for key in ("box.loss_l1", "velocity.loss_l1", "seg.loss_ce"):
        assert_close(both[key], alone[key], atol=1e-5, rtol=1e-5)
    assert both["cls.loss_focal"] > alone["cls.loss_focal"]


def test_unknown_velocity_drops_only_itself():
    model = small_model(seg=None).eval()
    item = make_item(1)
    known = model(**make_batch(model, [item]), mode="loss")
    item["data_samples"].gt_instances_3d.bboxes_3d.tensor[:2, 7:] = torch.nan
    partly = model(**make_batch(model, [item]), mode="loss")
    assert_close(partly["box.loss_l1"], known["box.loss_l1"])
    assert float(partly["velocity.num_targets"]) == 3
    assert partly["velocity.loss_l1"].isfinite()
    item["data_samples"].gt_instances_3d.bboxes_3d.tensor[:, 7:] = torch.nan
    assert "velocity.loss_l1" not in model(**make_batch(model, [item]), mode="loss")


def test_batch_of_four_equals_four_batches_of_one_with_mixed_histories():
    model = small_model().eval()
    batch = make_batch(model, [make_item(i, num_frames=3) for i in range(4)])
    batch["inputs"]["has_prev"] = torch.tensor(
        [[False, True, True], [False, False, True], [False, True, False], [False, False, False]]
    )
    together = model.compute_bev(batch["inputs"])
    for index in range(4):
        assert_close(
            together[index : index + 1], model.compute_bev(rows(batch, index)["inputs"]), atol=1e-5, rtol=0
        )


def test_batch_of_four_has_losses_gradients_and_predictions_of_four_batches_of_one():
    model = small_model().eval()
    batch = make_batch(model, [make_item(i, num_frames=3, num_boxes=2 + i) for i in range(4)])
    batch["inputs"]["has_prev"] = torch.tensor(
        [[False, True, True], [False, False, True], [False, True, False], [False, False, False]]
    )
    together = model(**batch, mode="loss")
    single = [model(**rows(batch, index), mode="loss") for index in range(4)]
    joined = {}
    for key in together:
        if "loss" in key:  # every loss is a mean over the batch's targets
            count = f"{key.partition('.')[0]}.num_targets"
            parts = [losses[key] * losses[count] for losses in single]
            joined[key] = sum(parts) / sum(losses[count] for losses in single)
            assert_close(together[key], joined[key], atol=1e-5, rtol=1e-5)

    gradients = []
    for losses in (together, joined):
        model.zero_grad()
        sum(value for key, value in losses.items() if "loss" in key).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for name, expected in gradients[1].items():
        assert_close(gradients[0][name], expected, atol=1e-4 * max(float(expected.abs().max()), 1e-2), rtol=0)

    predicted = model(**batch, mode="predict")
    for index in range(4):
        model.reset_history()
        alone = model(**rows(batch, index), mode="predict")[0]
        for result in (predicted[index].pred_instances_3d, alone.pred_instances_3d):
            assert len(result.scores_3d) > 0
        assert_close(
            predicted[index].pred_instances_3d.scores_3d, alone.pred_instances_3d.scores_3d, atol=1e-5, rtol=0
        )
        assert torch.equal(predicted[index].pred_bev_seg.sem_seg, alone.pred_bev_seg.sem_seg)


def test_each_history_flag_matters():
    model = small_model().eval()
    batch = make_batch(model, [make_item(1, num_frames=3)])
    seen = []
    for flags in ([False, True, True], [False, False, True], [False, True, False]):
        inputs = {**batch["inputs"], "has_prev": torch.tensor([flags])}
        seen.append(model.compute_bev(inputs))
    assert not torch.allclose(seen[0], seen[1], atol=1e-4)
    assert not torch.allclose(seen[1], seen[2], atol=1e-4)


def test_without_history_past_frames_do_not_count():
    model = small_model(use_history=False).eval()
    batch = make_batch(model, [make_item(1)])
    last = {key: value[:, -1:] for key, value in batch["inputs"].items()}
    assert_close(model.compute_bev(batch["inputs"]), model.compute_bev(last))


def test_history_has_no_gradient_and_leaves_batch_norm_alone():
    model = small_model()
    batch = make_batch(model, [make_item(1), make_item(2)])
    images = batch["inputs"]["img"].requires_grad_()
    before = {key: value.clone() for key, value in model.state_dict().items() if "running" in key}
    training = {name: module.training for name, module in model.named_modules()}
    model.compute_bev(batch["inputs"]).square().sum().backward()
    assert images.grad[:, 0].abs().max() == 0
    assert images.grad[:, 1].abs().max() > 0
    assert training == {name: module.training for name, module in model.named_modules()}

    # The statistics are those that the current frame alone gives.
    after = {key: value.clone() for key, value in model.state_dict().items() if key in before}
    model.load_state_dict({**model.state_dict(), **before})
    model.extract_features(batch["inputs"]["img"][:, -1].detach())
    alone = {key: value for key, value in model.state_dict().items() if key in before}
    changed = [key for key in before if not torch.equal(after[key], before[key])]
    assert any("backbone" in key for key in changed)
    for key in (key for key in before if "backbone" in key):
        assert_close(after[key], alone[key], msg=key)


def test_every_parameter_gets_a_gradient():
    model = small_model()
    losses = model(**make_batch(model, [make_item(1), make_item(2)]), mode="loss")
    sum(model.parse_losses(losses)[0].values()).backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_predict_keeps_history_by_token():
    model = small_model().eval()
    first = [make_item(i, num_frames=1) for i in (1, 2)]
    second = [make_item(i, num_frames=1) for i in (102, 101)]  # other order; predecessors are 2 and 1
    for item in second:
        item["inputs"]["has_prev"][:] = True
    with torch.no_grad():
        results = model(**make_batch(model, first), mode="predict")
        bevs = dict(model._histories[None])
        assert set(bevs) == {"token1", "token2"}
        batch = make_batch(model, second)
        model(**batch, mode="predict")
        assert set(model._histories[None]) == {"token101", "token102"}
        expected = model.compute_bev(batch["inputs"], torch.stack([bevs["token2"], bevs["token1"]]))
        assert_close(model._histories[None]["token101"], expected[1])
    prediction = results[0]
    boxes = prediction.pred_instances_3d
    assert boxes.bboxes_3d.tensor.shape == (120, 9)
    assert boxes.scores_3d.diff().max() <= 0
    assert boxes.labels_3d.dtype == torch.int64
    assert prediction.pred_bev_seg.sem_seg.shape == (1, *MAP_SHAPE)
    assert prediction.metainfo["sample_token"] == "token1"
    assert "pred_instances_3d" not in first[0]["data_samples"]


@pytest.mark.parametrize("reason", ["unknown token", "has_prev is False", "reset"])
def test_predict_without_usable_history_equals_a_first_frame(reason):
    model = small_model().eval()
    item = make_item(101, num_frames=1)
    item["inputs"]["has_prev"][:] = reason != "has_prev is False"
    with torch.no_grad():
        model(
            **make_batch(model, [make_item(7 if reason == "unknown token" else 1, num_frames=1)]),
            mode="predict",
        )
        if reason == "reset":
            model.reset_history()
        model(**make_batch(model, [item]), mode="predict")
        kept = model._histories[None]["token101"]
        first = make_batch(model, [item])["inputs"]
        assert_close(kept[None], model.compute_bev(first))


def test_predict_with_mixed_histories_in_one_batch():
    model = small_model().eval()
    items = [make_item(i, num_frames=1) for i in (101, 109)]  # only 101's predecessor is known
    for item in items:
        item["inputs"]["has_prev"][:] = True
    with torch.no_grad():
        model(**make_batch(model, [make_item(1, num_frames=1)]), mode="predict")
        known = model._histories[None]["token1"]
        batch = make_batch(model, items)
        model(**batch, mode="predict")
        alone = rows(batch, 1)["inputs"]
        assert_close(model._histories[None]["token109"][None], model.compute_bev(alone), atol=1e-5, rtol=0)
        with_past = model.compute_bev(rows(batch, 0)["inputs"], known[None])
        assert_close(model._histories[None]["token101"][None], with_past, atol=1e-5, rtol=0)


def test_history_is_not_in_the_state_dict():
    model = small_model().eval()
    before = set(model.state_dict())
    model(**make_batch(model, [make_item(1, num_frames=1)]), mode="predict")
    assert set(model.state_dict()) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_trains_and_predicts(dtype):
    model = small_model(seg={"loss_dice_weight": 1.0})
    batch = make_batch(model, [make_item(1), make_item(2)])
    exact = small_model(seg={"loss_dice_weight": 1.0})(**batch, mode="loss")
    with torch.autocast("cpu", dtype=dtype):
        losses = model(**batch, mode="loss")
    sum(model.parse_losses(losses)[0].values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert_close(losses["cls.loss_focal"], exact["cls.loss_focal"], rtol=0.05, atol=0)
    with torch.autocast("cpu", dtype=dtype), torch.no_grad():
        model.eval()(**batch, mode="predict")


def test_query_groups_train_and_leave_inference_alone():
    model = small_model(box={"num_query_groups": 3, "reference_init": "grid"})
    batch = make_batch(model, [make_item(1)])
    losses = model(**batch, mode="loss")
    assert float(losses["cls.num_targets"]) == 15  # 5 boxes in each of 3 groups
    assert model.eval()(**batch)["boxes"].codes.shape == (2, 1, 12, 10)


def test_tensor_mode_needs_no_samples():
    model = small_model().eval()
    outputs = model(make_batch(model, [make_item(1)])["inputs"])
    assert outputs["bev"].shape == (1, 120, 16)
    assert outputs["seg_logits"].shape == (1, 4, *MAP_SHAPE)


def test_bad_inputs_are_named():
    model = small_model()
    batch = make_batch(model, [make_item(1)])
    inputs = batch["inputs"]
    cases = [
        ({**inputs, "img": inputs["img"][:, :, :5]}, "6 cameras"),
        ({**inputs, "img": inputs["img"][:, 0]}, "must be"),
        ({**inputs, "lidar2img": inputs["lidar2img"][..., :3, :]}, "lidar2img"),
        ({**inputs, "has_prev": inputs["has_prev"][:, :1]}, "has_prev"),
    ]
    for bad, message in cases:
        with pytest.raises(ValueError, match=message):
            model(bad, batch["data_samples"], mode="loss")
    with pytest.raises(ValueError, match="data_samples"):
        model(inputs, [], mode="loss")
    with pytest.raises(ValueError, match="mode must be"):
        model(inputs, batch["data_samples"], mode="train")


def test_mismatched_parts_are_refused():
    with pytest.raises(ValueError, match="bev_h"):
        small_model(box={"bev_h": 8})
    with pytest.raises(ValueError, match="needs box_head, seg_head"):
        small_model(box=None, seg=None)
    with pytest.raises(ValueError, match="multiple of num_heads"):
        small_model(encoder={"num_heads": 3})
    with pytest.raises(ValueError, match="beyond the BEV range"):
        small_model(seg={"map_x_range": (-60.0, 60.0)})
    model = small_model().eval()
    inputs = make_batch(model, [make_item(1)])["inputs"]
    with pytest.raises(ValueError, match="prev_bev"):
        model.compute_bev(inputs, torch.zeros(1, 100, 16), torch.ones(1, dtype=torch.bool))


def test_a_map_of_another_size_is_named():
    model = small_model()
    batch = make_batch(model, [make_item(1)])
    batch["data_samples"][0].gt_bev_seg = PixelData(sem_seg=torch.zeros(1, 5, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="gt_bev_seg must be"):
        model(**batch, mode="loss")


def test_items_of_different_size_are_named():
    model = small_model()
    items = [make_item(1), make_item(2, num_frames=3)]
    with pytest.raises(ValueError, match="differs in shape"):
        model.data_preprocessor(collate(items), True)
