"""NuScenesDetectionMetric against nuscenes-devkit, run on the tables' own annotations."""

import copy
import json
import logging
import pickle

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection import evaluate
from nuscenes.eval.detection.evaluate import DetectionEval

from perception.config import ConfigError
from perception.evaluation import NuScenesDetectionMetric, _devkit
from perception.structures import CLASS_NAMES
from perception.utils import DataError


@pytest.fixture
def metric(tiny_root):
    return NuScenesDetectionMetric(data_root=str(tiny_root), version="v1.0-mini")


def run(metric, samples, size=None):
    evaluator = Evaluator([metric])
    evaluator.process(samples)
    return evaluator.evaluate(len(samples) if size is None else size)


def official(tables, tmp_path, edit=lambda entry: entry):
    """The devkit's summary of the tables' own annotations given back as predictions, score 1."""
    names = {attribute["token"]: attribute["name"] for attribute in tables.attribute}
    results = {}
    for sample in tables.sample:
        results[sample["token"]] = []
        for token in sample["anns"]:
            annotation = tables.get("sample_annotation", token)
            entry = {
                "sample_token": sample["token"],
                "translation": annotation["translation"],
                "size": annotation["size"],
                "rotation": annotation["rotation"],
                "velocity": tables.box_velocity(token)[:2].tolist(),
                "detection_name": token.split("-")[-1],
                "detection_score": 1.0,
                "attribute_name": names[annotation["attribute_tokens"][0]]
                if annotation["attribute_tokens"]
                else "",
            }
            results[sample["token"]].append(edit(entry))
    path = tmp_path / "official.json"
    path.write_text(json.dumps({"meta": {}, "results": results}))
    config = config_factory("detection_cvpr_2019")
    evaluation = DetectionEval(tables, config, str(path), "mini_val", str(tmp_path / "out"), verbose=False)
    return evaluation.evaluate()[0].serialize()


def test_ground_truth_scores_as_the_devkit_says(metric, tiny_samples, tiny_tables, tmp_path):
    scores = run(metric, tiny_samples)
    expected = official(tiny_tables, tmp_path)
    assert scores["mAP"] == pytest.approx(expected["mean_ap"], abs=1e-6)
    assert scores["NDS"] == pytest.approx(expected["nd_score"], abs=1e-4)
    assert scores["AP/car"] < 1.0  # two cars without points are false positives, and nothing else is lost
    assert all(scores[f"AP/{name}"] == pytest.approx(1.0) for name in CLASS_NAMES if name != "car")
    for key in ("mATE", "mASE", "mAOE", "mAVE", "mAAE"):
        assert scores[key] < 1e-4
    assert scores["comparable"] is True


def test_keys_cover_every_defined_error_and_no_other(metric, tiny_samples):
    scores = run(metric, tiny_samples)
    undefined = {"AOE/traffic_cone", "AVE/traffic_cone", "AAE/traffic_cone", "AVE/barrier", "AAE/barrier"}
    keys = {f"{error}/{name}" for error in ("AP", "ATE", "ASE", "AOE", "AVE", "AAE") for name in CLASS_NAMES}
    expected = (keys - undefined) | {"NDS", "mAP", "mATE", "mASE", "mAOE", "mAVE", "mAAE", "comparable"}
    assert set(scores) == expected
    assert all(np.isfinite(value) for value in scores.values())


@pytest.mark.parametrize(
    ("column", "offset", "key", "expected"),
    [(0, 0.7, "mATE", 0.7), (2, 1.0, "mATE", 0.0), (6, 0.3, "ATE/car", 0.0), (6, 0.3, "AOE/car", 0.3)],
)
def test_an_error_put_in_comes_out(metric, tiny_samples, column, offset, key, expected):
    for sample in tiny_samples:
        sample.pred_instances_3d.bboxes_3d.tensor[:, column] += offset
    assert run(metric, tiny_samples)[key] == pytest.approx(expected, abs=1e-3)


