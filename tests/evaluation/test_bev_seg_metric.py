"""BEV IoU against scikit-learn, and its behaviour at the edges."""

import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from sklearn.metrics import confusion_matrix, jaccard_score

from perception.evaluation import BEVSegMetric, count_matches
from perception.structures import FILLED_MAP_CLASSES, MAP_CLASSES, MapGrid


def maps(count, shape=(20, 40), seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 4, (count, 1, *shape)))


def evaluate(metric, truths, predictions):
    for index, (truth, prediction) in enumerate(zip(truths, predictions, strict=True)):
        sample = {"sample_token": str(index), "pred_bev_seg": PixelData(sem_seg=prediction)}
        if truth is not None:
            sample["gt_bev_seg"] = {"sem_seg": truth}
        metric.process(None, [sample])
    return metric.evaluate(size=len(predictions))


def test_iou_equals_scikit_learn():
    truths, predictions = maps(5, seed=1), maps(5, seed=2)
    predictions = torch.where(maps(5, seed=3) > 1, truths, predictions)
    scores = evaluate(BEVSegMetric(), truths, predictions)
    expected = jaccard_score(truths.flatten(), predictions.flatten(), average=None, labels=range(4))
    for label in (1, 2, 3):
        assert scores[f"IoU/{MAP_CLASSES[label]}"] == pytest.approx(expected[label], abs=1e-12)
    assert scores["mIoU"] == pytest.approx(expected[1:].mean(), abs=1e-12)
    assert scores["num_seg_samples"] == 5


def test_counts_equal_scikit_learns_confusion():
    truth, prediction = maps(1, seed=4)[0, 0].numpy(), maps(1, seed=5)[0, 0].numpy()
    confusion = confusion_matrix(truth.ravel(), prediction.ravel())
    hits, false_positives, false_negatives = count_matches(prediction, truth, 4)
    assert hits.tolist() == np.diag(confusion).tolist()
    assert (false_positives + hits).tolist() == confusion.sum(0).tolist()
    assert (false_negatives + hits).tolist() == confusion.sum(1).tolist()


def test_counts_are_summed_before_dividing():
    # One sample of 1 hit, one of 3 misses: global IoU is 1/4, the mean of per-sample IoUs would be 1/2.
    truths = torch.tensor([[[[1, 0, 0, 0]]], [[[0, 1, 1, 1]]]])
    predictions = torch.tensor([[[[1, 0, 0, 0]]], [[[0, 0, 0, 0]]]])
    scores = evaluate(BEVSegMetric(), truths, predictions)
    assert scores["IoU/divider"] == scores["mIoU"] == 0.25


def test_perfect_is_exactly_one_and_background_does_not_count():
    truths = maps(3)
    assert evaluate(BEVSegMetric(), truths, truths)["mIoU"] == 1.0
    everything_background = evaluate(BEVSegMetric(), truths, torch.zeros_like(truths))
    assert everything_background["mIoU"] == 0.0
    assert "IoU/background" not in everything_background


def test_an_absent_class_is_left_out():
    truth = torch.tensor([[[0, 1], [1, 3]]])
    scores = evaluate(BEVSegMetric(), [truth], [truth])
    assert "IoU/ped_crossing" not in scores
    assert scores["mIoU"] == 1.0


def test_ignored_pixels_do_not_count():
    truth = torch.tensor([[[1, 255], [255, 0]]])
    prediction = torch.tensor([[[1, 1], [1, 0]]])
    assert evaluate(BEVSegMetric(), [truth], [prediction])["IoU/divider"] == 1.0


def test_samples_without_map_are_skipped_and_counted(caplog):
    truths = [maps(1)[0], None]
    scores = evaluate(BEVSegMetric(), truths, [maps(1)[0], maps(1)[0]])
    assert (scores["mIoU"], scores["num_seg_samples"], scores["num_seg_without_map"]) == (1.0, 1, 1)
    assert "1 of 2 samples have no map" in caplog.text
    with pytest.raises(ValueError, match="None of 2 evaluated samples has map ground truth"):
        evaluate(BEVSegMetric(), [None, None], maps(2))


def test_subset_is_marked(caplog):
    scores = evaluate(BEVSegMetric(subset=True), maps(1), maps(1))
    assert scores["seg_comparable"] is False
    assert "not comparable" in caplog.text
    assert evaluate(BEVSegMetric(), maps(1), maps(1))["seg_comparable"] is True


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [
        (torch.zeros(1, 2, 2), torch.zeros(1, 2, 3), "Sample 0: The predicted map has shape"),
        (torch.zeros(1, 2, 2), torch.full((1, 2, 2), 4), r"predicted map holds classes 4\.\.\.4"),
        (torch.full((1, 2, 2), -1), torch.zeros(1, 2, 2), r"ground truth holds classes -1"),
    ],
)
def test_bad_maps_are_refused(truth, prediction, message):
    with pytest.raises(ValueError, match=message):
        evaluate(BEVSegMetric(), [truth.long()], [prediction.long()])


def test_the_grid_is_checked_and_a_missing_prediction_named():
    with pytest.raises(ValueError, match="one MapGrid"):
        evaluate(BEVSegMetric(map_grid=MapGrid()), maps(1), maps(1))
    grid = {"x_range": (-1.5, 1.5), "y_range": (-3.0, 3.0)}
    assert evaluate(BEVSegMetric(map_grid=grid), maps(1), maps(1))["mIoU"] == 1.0
    with pytest.raises(ValueError, match="no pred_bev_seg"):
        BEVSegMetric().process(None, [{"sample_token": "a"}])


def test_names_follow_the_dataset_and_its_drawing_rule():
    truths, metric = maps(2), BEVSegMetric()
    metric.dataset_meta = {"map_classes": FILLED_MAP_CLASSES}
    scores = evaluate(metric, truths, truths)
    assert scores["IoU/drivable_area"] == 1.0
    assert "IoU/boundary" not in scores
