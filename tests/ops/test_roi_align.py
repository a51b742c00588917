import math

import numpy as np
import pytest
import torch
from mmcv.ops import roi_align
from scipy.ndimage import map_coordinates
from torch.autograd import gradcheck

ROIS = torch.tensor(
    [[0, 1.3, 2.1, 9.7, 8.2], [1, -3, -2, 6, 5], [0, 4, 4, 4.5, 4.2], [1, 10, 3, 40, 30], [0, 0, 0, 15, 11]],
    dtype=torch.float64,
)


def make_map():
    return torch.randn(2, 3, 12, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def naive(feature, rois, size, scale, ratio, mode, aligned):
    """Bins sampled with scipy's linear interpolation, the border repeated for one pixel."""
    height, width = feature.shape[2:]
    out = np.zeros((len(rois), feature.shape[1], *size))
    for r, (b, *roi) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (v * scale - 0.5 * aligned for v in roi)
        w, h = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1), max(y2 - y1, 1))
        ny, nx = ratio or math.ceil(h / size[0]), ratio or math.ceil(w / size[1])
        for c, i, j in np.ndindex(out.shape[1:]):
            samples = []
            for iy, ix in np.ndindex(ny, nx):
                y, x = y1 + (i + (iy + 0.5) / ny) * h / size[0], x1 + (j + (ix + 0.5) / nx) * w / size[1]
                inside = -1 <= y <= height and -1 <= x <= width
                sample = map_coordinates(feature[int(b), c].numpy(), [[y], [x]], order=1, mode="nearest")[0]
                samples.append(sample if inside else 0.0)
            out[r, c, i, j] = np.mean(samples) if mode == "avg" else np.max(samples)
    return out


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_definition(mode, ratio, aligned):
    feature = make_map()
    out = roi_align(feature, ROIS, (3, 2), 0.7, ratio, mode, aligned)
    expected = naive(feature, ROIS, (3, 2), 0.7, ratio, mode, aligned)
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-10)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("ratio", [0, 2])
def test_gradcheck(mode, ratio):
    feature = make_map().requires_grad_()
    assert gradcheck(lambda x: roi_align(x, ROIS, (3, 2), 0.7, ratio, mode, True), (feature,), fast_mode=True)


def test_whole_pixels_are_returned_unchanged():
    feature = make_map()
    out = roi_align(
        feature, torch.tensor([[1.0, 2, 3, 7, 9]], dtype=torch.float64), (6, 5), 1.0, 1, "avg", True
    )
    torch.testing.assert_close(out[0], feature[1, :, 3:9, 2:7])


def test_no_regions():
    assert roi_align(make_map(), ROIS[:0], (3, 2), 1.0, 0, "avg", True).shape == (0, 3, 3, 2)


def test_empty_region_gives_zero():
    rois = torch.tensor([[0.0, 3, 3, 3, 3]], dtype=torch.float64)
    assert roi_align(make_map(), rois, (2, 2), 1.0, 0, "avg", True).abs().max() == 0


def test_negative_size_is_refused():
    rois = torch.tensor([[0.0, 5, 5, 3, 9]], dtype=torch.float64)
    with pytest.raises(ValueError, match="x2 >= x1"):
        roi_align(make_map(), rois, (2, 2), 1.0, 0, "avg", True)