def test_velocity_is_rotated_and_its_error_is_measured(metric, tiny_samples):
    for sample in tiny_samples:
        sample.pred_instances_3d.bboxes_3d.tensor[:, 7:9] += torch.tensor([0.6, 0.8])
    assert run(metric, tiny_samples)["mAVE"] == pytest.approx(1.0, abs=1e-3)


def test_attributes_follow_class_and_speed(metric, tiny_samples):
    for sample in tiny_samples:
        del sample.pred_instances_3d.attributes
    # Every object of the world obeys the rule.
    assert run(metric, tiny_samples)["mAAE"] == pytest.approx(0.0, abs=1e-6)
    for sample in tiny_samples:
        sample.pred_instances_3d.bboxes_3d.tensor[:, 7:9] = 0.0
    assert run(metric, tiny_samples)["AAE/car"] == pytest.approx(1.0)


@pytest.mark.parametrize("keep", [0, 1])
def test_all_empty_predictions_score_zero(metric, tiny_samples, keep, caplog):
    for index, sample in enumerate(tiny_samples):
        if index >= keep:
            sample.pred_instances_3d = sample.pred_instances_3d[:0]
    if keep:  # only a far away box, dropped by the devkit's range filter
        tiny_samples[0].pred_instances_3d.bboxes_3d.tensor[:, 0] += 500.0
    scores = run(metric, tiny_samples)
    assert scores["NDS"] == scores["mAP"] == 0.0
    assert [scores[key] for key in ("mATE", "mASE", "mAOE", "mAVE", "mAAE")] == [1.0] * 5
    assert ("No box was predicted" in caplog.text) == (keep == 0)


def test_a_split_without_boxes_of_the_classes_scores_zero(make_database, tmp_path, tiny_samples):
    root = make_database(tmp_path / "other")
    path = root / "v1.0-mini" / "category.json"
    records = json.loads(path.read_text())
    path.write_text(json.dumps([{**record, "name": "animal"} for record in records]))
    scores = run(NuScenesDetectionMetric(data_root=str(root), version="v1.0-mini"), tiny_samples)
    assert scores["NDS"] == scores["mAP"] == 0.0


def test_tables_without_annotations_are_refused_not_scored(make_database, tmp_path, tiny_samples):
    root = make_database(tmp_path / "empty", with_boxes=False)
    # The devkit links instances to categories at start-up, so one instance without annotations is kept.
    records = [{"token": "i", "category_token": "cat-vehicle.car"}]
    (root / "v1.0-mini" / "instance.json").write_text(json.dumps(records))
    metric = NuScenesDetectionMetric(data_root=str(root), version="v1.0-mini")
    for score in (lambda: metric.check_dataset({}), lambda: run(metric, tiny_samples)):
        with pytest.raises(DataError, match=r"nothing to score against.*format_only=True.*sample_annotation"):
            score()
    writing = NuScenesDetectionMetric(
        data_root=str(root), version="v1.0-mini", format_only=True, out_dir=str(tmp_path / "out")
    )
    writing.check_dataset({"version": "v1.0-mini", "split": "mini_val"})
    assert run(writing, tiny_samples) == {}


@pytest.mark.parametrize(
    ("metainfo", "message"),
    [
        ({"version": "v1.0-trainval", "split": "val"}, "version 'v1.0-trainval'.*set to 'v1.0-mini'"),
        ({"version": "v1.0-mini", "split": "mini_train"}, "evaluator's eval_set to 'mini_train'"),
    ],
)
def test_another_version_or_split_is_refused_before_the_first_sample(metric, metainfo, message):
    with pytest.raises(ConfigError, match=message):
        metric.check_dataset(metainfo)
    metric.check_dataset({"version": "v1.0-mini", "split": "mini_val"})
    metric.check_dataset({})  # an index of another origin
    assert "tables" not in vars(metric)


