"""RotoGrad as a balancer: what it makes of a model, and what it refuses."""

from typing import Any

import pytest
import torch
from torch import nn

from perception.balancing import RotoGrad, SharedFeatures, build_balancer
from perception.balancing.task_norms import spread_state_dict


class Model(nn.Module):
    task_names = ("cls", "box", "seg")
    shared_width = 4

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        self.trunk = nn.Linear(2, 4)
        self.shared_features: SharedFeatures | None = SharedFeatures()
        self.rotations: RotoGrad | None = None
        for name, value in changes.items():
            setattr(self, name, value)


def test_the_model_is_copied_and_gets_a_rotation_per_head() -> None:
    balancer = build_balancer({"name": "rotograd", "lr": 0.5, "decay": 0.9, "burn_in": 3})
    model = Model(task_groups={"det": ("cls", "box"), "seg": ("seg",)})
    prepared = balancer.prepare(model)
    assert model.rotations is None
    assert prepared.rotations.tasks == ("det", "seg")
    assert (prepared.rotations.decay, prepared.rotations.burn_in) == (0.9, 3)
    assert prepared.rotations.optimizer.param_groups[0]["lr"] == 0.5
    assert sorted(set(prepared.state_dict()) - set(model.state_dict())) == [
        "rotations.generators.det",
        "rotations.generators.seg",
    ]
    assert balancer.prepare(Model().double()).rotations.tasks == Model.task_names
    assert balancer.prepare(Model().double()).rotations.generators["seg"].dtype == torch.float64
    assert balancer.prepare(Model().half()).rotations.generators["seg"].dtype == torch.float32


def test_weights_of_a_plain_model_start_unrotated_and_rotated_ones_are_kept() -> None:
    prepared = build_balancer("rotograd").prepare(Model())
    prepared.rotations.generators["seg"].fill_(0.5)
    spread = spread_state_dict(prepared, Model().state_dict())
    assert set(spread) == set(prepared.state_dict())
    assert not spread["rotations.generators.seg"].any()
    kept = spread_state_dict(prepared, prepared.state_dict())
    assert kept["rotations.generators.seg"].eq(0.5).all()


def test_another_balancers_state_is_refused() -> None:
    balancer = build_balancer("rotograd")
    balancer.adopt(balancer.prepare(Model()))
    balancer.setup(Model.task_names, max_epochs=1, total_steps=1, seed=0)
    other = build_balancer("pcgrad")
    with pytest.raises(ValueError, match="lacks RotoGrad's. Resume with the balancer that wrote it"):
        balancer.load_state_dict(other.state_dict())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"lrr": 0.1}, "Did you mean 'lr'"),
        ({"groups": {}}, "takes no argument 'groups'"),
        ({"lr": 0.0}, "lr is 0"),
        ({"decay": 2.0}, "decay is 2"),
        ({"burn_in": -1}, "burn_in is -1"),
        ({"weighting": "gradnorm"}, "GradNormWeights needs the Gram matrix"),
        ({"weighting": "dwaa"}, "Did you mean 'dwa'"),
        ({"scales": {"seg": 0.0}}, "the scale of task 'seg'"),
    ],
)
def test_bad_arguments(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_balancer({"name": "rotograd", **spec})


@pytest.mark.parametrize("name", ["rotogard", "rotograd+pcgrad"])
def test_bad_names(name: str) -> None:
    with pytest.raises(ValueError, match="Did you mean 'rotograd'|takes only a loss weighting beside it"):
        build_balancer(name)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(1, 1), "Linear has no shared_width, rotations, shared_features"),
        (Model(shared_features=None), "has no shared_features"),
        (Model(task_names=("seg",)), r"it needs at least two; Model has \['seg'\]"),
        (Model(rotations=RotoGrad(tasks=("a", "b"), size=4)), "has rotations already"),
    ],
)
def test_models_that_do_not_fit(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_balancer("rotograd").prepare(model)


class Hiding(Model):
    rotations = None


def test_an_attribute_of_the_class_would_hide_the_rotations() -> None:
    with pytest.raises(ValueError, match="an attribute of the class hides the module"):
        build_balancer("rotograd").prepare(Hiding())


def test_a_model_that_was_not_prepared_is_refused() -> None:
    balancer = build_balancer("rotograd")
    for model in (Model(), Model(rotations=RotoGrad(tasks=("a", "b"), size=4))):
        with pytest.raises(ValueError, match="trains the model that its `prepare` returns"):
            balancer.adopt(model)
    with pytest.raises(RuntimeError, match="knows no model yet"):
        _ = balancer.rotations
