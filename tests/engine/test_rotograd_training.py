"""RotoGrad by a config: runs, resumes, ranks, evaluation, comparison, and the demo's model."""

import copy
from pathlib import Path
from typing import Any

import bev_world
import grouped_world
import pytest
import torch
import toy_world
from mmengine.structures import BaseDataElement, PixelData
from torch import Tensor, nn

from perception.balancing import build_balancer
from perception.checkpoint import CheckpointError, load_checkpoint
from perception.config import ConfigError, load_config
from perception.engine import BalancedOptimWrapper, PerceptionRunner, check_balancing, evaluate, read_log
from perception.engine.compare import compare
from perception.engine.compare_plan import plan_runs
from perception.engine.run import predict
from perception.registry import MODELS
from perception.visualization.balance import plot_balance
from tests.balancing.naive_rotograd import NaiveRotoGrad
from tests.engine.launching import launch
from tests.models.small import collate, make_item, small_model

ROTOGRAD = {"name": "rotograd", "lr": 0.05, "decay": 0.5, "burn_in": 2, "scales": {"seg": 0.5}}
TASKS = grouped_world.GroupedToyModel.task_names
# Three epochs of three steps; only every third sample has a segmentation target.
RUN = {
    "balancer": ROTOGRAD,
    "train_dataloader__batch_size": 4,
    "train_dataloader__dataset__num_samples": 12,
    "train_dataloader__dataset__seg_every": 3,
    "train_cfg": {"by_epoch": False, "max_iters": 8, "val_interval": 4},
}
# Layer norms: batch norms see each rank's part of the batch, so two ranks can't do what one does.
EQUAL = {
    **RUN,
    "model__batch_norm": False,
    "optim_wrapper__optimizer": {"type": "SGD", "lr": 0.02},
    "optim_wrapper__clip_grad": {"max_norm": 3.0},
    "train_cfg": {"by_epoch": False, "max_iters": 5, "val_interval": 0},
}


def train(folder: Path, *, stops: tuple[int, ...] = (), **changes: Any) -> PerceptionRunner:
    for part, stop in enumerate((*stops, None)):
        runner = PerceptionRunner.from_cfg(grouped_world.config(folder, resume=part > 0, **changes))
        runner.train(stop_after=stop)
    return runner


def lines_of(folder: Path, kind: str = "train") -> list[dict[str, Any]]:
    return [line for line in read_log(folder / "log.jsonl") if line["kind"] == kind]


