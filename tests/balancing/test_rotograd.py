"""RotoGrad against its formulas, written for single vectors."""

import copy

import pytest
import torch
from torch import Tensor

from perception.balancing.rotograd import RotoGrad
from tests.balancing.naive_rotograd import NaiveRotoGrad

TASKS = ("det", "seg", "vel")


def _roto(size: int = 4, *, seed: int = 0, **changes: object) -> RotoGrad:
    torch.manual_seed(seed)
    roto = RotoGrad(**{"tasks": TASKS, "size": size, "lr": 0.05, **changes}).double()
    for generator in roto.generators.values():
        generator.normal_()
    return roto


def _naive(roto: RotoGrad, *, lr: float = 0.05, burn_in: int = 20) -> NaiveRotoGrad:
    naive = NaiveRotoGrad(roto.tasks, roto.size, lr=lr, decay=roto.decay, burn_in=burn_in)
    naive.generators = {task: generator.clone() for task, generator in roto.generators.items()}
    return naive


def _grads(number: int, tasks: tuple[str, ...] = TASKS) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(number)
    return {task: torch.randn(2, 3, 4, generator=generator, dtype=torch.float64) for task in tasks}


def _rotated(roto: RotoGrad, grads: dict[str, Tensor]) -> dict[str, Tensor]:
    """With respect to the rotated features, one row per vector."""
    return {task: grad.flatten(0, 1) @ roto.rotation(task).T for task, grad in grads.items()}


def test_rotations_are_rotations_and_start_as_the_identity() -> None:
    roto = _roto()
    for task, generator in roto.generators.items():
        generator.data = generator.float()
        rotation = roto.rotation(task)
        torch.testing.assert_close(
            rotation @ rotation.T, torch.eye(4, dtype=torch.float64), atol=1e-12, rtol=0
        )
        assert float(torch.linalg.det(rotation)) == pytest.approx(1)
    assert torch.equal(RotoGrad(tasks=TASKS, size=3).rotation("seg"), torch.eye(3, dtype=torch.float64))


def test_rotate_is_r_z_and_its_backward_r_transposed() -> None:
    roto, features = _roto(), torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    rotation = roto.rotation("det")
    rotated = roto.rotate(features, "det")
    torch.testing.assert_close(rotated[1, 2], rotation @ features[1, 2].detach())
    grad = torch.randn_like(rotated)
    rotated.backward(grad)
    torch.testing.assert_close(features.grad[0, 1], rotation.T @ grad[0, 1])
    assert roto.generators["det"].grad is None


