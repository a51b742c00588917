"""The report of several runs: differences and their errors, charts, pictures, and what is not compared."""

import html
import re

import pytest

from perception.config import ConfigError
from perception.utils.seed_statistics import over_seeds
from perception.visualization import write_report
from perception.visualization.report.page import default_path
from perception.visualization.report.scores import compare_cell
from tests.visualization.run_folders import TOKENS, config, log, metrics, sample_scores, write_run

BEFORE, AFTER = sample_scores((0.5, 0.1, 0.9, 0.3, 0.6, 0.7)), sample_scores((0.4, 0.3, 0.9, 0.9, 0.1, 0.7))


def words(page):
    body = re.sub(r"<style>.*?</style>|<wbr>", "", page, flags=re.S)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", body)))


@pytest.fixture
def runs(tmp_path):
    """Two methods with three seeds, the second better, and a single-task run."""
    for name, score in (("sum", 0.2), ("pcgrad", 0.4)):
        for seed in (0, 1, 2):
            write_run(
                tmp_path / name / f"seed{seed}",
                cfg=config(name, seed=seed),
                scores=metrics(score + 0.01 * seed),
                lines=log(score=score, is_balanced=name == "pcgrad"),
                samples=BEFORE if name == "sum" else AFTER,
                pictures=TOKENS if seed == 0 else (),
            )
    write_run(tmp_path / "single-det" / "seed0", cfg=config("det"), scores=metrics(0.3), lines=log())
    return tmp_path


def test_a_difference_is_judged_by_both_errors():
    low, high = over_seeds([0.20, 0.21, 0.22]), over_seeds([0.40, 0.41, 0.42])
    better = compare_cell(high, low, decimals=3)
    assert (better.value, better.error, better.difference) == ("0.410", "±0.006", "+0.200 ±0.008")
    assert better.verdict == "better"
    assert compare_cell(high, low, decimals=3, is_lower_better=True).verdict == "worse"
    assert compare_cell(low, over_seeds([0.20, 0.22, 0.24]), decimals=3).verdict == ""
    assert compare_cell(high, over_seeds([0.20, 0.21]), decimals=3).verdict == ""  # two seeds say little
    alone = compare_cell(over_seeds([0.4]), low, decimals=3)  # one seed has no error, so nothing is claimed
    assert (alone.error, alone.difference, alone.verdict) == ("", "+0.190", "")
    assert compare_cell(None, low, decimals=3).value == ""


def test_every_section_is_there(runs):
    def scored(groups, notes):
        assert [group.label for group in groups] == ["sum", "pcgrad", "single-det"]
        notes.append("A note of the scoring.")
        number = {"mean": 0.1234, "standard_error": 0.01, "num_seeds": 2}
        return {"pcgrad": {"delta_m_drop": number, "delta_m_gain": None, "acc_mtl": number}}

    page = write_report(runs, score_groups=scored).read_text(encoding="utf-8")
    text = words(page)
    for piece in (
        "sum · pcgrad",
        "sum reference",
        "+0.200 ±0.008 ▲",
        "12.3 ±1.0 – 0.123 ±0.010",
        "Best sample",
        "Worst sample",
        "Most gained",
        "Most lost",
        "loss of velocity",
        "learning rate",
        "cosines of task gradients over training steps",
        "coefficients of the task gradients in the update",
        "priorities",
        "pairs in conflict",
        "training speed, samples/s 1.90",
        "2,346 MB",
        "waiting for data 20%",
        "optim_wrapper.balancer.name",
        "A note of the scoring.",
        "seed0",
    ):
        assert piece in text
    assert page.count("<img ") == 8  # four samples, two runs
    assert len(re.findall(r'<img [^>]*alt="[^"]{10,}"', page)) == 8
    assert page.count("<svg") == page.count('role="img"') > 10


def test_another_reference_and_one_that_is_not_there(runs):
    page = write_report(runs, runs / "page.html", reference="pcgrad").read_text(encoding="utf-8")
    assert "−0.200 ±0.008 ▼" in words(page)
    with pytest.raises(
        ConfigError, match=r"--reference 'pcgrat'.*Did you mean 'pcgrad'.*Allowed: sum, pcgrad"
    ):
        write_report(runs, reference="pcgrat")


def test_other_data_is_not_compared(tmp_path):
    for name, ann_file, score in (("a", "mini_val.json", 0.2), ("b", "val.json", 0.4)):
        write_run(tmp_path / name, cfg=config(name, ann_file=ann_file), scores=metrics(score))
    text = words(write_report([tmp_path / "a", tmp_path / "b"]).read_text(encoding="utf-8"))
    assert "scored on different data" in text
    assert "b (other data) 0.400" in text
    assert "+0.200" not in text


def test_runs_without_evaluation_pictures_or_log_are_on_the_page(tmp_path):
    write_run(tmp_path / "whole")
    bare = write_run(tmp_path / "bare", cfg=config("x"), scores={}, lines=[])
    (bare / "log.jsonl").unlink()
    text = words(write_report([tmp_path / "whole", bare]).read_text(encoding="utf-8"))
    for piece in (
        "bare: there was no evaluation, so no scores; `perception test RUN` makes one.",
        "bare: there is no log.jsonl",
        "No run holds metrics_per_sample.json",
    ):
        assert piece in text


def test_absent_pictures_of_ranked_samples_are_said(tmp_path):
    write_run(tmp_path / "run", samples=BEFORE)
    assert "--draw 1" in words(write_report(tmp_path / "run").read_text(encoding="utf-8"))


def test_where_the_page_goes(tmp_path):
    assert default_path([tmp_path / "a"]) == tmp_path / "a" / "report.html"
    assert default_path([tmp_path / "x" / "a", tmp_path / "y"]) == tmp_path / "report.html"


def test_names_are_escaped(tmp_path):
    write_run(tmp_path / "a<b>&c", cfg=config("<script>"))
    write_run(tmp_path / "d", cfg=config("d"))
    page = write_report([tmp_path / "a<b>&c", tmp_path / "d"]).read_text(encoding="utf-8")
    assert "<script" not in page
    assert "a<b>" not in page
    assert re.search(r"https?://", page) is None
