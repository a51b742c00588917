"""The page in a real browser: silent console, every figure drawn, no sideways scrolling, fit for print."""

import re

import pytest

from perception.visualization import write_report
from tests.visualization import browser
from tests.visualization.run_folders import TOKENS, config, log, metrics, sample_scores, write_run


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    scores = sample_scores((0.5, 0.1, 0.9, 0.3, 0.6, 0.7))
    for index, name in enumerate(("sum", "pcgrad", "a_method_with_quite_a_long_name_indeed", "x", "y", "z")):
        write_run(
            folder / name / "seed0",
            cfg=config(name),
            scores=metrics(0.2 + 0.1 * index),
            lines=log(score=0.2 + 0.1 * index),
            samples=scores if index < 2 else None,
            pictures=TOKENS if index < 2 else (),
        )
    return write_report(folder)


def test_the_console_is_silent(page, tmp_path):
    assert browser.console(tmp_path, page) == []


@pytest.mark.parametrize("width", [390, 1400])
def test_every_figure_is_there_and_nothing_scrolls_sideways(page, tmp_path, width):
    found = browser.measure(tmp_path, page, width)
    assert found["width"] == width
    assert found["scroll"] <= width
    figures = found["figures"]
    assert len(figures) == page.read_text(encoding="utf-8").count("<figure")
    shown = [figure for figure in figures if not figure["hidden"]]
    assert {figure["kind"] for figure in shown} == {"img", "svg", "table"}
    for figure in shown:
        assert figure["loaded"]
        assert figure["width"] > 140
        assert figure["height"] > 60


def test_it_prints_on_a_few_pages(page, tmp_path):
    content = browser.print_pdf(tmp_path, page)
    assert content.startswith(b"%PDF")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", content)) <= 20
