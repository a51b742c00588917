"""RotoGrad against its formulas, written for single vectors."""

import copy

import pytest
import torch
from torch import Tensor

from perception.balancing.rotograd import RotoGrad

TASKS = ("det", "seg", "vel")


def _roto(size: int = 4, *, seed: int = 0, **changes: object) -> RotoGrad:
    torch.manual_seed(seed)
    roto = RotoGrad(**{"tasks": TASKS, "size": size, "lr": 0.05, **changes}).double()
    with torch.no_grad():
        for generator in roto.generators.values():
            generator.normal_()
    return roto


def test_rotations_are_rotations_and_start_as_the_identity() -> None:
    roto = _roto()
    for task in TASKS:
        rotation = roto.rotation(task)
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(4, dtype=torch.float64))
        assert float(torch.linalg.det(rotation.detach())) == pytest.approx(1)
    assert torch.equal(RotoGrad(tasks=TASKS, size=3).rotation("seg"), torch.eye(3))


def test_rotate_is_r_z_and_its_backward_r_transposed() -> None:
    roto, features = _roto(), torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    rotation = roto.rotation("det").detach()
    rotated = roto.rotate(features, "det")
    torch.testing.assert_close(rotated[1, 2], rotation @ features[1, 2].detach())
    grad = torch.randn_like(rotated)
    rotated.backward(grad)
    torch.testing.assert_close(features.grad, roto.rotate_back(grad, "det"))
    torch.testing.assert_close(features.grad[0, 1], rotation.T @ grad[0, 1])
    assert roto.generators["det"].grad is None


def test_sizes_become_equal_as_the_paper_weighs_them() -> None:
    roto = _roto()
    first = torch.tensor([4.0, 9.0, 1.0])  # norms 2, 3, 1
    factors = roto.coefficients(first)
    # All tasks stand where they began: alpha = 1/3 each.
    torch.testing.assert_close(
        factors, torch.tensor([2.0, 2.0, 2.0], dtype=torch.float64) / first.sqrt().double()
    )
    norms = torch.tensor([1.0, 3.0, 4.0], dtype=torch.float64)
    progress = norms / first.sqrt().double()
    alpha = progress / progress.sum()
    expected = float((alpha * norms).sum())
    torch.testing.assert_close(roto.coefficients(norms.square()) * norms, torch.full((3,), expected).double())


def test_the_reference_is_taken_anew_after_the_burn_in() -> None:
    roto = _roto(burn_in=2)
    for norm in (1.0, 2.0, 5.0, 7.0):
        roto.coefficients(torch.tensor([norm**2, 1.0, 1.0]))
    assert roto.reference_norms.tolist() == [5.0, 1.0, 1.0]


def test_absent_tasks_take_no_part() -> None:
    full, sub = _roto(), RotoGrad(tasks=("det", "vel"), size=4).double()
    sub.load_state_dict(
        {k: v for k, v in full.state_dict().items() if "seg" not in k and "norms" not in k}, strict=False
    )
    factors = full.coefficients(torch.tensor([4.0, 0.0, 1.0]))
    expected = sub.coefficients(torch.tensor([4.0, 1.0]))
    assert factors[1] == 0
    torch.testing.assert_close(factors[[0, 2]], expected)
    grads = {task: torch.randn(3, 4, dtype=torch.float64) for task in ("det", "vel")}
    torch.testing.assert_close(full.rotation_loss(grads, factors), sub.rotation_loss(grads, expected))
    before = copy.deepcopy(full.generators["seg"].data)
    full.step_rotations(grads, factors)
    assert torch.equal(full.generators["seg"], before)
    # A task that was absent first gets its reference when it comes.
    full.coefficients(torch.tensor([4.0, 25.0, 1.0]))
    assert full.reference_norms.tolist() == [2.0, 5.0, 1.0]


