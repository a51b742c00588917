"""The projection per channel group, against the paper's algorithm written with vectors."""

import pytest
import torch
from torch import Tensor

from perception.balancing.channel_strength import NO_TASK
from perception.balancing.group_projection import GroupProjection
from tests.balancing.naive_projection import naive


def _case(seed: int) -> tuple[list[list[Tensor]], list[int], int]:
    generator = torch.Generator().manual_seed(seed)
    num_tasks = 2 + seed % 4
    channels = 1 + seed % 7
    scale = 10.0 ** (seed % 9 - 4)
    base = [
        torch.randn(channels, 3, 2, 2, generator=generator, dtype=torch.float64) for _ in range(num_tasks)
    ]
    conflicting = [base[0] * (-1) ** j * 0.5 + part * scale for j, part in enumerate(base)]
    biases = [torch.randn(channels, generator=generator, dtype=torch.float64) for _ in range(num_tasks)]
    group = torch.randint(NO_TASK, num_tasks, (channels,), generator=generator).tolist()
    return [[weight, bias] for weight, bias in zip(conflicting, biases, strict=True)], group, num_tasks


def _projection(group: list[int], num_tasks: int, row_size: int = 12) -> GroupProjection:
    return GroupProjection(
        groups=[torch.tensor(group)],
        parameters={"weight": (0, row_size), "bias": (0, 1)},
        num_tasks=num_tasks,
    )


@pytest.mark.parametrize("seed", range(60))
def test_it_is_the_papers_algorithm(seed: int) -> None:
    grads, group, num_tasks = _case(seed)
    projection = _projection(group, num_tasks)
    named = {name: [grads[j][n] for j in range(num_tasks)] for n, name in enumerate(("weight", "bias"))}
    products = projection.zero_products()
    for name, parts in named.items():
        projection.add_products(products, name, parts)
    coefficients = projection.coefficients(products)
    expected = naive(grads, group, num_tasks)
    for value, name in zip(expected, ("weight", "bias"), strict=True):
        torch.testing.assert_close(
            projection.merge(name, named[name], coefficients),
            value,
            rtol=1e-10,
            atol=1e-10 * float(value.abs().max()),
        )


@pytest.mark.parametrize("seed", range(20))
def test_pieces_of_two_ranks_give_the_whole(seed: int) -> None:
    grads, group, num_tasks = _case(seed)
    projection = _projection(group, num_tasks)
    weights = [grads[j][0] for j in range(num_tasks)]
    biases = [grads[j][1] for j in range(num_tasks)]
    whole = projection.zero_products()
    projection.add_products(whole, "weight", weights)
    projection.add_products(whole, "bias", biases)
    coefficients = projection.coefficients(whole)
    cuts = [0, seed % 5 + 1, weights[0].numel() // 2 + seed % 3, weights[0].numel()]
    total, pieces = projection.zero_products(), []
    projection.add_products(total, "bias", biases)
    for start, end in zip(cuts, cuts[1:], strict=False):
        shard = [w.flatten()[start:end] for w in weights]
        projection.add_products(total, "weight", shard, start=start)
        pieces.append(projection.merge("weight", shard, coefficients, start=start))
    torch.testing.assert_close(total, whole, rtol=1e-12, atol=1e-12 * float(whole.abs().max()))
    torch.testing.assert_close(
        torch.cat(pieces).view_as(weights[0]),
        projection.merge("weight", weights, coefficients),
        rtol=1e-14,
        atol=0,
    )


@pytest.mark.parametrize("seed", range(20))
def test_no_projected_gradient_opposes_its_groups_own(seed: int) -> None:
    grads, group, num_tasks = _case(seed)
    projection = _projection(group, num_tasks)
    products = projection.zero_products()
    weights = [grads[j][0] for j in range(num_tasks)]
    projection.add_products(products, "weight", weights)
    update = projection.merge("weight", weights, projection.coefficients(products))
    for task in range(num_tasks):
        own = weights[task][[p for p, owner in enumerate(group) if owner == task]]
        change = update[[p for p, owner in enumerate(group) if owner == task]]
        # Each projected one adds at least 0 to ⟨own, own⟩.
        assert float((own * change).sum()) >= float(own.square().sum()) * (1 - 1e-9)


def test_orthogonal_gradients_are_summed() -> None:
    projection = _projection([0], 2, row_size=2)
    grads = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])]
    products = projection.zero_products()
    projection.add_products(products, "weight", grads)
    assert torch.equal(projection.coefficients(products), torch.ones(1, 2, 2, dtype=torch.float64))
    assert projection.merge("weight", grads, projection.coefficients(products)).tolist() == [[1.0, 3.0]]


