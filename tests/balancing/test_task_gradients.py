"""The block of task gradients: what it keeps, what it forgets, and its layout."""

import torch
from torch import Tensor, nn
from torch.testing import assert_close

from perception.balancing import TaskGradients

BOTH = torch.tensor([True, True])


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    conv = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)
    return [nn.Parameter(conv), nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(2, 3))]


def losses(params: list[nn.Parameter], tasks: tuple[tuple[int, ...], tuple[int, ...]]) -> list[Tensor]:
    return [sum((params[n] ** (k + 2)).sum() for n in numbers) for k, numbers in enumerate(tasks)]


def filled(
    gradients: TaskGradients, params: list[nn.Parameter], tasks: tuple[tuple[int, ...], tuple[int, ...]]
) -> TaskGradients:
    for task_idx, loss in enumerate(losses(params, tasks)):
        gradients.add(task_idx, loss, retain_graph=False)
    return gradients


def test_memory_used_again_gives_what_fresh_memory_gives() -> None:
    """In the second round other tasks reach other parameters: nothing of the first may be left."""
    params = parameters()
    used = filled(TaskGradients(params, 2), params, ((0, 1, 2), (0, 1)))
    used.scale_(torch.tensor([3.0, 0.5]))
    memory = used.rows.data_ptr()
    used.restart()
    filled(used, params, ((0,), (0, 2)))
    fresh = filled(TaskGradients(params, 2), params, ((0,), (0, 2)))
    assert used.rows.data_ptr() == memory
    assert_close(used.rows, fresh.rows, rtol=0, atol=0)
    assert torch.equal(used.reached, fresh.reached)
    assert_close(used.gram(BOTH), fresh.gram(BOTH), rtol=0, atol=0)
    assert used.combine(torch.ones(2), BOTH, scale_heads=True)[1] is None


def test_gradients_of_micro_batches_add_up() -> None:
    params = parameters()
    gradients = filled(TaskGradients(params, 2), params, ((0, 1), (0,)))
    once = gradients.rows.clone()
    filled(gradients, params, ((0, 1), (0,)))
    assert_close(gradients.rows, 2 * once)


def test_factors_reach_everything_that_is_computed() -> None:
    params, factors = parameters(), torch.tensor([3.0, 0.5], dtype=torch.float64)
    plain = filled(TaskGradients(params, 2), params, ((0, 1), (0, 2)))
    scaled = filled(TaskGradients(params, 2), params, ((0, 1), (0, 2)))
    scaled.scale_(factors)
    assert_close(scaled.gram(BOTH), factors[:, None] * plain.gram(BOTH) * factors)
    coefficients = torch.tensor([0.7, 1.3], dtype=torch.float64)
    for found, expected in zip(
        scaled.combine(coefficients, BOTH, scale_heads=True),
        plain.combine(coefficients * factors, BOTH, scale_heads=True),
        strict=True,
    ):
        assert_close(found, expected)
    by_blocks = scaled.combine_blocks(lambda block, present: block.sum(dim=0), BOTH, scale_heads=False)
    for found, expected in zip(
        by_blocks, scaled.combine(torch.ones(2), BOTH, scale_heads=False), strict=True
    ):
        assert_close(found, expected)


def test_update_has_the_strides_of_its_parameter() -> None:
    params = parameters()
    gradients = filled(TaskGradients(params, 2), params, ((0, 1), (0, 2)))
    for update in (
        gradients.combine(torch.ones(2), BOTH, scale_heads=True),
        gradients.combine_blocks(lambda block, present: block.sum(dim=0), BOTH, scale_heads=True),
    ):
        for parameter, value in zip(params, update, strict=True):
            assert value is not None
            assert value.stride() == parameter.stride()
        expected = 2 * params[0] + 3 * params[0] ** 2
        assert_close(update[0], expected.detach())


def test_large_gradients_are_finite_and_bad_ones_are_found() -> None:
    params = [nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(3))]
    gradients = TaskGradients(params, 2)
    gradients.add(0, 3e38 * params[0].sum(), retain_graph=False)  # the sum over the row overflows
    gradients.add(1, params[1].sum(), retain_graph=False)
    assert gradients.bad_rows() == []
    gradients.add(
        1, torch.tensor(torch.inf) * params[1][0] - torch.tensor(torch.inf) * params[1][1], retain_graph=False
    )
    assert gradients.bad_rows() == [1]
    assert gradients.bad_parameters() == [1]
