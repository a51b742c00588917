"""The digits benchmark: its data, one run, and the whole with two methods."""

import json
from pathlib import Path

import pytest
import torch

from perception.balancing import AchievementWeights, balancer_names, build_balancer
from perception.balancing.dynamic_weights import DynamicTaskWeights
from perception.balancing.kpi_average import KpiAverage
from perception.engine.digits_benchmark import (
    TABLE_FILE,
    check_digits_methods,
    digits_spec,
    run_digits_benchmark,
)
from perception.engine.digits_data import load_digit_pairs
from perception.engine.digits_table import methods_table
from perception.engine.digits_training import (
    DigitsNet,
    DigitsSettings,
    make_wrapper,
    score_digits,
    train_digits,
)

pytest.importorskip("sklearn", reason="the digits are scikit-learn's")

TINY = DigitsSettings(epochs=2, num_train=128, num_eval=64, width=8)


def test_pairs_are_real_seeded_and_disjoint() -> None:
    pairs, again = load_digit_pairs("train", 200), load_digit_pairs.__wrapped__("train", 200)
    torch.testing.assert_close(pairs.images, again.images, rtol=0, atol=0)
    assert pairs.images.shape == (200, 1, 12, 12)
    assert pairs.images.min() == 0
    assert pairs.images.max() == 1
    assert set(pairs.left.tolist()) == set(pairs.right.tolist()) == set(range(10))
    # Outside the overlap a canvas shows its left digit alone.
    train, test = (
        {tuple(image[0, :8, :4].flatten().tolist()) for image in load_digit_pairs(split, 600).images}
        for split in ("train", "test")
    )
    assert len(train) > 300
    assert not train & test


def test_a_run_learns_and_is_seeded() -> None:
    few, many = (
        train_digits("sum", seed=0, settings=DigitsSettings(epochs=epochs, num_train=640))
        for epochs in (1, 6)
    )
    assert many.metrics["accuracy_left"] > max(0.5, few.metrics["accuracy_left"])
    assert many.metrics["mse_recon"] < few.metrics["mse_recon"]
    again = train_digits("sum", seed=0, settings=DigitsSettings(epochs=1, num_train=640))
    assert again.metrics == few.metrics
    other = train_digits("sum", seed=1, settings=DigitsSettings(epochs=1, num_train=640))
    assert other.metrics != few.metrics


def test_single_task_runs_train_one_head() -> None:
    result = train_digits("sum", seed=0, settings=TINY, tasks=("right",))
    assert set(result.metrics) == {"accuracy_right"}
    assert result.conflict_share is None


def test_the_benchmark_is_resumed(tmp_path: Path) -> None:
    lines: list[str] = []
    names = ["pcgrad", "amtl"]
    result = run_digits_benchmark(names, num_seeds=2, out=tmp_path, settings=TINY, say=lines.append)
    assert len(lines) == 10
    assert set(result["methods"]) == set(names)
    assert 0 <= result["methods"]["pcgrad"]["conflict_share"]["mean"] <= 1
    assert result["methods"]["amtl"]["conflict_share"] is None
    row = result["methods"]["pcgrad"]
    assert row["delta_m_drop"]["mean"] == pytest.approx(-row["delta_m_gain"]["mean"])
    # By hand: the mean over tasks of the relative drops of the seeds' means.
    single = [
        result["single"][task]["metrics"][name]["mean"]
        for task, name in zip(("left", "right", "recon"), row["metrics"], strict=True)
    ]
    found = [mean["mean"] for mean in row["metrics"].values()]
    drops = [sign * (a - b) / b for sign, a, b in zip((-1, -1, 1), found, single, strict=True)]
    assert row["delta_m_drop"]["mean"] == pytest.approx(sum(drops) / 3)
    assert json.loads((tmp_path / "digits.json").read_text()) == result
    assert "| pcgrad |" in (tmp_path / TABLE_FILE).read_text()

    lines.clear()
    again = run_digits_benchmark(names, num_seeds=2, out=tmp_path, settings=TINY, say=lines.append)
    assert lines == []
    assert again["methods"] == result["methods"]
    with pytest.raises(ValueError, match="other settings"):
        run_digits_benchmark(names, out=tmp_path, settings=DigitsSettings(epochs=1), say=lines.append)


def test_every_method_is_checked_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Did you mean 'pcgrad'"):
        run_digits_benchmark(["sum", "pcgard"], out=tmp_path, settings=TINY)
    assert not list(tmp_path.iterdir())
    assert check_digits_methods(balancer_names(), TINY) == {}


