"""The cost model: bounds that it must keep, numbers worked out by hand, and what it refuses."""

import pytest

from perception.balancing import build_balancer
from perception.engine.comm_cost import Hardware, comm_table, reckon_comm, step_cost, step_flops, step_memory
from perception.engine.comm_model import MODES, StepShape, modes_of, sent_bytes, step_exchanges

SMALL = 43_591_231  # trained parameters of bevformer_small


def sent(mode, shape, *, gradients=False):
    exchanges = step_exchanges(mode, shape)
    chosen = [exchange for exchange in exchanges if exchange.is_gradient or not gradients]
    return sum(exchange.sent_bytes(shape.num_ranks) for exchange in chosen)


@pytest.mark.parametrize("num_ranks", [2, 8, 64, 4096])
@pytest.mark.parametrize("num_tasks", [2, 3, 4])
def test_the_bounds_of_exact_and_sketched(num_ranks, num_tasks):
    shape = StepShape(num_ranks=num_ranks, num_parameters=SMALL, num_tasks=num_tasks)
    others = (num_ranks - 1) / num_ranks
    plain = sent("plain", shape, gradients=True)
    assert plain == pytest.approx(2 * 4 * SMALL * others)
    products = 2 * 8 * num_tasks**2 * others
    padding = (num_tasks + 1) * 4 * num_ranks * others
    assert sent("exact", shape, gradients=True) <= (num_tasks + 1) / 2 * plain + products + padding
    assert sent("sketched", shape) <= 1.02 * sent("plain", shape)
    assert sent("parts", shape, gradients=True) <= (num_tasks + 1) / 2 * plain + padding
    for mode in MODES:
        small = sent(mode, shape) - sent(mode, shape, gradients=True)
        assert small < 2e-4 * plain


def test_one_mode_by_hand():
    """Three ranks, two tasks, ten parameters in four tensors, padded to twelve."""
    shape = StepShape(num_ranks=3, num_parameters=10, num_tasks=2, num_tensors=4, num_statistics=5)
    rows = {(e.purpose, e.kind, e.count, e.payload) for e in step_exchanges("exact", shape)}
    assert rows == {
        ("losses and target counts", "all_reduce", 1, 64),
        ("who reaches what", "all_reduce", 1, 8),
        ("who is not finite", "all_reduce", 1, 2),
        ("weights, coefficients", "broadcast", 2, 16),
        ("task gradients", "reduce_scatter", 2, 48),
        ("products", "all_reduce", 1, 32),
        ("update", "all_gather", 1, 48),
        ("whether to stop", "all_reduce", 1, 8),
        ("batch norms' statistics", "all_reduce", 1, 40),
    }
    cost = step_cost("exact", shape, Hardware(bandwidth=10.0, latency=1.0, flop_rate=2.0))
    assert cost["sent_bytes"] == pytest.approx((2 * (64 + 8 + 2 + 32 + 8 + 40) + 32 + 3 * 48) * 2 / 3)
    assert cost["send_seconds"] == pytest.approx(cost["sent_bytes"] / 10)
    assert cost["latency_seconds"] == 6 * 2 * 2 + 2 * 2 + 3 * 2  # trees of depth 2, rings of 2 hops
    assert cost["flops"] == pytest.approx(20 * 2 / 3 + 20 / 3 + 8 * 10 / 3 + 4 * 10 / 3)
    assert cost["arithmetic_seconds"] == pytest.approx(cost["flops"] / 2)
    assert cost["memory_bytes"] == pytest.approx(4 * (4 * 10 + 3 * 10 / 3))
    assert sum(row["sent_bytes"] for row in cost["exchanges"]) == pytest.approx(cost["sent_bytes"])


