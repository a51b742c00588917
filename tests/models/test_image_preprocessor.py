import pytest
import torch
from torch.testing import assert_close

from perception.models import ImageDataPreprocessor
from tests.models.images import collate_images, image_item

MEAN, STD = (10.0, 20.0, 30.0), (1.0, 2.0, 4.0)


def test_images_of_two_sizes_are_padded_to_one():
    preprocessor = ImageDataPreprocessor(mean=MEAN, std=STD, pad_size_divisor=32)
    batch = collate_images([image_item(1, size=(60, 96)), image_item(2, size=(50, 100))])
    found = preprocessor(batch, True)
    images = found["inputs"]["img"]
    assert images.shape == (2, 3, 64, 128)
    raw = batch["inputs"]["img"][1].float()  # BGR
    expected = (raw[[2, 1, 0]] - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    assert_close(images[1, :, :50, :100], expected)
    assert images[1, :, 50:].abs().max() == 0
    assert images[1, :, :, 100:].abs().max() == 0
    for sample, before in zip(found["data_samples"], batch["data_samples"], strict=True):
        height, width = before.gt_sem_seg.sem_seg.shape[-2:]
        padded = sample.gt_sem_seg.sem_seg
        assert padded.shape == (1, 64, 128)
        assert torch.equal(padded[:, :height, :width], before.gt_sem_seg.sem_seg)
        assert (padded[:, height:] == 255).all()
        assert (padded[:, :, width:] == 255).all()
        assert torch.equal(sample.gt_instances.bboxes, before.gt_instances.bboxes)


def test_pseudo_masks_are_padded_and_samples_without_a_mask_left_alone():
    batch = collate_images([image_item(1, mask=False, pseudo_mask=True), image_item(2, mask=False)])
    first, second = ImageDataPreprocessor()(batch, True)["data_samples"]
    assert first.pseudo_sem_seg.sem_seg.shape == (1, 64, 96)
    assert "gt_sem_seg" not in first
    assert not {"gt_sem_seg", "pseudo_sem_seg"} & set(second.keys())


def test_evaluation_leaves_samples_as_they_are():
    batch = collate_images([image_item(1)])
    (sample,) = ImageDataPreprocessor()(batch, False)["data_samples"]
    assert sample.gt_sem_seg.sem_seg.shape == (1, 60, 96)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="list of images"):
        ImageDataPreprocessor()({"inputs": {"points": []}})
    with pytest.raises(ValueError, match=r"\(1, 8, 8\)"):
        ImageDataPreprocessor()({"inputs": {"img": [torch.zeros(1, 8, 8, dtype=torch.uint8)]}})
