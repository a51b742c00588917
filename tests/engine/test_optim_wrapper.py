"""The update against gradients computed by hand."""

from typing import Any

import pytest
import torch
import toy_world

from perception.balancing import Balancer, TaskLosses
from perception.engine import BalancedOptimWrapper


def parameters() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [
        torch.nn.Parameter(torch.randn(3)),
        torch.nn.Parameter(torch.randn(2)),
        torch.nn.Parameter(torch.ones(1)),
    ]


def losses_of(params: list[torch.nn.Parameter], scale: float = 1.0, **missing: bool) -> TaskLosses:
    losses = {"det": scale * (params[0] ** 2).sum(), "seg": scale * (params[0].sum() * params[1].sum()) ** 2}
    losses = {task: loss for task, loss in losses.items() if not missing.get(task)}
    return TaskLosses(losses, {task: torch.tensor(2.0) for task in losses}, ("det", "seg"))


def wrapper_of(params: list[torch.nn.Parameter], **options: Any) -> BalancedOptimWrapper:
    return BalancedOptimWrapper(torch.optim.SGD(params, lr=0.1), **options)


def step_by_hand(
    params: list[torch.nn.Parameter], loss: torch.Tensor, max_norm: float | None = None
) -> list[Any]:
    gradients = torch.autograd.grad(loss, params[:2], allow_unused=True, retain_graph=True)
    norm = torch.stack([g.norm() for g in gradients if g is not None]).norm()
    factor = 1.0 if max_norm is None else min(1.0, max_norm / (float(norm) + 1e-6))
    return [p if g is None else p - 0.1 * factor * g for p, g in zip(params, gradients, strict=False)]


@pytest.mark.parametrize("max_norm", [None, 0.5, 1e6])
def test_one_step(max_norm: float | None) -> None:
    params = parameters()
    losses = losses_of(params)
    expected = step_by_hand(params, losses["det"] + losses["seg"], max_norm)
    wrapper = wrapper_of(params, clip_grad=None if max_norm is None else dict(max_norm=max_norm))
    wrapper.update_params(losses)
    for param, value in zip(params, expected, strict=False):
        torch.testing.assert_close(param.data, value.data)
    assert params[2].grad is None
    assert torch.equal(params[2].data, torch.ones(1))
    assert wrapper.num_updates == 1


def test_absent_task_and_absent_batch() -> None:
    params = parameters()
    losses = losses_of(params, seg=True)
    expected = step_by_hand(params[:2], losses["det"])
    wrapper = wrapper_of(params)
    wrapper.update_params(losses)
    torch.testing.assert_close(params[0].data, expected[0].data)
    before = [param.detach().clone() for param in params]
    wrapper.update_params(losses_of(params, det=True, seg=True))
    toy_world.assert_same(before, [param.detach() for param in params])
    assert wrapper.last_step["tasks"] == {}


def test_accumulation_is_the_mean() -> None:
    once, twice = parameters(), parameters()
    wrapper = wrapper_of(twice, accumulative_counts=2)
    wrapper_of(once).update_params(losses_of(once, scale=2.0))
    wrapper.update_params(losses_of(twice, scale=1.0))
    assert not wrapper.is_between_updates
    wrapper.update_params(losses_of(twice, scale=3.0))
    assert wrapper.is_between_updates
    torch.testing.assert_close(once[0].data, twice[0].data)


def test_a_bad_micro_batch_drops_its_window() -> None:
    params = parameters()
    before = [param.detach().clone() for param in params]
    wrapper = wrapper_of(params, accumulative_counts=2)
    wrapper.update_params(losses_of(params))
    wrapper.update_params(losses_of(params, scale=float("nan")))
    toy_world.assert_same(before, [param.detach() for param in params])
    assert params[0].grad is None
    wrapper.update_params(losses_of(params))
    wrapper.update_params(losses_of(params))
    assert (wrapper.num_skipped, wrapper.num_bad_in_row, wrapper.num_updates) == (1, 0, 1)


def test_balancer_seam() -> None:
    """Weights and coefficients multiply; a balancer sees global losses and presence."""

    class Doubling(Balancer):
        def weigh(self, losses: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
            assert present.tolist() == [True, True]
            return torch.tensor([2.0, 1.0], dtype=losses.dtype)

        def combine(
            self, losses: torch.Tensor, present: torch.Tensor, gram: torch.Tensor | None
        ) -> torch.Tensor:
            return torch.tensor([1.0, 0.5], dtype=losses.dtype)

    params = parameters()
    losses = losses_of(params)
    expected = step_by_hand(params, 2 * losses["det"] + 0.5 * losses["seg"])
    wrapper_of(params, balancer=Doubling()).update_params(losses)
    torch.testing.assert_close(params[0].data, expected[0].data)


def test_bf16_runs_on_a_cpu() -> None:
    linear = torch.nn.Linear(4, 4)
    wrapper = wrapper_of(list(linear.parameters()), precision="bf16")
    with wrapper.optim_context(linear):
        out = linear(torch.ones(1, 4))
    assert out.dtype == torch.bfloat16
    loss = out.float().sum()
    wrapper.update_params(TaskLosses({"det": loss}, {"det": torch.tensor(1.0)}, ("det",)))
    assert linear.weight.dtype == torch.float32
    assert wrapper.num_updates == 1


def test_state_round_trip() -> None:
    params = parameters()
    wrapper = wrapper_of(params)
    wrapper.update_params(losses_of(params))
    state = wrapper.state_dict()
    other = wrapper_of(parameters())
    other.load_state_dict(state)
    assert other.num_updates == 1
    assert other.state_dict().keys() == state.keys()


def test_bad_input() -> None:
    params = parameters()
    with pytest.raises(TypeError, match="must return a TaskLosses"):
        wrapper_of(params).update_params(params[0].sum())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="allowed: 'fp32', 'bf16', 'fp16', 'auto'"):
        wrapper_of(params, precision="fp8")
    with pytest.raises(ValueError, match=r"allowed: dict\(max_norm=35.0\)"):
        wrapper_of(params, clip_grad=dict(norm=1))


@pytest.mark.parametrize("balancer", [Balancer, 3])
def test_what_is_no_balancer_is_refused(balancer: Any) -> None:
    with pytest.raises(TypeError, match=r"balancer is \w+ .*allowed: a name of"):
        wrapper_of(parameters(), balancer=balancer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"balancer": {"type": "Balancer"}}, "give a name"),
        ({"balancer": "pcgrd"}, "Did you mean 'pcgrad'"),
        ({"balancer": "pcgrad", "gradient_source": "feature"}, "Did you mean 'features'"),
        ({"balancer": "pcgrad", "interval": 0}, "an interval of 1 or more"),
        ({"balancer": "sum", "interval": 4}, "does not compare task gradients"),
        ({"balancer": "graddrop", "gradient_source": "features"}, "element by element"),
        ({"watch": {"interval": 4}}, "gram_interval=100"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrapper_of(parameters(), **options)
