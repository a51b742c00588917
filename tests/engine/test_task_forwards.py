"""Connection strength through the whole engine, against its equations written with plain tensors."""

import copy
from pathlib import Path
from typing import Any

import grouped_world
import pytest
import torch
import toy_world
from mmengine.hooks import Hook
from mmengine.structures import PixelData
from torch import Tensor

from perception.balancing import build_balancer
from perception.balancing.channel_strength import top_tasks
from perception.balancing.task_copies import use_task
from perception.balancing.task_norms import plain_model
from perception.checkpoint import CheckpointError, load_checkpoint
from perception.config import ConfigError, load_config
from perception.engine import (
    BalancedOptimWrapper,
    PerceptionRunner,
    check_balancing,
    evaluate,
    predict,
    read_log,
)
from perception.engine.compare import compare
from perception.engine.compare_plan import plan_runs
from perception.engine.task_forwards import predict_by_groups, prepare_model, task_group, train_by_groups
from perception.registry import MODELS
from perception.visualization import plot_balance
from perception.visualization.balance_records import BalanceRecords
from tests.balancing.naive_projection import naive
from tests.engine import bev_world
from tests.models.small import collate, make_item, small_model

LR, MAX_NORM, MOMENTUM, EPS = 0.05, 5.0, 0.1, 1e-5
GROUPS = grouped_world.GROUPS
SGD = dict(type=torch.optim.SGD, lr=LR)
PHASES = ("sequential", "grouped")


class Recorder(Hook):
    """Weights before each step, its batch, and weights after it."""

    def __init__(self) -> None:
        self.steps: list[tuple[dict[str, Tensor], Any, dict[str, Tensor]]] = []

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self.steps.append((state_of(runner.bare_model), data_batch, {}))

    def after_train_iter(self, runner: Any, batch_idx: int, **_: Any) -> None:
        self.steps[-1][2].update(state_of(runner.bare_model))


def state_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def train(work_dir: Path, *, stops: tuple[int, ...] = (), hook: Hook | None = None, **changes: Any) -> None:
    for part, stop in enumerate((*stops, None)):
        runner = PerceptionRunner.from_cfg(grouped_world.config(work_dir, resume=part > 0, **changes))
        if hook is not None:
            runner.register_hook(hook)
        runner.train(stop_after=stop)


def lines_of(work_dir: Path) -> list[dict[str, Any]]:
    return [line for line in read_log(work_dir / "log.jsonl") if line["kind"] == "train"]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three batches in the first phase, after which the groups' norms differ."""
    folder = tmp_path_factory.mktemp("started") / "run"
    train(folder, phases="sequential", train_cfg=dict(by_epoch=False, max_iters=3))
    return folder


