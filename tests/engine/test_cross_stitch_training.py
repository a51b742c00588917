"""Cross-stitch through the engine, against trunks that are run one by one and mixed with plain tensors."""

from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import grouped_world
import pytest
import torch
import toy_world
from safetensors.torch import save_file
from torch import Tensor

from perception.balancing import build_balancer
from perception.checkpoint import CheckpointError, load_checkpoint
from perception.config import ConfigError, load_config
from perception.engine import PerceptionRunner, check_balancing, evaluate, predict, read_log
from perception.engine.compare import compare
from perception.engine.compare_plan import plan_runs
from perception.visualization.balance_records import BalanceRecords
from tests.engine import bev_world
from tests.engine.test_task_forwards import Recorder, lines_of

GROUPS = grouped_world.GROUPS
TASKS = grouped_world.GroupedToyModel.task_names
STAGES = ("trunk.1", "trunk.5")
STITCH = {"name": "cross_stitch", "groups": GROUPS, "trunk": ("trunk",), "stages": STAGES}
LR, STITCH_RATE, EPS = 0.02, 5.0, 1e-5
CHANGES = {
    "optim_wrapper__optimizer": dict(type=torch.optim.SGD, lr=LR),
    "optim_wrapper__paramwise_cfg": dict(custom_keys={"stitch": dict(lr_mult=STITCH_RATE)}),
    "optim_wrapper__clip_grad": None,
    "train_dataloader__batch_size": 4,
    "train_dataloader__dataset__num_samples": 12,
    "train_dataloader__dataset__seg_every": 5,
    "train_cfg": dict(by_epoch=False, max_iters=6, val_interval=3),
}


def train(
    work_dir: Path, balancer: Any = STITCH, *, stops: tuple[int, ...] = (), hook: Any = None, **changes: Any
) -> PerceptionRunner:
    for part, stop in enumerate((*stops, None)):
        options = {"resume": part > 0, **CHANGES, **changes}
        cfg = grouped_world.config(work_dir, balancer=balancer, **options)
        runner = PerceptionRunner.from_cfg(cfg)
        if hook is not None:
            runner.register_hook(hook)
        runner.train(stop_after=stop)
    return runner


def naive_features(values: dict[str, Tensor], x: Tensor, *, training: bool) -> dict[str, Tensor]:
    """Two trunks, layer by layer; stages are the batch norms."""
    maps = {group: x.double() for group in GROUPS}
    for layer in (0, 4):
        for group, features in maps.items():
            linear, norm = f"trunk.{layer}.{group}", f"trunk.{layer + 1}.{group}"
            y = features @ values[f"{linear}.weight"].T + values[f"{linear}.bias"]
            mean, variance = values[f"{norm}.running_mean"], values[f"{norm}.running_var"]
            if training:
                mean, variance = y.mean(dim=0), y.var(dim=0, unbiased=False)
            z = (y - mean) / (variance + EPS).sqrt()
            maps[group] = z * values[f"{norm}.weight"] + values[f"{norm}.bias"]
        alpha = values[f"trunk.{layer + 1}.stitch.0.cross_stitch_weights"]
        det, seg = maps["det"], maps["seg"]
        maps = {
            "det": (alpha[0, 0] * det + alpha[0, 1] * seg).clamp(min=0),
            "seg": (alpha[1, 0] * det + alpha[1, 1] * seg).clamp(min=0),
        }
    return maps


def naive_outputs(values: dict[str, Tensor], x: Tensor, *, training: bool) -> dict[str, Tensor]:
    features = naive_features(values, x, training=training)
    groups = {task: group for group, tasks in GROUPS.items() for task in tasks}
    return {
        task: features[groups[task]] @ values[f"heads.{task}.weight"][0] + values[f"heads.{task}.bias"]
        for task in TASKS
    }


