"""The scripts for people with MM habits: their own words, and then the command line's answers."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from perception.cli.main import build_parser

TOOLS = Path(__file__).resolve().parents[1] / "tools"


def run(monkeypatch: pytest.MonkeyPatch, script: str, *words: str | Path) -> int:
    """Run a script as `python tools/SCRIPT WORDS` would, and return its exit code."""
    monkeypatch.setattr(sys, "argv", [script, *(str(word) for word in words)])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(TOOLS / script), run_name="__main__")
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_create_data_takes_mm_words(monkeypatch, synthetic_root, tmp_path):
    words = ["nuscenes", "--root-path", synthetic_root, "--version", "v1.0-mini", "--out-dir", tmp_path]
    assert run(monkeypatch, "create_data.py", *words) == 0
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["v1.0-mini_mini_train.json", "v1.0-mini_mini_val.json"]
    assert json.loads((tmp_path / files[0]).read_text())["metainfo"]["split"] == "mini_train"
    assert run(monkeypatch, "create_data.py", "nuscenes", "--root-path", tmp_path) == 3


def test_test_takes_the_checkpoint_as_second_word(monkeypatch, nano_options, tmp_path, capsys):
    missing = tmp_path / "model.safetensors"
    words = ["bevformer_nano", missing, "--work-dir", tmp_path / "run", "--cfg-options", *nano_options]
    assert run(monkeypatch, "test.py", *words) == 4
    assert str(missing) in capsys.readouterr().err


@pytest.mark.slow
def test_bench_sketch_measures_real_gradients(monkeypatch, nano_options, tmp_path, capsys):
    out = tmp_path / "sketch.json"
    words = ["--samples", "1", "--seeds", "1", "--sizes", "64,4000000", "--out", out, "--set", *nano_options]
    assert run(monkeypatch, "bench_sketch.py", *words) == 0
    rough, exact = json.loads(out.read_text())["rows"]
    assert rough["cosine_rms"] > 100 * exact["cosine_rms"]  # longer than the gradients: nothing meets
    assert max(exact["coefficients_rms"].values()) < 1e-3
    assert run(monkeypatch, "bench_sketch.py", "--sizes", "0") == 2
    assert run(monkeypatch, "bench_sketch.py", "--checkpoint", tmp_path, "--set", *nano_options) == 4
    assert "bench_sketch: error: " in capsys.readouterr().err


@pytest.mark.slow
def test_bench_ranks_starts_ranks_and_writes_a_page(monkeypatch, nano_options, tmp_path, capfd):
    out = tmp_path / "ranks.json"
    words = ["--methods", "pcgrad", "--steps", "2", "--batch-size", "1", "--out", out, "--set", *nano_options]
    assert run(monkeypatch, "bench_ranks.py", *words) == 0
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["ranks"] == 2
    assert list(result["variants"]) == ["ddp", "pcgrad"]
    assert out.with_suffix(".md").read_text(encoding="utf-8") == capfd.readouterr().out


def test_bench_ranks_refuses_wrong_words(monkeypatch, tmp_path, capfd):
    assert run(monkeypatch, "bench_ranks.py", "--ranks", "0") == 2
    assert "--ranks is 0; allowed: 1 or more" in capfd.readouterr().err
    assert run(monkeypatch, "bench_ranks.py", "--ranks", "1", "--data-root", tmp_path / "missing") == 4
    assert "bench_ranks: error: " in capfd.readouterr().err


def test_page_shows_the_committed_sketches():
    result = json.loads((TOOLS.parent / "docs" / "results" / "sketch.json").read_text(encoding="utf-8"))
    page = (TOOLS.parent / "docs" / "results" / "sketch.md").read_text(encoding="utf-8")
    for row in result["rows"]:
        errors = [
            row["cosine_rms"],
            row["cosine_bound"],
            row["cosine_max"],
            *row["coefficients_rms"].values(),
        ]
        assert f"| {row['size']:,} | " + " | ".join(f"{error:.4f}" for error in errors) + " |" in page


def test_page_shows_the_committed_cameras():
    result = json.loads(
        (TOOLS.parent / "docs" / "results" / "bench_cameras.json").read_text(encoding="utf-8")
    )
    page = (TOOLS.parent / "docs" / "speed.md").read_text(encoding="utf-8")
    for row in result["rows"]:
        start = f"| {row['bev']} x {row['bev']}, {row['visible']:.0%} |"
        (line,) = [line for line in page.splitlines() if line.startswith(start)]
        cell = f"{row['ms_forward']:.0f} / {row['ms_forward_backward']:.0f} ms, {row['mib_kept']:.0f} MiB"
        column = ["slots", "all", "rebatching", "sorting"].index(row["way"])
        assert line.split(" | ")[column + 1].removesuffix(" |") == cell


@pytest.mark.parametrize("script", ["train.py", "browse_dataset.py", "visualize.py"])
def test_others_are_the_command_line(monkeypatch, script, tmp_path, capsys):
    assert (
        run(monkeypatch, script, tmp_path / "none.py", *(["--out", tmp_path] * (script != "train.py"))) == 2
    )
    assert "perception: error: " in capsys.readouterr().err


def test_digits_result_names_neither_machine_nor_path(monkeypatch, tmp_path):
    pytest.importorskip("sklearn", reason="the digits are scikit-learn's")
    words = ["--methods", "sum", "--seeds", "1", "--epochs", "1", "--out", tmp_path]
    assert run(monkeypatch, "bench_digits.py", *words) == 0
    result = json.loads((tmp_path / "digits.json").read_text())
    assert result["command"] == "python tools/bench_digits.py --methods sum --seeds 1 --epochs 1"
    assert set(result["hardware"]) == {"cpu", "threads", "python", "packages"}
    assert run(monkeypatch, "bench_digits.py", "--methods", "summ") == 2


def test_parity_table_measures_a_folder(monkeypatch, tmp_path, capsys):
    page = tmp_path / "parity.md"
    assert run(monkeypatch, "parity_table.py", "--folder", tmp_path) == 4
    assert "no parity fixture" in capsys.readouterr().err
    turned = np.arange(6.0, dtype=np.float32).reshape(1, 2, 3)
    arrays = {"0/input": turned, "0/angle_deg": np.array(180.0), "0/center_xy": np.array([1.5, 1.0])}
    (tmp_path / "turn.json").write_text("{}")
    np.savez(tmp_path / "turn.npz", **arrays, **{"0/output": turned[:, ::-1, ::-1]})
    assert run(monkeypatch, "parity_table.py", "--folder", tmp_path, "--out", page) == 0
    assert "| rotated history | 0 | exact |" in page.read_text()
    np.savez(tmp_path / "turn.npz", **arrays, **{"0/output": turned})
    assert run(monkeypatch, "parity_table.py", "--folder", tmp_path) == 1
    assert "| rotated history | **6** | exact |" in capsys.readouterr().out


def test_bench_ops_measures_the_reference_on_a_cpu(monkeypatch, tmp_path, capsys):
    words = ["--device", "cpu", "--cases", "tiny decoder", "--repeats", "1", "--out", tmp_path / "ops.json"]
    assert run(monkeypatch, "bench_ops.py", *words) == 0
    assert "need CUDA and are not measured" in capsys.readouterr().out
    rows = json.loads((tmp_path / "ops.json").read_text())["rows"]
    assert [row["implementation"] for row in rows] == ["reference", "mmcv in torch", "numba"]
    assert all(0 < row["ms_forward"] < row["ms_forward_backward"] for row in rows)
    assert run(monkeypatch, "bench_ops.py", "--cases", "nonsense") == 2


def test_bench_cameras_measures_ways_that_agree(monkeypatch, tmp_path):
    words = [
        "--sizes",
        "6,8",
        "--views",
        "60",
        "--rounds",
        "1",
        "--device",
        "cpu",
        "--out",
        tmp_path / "c.json",
    ]
    assert run(monkeypatch, "bench_cameras.py", *words) == 0
    rows = json.loads((tmp_path / "c.json").read_text())["rows"]
    assert [(row["bev"], row["way"]) for row in rows] == [
        (size, way) for size in (6, 8) for way in ("slots", "all", "rebatching", "sorting")
    ]
    assert all(0 < row["visible"] < 1 and row["mib_kept"] > 0 for row in rows)
    assert run(monkeypatch, "bench_cameras.py", "--views", "130") == 2


SLURM_STUBS = {
    "srun": """echo "srun $1" >> "$RECORD"