def _naive_loss(roto: RotoGrad, grads: dict[str, Tensor], factors: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    rows = len(next(iter(grads.values())))
    for n in range(rows):
        originals = {task: roto.rotation(task).detach().T @ grads[task][n] for task in TASKS}
        mean = sum(factors[i] * originals[task] for i, task in enumerate(TASKS)) / 3
        for task in TASKS:
            total = total - torch.dot(roto.rotation(task).T @ grads[task][n], mean) / rows
    return total


def test_the_rotations_loss_and_gradient_are_the_papers() -> None:
    roto = _roto()
    grads = {task: torch.randn(6, 4, dtype=torch.float64) for task in TASKS}
    factors = roto.coefficients(roto.squared_norms(grads))
    generators = list(roto.generators.values())
    loss, expected = roto.rotation_loss(grads, factors), _naive_loss(roto, grads, factors)
    torch.testing.assert_close(loss, expected)
    for a, b in zip(
        torch.autograd.grad(loss, generators), torch.autograd.grad(expected, generators), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_gradcheck_of_the_rotation() -> None:
    torch.manual_seed(0)
    generator = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: torch.linalg.matrix_exp(a - a.T), generator)


def test_rotations_learn_to_make_gradients_agree() -> None:
    roto = RotoGrad(tasks=TASKS, size=4, lr=0.05).double()
    torch.manual_seed(1)
    base = torch.randn(8, 4, dtype=torch.float64)
    turned = {task: base @ torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0] for task in TASKS}

    def agreement() -> float:
        back = [roto.rotate_back(grad, task).flatten() for task, grad in turned.items()]
        return min(float(torch.nn.functional.cosine_similarity(back[i], back[0], dim=0)) for i in (1, 2))

    before = agreement()
    factors = roto.coefficients(roto.squared_norms(turned))
    for _ in range(150):
        roto.step_rotations(turned, factors)
    assert agreement() > before + 0.3


def test_another_optimiser_leaves_the_rotations_alone() -> None:
    roto = _roto()
    grads = {task: torch.randn(6, 4, dtype=torch.float64) for task in TASKS}
    roto.step_rotations(grads, roto.coefficients(roto.squared_norms(grads)))
    assert all(generator.grad is None for generator in roto.generators.values())


def test_ranks_average_and_a_rank_without_tasks_joins() -> None:
    grads = {task: torch.randn(6, 4, dtype=torch.float64) for task in TASKS}
    seen: list[Tensor] = []
    with_data, without = _roto(), _roto()
    factors = with_data.coefficients(with_data.squared_norms(grads))
    with_data.step_rotations(grads, factors, lambda grad: (seen.append(grad), grad / 2)[1])
    halves = iter([grad / 2 for grad in seen])
    without.step_rotations({}, factors, lambda grad: grad + next(halves))
    for task in TASKS:
        torch.testing.assert_close(with_data.generators[task], without.generators[task], rtol=0, atol=0)


def test_the_rate_falls_per_epoch_and_buffers_are_saved() -> None:
    roto = _roto(decay=0.5)
    roto.end_epoch()
    assert roto.optimizer.param_groups[0]["lr"] == pytest.approx(0.025)
    roto.coefficients(torch.tensor([4.0, 9.0, 1.0]))
    other = _roto(seed=1)
    other.load_state_dict(roto.state_dict())
    assert other.reference_norms.tolist() == [2.0, 3.0, 1.0]
    assert int(other.num_steps) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RotoGrad(tasks=("det",), size=3), "at least two"),
        (lambda: RotoGrad(tasks=TASKS, size=0), "size is 0"),
        (lambda: RotoGrad(tasks=TASKS, size=3, lr=0.0), "lr is 0"),
        (lambda: RotoGrad(tasks=TASKS, size=3, decay=1.5), "decay is 1.5"),
        (lambda: _roto().rotate(torch.ones(1, 4), "box"), "no task 'box'"),
        (lambda: _roto().coefficients(torch.tensor([1.0, torch.nan, 1.0])), "not finite"),
        (lambda: _roto().rotation_loss({}, torch.ones(3)), "no task's gradient"),
    ],
)
def test_bad_input_is_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