@pytest.mark.parametrize("method", ["connection_strength", "recon", "cross_stitch"])
def test_methods_that_change_the_network(tmp_path: Path, method: str) -> None:
    result = run_digits_benchmark([method], num_seeds=1, out=tmp_path, settings=TINY, say=lambda _: None)
    assert not result["failed"]
    assert method in result["methods"]
    run = json.loads((tmp_path / "runs" / f"{method}.seed0.json").read_text())
    if method == "recon":
        scores = json.loads((tmp_path / "runs" / "recon_scores.seed0.json").read_text())
        assert len(scores["recon_layers"]) == 1
        assert run["spec"]["layers"] == scores["recon_layers"]


def test_recons_first_run_trains_as_the_plain_sum() -> None:
    scores, plain = (
        train_digits(spec, seed=0, settings=TINY)
        for spec in ({"name": "recon_scores", "num_layers": 4}, "sum")
    )
    assert set(scores.recon_layers) == {"trunk.1.0", "trunk.1.1", "trunk.2.0", "trunk.2.1"}
    for name, value in plain.metrics.items():
        assert scores.metrics[name] == pytest.approx(value, rel=1e-4)


def test_each_task_is_scored_by_its_own_copies() -> None:
    settings = DigitsSettings(epochs=1, num_train=128, num_eval=64, width=8)
    net = DigitsNet(width=8)
    model, wrapper = make_wrapper(net, {"name": "recon", "layers": ["trunk.2.0"]}, settings)
    with torch.no_grad():
        model.trunk[2][0]["recon"].weight.zero_()
    test = load_digit_pairs("test", 64)
    found, before = (score_digits(m, p, test) for m, p in ((model, wrapper.balancer.plan), (net, ())))
    assert found["accuracy_left"] == before["accuracy_left"]
    assert found["accuracy_right"] == before["accuracy_right"]
    assert found["mse_recon"] != pytest.approx(before["mse_recon"], rel=1e-3)


def test_methods_that_follow_scores_know_that_a_lower_error_is_better() -> None:
    # Else the reconstruction's 0.02 would pass for an accuracy, and the task for far the hardest.
    for name in balancer_names():
        balancer = build_balancer(
            digits_spec(name, {"left": 0.9, "right": 0.9, "recon": 0.02}, ["trunk.1.0"])
        )
        for component in getattr(balancer, "components", ()):
            if isinstance(component, AchievementWeights | DynamicTaskWeights):
                (scores,) = [part for part in _parts(component) if isinstance(part, KpiAverage)]
                assert scores.lower_is_better == ("recon",)


def _parts(component):  # noqa: ANN001, ANN202
    for part in component.parts():
        yield part
        yield from _parts(part)


def test_a_failed_run_does_not_end_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from perception.engine import digits_benchmark

    def train(spec, **options):  # noqa: ANN001, ANN003, ANN202
        if spec == "mgda":
            raise FloatingPointError("nan")
        return train_digits(spec, **options)

    monkeypatch.setattr(digits_benchmark, "train_digits", train)
    result = run_digits_benchmark(
        ["mgda", "rlw"], num_seeds=1, out=tmp_path, settings=TINY, say=lambda _: None
    )
    assert set(result["methods"]) == {"rlw"}
    assert result["failed"] == {"mgda.seed0": "FloatingPointError: nan"}


def test_the_page_shows_the_committed_result() -> None:
    folder = Path(__file__).resolve().parents[2] / "docs" / "results"
    text = (folder / "digits.json").read_text(encoding="utf-8")
    result = json.loads(text)
    assert methods_table(result) in (folder / "digits.md").read_text(encoding="utf-8")
    assert set(result["methods"]) <= set(balancer_names())
    assert not result["failed"]
    assert result["command"] == "python tools/bench_digits.py"
    assert result["settings"] == DigitsSettings().describe()
    assert text.replace(result["command"], "").count("/") == 0  # no path of a machine


def test_the_width_of_the_code_is_shared() -> None:
    net = DigitsNet(width=8)
    pairs = load_digit_pairs("train", 4)
    terms = net(pairs.images, pairs.left, pairs.right, mode="loss")
    losses, _ = net.parse_losses(terms)
    assert tuple(losses) == net.task_names
    for loss in losses.values():
        gradient = torch.autograd.grad(loss, next(net.trunk.parameters()), retain_graph=True)[0]
        assert gradient.abs().sum() > 0
