"""TaskLosses: declared tasks only, in the declared order."""

import pytest
import torch

from perception.balancing import TaskLosses

ONE = torch.tensor(1.0)


def test_order_is_the_declared_one() -> None:
    losses = TaskLosses({"seg": ONE * 2, "det": ONE}, {"seg": ONE, "det": ONE}, ("det", "seg", "depth"))
    assert list(losses) == ["det", "seg"]
    assert losses.present == (True, True, False)
    assert float(losses["seg"]) == 2


def test_undeclared_task_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\['d0'\]"):
        TaskLosses({"d0": ONE}, {"d0": ONE}, ("cls",))


def test_a_loss_needs_its_count() -> None:
    with pytest.raises(ValueError, match="num_targets"):
        TaskLosses({"cls": ONE}, {}, ("cls",))


def test_total_is_the_sum_with_its_gradient() -> None:
    weights = torch.tensor([2.0, 3.0], requires_grad=True)
    losses = TaskLosses(
        {"det": weights[0] * 5, "seg": weights[1:] ** 2}, {"seg": ONE, "det": ONE}, ("det", "seg", "depth")
    )
    assert losses.total().shape == ()
    assert losses.total().item() == 19
    losses.total().backward()
    assert weights.grad.tolist() == [5, 6]
    with pytest.raises(ValueError, match="no task"):
        TaskLosses({}, {}, ("det",)).total()


def test_a_tasks_loss_is_the_sum_of_its_parts() -> None:
    names = ("det", "det.boxes", "seg")
    losses = TaskLosses(
        {"det": ONE, "det.boxes": ONE * 2}, {"det": ONE, "det.boxes": ONE / 4}, ("det", "seg"), names
    )
    assert (list(losses), float(losses["det"])) == (["det"], 3)
    assert losses.present == (True, False)
    assert losses.part_tasks == ("det", "det", "seg")
    alone = TaskLosses({"det.boxes": ONE * 2}, {"det.boxes": ONE}, ("det", "seg"), names)
    assert float(alone["det"]) == 2


def test_parts_belong_to_declared_tasks() -> None:
    with pytest.raises(ValueError, match=r"tasks \['depth'\]"):
        TaskLosses({}, {}, ("det",), ("det", "depth.x"))
    with pytest.raises(ValueError, match=r"\['det.boxes'\]"):
        TaskLosses({"det.boxes": ONE}, {"det.boxes": ONE}, ("det",))