def test_a_task_without_gradient_changes_nothing() -> None:
    grads, _, _ = _case(3)  # five tasks
    group, first_two = [0, 1, 1, 0], [grads[0][0], grads[1][0]]
    sub, full = _projection(group, 2), _projection(group, 5)
    results = []
    for projection, parts in ((sub, first_two), (full, [*first_two, None, None, None])):
        products = projection.zero_products()
        projection.add_products(products, "weight", parts)
        results.append(projection.merge("weight", parts, projection.coefficients(products)))
    assert torch.equal(*results)


def test_a_group_whose_task_has_no_gradient_is_summed() -> None:
    projection = _projection([0, 1], 2, row_size=2)
    grads = [None, torch.tensor([[1.0, -2.0], [3.0, 4.0]])]
    products = projection.zero_products()
    projection.add_products(products, "weight", grads)
    assert torch.equal(projection.merge("weight", grads, projection.coefficients(products)), grads[1])


def test_vanishing_reference_stays_finite() -> None:
    projection = _projection([0], 2, row_size=2)
    grads = [torch.tensor([[1e-30, 0.0]]), torch.tensor([[-1.0, 1.0]])]
    products = projection.zero_products()
    projection.add_products(products, "weight", grads)
    assert projection.merge("weight", grads, projection.coefficients(products)).isfinite().all()


def test_half_precision_is_summed_in_float32() -> None:
    projection = _projection([0], 2, row_size=4096)
    grads = [
        torch.full((1, 4096), 1.0, dtype=torch.bfloat16),
        torch.full((1, 4096), -1.0, dtype=torch.bfloat16),
    ]
    products = projection.zero_products()
    projection.add_products(products, "weight", grads)
    assert products[0].tolist() == [[4096.0, -4096.0], [0.0, 0.0]]
    merged = projection.merge("weight", grads, projection.coefficients(products))
    assert merged.dtype == torch.bfloat16
    assert float(merged[0, 0]) == 1.0


def test_scaling_the_gradients_scales_the_update() -> None:
    grads, group, num_tasks = _case(5)
    updates = []
    for scale in (1.0, 2.0**20):
        projection = _projection(group, num_tasks)
        parts = [grads[j][0] * scale for j in range(num_tasks)]
        products = projection.zero_products()
        projection.add_products(products, "weight", parts)
        updates.append(projection.merge("weight", parts, projection.coefficients(products)) / scale)
    assert torch.equal(*updates)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _projection([0, 2], 2), "allowed are -1"),
        (
            lambda: GroupProjection(groups=[], parameters={"weight": (0, 1)}, num_tasks=2),
            "outside 0",
        ),
        (lambda: _projection([0], 2).add_products(torch.zeros(1, 2, 2), "weight", [None]), "one per task"),
        (
            lambda: _projection([0], 2).add_products(torch.zeros(1, 2, 2), "weight", [torch.ones(13)] * 2),
            "1 channels of 12 elements",
        ),
        (lambda: _projection([0], 2).merge("weight", [torch.ones(12), torch.ones(11)], None), "same piece"),
        (lambda: _projection([0], 2).merge("weight", [None, None], None), "no task has a gradient"),
        (lambda: _projection([0], 2).coefficients(torch.full((1, 2, 2), torch.nan)), "not finite"),
    ],
)
def test_bad_input_is_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
