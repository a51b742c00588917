"""F5 on one rank: stopping anywhere and resuming is bit-equal to not stopping."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_world

from perception.checkpoint import CheckpointError
from perception.engine import PerceptionRunner, WorkDirError
from perception.engine.balanced_backward import BalancedBackward

ITERS = dict(by_epoch=False, max_iters=12, val_interval=4)
EPOCHS = dict(by_epoch=True, max_epochs=2, val_interval=1)


def run(work_dir: Path, *, stops: tuple[int, ...] = (), **changes: Any) -> dict[str, Any]:
    """Train in as many parts as there are stops, plus one."""
    for part, stop in enumerate((*stops, None)):
        cfg = toy_world.config(work_dir, resume=part > 0, **changes)
        PerceptionRunner.from_cfg(cfg).train(stop_after=stop)
    return toy_world.fingerprint(work_dir)


# An epoch has 5 steps: 3 is inside it, 4 evaluates, 5 is its end.
@pytest.mark.parametrize("stops", [(3,), (4,), (5,), (1, 2, 9)])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_iterations(tmp_path: Path, stops: tuple[int, ...], num_workers: int) -> None:
    changes = {"train_cfg": ITERS, "train_dataloader__num_workers": num_workers}
    whole = run(tmp_path / "whole", **changes)
    parts = run(tmp_path / "parts", stops=stops, **changes)
    assert len(whole["log"]) == 12
    assert [step for step, _ in whole["val"]] == [4, 8, 12]
    toy_world.assert_same(whole, parts)


def test_workers_change_nothing(tmp_path: Path) -> None:
    alone = run(tmp_path / "alone")
    for persistent in (False, True):
        loader = {"train_dataloader__num_workers": 2, "train_dataloader__persistent_workers": persistent}
        toy_world.assert_same(alone, run(tmp_path / f"workers{persistent}", **loader))


def test_epochs_and_accumulation(tmp_path: Path) -> None:
    changes = {"train_cfg": EPOCHS, "optim_wrapper__accumulative_counts": 2}
    whole = run(tmp_path / "whole", **changes)
    # Step 3 is in the middle of an accumulation window; the run goes on to its end, step 4.
    parts = run(tmp_path / "parts", stops=(3, 5), **changes)
    assert len(whole["log"]) == 10
    toy_world.assert_same(whole, parts)


def test_fused_optimiser(tmp_path: Path) -> None:
    """The shipped schedules' optimiser, whose CPU kernel is another one."""
    changes = {"optim_wrapper__optimizer": dict(type=torch.optim.AdamW, lr=1e-2, fused=True)}
    whole = run(tmp_path / "whole", **changes)
    parts = run(tmp_path / "parts", stops=(3, 7), **changes)
    toy_world.assert_same(whole, parts)


@pytest.mark.parametrize(
    "balancer",
    [
        "pcgrad",
        "gradvac",
        "famo",
        {"name": "gradnorm"},
        {"name": "wpcgrad-dtp"},
        {"name": "amtl", "potentials": {"det": 2.0, "seg": 3.0}},
        {"name": "uncertainty+mclgs+cagrad", "c": 0.5},
    ],
    ids=str,
)
def test_balancers(tmp_path: Path, balancer: Any) -> None:
    """Stopped in mid-epoch, at an epoch's end right before its evaluation, and in mid-window."""
    changes = {
        "train_cfg": dict(by_epoch=True, max_epochs=3, val_interval=1),
        "optim_wrapper__balancer": balancer,
        "optim_wrapper__accumulative_counts": 2,
    }
    whole = run(tmp_path / "whole", **changes)
    parts = run(tmp_path / "parts", stops=(3, 5, 10), **changes)
    assert len(whole["log"]) == 15
    toy_world.assert_same(whole, parts)


def test_reused_coefficients(tmp_path: Path) -> None:
    changes = {"optim_wrapper__balancer": "mgda", "optim_wrapper__interval": 3}
    whole = run(tmp_path / "whole", **changes)
    parts = run(tmp_path / "parts", stops=(4, 8), **changes)
    toy_world.assert_same(whole, parts)


@pytest.mark.parametrize("interval", [1, 3])
def test_a_task_is_absent_where_the_run_stops(tmp_path: Path, interval: int) -> None:
    """It has no coefficient then, and the checkpoint must say so without a NaN."""
    changes = {
        "optim_wrapper__balancer": "pcgrad",
        "optim_wrapper__interval": interval,
        "train_dataloader__dataset__seg_every": 5,
        "train_cfg": dict(by_epoch=False, max_iters=8, val_interval=0),
    }
    whole = run(tmp_path / "whole", **changes)
    stops = tuple(range(1, 8))
    parts = run(tmp_path / "parts", stops=stops, **changes)
    assert {len(line["tasks"]) for line in whole["log"]} == {1, 2}
    toy_world.assert_same(whole, parts)


