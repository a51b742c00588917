"""One decoder for boxes and map: patch queries, who sees whom, the detector."""

import pytest
import torch
from torch.testing import assert_close

from perception.models import BoxHead, PatchSegHead
from perception.models.extra_queries import ExtraQueries, self_attention_mask
from tests.models.small import GRID, make_batch, make_item, small_model
from tests.models.unified import MAP_SHAPE, PATCH_SHAPE, SEG, TASKS, make_unified_item, unified_model


def head(**changes):
    return PatchSegHead(**{**SEG, **changes})


def test_patches_lie_where_the_map_has_them():
    patches = head()
    assert patches.patch_shape == PATCH_SHAPE
    low, extent = torch.tensor([-50.0, -60.0]), torch.tensor([100.0, 120.0])
    metres = patches.queries().reference_points * extent + low
    pixels = torch.from_numpy(patches.map_grid.lidar2pixels(metres.numpy()))  # (P, 2), (column, row)
    row, column = torch.meshgrid(torch.arange(8.0), torch.arange(10.0), indexing="ij")
    centres = torch.stack([column, row], dim=-1).flatten(0, 1) * 8 + 3.5
    assert_close(pixels, centres.to(pixels), atol=1e-4, rtol=0)


def test_a_patch_query_paints_its_patch_and_across_the_border():
    torch.manual_seed(0)
    patches = head().eval()
    states = torch.randn(1, 80, 16)
    changed = states.clone()
    changed[0, 3 * 10 + 7] += 5.0  # row 3, column 7
    with torch.no_grad():
        difference = (patches(changed) - patches(states)).abs().sum(dim=(0, 1))  # (64, 80)
    assert difference.shape == MAP_SHAPE
    inside = difference[24:32, 56:64].mean()
    far = torch.cat([difference[:16].flatten(), difference[40:].flatten()]).mean()
    assert inside > 10 * far  # elsewhere only by the norm's statistics
    assert difference[24:32, 54:56].mean() > 2 * far


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 4.5}, "3 pixels"),
        ({"patch_size": 1.5}, "1 pixels"),
        ({"map_x_range": (-22.5, 22.5)}, r"3\.75 × 10"),
        ({"map_x_range": (-60.0, 60.0)}, "beyond the BEV range"),
        ({"attention": "one way"}, "joint"),
        ({"class_weights": (1.0, 1.0)}, "class_weights"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        head(**changes)


@pytest.mark.parametrize("attention", ["joint", "separate"])
def test_the_mask_is_what_its_rule_says(attention):
    extra = ExtraQueries(torch.zeros(3, 8), torch.zeros(3, 2), attention)
    kinds = [0, 0, 1, 1, "patch", "patch", "patch"]
    expected = [
        [a == b or (attention == "joint" and ((b == "patch") or (a == "patch" and b == 0))) for b in kinds]
        for a in kinds
    ]
    assert self_attention_mask(2, 2, extra).tolist() == expected


def box_head(**changes):
    torch.manual_seed(0)
    settings = {"num_query": 12, "num_layers": 2, "num_heads": 2, "dropout": 0.0, **GRID, **changes}
    return BoxHead(**settings)


def test_more_query_groups_change_nothing_for_the_first_and_for_the_patches():
    boxes, patches = box_head(num_query_groups=3), head()
    bev = torch.randn(2, 120, 16)
    training = boxes.train()(bev, patches.queries())
    inference = boxes.eval()(bev, patches.queries())
    assert training.codes.shape[2] == 36
    assert training.extra.shape == inference.extra.shape == (2, 80, 16)
    assert_close(training.codes[:, :, :12], inference.codes, atol=1e-4, rtol=1e-5)
    assert_close(training.extra, inference.extra, atol=1e-5, rtol=1e-5)


def test_separate_attention_leaves_the_boxes_alone():
    boxes = box_head().eval()
    bev = torch.randn(2, 120, 16)
    alone = boxes(bev)
    separate = boxes(bev, head(attention="separate").queries())
    joint = boxes(bev, head().queries())
    assert alone.extra is None
    assert_close(separate.codes, alone.codes, atol=1e-4, rtol=1e-5)
    assert not torch.allclose(joint.cls_scores, alone.cls_scores, atol=1e-3)


def test_losses_have_the_names_of_two_heads():
    model = unified_model()
    losses = model(**make_batch(model, [make_unified_item(1), make_unified_item(2)]), mode="loss")
    two = small_model()
    usual = two(**make_batch(two, [make_item(1), make_item(2)]), mode="loss")
    assert set(losses) == set(usual)
    assert all(value.isfinite() for value in losses.values())
    assert model.task_names == TASKS
    assert float(losses["seg.num_targets"]) == 2 * MAP_SHAPE[0] * MAP_SHAPE[1]


def test_every_parameter_gets_a_gradient_and_the_decoder_one_from_every_task():
    model = unified_model()
    losses = model(**make_batch(model, [make_unified_item(1), make_unified_item(2)]), mode="loss")
    losses, _ = model.parse_losses(losses)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    owners = {name: set() for name in named}
    for task, loss in losses.items():
        found = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
        for name, grad in zip(named, found, strict=True):
            if grad is not None:
                owners[name].add(task)
    assert all(owners.values())
    assert owners["box_head.decoder.0.ffn.linear1.weight"] == set(TASKS)
    assert owners["box_head.query_embedding.weight"] == set(TASKS)  # the map sees the box queries
    assert owners["box_head.cls_branches.0.0.weight"] == {"cls"}
    assert owners["seg_head.upsample.0.weight"] == {"seg"}
    assert owners["seg_head.query_embedding.weight"] == set(TASKS)
    names = {id(parameter): name for name, parameter in named.items()}
    last = [names[id(parameter)] for parameter in model.last_shared_parameters()]
    assert all(owners[name] == set(TASKS) for name in last)
    assert last[0] == "box_head.decoder.1.ffn.linear2.weight"


def test_predicts_boxes_and_a_map():
    model = unified_model().eval()
    with torch.no_grad():
        result = model(**make_batch(model, [make_unified_item(1)]), mode="predict")[0]
    assert result.pred_instances_3d.scores_3d.diff().max() <= 0
    assert result.pred_bev_seg.sem_seg.shape == (1, *MAP_SHAPE)


def test_a_batch_of_two_equals_two_of_one():
    model = unified_model().eval()
    batch = make_batch(model, [make_unified_item(i) for i in (1, 2)])
    with torch.no_grad():
        together = model(batch["inputs"])
        for index in range(2):
            alone = model({key: value[index : index + 1] for key, value in batch["inputs"].items()})
            assert_close(together["seg_logits"][index], alone["seg_logits"][0], atol=1e-5, rtol=1e-5)
            assert_close(together["boxes"].codes[:, index], alone["boxes"].codes[:, 0], atol=1e-4, rtol=1e-5)


def test_missing_targets_leave_tasks_out():
    model = unified_model()
    batch = make_batch(model, [make_unified_item(i, num_boxes=0, with_map=False) for i in (1, 2)])
    tasks, _ = model.parse_losses(model(**batch, mode="loss"))
    assert tasks.present == (True, False, False, False)
    sum(tasks.values()).backward()
    model.eval()
    both = model(
        **make_batch(model, [make_unified_item(1), make_unified_item(2, with_map=False)]), mode="loss"
    )
    alone = model(**make_batch(model, [make_unified_item(1)]), mode="loss")
    assert_close(both["seg.loss_ce"], alone["seg.loss_ce"], atol=1e-5, rtol=1e-5)


def test_tasks_computed_apart_are_those_computed_together():
    model = unified_model().eval()
    batch = make_batch(model, [make_unified_item(1)])
    together = model(batch["inputs"])
    with model.only_tasks(("seg",)):
        seg = model(batch["inputs"])
    with model.only_tasks(("cls", "box", "velocity")):
        det = model(batch["inputs"])
    assert "boxes" not in seg
    assert "seg_logits" not in det
    assert_close(seg["seg_logits"], together["seg_logits"])
    assert_close(det["boxes"].codes, together["boxes"].codes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_trains(dtype):
    model = unified_model(box={"num_query_groups": 2})
    batch = make_batch(model, [make_unified_item(1)])
    with torch.autocast("cpu", dtype=dtype):
        losses = model(**batch, mode="loss")
    sum(model.parse_losses(losses)[0].values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_patches_need_a_box_head():
    with pytest.raises(ValueError, match="box_head"):
        unified_model(box=None)
