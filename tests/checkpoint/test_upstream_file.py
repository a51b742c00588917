"""Official files: what is read, and that nothing in them runs."""

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from perception.checkpoint import CheckpointError
from perception.checkpoint.upstream_file import read_upstream, write_upstream
from perception.utils import sha256_file

STATE = {"img_neck.a": torch.arange(6.0).view(2, 3), "img_neck.n": torch.tensor(3)}
FORMATS = {"zip": True, "legacy": False}


def touch(path):
    Path(path).touch()


class Touch:
    """Unpickled by an ordinary loader, it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (touch, (self.path,))


class Shell(Touch):
    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def write(path, content, is_zip=True):
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    return path


def same(found, expected=STATE):
    return list(found) == list(expected) and all(torch.equal(found[k], v) for k, v in expected.items())


@pytest.mark.parametrize("is_zip", FORMATS.values(), ids=FORMATS)
def test_what_mmcv_writes_is_read(tmp_path, is_zip):
    state = OrderedDict(STATE)
    state._metadata = OrderedDict({"": {"version": 1}})  # as nn.Module.state_dict() leaves it
    moments = {0: {"step": 3, "exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)}}
    optimizer = {"state": moments, "param_groups": [{"lr": 2e-4, "betas": (0.9, 0.999), "params": [0]}]}
    meta = {
        "epoch": 24, "iter": np.int64(84408), "time": "Mon", "mmcv_version": "1.4.0", "CLASSES": ("car", "truck"),
        "best": np.float32(0.25), "big": np.dtype(">f8").type(1.5), "flag": np.bool_(True), "hook_msgs": {},
    }  # fmt: skip
    content = {"meta": meta, "state_dict": state, "optimizer": optimizer}
    path = write(tmp_path / "official.pth", content, is_zip)
    found = read_upstream(path)
    assert same(found.tensors)
    assert found.taken_from == "state_dict"
    assert found.ignored == ("optimizer",)
    assert found.sha256 == sha256_file(path)
    assert found.meta == {**meta, "iter": 84408, "best": 0.25, "big": 1.5, "flag": True}
    assert [type(found.meta[key]) for key in ("iter", "best", "flag")] == [int, float, bool]


@pytest.mark.parametrize(
    ("content", "taken_from"),
    [
        (STATE, ""),
        ({"model": STATE}, "model"),
        ({"ema": {"state_dict": STATE}}, "ema.state_dict"),
        ({"state_dict": STATE, "ema": {"img_neck.a": torch.zeros(1)}}, "state_dict"),
    ],
)
def test_wrappers(tmp_path, content, taken_from):
    found = read_upstream(write(tmp_path / "x.pth", content))
    assert same(found.tensors)
    assert found.taken_from == taken_from


def test_safetensors_with_official_names(tmp_path):
    save_file(STATE, tmp_path / "x.safetensors")
    assert same(dict(sorted(read_upstream(tmp_path / "x.safetensors").tensors.items())))


@pytest.mark.parametrize("is_zip", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize(("kind", "name"), [(Touch, r"tests\S+\.touch"), (Shell, r"posix\.system")])
@pytest.mark.parametrize("place", ["meta", "state_dict", "top"])
def test_code_is_refused_by_name_and_never_runs(tmp_path, is_zip, kind, name, place):
    victim = tmp_path / "touched"
    bad = kind(victim)
    content = {
        "meta": {"meta": {"x": bad}, "state_dict": STATE},
        "state_dict": {"state_dict": {**STATE, "x": bad}},
        "top": bad,
    }[place]
    path = write(tmp_path / "bad.pth", content, is_zip)
    with pytest.raises(CheckpointError, match=f"bad.pth is refused: it names {name},.*keep .*'state_dict'"):
        read_upstream(path)
    assert not victim.exists()
    function, arguments = bad.__reduce__()
    function(*arguments)
    assert victim.exists()  # the trap works


def test_a_bare_pickle_is_refused(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(Shell(tmp_path / "touched"), protocol=2))
    with pytest.raises(CheckpointError, match="posix.system"):
        read_upstream(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match="x.pkl"):
        read_upstream(path)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Path("x"), r"pathlib\.\w+"),
        (np.zeros(2), r"numpy\.(_?core)\.multiarray\._reconstruct"),
        (getattr, "getattr"),
    ],
)
def test_other_types_are_named(tmp_path, value, name):
    with pytest.raises(CheckpointError, match=f"names {name},"):
        read_upstream(write(tmp_path / "x.pth", {"meta": {"v": value}, "state_dict": STATE}))


def numpy_scalar(code, state, data):
    """A pickle that builds a numpy scalar by hand, as an attacker would; in a zip as torch writes it."""

    class Kind:
        def __reduce__(self):
            return (np.dtype, (code, False, True), state)

    class Scalar:
        def __reduce__(self):
            return (np.core.multiarray.scalar, (Kind(), data))

    return Scalar()


@pytest.mark.parametrize(
    ("code", "data"),
    [
        ("O8", b"\x10" * 8),
        ("U3", b"abc"),
        ("V8", b"12345678"),
        ("f8", b"123"),
        ("f8", "text"),
        ("M8", b"12345678"),
    ],
)
def test_numpy_scalars_other_than_numbers_are_refused(tmp_path, code, data):
    """With numpy's own constructors, an object dtype without its flag would read bytes as a pointer."""
    content = {
        "meta": {"v": numpy_scalar(code, (3, "|", None, None, None, -1, -1, 0), data)},
        "state_dict": STATE,
    }
    with pytest.raises(CheckpointError, match="x.pth"):
        read_upstream(write(tmp_path / "x.pth", content))


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="none.pth does not exist"):
        read_upstream(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_upstream(tmp_path)
    for content, found in (
        ([1, 2], "list"),
        ({"a": {"b": 1}, "c": 2}, "'a', 'c'"),
        ({}, ""),
        (STATE["img_neck.a"], "Tensor"),
    ):
        with pytest.raises(CheckpointError, match=f"holds no state dict.*found: {found}"):
            read_upstream(write(tmp_path / "x.pth", content))
    with pytest.raises(CheckpointError, match=r"img_neck.a.* holds NaN"):
        read_upstream(
            write(tmp_path / "x.pth", {"state_dict": {"img_neck.a": torch.tensor([0, float("nan")])}})
        )
    with pytest.raises(CheckpointError, match="sparse"):
        read_upstream(write(tmp_path / "x.pth", {"state_dict": {"img_neck.a": torch.eye(2).to_sparse()}}))


@pytest.mark.parametrize("is_zip", FORMATS.values(), ids=FORMATS)
def test_damaged_files_give_one_clear_error(tmp_path, is_zip):
    whole = write(
        tmp_path / "whole.pth", {"state_dict": STATE, "meta": {"iter": np.int64(1)}}, is_zip
    ).read_bytes()
    path = tmp_path / "cut.pth"
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="cut.pth"):
            read_upstream(path)
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 400), 3):
            damaged[place] = int(rng.integers(256))
        path.write_bytes(bytes(damaged))
        try:
            read_upstream(path)
        except CheckpointError as error:
            assert "cut.pth" in str(error)  # noqa: PT017  some damage changes nothing that matters
    path.write_bytes(b"\x00\x01not a checkpoint")
    with pytest.raises(CheckpointError, match="cut.pth"):
        read_upstream(path)
    path.with_suffix(".safetensors").write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError, match="cut.safetensors"):
        read_upstream(path.with_suffix(".safetensors"))


def test_other_zip_archives_are_refused(tmp_path):
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match="x.pth"):
        read_upstream(path)


def test_what_is_written_holds_tensors_and_plain_values(tmp_path):
    shared = torch.arange(8.0)
    state = {
        "img_neck.a": shared[:4],
        "img_neck.b": shared[4:],
        "img_neck.c": torch.nn.Parameter(torch.ones(2)),
    }
    path = tmp_path / "out.pth"
    write_upstream(path, state, {"CLASSES": ["car"], "epoch": 3})
    loaded = torch.load(path, weights_only=True)
    assert list(loaded) == ["state_dict", "meta"]
    assert loaded["meta"] == {"CLASSES": ["car"], "epoch": 3}
    assert same(loaded["state_dict"], {k: v.detach() for k, v in state.items()})
    assert {type(value) for value in loaded["state_dict"].values()} == {torch.Tensor}
    assert same(read_upstream(path).tensors, {k: v.detach() for k, v in state.items()})
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        code = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    assert pickle.dumps(0, protocol=2)[:2] == code[:2]  # protocol 2, which the official stack's Python reads
    with pytest.raises(CheckpointError, match="meta"):
        write_upstream(path, state, {"x": Path("x")})