@pytest.mark.parametrize("num_tasks", [2, 3, 4])
def test_the_bounds_under_zero(num_tasks):
    sizes = dict(num_ranks=8, num_parameters=SMALL, num_tasks=num_tasks)
    plain = sent("plain", StepShape(**sizes))
    times = {
        (mode, stage, live): sent(mode, StepShape(**sizes, zero_stage=stage, max_live_parameters=live))
        / plain
        for mode in ("plain", "exact")
        for stage in (0, 1, 2, 3)
        for live in (10**9, 10**6)
    }
    for stage, live, extra in ((1, 10**9, 1), (2, 10**9, 1), (3, 10**9, 0), (3, 10**6, num_tasks)):
        exact = (num_tasks + 1 + extra) / 2
        assert times["exact", stage, live] == pytest.approx(exact, rel=2e-4)
    assert [round(times["plain", stage, 10**9], 3) for stage in range(4)] == [1.0, 1.5, 1.5, 1.0]
    assert round(times["plain", 3, 10**6], 3) == 1.5
    parts = [step_memory("exact", StepShape(**sizes, zero_stage=stage)) for stage in (2, 3)]
    assert parts[1] < 0.5 * parts[0]


def test_buckets_cost_hops_and_no_bytes():
    coarse, fine = (
        step_cost("exact", StepShape(num_ranks=64, num_parameters=10**8, bucket_mb=size))
        for size in (400.0, 25.0)
    )
    assert coarse["sent_bytes"] == fine["sent_bytes"]
    assert fine["latency_seconds"] > 10 * coarse["latency_seconds"]


def test_half_precision_parameters_have_float32_task_gradients():
    shape = StepShape(num_ranks=2, num_parameters=10**6, num_bytes=2)
    assert sent("plain", shape, gradients=True) == 2 * 10**6
    assert sent("parts", shape, gradients=True) == 5 / 2 * 4 * 10**6


def test_costs_grow_with_tasks_and_not_below_plain():
    for mode in MODES:
        costs = [
            [
                function(mode, StepShape(num_ranks=8, num_parameters=10**8, num_tasks=tasks))
                for tasks in (2, 4)
            ]
            for function in (step_flops, step_memory, sent)
        ]
        assert all(few <= many for few, many in costs)
        assert all((few < many) == (mode != "plain") for few, many in costs[:2])


@pytest.mark.parametrize(
    ("name", "modes"),
    [
        ("sum", ["plain"]),
        ("uncertainty+geometric", ["plain"]),
        ("pcgrad", ["exact", "sketched", "features", "last_layer"]),
        ("uncertainty+mclgs+cagrad", ["exact", "sketched", "features", "last_layer"]),
        ("graddrop", ["parts"]),
        ("recon_scores", ["parts"]),
        ({"name": "connection_strength", "phases": "grouped"}, ["parts"]),
        ({"name": "recon", "layers": ["a"]}, ["plain"]),
        ({"name": "recon", "layers": ["a"], "combination": "mgda"}, ["exact"]),
        ("rotograd", ["features"]),
    ],
)
def test_modes_of_methods(name, modes):
    assert modes_of(build_balancer(name)) == modes


def test_the_table_has_every_combination():
    result = reckon_comm(num_ranks=[2, 16], num_parameters=[1000, 2000], method="graddrop", num_tasks=3)
    assert list(result["modes"]) == ["plain", "parts"]
    assert len(result["rows"]) == 8
    page = comm_table(result)
    assert page.count("\n| 16 | parts |") == 2
    assert "2,000 parameters" in page
    assert "| exact |" not in page


def test_what_is_refused():
    with pytest.raises(ValueError, match="num_ranks is 1; allowed: 2 or more"):
        StepShape(num_ranks=1, num_parameters=10)
    with pytest.raises(ValueError, match="num_tasks is 0"):
        StepShape(num_ranks=2, num_parameters=10, num_tasks=0)
    with pytest.raises(ValueError, match="zero_stage is 4; allowed: 0, 1, 2, 3"):
        StepShape(num_ranks=2, num_parameters=10, zero_stage=4)
    with pytest.raises(ValueError, match="mode is 'exakt'; allowed: plain, exact"):
        step_exchanges("exakt", StepShape(num_ranks=2, num_parameters=10))
    with pytest.raises(ValueError, match="unknown balancer 'pcgrat'"):
        reckon_comm(num_ranks=[2], num_parameters=[10], method="pcgrat")


def test_sent_bytes_of_each_kind():
    assert sent_bytes("all_reduce", 100, 2) == 100
    assert {
        sent_bytes(kind, 100, 2) for kind in ("reduce_scatter", "all_gather", "all_to_all", "broadcast")
    } == {50}
