"""Training on streams: exact resumes, ranks, bad steps, balancing methods, and what a run refuses at its start."""

import json
from pathlib import Path
from typing import Any

import bev_world
import pytest
import stream_world
import torch
import toy_world
from torch.optim import SGD

from perception.checkpoint import CheckpointError, load_checkpoint
from perception.engine import BalancedOptimWrapper, EpochSampler, PerceptionRunner, StreamSampler, read_log
from perception.models.stream_memory import StreamMemory
from tests.engine.launching import launch

GROUPS = {"det": ["cls", "box", "velocity"], "seg": ["seg"]}
# Nothing that a sample meets depends on another sample, so two ranks do what one does.
EQUAL = {
    "model__img_backbone__norm_eval": True,
    "model__seg_head": None,
    "optim_wrapper": dict(type=BalancedOptimWrapper, optimizer=dict(type=SGD, lr=0.05)),
    "train_cfg": dict(by_epoch=False, max_iters=4, val_interval=0),
}


def train(folder: Path, *, stops: tuple[int, ...] = (), **changes: Any) -> PerceptionRunner:
    """Train in as many parts as there are stops, plus one."""
    for part, stop in enumerate((*stops, None)):
        runner = PerceptionRunner.from_cfg(stream_world.config(folder, resume=part > 0, **changes))
        runner.train(stop_after=stop)
    return runner


def fingerprint(folder: Path) -> dict[str, Any]:
    """As of any run, and what the streams carry."""
    return {**toy_world.fingerprint(folder), "streams": load_checkpoint(folder).stream_states}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five steps without a stop."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return folder


def test_stopping_in_mid_scene_changes_nothing(whole: Path, tmp_path: Path) -> None:
    train(tmp_path / "parts", stops=(1, 3))
    toy_world.assert_same(fingerprint(whole), fingerprint(tmp_path / "parts"))
    state = load_checkpoint(whole).stream_states
    assert state.keys() == {0}
    assert len(state[0]["tokens"]) == 2
    assert state[0]["groups"][0]["bev"].shape[0] == 2


