"""Atomic, verified, plain: what a checkpoint promises, and F1 to F4 and F12."""

import json
import logging
import os
import pickle
import random
import resource
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from perception.checkpoint import (
    CheckpointError,
    find_checkpoint,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    verify_checkpoint,
    writer,
)
from perception.checkpoint.manifest import dump_manifest, read_manifest
from perception.utils import sha256_file

torch.set_num_threads(1)


def save(root: Path, step: int, *, size: int = 16, max_keep: int = 2, **changes: Any) -> Path:
    content = {
        "model_state": {"w": torch.full((size,), float(step)), "n": torch.tensor(step)},
        "optimizer_state": {"state": {0: {"m": torch.ones(size)}}, "param_groups": [{"betas": (0.9, 0.99)}]},
        "state": {"config_hash": "abc", "class_names": ["car"]},
        "rng_states": {0: {"torch": torch.get_rng_state()}},
        **changes,
    }
    return save_checkpoint(root, step=step, max_keep=max_keep, **content)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "a rün" / "checkpoints"


def hashes(step_dir: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in step_dir.iterdir()}


def in_child(work: Any) -> int:
    """Run work() in a forked process; returns its exit status as os.waitpid gives it."""
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1]


def test_round_trip_and_pointer(root: Path) -> None:
    for step in (1, 2, 3):
        save(root, step)
    assert sorted(path.name for path in root.iterdir()) == ["latest", "step_00000002", "step_00000003"]
    assert (root / "latest").read_text() == "step_00000003\n"
    loaded = load_checkpoint(root.parent)
    assert loaded.step == 3
    assert torch.equal(loaded.model_state["w"], torch.full((16,), 3.0))
    assert loaded.optimizer_state["param_groups"] == [{"betas": (0.9, 0.99)}]
    assert loaded.state["class_names"] == ["car"]
    manifest = verify_checkpoint(loaded.path)
    assert manifest["world_size"] == 1
    assert manifest["config_hash"] == "abc"


def test_every_kind_of_path(root: Path, tmp_path: Path) -> None:
    step_dir = save(root, 7)
    single = tmp_path / "weights.safetensors"
    save_file({"w": torch.zeros(2)}, single)
    for path in (step_dir, root, root.parent):
        assert find_checkpoint(path) == step_dir
    assert set(load_weights(single).model_state) == {"w"}
    with pytest.raises(CheckpointError, match="holds weights only"):
        load_checkpoint(single)


def test_views_and_shared_weights_are_saved(root: Path) -> None:
    base = torch.arange(6.0)
    save(root, 1, model_state={"view": base[2:4], "a": base, "b": base, "t": base.view(2, 3).T})
    weights = load_weights(root).model_state
    assert weights["view"].tolist() == [2, 3]
    assert weights["t"].tolist() == base.view(2, 3).T.tolist()


@pytest.mark.parametrize("max_keep", [1, 3])
def test_keep(root: Path, max_keep: int) -> None:
    for step in range(1, 6):
        save(root, step, max_keep=max_keep)
    assert len(list(root.glob("step_*"))) == max_keep
    with pytest.raises(ValueError, match="1 or more"):
        save(root, 6, max_keep=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_state": {"w": torch.tensor([1.0, float("nan")])}}, r"model\['w'\] holds NaN or infinity"),
        ({"optimizer_state": {"m": {"v": torch.tensor(float("inf"))}}}, r"optimizer\['m'\]\['v'\]"),
        ({"optimizer_state": {"f": print}}, "builtin_function_or_method"),
        ({"state": {"x": {1, 2}}}, "not JSON-able"),
        ({"model_state": {"w": [1]}}, "not a tensor"),
    ],
)
def test_unsuited_content_is_never_published(root: Path, changes: dict[str, Any], message: str) -> None:
    save(root, 1)
    with pytest.raises(CheckpointError, match=message):
        save(root, 2, **changes)
    assert find_checkpoint(root).name == "step_00000001"
    assert len(list(root.iterdir())) == 2


def test_disk_full(root: Path) -> None:
    """F1: with keep=1 the one checkpoint stays, byte for byte."""
    before = hashes(save(root, 1, max_keep=1))

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            save(root, 2, size=100_000, max_keep=1)
        except CheckpointError as error:
            is_clear = str(root / "step_00000002") in str(error) and "Free space there:" in str(error)
            os._exit(3 if is_clear else 4)

    assert os.waitstatus_to_exitcode(in_child(fill)) == 3
    assert [path.name for path in root.iterdir() if path.is_dir()] == ["step_00000001"]
    assert hashes(load_checkpoint(root).path) == before
    save(root, 2, max_keep=1)
    assert find_checkpoint(root).name == "step_00000002"


def test_killed_at_50_random_points(root: Path) -> None:
    """F2: whatever is left, the last or the last but one checkpoint loads and the next save works."""
    rng = random.Random(0)
    start = time.perf_counter()
    save(root, 1, size=30_000)
    duration = time.perf_counter() - start
    published, num_killed = 1, 0
    for _ in range(50):
        pid = os.fork()
        if pid == 0:
            try:
                for step in range(published + 1, published + 10):
                    save(root, step, size=30_000)
            finally:
                os._exit(0)
        time.sleep(rng.uniform(0, 2 * duration))
        os.kill(pid, signal.SIGKILL)
        num_killed += os.waitpid(pid, 0)[1] == signal.SIGKILL
        found = load_checkpoint(root)
        assert found.step >= published
        assert float(found.model_state["w"][0]) == found.step
        published = found.step
        save(root, published + 1, size=30_000)
        published += 1
        assert not list(root.glob(".tmp-*"))
    assert num_killed >= 45


