"""Recon through the engine: scores against cosines one by one, the split network against plain networks by hand."""

from itertools import combinations
from pathlib import Path
from typing import Any

import grouped_world
import pytest
import torch
import toy_world
from torch import Tensor

from perception.balancing import build_balancer
from perception.balancing.split_layers import split_layers
from perception.balancing.task_norms import plain_model
from perception.checkpoint import load_checkpoint
from perception.config import ConfigError
from perception.engine import PerceptionRunner, check_balancing, read_log
from tests.engine.test_task_forwards import Recorder

GROUPS = grouped_world.GROUPS
LAYERS = ("trunk.0", "trunk.1", "trunk.4", "trunk.5")
SCORES = {
    "name": "recon_scores",
    "groups": GROUPS,
    "trunk": ("trunk",),
    "num_layers": 2,
    "scales": {"cls": 0.3, "seg": 0.2},
}
SPLIT = {"name": "recon", "groups": GROUPS, "layers": ("trunk.4", "trunk.5")}
COPIED = (*SPLIT["layers"], "trunk.1")  # the other batch norm
LR = 0.02
CHANGES = {
    "optim_wrapper__optimizer": dict(type=torch.optim.SGD, lr=LR),
    "optim_wrapper__clip_grad": None,
    "train_dataloader__batch_size": 4,
    "train_dataloader__dataset__num_samples": 12,
    "train_dataloader__dataset__seg_every": 5,
    "train_cfg": dict(by_epoch=False, max_iters=6, val_interval=3),
}


def train(work_dir: Path, balancer: Any, *, stops: tuple[int, ...] = (), hook: Any = None) -> None:
    for part, stop in enumerate((*stops, None)):
        cfg = grouped_world.config(work_dir, balancer=balancer, resume=part > 0, **CHANGES)
        runner = PerceptionRunner.from_cfg(cfg)
        if hook is not None:
            runner.register_hook(hook)
        runner.train(stop_after=stop)


def task_gradients(
    model: torch.nn.Module, batch: Any, tasks: tuple[str, ...]
) -> dict[str, dict[str, Tensor]]:
    """Task → parameter's name → gradient, of one forward in training mode."""
    losses, _ = model.train().parse_losses(model(**batch, mode="loss"))
    named = dict(model.named_parameters())
    found = {}
    for task in (task for task in tasks if task in losses):
        grads = torch.autograd.grad(losses[task], list(named.values()), retain_graph=True, allow_unused=True)
        found[task] = {name: g for name, g in zip(named, grads, strict=True) if g is not None}
    return found


def test_scores_count_conflicts_of_the_groups(tmp_path: Path) -> None:
    recorder = Recorder()
    train(tmp_path, SCORES, hook=recorder)
    expected = dict.fromkeys(LAYERS, 0)
    for before, batch, _ in recorder.steps:
        model = grouped_world.GroupedToyModel()
        model.load_state_dict(before)
        grads = task_gradients(model, batch, model.task_names)
        if "seg" not in grads:
            continue
        for layer in LAYERS:
            rows = [
                torch.cat([grads[task][f"{layer}.{part}"].flatten() for part in ("weight", "bias")])
                for task in grads
            ]
            det, seg = 0.3 * rows[0] + rows[1], 0.2 * rows[2]
            expected[layer] += bool(torch.dot(det, seg) < 0)
    state = load_checkpoint(tmp_path).optimizer_state["balancing"]["balancer"]["conflicts"]
    assert dict(zip(state["layers"], state["scores"].tolist(), strict=True)) == expected
    assert state["num_steps"] == 6
    assert 0 < sum(expected.values())
    lines = [line for line in read_log(tmp_path / "log.jsonl") if line["kind"] == "train"]
    assert lines[-1]["balance"]["recon_layers"] == sorted(LAYERS, key=expected.get, reverse=True)[:2]