def losses_of(outputs: dict[str, Tensor], batch: Any) -> dict[str, Tensor]:
    targets = torch.stack([sample.target for sample in batch["data_samples"]]).double()
    has_seg = torch.tensor([bool(sample.has_seg) for sample in batch["data_samples"]])
    wanted = {"cls": targets[:, 0], "box": 2 * targets[:, 0], "seg": targets[:, 1]}
    masks = {"cls": torch.ones_like(has_seg), "box": torch.ones_like(has_seg), "seg": has_seg}
    return {
        task: (outputs[task] - wanted[task])[mask].square().mean()
        for task, mask in masks.items()
        if mask.any()
    }


def naive_gradients(
    state: dict[str, Tensor], batch: Any
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Task → loss, and task → parameter's name → gradient."""
    leaves = {name: v.double().clone().requires_grad_() for name, v in state.items() if v.is_floating_point()}
    losses = losses_of(naive_outputs(leaves, torch.stack(list(batch["inputs"])), training=True), batch)
    found = {}
    for task, loss in losses.items():
        grads = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True, allow_unused=True)
        found[task] = {name: grad for name, grad in zip(leaves, grads, strict=True) if grad is not None}
    return losses, found


def rate(name: str) -> float:
    return LR * STITCH_RATE if "stitch" in name else LR


@pytest.mark.parametrize(
    ("options", "reference"),
    [
        ({}, "even"),
        ({"combination": "mgda", "per_channel": True}, "mgda"),
        ({"combination": "geometric"}, "geometric"),
        ({"weighting": {"name": "constant", "weights": {"cls": 1, "box": 2, "seg": 0.5}}}, None),
    ],
    ids=["sum", "mgda", "geometric", "constant"],
)
def test_a_step_is_that_of_two_trunks_by_hand(
    tmp_path: Path, options: dict[str, Any], reference: str | None
) -> None:
    """Some batches without a target of seg; mixing weights at a rate of their own."""
    recorder = Recorder()
    train(tmp_path, {**STITCH, **options, "own": 0.7}, hook=recorder)
    by_hand = build_balancer(reference or {"name": "constant", **options["weighting"]})
    by_hand.setup(TASKS, max_epochs=2, total_steps=6, seed=3)
    seen = set()
    for before, batch, after in recorder.steps:
        losses, grads = naive_gradients(before, batch)
        values = torch.stack([losses.get(task, torch.zeros(())).detach().double() for task in TASKS])
        present = torch.tensor([task in losses for task in TASKS])
        seen.add(len(losses))
        weights = by_hand.weigh(values, present)
        trunk = [name for name in before if name.startswith("trunk") and "running" not in name]
        gram = torch.zeros(3, 3, dtype=torch.float64)
        for (i, a), (j, b) in combinations_with_replacement(enumerate(TASKS), 2):
            for name in trunk if a in grads and b in grads else ():
                if name in grads[a]:
                    gram[i, j] += weights[i] * weights[j] * (grads[a][name] * grads[b][name]).sum()
            gram[j, i] = gram[i, j]
        coefficients = by_hand.combine(weights * values, present, gram if by_hand.needs_gram else None)
        for name in (name for name in before if any(name in found for found in grads.values())):
            is_head = name.startswith("heads.") and not by_hand.scale_heads
            update = sum(
                weights[TASKS.index(task)]
                * (1.0 if is_head else coefficients[TASKS.index(task)])
                * found[name]
                for task, found in grads.items()
                if name in found
            )
            torch.testing.assert_close(
                after[name].double(), before[name] - rate(name) * update, rtol=1e-6, atol=1e-8, msg=name
            )
    assert seen == {2, 3}


