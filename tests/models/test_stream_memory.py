"""Training on streams: what is carried from step to step, what is not, and what is refused."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from perception.datasets.transforms.bev_augment import augment_ego_motion
from perception.models.history import rotate_bev
from perception.structures import bev_shift
from tests.models.small import make_batch, make_item, small_model
from tests.models.streams import frame, queue


def small(**changes):
    """The small model, of which no sample of a batch depends on another."""
    model = small_model(**changes)
    model.img_backbone.norm_eval = True
    return model.train()


def step(model, *frames):
    """The losses of one batch; frames as ("a", 0) or as items."""
    items = [frame(*item) if isinstance(item, tuple) else item for item in frames]
    return model(**make_batch(model, items), mode="loss")


def carried(model, group=None):
    """The BEV features that the next step will have, (R, Q, C)."""
    groups = model.stream_memory.state_dict()["groups"]
    (found,) = [entry["bev"] for entry in groups if entry["tasks"] == group]
    return found


STEPS = [(("a", 0), ("b", 0)), (("a", 1), ("b", 1)), (("c", 0), ("b", 2)), (("c", 1), ("b", 3))]
"""Two slots; the first changes from a scene of two frames to another one."""


def test_streamed_features_are_those_of_prediction_and_of_a_whole_queue():
    """The oracles: the evaluation's way through the same frames, and a sliding window as long as the scene."""
    model, other = small_model().eval(), small_model().eval()
    for frames in STEPS:
        step(model, *frames)
        items = [frame(*place) for place in frames]
        other(**make_batch(other, items), mode="predict")
        tokens = [item["data_samples"].sample_token for item in items]
        assert_close(carried(model), torch.stack([other._histories[None][token] for token in tokens]))
        for row, (scene, number) in zip(carried(model), frames, strict=True):
            alone = other.compute_bev(make_batch(other, [queue(scene, number + 1)])["inputs"])[0]
            assert_close(row, alone, atol=1e-5, rtol=1e-5)


def test_history_matters():
    """Else the test before could not fail."""
    model = small_model().eval()
    for frames in STEPS[:2]:
        step(model, *frames)
    with_history = carried(model)
    model.stream_memory.clear()
    step(model, frame("a", 1, starts=True), frame("b", 1, starts=True))
    assert (with_history - carried(model)).abs().amax(dim=(1, 2)).min() > 1e-2


def test_no_gradient_crosses_a_step():
    model = small()
    for frames in STEPS:
        losses, _ = model.parse_losses(step(model, *frames))
        losses.total().backward()  # would run through freed graphs otherwise
        assert all(not rows.bev.requires_grad for rows in model.stream_memory._made.values())


def test_a_batch_may_run_several_times_in_a_step():
    model = small_model().eval()
    for frames in STEPS:
        first = step(model, *frames)
        made = carried(model)
        again = step(model, *frames)
        assert_close(again, first, atol=0, rtol=0)
        assert torch.equal(carried(model), made)


def test_each_group_of_tasks_has_its_own_history():
    """Where each of them runs in each step, and where a step ends before the second one's turn."""
    model = small_model().eval()
    det, seg = ["cls", "box", "velocity"], ["seg"]
    reference = small_model().eval()
    for frames in STEPS[:2]:
        step(reference, *frames)
    for frames in STEPS[:2]:
        for tasks in (det, seg):
            with model.only_tasks(tasks):
                step(model, *frames)
        if frames is STEPS[0]:
            with torch.no_grad():  # as if an update came between
                before = carried(model, det).clone()
    assert_close(carried(model, det), carried(reference))
    assert_close(carried(model, seg), carried(reference))
    assert (before - carried(model, det)).abs().max() > 1e-2
    with model.only_tasks(det):
        step(model, *STEPS[2])
    for tasks in (det, seg):
        with model.only_tasks(tasks):
            step(model, *STEPS[3])
    for frames in STEPS[2:]:
        step(reference, *frames)
    assert_close(carried(model, det), carried(reference))
    alone = small_model().eval()
    step(alone, frame("c", 1, starts=True), frame("b", 3, starts=True))
    assert_close(carried(model, seg), carried(alone))


def test_prediction_in_between_changes_nothing():
    losses = []
    for is_interrupted in (False, True):
        model = small()
        for frames in STEPS:
            losses.append(step(model, *frames))
            if is_interrupted:
                model.eval().reset_history()
                for number in range(2):
                    model(**make_batch(model, [frame("a", number), frame("b", number)]), mode="predict")
                model.train()
    for plain, interrupted in zip(losses[:4], losses[4:], strict=True):
        assert_close(interrupted, plain, atol=0, rtol=0)


def test_items_of_no_stream_are_left_alone():
    model = small()
    step(model, make_item(1), make_item(2))
    assert model.stream_memory.state_dict() == {"tokens": [], "bev_aug": [], "groups": []}
    with pytest.raises(ValueError, match="1 of 2 samples of a batch belong to no stream"):
        step(model, make_item(1, num_frames=1), frame("a", 0))