@pytest.mark.parametrize("combination", [None, "mgda", "geometric"])
def test_the_split_network_is_trained_as_plain_ones_by_hand(tmp_path: Path, combination: str | None) -> None:
    """Layers in front of the split ones are shared by all tasks, so the Gram matrix is over them."""
    recorder = Recorder()
    train(tmp_path, {**SPLIT, "combination": combination}, hook=recorder)
    reference = build_balancer({"name": combination or "even"})
    tasks = grouped_world.GroupedToyModel.task_names
    reference.setup(tasks, max_epochs=2, total_steps=6, seed=3)
    for before, batch, after in recorder.steps:
        split = split_layers(grouped_world.GroupedToyModel(), COPIED, tuple(GROUPS))
        split.load_state_dict(before)
        grads: dict[str, dict[str, Tensor]] = {}
        values = torch.zeros(3, dtype=torch.float64)
        for group, members in GROUPS.items():
            plain = plain_model(split, group)
            losses, _ = plain.train().parse_losses(plain(**batch, mode="loss"))
            for task in members:
                if task in losses:
                    values[tasks.index(task)] = losses[task].detach()
            for task, found in task_gradients(plain, batch, members).items():
                renamed = {_split_name(name, group): value for name, value in found.items()}
                grads[task] = renamed
        present = torch.tensor([task in grads for task in tasks])
        owners = {name: [task for task in tasks if name in grads.get(task, {})] for name in before}
        gram = torch.zeros(3, 3, dtype=torch.float64)
        for (i, a), (j, b) in [*combinations(enumerate(tasks), 2), *((p, p) for p in enumerate(tasks))]:
            for name, found in owners.items():
                if len(found) >= 2 and a in found and b in found:
                    gram[i, j] += (grads[a][name] * grads[b][name]).sum()
            gram[j, i] = gram[i, j]
        weights = reference.weigh(values, present)
        coefficients = reference.combine(weights * values, present, gram if reference.needs_gram else None)
        for name, found in owners.items():
            if not found:
                continue
            is_own = len(found) == 1 and not reference.scale_heads
            update = sum(
                (1.0 if is_own else coefficients[tasks.index(task)])
                * weights[tasks.index(task)]
                * grads[task][name]
                for task in found
            )
            torch.testing.assert_close(
                after[name], before[name] - LR * update, rtol=1e-8, atol=1e-10, msg=name
            )
    lines = [line for line in read_log(tmp_path / "log.jsonl") if line["kind"] == "train"]
    assert {len(line["balance"]["coefficients"]) for line in lines} == {2, 3}


def _split_name(name: str, group: str) -> str:
    layer, _, part = name.rpartition(".")
    return f"{layer}.{group}.{part}" if layer in COPIED else name


@pytest.mark.parametrize("balancer", [SCORES, {**SPLIT, "combination": "gradvac"}], ids=["scores", "split"])
def test_resume_is_exact(tmp_path: Path, balancer: dict[str, Any]) -> None:
    train(tmp_path / "whole", balancer)
    train(tmp_path / "parts", balancer, stops=(2, 3))
    toy_world.assert_same(
        toy_world.fingerprint(tmp_path / "whole"), toy_world.fingerprint(tmp_path / "parts")
    )


@pytest.mark.parametrize(
    ("balancer", "message"),
    [
        ({**SPLIT, "layers": ["trunk.9"]}, "unknown: \\['trunk.9'\\]"),
        ({**SPLIT, "layers": ["trunk"]}, "hold other layers"),
        ({**SPLIT, "layers": []}, "at least one layer"),
        ({"name": "recon"}, "needs the argument 'layers'"),
        ({**SPLIT, "combination": "pcgard"}, "Did you mean 'pcgrad'"),
        ({**SPLIT, "groups": {"det": ["cls"], "seg": ["seg"]}}, "tasks \\['box'\\] are in no group"),
        ({**SCORES, "threshold": 0.5}, "threshold is 0.5"),
        ({**SCORES, "num_layers": 0}, "num_layers is 0"),
    ],
)
def test_bad_configs_are_refused(tmp_path: Path, balancer: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_balancing(grouped_world.config(tmp_path, balancer=balancer))
