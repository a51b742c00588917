"""Names in configs: found in this package first, then among MMEngine's own, before and after a runner was built."""

import json
import logging

import pytest
from mmengine import registry as roots
from mmengine.registry import DefaultScope, Registry

from perception import registry
from perception.engine import PerceptionRunner, read_log
from tests.engine import toy_world

ROOTS = {name: value for name, value in vars(roots).items() if isinstance(value, Registry)}


@pytest.fixture
def _after_a_runner(tmp_path, monkeypatch):
    monkeypatch.setattr(DefaultScope, "_instance_dict", DefaultScope._instance_dict.copy())
    PerceptionRunner.from_cfg(toy_world.config(tmp_path / "run"))


@pytest.mark.parametrize("name", sorted(ROOTS))
def test_every_registry_of_mmengine_has_a_child(name):
    child = getattr(registry, name)
    assert child.parent is ROOTS[name]
    assert child.scope == registry.SCOPE
    assert child.name == ROOTS[name].name


@pytest.mark.usefixtures("_after_a_runner")
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("MODELS", "BEVFormer"),
        ("DATASETS", "NuScenesBEVDataset"),
        ("TRANSFORMS", "PackBEVInputs"),
        ("METRICS", "BEVSegMetric"),
        ("HOOKS", "CheckpointHook"),
        ("VISBACKENDS", "TensorboardBackend"),
        ("OPTIM_WRAPPERS", "BalancedOptimWrapper"),
        ("LOOPS", "TrainLoop"),
    ],
)
def test_a_name_of_ours_is_found_from_either_registry_after_a_runner(kind, name):
    for start in (ROOTS[kind], getattr(registry, kind)):
        with start.switch_scope_and_registry(None) as found:
            kept = found.get(name)
        assert kept is not None
        assert kept.__module__.startswith("perception."), name


@pytest.mark.usefixtures("_after_a_runner")
def test_building_by_name_after_a_runner():
    for start in (roots.TRANSFORMS, registry.TRANSFORMS):
        assert type(start.build({"type": "PackBEVInputs", "with_images": False})).__name__ == "PackBEVInputs"
    assert registry.MODELS.build({"type": "mmdet.FPN", "in_channels": [4], "out_channels": 4, "num_outs": 1})
    assert roots.MODELS.build({"type": "ReLU"})


def test_a_run_whose_types_are_all_names(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(DefaultScope, "_instance_dict", DefaultScope._instance_dict.copy())
    by_name = {
        "optim_wrapper__type": "BalancedOptimWrapper",
        "optim_wrapper__optimizer__type": "AdamW",
        "train_dataloader__sampler__type": "EpochSampler",
        "val_dataloader__sampler__type": "SceneSampler",
        "param_scheduler": [{"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "end": 2}],
        "train_cfg": {"by_epoch": False, "max_iters": 2},
        "val_cfg": {"type": "EvalLoop", "mode": "val"},
        "strategy": {"type": "SingleStrategy"},
        "visualizer": {"type": "Visualizer", "vis_backends": [{"type": "TensorboardBackend"}]},
    }
    by_name["visualizer"]["vis_backends"][0]["save_dir"] = str(tmp_path / "tensorboard")
    with caplog.at_level(logging.WARNING):
        PerceptionRunner.from_cfg(toy_world.config(tmp_path / "run", **by_name)).train()
    assert [line["kind"] for line in read_log(tmp_path / "run" / "log.jsonl")].count("train") == 2
    assert json.loads((tmp_path / "run" / "config.json").read_text())["strategy"] == {
        "type": "SingleStrategy"
    }
    assert "registry" not in caplog.text