@pytest.mark.parametrize("name", ["v1.0-mini/visibility.json", "v1.0-mini/map.json", "maps/map.png"])
def test_a_missing_table_or_mask_is_named_before_the_first_sample(make_database, tmp_path, name):
    root = make_database(tmp_path / "damaged")
    metric = NuScenesDetectionMetric(data_root=str(root), version="v1.0-mini")
    metric.check_dataset({})
    (root / name).unlink()
    with pytest.raises(DataError, match=f"metadata archive.*{name}"):
        metric.check_dataset({})


def test_the_tables_are_let_go_after_an_evaluation(metric, tiny_samples):
    first = run(metric, tiny_samples)
    assert "tables" not in vars(metric)
    assert run(metric, tiny_samples) == first


def test_subset_is_scored_on_its_own_ground_truth_and_marked(tiny_root, tiny_samples, caplog):
    metric = NuScenesDetectionMetric(data_root=str(tiny_root), version="v1.0-mini", subset=True)
    with caplog.at_level(logging.WARNING):
        scores = run(metric, tiny_samples[1:3])
    assert scores["comparable"] is False
    assert "2 of 6 samples" in caplog.text
    assert scores["mAP"] == pytest.approx(1.0)  # samples 1 and 2 hold no box without points


def test_subset_of_everything_equals_the_official_evaluation(metric, tiny_root, tiny_samples):
    for sample in tiny_samples:
        sample.pred_instances_3d.bboxes_3d.tensor[:, 0] += 0.8
    part = NuScenesDetectionMetric(data_root=str(tiny_root), version="v1.0-mini", subset=True)
    whole, subset = run(metric, tiny_samples), run(part, tiny_samples)
    assert {**whole, "comparable": False} == subset


def test_missing_samples_are_named(metric, tiny_samples):
    with pytest.raises(ValueError, match=r"1 of 6 samples have no result: scene-0916-2.*subset=True"):
        run(metric, tiny_samples[:-1])


def test_samples_of_another_split_are_named(tiny_root, tiny_samples):
    tiny_samples[0].set_metainfo({"sample_token": "stranger"})
    metric = NuScenesDetectionMetric(data_root=str(tiny_root), version="v1.0-mini")
    with pytest.raises(ValueError, match="do not belong to the split: stranger"):
        run(metric, tiny_samples)


def test_at_most_500_boxes_per_sample_the_best_ones(tiny_root, tiny_samples, tmp_path):
    crowd = tiny_samples[0].pred_instances_3d
    many = crowd[torch.arange(10).repeat(60)]
    many.scores_3d = torch.linspace(0, 1, 600)
    tiny_samples[0].pred_instances_3d = many
    out = tmp_path / "out dir ö"
    metric = NuScenesDetectionMetric(data_root=str(tiny_root), version="v1.0-mini", out_dir=str(out))
    run(metric, tiny_samples)
    entries = json.loads((out / "results_nusc.json").read_text())["results"][tiny_samples[0].sample_token]
    assert len(entries) == 500
    assert entries[0]["detection_score"] == 1.0
    assert min(entry["detection_score"] for entry in entries) == pytest.approx(100 / 599)
    summary = json.loads((out / "metrics_summary.json").read_text())
    assert summary["label_tp_errors"]["barrier"]["vel_err"] is None


def test_format_only_writes_a_file_that_the_devkit_reads(tiny_root, tiny_samples, tiny_tables, tmp_path):
    metric = NuScenesDetectionMetric(
        data_root=str(tiny_root), version="v1.0-mini", out_dir=str(tmp_path), format_only=True
    )
    assert run(metric, tiny_samples) == {}
    config = config_factory("detection_cvpr_2019")
    path = str(tmp_path / "results_nusc.json")
    evaluation = DetectionEval(tiny_tables, config, path, "mini_val", str(tmp_path), verbose=False)
    assert evaluation.evaluate()[0].mean_ap > 0.9
    assert not (tmp_path / "metrics_summary.json").exists()


def test_the_devkit_stays_quiet(metric, tiny_samples, capfd):
    run(metric, tiny_samples)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


