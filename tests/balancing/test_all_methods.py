"""What every named method must do: finite updates, sub-problems of present tasks, exact resumes, plain reports."""

import io
import json

import pytest
import torch

from perception.balancing import Balancer, balancer_names, build_balancer
from tests.balancing import runs

NAMES = balancer_names()


def is_plain(value):
    """Whether a state holds tensors and JSON-able values only."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str | torch.Tensor)


@pytest.mark.parametrize("name", NAMES)
def test_resume_in_mid_epoch_is_bit_equal(name):
    whole = runs.built(name)
    runs.train(whole, range(10))
    state = whole.state_dict()
    assert is_plain(state)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    resumed = runs.built(name, seed=99)
    resumed.begin_epoch(3)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for expected, found in zip(
        runs.train(whole, range(10, 14)), runs.train(resumed, range(10, 14)), strict=True
    ):
        assert torch.equal(expected, found)


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_gives_the_same_updates_on_every_rank_and_leaves_torchs_own_generator_alone(name):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = runs.train(runs.built(name), range(3))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    second = runs.train(runs.built(name), range(3))
    assert all(torch.equal(a, b) and bool(a.isfinite().all()) for a, b in zip(first, second, strict=True))


# The two schedules give a favoured task its share among all tasks; see test_composition for their renormalising.
@pytest.mark.parametrize(
    "name", [name for name in NAMES if name not in ("wpcgrad-seg-vel", "wpcgrad-vel-seg")]
)
def test_without_one_tasks_labels_the_others_solve_their_own_problem(name):
    gradients, losses, present = runs.batch(3)
    present[1] = False
    gradients[1], losses[1] = 0, 0
    kept = ("cls", "velocity", "seg")
    arguments = {
        key: {task: number for task, number in value.items() if task in kept}
        if key in ("weights", "potentials")
        else {"potentials": {task: runs.POTENTIALS[task] for task in kept}}
        for key, value in runs.ARGUMENTS.get(name, {}).items()
    }
    small = build_balancer({"name": name, **arguments})
    small.setup(kept, max_epochs=24, total_steps=2400, seed=0)
    small.begin_epoch(1)
    whole = runs.built(name)
    found = runs.update(whole, gradients, losses, present)
    expected = runs.update(small, gradients[present], losses[present], torch.ones(3, dtype=torch.bool))
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_one_present_task_keeps_its_gradient(name):
    gradients, losses, _ = runs.batch(0)
    present = torch.tensor([False, False, True, False])
    gradients[~present], losses[~present] = 0, 0
    balancer = runs.built(name)
    weight = balancer.weigh(losses, present)[2]
    assert torch.allclose(runs.update(balancer, gradients, losses, present), weight * gradients[2])


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_of_0_and_no_task_at_all_are_harmless(name):
    gradients, losses, present = runs.batch(0)
    gradients[2] = 0
    balancer = runs.built(name)
    assert bool(runs.update(balancer, gradients, losses, present).isfinite().all())
    nothing = torch.zeros(4, dtype=torch.bool)
    assert not runs.update(balancer, gradients * 0, losses * 0, nothing).any()


@pytest.mark.parametrize("name", NAMES)
def test_the_report_is_json(name):
    balancer = runs.built(name)
    runs.train(balancer, range(2))
    report = json.loads(json.dumps(balancer.report(), allow_nan=False))
    if type(balancer) is not Balancer:
        assert set(report["weights"]) == set(report["coefficients"]) == {"cls", "velocity", "seg"}
    if balancer.needs_gram:
        assert set(report["cosines"]) == {"cls/velocity", "cls/seg", "velocity/seg"}
        assert 0 <= report["conflict_share"] <= 1


@pytest.mark.parametrize("name", [name for name in NAMES if name != "sum"])
def test_the_state_of_another_method_is_refused(name):
    balancer = runs.built(name)
    other = runs.built("dwa" if name != "dwa" else "pcgrad")
    with pytest.raises(ValueError, match="Resume with the balancer that wrote it"):
        balancer.load_state_dict(other.state_dict())


@pytest.mark.parametrize("name", ["pcgrad", "wpcgrad", "mclgs", "nash", "aligned_mtl"])
def test_a_gram_matrix_with_nan_names_the_task(name):
    balancer = runs.built(name)
    gradients, losses, present = runs.batch(0)
    gradients[3, 0] = torch.nan
    with pytest.raises(ValueError, match=r"not finite \(tasks \['seg'\]\)"):
        runs.update(balancer, gradients, losses, present)
