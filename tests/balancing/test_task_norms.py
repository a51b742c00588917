"""Norms with one copy per task: equal at the start, apart afterwards, and exactly plain again."""

import copy
import threading

import pytest
import torch
from torch import nn

from perception.balancing.task_copies import TaskCopies, task_copies, use_task
from perception.balancing.task_norms import convert_task_norms, plain_model, plain_state_dict

TASKS = ("det", "seg", "vel")


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Flatten(2),
        nn.BatchNorm1d(4),
        nn.Linear(16, 6),
        nn.LayerNorm(6),
    )


def _train_norms_apart(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for layer in task_copies(model).values():
        for norm in layer.values():
            with torch.no_grad():
                norm.weight.add_(torch.rand(norm.weight.shape, generator=generator))
                norm.bias.add_(torch.rand(norm.bias.shape, generator=generator))
            if hasattr(norm, "running_var"):
                norm.running_var.add_(torch.rand(norm.running_var.shape, generator=generator))


@pytest.mark.parametrize("is_training", [True, False])
def test_every_task_starts_as_the_original(is_training: bool) -> None:
    model, images = _network().train(is_training), torch.randn(2, 3, 6, 6)
    converted = convert_task_norms(model, TASKS)
    expected = model(images)
    for task in TASKS:
        with use_task(converted, task):
            torch.testing.assert_close(converted(images), expected, rtol=0, atol=0)


def test_the_original_is_not_changed_nor_shared() -> None:
    model = _network()
    before = copy.deepcopy(model.state_dict())
    converted = convert_task_norms(model, TASKS)
    _train_norms_apart(converted)
    assert isinstance(model[1], nn.BatchNorm2d)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_training_one_task_leaves_the_others_norms_alone() -> None:
    converted = convert_task_norms(_network(), TASKS)
    before = copy.deepcopy(converted[1].state_dict())
    optimizer = torch.optim.SGD(converted.parameters(), lr=0.1)
    with use_task(converted, "seg"):
        converted(torch.randn(2, 3, 6, 6)).square().sum().backward()
    optimizer.step()
    after = converted[1].state_dict()
    changed = {key.split(".")[0] for key in after if not torch.equal(after[key], before[key])}
    assert changed == {"seg"}
    assert converted[1]["det"].weight.grad is None


@pytest.mark.parametrize("is_training", [True, False])
def test_a_plain_model_per_task_has_the_same_outputs(is_training: bool) -> None:
    model, images = _network(), torch.randn(2, 3, 6, 6)
    converted = convert_task_norms(model, TASKS)
    _train_norms_apart(converted)
    converted.train(is_training)
    outputs = {}
    for task in TASKS:
        plain = plain_model(converted, task)
        outputs[task] = plain(images)
        restored = _network().train(is_training)
        restored.load_state_dict(plain_state_dict(converted, task))
        assert not task_copies(plain)
        assert {k: v.shape for k, v in plain.state_dict().items()} == {
            k: v.shape for k, v in model.state_dict().items()
        }
        torch.testing.assert_close(restored(images), outputs[task], rtol=0, atol=0)
        with use_task(converted, task):
            torch.testing.assert_close(converted(images), outputs[task], rtol=0, atol=0)
    assert not torch.equal(outputs["det"], outputs["seg"])


def test_a_state_dict_of_the_untouched_conversion_is_the_original() -> None:
    model = _network()
    state = plain_state_dict(convert_task_norms(model, TASKS), "vel")
    expected = model.state_dict()
    assert set(state) == set(expected)
    assert all(torch.equal(state[key], expected[key]) for key in expected)


def test_frozen_norms_stay_frozen() -> None:
    model = _network().train()
    model[1].eval()
    model[1].requires_grad_(False)
    converted = convert_task_norms(model, TASKS)
    assert all(not norm.training and not norm.weight.requires_grad for norm in converted[1].values())
    assert all(norm.training and norm.weight.requires_grad for norm in converted[4].values())
    with use_task(converted, "det"):
        converted(torch.randn(2, 3, 6, 6))
    assert int(converted[1]["det"].num_batches_tracked) == 0
    assert int(converted[4]["det"].num_batches_tracked) == 1
    assert int(converted[4]["seg"].num_batches_tracked) == 0


def test_modes_reach_every_copy() -> None:
    converted = convert_task_norms(_network(), TASKS)
    converted.eval()
    assert not any(norm.training for layer in task_copies(converted).values() for norm in layer.values())


def test_only_under_the_named_submodules_and_synchronised_norms_too() -> None:
    model = nn.ModuleDict({"trunk": _network(), "trunk2": nn.LayerNorm(3), "head": nn.SyncBatchNorm(4)})
    assert set(task_copies(convert_task_norms(model, TASKS, under=("trunk",)))) == {
        "trunk.1",
        "trunk.4",
        "trunk.6",
    }
    assert set(task_copies(convert_task_norms(model, TASKS, under=("head",)))) == {"head"}
    batch_only = convert_task_norms(
        model, TASKS, predicate=lambda _, module: isinstance(module, nn.BatchNorm2d)
    )
    assert set(task_copies(batch_only)) == {"trunk.1"}


def test_a_norm_used_in_two_places_stays_one() -> None:
    norm = nn.LayerNorm(3)
    converted = convert_task_norms(nn.Sequential(norm, nn.Linear(3, 3), norm), TASKS)
    assert converted[0] is converted[2]
    assert len(list(converted.parameters())) == 2 + 2 * len(TASKS)


def test_a_root_norm_and_a_deep_copy() -> None:
    converted = copy.deepcopy(convert_task_norms(nn.LayerNorm(3), TASKS))
    assert isinstance(converted, TaskCopies)
    assert set(plain_state_dict(converted, "det")) == {"weight", "bias"}
    with use_task(converted, "det"):
        assert converted(torch.ones(1, 3)).shape == (1, 3)


def test_choices_nest_and_end_with_an_error() -> None:
    norm = convert_task_norms(nn.LayerNorm(3), TASKS)
    with use_task(norm, "det"):
        with pytest.raises(KeyError), use_task(norm, "seg"):
            raise KeyError
        assert norm.task == "det"
    assert norm.task is None
    with pytest.raises(RuntimeError, match="while no task was chosen"):
        norm(torch.ones(1, 3))


def test_a_second_thread_is_refused_and_then_welcome() -> None:
    norm = convert_task_norms(nn.LayerNorm(3), TASKS)
    errors: list[str] = []

    def enter() -> None:
        try:
            with use_task(norm, "seg"):
                pass
        except RuntimeError as error:
            errors.append(str(error))

    with use_task(norm, "det"):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        assert norm.task == "det"
    assert len(errors) == 1
    assert "another thread" in errors[0]
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert len(errors) == 1


def test_another_models_choice_is_its_own() -> None:
    first, second = (convert_task_norms(nn.LayerNorm(3), TASKS) for _ in range(2))
    with use_task(first, "det"), use_task(second, "seg"):
        assert (first.task, second.task) == ("det", "seg")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: convert_task_norms(nn.Linear(2, 2), TASKS), "found no norm"),
        (lambda: convert_task_norms(_network(), TASKS, under=("trunk",)), "has no submodules"),
        (lambda: convert_task_norms(_network(), TASKS, under="1"), "must be a sequence"),
        (lambda: convert_task_norms(_network(), ("det", "det")), "different names"),
        (lambda: convert_task_norms(_network(), "det"), "different names"),
        (lambda: convert_task_norms(_network(), ("det", "keys")), "can't name a module"),
        (lambda: convert_task_norms(_network(), ("det", "a.b")), "can't name a module"),
        (lambda: convert_task_norms(convert_task_norms(_network(), TASKS), TASKS), "already"),
        (lambda: plain_model(_network(), "det"), "has copies for the tasks"),
        (lambda: plain_model(convert_task_norms(_network(), TASKS), "box"), "lack 'box'"),
        (lambda: plain_state_dict(convert_task_norms(_network(), TASKS), "box"), "knows"),
        (lambda: use_task(_network(), "det").__enter__(), "Convert it first"),
        (lambda: use_task(convert_task_norms(_network(), TASKS), "box").__enter__(), "only"),
    ],
)
def test_bad_input_is_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