def test_killed_at_every_system_call(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F2 without luck: die before each fsync, rename, removal; also when overwriting the same step."""
    save(root, 1)
    for step in (2, 1):
        for fatal in range(1, 40):
            calls = 0

            def counted(real: Any, fatal: int = fatal) -> Any:
                def call(*args: Any, **kwargs: Any) -> Any:
                    nonlocal calls
                    calls += 1
                    if calls == fatal:
                        os._exit(9)
                    return real(*args, **kwargs)

                return call

            def dying_save(step: int = step) -> None:
                for module, name in (
                    (os, "fsync"),
                    (os, "replace"),
                    (writer.shutil, "rmtree"),
                    (os, "rename"),
                ):
                    setattr(module, name, counted(getattr(module, name)))
                save(root, step, max_keep=1)

            status = os.waitstatus_to_exitcode(in_child(dying_save))
            found = load_checkpoint(root)
            assert found.step in (1, 2)
            if status == 0:
                break
            assert status == 9
        assert status == 0
        assert fatal > 8


@pytest.mark.parametrize("damage", ["truncate", "remove", "remove manifest"])
def test_fall_back(root: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    """F3: loudly, to the one before; and training from there keeps it."""
    save(root, 1)
    newest = save(root, 2)
    victim = newest / ("manifest.json" if damage == "remove manifest" else "optimizer.pt")
    if damage == "truncate":
        os.truncate(victim, victim.stat().st_size - 1)
    else:
        victim.unlink()
    with caplog.at_level(logging.WARNING):
        assert load_checkpoint(root).step == 1
    assert victim.name in caplog.text
    if damage != "remove manifest":
        assert "expected sha256" in caplog.text
        assert "actual" in caplog.text
    with pytest.raises(CheckpointError, match=victim.name):
        load_checkpoint(newest)
    save(root, 2)
    assert load_checkpoint(root).step == 2


def test_all_damaged(root: Path) -> None:
    (save(root, 1) / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="1 checkpoints, all damaged"):
        find_checkpoint(root)


def test_one_bit_in_every_file(root: Path) -> None:
    """F4: any flipped bit of 1,000 of the manifest and 40 of each other file is noticed."""
    step_dir = save(root, 1)
    rng = random.Random(1)
    for path in sorted(step_dir.iterdir()):
        content = path.read_bytes()
        is_manifest = path.name == "manifest.json"
        bits = rng.sample(range(len(content) * 8), 1000 if is_manifest else 40)
        for bit in bits:
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(bytes(flipped))
            with pytest.raises(CheckpointError) as caught:
                read_manifest(step_dir) if is_manifest else verify_checkpoint(step_dir)
            assert path.name in str(caught.value)
            assert "actual" in str(caught.value)
        path.write_bytes(content)
    verify_checkpoint(step_dir)


class _Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return (os.system, (f"touch '{self.marker}'",))


@pytest.mark.parametrize(
    "name", ["a.pth", "mp_rank_00_model_states.pt", ".metadata", "a.pkl", "a.ckpt", "a.bin"]
)
def test_pickles_are_refused_by_name(tmp_path: Path, name: str) -> None:
    """F12: there is no switch that loads them."""
    marker = tmp_path / "marker"
    (tmp_path / name).write_bytes(pickle.dumps(_Malicious(marker)))
    for load in (find_checkpoint, load_checkpoint, load_weights):
        with pytest.raises(CheckpointError, match="pickles.*Convert it to .safetensors.*convert-checkpoint"):
            load(tmp_path / name)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_rank0.pt", "model.safetensors"])
def test_a_pickle_inside_is_refused(root: Path, tmp_path: Path, name: str) -> None:
    """F12: even where the manifest was made to fit, nothing runs."""
    marker = tmp_path / "marker"
    step_dir = save(root, 1)
    for data in (pickle.dumps(_Malicious(marker), protocol=2), _torch_bytes(_Malicious(marker), tmp_path)):
        (step_dir / name).write_bytes(data)
        manifest = read_manifest(step_dir)
        manifest["files"][name] = {"sha256": sha256_file(step_dir / name), "size": len(data)}
        (step_dir / "manifest.json").write_bytes(dump_manifest(manifest))
        with pytest.raises(CheckpointError, match=name):
            load_checkpoint(step_dir)
    assert not marker.exists()


def test_code_text_in_the_state_stays_text(root: Path, tmp_path: Path) -> None:
    """F12: what MMEngine would have executed from meta['config'] is just a string here."""
    marker = tmp_path / "marker"
    text = f"__import__('os').system('touch {marker}')"
    step_dir = save(root, 1, state={"config": text})
    assert load_checkpoint(step_dir).state["config"] == text
    assert not marker.exists()


def test_a_manifest_cannot_name_other_folders(root: Path) -> None:
    step_dir = save(root, 1)
    manifest = read_manifest(step_dir)
    manifest["files"]["../x"] = manifest["files"]["state.json"]
    (step_dir / "manifest.json").write_bytes(dump_manifest(manifest))
    with pytest.raises(CheckpointError, match="outside its folder"):
        verify_checkpoint(step_dir)


@pytest.mark.parametrize("name", ["nothing", "notes.txt"])
def test_what_is_not_a_checkpoint(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text(json.dumps({}))
    with pytest.raises(CheckpointError, match="no such checkpoint|is not a checkpoint"):
        find_checkpoint(tmp_path / name)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        find_checkpoint(tmp_path)


def _torch_bytes(content: Any, folder: Path) -> bytes:
    torch.save(content, folder / "x")
    return (folder / "x").read_bytes()
