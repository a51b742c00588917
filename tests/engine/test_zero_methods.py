"""Every method under every ZeRO stage: the steps of one process on the joined batch. One launch per way loops over all.

At stage 0 DeepSpeed has no part and the strategy is DDP's, on which `test_methods_on_ranks` has the methods that train
the model as it is.
"""

import functools
import json
from pathlib import Path
from typing import Any

import grouped_world
import pytest
import torch
import toy_driver
from torch import Tensor

from tests.engine import rank_methods
from tests.engine.launching import launch, needs_deepspeed

# Of the way that the weights went: after one step, after ten.
LIMITS = {"float32": (5e-6, 1e-4), "bf16": (3e-2, 3e-2)}
RATES = {"float32": 0.02, "bf16": 0.002}
"""At the larger one ten updates amplify bf16's rounding, once it has turned a ReLU's gate, to a tenth of the way."""
STEPS = (1, 10)
GROUPS = grouped_world.GROUPS
CHANGING: dict[str, dict[str, Any]] = {
    "sequential": {**grouped_world.CONNECTION, "phases": "sequential"},
    "grouped": {**grouped_world.CONNECTION, "phases": "grouped"},
    "cross_stitch": {
        "name": "cross_stitch",
        "groups": GROUPS,
        "trunk": ["trunk"],
        "stages": ["trunk.1", "trunk.5"],
        "combination": "mgda",
    },
    "recon": {"name": "recon", "groups": GROUPS, "layers": ["trunk.4"], "combination": "pcgrad"},
    "recon_scores": {"name": "recon_scores", "groups": GROUPS, "trunk": ["trunk"], "combination": "cagrad"},
    "rotograd": {"name": "rotograd", "lr": 0.05, "burn_in": 2},
}
"""The methods that change the model or need the runner; connection strength in both of its phases."""
QUICK = ("uncertainty", "graddrop")
QUICK_CHANGING = ("grouped",)
slow = pytest.mark.slow
WAYS = [
    (ranks, stage, precision)
    for ranks in (1, 2, 4)
    for stage in (0, 1, 2, 3)
    for precision in ("float32", "bf16")
]


def changing_run(name: str, precision: str, num_ranks: int, steps: int, **changes: Any) -> dict[str, Any]:
    """Layer norms, as batch norms see each rank's part; only every third sample has a segmentation target."""
    return {
        "world": "grouped",
        "balancer": CHANGING[name],
        "model__batch_norm": False,
        "model__is_double": False,
        "train_dataloader__batch_size": 4 // num_ranks,
        "train_dataloader__dataset__num_samples": 12,
        "train_dataloader__dataset__seg_every": 3,
        "train_cfg": {"by_epoch": False, "max_iters": steps, "val_interval": 0},
        "optim_wrapper__optimizer": {"type": "SGD", "lr": RATES[precision]},
        "optim_wrapper__clip_grad": {"max_norm": 3.0},
        "optim_wrapper__precision": "bf16" if precision == "bf16" else "fp32",
        **changes,
    }


def strategy(stage: int) -> dict[str, Any]:
    few = {"max_live_parameters": rank_methods.FEW_LIVE} if stage == 3 else {}
    return {"strategy": {"type": "DeepSpeedStrategy", "zero_stage": stage, **few}}


def start_all(
    folder: Path, way: tuple[int, int, str], names: tuple[str, ...], changing: tuple[str, ...]
) -> None:
    num_ranks, stage, precision = way
    jobs: list[dict[str, Any]] = [
        {
            "job": "train",
            "work_dir": f"{folder}/{name}{steps}",
            "changes": changing_run(name, precision, num_ranks, steps, **strategy(stage)),
        }
        for name in changing
        for steps in STEPS
    ]
    if names and stage:
        jobs.append(
            {"job": "methods", "names": list(names), "precision": precision, "way": f"zero{stage}",
             "out": f"{folder}/methods.pt"}
        )  # fmt: skip
    launch(jobs, num_ranks=num_ranks, limit_s=1500)


@functools.cache
def alone(name: str, precision: str, steps: int, folder: Path) -> dict[str, Tensor]:
    """Weights after so many steps of one process; at a learning rate of 0 those of the start."""
    changes = changing_run(name, precision, 1, max(steps, 1))
    if steps == 0:
        changes["optim_wrapper__optimizer"] = {"type": "SGD", "lr": 0.0}
    work_dir = folder / f"{name}-{precision}-{steps}"
    toy_driver.train(str(work_dir), **changes)
    return torch.load(f"{work_dir}.end0", weights_only=True)["weights"]


def flat(weights: dict[str, Tensor]) -> Tensor:
    return torch.cat([weights[name].double().flatten() for name in sorted(weights)])


def check_changing(folder: Path, way: tuple[int, int, str], name: str, base: Path) -> None:
    num_ranks, _, precision = way
    start = flat(alone(name, precision, 0, base))
    for steps, limit in zip(STEPS, LIMITS[precision], strict=True):
        expected = flat(alone(name, precision, steps, base))
        for rank in range(num_ranks):
            ends = torch.load(f"{folder}/{name}{steps}.end{rank}", weights_only=True)["weights"]
            off = float((flat(ends) - expected).norm() / (expected - start).norm())
            assert off <= limit, (name, steps, rank, off)


def check_methods(folder: Path, precision: str, names: tuple[str, ...]) -> None:
    found = torch.load(folder / "methods.pt", weights_only=True)
    off = {}
    for name in names:
        expected = on_one_rank(name, precision)
        assert torch.equal(found[name][0], expected[0])
        off[name] = [
            float((found[name][n] - expected[n]).norm() / (expected[n] - expected[0]).norm()) for n in (1, 2)
        ]
    (folder / "off.json").write_text(json.dumps(off))
    first, last = LIMITS[precision]
    assert not {name: pair for name, pair in off.items() if not pair[0] <= first}
    assert not {name: pair for name, pair in off.items() if not pair[1] <= last}


@functools.cache
def on_one_rank(name: str, precision: str) -> Tensor:
    return rank_methods.weights_after(name, precision)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one process."""
    return tmp_path_factory.mktemp("alone")


@needs_deepspeed
def test_some_methods_with_sharded_weights(tmp_path: Path, base: Path) -> None:
    way = (2, 3, "float32")
    start_all(tmp_path, way, QUICK, QUICK_CHANGING)
    check_methods(tmp_path, "float32", QUICK)
    for name in QUICK_CHANGING:
        check_changing(tmp_path, way, name, base)


@slow
@needs_deepspeed
@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way[0]}-zero{way[1]}-{way[2]}")
def test_all_methods(tmp_path: Path, base: Path, way: tuple[int, int, str]) -> None:
    _, stage, precision = way
    start_all(tmp_path, way, rank_methods.METHODS, tuple(CHANGING))
    if stage:
        check_methods(tmp_path, precision, rank_methods.METHODS)
    for name in CHANGING:
        check_changing(tmp_path, way, name, base)
