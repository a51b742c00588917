"""The benchmark of ranks measures steps that are what they say: the same update as DDP's, and what is sent for it."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from perception.engine.balance_workloads import resnet18_workload
from perception.engine.rank_benchmark import DDP, VARIANTS, benchmark_ranks, ranks_table
from tests.engine.launching import launch

RESULT = Path(__file__).resolve().parents[2] / "docs" / "results" / "bench_ranks.json"


@pytest.fixture
def one_rank(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def small() -> object:
    return resnet18_workload(image_size=32)


def test_the_table_has_what_was_measured(one_rank: None) -> None:
    result = benchmark_ranks(small, methods=["pcgrad-sketched"], num_steps=3)
    assert list(result["variants"]) == [DDP, "pcgrad-sketched"]
    plain, sketched = result["variants"].values()
    assert (plain["ratio"], plain["ratio_quartiles"], plain["cpu_ratio"]) == (1.0, [1.0, 1.0], 1.0)
    assert sketched["ms"] > 0
    row = 4 * result["num_parameters"] / 2**20
    assert sketched["peak_mib"] > plain["peak_mib"] + 2 * row  # four task gradients
    assert not result["has_unused"]
    page = ranks_table({**result, "command": "python tools/bench_ranks.py"})
    assert f"| pcgrad-sketched | ours: PCGrad from sketches | {sketched['ms']:.1f} |" in page
    assert page.endswith("```\npython tools/bench_ranks.py\n```\n")
    with pytest.raises(ValueError, match=r"unknown method 'pcgrat'\. Did you mean 'pcgrad'\?"):
        benchmark_ranks(small, methods=["pcgrat"])
    json.dumps(result)


@pytest.mark.slow
def test_bytes_sent_and_the_same_update_on_two_ranks(tmp_path: Path) -> None:
    launch([{"job": "bench_ranks", "out": str(tmp_path / "result")}], limit_s=500)
    result = json.loads((tmp_path / "result.0").read_text())
    assert list(result["variants"]) == list(VARIANTS)
    update = torch.load(tmp_path / "result.updates.pt", weights_only=True)
    difference = (update["sum"] - update[DDP]).norm() / update[DDP].norm()
    assert difference < 1e-4
    row = 4 * result["num_parameters"] / 2**20
    sent = {name: variant["sent_mib"] for name, variant in result["variants"].items()}
    if sent[DDP] is None:
        pytest.skip("the system does not count what a socket sends")
    for name, rows in ((DDP, 1.0), ("sum", 1.0), ("pcgrad", 2.5), ("graddrop", 2.5)):
        assert rows * row <= sent[name] <= 1.01 * rows * row + 0.1, name
    assert row + 2 <= sent["pcgrad-sketched"] <= 1.01 * row + 2.2  # four tasks' 65,536 numbers


@pytest.mark.skipif(not RESULT.exists(), reason="docs/results/bench_ranks.json is not measured yet")
def test_the_page_shows_the_committed_numbers() -> None:
    assert RESULT.with_suffix(".md").read_text("utf-8") == ranks_table(json.loads(RESULT.read_text("utf-8")))