def test_scores_reach_the_balancer_once(tmp_path: Path) -> None:
    """The checkpoint of a step is older than the evaluation at that step; a resume makes up for it."""
    balancer = {"name": "amtl", "potentials": {"det": 2.0, "seg": 3.0}}
    changes = {
        "train_cfg": dict(by_epoch=True, max_epochs=2, val_interval=1),
        "optim_wrapper__balancer": balancer,
    }
    seen: list[tuple[int, dict[str, float]]] = []

    def run_whole() -> None:
        runner = PerceptionRunner.from_cfg(toy_world.config(tmp_path, **changes))
        real = BalancedBackward.update_kpis

        def spy(self: Any, metrics: Any, *, step: int) -> None:
            before = self._kpi_step
            real(self, metrics, step=step)
            if self._kpi_step != before:
                seen.append((step, dict(metrics)))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(BalancedBackward, "update_kpis", spy)
            runner.train()

    run_whole()
    assert [step for step, _ in seen] == [5, 10]


def test_scores_of_an_evaluation_after_the_checkpoint_are_not_lost(tmp_path: Path) -> None:
    """A crash behind the evaluation: the newest checkpoint is from before it, the log has its scores."""
    changes = {
        "train_cfg": dict(by_epoch=True, max_epochs=3, val_interval=1),
        "optim_wrapper__balancer": {"name": "amtl", "potentials": {"det": 2.0, "seg": 3.0}},
        "default_hooks": dict(checkpoint=dict(interval=5)),
    }
    whole = run(tmp_path / "whole", **changes)
    parts = tmp_path / "parts"
    PerceptionRunner.from_cfg(toy_world.config(parts, **changes)).train(stop_after=6)
    shutil.rmtree(parts / "checkpoints" / "step_00000006")
    (parts / "checkpoints" / "latest").write_text("step_00000005")
    PerceptionRunner.from_cfg(toy_world.config(parts, resume=True, **changes)).train()
    toy_world.assert_same(whole, toy_world.fingerprint(parts))


def test_a_run_that_started_from_other_weights_goes_on_from_its_own(tmp_path: Path) -> None:
    run(tmp_path / "other", randomness__seed=4)
    changes = {"load_from": str(tmp_path / "other")}
    whole = run(tmp_path / "whole", **changes)
    parts = run(tmp_path / "parts", stops=(3,), **changes)
    assert len(parts["log"]) == 12
    toy_world.assert_same(whole, parts)


def test_the_test_can_tell(tmp_path: Path) -> None:
    """Another seed, and a run without its random numbers restored, are both noticed."""
    whole = run(tmp_path / "whole")
    other = run(tmp_path / "other", randomness__seed=4)
    with pytest.raises(AssertionError):
        toy_world.assert_same(whole["log"], other["log"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PerceptionRunner, "restore_pending_rng", lambda self: None)
        forgetful = run(tmp_path / "forgetful", stops=(3,))
    with pytest.raises(AssertionError):
        toy_world.assert_same(whole["log"], forgetful["log"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_dataloader__batch_size": 5}, "batch_size is 2 in the checkpoint and 5 here"),
        ({"randomness__seed": 9}, "seed is 3 in the checkpoint and 9 here"),
        ({"train_dataloader__dataset__num_samples": 11}, "num_samples is 10 in the checkpoint and 11 here"),
        ({"model__width": 9}, "of another shape: det.weight .1, 8. .here .1, 9.."),
        ({"param_scheduler": None}, "0 learning-rate schedules, the checkpoint 2"),
    ],
)
def test_changed_runs_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    run(tmp_path / "run", train_cfg=dict(by_epoch=False, max_iters=5))
    cfg = toy_world.config(tmp_path / "run", resume=True, **changes)
    with pytest.raises(CheckpointError, match=message):
        PerceptionRunner.from_cfg(cfg).train()


def test_changed_vocabulary_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "run", train_cfg=dict(by_epoch=False, max_iters=5))
    with monkeypatch.context() as patch:
        patch.setattr(toy_world.ToyDataset, "METAINFO", {"classes": ("car", "van")})
        for changes in (
            {"resume": True},
            {"load_from": str(tmp_path / "run"), "work_dir": str(tmp_path / "new")},
        ):
            cfg = toy_world.config(changes.pop("work_dir", tmp_path / "run"), **changes)
            with pytest.raises(
                CheckpointError, match=r"only in the config \['van'\], only in the checkpoint \['bus'\]"
            ):
                PerceptionRunner.from_cfg(cfg).train()
    monkeypatch.setattr(toy_world.ToyModel, "task_names", ("seg", "det"))
    with pytest.raises(CheckpointError, match="tasks differ: same names in another order"):
        PerceptionRunner.from_cfg(toy_world.config(tmp_path / "run", resume=True)).train()


def test_a_used_folder_needs_resume(tmp_path: Path) -> None:
    run(tmp_path / "run", train_cfg=dict(by_epoch=False, max_iters=5))
    with pytest.raises(WorkDirError, match="holds a run already. Continue it with --resume"):
        run(tmp_path / "run")


def test_resume_without_a_checkpoint_starts(tmp_path: Path) -> None:
    cfg = toy_world.config(tmp_path / "run", resume=True)
    PerceptionRunner.from_cfg(cfg).train()
    toy_world.assert_same(toy_world.fingerprint(tmp_path / "run"), run(tmp_path / "again"))
