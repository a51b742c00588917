"""What a run's `log.jsonl` and TensorBoard tell of its balancing, for methods of every kind."""

from pathlib import Path
from typing import Any

import pytest
import toy_world
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from perception.engine import read_log, train

TASKS = {"det", "seg"}
SPECS: dict[str, Any] = {"amtl": {"name": "amtl", "potentials": {"det": 2.0, "seg": 3.0}}}
OWN = {
    "sum": set(),
    "pcgrad": set(),
    "mclgs": {"MCLGSWeighting/pacing"},
    "wpcgrad-dtp": {
        *(f"WPCGradWeighting/priorities/{task}" for task in TASKS),
        "WPCGradWeighting/projected/det/seg",
        "WPCGradWeighting/projected/seg/det",
    },
    "amtl": {f"AchievementWeights/achievement/{task}" for task in TASKS},
}
"""What of a method's own numbers there is beside those that all methods have."""


@pytest.mark.parametrize("name", OWN)
def test_log_and_tensorboard(tmp_path: Path, name: str) -> None:
    changes = {"optim_wrapper__balancer": SPECS.get(name, name), "visualizer": None,
               "optim_wrapper__watch": {"gram_interval": 1}, "train_cfg": {"by_epoch": False, "max_iters": 6,
               "val_interval": 2}, "default_hooks": {"tensorboard": {"interval": 1}}}  # fmt: skip
    run = train(toy_world.config(tmp_path / "run", **changes))
    lines = [line for line in read_log(run / "log.jsonl") if line["kind"] == "train"]
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    for line in lines:
        balance = line["balance"]
        assert line["tasks"].keys() == balance["grad_norms"].keys() == TASKS
        assert balance["cosines"].keys() == {"det/seg"}
        assert balance["conflict_share"] == float(balance["cosines"]["det/seg"] < 0)
        if name != "sum":  # its weights and coefficients are 1
            assert balance["weights"].keys() == balance["coefficients"].keys() == TASKS
    always = {"cosines/det/seg", "conflict_share", *(f"grad_norms/{task}" for task in TASKS)}
    if name != "sum":
        always |= {f"{kind}/{task}" for kind in ("weights", "coefficients") for task in TASKS}
    assert {f"balance/{key}" for key in always | OWN[name]} | {f"task/{task}" for task in TASKS} <= tags
    points = {point.step: point.value for point in events.Scalars("balance/cosines/det/seg")}
    assert points == pytest.approx({line["step"]: line["balance"]["cosines"]["det/seg"] for line in lines})
    if name == "wpcgrad-dtp":
        for line in lines:
            part = line["balance"]["WPCGradWeighting"]
            assert set(part["order"]) == set(part["priorities"]) == TASKS
            has_conflict = line["balance"]["conflict_share"] > 0
            # Of two tasks the one that is not the first anchor is projected.
            assert part["projected"] == ([part["order"][::-1]] if has_conflict else [])
