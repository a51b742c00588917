"""Rows summed over ranks, part by part, on three ranks over gloo."""

from pathlib import Path

import pytest
import torch

from tests.engine.launching import launch

COLUMNS = (1, 2, 7, 1000)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with what each rank got."""
    folder = tmp_path_factory.mktemp("exchange")
    jobs = [{"job": "exchange", "columns": columns, "out": f"{folder}/{columns}"} for columns in COLUMNS]
    launch(jobs, num_ranks=3)
    return folder


@pytest.mark.parametrize("columns", COLUMNS)
def test_parts_are_the_sums_and_cover_every_column_once(three: Path, columns: int) -> None:
    ranks = [torch.load(f"{three}/{columns}.{rank}", weights_only=True) for rank in range(3)]
    expected = sum(found["row"] for found in ranks)
    times = torch.zeros(columns)
    for found in ranks:
        assert torch.equal(found["whole"], ranks[0]["whole"])
        torch.testing.assert_close(found["whole"], expected, rtol=1e-6, atol=1e-6)
        owned = torch.cat([found["whole"][start:end] for start, end in found["owned"]])
        assert torch.equal(owned, found["part"])
        for start, end in found["owned"]:
            times[start:end] += 1
    assert bool((times == 1).all())
    if columns == 1000:
        assert len(ranks[0]["owned"]) > 2  # several buckets
        sizes = [len(found["part"]) for found in ranks]
        assert max(sizes) - min(sizes) <= 3 * len(ranks[0]["owned"])
