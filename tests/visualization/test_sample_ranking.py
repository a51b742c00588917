"""Which samples are shown: by the mean of their scores and by its change, the damaged and the odd ones left out."""

import json

from perception.visualization.sample_ranking import (
    choose_pair,
    find_pictures,
    rank_samples,
    read_sample_scores,
)
from tests.visualization.run_folders import TOKENS, draw, sample_scores

BEFORE = sample_scores((0.5, 0.1, 0.9, 0.3, 0.6, 0.7))
AFTER = sample_scores((0.4, 0.3, 0.9, 0.9, 0.1, 0.7))


def ranked(*args, **kwargs):
    return [(sample.kind, TOKENS.index(sample.token)) for sample in rank_samples(*args, **kwargs)]


def test_best_worst_and_most_changed():
    assert ranked(BEFORE) == [("best", 2), ("worst", 1)]
    assert ranked(BEFORE, AFTER) == [("best", 2), ("worst", 1), ("gained", 3), ("lost", 4)]
    two = ranked(BEFORE, AFTER, num=2)
    assert two[:4] == [("best", 2), ("best", 5), ("worst", 1), ("worst", 3)]
    assert two[4:] == [("gained", 3), ("gained", 1), ("lost", 4), ("lost", 0)]


def test_runs_that_agree_have_no_changed_samples():
    assert ranked(BEFORE, BEFORE) == [("best", 2), ("worst", 1)]
    assert ranked({}) == []
    assert ranked({TOKENS[0]: {"mIoU": 0.5}}) == [("best", 0)]


def test_samples_with_fewer_scores_are_not_compared_with_the_others():
    mixed = {**BEFORE, TOKENS[0]: {"mIoU": 1.0}, TOKENS[1]: {"mIoU": 0.0}}
    assert ranked(mixed) == [("best", 2), ("worst", 3)]


def test_the_reference_and_the_best_other_run_are_shown():
    assert choose_pair([BEFORE, AFTER, {}]) == (0, 1)
    assert choose_pair([BEFORE, {}], first=1) == (0, None)
    assert choose_pair([{}, {}]) is None
    assert choose_pair([BEFORE, {TOKENS[0]: {"mIoU": 1.0}}]) == (0, None)  # other tasks


def test_pictures_are_found_by_token_and_by_stem(tmp_path):
    draw(tmp_path / "pictures" / "ranked", [TOKENS[0], "frame-7.jpg"])
    draw(tmp_path / "pictures" / "more", [TOKENS[1]])
    found = find_pictures(tmp_path)
    assert set(found) == {TOKENS[0], "frame-7.jpg", "frame-7"}
    found[TOKENS[0]].unlink()
    assert TOKENS[0] not in find_pictures(tmp_path)
    assert find_pictures(tmp_path / "nowhere") == {}


def test_damaged_scores_are_no_scores(tmp_path):
    path = tmp_path / "metrics_per_sample.json"
    assert read_sample_scores(tmp_path) == {}
    for text in ("{", "[]", '{"samples": 3}', '{"samples": {"a": 1, "b": {"mIoU": null}}}'):
        path.write_text(text)
        assert read_sample_scores(tmp_path) == {}
    path.write_text(json.dumps({"samples": {"a": {"mIoU": 0.5, "note": "x"}}}))
    assert read_sample_scores(tmp_path) == {"a": {"mIoU": 0.5}}
