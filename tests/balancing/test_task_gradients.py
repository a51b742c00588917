"""The block of task gradients: what it keeps, what it forgets, and its layout."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from perception.balancing import TaskGradients
from perception.balancing.gradient_sketch import GradientSketch

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
    by_blocks = scaled.combine_blocks(
        lambda block, present, number: block.sum(dim=0), BOTH, scale_heads=False
    )
    for found, expected in zip(
        by_blocks, scaled.combine(torch.ones(2), BOTH, scale_heads=False), strict=True
    ):
        assert_close(found, expected)


def test_update_has_the_strides_of_its_parameter() -> None:
    params = parameters()
    gradients = filled(TaskGradients(params, 2), params, ((0, 1), (0, 2)))
    for update in (
        gradients.combine(torch.ones(2), BOTH, scale_heads=True),
        gradients.combine_blocks(lambda block, present, number: block.sum(dim=0), BOTH, scale_heads=True),
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


def test_parts_of_the_columns_give_together_what_the_whole_gives() -> None:
    """As two ranks have them after their exchange, with parts that cut through parameters and a task's own ones."""
    params, factors = parameters(), torch.tensor([3.0, 0.5], dtype=torch.float64)
    whole = filled(TaskGradients(params, 2), params, ((0, 1), (0, 2)))
    whole.scale_(factors)
    ranges = ([(0, 7), (50, 110)], [(7, 50), (110, 119)])
    parts = []
    for owned in ranges:
        part = filled(TaskGradients(params, 2), params, ((0, 1), (0, 2)))
        part.keep_part(torch.cat([whole.rows[:, start:end] for start, end in owned], dim=1), owned)
        part.scale_(factors)
        parts.append(part)
    assert_close(parts[0].gram(BOTH) + parts[1].gram(BOTH), whole.gram(BOTH))

    coefficients = torch.tensor([0.7, 1.3], dtype=torch.float64)
    vectors: list[Tensor] = []
    for part in parts:
        part.combine(
            coefficients, BOTH, scale_heads=False, gather=lambda x: vectors.append(x) or torch.zeros(119)
        )

    def put_together(_: Tensor) -> Tensor:
        update = torch.empty(119)
        for owned, vector in zip(ranges, vectors, strict=True):
            for (start, end), values in zip(owned, vector.split([e - s for s, e in owned]), strict=True):
                update[start:end] = values
        return update

    together = parts[0].combine(coefficients, BOTH, scale_heads=False, gather=put_together)
    for found, expected in zip(together, whole.combine(coefficients, BOTH, scale_heads=False), strict=True):
        assert_close(found, expected)

    parts[1].held[1, -1] = torch.nan  # the last parameter's last column
    assert (parts[0].bad_rows(), parts[0].bad_parameters()) == ([], [])
    assert (parts[1].bad_rows(), parts[1].bad_parameters()) == ([1], [2])
    parts[1].restart()
    assert parts[1].held.shape == (2, 119)


@pytest.mark.parametrize("is_row_major", [False, True])
def test_pieces_cover_what_is_held_and_what_is_reached(is_row_major: bool) -> None:
    """A part that cuts through parameters in two ranges; nobody reaches the last one."""
    params = parameters()
    gradients = filled(TaskGradients(params, 2, is_row_major=is_row_major), params, ((0, 1), (0,)))
    (whole, own) = gradients.pieces()
    assert (whole.number, whole.start, whole.columns) == (0, 0, slice(0, 108))
    in_shape = (3 * params[0].detach() ** 2).flatten()
    assert torch.equal(whole.gradients[1], in_shape) == is_row_major
    assert (own.number, own.start, own.columns, own.gradients[1]) == (1, 0, slice(108, 113), None)
    assert_close(own.gradients[0], 2 * params[1].detach())

    ranges = [(5, 9), (100, 117)]
    rows = gradients.rows.clone()
    gradients.keep_part(torch.cat([rows[:, start:end] for start, end in ranges], dim=1), ranges)
    found = [(piece.number, piece.start, piece.columns) for piece in gradients.pieces()]
    assert found == [(0, 5, slice(0, 4)), (0, 100, slice(4, 12)), (1, 0, slice(12, 17))]
    for piece in gradients.pieces():
        first = piece.start + (108 if piece.number else 0)
        assert torch.equal(piece.gradients[0], rows[0, first : first + len(piece.gradients[0])])


def test_rows_in_the_order_of_shapes_give_the_same_update() -> None:
    params = parameters()
    by_memory, by_shape = (
        filled(TaskGradients(params, 2, is_row_major=flag), params, ((0, 1), (0, 2)))
        for flag in (False, True)
    )
    assert_close(by_shape.rows[0, :108], 2 * params[0].detach().flatten())
    assert not torch.equal(by_memory.rows, by_shape.rows)
    for found, expected in zip(
        by_shape.combine(torch.ones(2), BOTH, scale_heads=True),
        by_memory.combine(torch.ones(2), BOTH, scale_heads=True),
        strict=True,
    ):
        assert_close(found, expected)


def test_a_sketch_is_of_shared_parameters_and_scaled() -> None:
    params, factors = parameters(), torch.tensor([3.0, 0.5], dtype=torch.float64)
    gradients = filled(TaskGradients(params, 2), params, ((0, 1), (0, 2)))
    gradients.scale_(factors)
    sketched = gradients.sketch(GradientSketch(size=200, seed=0), BOTH)  # more than there are columns: exact
    assert_close(sketched @ sketched.T, gradients.gram(BOTH), rtol=1e-6, atol=0)
    one = gradients.sketch(GradientSketch(size=200, seed=0), torch.tensor([True, False]))
    assert not one.any()  # what one task alone reaches is not shared