def generators_of(folder: Path) -> dict[str, Tensor]:
    state = load_checkpoint(folder).model_state
    return {name: value for name, value in state.items() if "generators" in name}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with dropout, batch norms, AdamW and weight decay, from its start to its end."""
    folder = tmp_path_factory.mktemp("rotograd") / "whole"
    train(folder, **RUN, model__dropout=0.3)
    return folder


def test_resume_in_mid_epoch_is_exact(whole: Path, tmp_path: Path) -> None:
    """Stopped before and after the burn-in, in the middle of epochs."""
    train(tmp_path / "parts", **RUN, model__dropout=0.3, stops=(2, 5))
    toy_world.assert_same(toy_world.fingerprint(whole), toy_world.fingerprint(tmp_path / "parts"))
    first, second = (lines_of(folder) for folder in (whole, tmp_path / "parts"))
    assert [line["balance"] for line in first] == [line["balance"] for line in second]
    state = load_checkpoint(whole).optimizer_state["balancing"]["balancer"]["rotograd"]
    assert state["num_steps"] == 8
    assert state["lr"] == pytest.approx(0.05 * 0.5**2)
    assert set(state["moments"]) == set(TASKS)
    assert all(bool(value.abs().max() > 0.02) for value in generators_of(whole).values())


def test_another_methods_checkpoint_is_refused(tmp_path: Path) -> None:
    train(tmp_path, **{**RUN, "balancer": {"name": "dwa"}}, stops=())
    changes = {**RUN, "train_cfg": {"by_epoch": False, "max_iters": 10, "val_interval": 0}}
    with pytest.raises(CheckpointError, match="missing: rotations.generators"):
        PerceptionRunner.from_cfg(grouped_world.config(tmp_path, resume=True, **changes)).train()


def test_the_log_says_what_a_user_would_look_at(whole: Path, tmp_path: Path) -> None:
    lines = lines_of(whole)
    balance = [line["balance"] for line in lines]
    assert balance[0]["RotoGrad"]["angle"] == dict.fromkeys(TASKS, 0.0)
    assert all(0 < angle < 180 for angle in balance[-1]["RotoGrad"]["angle"].values())
    assert [entry["RotoGrad"]["lr"] for entry in balance] == [0.05] * 3 + [0.025] * 3 + [0.0125] * 2
    for line, entry in zip(lines, balance, strict=True):
        assert set(entry["coefficients"]) == set(entry["grad_norms"]) == set(line["tasks"])
    assert {"cls/box", "cls/seg", "box/seg"} == {pair for entry in balance for pair in entry["cosines"]}
    assert plot_balance(whole / "log.jsonl", tmp_path / "balance.png").stat().st_size > 10_000


@torch.no_grad()
def test_evaluation_and_prediction_use_the_rotations(whole: Path, tmp_path: Path) -> None:
    cfg = grouped_world.config(tmp_path / "test", **RUN, model__dropout=0.3)
    metrics = evaluate(cfg, whole)
    expected = lines_of(whole, "val")[-1]["metrics"]
    assert {name: metrics[name] for name in TASKS} == {name: expected[name] for name in TASKS}
    total = sum(float(sample.pred_seg) for sample in predict(cfg, whole))
    assert total == pytest.approx(expected["seg"], rel=1e-9)
    plain = grouped_world.GroupedToyModel()
    state = load_checkpoint(whole).model_state
    plain.load_state_dict({name: value for name, value in state.items() if "rotations" not in name})
    inputs = [torch.ones(toy_world.NUM_FEATURES)]
    model = build_balancer(ROTOGRAD).prepare(plain)
    model.load_state_dict(state)
    found, without = (
        float(each.eval()(inputs, [BaseDataElement()], mode="predict")[0].pred_seg) for each in (model, plain)
    )
    features = plain.trunk(torch.ones(1, toy_world.NUM_FEATURES, dtype=torch.float64))
    assert found == pytest.approx(float(plain.heads["seg"](features @ model.rotations.rotation("seg").T)))
    assert found != pytest.approx(without, rel=1e-3)


def test_weights_of_a_plain_model_start_unrotated(tmp_path: Path) -> None:
    train(tmp_path / "plain", **{**RUN, "balancer": "dwa"})
    cfg = grouped_world.config(tmp_path / "next", **RUN, load_from=str(tmp_path / "plain"))
    assert evaluate(cfg, tmp_path / "plain")["seg"] == pytest.approx(
        lines_of(tmp_path / "plain", "val")[-1]["metrics"]["seg"]
    )
    runner = PerceptionRunner.from_cfg(cfg)
    runner.train(stop_after=1)
    assert lines_of(tmp_path / "next")[0]["balance"]["RotoGrad"]["angle"]["seg"] == 0.0


def test_a_step_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    """The fourth step, with a NaN behind the heads: without it the run is that of three steps."""
    changes = {**RUN, "train_cfg": {"by_epoch": False, "max_iters": 4, "val_interval": 0}}
    train(
        tmp_path / "bad", **changes, train_dataloader__dataset__bad={str(i): "grad" for i in range(0, 12, 3)}
    )
    lines = lines_of(tmp_path / "bad")
    skipped = [line["skipped"] for line in lines]
    assert any(skipped)
    assert not all(skipped)
    taken = len(skipped) - sum(skipped)
    state = load_checkpoint(tmp_path / "bad").optimizer_state["balancing"]["balancer"]["rotograd"]
    assert state["num_steps"] == taken
    assert set(state["moments"]) == {"cls", "box"}  # where segmentation was there, the step was skipped
    assert not generators_of(tmp_path / "bad")["rotations.generators.seg"].any()


def test_two_ranks_take_the_steps_of_one(tmp_path: Path) -> None:
    """Some ranks have no segmentation target."""
    changes = {**EQUAL, "world": "grouped", "train_dataloader__batch_size": 2}
    launch([{"job": "train", "work_dir": f"{tmp_path}/two", "changes": changes}])
    train(tmp_path / "one", **EQUAL)
    one, two = (load_checkpoint(tmp_path / name) for name in ("one", "two"))
    for name, weight in one.model_state.items():
        torch.testing.assert_close(two.model_state[name], weight, rtol=1e-8, atol=1e-10, msg=name)
    states = [found.optimizer_state["balancing"]["balancer"]["rotograd"] for found in (one, two)]
    torch.testing.assert_close(states[1]["reference_norms"], states[0]["reference_norms"])
    for first, second in zip(lines_of(tmp_path / "one"), lines_of(tmp_path / "two"), strict=True):
        for key in ("coefficients", "grad_norms", "cosines"):
            assert first["balance"][key] == pytest.approx(second["balance"][key], rel=1e-8)


def test_compared_with_others(tmp_path: Path) -> None:
    """By the command's own functions; what the config says of other methods' gradients is left out."""
    changes = {
        **RUN,
        "balancer": "pcgrad",
        "train_cfg": {"by_epoch": True, "max_epochs": 1, "val_interval": 1},
    }
    cfg = grouped_world.config(
        tmp_path / "base",
        **changes,
        optim_wrapper__watch=dict(gram_interval=2),
        optim_wrapper__interval=2,
        optim_wrapper__gradient_source="features",
    )
    specs = {"pcgrad": "pcgrad", "rotograd": ROTOGRAD}
    runs = plan_runs(cfg, specs, num_seeds=1, work_dir=tmp_path)
    result = compare(runs, work_dir=tmp_path, config="toy", command="", scores={"seg": ["mIoU"]})
    assert set(result["balancers"]) == set(specs)
    assert not result["failed"]
    assert not result["unfinished"]
    with pytest.raises(ConfigError, match="balancer 'wrong': lr is -1"):
        plan_runs(cfg, {"wrong": {**ROTOGRAD, "lr": -1}}, num_seeds=1, work_dir=tmp_path / "other")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim_wrapper__balancer": {**ROTOGRAD, "lrr": 1}}, "Did you mean 'lr'"),
        ({"optim_wrapper__interval": 2}, "interval=2"),
        ({"optim_wrapper__gradient_source": "last_layer"}, "gradient_source='last_layer'"),
        ({"optim_wrapper__watch": {"gram_interval": 1}}, "watch.gram_interval=1"),
        (
            {"model": dict(type=toy_world.ToyModel)},
            "ToyModel has no shared_width, rotations, shared_features",
        ),
    ],
)
def test_bad_configs_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_balancing(grouped_world.config(tmp_path, **{"balancer": ROTOGRAD, **changes}))


def test_a_model_of_one_head_is_refused() -> None:
    cfg = load_config("bevformer_nano_seg", ["optim_wrapper.balancer=rotograd"])
    with pytest.raises(ConfigError, match=r"at least two; BEVFormer has \['seg'\]"):
        check_balancing(cfg)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_bevformer_trains_and_evaluates(tmp_path: Path, precision: str) -> None:
    changes = {
        "optim_wrapper__balancer": "rotograd",
        "optim_wrapper__precision": precision,
        "train_cfg": dict(by_epoch=False, max_iters=2),
    }
    if precision == "fp16":
        changes["optim_wrapper__loss_scale"] = dict(init_scale=64.0)
    PerceptionRunner.from_cfg(bev_world.config(tmp_path, **changes)).train()
    last = lines_of(tmp_path)[-1]
    assert not last["skipped"]
    assert set(last["balance"]["grad_norms"]) == {"det", "seg"}
    assert set(last["balance"]["coefficients"]) == {"cls", "box", "velocity", "seg"}
    assert all(0 < angle < 1 for angle in last["balance"]["RotoGrad"]["angle"].values())
    assert lines_of(tmp_path, "val")[-1]["metrics"]["count"] == 3


def _turned(model: nn.Module) -> nn.Module:
    """Prepared, with rotations far from the identity."""
    prepared = build_balancer("rotograd").prepare(model)
    generator = torch.Generator().manual_seed(5)
    for values in prepared.rotations.generators.values():
        values.copy_(torch.randn(values.shape, generator=generator) * 0.3)
    return prepared


def test_bevformers_heads_read_rotated_features_and_history_does_not() -> None:
    plain = small_model().eval()
    model = _turned(plain)
    assert plain.rotations is None
    items = [make_item(number, num_frames=1) for number in (0, 1)]
    batch = model.data_preprocessor(collate(items), False)
    with torch.no_grad():
        bev = plain.compute_bev(batch["inputs"])
        found = model(batch["inputs"], mode="tensor")
        expected = plain.seg_head(bev @ model.rotations.rotation("seg").float().T)
        model.predict(**batch)
    assert torch.equal(found["bev"], bev)
    torch.testing.assert_close(found["seg_logits"], expected)
    (history,) = model._histories.values()
    assert torch.equal(torch.stack([*history.values()]), bev)


class _Recorder(nn.Module):
    """Rotates in the slow way and remembers what each head read."""

    def __init__(self, rotations: dict[str, Tensor]) -> None:
        super().__init__()
        self.matrices, self.reads = rotations, {head: [] for head in rotations}

    def rotate(self, features: Tensor, head: str) -> Tensor:
        self.reads[head].append(features @ self.matrices[head].T.to(features.dtype))
        return self.reads[head][-1]


def _nano() -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    plain = MODELS.build(load_config("bevformer_nano").model)
    plain.init_weights()
    items = [make_item(0, num_frames=1), make_item(1, num_frames=1)]
    for seed, item in enumerate(items):
        labels = torch.randint(0, 4, (1, 200, 400), generator=torch.Generator().manual_seed(seed))
        item["data_samples"].gt_bev_seg = PixelData(sem_seg=labels)
    return _turned(plain).train(), plain.data_preprocessor(collate(items), True)


@pytest.mark.slow
def test_the_demos_update_equals_the_slow_way() -> None:
    """Heatmap and perspective losses included; every parameter's gradient, and what the rotations learn."""
    model, batch = _nano()
    rotations = model.rotations
    naive = NaiveRotoGrad(rotations.tasks, rotations.size)
    naive.generators = {head: values.double().clone() for head, values in rotations.generators.items()}

    slow = copy.deepcopy(model)
    # The same matrices to the last bit: a forward that differs by rounding has other kinks.
    recorder = _Recorder({head: rotations.rotation(head) for head in rotations.tasks})
    for head, matrix in recorder.matrices.items():
        torch.testing.assert_close(matrix, naive.rotation(head))
    slow.rotations = recorder
    losses, _ = slow.parse_losses(slow(**batch, mode="loss"))
    assert set(losses) == {"cls", "box", "velocity", "seg"}
    named = {name: p for name, p in slow.named_parameters() if p.requires_grad}
    totals = {"det": losses["cls"] + losses["box"] + losses["velocity"], "seg": losses["seg"]}
    assert len(recorder.reads["det"]) == 2  # box head and heatmap
    rotated = {}
    for head, total in totals.items():
        parts = torch.autograd.grad(total, recorder.reads[head], retain_graph=True)
        rotated[head] = torch.stack(parts).sum(dim=0).flatten(0, 1)
    factors = naive.factors(rotated)
    expected: dict[str, Tensor] = {}
    for head, total in totals.items():
        grads = torch.autograd.grad(total, [*named.values()], retain_graph=True, allow_unused=True)
        for (name, _), grad in zip(named.items(), grads, strict=True):
            if grad is not None:
                factor = factors[head] if name.startswith(model.trunk_names) else 1.0
                expected[name] = expected.get(name, 0.0) + factor * grad.double()

    wrapper = BalancedOptimWrapper(torch.optim.SGD(model.parameters(), lr=0.0), balancer="rotograd")
    wrapper.balanced.prepare(model, model.task_names, max_epochs=1, total_steps=1, seed=0)
    wrapper.balanced.begin_epoch(1)
    wrapper.optimizer.zero_grad = lambda *args, **kwargs: None  # type: ignore[method-assign]
    with wrapper.optim_context(model):
        losses, _ = model.parse_losses(model(**batch, mode="loss"))
    directions: dict[str, Tensor] = {}
    real = rotations.generator_gradients
    rotations.generator_gradients = lambda *held: directions.update(real(*held)) or directions  # type: ignore[func-returns-value]
    wrapper.update_params(losses)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert set(found) == set(expected)
    total_norm = torch.stack([grad.norm() for grad in expected.values()]).norm()
    error = torch.stack([(found[name].double() - grad).norm() for name, grad in expected.items()]).norm()
    assert error <= 1e-5 * total_norm
    balance = wrapper.last_step["balance"]
    assert {"det": balance["coefficients"]["cls"], "seg": balance["coefficients"]["seg"]} == pytest.approx(
        factors, rel=1e-5
    )
    for head, direction in naive.directions(rotated).items():
        assert (directions[head].double() - direction).norm() <= 1e-5 * direction.norm()
        moved = (rotations.generators[head].double() - naive.generators[head]).abs().max()
        assert 0 < float(moved) < 2e-4  # one step of Adam
