"""Every balancing method on the image model, in steps with both tasks' labels and with one task's alone."""

from typing import Any

import pytest
import torch

from perception.balancing import balancer_names, build_balancer
from perception.engine import BalancedOptimWrapper
from perception.engine.task_forwards import prepare_model, train_by_groups
from tests.models.images import collate_images, image_item, image_model

KPI = {"det": 0.2, "seg": 0.3}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "constant": {"weights": {"det": 1.0, "seg": 3.0}},
    "dtp": {"form": "loss"},
    "stch": {"mu": 1.0},
    "cagrad": {"c": 0.5},
    "fairgrad": {"alpha": 1.0},
    "recon": {"layers": ["img_backbone.layer3.1.conv2", "img_neck.fpn_convs.1.conv"]},
}
VELOCITY = ("wpcgrad-seg-vel", "wpcgrad-vel-seg")
METHODS = tuple(name for name in balancer_names() if name not in VELOCITY)
QUICK = ("sum", "mclgs", "graddrop", "mgda", "cagrad", "rotograd", "cross_stitch", "connection_strength")


def spec_of(name: str) -> dict[str, Any]:
    arguments = {key: value for part in name.split("+") for key, value in ARGUMENTS.get(part, {}).items()}
    if name == "amtl" or "achievement" in name:
        arguments |= {"potentials": KPI}
    if "dtp+" in name:
        arguments["form"] = "loss"
    return {"name": name, **arguments}


class Training:
    """A few steps of one method."""

    def __init__(self, spec: dict[str, Any], **options: Any) -> None:
        balancer = build_balancer(spec)
        model = image_model()
        self.model = prepare_model(balancer, model) if balancer.changes_model else model
        self.model.train()
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.wrapper = BalancedOptimWrapper(optimizer, balancer=balancer, **options)
        self.wrapper.balanced.prepare(self.model, self.model.task_names, max_epochs=2, total_steps=6, seed=0)
        self.wrapper.balanced.begin_epoch(1)
        self.num_steps = 0

    def step(self, *items: dict[str, Any]) -> set[str]:
        """One update; names of the parameters that moved."""
        before = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.num_steps += 1
        data = collate_images(list(items))
        if self.wrapper.balancer.needs_task_forwards:
            train_by_groups(self.model, data, self.wrapper, step=self.num_steps)
        else:
            self.model.train_step(data, self.wrapper)
        assert self.wrapper.last_step["skipped"] is False
        assert all(bool(p.isfinite().all()) for p in self.model.parameters())
        return {name for name, p in self.model.named_parameters() if not torch.equal(p, before[name])}


def both(seed: int) -> dict[str, Any]:
    return image_item(seed)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in METHODS]
)
def test_every_method_trains_with_and_without_a_tasks_labels(name: str) -> None:
    training = Training(spec_of(name))
    moved = training.step(both(1), both(2))
    assert {key.partition(".")[0] for key in moved} >= {"img_backbone", "img_neck", "box_head", "seg_head"}
    assert set(training.wrapper.last_step["tasks"]) == {"det", "seg"}
    moved = training.step(image_item(3, mask=False), image_item(4, mask=False))
    assert not any(key.startswith("seg_head") for key in moved)
    assert any(key.startswith("img_backbone") for key in moved)
    moved = training.step(image_item(5, boxes=None), image_item(6, boxes=None))
    assert not any(key.startswith("box_head") for key in moved)
    assert set(training.wrapper.last_step["tasks"]) == {"seg"}
    training.step(image_item(7, mask=False), image_item(8, boxes=None))


@pytest.mark.parametrize("name", VELOCITY)
def test_priorities_of_tasks_that_it_has_not_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="velocity"):
        Training({"name": name, "priority": {"name": "static", "schedule": "seg_to_vel", "stretch": True}})


@pytest.mark.parametrize("source", ["features", "last_layer"])
def test_other_gradient_sources(source: str) -> None:
    training = Training({"name": "pcgrad"}, gradient_source=source)
    assert len(training.step(both(1), both(2))) > 50
    training.step(image_item(3, mask=False), image_item(4, boxes=None))


def test_one_present_task_trains_as_if_it_were_alone() -> None:
    """MCLGS with one task, the shared gradient is that task's: as the plain sum has it."""
    found = []
    for spec in ({"name": "sum"}, {"name": "mclgs"}, {"name": "cagrad", "c": 0.5}):
        training = Training(spec)
        training.step(image_item(3, mask=False), image_item(4, mask=False))
        found.append({name: p.detach().clone() for name, p in training.model.named_parameters()})
    for other in found[1:]:
        for name, value in found[0].items():
            torch.testing.assert_close(other[name], value, msg=name)