def test_under_autocast_features_keep_their_precision() -> None:
    roto, features = _roto().float(), torch.randn(5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = roto.rotate(features, "det")
    assert torch.equal(found, roto.rotate(features, "det"))


def test_the_angle_is_the_rotations() -> None:
    roto = RotoGrad(tasks=TASKS, size=2)
    roto.generators["det"][0, 1] = 0.5
    assert roto.angle("det") == pytest.approx(28.6478897565)
    assert float(roto.rotation("det")[0, 0]) == pytest.approx(0.87758256)  # cos 0.5
    assert roto.angle("seg") == 0


def test_the_gram_matrix_is_that_of_all_vectors() -> None:
    roto, grads = _roto(), _grads(0, ("det", "vel"))
    gram = roto.gram(grads)
    assert gram[1].eq(0).all()
    assert float(gram[0, 2]) == pytest.approx(float((grads["det"] * grads["vel"]).sum()), rel=1e-12)
    assert float(gram[2, 2]) == pytest.approx(float(grads["vel"].square().sum()), rel=1e-12)
    assert roto.gram({}).eq(0).all()


def test_sizes_become_equal_as_the_paper_weighs_them() -> None:
    roto = _roto()
    first = torch.tensor([4.0, 9.0, 1.0])  # norms 2, 3, 1
    factors = roto.coefficients(first)
    # All tasks stand where they began: alpha = 1/3 each.
    expected = torch.tensor([2.0, 2.0, 2.0], dtype=torch.float64) / first.sqrt().double()
    torch.testing.assert_close(factors, expected)
    roto.step(first, torch.zeros(3, 4, 4, dtype=torch.float64))
    norms = torch.tensor([1.0, 3.0, 4.0], dtype=torch.float64)
    progress = norms / first.sqrt().double()
    common = float((progress / progress.sum() * norms).sum())
    torch.testing.assert_close(roto.coefficients(norms.square()) * norms, torch.full((3,), common).double())


def test_coefficients_alone_change_nothing() -> None:
    roto = _roto()
    before = copy.deepcopy(roto.training_state())
    roto.coefficients(torch.tensor([4.0, 9.0, 1.0]))
    assert str(roto.training_state()) == str(before)


def test_the_reference_is_taken_anew_after_the_burn_in() -> None:
    roto, nothing = _roto(burn_in=2), torch.zeros(3, 4, 4, dtype=torch.float64)
    for norm in (1.0, 2.0, 5.0, 7.0):
        roto.step(torch.tensor([norm**2, 1.0, 1.0]), nothing)
    assert roto.reference_norms.tolist() == [5.0, 1.0, 1.0]


@pytest.mark.parametrize("present", [TASKS, ("det", "vel"), ("seg",)], ids=str)
def test_steps_are_those_of_the_naive_method(present: tuple[str, ...]) -> None:
    """The second of four batches has only some tasks."""
    roto = _roto(burn_in=2, decay=0.5)
    naive = _naive(roto, burn_in=2)
    for number in range(4):
        grads = _grads(number, present if number == 1 else TASKS)
        rotated = _rotated(roto, grads)
        norms = roto.gram(grads).diagonal()
        expected = naive.factors(rotated)
        factors = dict(zip(TASKS, roto.coefficients(norms).tolist(), strict=True))
        assert {task: factor for task, factor in factors.items() if factor} == pytest.approx(
            expected, rel=1e-10
        )
        products = roto.products(grads, norms)
        found = roto.generator_gradients(products, norms > 0)
        wanted = naive.directions(rotated)
        assert set(found) == set(wanted)
        for task, gradient in wanted.items():
            torch.testing.assert_close(found[task], gradient, rtol=1e-9, atol=1e-11)
        roto.step(norms, products)
        naive.step(rotated)
        for task in TASKS:
            torch.testing.assert_close(roto.generators[task], naive.generators[task], rtol=1e-7, atol=1e-9)
        if number == 2:
            roto.end_epoch()
            naive.end_epoch()
    assert roto.reference_norms.tolist() == pytest.approx([naive.reference[task] for task in TASKS])


def test_absent_tasks_take_no_part() -> None:
    """The present tasks' update is that of a RotoGrad without the absent one."""
    full, sub = _roto(), RotoGrad(tasks=("det", "vel"), size=4, lr=0.05).double()
    sub.load_state_dict({key: value for key, value in full.state_dict().items() if "seg" not in key})
    grads, before = _grads(0, ("det", "vel")), full.generators["seg"].clone()
    for roto in (full, sub):
        norms = roto.gram(grads).diagonal()
        roto.step(norms, roto.products(grads, norms))
    assert torch.equal(full.generators["seg"], before)
    for task in ("det", "vel"):
        torch.testing.assert_close(full.generators[task], sub.generators[task])
    # A task that was absent first gets its reference when it comes.
    full.step(torch.tensor([4.0, 25.0, 1.0]), torch.zeros(3, 4, 4, dtype=torch.float64))
    assert float(full.reference_norms[1]) == 5.0


def test_gradcheck_of_the_rotation() -> None:
    torch.manual_seed(0)
    generator = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: torch.linalg.matrix_exp(a - a.T), generator)


def test_rotations_learn_to_make_gradients_agree() -> None:
    roto = RotoGrad(tasks=TASKS, size=4, lr=0.1).double()
    torch.manual_seed(1)
    base = torch.randn(8, 4, dtype=torch.float64)
    rotated = {task: base @ torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0] for task in TASKS}

    def agreement() -> float:
        back = [(grad @ roto.rotation(task)).flatten() for task, grad in rotated.items()]
        return min(float(torch.nn.functional.cosine_similarity(back[i], back[0], dim=0)) for i in (1, 2))

    before = agreement()
    for _ in range(50):
        grads = {task: grad @ roto.rotation(task) for task, grad in rotated.items()}
        norms = roto.gram(grads).diagonal()
        roto.step(norms, roto.products(grads, norms))
    assert agreement() > before + 0.3


