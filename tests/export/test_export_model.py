"""The verb: a folder with graphs, weights, manifest and proof; and what it refuses."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.torch import save_file

from perception.cli.main import main
from perception.config import load_config, override_config
from perception.export.export_model import ExportOptions
from perception.export.model_loading import build_model
from perception.runtime import check_files, read_manifest
from perception.runtime.verify import verify_export
from tests.export.graphs import settle

SMALL = [
    "model.img_backbone.base_channels=8",
    "model.img_neck.in_channels=[16,32]",
    "model.bev_encoder.num_layers=1",
    "model.box_head.num_layers=2",
    "model.box_head.num_query=20",
]
SMALL_2D = [
    "model.img_backbone.base_channels=8",
    "model.img_neck.in_channels=[8,16,32]",
    "model.box_head.stacked_convs=1",
]


def weights_file(config, options, folder):
    model = settle(build_model(override_config(load_config(config), options)))
    path = folder / "model.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def options(nano_options):
    return [*nano_options, *SMALL]


@pytest.fixture(scope="module")
def weights(options, tmp_path_factory):
    return weights_file("bevformer_nano", options, tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def exported(options, weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("exports") / "nano"
    words = [
        "--out",
        str(out),
        "--precision",
        "fp16",
        "int8",
        "--format",
        "onnx",
        "torch",
        "--calibrate",
        "3",
    ]
    assert main(["export", "bevformer_nano", str(weights), *words, "--set", *options]) == 0
    return out


@pytest.mark.slow
def test_the_folder_is_whole_and_proves_itself(exported):
    manifest = read_manifest(exported)
    check_files(exported, manifest)
    assert (manifest.kind, manifest.name, len(manifest.cameras)) == ("bevformer", "bevformer_nano", 6)
    assert set(manifest.variants) == {"fp32", "fp16", "int8"}
    assert set(manifest.files) == {
        *("model.onnx", "model_fp16.onnx", "model_int8.onnx", "model.pt2", "weights.safetensors"),
        *("proof.json", "proof_inputs.npz", "proof_outputs.npz"),
    }
    assert manifest.image.resize == (352, 198)
    assert manifest.image.network_size == (352, 144)
    assert manifest.image.crop_top == 54
    assert manifest.classes["seg"][0] == "background"
    assert manifest.streaming.motion == "lidar"
    assert manifest.has_history
    assert manifest.training_config["model"]["bev_encoder"]["num_layers"] == 1
    results = verify_export(exported, num_threads=1)
    assert [result.variant for result in results] == ["fp32", "fp16", "int8"]
    proof = json.loads((exported / "proof.json").read_text())
    assert proof["steps"] == 4
    with np.load(exported / "proof_inputs.npz") as arrays:
        assert [float(arrays[f"{step}/use_prev_bev"][0]) for step in range(4)] == [0.0, 1.0, 1.0, 1.0]


@pytest.mark.slow
def test_bench_measures_it(exported, tmp_path, capsys):
    out = tmp_path / "bench.json"
    words = ["bench", "export", str(exported), "--rounds", "1", "--threads", "1", "--no-compile"]
    assert main([*words, "--out", str(out)]) == 0
    table = capsys.readouterr().out
    assert "bevformer_nano: onnxruntime int8 | model_int8.onnx |" in table
    (result,) = json.loads(out.read_text())["exports"]
    assert set(result["ms"]) == {
        "torch eager", "onnxruntime fp32", "onnxruntime fp16", "onnxruntime int8"
    }  # fmt: skip
    assert result["without"] == {"torch.compile": "left out"}
    assert result["differences"]["fp32"]["bev"] < 1e-3
    assert out.with_suffix(".md").read_text() == table


@pytest.mark.slow
def test_a_folder_in_use_is_left_alone(exported, options, weights, tmp_path, capsys):
    words = ["export", "bevformer_nano", str(weights), "--set", *options]
    before = (exported / "model.json").read_bytes()
    assert main([*words, "--out", str(exported)]) == 2
    assert "holds an export already; give another folder, or --overwrite" in capsys.readouterr().err
    assert (exported / "model.json").read_bytes() == before
    (tmp_path / "notes.txt").write_text("mine")
    assert main([*words, "--overwrite", "--out", str(tmp_path)]) == 2
    assert "holds other files than an export" in capsys.readouterr().err


def test_what_can_t_be_exported_is_told(options, weights, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]

    def refused(*words, code):
        assert main(["export", *words, *out]) == code
        return capsys.readouterr().err

    assert "there is no such checkpoint" in refused("bevformer_nano", "nowhere", "--set", *options, code=4)
    other = [*options, "model.box_head.num_query=30"]
    found = refused("bevformer_nano", str(weights), "--set", *other, code=4)
    assert "1 of another shape: box_head.query_embedding.weight" in found
    assert "names no weights" in refused("bevformer_nano", "--set", *options, code=2)
    words = ["bevformer_nano", str(weights), "--format", "torch", "--precision", "int8"]
    assert "torch packages are fp32" in refused(*words, "--set", *options, code=2)
    missing = [*options, f"test_dataloader.dataset.data_root={tmp_path / 'nothing'}"]
    assert "nothing" in refused("bevformer_nano", str(weights), "--set", *missing, code=3)
    stitched = [*options, "optim_wrapper.balancer=cross_stitch"]
    assert "layers of their own" in refused("bevformer_nano", str(weights), "--set", *stitched, code=2)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_without_onnx_the_extra_is_named(monkeypatch, tmp_path, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else find(name))
    assert main(["export", "bevformer_nano", "x.safetensors", "--out", str(tmp_path)]) == 2
    assert "onnx is not installed, which exports need; `pip install -e .[export]`" in capsys.readouterr().err


def test_options_are_checked():
    with pytest.raises(ValueError, match="--precision is bf16; allowed: fp32, fp16, int8"):
        ExportOptions(precisions=("bf16",))
    with pytest.raises(ValueError, match="--calibrate must be at least 1, got 0"):
        ExportOptions(num_calibration=0)


@pytest.mark.slow
def test_images_are_exported_too(bdd100k_root, tmp_path):
    from perception.datasets import prepare_bdd100k

    prepare_bdd100k(bdd100k_root, out=tmp_path / "index")
    options = [
        *SMALL_2D,
        f"test_dataloader.dataset.data_root={bdd100k_root}",
        f"test_dataloader.dataset.ann_file={tmp_path / 'index' / 'bdd100k_val.json'}",
    ]
    weights = weights_file("fcos_nano", SMALL_2D, tmp_path)
    out = tmp_path / "out"
    words = ["--batch", "dynamic", "--precision", "fp16", "--steps", "2", "--set", *options]
    assert main(["export", "fcos_nano", str(weights), "--out", str(out), *words]) == 0
    manifest = read_manifest(out)
    assert (manifest.kind, manifest.nms.iou, manifest.seg.shape) == ("fcos", 0.6, ("height", "width"))
    assert manifest.inputs[0].shape == ("batch", "height", "width", 3)
    verify_export(out, num_threads=1)


@pytest.mark.slow
def test_the_graph_runs_where_there_is_no_torch(exported):
    code = """
        import sys
        sys.modules["torch"] = None
        from perception.runtime.verify import verify_export
        print(len(verify_export(sys.argv[1], num_threads=1)))
    """
    code = "\n".join(line.strip() for line in code.strip().splitlines())
    done = subprocess.run([sys.executable, "-c", code, str(exported)], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("3", 0), done.stderr
