"""Count sketches of task gradients: linear, unbiased, as exact as stated."""

import pytest
import torch

from perception.balancing.gradient_sketch import GradientSketch


def rows(columns: int = 3000) -> torch.Tensor:
    """Three gradients, two of them alike, longer towards the last columns."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, columns, generator=generator, dtype=torch.float64)
    x *= torch.linspace(0, 1, columns, dtype=torch.float64)
    x[1] += 0.7 * x[0]
    return x


def test_it_is_linear_and_the_same_in_every_call() -> None:
    x, y = rows(), rows().flip(1)
    sketch = GradientSketch(size=128, seed=1)
    torch.testing.assert_close(sketch(2 * x - y), 2 * sketch(x) - sketch(y))
    assert torch.equal(sketch(x), GradientSketch(size=128, seed=1)(x))
    assert not torch.equal(sketch(x), GradientSketch(size=128, seed=2)(x))


@pytest.mark.parametrize("size", [64, 512])
def test_products_are_unbiased_with_the_stated_variance(size: int) -> None:
    x = rows()
    norms = x.norm(dim=1)
    exact = (x @ x.T) / (norms[:, None] * norms)
    found = []
    for seed in range(400):
        s = GradientSketch(size=size, seed=seed)(x) / norms[:, None]
        found.append(s @ s.T)
    error = torch.stack(found) - exact
    bound = (1 + exact.square()) / size  # the variance of a cosine
    assert bool((error.mean(dim=0).abs() < 4 * (bound / len(found)).sqrt()).all())
    assert bool((error.square().mean(dim=0) < 1.25 * bound).all())
    assert bool((error.square().mean(dim=0) > 0.2 * bound).all())  # else the test would accept anything


def test_columns_of_one_block_never_meet() -> None:
    x = rows(128)
    s = GradientSketch(size=128, seed=3)(x)
    torch.testing.assert_close(s @ s.T, x @ x.T)


def test_chosen_columns_are_those_with_zeros_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "perception.balancing.gradient_sketch._CHUNK", 512
    )  # several chunks, the last one short
    x = rows()
    chosen = torch.rand(x.shape[1], generator=torch.Generator().manual_seed(5)) < 0.5
    sketch = GradientSketch(size=100, seed=4)
    torch.testing.assert_close(sketch(x, chosen), sketch(x * chosen))
    padded = torch.cat([x, torch.zeros(3, 777, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(sketch(padded), sketch(x))


def test_a_size_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="size of 1 or more numbers per task, got 0"):
        GradientSketch(size=0, seed=0)
