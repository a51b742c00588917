"""Python and JSON that the pages show: it runs, and the balancers in it can be built."""

import ast
import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perception.balancing import build_balancer
from tests.docs.blocks import ROOT, blocks


def with_checks(source: str) -> str:
    """The source, `check_balancer(...)` after each line that sets a config's balancer."""
    lines = source.splitlines()
    for statement in reversed(ast.parse(source).body):
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "balancer":
            lines.insert(statement.end_lineno, "check_balancer(balancer)")
    return "\n".join(lines)


def in_a_vehicle() -> dict[str, Any]:
    """Small exported models in `exports`, and the values that a vehicle would bring."""
    pytest.importorskip("onnx", reason="exported models are made with onnx")
    pytest.importorskip("onnxruntime", reason="exported models run in onnxruntime")
    from tests.runtime.frames import make_frame
    from tests.runtime.toy_export import write_bevformer, write_fcos

    write_bevformer(Path("exports/nano"))
    write_fcos(Path("exports/fcos_nano"))
    frame = make_frame(0)
    return {
        "rgb": {name: camera.image for name, camera in frame.cameras.items()},
        "k": {name: camera.intrinsics for name, camera in frame.cameras.items()},
        "translation": dict.fromkeys(frame.cameras, (1.0, 0.0, 1.5)),
        "rotation": dict.fromkeys(frame.cameras, (0.5, -0.5, 0.5, -0.5)),
        "lidar2ego": frame.lidar2ego,
        "ego2global": frame.ego2global,
        "seconds": frame.timestamp,
        "image": np.zeros((12, 16, 3), np.uint8),
    }


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.place)
def test_python_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = in_a_vehicle() if "perception.runtime" in block.text else {}
    file = tmp_path / "block.py"
    file.write_text(with_checks(block.text), encoding="utf-8")
    # What fragments of a config change: dicts.
    config: dict[str, Any] = {"optim_wrapper": {}, "model": {}}
    after = runpy.run_path(str(file), init_globals={**config, **values, "check_balancer": build_balancer})
    if balancer := after["optim_wrapper"].get("balancer"):
        build_balancer(balancer)


def test_a_wrong_balancer_is_found(tmp_path):
    source = with_checks('balancer = "pcgrad"\nbalancer = "pcgard"\nbalancer = "sum"\n')
    (tmp_path / "block.py").write_text(source)
    with pytest.raises(ValueError, match="pcgard"):
        runpy.run_path(str(tmp_path / "block.py"), init_globals={"check_balancer": build_balancer})


@pytest.mark.parametrize("block", blocks("json"), ids=lambda block: block.place)
def test_json_is_json(block):
    content = json.loads(block.text)
    if block.place.startswith("docs/compare.md"):
        for balancer in content.values():
            build_balancer(balancer)


def test_the_pages_own_data_are_sound(tmp_path, monkeypatch):
    """The script of docs/own_data.md makes a root that can be indexed; only its map is missing, as the page says."""
    from perception.datasets import prepare, verify

    monkeypatch.chdir(tmp_path)
    (block,) = [block for block in blocks("python") if block.place.startswith("docs/own_data.md")]
    Path("block.py").write_text(block.text, encoding="utf-8")
    runpy.run_path("block.py")
    (problem,) = verify("data/mine", progress=False)
    assert "maps/expansion/my-town.json" in str(problem)
    indexes = prepare("data/mine", progress=False)
    assert [path.name for path in indexes] == ["v1.0-mine_my_train.json", "v1.0-mine_my_val.json"]
    samples = json.loads(indexes[0].read_text())["data_list"]
    (box,) = samples[1]["instances"]
    assert box["bbox_3d"] == pytest.approx([3.0, 19.0, -0.8, 4.6, 1.9, 1.7, 1.5708], abs=1e-4)
    assert box["velocity"] == pytest.approx([0.0, 8.0], abs=1e-5)  # m/s, ahead


def test_the_pages_own_images_are_sound(tmp_path, monkeypatch):
    from perception.datasets import prepare_bdd100k, verify_bdd100k

    monkeypatch.chdir(tmp_path)
    (block,) = [block for block in blocks("python") if block.place.startswith("docs/own_images.md")]
    Path("block.py").write_text(block.text, encoding="utf-8")
    runpy.run_path("block.py")
    assert verify_bdd100k("data/mine2d", progress=False) == []
    index = prepare_bdd100k("data/mine2d", progress=False)[0]
    frames = json.loads(index.read_text())["data_list"]
    assert [frame["kinds"] for frame in frames] == [["det"], ["seg"]]
    assert frames[0]["bboxes"] == [[30.0, 50.0, 100.0, 90.0]]


def test_blocks_are_found():
    assert {block.place.partition(":")[0] for block in blocks("python")} >= {
        "docs/balancing.md",
        "docs/own_data.md",
        "docs/fcos.md",
    }
    assert all(block.language in ("", "json", "toctree", "text") for block in blocks("")), ROOT
