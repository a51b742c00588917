"""Non-maximum suppression through ``mmcv.ops``, against loops in NumPy."""

import numpy as np
import pytest
import torch
from mmcv.ops import batched_nms, box_iou_rotated, nms, nms3d, nms3d_normal, nms_match, nms_rotated, soft_nms


def make_boxes(count, seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 20, (count, 2))
    boxes = np.concatenate((corner, corner + rng.uniform(2, 12, (count, 2))), axis=1).astype(dtype)
    return boxes, rng.permutation(count).astype(dtype) / count


def iou(a, b, offset=0):
    size = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]) + offset
    common = max(size[0], 0) * max(size[1], 0)
    return common / (np.prod(a[2:] - a[:2] + offset) + np.prod(b[2:] - b[:2] + offset) - common)


def greedy(scores, overlap, threshold):
    kept = []
    for i in np.argsort(-scores):
        if all(overlap(i, j) <= threshold for j in kept):
            kept.append(int(i))
    return kept


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.7])
@pytest.mark.parametrize("offset", [0, 1])
def test_nms(threshold, offset):
    boxes, scores = make_boxes(80, seed=0)
    expected = greedy(scores, lambda i, j: iou(boxes[i], boxes[j], offset), threshold)
    assert 1 < len(expected) < 80
    dets, kept = nms(boxes, scores, threshold, offset=offset)
    assert kept.tolist() == expected
    np.testing.assert_array_equal(dets, np.concatenate((boxes, scores[:, None]), axis=1)[expected])


def test_nms_options():
    boxes, scores = (torch.from_numpy(x) for x in make_boxes(50, seed=1))
    everything = nms(boxes, scores, 0.5)[1]
    assert nms(boxes, scores, 0.5, max_num=3)[1].tolist() == everything[:3].tolist()
    above = nms(boxes, scores, 0.5, score_threshold=0.5)[1]
    assert above.tolist() == [i for i in everything.tolist() if scores[i] > 0.5]
    assert nms(boxes[:0], scores[:0], 0.5)[1].shape == (0,)
    assert nms(boxes[:1], scores[:1], 0.5)[1].tolist() == [0]
    assert nms(boxes, scores, 1.0)[1].tolist() == scores.argsort(descending=True).tolist()


def test_batched_nms_keeps_classes_apart():
    boxes, scores = (torch.from_numpy(x) for x in make_boxes(60, seed=2))
    classes = torch.arange(60) % 3
    kept = batched_nms(boxes, scores, classes, {"type": "nms", "iou_threshold": 0.3})[1]
    expected = [
        torch.arange(60)[classes == c][nms(boxes[classes == c], scores[classes == c], 0.3)[1]]
        for c in range(3)
    ]
    assert sorted(kept.tolist()) == sorted(torch.cat(expected).tolist())


def test_nms_match_groups_are_a_partition():
    boxes, scores = make_boxes(40, seed=3)
    groups = nms_match(torch.from_numpy(np.concatenate((boxes, scores[:, None]), axis=1)), 0.4)
    assert sorted(torch.cat(groups).tolist()) == list(range(40))
    assert [int(g[0]) for g in groups] == greedy(scores, lambda i, j: iou(boxes[i], boxes[j]), 0.4)
    for first, *others in (g.tolist() for g in groups):
        assert all(iou(boxes[first], boxes[j]) >= 0.4 for j in others)


@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
def test_soft_nms(method):
    boxes, scores = make_boxes(30, seed=4)
    left, lowered, expected = list(range(30)), scores.astype(np.float64), []
    while left:
        best = max(left, key=lambda i: lowered[i])
        expected.append((best, lowered[best]))
        left.remove(best)
        for i in left:
            overlap = iou(boxes[best], boxes[i])
            if method == "gaussian":
                lowered[i] *= np.exp(-(overlap**2) / 0.5)
            elif overlap >= 0.3:
                lowered[i] *= 1 - overlap if method == "linear" else 0
        left = [i for i in left if lowered[i] >= 1e-3]
    dets, kept = soft_nms(boxes, scores, 0.3, sigma=0.5, min_score=1e-3, method=method)
    assert kept.tolist() == [i for i, _ in expected]
    np.testing.assert_allclose(dets[:, 4], [score for _, score in expected], rtol=1e-5)
    np.testing.assert_array_equal(dets[:, :4], boxes[kept])


def make_rotated(count, seed):
    rng = np.random.default_rng(seed)
    boxes = np.concatenate(
        (rng.uniform(0, 12, (count, 2)), rng.uniform(1, 5, (count, 2)), rng.uniform(-4, 4, (count, 1))),
        axis=1,
    )
    return torch.tensor(boxes), torch.tensor(rng.permutation(count) / count)


def test_nms_rotated():
    boxes, scores = make_rotated(60, seed=5)
    overlap = box_iou_rotated(boxes, boxes)
    expected = greedy(scores.numpy(), lambda i, j: overlap[i, j], 0.2)
    dets, kept = nms_rotated(boxes, scores, 0.2)
    assert kept.tolist() == expected
    torch.testing.assert_close(dets, torch.cat((boxes, scores[:, None]), dim=1)[kept])
    labels = torch.arange(60) % 2
    expected = greedy(scores.numpy(), lambda i, j: overlap[i, j] * (labels[i] == labels[j]), 0.2)
    assert nms_rotated(boxes, scores, 0.2, labels=labels)[1].tolist() == expected


def test_nms_in_space_looks_from_above():
    flat, scores = make_rotated(60, seed=6)
    boxes = torch.stack(
        (flat[:, 0], flat[:, 1], 0 * flat[:, 0], flat[:, 2], flat[:, 3], flat[:, 2], flat[:, 4]), dim=1
    )
    assert nms3d(boxes, scores, 0.2).tolist() == nms_rotated(flat, scores, 0.2)[1].tolist()
    upright = flat * torch.tensor([1.0, 1, 1, 1, 0], dtype=torch.float64)
    assert nms3d_normal(boxes, scores, 0.2).tolist() == nms_rotated(upright, scores, 0.2)[1].tolist()