def test_a_batch_out_of_order_is_refused():
    model = small()
    with pytest.raises(
        ValueError, match=r"a1 continues a stream in which a0 came just before, .* slot 0 .* nothing"
    ):
        step(model, ("a", 1))
    model = small()
    step(model, *STEPS[0])
    with pytest.raises(
        ValueError, match="sample b1 continues .* b0 came just before, but its slot 0 .* had a0"
    ):
        step(model, ("b", 1), ("a", 1))
    model = small()
    for frames in STEPS[:2]:
        step(model, *frames)
    with pytest.raises(
        ValueError, match="sample c1 continues a stream in which c0 came just before, .* had a1"
    ):
        step(model, *STEPS[3])


def test_another_augmentation_than_the_frame_before_had_is_refused():
    """As a transform would make it that draws anew for every frame."""
    model, worlds = small(), [np.eye(4), np.diag([-1.0, 1.0, 1.0, 1.0])]
    for frames in (STEPS[0], STEPS[1]):
        items = [frame(*place) for place in frames]
        for item, world in zip(items, worlds, strict=True):
            item["data_samples"].set_metainfo({"bev_aug": world})
        step(model, *items)
    state = model.stream_memory.state_dict()
    model = small()
    model.stream_memory.load_state_dict(state)
    items = [frame("a", 2), frame("b", 2)]
    items[0]["data_samples"].set_metainfo({"bev_aug": worlds[0]})
    items[1]["data_samples"].set_metainfo({"bev_aug": worlds[0]})
    with pytest.raises(
        ValueError, match="sample b2 and the one before it in its stream, b1, have different BEV aug"
    ):
        step(model, *items)


def test_what_is_not_finite_is_not_carried():
    """The slot with a NaN begins anew; the other one goes on; nothing stored is NaN."""
    model, reference = small().eval(), small().eval()
    for frames in STEPS[:1]:
        step(model, *frames)
        step(reference, *frames)
    bad = frame("a", 1)
    batch = make_batch(model, [bad, frame("b", 1)])
    batch["inputs"]["img"][0] = torch.nan
    losses = model(**batch, mode="loss")
    assert any(not value.isfinite() for value in losses.values())
    assert carried(model).isfinite().all()
    step(reference, *STEPS[1])
    assert_close(carried(model)[1], carried(reference)[1])
    losses = step(model, ("a", 2), ("b", 2))
    assert all(value.isfinite() for value in losses.values())
    step(reference, ("a", 2), ("b", 2))
    assert_close(carried(model)[1], carried(reference)[1])
    alone = small().eval()
    step(alone, frame("a", 2, starts=True))
    assert_close(carried(model)[0], carried(alone)[0])
    assert (carried(model)[0] - carried(reference)[0]).abs().max() > 1e-2


def test_a_state_put_back_goes_on_alike():
    model, other = small().eval(), small().eval()
    assert model.stream_memory.state_dict() == {"tokens": [], "bev_aug": [], "groups": []}
    for frames in STEPS[:2]:
        step(model, *frames)
    step(other, ("d", 0))  # what was there before is forgotten
    other.stream_memory.load_state_dict(model.stream_memory.state_dict())
    for frames in STEPS[2:]:
        assert_close(step(other, *frames), step(model, *frames), atol=0, rtol=0)


def test_aligning_a_mirrored_history_is_mirroring_the_aligned_one():
    """With the mirrored motion, which a stream's frames have while their visit is mirrored."""
    grid = small_model().bev_encoder.grid
    generator = torch.Generator().manual_seed(0)
    bev = torch.randn(1, grid.bev_h * grid.bev_w, 3, generator=generator)
    motion = make_item(3, num_frames=1)["inputs"]["ego_motion"]
    motion[:, :3] *= 10
    motion[:, -1] = 17.3  # degrees
    mirrored = augment_ego_motion(motion[0].double().numpy(), is_mirrored=True)
    mirrored_motion = torch.from_numpy(mirrored)[None].float()

    def mirror(rows):
        return rows.unflatten(1, (grid.bev_h, grid.bev_w)).flip(2).flatten(1, 2)

    aligned = rotate_bev(bev, motion[:, -1], grid)
    assert_close(rotate_bev(mirror(bev), mirrored_motion[:, -1], grid), mirror(aligned), atol=0, rtol=0)
    assert (aligned - bev).abs().max() > 0.1
    shift, mirrored_shift = bev_shift(motion, grid), bev_shift(mirrored_motion, grid)
    assert_close(mirrored_shift, shift * torch.tensor([-1.0, 1.0]), atol=1e-7, rtol=1e-4)
    assert np.abs(shift.numpy()).min() > 1e-3
