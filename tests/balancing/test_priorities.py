"""Priorities by epoch, by losses and by scores."""

import math

import pytest
import torch

from perception.balancing import DynamicTaskPriority, StaticPriority, UniformPriority, build_balancer
from perception.balancing.component import Setting

TASKS = ("cls", "box", "velocity", "seg")


def ready(priority, *, max_epochs=24, tasks=TASKS):
    priority.setup(
        Setting(task_names=tasks, max_epochs=max_epochs, total_steps=10, generator=torch.Generator())
    )
    return priority


def at(priority, epoch):
    priority.begin_epoch(epoch)
    return priority.probabilities().tolist()


def test_uniform():
    assert ready(UniformPriority()).probabilities().tolist() == [0.25] * 4
    with pytest.raises(ValueError, match="does not know its tasks"):
        UniformPriority().probabilities()


def test_seg_to_vel_of_the_paper():
    priority = ready(StaticPriority("seg_to_vel", favoured_probability=0.97))
    for epoch in (1, 15):
        assert at(priority, epoch) == pytest.approx([0.01, 0.01, 0.01, 0.97])
    for epoch in (16, 18):
        assert at(priority, epoch) == [0.25] * 4
    for epoch in (19, 24):
        assert at(priority, epoch) == pytest.approx([0.01, 0.01, 0.97, 0.01])
    assert at(ready(StaticPriority("vel_to_seg", favoured_probability=0.97)), 1)[2] == pytest.approx(0.97)


def test_a_schedule_can_be_stretched():
    priority = ready(StaticPriority("seg_to_vel", stretch=True), max_epochs=48)
    assert at(priority, 30)[3] > 0.9
    assert at(priority, 31) == [0.25] * 4
    assert at(priority, 37)[2] > 0.9
    short = ready(StaticPriority("seg_to_vel", stretch=True), max_epochs=8)
    assert [at(short, epoch)[3] > 0.9 for epoch in range(1, 9)] == [True] * 5 + [False] * 3


@pytest.mark.parametrize("max_epochs", [1, 15, 18])
def test_a_run_that_never_comes_to_the_last_stage_is_refused(max_epochs):
    message = f"run ends with epoch {max_epochs}, before the schedule's last stage begins with epoch 19.*stretch=True"
    with pytest.raises(ValueError, match=message):
        ready(StaticPriority("seg_to_vel"), max_epochs=max_epochs)
    balancer = build_balancer("wpcgrad-vel-seg")
    with pytest.raises(ValueError, match=message):
        balancer.setup(TASKS, max_epochs=max_epochs, total_steps=10, seed=0)
    assert at(ready(StaticPriority("seg_to_vel"), max_epochs=19), 19)[2] > 0.9
    ready(StaticPriority("seg_to_vel", stretch=True), max_epochs=max_epochs)


def test_a_mapping_of_spans():
    priority = ready(StaticPriority({(1, 2): {"seg": 1.0}, (3, 9): "uniform"}), max_epochs=9)
    assert at(priority, 2) == [0, 0, 0, 1]
    assert at(priority, 3) == [0.25] * 4


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ([(1, 3, "uniform"), (5, 24, "uniform")], r"gap at stage \(5, 24\): it should begin with epoch 4"),
        ([(1, 3, "uniform"), (3, 24, "uniform")], r"overlap at stage \(3, 24\)"),
        ([(0, 24, "uniform")], "overlap at stage"),
        ([(2, 24, "uniform")], "gap at stage"),
        ([(1, 24, "uniform"), (25, 20, "uniform")], "ends before it begins"),
        ([], "the schedule is empty"),
        ("seg_to_vell", "Did you mean 'seg_to_vel'"),
        ([(1, 12, "uniform")], "ends with epoch 12, but the run has 24 epochs"),
        ([(1, 24, {"segg": 1.0})], "Did you mean 'seg'"),
        ([(1, 24, {"seg": 0.5})], "sums to 0.5; it must sum to 1"),
        ([(1, 24, [0.5, 0.5])], "has 2 values for the 4 tasks"),
    ],
)
def test_bad_schedules(schedule, message):
    with pytest.raises(ValueError, match=message):
        ready(StaticPriority(schedule))


def test_a_named_schedule_needs_its_tasks():
    with pytest.raises(ValueError, match="unknown task 'velocity'"):
        ready(StaticPriority("seg_to_vel"), tasks=("det", "seg"))
    assert at(ready(StaticPriority("seg_to_vel", tasks=("seg", "det")), tasks=("det", "seg")), 24)[0] > 0.9