def test_another_optimiser_leaves_the_rotations_alone() -> None:
    roto, grads = _roto(), _grads(0)
    other = torch.optim.AdamW(roto.parameters(), lr=1.0, weight_decay=0.5)
    norms = roto.gram(grads).diagonal()
    roto.step(norms, roto.products(grads, norms))
    before = copy.deepcopy(roto.state_dict())
    other.step()
    assert all(torch.equal(value, before[name]) for name, value in roto.state_dict().items())
    assert not any(generator.requires_grad for generator in roto.generators.values())


def test_parts_of_a_batch_add_up() -> None:
    """As ranks do, of which one has a task less."""
    roto, grads = _roto(), _grads(0)
    grads["seg"][1] = 0
    first = {task: grad[:1] for task, grad in grads.items()}
    second = {task: grad[1:] for task, grad in grads.items() if task != "seg"}
    torch.testing.assert_close(roto.gram(first) + roto.gram(second), roto.gram(grads))
    norms = roto.gram(grads).diagonal()
    parts = roto.products(first, norms) + roto.products(second, norms) + roto.products({}, norms)
    torch.testing.assert_close(parts, roto.products(grads, norms))


def test_the_scale_of_the_losses_does_not_change_the_rotations() -> None:
    one, other = _roto(), _roto()
    for roto, scale in ((one, 1.0), (other, 1e-9)):
        grads = {task: grad * scale for task, grad in _grads(0).items()}
        norms = roto.gram(grads).diagonal()
        roto.step(norms, roto.products(grads, norms))
    for task in TASKS:
        torch.testing.assert_close(one.generators[task], other.generators[task])


def test_training_goes_on_from_a_state() -> None:
    whole = _roto(decay=0.5, burn_in=3)
    for number in range(5):
        if number == 2:
            whole.end_epoch()
            other = _roto(seed=1, decay=0.5, burn_in=3)
            other.load_state_dict(whole.state_dict())
            other.load_training_state(copy.deepcopy(whole.training_state()))
        for roto in (whole, other) if number >= 2 else (whole,):
            grads = _grads(number)
            norms = roto.gram(grads).diagonal()
            roto.step(norms, roto.products(grads, norms))
    assert other.num_steps == 5
    assert other.optimizer.param_groups[0]["lr"] == pytest.approx(0.025)
    assert torch.equal(other.reference_norms, whole.reference_norms)
    for task in TASKS:
        assert torch.equal(other.generators[task], whole.generators[task])


def test_a_copy_is_trained_for_itself() -> None:
    roto = _roto()
    other = copy.deepcopy(roto)
    grads, before = _grads(0), roto.rotation("det")
    norms = other.gram(grads).diagonal()
    other.step(norms, other.products(grads, norms))
    assert torch.equal(roto.rotation("det"), before)
    assert not torch.equal(other.rotation("det"), before)


def _state_of_another_size() -> None:
    small = _roto(size=3)
    small.step(torch.ones(3), torch.ones(3, 3, 3, dtype=torch.float64))
    _roto().load_training_state(small.training_state())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RotoGrad(tasks=("det",), size=3), "at least two"),
        (lambda: RotoGrad(tasks=TASKS, size=0), "size is 0"),
        (lambda: RotoGrad(tasks=TASKS, size=3, lr=0.0), "lr is 0"),
        (lambda: RotoGrad(tasks=TASKS, size=3, decay=1.5), "decay is 1.5"),
        (lambda: RotoGrad(tasks=TASKS, size=3, burn_in=-1), "burn_in is -1"),
        (lambda: _roto().rotate(torch.ones(1, 4), "box"), "no task 'box'"),
        (lambda: _roto().rotate(torch.ones(1, 4, 5), "det"), "vectors of 4 numbers"),
        (lambda: _roto().coefficients(torch.tensor([1.0, torch.nan, 1.0])), "not finite"),
        (_state_of_another_size, "don't fit"),
    ],
)
def test_bad_input_is_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