def test_without_mixing_it_is_two_networks(tmp_path: Path) -> None:
    """`own=1` and a rate of 0 for the mixing weights: each group's network is trained as by itself."""
    recorder = Recorder()
    frozen = {"optim_wrapper__paramwise_cfg": dict(custom_keys={"cross_stitch_weights": dict(lr_mult=0.0)})}
    runner = train(tmp_path, {**STITCH, "own": 1.0}, hook=recorder, **frozen)
    for before, batch, after in recorder.steps:
        for group, tasks in GROUPS.items():
            plain = grouped_world.GroupedToyModel().train()
            names = {name: _branch(name, group, before) for name in plain.state_dict()}
            plain.load_state_dict({name: before[own] for name, own in names.items()})
            losses, _ = plain.parse_losses(plain(**batch, mode="loss"))
            wanted = [loss for task, loss in losses.items() if task in tasks]
            if wanted:
                sum(wanted).backward()
            for name, parameter in plain.named_parameters():
                if name.startswith("trunk") or name.split(".")[1] in tasks:
                    step = 0.0 if parameter.grad is None else LR * parameter.grad
                    torch.testing.assert_close(
                        after[names[name]], parameter.detach() - step, rtol=1e-10, atol=1e-12, msg=name
                    )
            for name, value in plain.state_dict().items():
                if "running" in name:
                    torch.testing.assert_close(after[names[name]], value, rtol=1e-10, atol=1e-12)
    mixtures = [p for name, p in runner.bare_model.named_parameters() if "stitch" in name]
    assert all(torch.equal(p.detach(), torch.eye(2)[..., None]) for p in mixtures)


def _branch(name: str, group: str, state: dict[str, Tensor]) -> str:
    layer, _, part = name.rpartition(".")
    return name if name in state else f"{layer}.{group}.{part}"


def test_accumulation_and_reused_coefficients(tmp_path: Path) -> None:
    """Two micro-batches make one update; with `interval` the combination is asked in every second one."""
    recorder = Recorder()
    train(tmp_path / "sum", hook=recorder, optim_wrapper__accumulative_counts=2)
    for first, second in zip(recorder.steps[::2], recorder.steps[1::2], strict=True):
        gradients: dict[str, Tensor] = {}
        for state, batch, _ in (first, second):
            for found in naive_gradients(state, batch)[1].values():
                for name, grad in found.items():
                    gradients[name] = gradients.get(name, 0) + grad / 2
        for name, grad in gradients.items():
            if "running" not in name:
                expected = first[0][name] - rate(name) * grad
                torch.testing.assert_close(second[2][name].double(), expected, rtol=1e-6, atol=1e-8)
    train(tmp_path / "mgda", {**STITCH, "combination": "mgda"}, optim_wrapper__interval=2)
    assert [line["balance"].get("reused", False) for line in lines_of(tmp_path / "mgda")] == [False, True] * 3


def test_the_log_has_cosines_and_mixtures(tmp_path: Path) -> None:
    train(tmp_path, optim_wrapper__watch=dict(gram_interval=2))
    lines = lines_of(tmp_path)
    assert all(set(line["balance"]["own_weights"]) == set(STAGES) for line in lines)
    own = [line["balance"]["own_weights"]["trunk.1"] for line in lines]
    assert len(set(own)) == len(own)
    assert own[0] == pytest.approx(0.9, abs=0.2)
    assert "cls/box" in lines[0]["balance"]["cosines"]


@pytest.mark.parametrize("combination", [None, "gradvac"])
def test_resume_is_exact(tmp_path: Path, combination: str | None) -> None:
    balancer = {**STITCH, "combination": combination}
    train(tmp_path / "whole", balancer, model__dropout=0.3)
    train(tmp_path / "parts", balancer, stops=(2, 3), model__dropout=0.3)
    toy_world.assert_same(
        toy_world.fingerprint(tmp_path / "whole"), toy_world.fingerprint(tmp_path / "parts")
    )


def test_prediction_and_evaluation(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run)
    cfg = grouped_world.config(run, balancer=STITCH, **CHANGES)
    found = list(predict(cfg, run))
    state, dataset = load_checkpoint(run).model_state, toy_world.ToyDataset()
    for sample in found:
        x = dataset[int(sample.sample_token.removeprefix("sample"))]["inputs"][None]
        expected = naive_outputs(state, x, training=False)
        for task in TASKS:
            torch.testing.assert_close(
                sample.get(f"pred_{task}"), expected[task][0], rtol=1e-6, atol=1e-8, msg=task
            )
    tested = evaluate(grouped_world.config(tmp_path / "test", balancer=STITCH, **CHANGES), run)
    logged = [line for line in read_log(run / "log.jsonl") if line["kind"] == "val"][-1]["metrics"]
    assert tested == logged


