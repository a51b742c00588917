"""The cost benchmark measures right things: the same update, each step, the memory."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perception.balancing import SharedFeatures, TaskLosses
from perception.engine.balance_benchmark import balance_table, benchmark_balance, peak_mib
from perception.engine.balance_peers import project, trunk_parameters
from perception.engine.balance_variants import (
    PLAIN,
    TOLERANCE,
    VARIANTS,
    UpdateCheck,
    Variant,
    choose_variants,
)
from perception.engine.balance_workloads import Workload, resnet18_workload

CPU = torch.device("cpu")
QUICK = ["sum", "pcgrad", "pcgrad-features", "sum-watched", "torchjd-pcgrad", "flat-pcgrad"]


class Net(nn.Module):
    """A trunk, a decoder that two tasks share, and a third task."""

    task_names = ("cls", "box", "seg")

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 96), nn.Tanh(), nn.Linear(96, 96))
        self.decoder = nn.Linear(96, 4)
        self.heads = nn.ModuleDict({"cls": nn.Linear(4, 2), "box": nn.Linear(4, 2), "seg": nn.Linear(96, 2)})
        self.shared_features = SharedFeatures()

    def last_shared_parameters(self) -> list[Tensor]:
        return list(self.trunk.parameters())

    def losses(self, x: Tensor, targets: dict[str, Tensor]) -> TaskLosses:
        (feature,) = self.shared_features(self.trunk(x).tanh())
        decoded = self.decoder(feature).tanh()
        outputs = {task: head(feature if task == "seg" else decoded) for task, head in self.heads.items()}
        losses = {task: F.mse_loss(output, targets[task]) for task, output in outputs.items()}
        return TaskLosses(losses, dict.fromkeys(losses, torch.tensor(8.0)), self.task_names)


@pytest.fixture
def small() -> Workload:
    torch.manual_seed(1)
    net = Net()
    x, targets = torch.randn(8, 6), {task: torch.randn(8, 2) for task in net.task_names}
    return Workload("small", net, lambda: net.losses(x, targets))


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.exact is not None])
def test_variants_take_the_step_they_claim(small: Workload, name: str) -> None:
    error = UpdateCheck(small).error(VARIANTS[name])
    assert error is not None
    assert error < TOLERANCE


@pytest.mark.slow
def test_resnet_peers_take_the_same_step() -> None:
    twin = resnet18_workload().twin
    assert twin is not None
    check = UpdateCheck(twin())
    assert check.tolerance == TOLERANCE
    for name in ("pcgrad", "torchjd-pcgrad", "torchjd-pcgrad-lean", "flat-pcgrad"):
        assert check.error(VARIANTS[name]) < 1e-12


def test_the_compared_update_has_conflicts(small: Workload) -> None:
    """Else PCGrad would be the sum, and a wrong one would pass."""
    check = UpdateCheck(small)
    wrong = Variant(name="wrong", summary="", make=VARIANTS[PLAIN].make, exact="pcgrad")
    assert check.error(wrong) > 100 * TOLERANCE


def test_trunk_is_what_all_heads_read(small: Workload) -> None:
    assert {id(p) for p in trunk_parameters(small)} == {id(p) for p in small.model.trunk.parameters()}
    assert type(small.model.shared_features) is SharedFeatures


def test_project_against_the_paper() -> None:
    rows = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    expected = torch.tensor([[0.5, 0.5], [0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(project(rows), expected)


def test_a_whole_run(small: Workload) -> None:
    result = benchmark_balance(small, methods=QUICK, num_steps=2)
    assert list(result["variants"]) == [PLAIN, *QUICK]
    assert not result["failed"]
    for name, row in result["variants"].items():
        assert min(row["ms"], row["ratio"], row["peak_mib"]) > 0, name
        assert row["ratio_quartiles"][0] <= row["ratio"] <= row["ratio_quartiles"][1]
    assert result["variants"][PLAIN]["ratio"] == 1.0
    assert {aim["variant"] for aim in result["aims"]} == {"pcgrad", "pcgrad-features"}
    peaks = {name: row["peak_mib"] for name, row in result["variants"].items()}
    assert peaks["pcgrad"] < peaks["flat-pcgrad"]
    assert result["watching"]["pcgrad"]["ms"] > 0
    assert "sum, gram_interval=100" in result["watching"]
    table = balance_table(result)
    assert all(f"| {name} |" in table for name in QUICK)


@pytest.mark.slow
def test_every_variant_runs(small: Workload) -> None:
    result = benchmark_balance(small, num_steps=1)
    assert list(result["variants"]) == list(VARIANTS)
    assert not result["failed"]


def test_a_wrong_update_is_not_timed(small: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Variant(name="flat-pcgrad", summary="", make=VARIANTS[PLAIN].make, exact="pcgrad")
    monkeypatch.setitem(VARIANTS, "flat-pcgrad", wrong)
    result = benchmark_balance(small, methods=["flat-pcgrad"], num_steps=1)
    assert list(result["variants"]) == [PLAIN]
    assert "its update differs by" in result["failed"]["flat-pcgrad"]
    assert "failed: flat-pcgrad: its update" in balance_table(result)


def test_what_cannot_run_is_reported(small: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> Any:
        raise RuntimeError("vmap: not supported\nmore")

    monkeypatch.setitem(VARIANTS, "torchjd-pcgrad", Variant(name="torchjd-pcgrad", summary="", make=fail))
    result = benchmark_balance(small, methods=["torchjd-pcgrad", "pcgrad"], num_steps=1)
    assert list(result["variants"]) == [PLAIN, "pcgrad"]
    assert result["failed"] == {"torchjd-pcgrad": "RuntimeError: vmap: not supported"}


def test_unknown_method() -> None:
    with pytest.raises(ValueError, match="did you mean|Did you mean"):
        choose_variants(["pcgrda"])


def test_one_task_is_refused(small: Workload) -> None:
    small.model.task_names = ("cls",)
    with pytest.raises(ValueError, match="lacks a second task"):
        Workload("small", small.model, small.forward)


@pytest.mark.parametrize("size", [48, 16])
def test_image_sizes_that_do_not_fit(size: int) -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        resnet18_workload(image_size=size)


def test_peak_counts_what_is_alive_at_once() -> None:
    def one_after_the_other() -> None:
        for _ in range(3):
            torch.zeros(2**20)

    def together() -> None:
        kept = [torch.zeros(2**20) for _ in range(3)]
        kept.clear()

    assert peak_mib(one_after_the_other, CPU) == 4.0
    assert peak_mib(together, CPU) == 12.0
