"""The loss scale against torch's GradScaler, which nobody here wrote."""

from typing import Any

import pytest
import torch

from perception.engine.loss_scaler import LossScaler


@pytest.mark.parametrize(
    "options",
    [
        {"init_scale": 2.0**16, "growth_interval": 3},
        {"init_scale": 1024.0, "growth_factor": 4.0, "backoff_factor": 0.25, "growth_interval": 1},
        {"init_scale": 2.0**127, "growth_interval": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("share", [0.05, 0.3])
def test_the_same_scales_as_grad_scaler(options: dict[str, Any], share: float) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    theirs, ours = torch.amp.GradScaler("cpu", **options), LossScaler(**options, min_scale=1e-30)
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(60):
        has_overflowed = float(torch.rand((), generator=generator)) < share
        theirs.scale(torch.zeros(()))  # it allocates its state only then
        parameter.grad = torch.tensor([float("inf") if has_overflowed else 1.0])
        theirs.step(optimizer)
        theirs.update()
        ours.update(has_overflowed=has_overflowed)
        assert ours.scale == theirs.get_scale()
        seen.add(ours.scale)
    assert len(seen) >= 2
    other = LossScaler(**options, min_scale=1e-30)
    other.load_state_dict(ours.state_dict())
    assert other.state_dict() == ours.state_dict()
    assert other.state_dict()["scale"] == theirs.get_scale()


def test_the_floor() -> None:
    scaler = LossScaler(init_scale=4.0, min_scale=1.5)
    seen = []
    for _ in range(4):
        seen.append((scaler.scale, scaler.is_at_floor))
        scaler.update(has_overflowed=True)
    assert seen == [(4.0, False), (2.0, False), (1.5, True), (1.5, True)]
    assert scaler.num_overflows == 4


@pytest.mark.parametrize(
    "options",
    [
        {"init_scale": 0.0},
        {"init_scale": float("nan")},
        {"init_scale": 2.0, "min_scale": 4.0},
        {"growth_factor": 1.0},
        {"backoff_factor": 1.0},
        {"growth_interval": 0},
    ],
    ids=str,
)
def test_bad_arguments(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="loss_scale has .*allowed: 0 < min_scale"):
        LossScaler(**options)