def test_weights_of_a_plain_model_go_into_every_trunk(tmp_path: Path) -> None:
    train(tmp_path / "plain", "sum")
    recorder = Recorder()
    train(tmp_path / "run", hook=recorder, load_from=str(tmp_path / "plain"))
    weights, start = load_checkpoint(tmp_path / "plain").model_state, recorder.steps[0][0]
    for group in GROUPS:
        assert torch.equal(start[f"trunk.0.{group}.weight"], weights["trunk.0.weight"])
        assert torch.equal(start[f"trunk.5.{group}.running_var"], weights["trunk.5.running_var"])
    own = torch.tensor([[0.9, 0.1], [0.1, 0.9]])[..., None]
    torch.testing.assert_close(start["trunk.5.stitch.0.cross_stitch_weights"], own)
    again = Recorder()
    train(tmp_path / "again", hook=again, load_from=str(tmp_path / "run"))
    for name, value in load_checkpoint(tmp_path / "run").model_state.items():
        assert torch.equal(again.steps[0][0][name], value)
    with pytest.raises(CheckpointError, match="do not fit the model"):
        train(tmp_path / "back", "sum", load_from=str(tmp_path / "run"))


def test_single_task_networks_go_into_their_own_trunks(tmp_path: Path) -> None:
    """Saved without the other groups' heads, as a single-task model has none."""
    generator = torch.Generator().manual_seed(0)
    plain, files = {}, {}
    for group, tasks in GROUPS.items():
        state = grouped_world.GroupedToyModel().state_dict()
        keep = [name for name in state if name.startswith("trunk") or name.split(".")[1] in tasks]
        plain[group] = {
            name: torch.rand(state[name].shape, generator=generator, dtype=torch.float64)
            if state[name].is_floating_point()
            else state[name]
            for name in keep
        }
        files[group] = str(tmp_path / f"{group}.safetensors")
        save_file(plain[group], files[group])
    for number, resume in enumerate(
        (False, True)
    ):  # a run that has no checkpoint yet starts from the weights too
        recorder = Recorder()
        run = tmp_path / f"run{number}"
        train(run, hook=recorder, load_from=files, resume=resume)
        start = recorder.steps[0][0]
        for group, state in plain.items():
            for name, value in state.items():
                assert torch.equal(start[_branch(name, group, start)], value)
        assert float(start["trunk.1.stitch.0.cross_stitch_weights"][0, 0]) == pytest.approx(0.9)
    train(run, load_from=files, resume=True)  # goes on from its own last step, where nothing is left to do
    assert len(lines_of(run)) == 6
    with pytest.raises(CheckpointError, match="give each of them"):
        train(tmp_path / "one", load_from={"det": files["det"]})
    with pytest.raises(CheckpointError, match="for no tasks"):
        train(tmp_path / "sum", "sum", load_from=files)
    norms = grouped_world.CONNECTION
    with pytest.raises(CheckpointError, match="exists once for all tasks"):
        train(tmp_path / "norms", norms, load_from=files)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": ["trunk.55"]}, "no module 'trunk.55'. Did you mean 'trunk.5'"),
        ({"stages": ["trunk"], "trunk": ("trnk",)}, "no module 'trnk'. Did you mean 'trunk'"),
        ({"stages": ["heads.seg"]}, "'heads.seg' is not in the trunk"),
        ({"stages": ["trunk", "trunk.1"]}, "'trunk.1' is inside stage 'trunk'"),
        ({"stages": ["trunk.2"]}, "has no trainable parameter"),
        ({"stages": []}, "at least one module"),
        ({"own": 1.5}, "own = 1.5"),
        ({"ovn": 0.5}, "takes no argument 'ovn'. Did you mean 'own'"),
        ({"combination": "pcgard"}, "Did you mean 'pcgrad'"),
        ({"groups": {"det": ["cls"], "seg": ["seg"]}}, "tasks \\['box'\\] are in no group"),
        ({"groups": {"det": ["cls", "box"], "stitch": ["seg"]}}, "names the mixing weights"),
        ({"name": "cross_stich"}, "Did you mean 'cross_stitch'"),
    ],
)
def test_bad_configs_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    cfg = grouped_world.config(tmp_path, balancer={**STITCH, **changes})
    with pytest.raises(ConfigError, match=message):
        check_balancing(cfg)
    with pytest.raises(ValueError, match=message):
        PerceptionRunner.from_cfg(cfg).train()