def test_the_test_can_tell(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that loses what it carries at a stop is noticed, and would not even go on."""
    monkeypatch.setattr(StreamMemory, "load_state_dict", lambda self, state, device: None)
    with pytest.raises(ValueError, match="continues a stream in which .* had nothing"):
        train(tmp_path / "parts", stops=(1,))


@pytest.mark.slow
def test_evaluation_changes_nothing(whole: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", train_cfg=dict(by_epoch=False, max_iters=5, val_interval=1))
    plain, evaluated = fingerprint(whole), fingerprint(tmp_path / "run")
    assert len(evaluated.pop("val")) == 5
    assert plain.pop("val") == []
    for state in (plain, evaluated):
        state["optimizer"]["balancing"].pop("kpi_step")
    toy_world.assert_same(plain, evaluated)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"optim_wrapper__accumulative_counts": 2},
        {
            "train_dataloader__sampler__samples_per_epoch": 5,
            "train_cfg": dict(by_epoch=True, max_epochs=2, val_interval=0),
        },
    ],
    ids=["accumulation", "short epochs"],
)
def test_stops_in_other_loops(tmp_path: Path, changes: dict[str, Any]) -> None:
    train(tmp_path / "whole", **changes)
    train(tmp_path / "parts", stops=(1, 3), **changes)
    assert len(fingerprint(tmp_path / "whole")["log"]) >= 5
    toy_world.assert_same(fingerprint(tmp_path / "whole"), fingerprint(tmp_path / "parts"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "balancer",
    [
        {"name": "connection_strength", "groups": GROUPS},
        {"name": "cross_stitch", "groups": GROUPS},
        {"name": "rotograd", "lr": 0.05},
        {"name": "pcgrad"},
    ],
    ids=lambda balancer: balancer["name"],
)
def test_methods_that_run_or_build_the_model_otherwise(tmp_path: Path, balancer: dict[str, Any]) -> None:
    """Every group's forwards have a history of their own, part of the checkpoint as well."""
    changes = {
        "optim_wrapper__balancer": balancer,
        "train_cfg": dict(by_epoch=False, max_iters=4, val_interval=0),
    }
    train(tmp_path / "whole", **changes)
    train(tmp_path / "parts", stops=(2,), **changes)
    toy_world.assert_same(fingerprint(tmp_path / "whole"), fingerprint(tmp_path / "parts"))
    assert not any(line["skipped"] for line in fingerprint(tmp_path / "whole")["log"])
    groups = load_checkpoint(tmp_path / "whole").stream_states[0]["groups"]
    assert len(groups) == (2 if balancer["name"] == "connection_strength" else 1)
    assert groups[0]["bev"].shape[0] == (4 if balancer["name"] == "cross_stitch" else 2)


def test_a_bad_step_poisons_no_stream(tmp_path: Path) -> None:
    """The step is skipped, its slot's next frame begins without history, and all later steps are taken."""
    changes = {
        **EQUAL,
        "train_dataloader__dataset__bad": [("c", 1)],
        "train_dataloader__sampler": dict(type=StreamSampler),
    }
    runner = train(
        tmp_path, stops=(), **{**changes, "train_cfg": dict(by_epoch=False, max_iters=6, val_interval=0)}
    )
    lines = [line for line in read_log(tmp_path / "log.jsonl") if line["kind"] == "train"]
    assert [bool(line["skipped"]) for line in lines].count(True) == 1
    (skipped,) = (number for number, line in enumerate(lines) if line["skipped"])
    assert "c1" in lines[skipped]["non_finite"]["sample_tokens"]
    assert skipped < 5
    for parameter in runner.bare_model.parameters():
        assert parameter.isfinite().all()
    state = runner.bare_model.stream_memory.state_dict()
    assert all(group["bev"].isfinite().all() for group in state["groups"])


@pytest.mark.slow
def test_a_stop_right_after_a_bad_step(tmp_path: Path) -> None:
    """What is not carried on is part of the state too."""
    changes = {
        "train_dataloader__dataset__bad": [("c", 1)],
        "train_dataloader__sampler": dict(type=StreamSampler),
    }
    changes["train_cfg"] = dict(by_epoch=False, max_iters=6, val_interval=0)
    train(tmp_path / "whole", **changes)
    lines = fingerprint(tmp_path / "whole")["log"]
    (skipped,) = (line["step"] for line in lines if line["skipped"])
    train(tmp_path / "parts", stops=(skipped,), **changes)
    toy_world.assert_same(fingerprint(tmp_path / "whole"), fingerprint(tmp_path / "parts"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train_dataloader__sampler__max_frames": None},
            "streams have .*'max_frames': 3.* those here .*None",
        ),
        ({"train_dataloader__sampler__shuffle": False}, "those here .*'shuffle': False"),
        ({"train_dataloader__batch_size": 1}, "batch_size is 2 in the checkpoint and 1 here"),
        (
            {
                "train_dataloader__dataset": dict(
                    type=bev_world.BevDataset, num_samples=len(stream_world.FRAMES)
                ),
                "train_dataloader__sampler": dict(type=EpochSampler),
            },
            "it has no streams .sampler EpochSampler., the checkpoint holds some",
        ),
    ],
)
def test_changed_streams_are_refused(whole: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        PerceptionRunner.from_cfg(stream_world.config(whole, resume=True, **changes)).train()


def test_a_checkpoint_without_streams_is_refused(tmp_path: Path) -> None:
    changes = {
        "train_dataloader__dataset": dict(type=bev_world.BevDataset, num_samples=len(stream_world.FRAMES)),
        "train_dataloader__sampler": dict(type=EpochSampler),
        "train_cfg": dict(by_epoch=False, max_iters=1, val_interval=0),
    }
    train(tmp_path, **changes)
    with pytest.raises(
        CheckpointError, match="it has streams .sampler StreamSampler., the checkpoint holds none"
    ):
        PerceptionRunner.from_cfg(stream_world.config(tmp_path, resume=True)).train()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": dict(type=toy_world.ToyModel)}, "ToyModel carries no state from step to step"),
        ({"model__use_history": False}, "model.use_history is False, so nothing would be carried"),
    ],
)
def test_models_that_carry_nothing_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(tmp_path, **changes)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the results of all two-rank jobs."""
    folder = tmp_path_factory.mktemp("two ranks")
    plain = {"train_dataloader__batch_size": 1, "train_cfg__max_iters": 4}
    jobs = [
        {"work_dir": f"{folder}/whole", "changes": plain},
        {"work_dir": f"{folder}/parts", "changes": plain, "stop_after": 2},
        {"work_dir": f"{folder}/parts", "changes": plain, "resume": True},
        {
            "work_dir": f"{folder}/equal",
            "changes": {
                **plain,
                "model__img_backbone__norm_eval": True,
                "model__seg_head": None,
                "optim_wrapper__optimizer": {"type": "SGD", "lr": 0.05},
            },
        },
    ]
    launch([{"job": "train", "world": "streams", **json.loads(json.dumps(job))} for job in jobs])
    return folder


@pytest.mark.slow
def test_two_ranks_resume_each_its_own_streams(two: Path) -> None:
    toy_world.assert_same(fingerprint(two / "whole"), fingerprint(two / "parts"))
    state = load_checkpoint(two / "whole").stream_states
    assert state.keys() == {0, 1}
    assert state[0]["tokens"] != state[1]["tokens"]


@pytest.mark.slow
def test_two_ranks_do_what_one_does(two: Path, tmp_path: Path) -> None:
    train(tmp_path, **EQUAL)
    one, other = load_checkpoint(tmp_path), load_checkpoint(two / "equal")
    assert one.stream_states[0]["tokens"] == [
        token for rank in (0, 1) for token in other.stream_states[rank]["tokens"]
    ]
    rows = torch.cat([other.stream_states[rank]["groups"][0]["bev"] for rank in (0, 1)])
    torch.testing.assert_close(rows, one.stream_states[0]["groups"][0]["bev"], rtol=1e-4, atol=1e-4)
    for name, weight in one.model_state.items():
        torch.testing.assert_close(other.model_state[name], weight, rtol=1e-4, atol=1e-5, msg=name)