@pytest.mark.parametrize(("column", "value"), [(0, "nan"), (3, "inf"), (8, "-inf")])
def test_boxes_that_are_not_finite_are_left_out_and_counted(metric, tiny_samples, caplog, column, value):
    expected = run(metric, [without_box(sample, 2) for sample in copy.deepcopy(tiny_samples)])
    for sample in tiny_samples:
        sample.pred_instances_3d.bboxes_3d.tensor[2, column] = float(value)
    found = run(metric, tiny_samples)
    assert found.pop("num_dropped_boxes") == len(tiny_samples)
    assert found == expected
    assert [record.message for record in caplog.records if "not finite" in record.message] == [
        f"Sample {tiny_samples[0].sample_token}: 1 predicted boxes are not finite and are left out, as any later ones "
        "will be without a word; num_dropped_boxes counts them. The model has diverged: evaluate an earlier checkpoint."
    ]


def without_box(sample, number):
    predicted = sample.pred_instances_3d
    sample.pred_instances_3d = predicted[torch.arange(len(predicted.scores_3d)) != number]
    return sample


def test_boxes_without_a_size_are_refused_with_their_sample(metric, tiny_samples):
    tiny_samples[0].pred_instances_3d.bboxes_3d.tensor[2, 3] = 0.0
    with pytest.raises(ValueError, match="scene-0103-0.*not positive"):
        run(metric, tiny_samples)


def test_unknown_label_augmented_sample_and_missing_boxes_are_refused(metric, tiny_samples):
    tiny_samples[0].pred_instances_3d.labels_3d[0] = 10
    with pytest.raises(ValueError, match=r"allowed 0\.\.\.9"):
        run(metric, tiny_samples[:1])
    tiny_samples[1].set_metainfo({"bev_aug": np.diag([-1.0, 1.0, 1.0, 1.0])})
    with pytest.raises(ValueError, match="without augmentation"):
        run(metric, tiny_samples[1:2])
    del tiny_samples[2].pred_instances_3d
    with pytest.raises(ValueError, match="predicts no boxes"):
        run(metric, tiny_samples[2:3])


def test_a_root_without_nuscenes_is_a_data_error(tmp_path, tiny_samples):
    metric = NuScenesDetectionMetric(data_root=str(tmp_path), version="v1.0-mini")
    with pytest.raises(DataError, match="found: none"):
        run(metric, tiny_samples)


def test_a_damaged_root_is_a_data_error(make_database, tmp_path, tiny_samples):
    root = make_database(tmp_path / "damaged")
    (root / "v1.0-mini" / "category.json").write_text("[]")
    with pytest.raises(DataError, match="perception data verify"):
        run(NuScenesDetectionMetric(data_root=str(root), version="v1.0-mini"), tiny_samples)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="set eval_set"):
        NuScenesDetectionMetric(data_root="x", version="v9")
    with pytest.raises(ValueError, match="set out_dir"):
        NuScenesDetectionMetric(data_root="x", version="v1.0-test", format_only=True)
    assert NuScenesDetectionMetric(data_root="x", version="v1.0-test").eval_set == "test"


def test_whole_split_is_loaded_by_the_devkit_once(metric, tiny_samples, monkeypatch):
    calls = []
    for module in (_devkit, evaluate):
        for name in (
            "load_prediction",
            "load_prediction_of_sample_tokens",
            "load_gt",
            "load_gt_of_sample_tokens",
        ):
            if hasattr(module, name):
                original = getattr(module, name)
                monkeypatch.setattr(
                    module, name, lambda *a, _f=original, _n=name, **k: (calls.append(_n), _f(*a, **k))[1]
                )
    run(metric, tiny_samples)
    assert sorted(calls) == ["load_gt", "load_prediction"]


def test_a_sample_is_kept_in_few_bytes(metric, tiny_samples):
    sample = tiny_samples[0]
    sample.pred_instances_3d = type(sample.pred_instances_3d).cat([sample.pred_instances_3d] * 30)
    del sample.pred_instances_3d.attributes
    found = metric.process_sample(sample)
    assert len(found) > 100
    assert len(pickle.dumps(found)) < 60 * len(found)
