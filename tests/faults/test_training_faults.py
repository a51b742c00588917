"""F6 to F8 and F17 on one rank: signals, non-finite steps, one work directory for one run."""

import multiprocessing
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_world

from perception.checkpoint import CheckpointError, find_checkpoint, load_checkpoint
from perception.engine import PerceptionRunner, TrainingTerminated, WorkDirError, read_log, work_dir
from perception.engine.work_dir import WorkDirLock, prepare_work_dir


def build(work_dir: Path, **changes: Any) -> PerceptionRunner:
    return PerceptionRunner.from_cfg(toy_world.config(work_dir, **changes))


def weights_and_moments(runner: PerceptionRunner) -> dict[str, Any]:
    state = runner.optim_wrapper.optimizer.state_dict()
    copied = {key: value.clone() for key, value in runner.bare_model.state_dict().items()}
    moments = {i: {k: v.clone() for k, v in s.items()} for i, s in state["state"].items()}
    return {"model": copied, "moments": moments}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_saves_and_exits_143(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """F6; the handlers that were there before are put back."""
    before = signal.getsignal(number)
    whole = build(tmp_path / "whole")
    whole.train()
    with monkeypatch.context() as patch:
        real = toy_world.ToyModel.forward

        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            if runner.iter == 6 and self.training:
                os.kill(os.getpid(), number)
            return real(self, *args, **kwargs)

        patch.setattr(toy_world.ToyModel, "forward", forward)
        runner = build(tmp_path / "parts")
        with pytest.raises(TrainingTerminated) as stopped:
            runner.train()
    assert stopped.value.code == 143
    assert load_checkpoint(tmp_path / "parts").step == 7
    assert signal.getsignal(number) == before
    build(tmp_path / "parts", resume=True).train()
    toy_world.assert_same(
        toy_world.fingerprint(tmp_path / "whole"), toy_world.fingerprint(tmp_path / "parts")
    )


def test_a_signal_to_every_process_of_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a job manager sends it: to the loader's workers as well, which go on until the step is done."""
    real = toy_world.ToyModel.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if runner.iter == 6 and self.training:
            workers = [child.pid for child in multiprocessing.active_children()]
            assert workers
            # From another process: workers leave in peace when their parent tells them to.
            subprocess.run(["kill", "-TERM", *map(str, (*workers, os.getpid()))], check=True)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(toy_world.ToyModel, "forward", forward)
    runner = build(tmp_path, train_dataloader__num_workers=2)
    with pytest.raises(TrainingTerminated):
        runner.train()
    assert load_checkpoint(tmp_path).step == 7


def test_signal_during_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The evaluation is cut off, and the resumed run makes up for it."""
    with monkeypatch.context() as patch:
        real = toy_world.ToyModel.forward

        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            if runner.iter == 8 and not self.training:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(self, *args, **kwargs)

        patch.setattr(toy_world.ToyModel, "forward", forward)
        runner = build(tmp_path / "parts")
        with pytest.raises(TrainingTerminated):
            runner.train()
    assert load_checkpoint(tmp_path / "parts").step == 8
    build(tmp_path / "parts", resume=True).train()
    build(tmp_path / "whole").train()
    toy_world.assert_same(
        toy_world.fingerprint(tmp_path / "whole"), toy_world.fingerprint(tmp_path / "parts")
    )


@pytest.mark.parametrize("kind", ["loss", "grad"])
def test_non_finite_step_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """F7: weights, moments and running statistics stay; task, step, samples and parameters are named."""
    runner = build(tmp_path / "run", train_dataloader__dataset__bad={4: kind})
    snapshots: dict[int, Any] = {}
    real = PerceptionRunner.call_hook

    def call_hook(self: PerceptionRunner, name: str, **kwargs: Any) -> None:
        if name in ("before_train_iter", "at_step_boundary"):
            snapshots[2 * self.iter + (name == "before_train_iter")] = weights_and_moments(self)
        real(self, name, **kwargs)

    monkeypatch.setattr(PerceptionRunner, "call_hook", call_hook)
    runner.train()
    lines = [line for line in read_log(tmp_path / "run" / "log.jsonl") if line["kind"] == "train"]
    skipped = [line for line in lines if line["skipped"]]
    assert len(lines) == 12
    assert len(skipped) in (2, 3)
    for line in skipped:
        event = line["non_finite"]
        kind_name = {"loss": "loss", "grad": "gradient"}[kind]
        assert (event["kind"], event["tasks"], event["in_row"]) == (kind_name, ["seg"], 1)
        assert "sample4" in event["sample_tokens"]
        assert ("seg.weight" in event["parameters"]) == (kind == "grad")
        toy_world.assert_same(snapshots[2 * line["step"] - 1], snapshots[2 * line["step"]])
    assert f"step {skipped[0]['step']}: non-finite" in caplog.text
    assert "sample4" in caplog.text
    fine = next(line["step"] for line in lines if not line["skipped"])
    assert not torch.equal(
        snapshots[2 * fine - 1]["model"]["seg.weight"], snapshots[2 * fine]["model"]["seg.weight"]
    )


def test_diagnosis_leaves_the_random_numbers_alone(tmp_path: Path) -> None:
    """A step that is run again to find the guilty task must not shift what follows: resume over it is exact."""
    bad = {"train_dataloader__dataset__bad": {4: "grad"}}
    build(tmp_path / "whole", **bad).train()
    skipped = [line["step"] for line in read_log(tmp_path / "whole" / "log.jsonl") if line.get("skipped")]
    build(tmp_path / "parts", **bad).train(stop_after=skipped[0] - 1)
    build(tmp_path / "parts", resume=True, **bad).train(stop_after=skipped[0])
    build(tmp_path / "parts", resume=True, **bad).train()
    toy_world.assert_same(
        toy_world.fingerprint(tmp_path / "whole"), toy_world.fingerprint(tmp_path / "parts")
    )


def test_ten_in_a_row_end_the_run(tmp_path: Path) -> None:
    """F8: the error names the last good checkpoint, and no bad one is ever published."""
    build(tmp_path / "run").train(stop_after=2)
    all_bad = {index: "loss" for index in range(10)}
    hooks = {"checkpoint": {"interval": 1}}
    runner = build(tmp_path / "run", resume=True, train_dataloader__dataset__bad=all_bad, default_hooks=hooks)
    good = find_checkpoint(tmp_path / "run")
    before = load_checkpoint(good)
    with pytest.raises(
        FloatingPointError, match=r"step 12: non-finite loss in task seg.*Last good checkpoint: .*step_"
    ):
        runner.train()
    assert runner.iter == 11
    after = load_checkpoint(tmp_path / "run")
    toy_world.assert_same(before.model_state, after.model_state)


def test_non_finite_weights_are_not_published(tmp_path: Path) -> None:
    runner = build(tmp_path / "run", default_hooks={"checkpoint": {"interval": 4}})
    real = runner.call_hook

    def poison(name: str, **kwargs: Any) -> None:
        if name == "at_step_boundary" and runner.iter == 8:
            with torch.no_grad():
                runner.bare_model.det.weight[0, 0] = float("inf")
        real(name, **kwargs)

    runner.call_hook = poison
    with pytest.raises(CheckpointError, match=r"model\['det.weight'\] holds NaN or infinity"):
        runner.train()
    assert load_checkpoint(tmp_path / "run").step == 4


def test_disk_full_in_training(tmp_path: Path) -> None:
    """F1 in a run: exit with the path and free space, the checkpoint before survives, resume continues."""
    runner = build(tmp_path / "run", default_hooks={"checkpoint": {"interval": 4, "max_keep": 1}})
    real = os.fsync

    def full(descriptor: int) -> None:
        if runner.iter == 8:
            raise OSError(28, "No space left on device")
        real(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            CheckpointError, match="step 8 could not be written: .*No space left.*Free space there"
        ):
            runner.train()
    saved = load_checkpoint(tmp_path / "run")
    assert saved.step == 4
    build(tmp_path / "run", resume=True).train()
    build(tmp_path / "whole").train()
    toy_world.assert_same(toy_world.fingerprint(tmp_path / "whole"), toy_world.fingerprint(tmp_path / "run"))


def test_second_process_is_refused_with_the_pid(tmp_path: Path) -> None:
    """F17: and a dead process's lock is taken over."""
    script = (
        "import runpy, sys, time\n"
        "lock = runpy.run_path(sys.argv[1])['WorkDirLock']\n"
        "with lock(sys.argv[2]):\n    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, work_dir.__file__, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ},
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(WorkDirError, match=f"in use by process {holder.pid}"):
            build(tmp_path).train()
        assert not (tmp_path / "log.jsonl").exists()
    finally:
        holder.kill()
        holder.communicate()
    assert (tmp_path / ".lock").read_text() == f"{holder.pid}\n"
    with WorkDirLock(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


def test_odd_paths(tmp_path: Path) -> None:
    folder = tmp_path / "ein Lauf – №1 'ü' [x]"
    build(folder).train()
    assert find_checkpoint(folder).parent.parent == folder
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(WorkDirError, match="work_dir is not a folder"):
            build(path)


def test_read_only_work_dir(tmp_path: Path) -> None:
    """Before anything is built; as root the check runs in a child with another user's rights."""
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    for parent in [folder, *folder.parents]:
        if os.getuid() == 0 and parent != folder and parent.is_relative_to(tmp_path.parents[1]):
            parent.chmod(parent.stat().st_mode | stat.S_IROTH | stat.S_IXOTH)
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            prepare_work_dir(folder)
            status = 1
        except WorkDirError as error:
            status = 0 if "not writable" in str(error) and str(folder) in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