shift
SLURM_PROCID=3 SLURM_LOCALID=1 exec "$@" """,
    "scontrol": """echo "scontrol $*" >> "$RECORD"
if [ "$1" = show ]; then printf 'node7\\nnode8\\n'; fi""",
    "py": """echo "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR $MASTER_PORT $$" >> "$RECORD"
printf '%s\\n' "$@" > "$RECORD.words"
exit "$CODE" """,
}


def sbatch(tmp_path: Path, *words: str, code: int = 0) -> tuple[int, list[str]]:
    """Run the SLURM script on stand-ins for SLURM and Python; its exit code, and what they were told."""
    for name, text in SLURM_STUBS.items():
        stub = tmp_path / name
        stub.write_text(f"#!/usr/bin/env bash\n{text}\n")
        stub.chmod(0o755)
    record = tmp_path / "record"
    job = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_ID": "40123", "SLURM_NTASKS": "4",
           "SLURM_NTASKS_PER_NODE": "2", "PYTHON": str(tmp_path / "py"), "RECORD": str(record), "CODE": str(code),
           "PATH": f"{tmp_path}:{os.environ['PATH']}"}  # fmt: skip
    command = ["bash", str(TOOLS / "slurm_train.sh"), *words]
    done = subprocess.run(
        command, cwd=TOOLS.parent, env={**os.environ, **job}, capture_output=True, text=True
    )
    return done.returncode, record.read_text().splitlines() if record.exists() else [done.stderr]


def test_slurm_script_starts_ranks_that_the_command_line_understands(tmp_path):
    words = ["bevformer_tiny", "--work-dir", "a folder", "--set", "train_cfg.max_epochs=2"]
    assert sbatch(tmp_path, *words)[0] == 0
    sent = (tmp_path / "record.words").read_text().splitlines()
    assert sent[:2] == ["-m", "perception.cli.main"]
    args = build_parser().parse_args(sent[2:])
    assert (args.config, args.work_dir, args.resume) == ("bevformer_tiny", "a folder", True)
    assert args.overrides == ["train_cfg.max_epochs=2"]


@pytest.mark.parametrize("code", [0, 1, 143])
def test_slurm_script_queues_again_only_what_was_saved(tmp_path, code):
    found, record = sbatch(tmp_path, "bevformer_tiny", code=code)
    assert found == code
    assert record[:2] == ["scontrol show hostnames node[7-8]", "srun --kill-on-bad-exit=1"]
    assert record[2].startswith("3 1 4 2 node7 20123 ")
    assert record[3:] == (["scontrol requeue 40123"] if code == 143 else [])


@pytest.mark.parametrize("script", sorted(TOOLS.glob("*.sh")), ids=lambda path: path.name)
def test_shell_scripts_are_whole(script):
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    assert os.access(script, os.X_OK)


def test_slurm_script_without_a_config_tells_how(tmp_path):
    code, (told,) = sbatch(tmp_path)
    assert code == 2
    assert told.startswith(
        "Train on several machines by SLURM: sbatch [options of sbatch] tools/slurm_train.sh CONFIG"
    )
    options = [
        line for line in (TOOLS / "slurm_train.sh").read_text().splitlines() if line.startswith("#SBATCH")
    ]
    assert {"#SBATCH --signal=USR1@300", "#SBATCH --requeue"} <= set(options)