def group_gradients(
    state: dict[str, Tensor], group: str, batch: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients of a group's weighted losses by name, and its running variances after the forward."""
    leaves = {
        name: value.clone().requires_grad_() for name, value in state.items() if value.is_floating_point()
    }
    x, variances = torch.stack(list(batch["inputs"])).double(), {}
    for layer in (0, 4):
        norm = f"trunk.{layer + 1}.{group}"
        y = x @ leaves[f"trunk.{layer}.weight"].T + leaves[f"trunk.{layer}.bias"]
        variances[f"{norm}.running_var"] = (1 - MOMENTUM) * state[f"{norm}.running_var"] + MOMENTUM * y.var(
            dim=0
        ).detach()
        z = (y - y.mean(dim=0)) / (y.var(dim=0, unbiased=False) + EPS).sqrt()
        x = (z * leaves[f"{norm}.weight"] + leaves[f"{norm}.bias"]).clamp(min=0)
    targets = torch.stack([sample.target for sample in batch["data_samples"]]).double()
    has_seg = torch.tensor([bool(sample.has_seg) for sample in batch["data_samples"]])
    total = torch.zeros((), dtype=torch.float64)
    for task, factor, column, scale in (("cls", 1.0, 0, 1.0), ("box", 1.0, 0, 2.0), ("seg", 2.0, 1, 1.0)):
        mask = has_seg if task == "seg" else torch.ones_like(has_seg)
        if task in GROUPS[group] and mask.any():
            head = x @ leaves[f"heads.{task}.weight"][0] + leaves[f"heads.{task}.bias"]
            total = total + factor * ((head - scale * targets[:, column]) ** 2)[mask].mean()
    if not total.requires_grad:
        return {}, variances
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return {name: g for name, g in zip(leaves, found, strict=True) if g is not None}, variances


def top_groups(state: dict[str, Tensor], layer: int, present: list[str]) -> list[int]:
    """Equations 4, 6, 7 and 10 for a linear layer and its batch norms, channel by channel."""
    names, strengths = list(GROUPS), {}
    for group in present:
        norm = f"trunk.{layer + 1}.{group}"
        raw = [
            float(state[f"{norm}.weight"][p]) ** 2
            / (float(state[f"{norm}.running_var"][p]) + EPS)
            * sum(float(w) ** 2 for w in state[f"trunk.{layer}.weight"][p])
            for p in range(grouped_world.WIDTH)
        ]
        strengths[group] = [value / sum(raw) for value in raw]
    return [names.index(max(present, key=lambda g: strengths[g][p])) for p in range(grouped_world.WIDTH)]


def descend(state: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
    norm = torch.stack([g.norm() for g in gradients.values()]).norm()
    factor = min(1.0, MAX_NORM / (float(norm) + 1e-6))
    for name, gradient in gradients.items():
        state[name] = state[name] - LR * factor * gradient


def slow_step(state: dict[str, Tensor], batch: Any, phase: str) -> dict[str, Tensor]:
    """Equation 9, or Equation 10 with Algorithm 1, lines 6-16."""
    state, per_group = dict(state), {}
    for group in GROUPS:
        gradients, variances = group_gradients(state, group, batch)
        state |= variances
        if phase == "sequential" and gradients:
            descend(state, gradients)
        per_group[group] = gradients
    if phase == "sequential":
        return state
    present = [group for group, gradients in per_group.items() if gradients]
    update: dict[str, Tensor] = {}
    for gradients in per_group.values():
        for name, gradient in gradients.items():
            update[name] = update.get(name, 0) + gradient
    for layer in (0, 4):
        names = [f"trunk.{layer}.weight", f"trunk.{layer}.bias"]
        vectors = [[g.get(name, torch.zeros_like(state[name])) for name in names] for g in per_group.values()]
        update |= dict(
            zip(names, naive(vectors, top_groups(state, layer, present), len(GROUPS)), strict=True)
        )
    descend(state, update)
    return state


@pytest.mark.parametrize("phase", PHASES)
def test_each_step_is_the_papers(started: Path, tmp_path: Path, phase: str) -> None:
    """Batches without a segmentation target included; clipped, and with a scaled loss."""
    recorder = Recorder()
    changes = {
        "load_from": str(started),
        "train_cfg": dict(by_epoch=False, max_iters=6),
        "train_dataloader__batch_size": 4,
        "train_dataloader__dataset__num_samples": 12,
        "train_dataloader__dataset__seg_every": 6,
        "optim_wrapper__optimizer": SGD,
        "optim_wrapper__clip_grad": dict(max_norm=MAX_NORM),
    }
    train(tmp_path / "run", phases=phase, hook=recorder, **changes)
    has_seg = [any(sample.has_seg for sample in batch["data_samples"]) for _, batch, _ in recorder.steps]
    assert set(has_seg) == {True, False}
    num_projected = 0
    for before, batch, after in recorder.steps:
        expected = slow_step(before, batch, phase)
        for name, value in expected.items():
            if not name.endswith(("running_mean", "num_batches_tracked")):
                torch.testing.assert_close(after[name], value, rtol=1e-9, atol=1e-11, msg=name)
    for line in lines_of(tmp_path / "run"):
        assert line["balance"]["phase"] == phase
        num_projected += bool(line["balance"].get("group_conflict_share"))
    assert len(recorder.steps) == 6
    assert num_projected == 0 if phase == "sequential" else num_projected >= 2


def test_the_log_describes_the_whole_step(tmp_path: Path) -> None:
    train(tmp_path / "run", train_cfg=dict(by_epoch=True, max_epochs=4), train_dataloader__batch_size=5)
    lines = lines_of(tmp_path / "run")
    phases = [line["balance"]["phase"] for line in lines]
    assert set(phases) == set(PHASES)
    assert phases[-1] == "grouped"  # P > e/E never holds in the last epoch
    for line in lines:
        assert set(line["tasks"]) == {"cls", "box", "seg"}
        assert set(line["losses"]) == {"cls.loss_l2", "box.loss_l2", "seg.loss_l2"}
        assert line["balance"]["coefficients"] == {"cls": 1.0, "box": 1.0, "seg": 2.0}
        assert set(line["balance"]["top_share"]) == {"det", "seg"}
        assert ("group_conflict_share" in line["balance"]) == (line["balance"]["phase"] == "grouped")
    assert [line["step"] for line in lines] == list(range(1, 9))
    summary = load_checkpoint(tmp_path / "run")
    assert summary.optimizer_state["balancing"]["num_updates"] == 8


@pytest.mark.parametrize("phases", [*PHASES, "mixed"])
def test_resume_is_exact(tmp_path: Path, phases: str) -> None:
    """Stopped in mid-epoch, at an epoch's end, and in another epoch."""
    changes = {
        "phases": phases,
        "train_cfg": dict(by_epoch=True, max_epochs=4, val_interval=2),
        "model__dropout": 0.3,
    }
    train(tmp_path / "whole", **changes)
    train(tmp_path / "parts", stops=(3, 5, 12), **changes)
    toy_world.assert_same(
        toy_world.fingerprint(tmp_path / "whole"), toy_world.fingerprint(tmp_path / "parts")
    )
    reports = [[line["balance"] for line in lines_of(tmp_path / name)] for name in ("whole", "parts")]
    assert reports[0] == reports[1]
    assert len({report["phase"] for report in reports[0]}) == (2 if phases == "mixed" else 1)


def test_evaluation_is_that_of_the_plain_models(started: Path) -> None:
    cfg = grouped_world.config(started, phases="sequential")
    found = list(predict(cfg, started))
    model = prepare_model(balancer := _balancer(), grouped_world.GroupedToyModel())
    model.load_state_dict(load_checkpoint(started).model_state)
    dataset = toy_world.ToyDataset()
    for group, tasks in balancer.plan:
        plain = plain_model(model, group).eval()
        for sample in found:
            item = dataset[int(sample.sample_token.removeprefix("sample"))]
            batch = {"inputs": [item["inputs"]], "data_samples": [item["data_samples"]]}
            with torch.no_grad(), plain.only_tasks(tasks):
                (expected,) = plain.test_step(batch)
            for task in tasks:
                assert torch.equal(sample.get(f"pred_{task}"), expected.get(f"pred_{task}"))
    tested = evaluate(grouped_world.config(started.parent / "test", phases="sequential"), started)
    assert tested["cls"] == pytest.approx(sum(float(sample.pred_cls) for sample in found), rel=1e-12)
    logged = [line for line in read_log(started / "log.jsonl") if line["kind"] == "val"][-1]["metrics"]
    assert tested == logged


def _balancer(**changes: Any) -> Any:
    return build_balancer({**grouped_world.CONNECTION, **changes})


def test_bevformers_groups_keep_histories_apart() -> None:
    """Three frames of one scene: each group's outputs are those of its plain model with its own history."""
    model = small_model().eval()
    balancer = _balancer(groups=None, trunk=None, scales=None)
    converted = prepare_model(balancer, model).eval()
    assert balancer.plan == (("det", ("cls", "box", "velocity")), ("seg", ("seg",)))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in converted.named_parameters():
        if ".seg." in name:
            parameter.data.add_(0.2 * torch.rand(parameter.shape, generator=generator))
    plain = {group: plain_model(converted, group) for group, _ in balancer.plan}
    differences = 0.0
    for frame in range(3):
        batch = collate([make_item(100 * frame, num_frames=1)])
        batch["inputs"]["has_prev"] = [torch.tensor([frame > 0])]
        with torch.no_grad():
            (found,) = predict_by_groups(converted, balancer.plan, converted.test_step, batch)
            expected = {group: model.test_step(batch)[0] for group, model in plain.items()}
        boxes = expected["det"].pred_instances_3d
        assert torch.equal(found.pred_instances_3d.scores_3d, boxes.scores_3d)
        assert torch.equal(found.pred_instances_3d.bboxes_3d.tensor, boxes.bboxes_3d.tensor)
        assert torch.equal(found.pred_bev_seg.sem_seg, expected["seg"].pred_bev_seg.sem_seg)
        assert found.gt_bev_seg is not None
        differences += float((boxes.scores_3d - expected["seg"].pred_instances_3d.scores_3d).abs().sum())
    assert differences > 0
    with pytest.raises(ValueError, match="lacks \\['box', 'velocity'\\]"), model.only_tasks(("cls",)):
        pass


def test_weights_of_a_plain_model_go_into_every_copy(tmp_path: Path) -> None:
    plain = {"optim_wrapper__balancer": "sum", "train_cfg": dict(by_epoch=False, max_iters=2)}
    train(tmp_path / "plain", **plain)
    recorder = Recorder()
    start = {"load_from": str(tmp_path / "plain"), "train_cfg": dict(by_epoch=False, max_iters=1)}
    train(tmp_path / "run", hook=recorder, **start)
    weights, found = load_checkpoint(tmp_path / "plain").model_state, recorder.steps[0][0]
    for group in GROUPS:
        assert torch.equal(found[f"trunk.1.{group}.weight"], weights["trunk.1.weight"])
        assert torch.equal(found[f"trunk.5.{group}.running_var"], weights["trunk.5.running_var"])
    assert torch.equal(found["trunk.0.weight"], weights["trunk.0.weight"])
    with pytest.raises(CheckpointError, match="do not fit the model"):
        train(tmp_path / "back", **{**plain, "load_from": str(tmp_path / "run")})
    with pytest.raises(CheckpointError, match="do not fit the model"):  # a plain run doesn't go on as another
        PerceptionRunner.from_cfg(grouped_world.config(tmp_path / "plain", resume=True)).train()


@pytest.mark.parametrize("kind", ["loss", "grad"])
@pytest.mark.parametrize("phase", PHASES)
def test_a_bad_group_ends_the_step(tmp_path: Path, phase: str, kind: str) -> None:
    recorder = Recorder()
    changes = {
        "train_dataloader__dataset__bad": {"4": kind},
        "train_cfg": dict(by_epoch=False, max_iters=5),
        "optim_wrapper__max_bad_steps": 2,
    }
    train(tmp_path / "run", phases=phase, hook=recorder, **changes)
    lines = lines_of(tmp_path / "run")
    assert [line["skipped"] for line in lines].count(True) == 1
    for (before, batch, after), line in zip(recorder.steps, lines, strict=True):
        is_bad = any(sample.bad for sample in batch["data_samples"])
        assert line["skipped"] == is_bad
        moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
        if not is_bad:
            assert "heads.seg.weight" in moved
            continue
        assert line["non_finite"]["tasks"] == ["seg"]
        assert "sample4" in line["non_finite"]["sample_tokens"]
        assert not any("seg" in name for name in moved)
        if phase == "sequential":
            assert line["non_finite"]["updated"] == ["det"]
            assert {"heads.cls.weight", "trunk.1.det.running_var"} <= moved
        else:
            assert not moved


@pytest.mark.parametrize("phase", PHASES)
def test_bad_steps_in_a_row_end_the_run(tmp_path: Path, phase: str) -> None:
    """Though in the first phase each of them updates the first group."""
    bad = {str(index): "loss" for index in range(10)}
    with pytest.raises(FloatingPointError, match="3 in a row"):
        train(
            tmp_path,
            phases=phase,
            train_dataloader__dataset__bad=bad,
            optim_wrapper__max_bad_steps=3,
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": {"det": ("cls", "bax"), "seg": ("seg",)}}, "unknown task 'bax'. Did you mean 'box'"),
        ({"groups": {"det": ("cls",), "seg": ("seg",)}}, "tasks \\['box'\\] are in no group"),
        ({"groups": {"det": ("cls", "box", "seg")}}, "at least two groups"),
        ({"trunk": ("backbone",)}, "has no submodules \\['backbone'\\]"),
        ({"trunk": ("heads",)}, "found no norm"),
        ({"weighting": "gradnorm"}, "compares the task gradients of one forward"),
        ({"weighting": "dwaa"}, "Did you mean 'dwa'"),
        ({"phases": "both"}, "phases must be one of"),
        ({"mode": "loop"}, "takes no argument 'mode'"),
        ({"name": "connection_strength+pcgrad"}, "takes only a loss weighting beside it"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_before_training(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    cfg = grouped_world.config(tmp_path, balancer={**grouped_world.CONNECTION, **changes})
    with pytest.raises(ConfigError, match=message):
        check_balancing(cfg)
    with pytest.raises(ValueError, match=message):
        PerceptionRunner.from_cfg(cfg).train()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulative_counts": 2}, "raise batch_size or use more ranks"),
        ({"watch": {"gram_interval": 5}}, "takes no watch.gram_interval"),
        ({"interval": 2}, "would do nothing"),
    ],
)
def test_options_that_do_not_go_with_it(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    cfg = grouped_world.config(tmp_path, **{f"optim_wrapper__{key}": value for key, value in options.items()})
    with pytest.raises(ConfigError, match=message):
        check_balancing(cfg)


def test_a_model_that_cannot_run_by_groups(tmp_path: Path) -> None:
    cfg = toy_world.config(tmp_path, optim_wrapper__balancer="connection_strength")
    with pytest.raises(ConfigError, match="ToyModel has no `only_tasks`"):
        check_balancing(cfg)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_bevformer_trains_and_evaluates(tmp_path: Path, phase: str, precision: str) -> None:
    """By the name alone: groups and trunk are the model's."""
    changes = {
        "optim_wrapper__balancer": {"name": "connection_strength", "phases": phase},
        "optim_wrapper__precision": precision,
        "train_cfg": dict(by_epoch=False, max_iters=2),
    }
    if precision == "fp16":
        changes["optim_wrapper__loss_scale"] = dict(init_scale=64.0)
    runner = PerceptionRunner.from_cfg(bev_world.config(tmp_path, **changes))
    runner.train()
    lines = lines_of(tmp_path)
    assert [line["balance"]["phase"] for line in lines] == [phase] * 2
    assert all(set(line["tasks"]) == {"cls", "box", "velocity", "seg"} for line in lines)
    with use_task(runner.bare_model, "det"):
        pass
    val = [line for line in read_log(tmp_path / "log.jsonl") if line["kind"] == "val"]
    assert val[-1]["metrics"]["count"] == 3


def test_compared_with_others_and_drawn(tmp_path: Path) -> None:
    """A run each of the plain sum and of connection strength, by the command's own functions."""
    cfg = grouped_world.config(
        tmp_path / "base",
        balancer="sum",
        train_cfg=dict(by_epoch=True, max_epochs=4, val_interval=4),
        optim_wrapper__watch=dict(gram_interval=2),
    )
    specs = {"sum": "sum", "connection_strength": grouped_world.CONNECTION}
    runs = plan_runs(cfg, specs, num_seeds=1, work_dir=tmp_path)
    result = compare(runs, work_dir=tmp_path, config="toy", command="", scores={"seg": ["mIoU"]})
    assert set(result["balancers"]) == set(specs)
    assert not result["failed"]
    assert not result["unfinished"]
    folder = tmp_path / "connection_strength" / "seed0"
    records = BalanceRecords.from_log(read_log(folder / "log.jsonl"))
    assert {name for _, _, name in records.phases} == set(PHASES)
    assert set(records.rows) >= {"top_share", "group_conflict_share", "group_grad_norms"}
    assert plot_balance(folder / "log.jsonl", tmp_path / "balance.png").stat().st_size > 10_000
    with pytest.raises(ConfigError, match="balancer 'wrong': the model's tasks \\['box'\\]"):
        plan_runs(
            cfg,
            {"wrong": {"name": "connection_strength", "groups": {"a": ["seg"], "b": ["cls"]}}},
            num_seeds=1,
            work_dir=tmp_path / "other",
        )


def descend_slowly(model: Any, data: dict[str, Any], balancer: Any, *, phase: str, lr: float) -> None:
    """A step of plain gradient descent with gradients taken group by group; channels' strengths are the balancer's."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    per_group: list[dict[str, Tensor]] = []
    for group, tasks in balancer.plan:
        with task_group(model, group, tasks):
            losses, _ = model.parse_losses(model(**data, mode="loss"))
        total = torch.stack([loss for _, loss in losses.items()]).sum()
        found = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
        per_group.append({name: g for name, g in zip(parameters, found, strict=True) if g is not None})
        if phase == "sequential":
            with torch.no_grad():
                for name, gradient in per_group[-1].items():
                    parameters[name].add_(gradient, alpha=-lr)  # rounded as torch's SGD does
    if phase == "sequential":
        return
    update: dict[str, Tensor] = {}
    for gradients in per_group:
        for name, gradient in gradients.items():
            update[name] = update.get(name, 0) + gradient
    everyone = torch.ones(len(per_group), dtype=torch.bool)
    for connection, strength in zip(balancer.connections, balancer.strengths(model), strict=True):
        names = [n for n in (f"{connection.layer}.weight", f"{connection.layer}.bias") if n in update]
        vectors = [[g.get(n, torch.zeros_like(update[n])) for n in names] for g in per_group]
        tops = top_tasks(strength, everyone).tolist()
        update |= dict(zip(names, naive(vectors, tops, len(per_group)), strict=True))
    with torch.no_grad():
        for name, gradient in update.items():
            parameters[name].add_(gradient, alpha=-lr)


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_the_demos_update_is_that_of_the_slow_way(phase: str) -> None:
    lr = 1e-3
    torch.manual_seed(0)
    balancer = build_balancer({"name": "connection_strength", "phases": phase})
    model = MODELS.build(load_config("bevformer_nano_det-seg-connection-strength").model)
    model.init_weights()
    model = prepare_model(balancer, model).train()
    with torch.no_grad():  # else no group leads any channel before the first update
        for name, parameter in model.named_parameters():
            if name.endswith((".det.weight", ".seg.weight")):
                parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
    item = make_item(0)
    item["data_samples"].gt_bev_seg = PixelData(sem_seg=torch.randint(0, 4, (1, 200, 400)))
    slow, before = copy.deepcopy(model), state_of(model)
    wrapper = BalancedOptimWrapper(torch.optim.SGD(model.parameters(), lr=lr), balancer=balancer)
    wrapper.balanced.prepare(model, model.task_names, max_epochs=2, total_steps=2, seed=0)
    wrapper.balanced.begin_epoch(1)
    train_by_groups(model, collate([item]), wrapper, step=1)
    assert not wrapper.last_step["skipped"]
    assert wrapper.last_step["balance"]["phase"] == phase
    assert len(balancer.connections) == 33
    if phase == "grouped":
        assert wrapper.last_step["balance"]["group_conflict_share"] > 0
    descend_slowly(slow, slow.data_preprocessor(collate([item]), True), balancer, phase=phase, lr=lr)
    expected = {name: value - before[name] for name, value in slow.named_parameters()}
    total = torch.stack([value.norm() for value in expected.values()]).norm()
    errors = [(value - before[name] - expected[name]).norm() for name, value in model.named_parameters()]
    assert torch.stack(errors).norm() <= 1e-5 * total
    still = {name for name, value in expected.items() if not value.any()}
    assert not {name for name in still if name.startswith(model.trunk_names) and ".norm" in name}
    assert {f"img_backbone.bn1.{group}.weight" for group in GROUPS}.isdisjoint(still)
