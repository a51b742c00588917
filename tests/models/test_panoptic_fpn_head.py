"""The segmentation head: resolution, losses against sums by hand, prediction at the original size."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from perception.models import PanopticFPNHead
from perception.models.seg_losses import image_dice_loss

OPTIONS = {"in_channels": 16, "num_classes": 5, "feat_channels": 16, "num_groups": 4}


def pyramid(levels=(0, 1, 2, 3), batch=2):
    torch.manual_seed(1)
    return [torch.randn(batch, 16, 32 >> level, 48 >> level) for level in levels]


def mask(seed=0, size=(128, 192)):
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(0, 5, size, generator=generator)
    found[:20] = 255
    return found


def test_levels_meet_at_the_common_stride():
    head = PanopticFPNHead(**OPTIONS)
    assert head(pyramid()).shape == (2, 5, 32, 48)
    assert [len(branch.conv) for branch in head.branches] == [1, 1, 2, 3]
    coarse = PanopticFPNHead(levels=(0, 1, 2), strides=(8, 16, 32), common_stride=8, **OPTIONS)
    assert coarse(pyramid((1, 2, 3))).shape == (2, 5, 16, 24)
    assert [len(branch.conv) for branch in coarse.branches] == [1, 1, 2]


def test_the_sum_is_over_all_levels():
    head = PanopticFPNHead(**OPTIONS).eval()
    features = [feature.requires_grad_() for feature in pyramid()]
    head(features).square().sum().backward()
    assert all(feature.grad.abs().max() > 0 for feature in features)


@pytest.mark.parametrize(("ce", "dice"), [(1.0, 0.5), (0.5, 0.5), (1.0, 0.0)])
def test_both_readings_of_the_papers_loss(ce, dice):
    head = PanopticFPNHead(loss_ce_weight=ce, loss_dice_weight=dice, **OPTIONS)
    logits, masks = head(pyramid()), [mask(0), mask(1)]
    losses = head.loss(logits, masks)
    full = F.interpolate(logits, scale_factor=4.0, mode="bilinear")
    wanted = F.cross_entropy(full, torch.stack(masks), ignore_index=255)
    assert_close(losses["loss_ce"], wanted * ce)
    assert int(losses["num_targets"]) == 2 * (128 - 20) * 192
    assert ("loss_dice" in losses) == bool(dice)
    if dice:
        plain, pairs = image_dice_loss(full, torch.stack(masks))
        assert_close(losses["loss_dice"], plain * dice)
        assert int(losses["loss_dice.num_targets"]) == int(pairs) == 10


def test_dice_by_hand():
    torch.manual_seed(0)
    logits, target = torch.randn(2, 5, 6, 7), torch.randint(0, 4, (2, 6, 7))  # class 4 is nowhere
    target[0, 0] = 255
    target[1][target[1] == 2] = 0
    loss, pairs = image_dice_loss(logits, target)
    terms = []
    for image, wanted in zip(logits, target, strict=True):
        counted = wanted != 255
        prob = image.softmax(dim=0)[:, counted]
        for number in wanted[counted].unique().tolist():
            hit = (wanted[counted] == number).float()
            dice = (2 * (prob[number] * hit).sum() + 1) / (prob[number].sum() + hit.sum() + 1)
            terms.append(1 - dice)
    assert int(pairs) == len(terms) == 7
    assert_close(loss, torch.stack(terms).mean())


def test_dice_of_two_images_is_the_mean_over_their_pairs():
    torch.manual_seed(0)
    logits, target = torch.randn(2, 5, 6, 7), torch.randint(0, 3, (2, 6, 7))
    target[1][target[1] == 2] = 1
    both, pairs = image_dice_loss(logits, target)
    single = [image_dice_loss(logits[row : row + 1], target[row : row + 1]) for row in (0, 1)]
    assert [int(count) for _, count in single] == [3, 2]
    assert_close(both, sum(loss * count for loss, count in single) / pairs)


def test_images_without_a_mask_take_no_part():
    head = PanopticFPNHead(**OPTIONS)
    logits = head(pyramid())
    among, alone = head.loss(logits, [None, mask()]), head.loss(logits[1:], [mask()])
    for name in alone:
        assert torch.equal(among[name], alone[name])
    assert head.loss(logits, [None, None]) == {}
    assert head.loss(logits, [None, torch.full((128, 192), 255)]) == {}


def test_prediction_has_the_original_size():
    head = PanopticFPNHead(**OPTIONS)
    logits = torch.full((1, 5, 32, 48), -9.0)
    logits[:, 1] = 0.0
    logits[:, 3, :, 24:] = 9.0  # right half of the padded input
    metainfo = {"img_shape": (120, 180), "ori_shape": (240, 360)}
    (found,) = head.predict(logits, [metainfo])
    assert found.shape == (240, 360)
    assert found.unique().tolist() == [1, 3]
    border = int((found[100] == 3).nonzero()[0])
    assert abs(border - 2 * 96) <= 4
    (same,) = head.predict(logits, [{"img_shape": (120, 180), "ori_shape": (120, 180)}])
    assert same.shape == (120, 180)


def test_bad_input_is_named():
    head = PanopticFPNHead(**OPTIONS)
    with pytest.raises(ValueError, match="padded input"):
        head.loss(head(pyramid()), [mask(size=(120, 192)), None])
    with pytest.raises(ValueError, match="pad_size_divisor"):
        head([*pyramid((0, 1, 2)), torch.randn(2, 16, 5, 6)])
    with pytest.raises(ValueError, match="times common_stride"):
        PanopticFPNHead(common_stride=8, **OPTIONS)
    with pytest.raises(ValueError, match="times common_stride"):
        PanopticFPNHead(strides=(4, 8, 16, 24), **OPTIONS)
    with pytest.raises(ValueError, match="one entry per level"):
        PanopticFPNHead(levels=(0, 1), **OPTIONS)
    with pytest.raises(ValueError, match="multiple of num_groups"):
        PanopticFPNHead(**{**OPTIONS, "num_groups": 3})
