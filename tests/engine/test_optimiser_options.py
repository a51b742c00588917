"""Learning rates per group, frozen parameters, clipping and accumulation go with methods that compare gradients."""

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch.testing import assert_close

from perception.engine import BalancedOptimWrapper
from tests.engine.test_gradient_sources import TASKS, Net, batch, reference, slow_update, task_losses

FROZEN = ("conv.", "heads.box.")
RATES = {"trunk": 0.1, "heads.seg": 2.0}


@pytest.mark.parametrize("accumulative_counts", [1, 2])
@pytest.mark.parametrize("source", ["parameters", "last_layer"])
@pytest.mark.parametrize("name", ["pcgrad", "mclgs"])
def test_all_of_them_together(name: str, source: str, accumulative_counts: int) -> None:
    """Oracle: the update of the slow way over what is shared and trainable, clipped and scaled by hand."""
    net, data = Net(), batch(0, size=4)
    is_counted = ("trunk.",) if source == "last_layer" else ("trunk.", "decoder.")
    over = {key for key, _ in net.named_parameters() if key.startswith(is_counted)}
    balancer = reference(name)
    # With the last layer each micro-batch has its own coefficients, and PCGrad draws anew.
    num_combined = accumulative_counts if source == "last_layer" else 1
    parts = [slow_update(net, balancer, data, over=over) for _ in range(num_combined)]
    expected = {
        key: sum(part[key] for part in parts) / num_combined for key in parts[0] if not key.startswith(FROZEN)
    }
    norm = float(torch.stack([value.norm() for value in expected.values()]).norm())
    for key, parameter in net.named_parameters():
        parameter.requires_grad_(not key.startswith(FROZEN))
    before = {key: parameter.detach().clone() for key, parameter in net.named_parameters()}
    wrapper = build_optim_wrapper(
        net,
        dict(
            type=BalancedOptimWrapper,
            optimizer=dict(type=torch.optim.SGD, lr=0.1),
            paramwise_cfg=dict(custom_keys={key: dict(lr_mult=rate) for key, rate in RATES.items()}),
            clip_grad=dict(max_norm=norm / 2),
            balancer=name,
            gradient_source=source,
            accumulative_counts=accumulative_counts,
        ),
    )
    wrapper.balanced.prepare(net, TASKS, max_epochs=24, total_steps=100, seed=3)
    wrapper.balanced.begin_epoch(1)
    for _ in range(accumulative_counts):  # equal micro-batches: their mean is each of them
        with wrapper.optim_context(net):
            losses = task_losses(net, data)
        wrapper.update_params(losses)
    assert wrapper.num_updates == 1
    assert wrapper.last_step["grad_norm"] == pytest.approx(norm, rel=1e-6)
    for key, parameter in net.named_parameters():
        if key.startswith(FROZEN):
            assert torch.equal(parameter, before[key])
            continue
        rate = 0.1 * next((rate for part, rate in RATES.items() if part in key), 1.0)
        assert_close(
            before[key] - parameter.detach(), rate * expected[key] / 2, rtol=1e-5, atol=1e-9, msg=key
        )
