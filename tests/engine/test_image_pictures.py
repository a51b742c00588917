"""Pictures of BDD100K samples: what is drawn, in whose pixels, and what the files are called."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData, PixelData

from perception.cli.main import main
from perception.datasets import (
    BDD100KDataset,
    LoadImage2D,
    LoadSegMask,
    PackImageInputs,
    ResizeImage,
    prepare_bdd100k,
)
from perception.engine.browse import browse, dataset_of_index, find_data_root
from perception.engine.image_pictures import draw_image_item, image_record
from perception.structures import BDD_BOX_CLASSES
from perception.utils import DataError

PANEL = (slice(58, 58 + 405), slice(6, 726))
SECOND = (PANEL[0], slice(732, 1452))


@pytest.fixture(scope="module")
def index(bdd100k_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("index")
    prepare_bdd100k(bdd100k_root, out=out, progress=False)
    return out / "bdd100k_val.json"


@pytest.fixture(scope="module")
def small(bdd100k_root: Path, index: Path) -> BDD100KDataset:
    """Items at half the files' size."""
    steps = [LoadImage2D(), LoadSegMask(), ResizeImage(size=(160, 90)), PackImageInputs()]
    return BDD100KDataset(ann_file=str(index), data_root=str(bdd100k_root), pipeline=steps, test_mode=True)


def _perfect(item: dict) -> DetDataSample:
    """The truth as a prediction, in pixels of the file."""
    truth = item["data_samples"]
    found = DetDataSample(metainfo=truth.metainfo)
    if "gt_instances" in truth:
        boxes = truth.gt_instances.bboxes * 2
        found.pred_instances = InstanceData(
            bboxes=boxes, labels=truth.gt_instances.labels, scores=torch.ones(len(boxes))
        )
    if "gt_sem_seg" in truth:
        mask = truth.gt_sem_seg.sem_seg.repeat_interleave(2, 1).repeat_interleave(2, 2)
        found.pred_sem_seg = PixelData(sem_seg=mask)
    return found


def test_index_files_are_drawn_in_full_and_named_by_their_images(
    bdd100k_root: Path, index: Path, tmp_path: Path
) -> None:
    written = browse(
        dataset_of_index(index, data_root=bdd100k_root), out=tmp_path / "p", indices=[0, 4, 7], num=9
    )
    names = dataset_of_index(index, data_root=bdd100k_root).sample_tokens
    assert [path.name for path in written] == [f"{k:06d}_{Path(names[k]).stem}.jpg" for k in (0, 4, 7)]
    assert all(cv2.imread(str(path)).shape[1] == 732 for path in written)


def test_command(bdd100k_root: Path, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(index), "--data-root", str(bdd100k_root), "--out", str(tmp_path), "--num", "2"]
    assert main(["browse", *words]) == 0
    assert len(capsys.readouterr().out.split()) == len(list(tmp_path.iterdir())) == 2
    assert main(["browse", *words, "--index", "8"]) == 2
    assert "the items 0 to 7" in capsys.readouterr().err


def test_root_is_found_beside_the_index(bdd100k_root: Path, index: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither below"):
        find_data_root(index)
    beside = tmp_path / "perception_index"
    beside.mkdir()
    (beside / index.name).write_bytes(index.read_bytes())
    (tmp_path / "images").symlink_to(bdd100k_root / "images")
    assert find_data_root(beside / index.name) == tmp_path


def test_truth_and_perfect_prediction_look_alike(small: BDD100KDataset) -> None:
    """Truth in the network's pixels and predictions in the file's end in the same places."""
    kinds = set()
    for number in (0, 5):
        item = small[number]
        sheet = draw_image_item(item, small, prediction=_perfect(item))
        assert sheet.shape[1] == 2 * 720 + 3 * 6
        truth, prediction = sheet[PANEL].astype(int), sheet[SECOND].astype(int)
        plain = cv2.resize(
            cv2.imread(item["data_samples"].img_path), (720, 405), interpolation=cv2.INTER_LINEAR
        )
        assert (truth != plain).any()
        # Scores stand above the prediction's boxes.
        assert (np.abs(truth - prediction).max(axis=-1) > 3).mean() < 0.05
        kinds.add("gt_instances" in item["data_samples"])
    assert kinds == {True, False}


def test_pseudo_labels_get_a_panel_of_their_own(small: BDD100KDataset) -> None:
    item = small[5]
    sample = item["data_samples"].clone()
    sample.pseudo_instances = InstanceData(
        bboxes=torch.tensor([[10.0, 10, 60, 40]]), labels=torch.tensor([2]), scores=torch.tensor([0.7])
    )
    both = {**item, "data_samples": sample}
    assert draw_image_item(both, small).shape[1] == 2 * 720 + 3 * 6
    assert draw_image_item(both, small, prediction=_perfect(item)).shape[1] == 3 * 720 + 4 * 6
    assert draw_image_item(item, small).shape[1] == 720 + 2 * 6


def test_boxes_that_are_not_finite_are_left_out(small: BDD100KDataset) -> None:
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, torch.nan, 9], [5, 5, 20, 20]])
    found = DetDataSample(
        pred_instances=InstanceData(
            bboxes=boxes, labels=torch.tensor([2, 2, 9]), scores=torch.tensor([0.5, 0.9, 0.75])
        )
    )
    record = image_record(found, BDD_BOX_CLASSES, num=5)
    assert record == [
        {"class": "traffic sign", "score": 0.75, "box": [5.0, 5.0, 20.0, 20.0]},
        {"class": "car", "score": 0.5, "box": [0.0, 0.0, 9.0, 9.0]},
    ]
    assert image_record(found, BDD_BOX_CLASSES, num=1) == record[:1]
    assert image_record(DetDataSample(), BDD_BOX_CLASSES, num=5) == []
    assert draw_image_item(small[0], small, prediction=found).dtype == np.uint8
