"""Gathering by token: order, padding and uneven shards change nothing; what is missing is named."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import perception
from perception.evaluation import BEVSegMetric, GatheredMetric

RANK = textwrap.dedent(
    """
    import json, sys
    import torch, torch.distributed as dist
    from perception.evaluation import BEVSegMetric, GatheredMetric

    rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    maps = torch.randint(0, 4, (7, 2, 1, 20, 30), generator=torch.Generator().manual_seed(0))
    samples = [
        {
            "sample_token": f"t{i}",
            "gt_bev_seg": {"sem_seg": maps[i, 0]},
            "pred_bev_seg": {"sem_seg": maps[i, 1]},
        }
        for i in range(7)
    ]
    results = []
    for shards in ([[0, 1, 2, 3, 4], [6, 5, 0]], [[0, 1], [2]]):  # complete but uneven, then incomplete
        metric = BEVSegMetric()
        metric.process(None, [samples[i] for i in shards[rank]])
        try:
            results.append(metric.evaluate(size=7))
        except Exception as error:
            results.append({"error": f"{type(error).__name__}: {error}"})
    with open(f"{out}.{rank}", "w") as file:
        json.dump(results, file)
    dist.destroy_process_group()
    """
)


class Listing(GatheredMetric):
    """Returns what it was given."""

    def __init__(self, expected=None, **kwargs):
        super().__init__(**kwargs)
        self.expected = expected

    def expected_tokens(self):
        return self.expected

    def process_sample(self, sample):
        return sample["value"]

    def compute_metrics(self, results):
        return {"results": results}


def feed(metric, *pairs):
    metric.process(None, [{"sample_token": token, "value": value} for token, value in pairs])
    return metric


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Per rank: the result of a complete and of an incomplete evaluation."""
    folder = tmp_path_factory.mktemp("ranks")
    root = str(Path(perception.__file__).parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root, "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-c", RANK]
    arguments = [str(folder / "store"), str(folder / "result")]
    ranks = [subprocess.Popen([*command, str(rank), *arguments], env=environment) for rank in range(2)]
    try:
        assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    return [json.loads((folder / f"result.{rank}").read_text()) for rank in range(2)]


def test_results_are_sorted_and_repeats_count_once():
    metric = feed(Listing(), ("b", 1), ("a", 2), ("b", 3))
    results = metric.evaluate(size=2)["results"]
    assert list(results.items()) == [("a", 2), ("b", 1)]


def test_results_are_cleared_between_evaluations():
    metric = feed(Listing(), ("a", 1))
    metric.evaluate(size=1)
    assert feed(metric, ("b", 2)).evaluate(size=1) == {"results": {"b": 2}}


def test_missing_samples_are_an_error_unless_subset():
    with pytest.raises(ValueError, match="Listing: 2 of 3 samples have no result"):
        feed(Listing(), ("a", 1)).evaluate(size=3)
    with pytest.raises(ValueError, match="1 of 2 samples have no result: b"):
        feed(Listing(expected=["a", "b"]), ("a", 1)).evaluate(size=1)
    assert feed(Listing(subset=True), ("a", 1)).evaluate(size=3) == {"results": {"a": 1}}


def test_a_sample_without_token_is_refused():
    with pytest.raises(ValueError, match="meta_keys"):
        Listing().process(None, [{"value": 1}])


def test_two_ranks_of_uneven_shards_equal_one_rank(two_ranks):
    maps = torch.randint(0, 4, (7, 2, 1, 20, 30), generator=torch.Generator().manual_seed(0))
    metric = BEVSegMetric()
    for index in range(7):
        sample = {"gt_bev_seg": {"sem_seg": maps[index, 0]}, "pred_bev_seg": {"sem_seg": maps[index, 1]}}
        metric.process(None, [{"sample_token": f"t{index}", **sample}])
    expected = metric.evaluate(size=7)
    assert [rank[0] for rank in two_ranks] == [expected, expected]


def test_an_error_reaches_both_ranks(two_ranks):
    first, second = (rank[1]["error"] for rank in two_ranks)
    assert "4 of 7 samples have no result" in first
    assert second.startswith("RuntimeError: BEVSegMetric failed on the main rank")
    assert "4 of 7 samples" in second
