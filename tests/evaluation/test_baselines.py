"""Ground truth scores what the metrics allow; the constant is the best guess without images."""

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.structures import PixelData

from perception.evaluation import (
    BEVSegMetric,
    ConstantBoxes,
    ConstantMap,
    ConstantPredictor,
    NuScenesDetectionMetric,
    baseline_predictions,
    ground_truth_predictions,
)
from perception.structures import CLASS_NAMES


class Samples:
    """A dataset of ready samples; with an index if `instances` is given."""

    def __init__(self, samples, instances=None):
        self.samples = samples
        self.instances = instances
        self.metainfo = {"classes": CLASS_NAMES}

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return {"data_samples": self.samples[index]}

    def get_data_info(self, index):
        return {} if self.instances is None else {"instances": self.instances[index]}


@pytest.fixture
def dataset(tiny_samples):
    """The tiny world with random maps, and its index: centre z, an eleventh category, unknown velocities."""
    generator = torch.Generator().manual_seed(0)
    instances = []
    for sample in tiny_samples:
        sample.gt_bev_seg = PixelData(sem_seg=torch.randint(0, 4, (1, 20, 40), generator=generator))
        predicted = sample.pred_instances_3d
        del sample.pred_instances_3d
        rows = predicted.bboxes_3d.tensor.tolist()
        attributes = predicted.attributes
        instances.append([{"bbox_3d": [1.0] * 7, "bbox_label_3d": -1, "velocity": None}])
        for row, label, attribute in zip(rows, predicted.labels_3d.tolist(), attributes, strict=True):
            row[2] += row[5] / 2
            velocity = None if CLASS_NAMES[label] == "barrier" else row[7:9]
            entry = {"bbox_3d": row[:7], "bbox_label_3d": label, "velocity": velocity, "attribute": attribute}
            instances[-1].append(entry)
    return Samples(tiny_samples, instances)


def score(root, samples):
    evaluator = Evaluator([NuScenesDetectionMetric(data_root=str(root), version="v1.0-mini"), BEVSegMetric()])
    samples = list(samples)
    evaluator.process(samples)
    return evaluator.evaluate(len(samples))


@pytest.mark.parametrize("has_index", [True, False])
def test_ground_truth_gets_everything_but_the_boxes_without_points(dataset, tiny_root, has_index):
    if not has_index:
        dataset.instances = None
    scores = score(tiny_root, baseline_predictions("ground-truth", dataset))
    assert scores["mIoU"] == 1.0
    assert 0 < scores["AP/car"] < 1
    assert all(scores[f"AP/{name}"] == pytest.approx(1.0) for name in CLASS_NAMES if name != "car")
    assert max(scores[key] for key in ("mATE", "mASE", "mAOE", "mAVE", "mAAE")) < 1e-4


def test_labels_of_the_index_are_mapped_by_its_categories(dataset):
    order = sorted(CLASS_NAMES)
    dataset.metainfo["categories"] = {name: label for label, name in enumerate(order)}
    expected = [
        sample["data_samples"].gt_instances_3d.labels_3d.tolist()
        for sample in map(dataset.__getitem__, range(6))
    ]
    for instances in dataset.instances:
        for instance in instances:
            if instance["bbox_label_3d"] >= 0:
                instance["bbox_label_3d"] = order.index(CLASS_NAMES[instance["bbox_label_3d"]])
    found = [sample.pred_instances_3d.labels_3d.tolist() for sample in ground_truth_predictions(dataset)]
    assert found == expected


def test_ground_truth_leaves_the_dataset_alone(dataset):
    before = dataset[0]["data_samples"].gt_instances_3d.bboxes_3d.tensor.clone()
    predicted = next(ground_truth_predictions(dataset))
    predicted.pred_instances_3d.bboxes_3d.tensor.zero_()
    predicted.pred_bev_seg.sem_seg.zero_()
    assert torch.equal(dataset[0]["data_samples"].gt_instances_3d.bboxes_3d.tensor, before)
    assert "pred_instances_3d" not in dataset[0]["data_samples"]
    assert dataset[0]["data_samples"].gt_bev_seg.sem_seg.any()


def test_constant_scores_between_nothing_and_the_truth(dataset, tiny_root):
    scores = score(tiny_root, baseline_predictions("constant", dataset, training_dataset=dataset))
    assert 0 < scores["NDS"] < 1
    assert 0 < scores["mIoU"] < 1