@pytest.mark.parametrize("source", ["features", "last_layer"])
def test_sources_that_compare_nothing(tmp_path: Path, source: str) -> None:
    balancer = {**STITCH, "combination": "pcgrad"}
    cfg = grouped_world.config(tmp_path, balancer=balancer, optim_wrapper__gradient_source=source)
    with pytest.raises(ConfigError, match="needs gradient_source='parameters'"):
        check_balancing(cfg)


def test_a_model_without_streams(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ToyModel has no `task_streams`"):
        check_balancing(toy_world.config(tmp_path, optim_wrapper__balancer="cross_stitch"))


def test_tasks_of_one_head_stay_together(tmp_path: Path) -> None:
    groups = {"cls": ["cls"], "rest": ["box", "velocity", "seg"]}
    cfg = bev_world.config(tmp_path, optim_wrapper__balancer={"name": "cross_stitch", "groups": groups})
    with pytest.raises(ConfigError, match="lacks \\['box', 'velocity'\\]"):
        check_balancing(cfg)


def test_bevformer_trains_and_evaluates(tmp_path: Path) -> None:
    """By the name alone: groups, trunk and stages are the model's."""
    changes = {"optim_wrapper__precision": "bf16", "train_cfg": dict(by_epoch=False, max_iters=2)}
    balancer = {"name": "cross_stitch", "combination": "pcgrad", "per_channel": True}
    cfg = bev_world.config(tmp_path, optim_wrapper__balancer=balancer, **changes)
    PerceptionRunner.from_cfg(cfg).train()
    line = lines_of(tmp_path)[-1]
    assert set(line["tasks"]) == {"cls", "box", "velocity", "seg"}
    assert set(line["balance"]["own_weights"]) == {
        *(f"img_backbone.layer{number}" for number in (1, 2, 3)),
        "img_neck",
        "bev_encoder",
    }
    results = list(predict(cfg, tmp_path))
    assert all("pred_instances_3d" in sample and "pred_bev_seg" in sample for sample in results)


@pytest.mark.slow
def test_the_demos_config_is_accepted() -> None:
    cfg = load_config("bevformer_nano")
    cfg.optim_wrapper.balancer = {"name": "cross_stitch", "per_channel": True}
    check_balancing(cfg)


@pytest.mark.slow
def test_compared_with_the_plain_sum(tmp_path: Path) -> None:
    short = {**CHANGES, "train_cfg": dict(by_epoch=False, max_iters=2)}
    cfg = grouped_world.config(tmp_path / "base", balancer="sum", **short)
    runs = plan_runs(cfg, {"sum": "sum", "cross_stitch": STITCH}, num_seeds=1, work_dir=tmp_path)
    result = compare(runs, work_dir=tmp_path, config="toy", command="", scores={"seg": ["mIoU"]})
    assert set(result["balancers"]) == {"sum", "cross_stitch"}
    assert not result["failed"]
    assert not result["unfinished"]
    records = BalanceRecords.from_log(read_log(tmp_path / "cross_stitch" / "seed0" / "log.jsonl"))
    assert "own_weights" in records.rows