def test_epochs_outside_the_schedule():
    priority = ready(StaticPriority([(1, 24, "uniform")]))
    with pytest.raises(ValueError, match="epoch 25 is in no stage"):
        at(priority, 25)


def test_eq_1_on_last_epochs_losses():
    priority = ready(DynamicTaskPriority(2), tasks=("det", "seg"))
    assert priority.probabilities().tolist() == [0.5, 0.5]
    priority.end_epoch(torch.tensor([3.0, 1.0]))
    assert priority.probabilities().tolist() == pytest.approx([0.9, 0.1])
    priority.end_epoch(torch.tensor([math.nan, 2.0]))  # det had no target in this epoch
    assert priority.probabilities().tolist() == pytest.approx([9 / 13, 4 / 13])


def test_eq_1_on_scaled_losses():
    """The priority's own scales; a task that never had a loss counts as the mean of the others' scaled ones."""
    priority = ready(DynamicTaskPriority(2, scales={"seg": 3.0}), tasks=("det", "seg", "velocity"))
    priority.end_epoch(torch.tensor([3.0, 1.0, math.nan]))
    assert priority.probabilities().tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    with pytest.raises(ValueError, match="Did you mean 'seg'"):
        ready(DynamicTaskPriority(2, scales={"sge": 3.0}), tasks=("det", "seg"))
    with pytest.raises(ValueError, match="scale of task 'seg' is 0"):
        DynamicTaskPriority(2, scales={"seg": 0})
    with pytest.raises(ValueError, match="leave them out"):
        DynamicTaskPriority(2, form="kpi", scales={"seg": 3.0})


@pytest.mark.parametrize("losses", [(1e-200, 1e-200), (1e200, 1e200), (0.0, 0.0), (math.nan, math.nan)])
def test_extreme_losses(losses):
    priority = ready(DynamicTaskPriority(4), tasks=("det", "seg"))
    priority.end_epoch(torch.tensor(losses, dtype=torch.float64))
    assert priority.probabilities().tolist() == pytest.approx([0.5, 0.5])


def test_the_form_of_guo_et_al():
    priority = ready(
        DynamicTaskPriority(2, form="kpi", potentials={"seg": 0.2}, lower_is_better=("seg",)),
        tasks=("det", "seg"),
    )
    assert priority.probabilities().tolist() == [0.5, 0.5]
    priority.update_kpis({"det": 0.5, "seg": 0.8})  # seg: an error, 0.2 / 0.8 = 0.25
    values = [-((1 - k) ** 2) * math.log(k) for k in (0.5, 0.25)]
    assert priority.probabilities().tolist() == pytest.approx([value / sum(values) for value in values])


def test_bad_arguments_of_the_dynamic_form():
    with pytest.raises(ValueError, match="gamma is -1"):
        DynamicTaskPriority(-1)
    with pytest.raises(ValueError, match="form is 'score'"):
        DynamicTaskPriority(1, form="score")
    with pytest.raises(ValueError, match="need a potential"):
        ready(DynamicTaskPriority(1, form="kpi", lower_is_better=("seg",)))


@pytest.mark.parametrize(
    "spec",
    [
        "dtp",
        "dtp+geometric",
        {"name": "wpcgrad", "priority": {"name": "dtp", "form": "kpi"}},
        {"name": "amtl", "potentials": {"cls": 0.2, "velocity": 1.0}},
    ],
    ids=str,
)
def test_an_error_is_not_taken_for_a_score(spec):
    """An mAVE above 1 would count as a task that is done, and one of 0.02 as the hardest of all."""
    balancer = build_balancer(spec)
    balancer.setup(("cls", "velocity"), max_epochs=1, total_steps=4, seed=0)
    with pytest.raises(ValueError, match=r"\['velocity'\] are errors.*Give lower_is_better=\['velocity'\]"):
        balancer.check_directions(["velocity"])
    balancer.check_directions([])
    right = {"potentials": {"cls": 0.2, "velocity": 1.0}, "lower_is_better": ("velocity",)}
    by_losses = {"name": "dtp", "form": "loss"}
    for other in ({"name": "dtp", **right}, {"name": "amtl", **right}, by_losses, "wpcgrad", "sum"):
        balancer = build_balancer(other)
        balancer.setup(("cls", "velocity"), max_epochs=1, total_steps=4, seed=0)
        balancer.check_directions(["velocity"])