def test_constant_without_maps_predicts_boxes_only(dataset, caplog):
    for sample in dataset.samples:
        sample.kept = sample.gt_bev_seg
        del sample.gt_bev_seg
    predictor = ConstantPredictor.fit(dataset)
    assert "predicts boxes only" in caplog.text
    with_map = dataset.samples[0].clone()
    with_map.gt_bev_seg = with_map.kept
    predicted = predictor.predict(with_map)
    assert "pred_bev_seg" not in predicted
    assert len(predicted.pred_instances_3d) > 0


def test_constant_boxes_are_the_most_frequent_ones():
    boxes = ConstantBoxes(num_classes=2, max_per_class=1)
    often = torch.tensor([[10.1, 4.1, 0.0, 4.0, 2.0, 1.5, np.pi - 0.1, 1.0, 0.0]])
    again = torch.tensor([[10.3, 4.3, 0.0, 5.0, 2.0, 1.5, -np.pi + 0.1, float("nan"), float("nan")]])
    once = torch.tensor([[-20.0, 4.0, 0.0, 4.0, 2.0, 1.5, 0.0, 0.0, 0.0]])
    for extra in (often, again, once):
        boxes.add(extra, torch.tensor([1]))
    boxes.add(torch.zeros(0, 9), torch.zeros(0, dtype=torch.long))
    predicted, labels, scores = boxes.best()
    assert labels.tolist() == [1]
    assert scores.tolist() == [0.5]
    assert predicted[0, :6].tolist() == pytest.approx([10.2, 4.2, 0.0, 4.5, 2.0, 1.5])
    assert abs(abs(float(predicted[0, 6])) - np.pi) < 1e-5  # circular mean across the cut, not 0
    assert predicted[0, 7:].tolist() == [1.0, 0.0]  # the unknown velocity does not count


def test_constant_boxes_number_at_most_500_and_far_ones_are_left_out():
    boxes = ConstantBoxes(num_classes=10)
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(5000, 9, generator=generator) * 100 - 50
    boxes.add(rows, torch.arange(5000) % 10)
    boxes.add(rows + 1000, torch.arange(5000) % 10)
    predicted, labels, scores = boxes.best()
    assert len(predicted) == 500
    assert torch.bincount(labels).tolist() == [50] * 10
    assert predicted[:, :2].abs().max() < 52
    assert scores.max() <= 1


def test_constant_map_finds_the_best_threshold():
    # Pixel frequencies 1, 2/3, 1/3: predicting the first two has IoU 5/7, more than 3/6 or 6/9.
    constant = ConstantMap(num_classes=2)
    for row in ([1, 1, 1], [1, 1, 0], [1, 0, 0]):
        constant.add(np.array([row]))
    assert constant.best().tolist() == [[1, 1, 0]]
    assert constant.training_miou() == pytest.approx(5 / 7)


def test_training_miou_is_that_of_the_metric_and_no_single_change_improves_it():
    rng = np.random.default_rng(0)
    weights = rng.dirichlet((3, 1, 1, 1), size=(12, 16))
    masks = [np.apply_along_axis(lambda p, draw=rng: draw.choice(4, p=p), 2, weights) for _ in range(8)]
    constant = ConstantMap(num_classes=4)
    metric = BEVSegMetric()
    for mask in masks:
        constant.add(mask)
    best = constant.best()
    for index, mask in enumerate(masks):
        sample = {"gt_bev_seg": {"sem_seg": torch.from_numpy(mask)}, "sample_token": str(index)}
        metric.process(None, [{**sample, "pred_bev_seg": {"sem_seg": torch.from_numpy(best)}}])
    miou = metric.evaluate(size=len(masks))["mIoU"]
    assert constant.training_miou() == pytest.approx(miou, abs=1e-12)
    frequency = np.stack([np.mean([mask == label for mask in masks], axis=0) for label in range(4)])
    assert miou > constant._miou(frequency.argmax(0))  # better than the most frequent class


def test_bad_use_is_refused(dataset):
    with pytest.raises(ValueError, match="allowed: constant, ground-truth"):
        baseline_predictions("zeros", dataset)
    with pytest.raises(ValueError, match="needs training_dataset"):
        baseline_predictions("constant", dataset)
    with pytest.raises(ValueError, match="counted no sample"):
        ConstantPredictor.fit(Samples([]))
    with pytest.raises(ValueError, match="counted no sample"):
        ConstantMap(num_classes=2).best()
    constant = ConstantMap(num_classes=2)
    constant.add(np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"shape \(2, 3\) after"):
        constant.add(np.zeros((2, 3)))
    dataset.samples[0].set_metainfo({"bev_aug": np.diag([-1.0, 1, 1, 1])})
    with pytest.raises(ValueError, match="test pipeline"):
        ConstantPredictor.fit(dataset)
